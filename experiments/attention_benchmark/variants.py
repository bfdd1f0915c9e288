"""The models that are compared: one base model, its self-attention replaced by each pattern, and what each costs."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.attention.patterns import (
    Causal,
    Full,
    LocalWindow,
    OwnPattern,
    SparseCausal,
    Spatial,
    Temporal,
    TemporalCausal,
    attention_flops,
)
from vdm_jax.benchmark.cases import FLOP_FACTOR
from vdm_jax.networks.config import Mixer, SelfAttention
from vdm_jax.networks.unet import SpaceTimeUNet
from vdm_jax.planning.flops import count
from vdm_jax.stages.parameters import example_conditioning, initial_params
from vdm_jax.stages.stage import Stage

# Name -> what stands in the place of each self-attention: one pattern, or several in a row.
VARIANTS: dict[str, tuple[OwnPattern, ...]] = {
    "full": (Full(),),
    "causal": (Causal(),),
    "sparse-causal (first, previous)": (SparseCausal(),),
    "sparse-causal (first, previous, own)": (SparseCausal(own=True),),
    "local window 3x3x3": (LocalWindow(frames=3, height=3, width=3),),
    "spatial + temporal": (Spatial(), Temporal()),
    "spatial + temporal causal": (Spatial(), TemporalCausal()),
    "temporal": (Temporal(),),
    "spatial": (Spatial(),),
}
TRAINING_FACTOR = 3.0  # FLOPs of a layer's forward and backward against its forward pass; attention has its own


@dataclasses.dataclass(frozen=True)
class Cost:
    """FLOPs of one clip."""

    attention: float  # forward, scores and weighted sums that the masks show
    rest: float  # forward, everything else

    @property
    def forward(self) -> float:
        """One denoiser call."""
        return self.attention + self.rest

    @property
    def training(self) -> float:
        """Forward and backward pass."""
        return FLOP_FACTOR["forward+backward"] * self.attention + TRAINING_FACTOR * self.rest


def with_patterns(stage: Stage, patterns: tuple[OwnPattern, ...], kernel: str | None = None) -> Stage:
    """The stage with every self-attention replaced by one of each pattern, in order."""

    def replaced(mixers: tuple[Mixer, ...]) -> tuple[Mixer, ...]:
        found: list[Mixer] = []
        for mixer in mixers:
            attention = isinstance(mixer, SelfAttention)
            found += [dataclasses.replace(mixer, pattern=p, kernel=kernel or mixer.kernel) for p in patterns] \
                if attention else [mixer]
        return tuple(found)

    network = stage.network
    levels = tuple(dataclasses.replace(level, mixers=replaced(level.mixers)) for level in network.levels)
    return dataclasses.replace(
        stage, network=dataclasses.replace(network, levels=levels, middle=replaced(network.middle)))


def cost(stage: Stage, patterns: tuple[OwnPattern, ...]) -> Cost:
    """FLOPs of a stage with the patterns in place.

    Counted in the traced network with dense attention; the dense score products are then taken out and those that the
    masks show put in. Networks of one level only, since the size of a layer's tokens is taken from the patch.
    """
    if len(stage.network.levels) != 1:
        raise ValueError(f"cost: a network of {len(stage.network.levels)} levels; permitted: 1")
    dense = with_patterns(stage, patterns, kernel="xla")
    params = jax.eval_shape(lambda key: initial_params(dense, key), jax.random.key(0))
    video = jax.ShapeDtypeStruct((1, *dense.video.shape), jnp.float32)
    level = jax.ShapeDtypeStruct((1,), jnp.float32)
    network = SpaceTimeUNet(dense.network)
    traced = jax.make_jaxpr(lambda p, z, logsnr: network.apply({"params": p}, z, logsnr, example_conditioning(dense)))
    total = sum(count(traced(params, video, level).jaxpr))
    channels, shape = dense.network.levels[0].channels, tokens(stage)
    each = attention_layers(params) // len(patterns)
    hidden = sum(4 * each * channels * logits(pattern, shape) for pattern in patterns)
    shown = sum(each * attention_flops(pattern, shape, heads=1, head_dim=channels) for pattern in patterns)
    return Cost(float(shown), float(total - hidden))


def tokens(stage: Stage) -> tuple[int, int, int]:
    """Frames, height and width of the stage's video in patches."""
    patch = stage.network.patch
    return stage.video.frames, stage.video.height // patch, stage.video.width // patch


def logits(pattern: OwnPattern, shape: tuple[int, int, int]) -> int:
    """Entries of the dense matrices of logits of one head."""
    frames, height, width = shape
    row = {"frames": height * width, "positions": frames, "all": frames * height * width}[pattern.layout]
    return int(np.prod(shape)) * row


def attention_layers(params: Any) -> int:
    """Number of self-attention layers, by their projections; the text encoder's have other names."""
    paths = jax.tree_util.tree_leaves_with_path(params)
    return sum("'qkv'" in jax.tree_util.keystr(path) for path, _ in paths)
