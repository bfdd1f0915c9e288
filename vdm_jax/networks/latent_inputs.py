"""What a stage gives a latent U-Net, of `Conditioning`: its input along the channels, its numbers and its class.

`spec` is the `LatentNetwork`, whose module asks.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vdm_jax.conditions.conditioning import Conditioning, check_parts
from vdm_jax.conditions.inputs import check_entries
from vdm_jax.conditions.scalars import WEIGHT
from vdm_jax.errors import UserError


def check_inputs(
    spec: Any, z: Float[Array, "B T H W C"], logsnr: Float[Array, " ..."], conditioning: Conditioning
) -> None:
    """Raise `UserError` for a condition that is absent, and for what the network cannot take."""
    check_parts(spec, conditioning)
    check_entries(spec.conditions, z, conditioning)
    if conditioning.frame_valid is not None:
        raise UserError("clips with padded frames for a LatentNetwork, whose temporal layers would see them; "
                        "permitted: clips of one length, or a UNet")
    if logsnr.shape not in (z.shape[:1], z.shape[:2]):
        raise UserError(f"noise levels of shape {logsnr.shape} for a video of shape {z.shape}; permitted: "
                        f"{z.shape[:1]}, one per clip, or {z.shape[:2]}, one per frame")


def conditioning_latents(spec: Any, conditioning: Conditioning) -> Float[Array, "B T H W M"] | None:
    """Conditioning latents, zero elsewhere, and their mask along the channels."""
    if not spec.conditioning_frames:
        return None
    return jnp.concatenate([conditioning.conditioning_frames, conditioning.conditioning_mask], axis=-1)


def stacked(spec: Any, z: Array, conditioning: Conditioning, conditioning_latents: Array | None) -> Array:
    """Noisy latents, or conditioning latents in their place and the mask, the low-resolution video and the first frame
    along the channels."""
    parts = [z]
    if spec.frame_conditioning == "in_place":
        mask = conditioning_latents[..., -1:]
        parts = [jnp.where(mask > 0, conditioning_latents[..., :-1], z), mask]
    if spec.low_resolution:
        parts.append(conditioning.low_resolution)
    if spec.first_frame:
        parts.append(jnp.broadcast_to(conditioning.image, (*z.shape[:4], conditioning.image.shape[-1])))
    parts += [entry.around(conditioning.inputs[entry.name]) for entry in spec.entering("channels")]
    return jnp.concatenate(parts, axis=-1)


def scalars(spec: Any, conditioning: Conditioning) -> Float[Array, "B N"] | None:
    """The numbers of a clip in the order of the U-Net, frames per second less one as released models take them."""
    if not spec.unet.scalars:
        return None
    return jnp.stack([conditioning.scalars[name] - (name == "fps") for name in spec.scalars if name != WEIGHT], axis=-1)


def classes(spec: Any, conditioning: Conditioning, batch: int) -> Int[Array, " B"] | None:
    """The class in the U-Net's table: a rate, or the step of the noise on conditioning frames or on a low-resolution
    video."""
    if spec.rate is not None:
        return jnp.full((batch,), spec.rate, jnp.int32)
    if spec.frame_noise_steps:
        return jnp.round(conditioning.scalars["frame_noise_step"]).astype(jnp.int32)
    if spec.low_resolution_steps is None:
        return None
    return jnp.round(spec.low_resolution_steps.timestep(conditioning.augmentation)).astype(jnp.int32)
