"""Image prompts by decoupled cross-attention (IP-Adapter: Ye et al. 2023, arXiv 2308.06721, section 3.2).

A projection turns what CLIP sees of a picture into a few tokens. Each cross-attention of the U-Net has further keys and
values for these, and adds what it finds there, times a scale, to what it finds among the tokens of the text.

    network, params = join(unet.config, unet.params, adapter.config, adapter.params)

The projection is an affine map of the projected summary, in the adapters called "plus" a resampler of the hidden
states before the last layer, and in those called "full" a perceptron of each of these. Adapters called "FaceID" have a
perceptron of the vectors by which a face recogniser knows a person, and a LoRA of all attention, which `join` merges.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.configuration import DepthOrZero, Length, Size, Width, WidthOrZero, config
from vdm_jax.errors import UserError
from vdm_jax.networks.blocks.attention import Attention
from vdm_jax.networks.blocks.feed_forward import FeedForward
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.networks.layers import Dense
from vdm_jax.networks.lora import Adapter, with_adapters

NAMES = ("image_key", "image_value")  # of the layers of a cross-attention
ATTENTIONS, MAPS = ("self_attention", "cross_attention"), ("query", "key", "value", "out")  # that a LoRA changes
PROJECTION = "image_projection"  # of the parameters of a stage's network


@config
class ImageProjection:
    """Sizes of a projection; the defaults are those for Stable Diffusion 1.x and the summary of ViT-H/14."""

    width: Width = 1024  # channels of the encoder's vectors
    tokens: Width = 4  # that the U-Net sees, of each picture
    token_channels: Width = 768  # of the U-Net
    layers: DepthOrZero = 0  # of the resampler; 0: a map of each vector
    perceptron: WidthOrZero = 0  # channels inside that map, which is then two affine ones; 0: one affine map
    vectors: Literal["pictures", "faces"] = "pictures"  # what they are made of; those of a recogniser of faces
    hidden: Width = 768  # channels of the resampler
    heads: Size = 12  # of the resampler
    head_dim: Size = 64  # channels of each

    def __post_init__(self):
        if self.vectors == "faces" and not self.perceptron or self.perceptron and (
                self.layers or self.vectors == "pictures" and self.tokens != 1):
            raise UserError(f"ImageProjection.perceptron={self.perceptron} with layers={self.layers}, tokens="
                            f"{self.tokens}, vectors={self.vectors!r}; permitted: with layers=0, of hidden states with "
                            "tokens=1, and above 0 for faces")

    @property
    def hidden_states(self) -> bool:
        """Whether it reads the hidden states of a picture, and not summaries or faces."""
        return bool(self.layers) or (bool(self.perceptron) and self.vectors == "pictures")


IMAGE_PROJECTION_PLUS = ImageProjection(width=1280, tokens=16, layers=4)
IMAGE_PROJECTION_FULL = ImageProjection(width=1280, tokens=1, perceptron=1280)
IMAGE_PROJECTION_FACE = ImageProjection(width=512, perceptron=1024, vectors="faces")


class ImageProjectionNetwork(nn.Module):
    """What an encoder makes of pictures to tokens `[B, 1, N, E]`: summaries `[B, 1, M, C]` of M pictures, the M hidden
    states of one, or vectors of M faces."""

    config: ImageProjection
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Float[Array, "B 1 M C"]) -> Float[Array, "B 1 N E"]:
        spec, dtype = self.config, self.dtype
        if features.shape[-1] != spec.width:
            raise UserError(f"image prompt of shape {features.shape}; permitted: {spec.width} channels")
        x = features.astype(dtype)
        if not spec.layers:
            if spec.perceptron:
                x = nn.gelu(Dense(spec.perceptron, dtype=dtype, name="inner")(x), approximate=False)
            x = Dense(spec.tokens * spec.token_channels, dtype=dtype, name="proj")(x)
            return nn.LayerNorm(1e-5, dtype=dtype, name="norm")(x.reshape(*x.shape[:2], -1, spec.token_channels))
        queries = self.param("latents", nn.initializers.normal(spec.hidden**-0.5), (1, spec.tokens, spec.hidden))
        queries = jnp.broadcast_to(queries.astype(dtype), (len(x), *queries.shape[1:]))
        x = Dense(spec.hidden, dtype=dtype, name="proj_in")(x)[:, 0]
        for i in range(spec.layers):
            queries = ResamplerLayer(spec, dtype, name=f"layer_{i}")(queries, x)
        queries = Dense(spec.token_channels, dtype=dtype, name="proj_out")(queries)
        return nn.LayerNorm(1e-5, dtype=dtype, name="norm_out")(queries)[:, None]


class ResamplerLayer(nn.Module):
    """Queries attend to the hidden states and to themselves, then a feed-forward, both with a residual connection
    (Alayrac et al. 2022, arXiv 2204.14198, section 2.1)."""

    config: ImageProjection
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, queries: Float[Array, "B N C"], x: Float[Array, "B M C"]) -> Float[Array, "B N C"]:
        spec, dtype = self.config, self.dtype

        def norm(name: str) -> nn.Module:
            return nn.LayerNorm(1e-5, dtype=dtype, name=f"norm_{name}")

        h = norm("queries")(queries)
        seen = jnp.concatenate([norm("states")(x), h], axis=1)[:, None]
        attention = Attention(spec.head_dim, spec.heads, None, out_bias=False, dtype=dtype, name="attention")
        queries = queries + attention(h, None, (seen, None))
        h = norm("feed_forward")(queries)
        return queries + FeedForward(activation="gelu", use_bias=False, dtype=dtype, name="feed_forward")(h)


@config
class ImagePromptAdapter:
    """A projection and the further keys and values of a U-Net; the defaults fit Stable Diffusion 1.x."""

    projection: ImageProjection = ImageProjection()
    # Channels of each cross-attention, in the order of files: those on the way down, up, and in the middle
    layers: Annotated[tuple[Width, ...], Length()] = (
        *(320,) * 2, *(640,) * 2, *(1280,) * 2, *(1280,) * 3, *(640,) * 3, *(320,) * 3, 1280)
    rank: WidthOrZero = 0  # of the LoRA of each transformer's two attentions; 0: none


class ImagePromptAdapterNetwork(nn.Module):
    """The tokens of an image prompt, and the keys and values that each cross-attention makes of them; a U-Net has the
    latter in its layers (`join`). Factors of a LoRA are parameters next to these, and not run."""

    config: ImagePromptAdapter

    @nn.compact
    def __call__(self, features: Float[Array, "B 1 M C"]) -> dict[str, tuple[Float[Array, "B 1 N _"], ...]]:
        tokens = ImageProjectionNetwork(self.config.projection, name="projection")(features)
        for i, width in enumerate(self.config.layers if self.config.rank and self.is_initializing() else ()):
            for attention in ATTENTIONS:
                for name in MAPS:
                    seen = name in ("key", "value") and attention == "cross_attention"
                    inputs = jnp.zeros((1, self.config.projection.token_channels if seen else width))
                    Factors(self.config.rank, width, name=f"layer_{i}_{attention}_{name}")(inputs)
        return {f"layer_{i}": tuple(Dense(width, use_bias=False, name=f"layer_{i}_{name}")(tokens) for name in NAMES)
                for i, width in enumerate(self.config.layers)}


class Factors(nn.Module):
    """Two maps after each other, the first to `rank` channels."""

    rank: int
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "N C"]) -> Float[Array, "N O"]:
        return Dense(self.features, use_bias=False, name="up")(Dense(self.rank, use_bias=False, name="down")(x))


def places(unet: LatentUNet) -> dict[str, int]:
    """The transformers of a U-Net and their channels, in the order of an adapter's layers."""
    order = ("down", "up", "middle")
    return dict(sorted(unet.transformers.items(), key=lambda item: order.index(item[0].partition("_")[0])))


def join(
    unet: LatentUNet, params: dict[str, Any], adapter: ImagePromptAdapter, adapter_params: dict[str, Any]
) -> tuple[LatentUNet, dict[str, Any]]:
    """Config and parameters of the U-Net with the keys and values of an adapter, and its projection next to them; a
    LoRA of the adapter is merged.

    Raises `UserError` for an adapter of other sizes, and for a U-Net that has one.
    """
    if unet.image_prompt:
        raise UserError("the U-Net has an image prompt adapter already; permitted: one without")
    names = places(unet)
    ours, theirs = (tuple(names.values()), unet.token_channels), (adapter.layers, adapter.projection.token_channels)
    if ours != theirs:
        raise UserError(f"image prompt adapter for {len(theirs[0])} cross-attentions of channels {theirs[0]}, of "
                        f"tokens of {theirs[1]}; permitted here: {len(ours[0])} of {ours[0]}, of {ours[1]}",
                        "image_prompt.adapter")
    joined = {**params, PROJECTION: adapter_params["projection"]}
    if adapter.rank:
        factors = {place: {"space": {attention: {name: adapter_params[f"layer_{i}_{attention}_{name}"] for name in MAPS}
                                     for attention in ATTENTIONS}} for i, place in enumerate(names)}
        scales = dict.fromkeys(Adapter(factors, {}).pairs, 1.0)
        joined = with_adapters(joined, [(Adapter(factors, scales), 1.0)])
    for i, place in enumerate(names):
        space = joined[place]["space"]
        cross = space["cross_attention"] | {name: adapter_params[f"layer_{i}_{name}"] for name in NAMES}
        joined[place] = {**joined[place], "space": {**space, "cross_attention": cross}}
    return dataclasses.replace(unet, image_prompt=True), joined


def part(
    unet: LatentUNet, projection: ImageProjection, params: dict[str, Any]
) -> tuple[ImagePromptAdapter, dict[str, Any]]:
    """The adapter of a network, the other way of `join`. Raises `UserError` for one without it."""
    if not unet.image_prompt:
        raise UserError("LatentUNet.image_prompt=False; permitted: a network with an image prompt adapter")
    names = places(unet)
    found = {f"layer_{i}_{name}": params[place]["space"]["cross_attention"][name]
             for i, place in enumerate(names) for name in NAMES}
    return (ImagePromptAdapter(projection=projection, layers=tuple(names.values())),
            {"projection": params[PROJECTION], **found})
