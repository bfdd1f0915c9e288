"""`vdm-jax distil`: a trained run becomes one that samples in few steps, all by itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.commands.conftest import TINY
from tests.refusals import refused
from vdm_jax.attention import BlockCausal, Full
from vdm_jax.commands.configs import load_config
from vdm_jax.commands.distil_command import Distil, distilled
from vdm_jax.commands.main import main
from vdm_jax.diffusion.beta_tables import ScaledLinearBetaSchedule
from vdm_jax.diffusion.consistency import Boundary
from vdm_jax.diffusion.grids import TimestepGrid
from vdm_jax.diffusion.samplers import DDIM, Consistency, StochasticDDIM
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.digits.clips import caption_words
from vdm_jax.networks.config import Level
from vdm_jax.networks.lora import LoRA
from vdm_jax.runs.directory import WEIGHTS, load, open_run, read_cascade
from vdm_jax.runs.teachers import params_hash
from vdm_jax.stages.distillation import DistributionMatching, ProgressiveDistillation, SelfForcing, Teacher
from vdm_jax.stages.options import InitFrom
from vdm_jax.stages.parameters import initial_params
from vdm_jax.training.init_from import starting_weights
from vdm_jax.training.state import initial_state
from vdm_jax.weights.safetensors import save_params

CAPTION = "a red 3 moving left"


@pytest.fixture
def teacher():
    """The tiny cascade without attention, with random weights: what an exported run is."""
    experiment = load_config(TINY).with_words(caption_words())
    experiment = dataclasses.replace(experiment, stages=tuple(
        dataclasses.replace(stage, network=dataclasses.replace(stage.network, levels=(Level(channels=8, blocks=1),)))
        for stage in experiment.stages))
    open_run(Path("teacher"), experiment)
    for number, stage in enumerate(experiment.stages):
        rng = np.random.default_rng(number)
        shapes = jax.eval_shape(lambda key, stage=stage: initial_params(stage, key), jax.random.key(0))
        (Path("teacher") / stage.name).mkdir()
        save_params(Path("teacher") / stage.name / WEIGHTS,
                    jax.tree.map(lambda a, rng=rng: rng.normal(0, 0.3, a.shape).astype(np.float32), shapes), {})
    return Path("teacher")


def test_a_stage_becomes_one_of_a_step_with_the_weight_of_guidance_as_an_input(teacher, fails):
    arguments = ["distil", "teacher", "--steps", "1", "--updates", "1", "--guidance-range", "0", "2", "--run", "new",
                 "--stage", "base", "--quiet", "--base.training.checkpoint-every", "1", "--base.training.learning-rate",
                 "0.05"]
    assert main(arguments) == 0
    students = read_cascade(Path("new"))
    base = students.stages[0]
    assert base.training.distillation.rounds == (0, 1) and base.takes_weight and base.sampling.steps == 1
    assert base.training.distillation.teacher.sha256 == params_hash(load(teacher).params["base"])
    assert students.stages[1] == read_cascade(teacher).stages[1]
    generate = load("new")
    assert params_hash(generate.params["spatial"]) == params_hash(load(teacher).params["spatial"])
    videos = {weight: generate([CAPTION], guidance=weight, last="base").videos for weight in (None, 2.0)}
    assert (videos[None] != videos[2.0]).any() and base.sampling.guidance == 0  # the teacher's own
    with refused("Sampling.guidance", "sampling.guidance=5 of a student that has learnt weights from 0 to 2"):
        generate([CAPTION], guidance=5.0, last="base")
    assert main(arguments) == 0  # finished: nothing is left to do
    assert "belongs to another config" in fails(*arguments[:4], "--updates", "3", *arguments[6:-2])


def causal_run(folder, pattern=None, seed=0):
    """A run of one small video transformer with random weights, in blocks of two frames unless the pattern is given."""
    experiment = load_config("causal_digits").with_words(caption_words())
    stage = experiment.stages[0]
    network = dataclasses.replace(stage.network, width=12, heads=2, hidden=8, layers=1, level_channels=8, rotary=None,
                                  text=dataclasses.replace(stage.network.text, width=8, head_dim=4),
                                  patterns=(pattern or BlockCausal(block=2),), teacher_forcing=pattern is None)
    sampling = dataclasses.replace(stage.sampling, by_blocks=network.teacher_forcing, steps=3)
    video = dataclasses.replace(stage.video, frames=4, height=16, width=16)
    training = dataclasses.replace(stage.training, batch_size=8, checkpoint_every=1)
    stage = dataclasses.replace(stage, network=network, sampling=sampling, video=video, training=training)
    data = CaptionedDigits(size=16, frames=4, train_clips=16, validation_clips=8, test_clips=1, objects=(1, 1))
    open_run(Path(folder), dataclasses.replace(experiment, stages=(stage,), data=data))
    (Path(folder) / "base").mkdir()
    rng, shapes = np.random.default_rng(seed), jax.eval_shape(lambda key: initial_params(stage, key), jax.random.key(0))
    params = jax.tree.map(lambda a: rng.normal(0, 0.3, a.shape).astype(np.float32), shapes)
    save_params(Path(folder) / "base" / WEIGHTS, params, {})
    return params


def test_a_causal_run_becomes_one_that_samples_its_blocks_in_few_steps():
    causal_run("teacher")
    assert main(["distil", "teacher", "--method", "self_forcing", "--steps", "2", "--updates", "1", "--run", "new",
                 "--quiet", "--base.training.distillation.critic-updates", "1", "--base.training.learning-rate", "0.05"
                 ]) == 0
    stage = read_cascade(Path("new")).stages[0]
    spec, sampling = stage.training.distillation, stage.sampling
    assert isinstance(spec, SelfForcing) and spec.scores == "causal" and spec.guidance == (1.0, 1.0)
    assert sampling.by_blocks and sampling.sampler == Consistency() and sampling.steps == 2 and not sampling.guided
    assert sampling.evaluations(4) == 3  # two steps of a block, and what writes its keys
    videos = {name: load(name)([CAPTION]).videos for name in ("teacher", "new")}
    assert videos["new"].shape == videos["teacher"].shape == (1, 4, 16, 16, 3)
    assert params_hash(load("new").params["base"]) != params_hash(load("teacher").params["base"])
    assert main(["sample", "new", CAPTION, "--out", "x.gif"]) == 0


def test_the_scores_of_a_causal_student_may_be_those_of_another_run():
    """Whose guidance it takes; it begins as the causal one."""
    causal, full = causal_run("teacher"), causal_run("full", Full(), seed=1)
    options = Distil("teacher", method="self_forcing", score_teacher="full")
    stage = distilled(read_cascade(Path("teacher")), ["base"], Path("teacher"), options).stages[0]
    spec = stage.training.distillation
    assert spec.scores == "bidirectional" and spec.teacher == Teacher(run="full", stage="base")
    assert stage.training.init_from == InitFrom(run="teacher", stage="base") and not stage.sampling.guided
    found = starting_weights(stage, Path("new"))
    state = jax.jit(lambda source: initial_state(stage, jax.random.key(0), found[0], source))(found[1])
    for begun, as_run in ((state.params, causal), (state.ema, causal), *((state.networks[role], full)
                                                                       for role in spec.roles)):
        assert params_hash(jax.device_get(begun)) == params_hash(as_run)
    wrong = dataclasses.replace(spec, scores="causal")
    with refused("Stage.training.distillation.scores", "'causal'", "Full", "permitted: 'bidirectional'"):
        wrong.check_teacher(stage, read_cascade(Path("full")).stages[0])


def test_scores_of_a_run_that_is_guided_by_something_else_are_refused():
    experiment = load_config("causal_digits").with_words(caption_words())
    stage = experiment.stages[0]
    frames = dataclasses.replace(stage, sampling=dataclasses.replace(stage.sampling, guided_by="frames", guidance=0.0))
    for name, one in (("teacher", stage), ("frames", frames)):
        open_run(Path(name), dataclasses.replace(experiment, stages=(one,)))
    options = Distil("teacher", method="self_forcing", score_teacher="frames")
    with refused("distil.score_teacher", "--score-teacher=frames", "guided_by='frames'", "in teacher 'prompt'"):
        distilled(read_cascade(Path("teacher")), [stage.name], Path("teacher"), options)


@pytest.mark.full
def test_a_cascade_becomes_a_cascade_of_consistency_models(teacher):
    assert main(["distil", "teacher", "--method", "consistency", "--steps", "2", "--updates", "2", "--intervals", "4",
                 "--run", "new", "--quiet"]) == 0
    for stage in read_cascade(Path("new")).stages:
        assert stage.sampling.sampler == Consistency() and stage.sampling.consistency == Boundary()
        assert params_hash(load("new").params[stage.name]) != params_hash(load(teacher).params[stage.name])
    assert main(["sample", "new", CAPTION, "--out", "x.png"]) == 0


def test_rounds_lead_from_the_teachers_steps_to_the_students():
    experiment = load_config("captioned_digits")
    names = [stage.name for stage in experiment.stages]
    found = distilled(experiment, names, Path("digits"), Distil("digits", sampler="stochastic"))
    for before, stage in zip(experiment.stages, found.stages, strict=True):
        spec = stage.training.distillation
        assert isinstance(spec, ProgressiveDistillation) and spec.steps == 4
        assert spec.start >= before.sampling.steps > spec.start // 2
        assert isinstance(stage.sampling.sampler, StochasticDDIM) and stage.training.ema_decay == 0
        if before.sampling.guided:  # its weight is part of the student
            assert spec.guidance == (before.sampling.guidance,) * 2 and not stage.sampling.guided
    assert any(stage.sampling.guided for stage in experiment.stages)
    longer = distilled(experiment, names[-1:], Path("digits"), Distil("digits", steps=1, start=32)).stages[-1]
    assert longer.training.distillation.rounds[-5:] == (16, 8, 4, 2, 1)
    consistent = distilled(experiment, names[:1], Path("digits"), Distil("digits", method="consistency"))
    assert consistent.stages[0].sampling.consistency == Boundary() and consistent.stages[1:] == experiment.stages[1:]
    factors = distilled(experiment, names[:1], Path("digits"), Distil("digits", method="consistency", lora_rank=4))
    assert factors.stages[0].training.lora == (LoRA(rank=4, patterns=("/",)),)
    matched = distilled(experiment, names[:1], Path("digits"), Distil("digits", method="dmd", steps=2)).stages[0]
    assert isinstance(matched.training.distillation, DistributionMatching) and matched.sampling.steps == 2
    assert matched.training.distillation.steps == 2 and matched.sampling.sampler == Consistency()
    table = dataclasses.replace(experiment.stages[0].process, schedule=ScaledLinearBetaSchedule())
    latent = dataclasses.replace(experiment, stages=(dataclasses.replace(experiment.stages[0], process=table),))
    student = distilled(latent, names[:1], Path("digits"), Distil("digits", method="consistency", steps=4)).stages[0]
    assert student.training.distillation.solver == DDIM() and student.training.distillation.intervals == 50
    assert student.sampling.sampler.grid == TimestepGrid(spacing="distilled") and student.sampling.consistency == 10
    matched = distilled(latent, names[:1], Path("digits"), Distil("digits", method="dmd")).stages[0]
    assert matched.sampling.sampler.grid == TimestepGrid(spacing="trailing") and matched.sampling.consistency is None
    again = found.stages[0]
    assert distilled(found, [again.name], Path("digits"), Distil("digits", steps=2)).stages[0].training.steps == 2000


@pytest.mark.parametrize(("options", "message"), [
    (("--run", "tiny"), "--run=tiny is the teacher's own"),
    (("--stage", "none"), "stage 'none' is unknown; permitted: base, spatial"),
    (("--method", "guided", "--steps", "2"), "--steps=2 with --method guided"),
    (("--method", "guided"), "--method=guided with stage 'base', which is sampled without two estimates"),
    (("--sampler", "stochastic", "--method", "consistency"), "--sampler=stochastic with --method consistency"),
    (("--start", "6"), "start=6 with steps=4"),
    (("--start", "8", "--method", "guided"), "--start=8 with --method guided"),
    (("--intervals", "9"), "--intervals=9 with --method progressive"),
    (("--lora-rank", "4"), "--lora-rank=4 with --method progressive"),
    (("--lora-rank", "4", "--method", "dmd"), "--lora-rank=4 with --method dmd"),
    (("--stage", "spatial", "--guidance-range", "0", "2"), "--guidance-range with stages spatial"),
    (("--method", "self_forcing"), "--method=self_forcing with stage 'base', whose network is not causal"),
    (("--guidance-range", "0", "2", "--method", "self_forcing"), "with --method self_forcing"),
    (("--score-teacher", "tiny", "--method", "dmd"), "--score-teacher=tiny with --method dmd"),
    (("--guidance-range", "3", "2"), "guidance"),
    (("--steps", "0"), "--steps=0"),
    (("--base.training.steps", "7"), "permitted: 2000"),
])
def test_bad_options_are_refused(fails, options, message):
    open_run(Path("tiny"), load_config(TINY))
    assert message in fails("distil", "tiny", *options)


def test_what_has_no_weights_is_no_teacher(fails):
    open_run(Path("tiny"), load_config(TINY))
    assert "run tiny is not trained; permitted: a trained stage" in fails("distil", "tiny", "--quiet")
    assert "run 'nowhere' was not found" in fails("distil", "nowhere")
