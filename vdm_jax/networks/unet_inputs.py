"""What a stage gives the space-time U-Net, of `Conditioning`: its input along the channels, and what is refused.

`spec` is the `UNet`, whose module asks.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from vdm_jax.conditions.conditioning import Conditioning, check_parts
from vdm_jax.conditions.inputs import check_entries
from vdm_jax.errors import UserError
from vdm_jax.networks import config as cfg


def stack_inputs(spec: cfg.UNet, z: Array, conditioning: Conditioning) -> Array:
    """Noisy video, low-resolution video, conditioning frames and their mask, further conditions, and Fourier features
    of the noisy video along the channels, in the order of `UNet.stacked`."""
    parts = [z]
    if spec.low_resolution:
        parts.append(conditioning.low_resolution)
    if spec.conditioning_frames and not spec.injected:
        parts += [conditioning.conditioning_frames, conditioning.conditioning_mask]
    parts += [conditioning.inputs[entry.name] for entry in spec.entering("channels")]
    parts += [wave(2**n * jnp.pi * z) for n in spec.fourier for wave in (jnp.sin, jnp.cos)]
    return jnp.concatenate(parts, axis=-1)


def check_inputs(spec: cfg.UNet, z: Array, conditioning: Conditioning, images: int = 0) -> None:
    """Raise `UserError` when sizes do not divide, a part the network needs is absent, or appended images would see the
    clip (at trace time)."""
    multiples = (spec.frame_reduction, *spec.reduction)
    for name, size, multiple in zip(("frames", "height", "width"), z.shape[1:4], multiples, strict=True):
        if size % multiple:
            raise UserError(f"video {name}={size} is not a multiple of the U-Net's reduction {multiple}; "
                            f"permitted: {multiple}, {2 * multiple}, {3 * multiple}, ...")
    check_parts(spec, conditioning)
    frames = () if images else (z.shape[1],)
    if spec.text is not None and conditioning.text_mask.shape[1] not in (1 + images, *frames):
        raise UserError(f"Conditioning has {conditioning.text_mask.shape[1]} captions per clip; "
                        f"permitted: {1 + images}, one for the clip and one for each appended image"
                        f"{f', or {z.shape[1]}, one for each frame' if frames else ''}")
    check_references(spec, z, conditioning, images)
    check_entries(spec.conditions, z, conditioning)
    for entry in spec.entering("residuals"):
        shape, wanted = conditioning.inputs[entry.name].shape, (*z.shape[:4], entry.width)
        if shape != wanted:
            raise UserError(f"map {entry.name!r} of shape {shape}; permitted: {wanted}")
    valid = conditioning.frame_valid
    if valid is not None and valid.shape != z.shape[:2]:
        raise UserError(f"Conditioning.frame_valid has shape {valid.shape}; permitted: {z.shape[:2]}, batch and frames")
    if valid is not None and spec.norm_over == "clip":
        raise UserError("Conditioning.frame_valid with UNet.norm_over='clip', whose statistics mix padded frames with "
                        "the clip; permitted: norm_over='frame'")
    if images and spec.frame_reduction > 1:
        raise UserError(f"images={images} with temporal_patch or Level.temporal_stride > 1, which mix images with the "
                        "clip; permitted: images=0, or 1 of both")
    if images and spec.norm_over == "clip":
        raise UserError(f"images={images} with UNet.norm_over='clip', whose statistics mix the images with the clip; "
                        "permitted: norm_over='frame'")


def check_references(spec: cfg.UNet, z: Array, conditioning: Conditioning, images: int) -> None:
    """Raise `UserError` when reference features or masks are absent, unknown or of shapes that do not fit."""
    (batch, frames), widths = z.shape[:2], {reference.name: reference.width for reference in spec.references}
    for name in (*conditioning.references, *conditioning.reference_masks):
        if name not in widths:
            raise UserError(f"Conditioning.references has {name!r}, which the network does not take; permitted: "
                            f"{', '.join(widths) or 'none'}")
    # One group for all would let appended images see what belongs to the clip.
    groups = [frames] if images else sorted({1, frames})
    for name, width in widths.items():
        shape, mask = conditioning.references[name].shape, conditioning.reference_masks.get(name)
        if len(shape) != 4 or shape[0] != batch or shape[1] not in groups or shape[3] != width:
            raise UserError(f"Conditioning.references[{name!r}] has shape {shape}; permitted: [{batch}, "
                            f"{' or '.join(map(str, groups))}, tokens, {width}]")
        if mask is not None and mask.shape != shape[:3]:
            raise UserError(f"Conditioning.reference_masks[{name!r}] has shape {mask.shape}; permitted: {shape[:3]}")
