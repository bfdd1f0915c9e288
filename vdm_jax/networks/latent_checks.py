"""Which conditions and branches of a `LatentNetwork` go with its U-Net.

`spec` is the `LatentNetwork`.
"""

from __future__ import annotations

from typing import Any

from vdm_jax.conditions.image_prompt import IMAGE_PROMPT
from vdm_jax.errors import UserError
from vdm_jax.networks.control_net import ControlNet
from vdm_jax.networks.pose_guider import PoseGuider
from vdm_jax.networks.sparse_control import SparseControlNet


def check_adaptors(spec: Any, stage: Any) -> None:
    """Raise `UserError` for a stage of other clips than those whose frames have a scale and a shift each."""
    directed, frames = spec.unet.directed, stage.training.frames or stage.shape[0]
    if directed is not None and {frames, stage.shape[0]} != {directed.frames}:
        raise UserError(f"Stage {stage.name!r}: {stage.shape[0]} frames, {frames} in training, for "
                        f"network.unet.directed.frames={directed.frames}; permitted: {directed.frames}",
                        "Directed.frames")


def check_branches(spec: Any) -> None:
    """Raise `UserError` for tokens that nothing attends to, and ControlNets of other sizes than the U-Net or for
    other conditions than there are."""
    unet, entries = spec.unet, spec.entering("residuals")
    if spec.entering("tokens") and not unet.token_channels:
        raise UserError(f"LatentNetwork.conditions={[entry.name for entry in spec.entering('tokens')]} as tokens "
                        "for a U-Net of token_channels=0, which attends to none; permitted: channels, residuals")
    widths, found = [e.width for e in entries], [net.hint_channels for net in spec.control_nets]
    if widths != found:
        raise UserError(f"LatentNetwork.control_nets of hint_channels={found} for conditions that enter as "
                        f"residuals, {[entry.name for entry in entries]} of width={widths}; permitted: one for "
                        "each, of its width", "LatentNetwork.control_nets")
    sparse = [e.name for e, net in zip(entries, spec.control_nets, strict=True)
              if e.optional and isinstance(net, SparseControlNet)]
    if sparse:
        raise UserError(f"LatentNetwork.conditions: {sparse[0]!r} has optional=True with a SparseControlNet, which "
                        "sees clips of which no frame is given; permitted: False", "Input.optional")
    for net in spec.adapters:
        if net.widths != unet.widths:
            raise UserError(f"LatentNetwork.control_nets: T2IAdapter.widths={net.widths} for a U-Net of "
                            f"{unet.widths}; permitted: the same", "LatentNetwork.control_nets")
    for net in (net for net in spec.control_nets if isinstance(net, PoseGuider)):
        if net.features != unet.widths[0]:
            raise UserError(f"LatentNetwork.control_nets: PoseGuider.features={net.features} for a U-Net of "
                            f"{unet.widths}; permitted: {unet.widths[0]}", "LatentNetwork.control_nets")
    for name in ("in_channels", "widths", "blocks", "token_channels", "classes"):
        for net in (net for net in spec.control_nets if isinstance(net, ControlNet | SparseControlNet)):
            if getattr(net.unet, name) != getattr(unet, name):
                raise UserError(f"LatentNetwork.control_nets: unet.{name}={getattr(net.unet, name)} for a U-Net of "
                                f"{getattr(unet, name)}; permitted: the same, as control_net_of(unet) has it",
                                "LatentNetwork.control_nets")
    _check_pictures(spec)


def _check_pictures(spec: Any) -> None:
    """Raise `UserError` where the U-Net cannot see a picture in the way that is asked for."""
    unet = spec.unet
    _check_image_prompt(spec)
    if spec.reference_net and not (unet.referenced and unet.in_channels == unet.out_channels):
        raise UserError(f"LatentNetwork.reference_net=True for a U-Net of in_channels={unet.in_channels}, "
                        f"out_channels={unet.out_channels}, spatial_pattern={unet.spatial_pattern}; permitted: as "
                        "many in as out, and WithExtraKeys(inner=Spatial())")
    adapter, prompt = spec.picture_adapter, [e.width for e in spec.conditions if e.name == IMAGE_PROMPT]
    if adapter is not None and (spec.reference_net or spec.image_projection is not None
                                or [adapter.width] != prompt or unet.token_channels != adapter.width):
        raise UserError(f"LatentNetwork.picture_adapter={adapter} with conditions="
                        f"{[e.name for e in spec.conditions]}, a U-Net of token_channels={unet.token_channels}, "
                        f"reference_net={spec.reference_net} and image_projection={spec.image_projection}; "
                        f"permitted: Input(name='image_prompt') of the width of both, {adapter.width}, and none "
                        "of the two", "LatentNetwork.picture_adapter")


def _check_image_prompt(spec: Any) -> None:
    """Raise `UserError` for a projection, a condition and a U-Net of which one knows no image prompt."""
    entry, projection = next((e for e in spec.conditions if e.name == IMAGE_PROMPT), None), spec.image_projection
    found = entry and entry.width, spec.unet.image_prompt, spec.unet.token_channels
    if found != ((projection.width, True, projection.token_channels) if projection is not None else
                 (entry and spec.unet.token_channels, False, spec.unet.token_channels)):
        raise UserError(f"LatentNetwork.image_projection={projection} with conditions="
                        f"{[e.name for e in spec.conditions]} and a U-Net of image_prompt={spec.unet.image_prompt}, "
                        f"token_channels={spec.unet.token_channels}; permitted: Input(name='image_prompt') of its "
                        "width and a U-Net of image_prompt=True and its token_channels; or no projection, "
                        "image_prompt=False and, where vectors are tokens as they are, the width of token_channels")


def check_frames(spec: Any) -> None:
    """Raise `UserError` where the U-Net does not take conditioning frames in this way."""
    unet, by_layers = spec.unet, spec.frame_conditioning == "layers"
    if unet.conditioning_channels != by_layers * (unet.out_channels + 1):
        raise UserError(f"LatentNetwork.frame_conditioning={spec.frame_conditioning!r} for a U-Net of "
                        f"conditioning_channels={unet.conditioning_channels}; permitted: 'layers' "
                        "exactly for one of its latents' channels and 1, else 'none', "
                        "'in_place'")
    classes, steps = spec.frame_noise_steps + 1, 0 if spec.timesteps is None else spec.timesteps.steps
    if spec.frame_noise_steps and not (spec.frame_conditioning != "none" and spec.low_resolution_steps is None
                                       and (unet.classes == classes or spec.rate is not None)
                                       and 0 <= spec.frame_noise_step <= spec.frame_noise_steps < steps):
        raise UserError(f"LatentNetwork: frame_noise_steps={spec.frame_noise_steps}, "
                        f"frame_noise_step={spec.frame_noise_step} with "
                        f"frame_conditioning={spec.frame_conditioning!r} for a U-Net of {unet.classes} "
                        "classes; permitted: 0, or timesteps of LatentNetwork.timesteps "
                        f"for one with conditioning frames, of {classes} classes")
    if spec.rate is not None and (not 0 <= spec.rate < unet.classes or spec.low_resolution_steps is not None):
        raise UserError(f"LatentNetwork.rate={spec.rate} for a U-Net of {unet.classes} classes; permitted: one of "
                        "these, without low_resolution_steps")
