"""Long videos of a tiny stage with random parameters, which takes conditioning frames."""

from __future__ import annotations

import dataclasses
import os
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tests.generation.conftest import base_stage, random_params
from tests.generation.test_masked_latents import STAGE as LATENT
from tests.refusals import refused
from vdm_jax.conditions.conditioning import Request
from vdm_jax.conditions.frame_masks import FrameMask, MaskedVideo, NoMask
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.generation.generator import BLOCK_BY_BLOCK, Generator
from vdm_jax.generation.long_video.driver import Task
from vdm_jax.generation.long_video.plan import Autoregressive, NuwaXL, Segment, Windowed
from vdm_jax.generation.long_video.sampling import LongJob
from vdm_jax.generation.long_video.script import LongRequest, Script, scripts_of
from vdm_jax.networks.config import Level
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, VideoSpec

CAPTIONS = ("a red three moving left", "a blue two")


class OneByOne(NuwaXL):
    """The same segments, none together with another."""

    def rounds(self, frames, size):
        for round_ in super().rounds(frames, size):
            yield from ((segment,) for segment in round_)


@pytest.fixture(scope="module")
def experiment():
    base = base_stage()
    stage = dataclasses.replace(
        base, video=VideoSpec(frames=4, height=8, width=8, fps=4), sampling=dataclasses.replace(base.sampling, steps=2),
        network=dataclasses.replace(base.network, conditioning_frames=True),
        training=Training(masking=(NoMask(), FrameMask(first=1), FrameMask(first=1, last=1))))
    return Experiment(name="one", stages=(stage,), data=CaptionedDigits(size=16, frames=4))


@pytest.fixture(scope="module")
def params(experiment):
    return {"base": random_params(experiment.stages[0], 0)}


@pytest.fixture(scope="module")
def generator(experiment, params):
    return Generator(experiment, params, jax.devices()[:1])


def test_a_hierarchy_in_parallel_is_the_one_in_sequence(generator):
    parallel = generator.long(CAPTIONS, frames=10, method=NuwaXL(), at_once=4, fps=4.0)
    sequential = generator.long(CAPTIONS, frames=10, method=OneByOne(), at_once=4, fps=4.0)
    assert parallel.complete and parallel.videos.shape == (2, 10, 8, 8, 3)
    np.testing.assert_array_equal(parallel.videos, sequential.videos)
    keys = generator.long(CAPTIONS, frames=4, method=NuwaXL(), at_once=4, fps=4.0 / 3)  # a clip of every third frame
    np.testing.assert_array_equal(parallel.videos[:, ::3], keys.videos)  # the local clips leave key frames alone
    changes = np.abs(np.diff(parallel.videos.astype(int), axis=1)).mean((0, 2, 3, 4))
    assert changes.min() > 1  # and make frames of their own


def test_any_number_of_devices_makes_the_same_video(generator, experiment, params):
    two = Generator(experiment, params, jax.devices()[:2])
    of_one = generator.long(CAPTIONS, frames=10, method=NuwaXL(), at_once=4)
    of_two = two.long(CAPTIONS, frames=10, method=NuwaXL(), at_once=8)  # four on each
    np.testing.assert_array_equal(of_one.videos, of_two.videos)


def test_an_interrupted_video_goes_on_from_its_folder(generator, tmp_path):
    options = {"frames": 10, "method": NuwaXL(), "at_once": 4, "folder": tmp_path / "long.frames"}
    whole, told = generator.long(CAPTIONS, **{**options, "folder": None}), []
    part = generator.long(CAPTIONS, **options, stop=lambda: True)
    assert not part.complete and part.finished == 1
    rest = generator.long(CAPTIONS, **options, progress=lambda *said: told.append(said))
    assert told == [("base", 2, 8), ("base", 6, 8), ("base", 8, 8)]
    np.testing.assert_array_equal(rest.videos, whole.videos)
    np.testing.assert_array_equal(np.concatenate(list(rest.stream()), axis=1), whole.videos)
    for other in ({"seed": 1}, {"steps": 1}, {"guidance": 0.5}, {"method": Autoregressive(overlap=1)}):
        with refused("folder", "another request"):
            generator.long(CAPTIONS, **{**options, **other})
    with refused("folder", "another request"):
        generator.long(CAPTIONS[::-1], **options)


def test_windows_as_long_as_the_video_are_the_plain_sampler(generator):
    plain = generator(CAPTIONS, seed=3).videos.astype(int)
    method = Windowed(overlap=1, rescheduled=True)  # the first clip has its noise in its own order
    found = generator.long(CAPTIONS, frames=4, method=method, seed=3, at_once=2).videos
    assert np.abs(found - plain).max() <= 1  # another program


def test_prompts_by_time_change_frames_from_theirs_on(generator):
    method = Autoregressive()  # overlap as in training
    script = Script(((0, CAPTIONS[0]), (6, CAPTIONS[1])))
    one, changed = (generator.long(caption, frames=10, method=method).videos for caption in (CAPTIONS[0], script))
    assert np.abs(one[:, :4].astype(int) - changed[:, :4]).max() <= 1  # one prompt for the clip, or for each frame
    assert np.abs(one[:, 7:].astype(int) - changed[:, 7:]).max() > 5


def test_one_clip_is_an_ordinary_video(generator):
    for method in (NuwaXL(), Autoregressive(overlap=1)):
        found = generator.long(CAPTIONS, frames=4, method=method, seed=3)
        np.testing.assert_array_equal(found.videos, generator(CAPTIONS, seed=3).videos)
    assert found.fps == 4 and found.captions == CAPTIONS


def test_files_of_what_is_finished(generator, tmp_path):
    from vdm_jax.video.reading import VideoReader

    found = generator.long(CAPTIONS, frames=10, method=NuwaXL(), at_once=4)
    for name in ("a.mp4", "a.gif", "a.png"):
        assert os.path.getsize(found.save(tmp_path / name)) > 100
    with VideoReader(tmp_path / "a.mp4") as video:
        assert len(video) == 10 and video.fps == 4
    with refused("writing.write_frames", "none.mp4", "no frames"):
        dataclasses.replace(found, finished=0).save(tmp_path / "none.mp4")


def test_bad_arguments(generator):
    with refused("frames", "=11", "10, 28"):
        generator.long(CAPTIONS, frames=11, method=NuwaXL())
    with refused("long_video.masking", "overlap=2", "overlap of 1"):
        generator.long(CAPTIONS, frames=9, method=Autoregressive(overlap=2))
    with refused("labels"):
        generator.long(CAPTIONS, frames=9, method=Autoregressive(overlap=1), labels=[1, 2])


def job(stage, method=BLOCK_BY_BLOCK, given=None, **changes):
    requests = (LongRequest(stage, scripts_of(CAPTIONS, 8), Request(CAPTIONS), Request(CAPTIONS, given or {}), 8),)
    return LongJob(**{"stages": (stage,), "method": method, "total": 8, "fps": 4.0, "scripts": scripts_of(CAPTIONS, 8),
                      "requests": requests, "seed": 0, "first_index": 0, "masked_video": None, "low": None, "every": 1,
                      **changes})


def test_a_mask_of_all_frames_is_of_those_of_the_first_clip_alone(experiment):
    """Of videos denoised as a whole, too: what comes after the clip is not given."""
    masked = MaskedVideo(np.full((2, 4, 8, 8, 3), 0.5, np.float32), np.ones((1, 1, 8, 8, 1), np.float32))
    found = job(experiment.stages[0], Windowed(), masked_video=masked)._given(
        [Task(1, Segment(0, 0, 1, 8))], None, np.array([1]))
    assert found.video.shape == (1, 8, 8, 8, 3) and found.mask.shape == (1, 8, 8, 8, 1)
    assert found.mask[:, :4].all() and not found.mask[:, 4:].any()


def test_frames_in_a_folder_are_of_one_request_and_its_weights(experiment):
    stage = experiment.stages[0]

    def key(given=None, params=((2, 3), np.float32), autoencoder=0.0, of=stage):
        weights = SimpleNamespace(params={"base": {"a": np.zeros(*params)}}, mesh=None,
                                  autoencoders={"base": {"a": np.full(3, autoencoder)}})
        return job(of, given=given)._key(2, weights)

    keys = [key(), key({"control_start": 0.5}), key({"control_end": 0.5}), key(params=((3, 2), np.float32)),
            key(params=((2, 3), np.int32)), key(of=LATENT), key(of=LATENT, autoencoder=1.0)]
    assert len(set(keys)) == len(keys) and key() == keys[0] == key(autoencoder=1.0)


def test_prompts_by_time_need_a_stage_that_reads_text(experiment):
    stage = experiment.stages[0]
    mute = dataclasses.replace(stage, network=dataclasses.replace(
        stage.network, text=None, levels=(Level(channels=16, blocks=1),)), sampling=Sampling(steps=2))
    generator = Generator(dataclasses.replace(experiment, stages=(mute,)), {"base": random_params(mute, 0)})
    with refused("script.long_requests", "Script.prompts has 2", "read no text"):
        generator.long(Script(((0, "a"), (4, "b"))), frames=10, method=NuwaXL())
