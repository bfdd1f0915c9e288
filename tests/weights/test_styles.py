"""Style interpolation: image layers move, layers over time and further inputs stay, and what does not fit is named."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.refusals import refused
from vdm_jax.attention.patterns import Spatial
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.networks.config import ConvolutionInflation, Level, SelfAttention, UNet
from vdm_jax.networks.unet import SpaceTimeUNet
from vdm_jax.weights.styles import interpolated

ATTENTION = SelfAttention(pattern=Spatial(), head_dim=8)
IMAGE = UNet(levels=(Level(channels=8, blocks=1), Level(channels=8, blocks=1, mixers=(ATTENTION,))),
             embedding_channels=16, groups=4)
VIDEO = dataclasses.replace(IMAGE, conditioning_frames=True, levels=(
    Level(channels=8, blocks=1, temporal_stride=2, mixers=(ConvolutionInflation(),)),
    Level(channels=8, blocks=1, mixers=(ATTENTION, ConvolutionInflation()))))


@pytest.fixture(scope="module")
def both(filled):
    """Parameters of the video network and of the style."""
    z, level = jnp.zeros((1, 2, 4, 4, 3)), jnp.zeros(1)
    conditioning_frames = Conditioning(conditioning_frames=z, conditioning_mask=z[..., :1])
    return filled(SpaceTimeUNet(VIDEO), z, level, conditioning_frames), filled(SpaceTimeUNet(IMAGE), z, level, seed=1)


def test_image_layers_are_mixed_and_the_rest_stays(both):
    params, style = both
    flat, theirs = flatten_dict(params, sep="/"), flatten_dict(style, sep="/")
    mixed = flatten_dict(interpolated(params, style, 0.7, VIDEO, IMAGE), sep="/")
    assert set(theirs) < set(flat) == set(mixed)
    for name, value in mixed.items():
        if name == "stem/kernel":  # the noisy video, then what is observed and its mask
            assert value.shape[3] == 7
            np.testing.assert_allclose(value[..., :3, :], 0.7 * theirs[name] + 0.3 * flat[name][..., :3, :], atol=1e-6)
            np.testing.assert_array_equal(value[..., 3:, :], flat[name][..., 3:, :])
        elif name in theirs:
            np.testing.assert_allclose(value, 0.7 * theirs[name] + 0.3 * flat[name], atol=1e-6)
        else:
            assert re.search(r"temporal_(down|up)sample|convolution_inflation", name), name
            np.testing.assert_array_equal(value, flat[name])


def test_the_ends_are_the_two_networks(both):
    params, style = both
    jax.tree.map(np.testing.assert_array_equal, interpolated(params, style, 0.0, VIDEO, IMAGE), params)
    whole = interpolated(params, style, 1.0, VIDEO, IMAGE)
    jax.tree.map(np.testing.assert_array_equal, whole["down_0_0"]["residual"], style["down_0_0"]["residual"])


def test_styles_that_do_not_fit(both):
    params, style = both
    less = {name: tree for name, tree in style.items() if name != "middle_out"}
    wide = {**style, "norm": {"scale": jnp.ones(6), "bias": style["norm"]["bias"]}}
    for other, weight, message in (
            (style, 1.5, ("weight", "=1.5", "permitted: >= 0 and <= 1")),
            (less, 0.5, ("styles.interpolated", "/middle_out/residual/conv_in/kernel")),
            ({**style, "extra": {"kernel": jnp.ones(2)}}, 0.5, ("styles.interpolated", "/extra/kernel")),
            (wide, 0.5, ("styles.interpolated", "/norm/scale [8] from [6]"))):
        with refused(*message):
            interpolated(params, other, weight, VIDEO, IMAGE)
