"""Editing through a cascade: what stays, what changes, and what a stage sees of the one before."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from tests.pipelines.test_wan import write_wan
from tests.refusals import refused
from vdm_jax.conditions.frames import KeyFrames
from vdm_jax.diffusion.samplers import DDIM, DDPM, UniPC
from vdm_jax.generation.editing.control_video import ControlVideo
from vdm_jax.generation.editing.ddim_inversion import DDIMInversion
from vdm_jax.generation.editing.ddpm_inversion import DDPMInversion
from vdm_jax.generation.editing.edit import edit, notes_on
from vdm_jax.generation.editing.fatezero import FateZero
from vdm_jax.generation.editing.methods import EDIT_METHODS
from vdm_jax.generation.editing.null_text import NullText
from vdm_jax.generation.editing.one_stage import edit_sampling
from vdm_jax.generation.editing.prompt_to_prompt import PromptToPrompt
from vdm_jax.generation.editing.rerender import Rerender
from vdm_jax.generation.editing.sdedit import SDEdit
from vdm_jax.generation.editing.text2video_zero import Text2VideoZero
from vdm_jax.generation.editing.tune_a_video import TuneAVideo
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.one_stage import released_steps
from vdm_jax.generation.released.models import read_released
from vdm_jax.metrics.frames import psnr
from vdm_jax.stages.options import Sampling

SOURCE, TARGET = ["a red three moving left", "a blue two"], ["a blue three moving left", "a red two"]
VIDEOS = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def generator(experiment, params):
    return Generator(experiment, params, jax.devices()[:1])


@pytest.fixture(scope="module")
def sdedited(generator):
    return edit(generator, VIDEOS, TARGET, method=SDEdit(strength=0.7), seed=1)


@pytest.mark.parametrize("name", [
    name for name, kind in EDIT_METHODS.items() if kind not in (Text2VideoZero, ControlVideo, Rerender, NullText)])
def test_no_strength_leaves_the_video_as_it_is(generator, name):
    made = edit(generator, VIDEOS, TARGET, source_captions=SOURCE, method=EDIT_METHODS[name](strength=0.0))
    np.testing.assert_array_equal(made.videos, VIDEOS)
    assert list(made.stages) == ["base", "large"] and made.stages["base"].shape == (2, 2, 8, 8, 3)


def test_the_noises_of_ddpm_lead_back_and_another_caption_leads_elsewhere(generator):
    """Without guidance the same caption gives the video exactly, in the size of every stage."""
    same = edit(generator, VIDEOS, SOURCE, source_captions=SOURCE, method=DDPMInversion(strength=1.0), guidance=0.0,
                round_trip=True)
    for name, source in same.sources.items():
        assert np.abs(same.stages[name].astype(int) - source).max() <= 1, name
        assert same.round_trip[name].shape == (2,) and same.round_trip[name].min() > 50
    np.testing.assert_array_equal(same.sources["large"], VIDEOS)
    other = edit(generator, VIDEOS, TARGET, source_captions=SOURCE, method=DDPMInversion(strength=1.0), guidance=0.0,
                 round_trip=True)
    assert np.abs(other.stages["base"].astype(int) - other.sources["base"]).max() > 5


@pytest.mark.parametrize("method", [DDIMInversion(), DDPMInversion(strength=1.0), PromptToPrompt(), FateZero()],
                         ids=lambda method: method.name)
def test_the_given_videos_own_captions_lead_back_to_them(generator, method):
    """As close as the round trip says, to a decibel; FateZero, whose round trip replaces no attention, closer."""
    made = edit(generator, VIDEOS, SOURCE, source_captions=SOURCE, method=method, guidance=0.0, round_trip=True)
    for name, source in made.sources.items():
        found, more = psnr(made.stages[name], source), np.inf if method.name == "fatezero" else 1
        assert (found > made.round_trip[name] - 1).all() and (found < made.round_trip[name] + more).all(), name


def test_what_is_said_of_a_model_that_was_never_tuned(generator):
    stage, zeros = generator.stages()[0], np.zeros((2, 2), np.float32)

    def params(kernel):
        return {"middle_transformer": {"space": {"temporal_attention": {"out": {"kernel": kernel}}}}}

    note, = TuneAVideo().notes(stage, params(zeros))
    assert note.startswith("stage 'base' was never tuned on a video") and "is as it began" in note
    assert TuneAVideo().notes(stage, params(zeros + 1e-6)) == [] == DDIMInversion().notes(stage, params(zeros))
    notes = notes_on(generator, TuneAVideo())
    assert len(notes) == 2 and all("no temporal attention of it" in note for note in notes)


def test_a_stage_sees_what_the_one_before_made(generator, sdedited):
    """The second stage, which reads no caption, is left alone and differs all the same."""
    methods = {"base": SDEdit(strength=0.0), "large": SDEdit(strength=0.7)}
    kept = edit(generator, VIDEOS, TARGET, method=methods, seed=1)
    np.testing.assert_array_equal(kept.stages["base"], kept.sources["base"])
    assert (sdedited.stages["base"] != kept.stages["base"]).any()
    assert (sdedited.stages["large"] != kept.stages["large"]).any()


def test_a_video_does_not_depend_on_what_else_is_edited(generator, sdedited):
    twice = edit(generator, VIDEOS[[1, 1]], [TARGET[1]] * 2, method=SDEdit(strength=0.7), seed=1, first_index=1)
    assert np.abs(twice.videos[0].astype(int) - sdedited.videos[1]).max() <= 1
    assert (twice.videos[0] != twice.videos[1]).any()  # other noise


def test_methods_choose_samplers(experiment):
    base, large = experiment.stages
    ddim = edit_sampling(large, large.sampling, DDIMInversion(), 0.0)
    assert ddim.target.sampler == DDIM(eta=0.0) and ddim.source.guidance == 0
    ddpm = edit_sampling(large, large.sampling, DDPMInversion(), 0.0)
    assert ddpm.target.sampler == large.sampling.sampler == DDIM(eta=0.5)  # which draws noise
    assert edit_sampling(base, Sampling(), DDPMInversion(), 0.0).target.sampler == DDPM()
    guided = edit_sampling(base, base.sampling, DDIMInversion(), 2.5)
    assert (guided.source.guidance, guided.target.guidance) == (2.5, base.sampling.guidance)


def test_methods_take_a_released_flow_on_its_own_sigmas(tmp_path):
    """One of two experts, whose inversion has no guidance at high noise either; three of the methods go to Euler's
    sigmas, which begin with noise alone."""
    stage, = read_released(write_wan(tmp_path / "wan", experts=True, boundary_ratio=0.875)).stages
    stage = dataclasses.replace(stage, video=dataclasses.replace(stage.video, frames=5, height=8, width=12))
    own = released_steps(stage, stage.sampling)[0].steps.level
    for kind in EDIT_METHODS.values():
        if issubclass(kind, PromptToPrompt):  # of one weight of the guidance alone
            with refused("PromptToPrompt.check", "sampling.high_noise_guidance=3.0", "guidance by one weight"):
                edit_sampling(stage, stage.sampling, kind(), 0.0)
            continue
        _, target, source, _ = edit_sampling(stage, stage.sampling, kind(), 0.0)
        assert target.scheduler.flow == stage.sampling.scheduler.flow
        assert source.guidance == 0 and source.high_noise_guidance is None
        assert target.high_noise_guidance == stage.sampling.high_noise_guidance == 3.0
        np.testing.assert_array_equal(released_steps(stage, target)[0].steps.level, own)
        assert isinstance(target.sampler, {"sdedit": UniPC, "ddpm": DDPM}.get(kind.name, DDIM))


def test_what_cannot_be_edited(generator, experiment):
    with refused("edit._in_sizes", "[2, 4, 8, 8, 3]", "permitted: [2, 4, 16, 16, 3]"):
        edit(generator, VIDEOS[:, :, :8, :8], TARGET)
    with refused("edit.edit", "source_captions has 1 captions for 2 videos"):
        edit(generator, VIDEOS, TARGET, source_captions=SOURCE[:1])
    with refused("source_guidance", "source_guidance=2.0 without source_captions"):
        edit(generator, VIDEOS, TARGET, source_guidance=2.0)
    with refused("patterns.with_spatial_pattern", "UNet", "permitted: a LatentNetwork"):
        edit(generator, VIDEOS, TARGET, method=Text2VideoZero())
    with refused("edit._of_stage", "method is given for base", "base, large"):
        edit(generator, VIDEOS, TARGET, method={"base": SDEdit()})
    large = experiment.stages[1]
    with refused("Stage.sampling.consistency", "method='ddim'", "'sdedit'"):
        edit_sampling(large, dataclasses.replace(large.sampling, consistency=0.5), DDIMInversion(), 0.0)
    filling = dataclasses.replace(large, source=None, network=dataclasses.replace(large.network, low_resolution=False))
    object.__setattr__(filling, "source", KeyFrames(frames=2))
    with refused("Stage.source", "source=KeyFrames"):
        edit_sampling(filling, filling.sampling, SDEdit(), 0.0)
