"""`LatentUNetNetwork`: the network that `latent_unet.LatentUNet` describes, and the reference tokens that another one
takes from it."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.errors import UserError
from vdm_jax.networks.blocks.attention import INPUTS
from vdm_jax.networks.latent_frames import FIRST_HEADS
from vdm_jax.networks.latent_unet import (
    LatentUNet,
    check,
    conditioning_by_level,
    controlled,
    embed,
    middle,
    sizes_of,
    steps_down,
    steps_up,
)
from vdm_jax.networks.latent_unet_blocks import BlockInputs, Control, ImagePrompt, residual_norm
from vdm_jax.networks.layers import Convolution, GroupNorm, silu
from vdm_jax.networks.skips import Deep, through_skips
from vdm_jax.parallel.rules import shard_along


class LatentUNetNetwork(nn.Module):
    """Noisy latents `[B, T, H, W, C]` to a prediction of `out_channels`.

    Raises `UserError` for inputs that the config lacks or wants, and clips longer than the motion modules know.
    """

    config: LatentUNet

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], level: Float[Array, " B"] | Float[Array, "B T"],
        tokens: Float[Array, "B G L E"] | None = None, *, scalars: Float[Array, "B N"] | None = None,
        classes: Int[Array, " B"] | None = None, control: Control | None = None,
        conditioning_latents: Float[Array, "B T H W M"] | None = None,
        references: dict[str, Float[Array, "B _ _ _"]] | None = None,
        features: tuple[Float[Array, "B T _ _ _"], ...] | None = None, train: bool = False,
        weight: Float[Array, " B"] | None = None, deep: Deep | None = None, image: ImagePrompt | None = None,
        reference_seen: Bool[Array, " B"] | None = None, guide: Float[Array, "B T H W C2"] | None = None,
    ) -> Float[Array, "B T H W O"]:
        """`level` is the timestep, or ln(sigma) / 4 in Stable Video Diffusion, of the clip or of each frame; the
        `tokens` are one group for the clip or one per frame, as do the `references` of an `WithExtraKeys`
        pattern, by transformer (`reference_tokens`). `control` is what a ControlNet made of the same
        latents, `features` what a T2I-Adapter adds to the last block of each level on the way down;
        `conditioning_latents` has the latents of conditioning frames, zero elsewhere, and their mask; `weight` is that
        of the guidance; `deep` is where the features inside a skip connection come from; `image` is an image prompt,
        which a network with `image_prompt` may have; `reference_seen` says which samples see their references (None:
        all), `guide` is added to the features of the first convolution.
        """
        spec, dtype = self.config, jnp.dtype(self.config.dtype)
        check(spec, x, tokens, scalars, classes, conditioning_latents)
        if (weight is None) == bool(spec.weight_channels):
            raise UserError(f"weight={weight} of the guidance for LatentUNet.weight_channels={spec.weight_channels}; "
                            "permitted: one for each video exactly with weight_channels", "LatentUNet.weight_channels")
        if image is not None and not (spec.image_prompt and image.tokens.shape[-1] == spec.token_channels):
            raise UserError(f"image prompt of shape {image.tokens.shape} for LatentUNet.image_prompt="
                            f"{spec.image_prompt}, token_channels={spec.token_channels}; permitted: tokens of these "
                            "channels with image_prompt=True")
        check_references(spec, x, references)
        tokens = None if tokens is None else tokens.astype(dtype)
        levels = None if conditioning_latents is None else conditioning_by_level(spec, conditioning_latents)
        embedding = embed(self, spec, level, scalars, classes, weight)
        block_inputs = BlockInputs(embedding, tokens, levels, train, references, reference_seen, image)
        x = Convolution(spec.widths[0], dtype=dtype, sharded_axis=spec.sharded_axis, name="stem")(x)
        if guide is not None and guide.shape != x.shape:
            raise UserError(f"guide of shape {guide.shape}; permitted: {x.shape}")
        x = x if guide is None else x + guide.astype(dtype)
        x = shard_along(x, spec.sharded_axis, must=False)
        if spec.temporal_conv and spec.temporal_conv.stem:
            channels = FIRST_HEADS * (spec.widths[0] // spec.heads[0])
            x = sizes_of(spec).temporal_transformer(FIRST_HEADS, channels, "stem_motion")(x)
        x = through_skips(x, steps_down(self, spec, block_inputs, features),
                          lambda x: controlled(spec, middle(self, spec, x, block_inputs), control, -1),
                          steps_up(self, spec, block_inputs, control), deep)
        x = silu(GroupNorm(spec.groups, residual_norm(spec.norm_over), 1e-5, name="norm")(x))
        # The prediction is not rounded to bfloat16, as in `UNet`: samplers add many of them.
        return Convolution(spec.out_channels, sharded_axis=spec.sharded_axis, name="out")(x.astype(jnp.float32))


def reference_tokens(intermediates: dict[str, Any]) -> dict[str, Float[Array, "_ _ _ _"]]:
    """What the spatial self-attentions of a network attend from: the references of another one of its sizes.

    `intermediates` are those of `LatentUNetNetwork(...).apply(..., mutable=["intermediates"])`. Each frame is a group.
    """
    found = {}
    for name, inside in intermediates.items():
        if name.endswith("_transformer"):
            inside = inside.get("space", {}).get("self_attention") or inside.get("space_attention") or {}
            if INPUTS in inside:
                (x,) = inside[INPUTS]
                found[name] = x.reshape(*x.shape[:2], -1, x.shape[-1])
    return found


def check_references(spec: LatentUNet, x: Array, references: dict[str, Array] | None) -> None:
    """Raises `UserError` for reference tokens that are absent, unknown or of shapes that do not fit."""
    wanted, references = spec.referenced, references or {}
    if references.keys() != wanted.keys():
        raise UserError(f"references of {', '.join(references) or 'nothing'}; permitted: of "
                        f"{', '.join(wanted) or 'nothing, without a WithExtraKeys spatial_pattern'}")
    for name, channels in wanted.items():
        shape = references[name].shape
        if len(shape) != 4 or shape[0] != len(x) or shape[1] not in (1, x.shape[1]) or shape[3] != channels:
            raise UserError(f"references[{name!r}] of shape {shape}; permitted: [{len(x)}, 1 or {x.shape[1]}, tokens, "
                            f"{channels}]")
