"""The curve of one-shot tuning: what is trained, how often it is measured, and what the page says."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments.editing import run, tuning, tuning_report
from tests.experiments.test_editing import generator
from tests.refusals import refused
from vdm_jax.data.opening import open_source
from vdm_jax.digits.clips import DigitClips
from vdm_jax.parallel.rules import path_name
from vdm_jax.runs.directory import export, load, load_stage

EDIT = {"whole": 1.0, "trajectory_error": 2.0, "background_change": 0.01}


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    home = tmp_path_factory.mktemp("tuning")
    export(generator(), home / "model")
    return tuning.Run(model=str(home / "model"), clips=1, steps=(0, 2, 4), work=home / "work", out=home / "rows.json")


def test_a_clip_is_a_folder_of_one_video_pixel_for_pixel(tmp_path):
    clip, = run.clips_of(DigitClips(size=32, frames=4), 1)
    one, = open_source(tuning.one_video(clip, tmp_path / "video", 8.0), "train")
    np.testing.assert_array_equal(one["video"], clip.video)
    assert one["caption"] == clip.caption


def test_a_clip_is_edited_at_each_step_of_a_training_of_what_is_named(options, monkeypatch):
    monkeypatch.setattr(tuning, "shutil", SimpleNamespace(rmtree=lambda folder: None))
    tuning.main(options)
    rows = run.read(options.out)
    assert [(row["clip"], row["step"]) for row in rows] == [(0, 0), (0, 2), (0, 4)]
    assert all(set(row["edits"]) == {"colour", "digit", "both"} for row in rows)
    assert len({row["reconstruction_psnr"] for row in rows}) == 3  # it trains
    model, folder = load(options.model), options.work / "clip_0" / "run"
    stage, = model.stages()
    after = load_stage(folder, stage, step=4)
    changed = {path_name(path) for (path, new), old in zip(
        jax.tree_util.tree_leaves_with_path(after), jax.tree.leaves(model.params["base"]), strict=True)
        if (np.asarray(new) != np.asarray(old)).any()}
    trained = {name for name in changed if "/cross_attention_" in name and "/query/" in name}
    assert trained and changed - trained and all("/qkv/" in name for name in changed - trained)
    options.out.write_text(json.dumps(rows[:1]))
    tuning.main(options)  # which goes on with what the training left
    again = run.read(options.out)
    assert [row["reconstruction_psnr"] for row in again] == [row["reconstruction_psnr"] for row in rows]


def test_what_cannot_be_tuned(options):
    with refused("tuning.tuned", "tuned='large'", "permitted: base"):
        tuning.main(dataclasses.replace(options, out=options.out.with_name("none.json"), tuned=("large",)))
    with refused("tuning.steps", "steps=(0,)", "some above 0"):
        tuning.main(dataclasses.replace(options, steps=(0,)))


def test_the_table_has_means_and_changes_clip_by_clip(tmp_path):
    def row(clip, step, psnr, error):
        return {"clip": clip, "step": step, "reconstruction_psnr": psnr,
                "edits": {kind: EDIT | {"trajectory_error": error} for kind in tuning.KINDS}}

    rows = [row(0, 0, 20, 3), row(1, 0, 30, 5), row(0, 9, 24, 2), row(1, 9, 34, 4)]
    text = tuning_report.table(rows)
    half = 12.706  # Student's t of one degree of freedom, times the standard error of 3 and 5, which is 1
    assert f"| colour | 0 | 1.00 ± 0.00 | 4.00 ± {half:.2f} | 1.00 ± 0.00 |" in text
    assert "| 9 | 29.0 ± 63.5 | +4.00 ± 0.00 | -1.00 ± 0.00 |" in text and "2 clips" in text
    tuning_report.draw(rows, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_the_page_has_the_record_of_the_tuning():
    text = (run.FOLDER / "README.md").read_text()
    assert tuning_report.insert(text, "tuning", tuning_report.table(run.read(tuning_report.RECORD))) == text
