"""The models that are compared: one base model, its self-attention replaced by each pattern, and what each costs."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vdm_jax.attention.patterns import (
    Causal,
    Full,
    LocalWindow,
    OwnPattern,
    SparseCausal,
    Spatial,
    Temporal,
    attention_flops,
)
from vdm_jax.benchmark.cases import FLOP_FACTOR
from vdm_jax.networks.config import Mixer, SelfAttention
from vdm_jax.networks.unet import SpaceTimeUNet
from vdm_jax.planning.flops import count
from vdm_jax.stages.parameters import example_conditioning, initial_params
from vdm_jax.stages.stage import Stage

# Name -> what stands in the place of each self-attention: one pattern, or several in a row. Tune-A-Video (Wu et al.
# 2023, arXiv 2212.11565, section 4.1) looks at the first and the previous frame, then along time.
FULL = "full"
VARIANTS: dict[str, tuple[OwnPattern, ...]] = {
    FULL: (Full(),),
    "causal": (Causal(),),
    "sparse-causal (first, previous, own)": (SparseCausal(own=True),),
    "sparse-causal (first, previous) + temporal": (SparseCausal(), Temporal()),
    "local window 3x3x3": (LocalWindow(frames=3, height=3, width=3),),
    "spatial + temporal": (Spatial(), Temporal()),
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

    Counted in the traced network with full attention in all places; its score products are then taken out and those
    that the masks show put in. Networks of one level only, since the size of a layer's tokens is taken from the patch.
    """
    if len(stage.network.levels) != 1:
        raise ValueError(f"cost: a network of {len(stage.network.levels)} levels; permitted: 1")
    stage = with_patterns(stage, (Full(),) * len(patterns), kernel="xla")
    params = jax.eval_shape(lambda key: initial_params(stage, key), jax.random.key(0))
    video = jax.ShapeDtypeStruct((1, *stage.video.shape), jnp.float32)
    level = jax.ShapeDtypeStruct((1,), jnp.float32)
    network = SpaceTimeUNet(stage.network)
    traced = jax.make_jaxpr(lambda p, z, logsnr: network.apply({"params": p}, z, logsnr, example_conditioning(stage)))
    total = sum(count(traced(params, video, level).jaxpr))
    channels, shape = stage.network.levels[0].channels, tokens(stage)
    layers = attention_layers(params)
    dense, *shown = (attention_flops(each, shape, heads=1, head_dim=channels) for each in (Full(), *patterns))
    return Cost(float(layers // len(patterns) * sum(shown)), float(total - layers * dense))


def tokens(stage: Stage) -> tuple[int, int, int]:
    """Frames, height and width of the stage's video in patches."""
    patch = stage.network.patch
    return stage.video.frames, stage.video.height // patch, stage.video.width // patch


def attention_layers(params: Any) -> int:
    """Number of self-attention layers, by their projections; the text encoder's have other names."""
    paths = jax.tree_util.tree_leaves_with_path(params)
    return sum("'qkv'" in jax.tree_util.keystr(path) for path, _ in paths)
