"""Masked videos, and longer videos block by block."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.conditions.texts import text_conditioning
from tests.generation.conftest import base_stage
from tests.refusals import refused
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.frame_masks import FrameMask, MaskedVideo, masked_low_resolution
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.generation.compiled import goes_by_steps, jit_sampling, stepwise_sampling
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.one_stage import sample_keys, sample_stage
from vdm_jax.generation.stage_conditioning import stage_conditioning
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.stages.options import Inpainting
from vdm_jax.stages.stage import Experiment, VideoSpec

CAPTIONS = ("a red three moving left", "a blue two")


@pytest.fixture(scope="module")
def stage():
    """The base with four frames."""
    base = base_stage()
    return dataclasses.replace(base, video=VideoSpec(frames=4, height=8, width=8, fps=4))


@pytest.fixture(scope="module")
def longer(stage, params):
    return Generator(Experiment(name="one", stages=(stage,), data=CaptionedDigits(size=16, frames=4)), params)


def completed(stage, params, masked_video, mask, **inpainting):
    sampling = dataclasses.replace(stage.sampling, inpainting=Inpainting(**inpainting))
    keys = sample_keys(0, jnp.arange(2), 0)
    text = text_conditioning(jnp.array([[[1, 2, 3, 0, 0, 0]], [[4, 5, 0, 0, 0, 0]]]))
    run = jax.jit(lambda masked_video: sample_stage(stage, sampling, params["base"], keys, text,
                                                    masked_video=masked_video))
    return np.asarray(run(None if masked_video is None else MaskedVideo(masked_video, mask)))


def test_what_is_known_comes_out_and_changes_the_rest(stage, params):
    masked_video = jnp.asarray(np.random.default_rng(0).uniform(-0.8, 0.8, (2, 4, 8, 8, 3)), jnp.float32)
    mask = jnp.zeros((2, 4, 1, 1, 1)).at[:, :2].set(1.0)
    free = completed(stage, params, None, None)
    outs = {name: completed(stage, params, masked_video, mask, method=method, weight=weight) for name, method,
            weight in (
        ("replaced", "replacement", 1.0), ("zero", "reconstruction", 0.0), ("guided", "reconstruction", 2.0))}
    for out in outs.values():
        np.testing.assert_allclose(out[:, :2], masked_video[:, :2], atol=1e-5)
        assert np.abs(out[:, 2:] - free[:, 2:]).max() > 0.02
    np.testing.assert_allclose(outs["zero"], outs["replaced"], atol=1e-4)
    assert np.abs(outs["guided"][:, 2:] - outs["replaced"][:, 2:]).max() > 0.02
    other = completed(stage, params, masked_video.at[:, 2:].set(0.5), mask, method="reconstruction", weight=2.0)
    np.testing.assert_allclose(other, outs["guided"], atol=1e-5)  # what is not known does not matter


def test_a_network_that_takes_frames_may_be_kept_from_seeing_them(stage):
    training = dataclasses.replace(stage.training, masking=(FrameMask(first=2),))
    taking = dataclasses.replace(stage, training=training, network=dataclasses.replace(
        stage.network, conditioning_frames=True))
    keys, video = sample_keys(0, jnp.arange(2), 0), jnp.full((2, 4, 8, 8, 3), 0.5)
    given = MaskedVideo(video, jnp.zeros((2, 4, 1, 1, 1)).at[:, :2].set(1.0))
    for shown in (True, False):
        sampling = dataclasses.replace(stage.sampling, inpainting=Inpainting(method="replacement", shown=shown))
        seen, inside = stage_conditioning(taking, sampling, keys, Conditioning(), None, given)
        assert float(seen.conditioning_mask.sum()) == shown * 2 * 2 * 64 and inside is given
        assert float(jnp.abs(seen.conditioning_frames).max()) == shown * 0.5
    hidden = dataclasses.replace(taking.sampling, inpainting=Inpainting(method="replacement", shown=False))
    with refused("Inpainting.shown", "guided_by='frames'", "permitted: True"):
        dataclasses.replace(taking, sampling=dataclasses.replace(hidden, guided_by="frames"))
    with refused("Inpainting.shown", "method='network'", "'replacement'"):
        Inpainting(method="network", shown=False)


def test_blocks_follow_each_other(longer):
    video = longer.extend(CAPTIONS, frames=9, overlap=1, seed=3)
    assert video.videos.shape == (2, 9, 8, 8, 3) and list(video.stages) == ["base"]
    np.testing.assert_array_equal(video.videos[:, :4], longer(CAPTIONS, seed=3).videos)
    shorter = longer.extend(CAPTIONS, frames=7, overlap=1, seed=3)
    np.testing.assert_array_equal(shorter.videos, video.videos[:, :7])
    assert np.abs(video.videos[:, 4:7].astype(int) - video.videos[:, 1:4]).max() > 5  # blocks have noise of their own
    alone = longer.extend(CAPTIONS[1], frames=9, overlap=1, seed=3, first_index=1)
    assert np.abs(alone.videos[0].astype(int) - video.videos[1]).max() <= 1


def test_a_block_knows_the_end_of_the_one_before(longer):
    one, other = (longer.extend(CAPTIONS, frames=6, overlap=2, seed=3, inpainting=Inpainting(method=method))
                  for method in ("reconstruction", "replacement"))
    np.testing.assert_array_equal(one.videos[:, :4], other.videos[:, :4])
    assert (one.videos[:, 4:] != other.videos[:, 4:]).any()


def test_bad_arguments(longer):
    for options, message in (
            ({"frames": 9, "overlap": 4}, ("overlap", "=4")),
            ({"frames": 3}, ("frames", "=3", ">= 4", "'base'"))):
        with refused(*message):
            longer.extend(CAPTIONS, **options)
    with refused("Inpainting.method", "='copy'", "'network'"):
        Inpainting(method="copy")
    with refused("Inpainting.weight", "=-1", ">= 0"):
        Inpainting(weight=-1)


def test_a_step_at_a_time_makes_the_same_videos(stage, params):
    """What the generator does on a CPU, where gradients through a network inside a loop are slow."""
    mesh = make_mesh(MeshSpec(), jax.devices()[:1])
    masked_video = MaskedVideo(jnp.full((2, 4, 8, 8, 3), 0.5), jnp.zeros((2, 4, 1, 1, 1)).at[:, :2].set(1.0))
    text = text_conditioning(jnp.array([[[1, 2, 3, 0, 0, 0]], [[4, 5, 0, 0, 0, 0]]]))
    shardings = jax.tree.map(lambda x: NamedSharding(mesh, P()), params["base"])
    assert goes_by_steps(stage, stage.sampling, mesh, masked_video) and not goes_by_steps(stage, stage.sampling, mesh,
                                                                                          None)
    with jax.set_mesh(mesh):
        whole, by_steps = (np.asarray(make(stage, stage.sampling, mesh, shardings)(
            params["base"], sample_keys(0, jnp.arange(2), 0), text, None, masked_video))
            for make in (jit_sampling, stepwise_sampling))
    np.testing.assert_allclose(by_steps, whole, atol=1e-4)


def test_a_low_resolution_video_is_enlarged_and_extended_at_once(longer):
    """Frames 0, 2, 4, ... of nine, at half the pixels. That guidance by it makes videos that look like it is shown on
    Gaussians, whose denoiser is known (`tests/diffusion/test_conditional.py`)."""
    low = np.random.default_rng(0).uniform(-0.6, 0.6, (2, 5, 4, 4, 3)).astype(np.float32)
    inpainting = Inpainting(method="reconstruction", weight=2.0)

    def extended(low):
        return longer.extend(CAPTIONS, frames=9, overlap=2, seed=3, inpainting=inpainting, low=low, every=2).videos

    plain, guided, short = extended(None), extended(low), extended(low[:, :2])
    assert guided.shape == (2, 9, 8, 8, 3) and np.abs(guided[:, :4].astype(int) - plain[:, :4]).max() > 5
    np.testing.assert_array_equal(short[:, :4], guided[:, :4])  # what is given of later frames does not matter yet
    assert np.abs(short[:, 6:].astype(int) - guided[:, 6:]).max() > 5
    with refused("frame_masks.masked_low_resolution", "3", "8"):
        extended(low[:, :, :3])
    replacing = dataclasses.replace(longer.experiment.stages[0].sampling, inpainting=Inpainting(method="replacement"))
    stage = dataclasses.replace(longer.experiment.stages[0], sampling=replacing)
    other = Generator(dataclasses.replace(longer.experiment, stages=(stage,)), longer.params, jax.devices()[:1])
    with refused("given_frames.checked_frames", "'reconstruction'"):
        other.extend(CAPTIONS, frames=9, low=low, every=2)


def test_errors_of_what_is_known():
    """Sums of squares: of known pixels, and of conditioning frames with pixels averaged; others do not count."""
    rng = np.random.default_rng(0)
    x, video = rng.normal(size=(2, 2, 4, 8, 8, 3)).astype(np.float32)
    low, mask = rng.normal(size=(2, 2, 4, 4, 3)).astype(np.float32), np.zeros((2, 4, 1, 1, 1), np.float32)
    mask[:, :1] = 1
    masked_video = masked_low_resolution(low, 2, (4, 8, 8, 3), start=1, masked_video=MaskedVideo(video, mask))
    pixels, averages = (np.asarray(error(jnp.asarray(x))) for error in masked_video.errors())
    np.testing.assert_allclose(pixels, np.square(x - video)[:, 0].sum((1, 2, 3)), rtol=1e-5)
    small = x.reshape(2, 4, 4, 2, 4, 2, 3).mean((3, 5))
    np.testing.assert_allclose(averages, np.square(small[:, 1] - low[:, 1]).sum((1, 2, 3)), rtol=1e-5)  # frame 2 of all
