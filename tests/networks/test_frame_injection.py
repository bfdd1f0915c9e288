"""Conditioning frames injected at every scale by convolutions that start at zero (Mask Temporal Diffusion)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.attention.patterns import Temporal
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.networks import config as cfg
from vdm_jax.networks.mixers import FrameInjectionLayer
from vdm_jax.networks.unet import SpaceTimeUNet

MIXERS = (cfg.TemporalConvolution(), cfg.FrameInjection(), cfg.SelfAttention(pattern=Temporal(), head_dim=4))
UNET = cfg.UNet(levels=(cfg.Level(channels=8, blocks=1, mixers=MIXERS), cfg.Level(channels=4, blocks=1, mixers=MIXERS)),
                embedding_channels=8, groups=2, conditioning_frames=True)
SHAPE = (1, 3, 8, 8, 3)


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    z, frames = (jnp.asarray(rng.normal(size=SHAPE), jnp.float32) for _ in range(2))
    mask = jnp.zeros((*SHAPE[:-1], 1)).at[:, ::2].set(1)
    return z, jnp.zeros(1), Conditioning(conditioning_frames=frames * mask, conditioning_mask=mask)


def of_names(params, part):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)
            if part in jax.tree_util.keystr(path)}


@pytest.mark.parametrize("order", ["after", "before"])
def test_frames_enter_at_every_scale_from_zero(order):
    module = SpaceTimeUNet(dataclasses.replace(UNET, resample_order=order))
    z, level, conditioning = inputs()
    params = jax.jit(module.init)(jax.random.key(0), z, level, conditioning)["params"]
    assert UNET.stacked == {"video": 3} and params["stem"]["kernel"].shape[-2] == 3  # not as channels of the input
    found = of_names(params, "frame_injection")
    blocks = {name.split("']")[0] for name in found}
    assert {name[2:6] for name in blocks} == {"down", "up_0", "up_1"} and len(found) == 4 * len(blocks)
    assert all(not np.asarray(leaf).any() for leaf in found.values())
    params = jax.tree_util.tree_map_with_path(  # the output too begins at zero
        lambda path, x: jnp.full_like(x, 0.1) if path[0].key == "out" else x, params)
    nothing = conditioning.replace(conditioning_frames=0 * z, conditioning_mask=0 * conditioning.conditioning_mask)
    run = jax.jit(lambda params, conditioning: module.apply({"params": params}, z, level, conditioning))
    np.testing.assert_array_equal(run(params, conditioning), run(params, nothing))  # they start with no effect
    for block in sorted(blocks):
        for part in ("frames", "mask"):  # then either has one, from any block
            here = jax.tree_util.tree_map_with_path(lambda path, x, block=block, part=part: x + 0.3 * (
                jax.tree_util.keystr(path).startswith(block) and f"frame_injection_1']['{part}" in
                jax.tree_util.keystr(path)), params)
            assert np.abs(np.asarray(run(here, conditioning) - run(here, nothing))).max() > 1e-3, (block, part)


def test_weights_and_biases_of_frames_then_of_the_mask():
    x, part = (jnp.asarray(np.random.default_rng(i).normal(size=(1, 2, 3, 3, 2)), jnp.float32) for i in range(2))
    mask = jnp.ones((1, 2, 3, 3, 1))
    layer = FrameInjectionLayer(cfg.FrameInjection(kernel=1), 1, "frame", jnp.float32)
    params = {"frames": {"kernel": jnp.zeros((1, 1, 1, 2, 4)), "bias": jnp.array([1.0, 2.0, 3.0, 4.0])},
              "mask": {"kernel": jnp.ones((1, 1, 1, 1, 4)), "bias": jnp.zeros(4)}}
    first = jnp.array([1.0, 2.0]) * x + jnp.array([3.0, 4.0]) + x
    np.testing.assert_allclose(layer.apply({"params": params}, x, ((part, mask),)), 2 * first + 1, rtol=1e-5)


def test_injection_without_frames_or_with_a_reduction_of_them():
    for change in ({"conditioning_frames": False}, {"temporal_patch": 3}):
        with refused("UNet.conditioning_frames", "FrameInjection"):
            dataclasses.replace(UNET, **change)


@pytest.mark.parametrize(("order", "same"), [("after", 0), ("before", 1)])
def test_injection_into_levels_of_one_size_is_refused(order, same):
    levels = [dataclasses.replace(level, stride=(1, 1) if place == same else (2, 2))
              for place, level in enumerate(UNET.levels)]
    with refused("Level.stride", "FrameInjection", "permitted: "):
        dataclasses.replace(UNET, levels=tuple(levels), resample_order=order)
    levels[same], levels[1 - same] = (dataclasses.replace(UNET.levels[0], stride=stride)
                                      for stride in ((2, 2), (1, 1)))  # the other one has no level at its end
    dataclasses.replace(UNET, levels=tuple(levels), resample_order=order)
