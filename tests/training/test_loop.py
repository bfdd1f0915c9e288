"""The training loop on captioned digits: it learns, and stopping, crashing and resuming leave no trace in the end."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import gzip
import io
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from tests.refusals import refused
from tests.training import programs
from vdm_jax.attention.patterns import Full
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.digits.clips import caption_words
from vdm_jax.errors import NotFinite, UserError
from vdm_jax.networks.config import Level, SelfAttention, UNet, WordEncoder
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.runs.checkpoints import Checkpoints
from vdm_jax.runs.directory import checkpoints_path, open_run
from vdm_jax.runs.records import read_records
from vdm_jax.stages.options import Evaluation, Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax.training import loop
from vdm_jax.training.loop import Interrupted, Trainer
from vdm_jax.training.report import Report
from vdm_jax.training.state import abstract_state

STEPS = 30
DATA = CaptionedDigits(size=16, frames=4, train_clips=64, validation_clips=16, test_clips=1, objects=(1, 1))


def experiment_of(**training) -> Experiment:
    """One tiny stage on 4x16x16 clips, over the 8 virtual devices."""
    mixers = (SelfAttention(pattern=Full(), head_dim=16),)
    network = UNet(levels=(Level(channels=32, blocks=1, kernel=1, mixers=mixers),), patch=4, embedding_channels=16,
                   text=WordEncoder(words=caption_words(), length=8, width=16, layers=1))
    settings = dict(steps=STEPS, batch_size=16, learning_rate=5e-3, warmup_steps=5, ema_decay=0.9, log_every=1,
                    checkpoint_every=15, sample_every=20, validate_every=15)
    stage = Stage(name="base", video=VideoSpec(frames=4, height=16, width=16), network=network,
                  process=Process(prediction="x"), training=Training(**{**settings, **training}),
                  sampling=Sampling(steps=2))
    return Experiment(name="tiny", stages=(stage,), data=DATA)


class Recorder(Report):
    """A report that keeps its lines, and calls `at(step)` after every logged step."""

    def __init__(self, at=lambda step: None):
        super().__init__(rich.console.Console(file=io.StringIO(), width=200))
        self.at = at

    @property
    def text(self) -> str:
        return self.console.file.getvalue()

    @contextlib.contextmanager
    def stage(self, name, start, steps):
        with super().stage(name, start, steps) as progress:
            update = progress.update

            def update_and_call(step, *arguments):
                update(step, *arguments)
                self.at(step)

            progress.update = update_and_call
            yield progress


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def train(data_dir):
    """Train into a run directory as the command does; returns what was reported."""

    def train(run, experiment=None, at=lambda step: None, evaluation=None, report=None, **options):
        experiment = open_run(run, experiment or experiment_of())
        report = report or Recorder(at)
        Trainer(experiment, experiment.stages[0], run, report, data_dir, evaluation=evaluation,
                **options).train()
        return report.text

    with pytest.MonkeyPatch.context() as patch:
        programs.share(patch)
        yield train


@pytest.fixture
def no_pictures(monkeypatch):
    programs.leave_out_pictures(monkeypatch)


@functools.cache
def abstract():
    experiment = experiment_of()
    return abstract_state(experiment.stages[0], make_mesh(experiment.mesh))


def final_state(run):
    """The last checkpoint, as numpy arrays by path."""
    state, meta = Checkpoints(checkpoints_path(run, "base")).restore(abstract())

    def fetch(leaf):
        return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)

    return meta["step"], {jax.tree_util.keystr(path): fetch(leaf)
                          for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def assert_same_run(run, other):
    """The same final state to the bit, and the same numbers logged for every step once."""
    (step, state), (other_step, other_state) = final_state(run), final_state(other)
    assert step == other_step == STEPS and state.keys() == other_state.keys()
    for name, value in state.items():
        assert value.tobytes() == other_state[name].tobytes(), name
    logged, expected = (
        [{k: v for k, v in record.items() if k in ("step", "loss", "gradient_norm", "learning_rate", "skipped",
                                                   "validation_loss")} for record in read_records(folder / "base")]
        for folder in (run, other))
    assert logged == expected


@pytest.fixture(scope="module")
def uninterrupted(train, tmp_path_factory):
    """A run of 30 steps at one go, and what was reported."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    return run, train(run)


# ---------------------------------------------------------------------------------------------- a run


def test_the_loss_goes_down(uninterrupted):
    records = read_records(uninterrupted[0] / "base")
    loss = [r["loss"] for r in records if "loss" in r]
    assert len(loss) == STEPS
    assert np.mean(loss[-8:]) < 0.6 * np.mean(loss[:5])
    validation = [(r["step"], r["validation_loss"]) for r in records if "validation_loss" in r]
    assert [step for step, _ in validation] == [15, 30]
    assert validation[1][1] < 0.9 * validation[0][1]


def test_what_a_run_leaves_behind(uninterrupted):
    run, _ = uninterrupted
    folder = run / "base"
    assert sorted(p.name for p in (folder / "samples").iterdir()) == [
        "step_0000020.mp4", "step_0000020.png", "step_0000030.mp4", "step_0000030.png"]
    assert all(p.stat().st_size > 100 for p in (folder / "samples").iterdir())
    assert Checkpoints(checkpoints_path(run, "base")).steps() == [15, 30]
    assert list(folder.glob("events.out.tfevents.*"))
    records = [r for r in read_records(folder) if "loss" in r]
    assert [r["step"] for r in records] == list(range(1, STEPS + 1))
    np.testing.assert_allclose([r["learning_rate"] for r in records[:6]], 5e-3 * np.array([0.2, 0.4, 0.6, 0.8, 1, 1]),
                               rtol=1e-5)
    assert records[-1]["seconds_remaining"] == 0 and records[-1]["clips_per_second"] > 0


def test_what_a_person_sees(uninterrupted):
    _, text = uninterrupted
    for part in ("stage base: initialising the network", "first step compiled in", "step 30/30, loss 0.", "clips/s",
                 "step 15: validation loss 0."):
        assert part in text


def test_training_again_changes_nothing(uninterrupted, train):
    run, _ = uninterrupted
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.name != "config.json"}
    assert "stage base: already trained to step 30" in train(run)
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.name != "config.json"} == before


# ---------------------------------------------------------------------------------------------- stopping, resuming


def test_a_stopped_run_resumes_to_the_same_bits(uninterrupted, train, tmp_path, no_pictures):
    """SIGTERM in the middle, between checkpoints; the handlers of before are back afterwards."""
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted, match="stopped at step 13 of stage 'base'; everything is saved"):
        train(tmp_path / "run", at=lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 13 else None)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert final_state(tmp_path / "run")[0] == 13
    assert "stage base: resuming at step 13" in train(tmp_path / "run")
    assert_same_run(tmp_path / "run", uninterrupted[0])


def test_a_crashed_run_resumes_from_its_last_checkpoint_to_the_same_bits(uninterrupted, train, tmp_path, no_pictures):
    """The steps after the checkpoint are done again, and logged once; and more steps may be asked for than before."""

    def crash(step):
        if step == 17:
            raise RuntimeError("the power went")

    with pytest.raises(RuntimeError, match="the power went"):
        train(tmp_path / "run", experiment_of(steps=24), at=crash)
    assert read_records(tmp_path / "run" / "base")[-1]["step"] == 17 and final_state(tmp_path / "run")[0] == 15
    assert "stage base: resuming at step 15" in train(tmp_path / "run")
    assert_same_run(tmp_path / "run", uninterrupted[0])


def test_another_config_cannot_resume(uninterrupted, train):
    with refused("directory.check_run", "stages.base.training.learning_rate", "0.005"):
        train(uninterrupted[0], experiment_of(learning_rate=1e-3))


def test_a_checkpoint_of_another_network_is_refused(uninterrupted, data_dir):
    experiment = experiment_of()
    stage = experiment.stages[0]
    wider = dataclasses.replace(stage, network=dataclasses.replace(stage.network, embedding_channels=24))
    with refused("checkpoints.Checkpoints._check_match", "embedding"):
        Trainer(dataclasses.replace(experiment, stages=(wider,)), wider, uninterrupted[0], Recorder(), data_dir).train()


# ---------------------------------------------------------------------------------------------- what can go wrong


@pytest.fixture
def fake_steps(monkeypatch):
    """Replaces the compiled step by one that only counts, and skips the steps it is told to."""

    def install(skips):
        def step(state, batch):
            number = int(state.step) + 1
            skip = number in skips
            metrics = {"loss": np.float32(np.nan if skip else number), "skipped": np.float32(skip)}
            return state.replace(step=state.step + 1), metrics

        monkeypatch.setattr(loop, "compile_train_step", lambda *arguments: step)
        monkeypatch.setattr(loop, "MAX_SKIPPED", 3)

    return install


QUIET = {"validate_every": 0, "sample_every": 0}


@pytest.mark.parametrize("log_every", [1, 2])
def test_a_run_that_is_never_finite_gives_up(fake_steps, train, tmp_path, log_every):
    """Also where the steps in a row lie in different windows of the log."""
    fake_steps({1, 4, 5, 6})
    with pytest.raises(NotFinite) as error:
        train(tmp_path / "run", experiment_of(log_every=log_every, **QUIET))
    assert str(error.value) == (
        "stage 'base': loss or gradient was not finite for 3 steps in a row, up to step 6; permitted: a lower "
        "training.learning_rate, or network.dtype='float32'")
    assert Checkpoints(checkpoints_path(tmp_path / "run", "base")).steps() == []


def test_some_skipped_steps_are_counted_and_left_out_of_the_mean(fake_steps, train, tmp_path, no_pictures):
    fake_steps({1, 2, 5, 7, 8})
    train(tmp_path / "run", experiment_of(steps=8, log_every=4, **QUIET))
    records = read_records(tmp_path / "run" / "base")
    assert [(r["step"], r["loss"], r["skipped"]) for r in records] == [(4, 3.5, 2), (8, 6.0, 3)]


def test_samples_that_are_not_finite_are_told_and_end_a_run_at_its_last_step(fake_steps, train, tmp_path, monkeypatch):
    fake_steps(set())

    def write(self, params, step):
        raise NotFinite("samples of stage 'base': 3 of 9 values are NaN or infinite")

    monkeypatch.setattr(loop.SampleGrids, "write", write)
    lines = Recorder()
    with pytest.raises(NotFinite, match="^step 4: samples of stage 'base': 3 of 9 .*; everything is saved$"):
        train(tmp_path / "run", experiment_of(steps=4, validate_every=0, sample_every=2), report=lines)
    assert "step 2: no samples: samples of stage 'base'" in lines.text
    assert Checkpoints(checkpoints_path(tmp_path / "run", "base")).latest() == 4


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.ENOENT])
def test_a_disk_that_can_no_longer_be_written_is_one_line(fake_steps, train, tmp_path, monkeypatch, code):
    """The last checkpoint is there and named."""
    fake_steps(set())
    write = loop.MetricWriter.write

    def failing(self, step, scalars):
        if step == 6:
            raise OSError(code, os.strerror(code), str(tmp_path / "run" / "base" / "metrics.jsonl"))
        write(self, step, scalars)

    monkeypatch.setattr(loop.MetricWriter, "write", failing)
    with pytest.raises(UserError) as error:
        train(tmp_path / "run", experiment_of(steps=8, checkpoint_every=4, **QUIET))
    reason = f"no space left ({os.strerror(code)})" if code == errno.ENOSPC else os.strerror(code)
    assert str(error.value) == (f"stage 'base': {tmp_path / 'run' / 'base' / 'metrics.jsonl'}: {reason}; the same "
                                "command goes on from step 4")
    assert Checkpoints(checkpoints_path(tmp_path / "run", "base")).newest_intact() == 4


def test_asked_steps_are_traced_and_the_run_says_where(fake_steps, train, tmp_path, no_pictures):
    """Also where training stops within them, the trace of those that were done is written."""
    fake_steps(set())
    text = train(tmp_path / "run", experiment_of(steps=6, **QUIET), profile="3:4")
    folder = tmp_path / "run" / "base" / "profile"
    assert f"steps 3 to 4 are traced in {folder}: open perfetto_trace.json.gz".split() == text[
        text.index("steps 3 to 4"):].split()[:10]
    assert list(folder.rglob("*.xplane.pb"))
    trace, = folder.rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert {event["args"]["step_num"] for event in events if event.get("name") == "train"} == {"3", "4"}

    def crash(step):
        if step == 3:
            raise RuntimeError("the power went")

    with pytest.raises(RuntimeError, match="the power went"):
        train(tmp_path / "crashed", experiment_of(steps=6, **QUIET), at=crash, profile="3")
    assert list((tmp_path / "crashed").rglob("*.xplane.pb"))


def evaluated(scores):
    """What makes an evaluation, of which `scores` says what it finds at a step."""
    return lambda experiment, stage, folder, mesh, data_dir, autoencoder: lambda params, step, progress: scores(step)


def evaluations(run):
    return [(r["step"], r["evaluation/x"]) for r in read_records(run / "base") if "evaluation/x" in r]


def test_a_run_is_evaluated_and_goes_on_where_it_was_stopped(fake_steps, train, tmp_path, no_pictures):
    """What cannot be scored is told and costs no run; an evaluation that a stop has cost is made up for."""
    fake_steps(set())
    settings = {**QUIET, "checkpoint_every": 4}

    def scores(step):
        if step == 4 and not stopped:
            stopped.append(step)
            raise RuntimeError("the power went")
        if step == 8:
            raise UserError("no room on the disk")
        return {"evaluation/x": step / 2, "evaluation/real/x": 5.0}

    stopped = []
    with pytest.raises(RuntimeError, match="the power went"):
        train(tmp_path / "run", experiment_of(steps=9, evaluation=Evaluation(every=2), **settings),
              evaluation=evaluated(scores))
    assert evaluations(tmp_path / "run") == [(2, 1.0)]
    text = train(tmp_path / "run", experiment_of(steps=9, evaluation=Evaluation(every=4, metrics=("x",)), **settings),
                 evaluation=evaluated(scores))  # how to evaluate may change
    assert "resuming at step 4" in text and evaluations(tmp_path / "run") == [(2, 1.0), (4, 2.0), (9, 4.5)]
    assert "step 8: no evaluation: no room on the disk" in text and "x 4.5 (real clips 5)" in text


def test_an_evaluation_that_nobody_makes_is_refused(train, tmp_path):
    with refused("Stage.training.evaluation.every", "training.evaluation.every=2", "Trainer.evaluation=None"):
        train(tmp_path / "run", experiment_of(evaluation=Evaluation(every=2)))


@pytest.mark.parametrize(("training", "message"), [
    ({"batch_size": 12},
     "training.batch_size=12 with accumulation=1 does not divide over 8 devices; permitted: multiples of 8"),
    ({"batch_size": 8, "accumulation": 2},
     "training.batch_size=8 with accumulation=2 does not divide over 8 devices; permitted: multiples of 16"),
])
def test_batches_that_do_not_divide_are_refused_before_anything_is_written(train, tmp_path, training, message):
    with pytest.raises(UserError) as error:
        train(tmp_path / "run", experiment_of(**training))
    assert str(error.value) == message
    assert sorted(os.listdir(tmp_path / "run")) == ["config.json", "run.json"]


def test_an_interrupt_is_a_request_and_a_second_one_stops_at_once():
    with loop.stop_requests() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
