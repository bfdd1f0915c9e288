"""Temporal strides: what a fresh network is, frames that do not exist, what belongs to single frames, and meshes."""

from __future__ import annotations

import dataclasses
import re

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.attention.patterns import Spatial, Temporal, WithExtraKeys
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.diffusion.process import Process
from vdm_jax.networks.config import Level, Reference, SelfAttention, TemporalConvolution, UNet
from vdm_jax.networks.layers import depth_to_time, time_to_depth
from vdm_jax.networks.mixers import MixerInputs
from vdm_jax.networks.resampling import TemporalDownsample, TemporalUpsample
from vdm_jax.networks.unet import SpaceTimeUNet
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.stages.options import Training
from vdm_jax.stages.stage import Stage, VideoSpec

ATTENTION = SelfAttention(pattern=Spatial(), head_dim=8, position="none")
TEMPORAL = SelfAttention(pattern=Temporal(), head_dim=8, position="none")
# 3 x 2 frames become one; the same in both orders of the levels.
TUBELETS = UNet(levels=(Level(channels=8, blocks=1, mixers=(TemporalConvolution(),)),), embedding_channels=16, groups=4,
                temporal_patch=2)
USUAL = UNet(levels=(Level(channels=8, blocks=1, temporal_stride=3), Level(channels=8, blocks=1, temporal_stride=2),
                     Level(channels=16, blocks=1, mixers=(ATTENTION, TEMPORAL))),
             middle=(ATTENTION, TEMPORAL), embedding_channels=16, groups=4)
EFFICIENT = dataclasses.replace(USUAL, levels=(*USUAL.levels[:1], dataclasses.replace(
    USUAL.levels[2], temporal_stride=2)), middle=(), resample_order="before")
ORDERS = {"after": USUAL, "before": EFFICIENT}
FRAMES, SIZE = 12, 4


def image_network(spec):
    """The network without anything temporal."""
    return dataclasses.replace(spec, middle=spec.middle[:1], levels=tuple(
        dataclasses.replace(level, temporal_stride=1, mixers=level.mixers[:1]) for level in spec.levels))


def inflated(image, video):
    """Fresh parameters of a video network with those of the image network in their places."""
    flat, fresh = (flax.traverse_util.flatten_dict(p, sep="/") for p in (image, video))
    assert set(flat) < set(fresh)
    added = set(fresh) - set(flat)
    assert all(re.search(r"temporal_(down|up)sample_\d+/|temporal_attention", name) for name in added)
    return flax.traverse_util.unflatten_dict({**fresh, **flat}, sep="/")


@pytest.mark.parametrize("order", list(ORDERS))
def test_every_nth_frame_of_a_fresh_network_is_the_image_networks(order, filled, normal):
    """With noise levels of single frames, so that their vectors have to be at the right rate too."""
    spec = ORDERS[order]
    assert spec.frame_reduction == 6
    z, level = normal(0, 1, FRAMES, SIZE, SIZE, 3), normal(1, 1, FRAMES)
    image = filled(SpaceTimeUNet(image_network(spec)), z[:, :1], level[:, 0])
    fresh = jax.jit(lambda key: SpaceTimeUNet(spec).init(key, z, level)["params"])(jax.random.key(0, impl="rbg"))
    out = jax.jit(lambda p: SpaceTimeUNet(spec).apply({"params": p}, z, level))(inflated(image, fresh))
    frames = jax.jit(lambda z, level: SpaceTimeUNet(image_network(spec)).apply({"params": image}, z, level))
    expected = frames(z[:, ::6], level[:, ::6])
    np.testing.assert_allclose(out[:, ::6], expected, atol=2e-5)
    assert np.std(expected) > 0.1
    between = frames(z[:, 1::6], level[:, 1::6])
    assert np.abs(out[:, 1::6] - between).max() > 1e-2  # its lower levels are those of frame 0


def test_fresh_resamplers_drop_and_repeat_frames(normal):
    x = normal(0, 2, 6, 2, 2, 8)
    down, up = TemporalDownsample(USUAL, 3), TemporalUpsample(USUAL, 3)
    less, params = down.init_with_output(jax.random.key(0), x, None)
    assert params["params"]["conv"]["kernel"].shape == (3, 1, 1, 8, 8)
    np.testing.assert_array_equal(less, x[:, ::3])
    np.testing.assert_array_equal(up.init_with_output(jax.random.key(0), less, None)[0], np.repeat(less, 3, axis=1))


@pytest.mark.parametrize(("order", "before"), [
    ("after", 6), ("before", 0), pytest.param("after", 0, marks=pytest.mark.full),
    pytest.param("before", 6, marks=pytest.mark.full)])
def test_a_padded_clip_is_the_clip(order, before, filled, normal):
    """Outputs of existing frames, and gradients of a loss on them; padding after or around the clip."""
    spec, level = ORDERS[order], jnp.array([0.5])
    z, clip = normal(0, 1, before + 12, SIZE, SIZE, 3), slice(before, before + 6)
    valid = (jnp.arange(before + 12) // 6 == before // 6)[None]
    params = filled(SpaceTimeUNet(spec), z, level)

    def loss(z, conditioning, frames):
        out = SpaceTimeUNet(spec).apply({"params": params}, z, level, conditioning)[:, frames[0] : frames[1]]
        return jnp.square(out).sum(), out

    run = jax.jit(jax.grad(loss, has_aux=True), static_argnums=2)
    expected_gradient, expected = run(z[:, clip], None, (0, 6))
    gradient, out = run(z, Conditioning(frame_valid=valid), (clip.start, clip.stop))
    np.testing.assert_allclose(out, expected, atol=3e-5)
    np.testing.assert_allclose(gradient[:, clip], expected_gradient, atol=2e-4)
    np.testing.assert_array_equal(np.delete(gradient, np.r_[clip], axis=1), 0)
    assert np.abs(run(z, None, (clip.start, clip.stop))[1] - expected).max() > 1e-3


def test_a_frame_of_a_level_exists_if_one_does_that_it_stands_for(normal):
    tokens, one = normal(0, 1, 6, 2, 4), normal(1, 1, 1, 2, 4)
    valid = jnp.asarray([[True, True, True, True, False, False]])
    mixer_inputs = MixerInputs({"text": (tokens, jnp.ones((1, 6, 2), bool)), "picture": (one, None)}, valid)
    less = mixer_inputs.every(3)
    np.testing.assert_array_equal(less.frame_valid, [[True, True]])
    np.testing.assert_array_equal(mixer_inputs.every(2).frame_valid, [[True, True, False]])
    np.testing.assert_array_equal(less.extra_keys["text"][0], tokens[:, ::3])
    assert less.extra_keys["text"][1].shape == (1, 2, 2) and less.extra_keys["picture"] == (one, None)


def test_references_of_single_frames(filled, normal):
    """A lower level takes those of the frames that it keeps."""
    mixer = dataclasses.replace(ATTENTION, pattern=WithExtraKeys(inner=Spatial()), extra_tokens="picture")
    spec = UNet(levels=(Level(channels=8, blocks=1, temporal_stride=2), Level(channels=8, blocks=1, mixers=(mixer,))),
                embedding_channels=16, groups=4, references=(Reference(name="picture", width=6),))
    z, level, pictures = normal(0, 1, 4, SIZE, SIZE, 3), jnp.zeros(1), normal(1, 1, 4, 3, 6)
    params = filled(SpaceTimeUNet(spec), z, level, Conditioning(references={"picture": pictures}))
    run = jax.jit(lambda p: SpaceTimeUNet(spec).apply({"params": params}, z, level, Conditioning(
        references={"picture": p})))
    before = run(pictures)
    np.testing.assert_array_equal(run(pictures.at[:, 1::2].set(normal(2, 1, 2, 3, 6))), before)
    changed = np.abs(run(pictures.at[:, 0].set(normal(2, 1, 3, 6))) - before).max((0, 2, 3, 4))
    assert (changed[:2] > 1e-3).all()


def test_frames_of_a_temporal_patch_are_channels_of_one_frame(filled, normal):
    inner = dataclasses.replace(TUBELETS, temporal_patch=1, out_channels=2 * TUBELETS.out_channels)
    z, level = normal(0, 2, 4, SIZE, SIZE, 3), jnp.array([0.5, -1.0])
    params = filled(SpaceTimeUNet(TUBELETS), z, level)
    expected = depth_to_time(SpaceTimeUNet(inner).apply({"params": params}, time_to_depth(z, 2), level), 2)
    np.testing.assert_allclose(SpaceTimeUNet(TUBELETS).apply({"params": params}, z, level), expected, atol=1e-5)
    assert TUBELETS.frame_reduction == 2 and inner.frame_reduction == 1


def test_a_temporal_patch_exists_if_a_frame_of_it_does(filled, normal):
    z, level, other = normal(0, 2, 6, SIZE, SIZE, 3), jnp.array([0.5, -1.0]), normal(1, 2, 6, SIZE, SIZE, 3)
    valid = jnp.arange(6) < jnp.array([[3], [6]])  # of the first clip, patches of frames 0 to 3
    params = filled(SpaceTimeUNet(TUBELETS), z, level)

    def run(z):
        return SpaceTimeUNet(TUBELETS).apply({"params": params}, z, level, Conditioning(frame_valid=valid))

    before, after = run(z), run(z.at[0, 4:].set(other[0, 4:]))
    np.testing.assert_allclose(after[0, :4], before[0, :4], atol=1e-5)
    np.testing.assert_array_equal(after[1], before[1])
    changed = run(z.at[0, 3].set(other[0, 3]))
    assert np.abs(changed[0, 0] - before[0, 0]).max() > 1e-3


@pytest.mark.parametrize("sharded_axis", ["frames", "height"])
def test_a_spread_clip_is_the_clip(sharded_axis, filled, normal):
    spec = UNet(levels=(Level(channels=8, blocks=1, temporal_stride=2, mixers=(TemporalConvolution(),)),
                        Level(channels=8, blocks=1)), embedding_channels=16, groups=4, sharded_axis=sharded_axis)
    z, level = normal(0, 2, 8, 8, 4, 3), jnp.array([0.5, -1.0])
    params = filled(SpaceTimeUNet(spec), z, level)

    def run(params, z):
        return SpaceTimeUNet(spec).apply({"params": params}, z, level)

    expected = jax.jit(run)(params, z)
    with jax.set_mesh(make_mesh(MeshSpec(data=2, context=4))):
        np.testing.assert_allclose(jax.jit(run)(params, z), expected, atol=2.5e-5)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: dataclasses.replace(USUAL, temporal_stride_kernel=2),
     ("UNet.temporal_stride_kernel", "=2")),
    (lambda: Level(channels=8, temporal_stride=0), ("Level.temporal_stride", "=0", ">= 1")),
    (lambda: UNet(levels=(Level(channels=8, temporal_stride=2),)), ("Level.temporal_stride", "=2")),
    (lambda: trace(USUAL, 8), ("unet_inputs.check_inputs", "frames=8", "6", "12", "18")),
    (lambda: trace(USUAL, 12, images=6), ("images", "=6", "Level.temporal_stride", "> 1")),
    (lambda: stage(frames=8), ("Stage.video.frames", "=8")),
    (lambda: trace(TUBELETS, 3), ("unet_inputs.check_inputs", "frames=3", "2", "4", "6")),
    (lambda: stage(network=TUBELETS, training=Training(images_per_clip=2)),
     ("Stage.training.images_per_clip", "=2", "temporal_patch")),
    (lambda: stage(network=TUBELETS, process=Process(frame_levels=True)),
     ("Stage.process.frame_levels", "=True", "temporal_patch=1")),
    (lambda: stage(training=Training(images_per_clip=2)),
     ("Stage.training.images_per_clip", "=2", "Level.temporal_stride", "> 1")),
])
def test_what_cannot_be(make, message):
    with refused(*message):
        make()


def trace(spec, frames, **options):
    inputs = jnp.zeros((1, frames, SIZE, SIZE, 3)), jnp.zeros(1)
    jax.eval_shape(lambda: SpaceTimeUNet(spec).init(jax.random.key(0), *inputs, **options))


def stage(frames=12, **options):
    options = {"network": USUAL, "process": Process(), **options}
    return Stage(name="base", video=VideoSpec(frames=frames, height=SIZE, width=SIZE), **options)
