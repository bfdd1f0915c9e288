import json

import pytest

from tests.commands.conftest import EVALUATED, TINY
from vdm_jax.commands.main import main
from vdm_jax.runs.checkpoints import Checkpoints
from vdm_jax.runs.directory import read_config
from vdm_jax.runs.records import read_records


def test_a_run_holds_config_checkpoints_metrics_and_sheets(trained):
    experiment = read_config(trained)
    assert [stage.name for stage in experiment.stages] == ["base", "spatial"]
    assert "red" in experiment.stages[0].network.text.words  # filled in from the data set
    for stage in ("base", "spatial"):
        assert Checkpoints(trained / stage / "checkpoints").latest() == 4
        records = read_records(trained / stage)
        assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4]
        assert any("validation_loss" in r for r in records)
        assert (trained / stage / "samples" / "step_0000004.png").stat().st_size > 0
        assert (trained / stage / "samples" / "step_0000004.mp4").stat().st_size > 0


def test_training_again_leaves_a_finished_run_alone(run, capfd):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert main(["train", TINY, "--run", str(run), *EVALUATED]) == 0
    assert "run directory: " in "".join(capfd.readouterr())
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_more_steps_go_on_from_the_last_checkpoint(run):
    assert main(["train", TINY, "--run", str(run), "--stage", "base", "--base.training.steps", "6"]) == 0
    assert [r["step"] for r in read_records(run / "base") if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert Checkpoints(run / "spatial" / "checkpoints").latest() == 4


def test_a_training_that_runs_already_is_refused_and_leaves_its_config_alone(run, fails, monkeypatch):
    monkeypatch.setattr("fcntl.lockf", lambda *arguments: (_ for _ in ()).throw(BlockingIOError(11, "held")))
    (run / "train.base.lock").write_text("process 7 on there since yesterday\n")
    before = (run / "config.json").read_bytes()
    line = fails("train", TINY, "--run", run, *EVALUATED, "--base.training.steps", "9")
    assert "is being trained by process 7 on there since yesterday; permitted: wait for it or stop it" in line
    assert (run / "config.json").read_bytes() == before


def test_overrides_are_typed_and_reach_the_run(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr("vdm_jax.training.loop.Trainer.train", lambda self: trained.append(self))
    arguments = ["train", TINY, "--stage", "base", "--base.training.steps", "1",
                 "--base.network.embedding-channels", "32", "--seed", "3", "--run", "here"]
    assert main(arguments) == 0
    stored = json.loads((tmp_path / "here" / "config.json").read_text())
    assert stored["seed"] == 3
    assert stored["stages"][0]["network"]["embedding_channels"] == 32
    (trainer,) = trained  # of one stage
    assert trainer.stage == trainer.experiment.stage("base") == read_config(tmp_path / "here").stage("base")
    assert trainer.stage.training.steps == 1 and trainer.run.samefile(tmp_path / "here")


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", TINY, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for part in ("--base.training.learning-rate", "peak, of the optimizer", "--mesh.fsdp", "Examples:", "resumes"):
        assert part in text


class TestErrors:
    def test_unknown_config(self, fails):
        line = fails("train", "captioned_digit")
        assert "config 'captioned_digit' is unknown (did you mean 'captioned_digits'?)" in line

    def test_missing_config_file(self, fails):
        assert "'absent.py' does not exist" in fails("train", "absent.py")

    def test_unknown_override(self, fails):
        line = fails("train", TINY, "--base.training.stepz", "3")
        assert "--base.training.stepz" in line and "--base.training.steps" in line

    def test_override_of_a_wrong_type(self, fails):
        line = fails("train", TINY, "--base.training.steps", "many")
        assert "--base.training.steps" in line and "many" in line

    def test_override_that_breaks_a_rule(self, fails):
        line = fails("train", TINY, "--base.video.height", "10")
        assert "height=10" in line and "permitted" in line

    def test_unknown_stage(self, fails):
        line = fails("train", TINY, "--stage", "bass")
        assert "stage 'bass' is unknown; permitted: base, spatial" in line

    def test_batch_that_does_not_divide_over_devices(self, fails):
        line = fails("train", TINY, "--base.training.batch-size", "6")
        assert "batch_size=6" in line and "multiples of 8" in line

    def test_batch_larger_than_the_data_set(self, fails, tmp_path):
        line = fails("train", TINY, "--base.training.batch-size", "64")
        assert "batch_size=64" in line and "1 to 16" in line

    def test_run_directory_of_another_config(self, fails, run):
        before = (run / "config.json").read_bytes()
        line = fails("train", TINY, "--run", run, "--base.training.learning-rate", "0.1")
        assert "base.training.learning_rate" in line and "0.1" in line and "--run" in line
        assert (run / "config.json").read_bytes() == before

    def test_directory_that_is_no_run(self, fails, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.tex").write_text("x")
        assert "not a run" in fails("train", TINY, "--run", "mine")

    def test_truncated_checkpoint(self, fails, run):
        files = [p for p in (run / "base" / "checkpoints" / "4").rglob("*") if p.is_file() and p.stat().st_size > 200]
        largest = max(files, key=lambda p: p.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:100])
        line = fails("train", TINY, "--run", run, "--base.training.steps", "6")
        assert "checkpoints" in line and largest.name in line

    def test_nothing_is_written_when_the_command_is_wrong(self, fails, tmp_path):
        fails("train", TINY, "--run", "new", "--stage", "bass")
        assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_refused_before_its_first_step(tmp_path, fails, monkeypatch):
    from vdm_jax.planning import before

    command = ("train", TINY, "--stage", "base", "--run", "here")
    monkeypatch.setattr(before, "capacity_of", lambda device: 1000)
    assert "--no-plan" in fails(*command) and not (tmp_path / "here").exists()
    seen = []
    monkeypatch.setattr("vdm_jax.training.loop.Trainer.train", lambda self: seen.append(self.compile_step))
    assert main([*command, "--no-plan"]) == 0 and seen == [None]


def test_the_first_step_is_compiled_by_what_may_refuse_it(tmp_path, fails, monkeypatch):
    from vdm_jax.planning import before

    monkeypatch.setattr(before, "check_before", lambda experiment, stage: None)
    monkeypatch.setattr(before, "capacity_of", lambda device: 1000)
    line = fails("train", TINY, "--stage", "base", "--run", "here")
    assert "by the compiler's account" in line and read_records(tmp_path / "here" / "base") == []
