"""Whether sound controls: what known peaks measure, the whole experiment at a tiny size, what the page says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.sound_digits import report, run
from tests.experiments.digit_pages import check_page, written_page
from tests.refusals import refused
from vdm_jax.runs.directory import read_config

pytest.importorskip("sklearn")
pytest.importorskip("cv2")
pytest.importorskip("librosa")
CONFIG = "tests/experiments/tiny_one_digit.py"


def test_the_share_of_beats_that_are_followed():
    assert run.followed(np.array([0.5, 1.0]), np.array([0.55]), 8) == 0.5
    assert run.followed(np.array([0.5, 1.0]), np.array([0.55, 1.2, 1.05]), 8) == 1
    assert run.followed(np.array([0.5]), np.array([]), 8) == 0
    assert np.isnan(run.followed(np.array([]), np.array([0.5]), 8))


def test_the_whole_experiment(tmp_path, monkeypatch):
    options = run.Run(config=CONFIG, steps=2, batch=8, clips=4, sampling_steps=2, weights=(2.0,),
                      work=tmp_path / "work", out=tmp_path / "cpu.json", data_dir=tmp_path / "data", quiet=True)
    rows = run.measure(options)["rows"]
    assert set(rows) == {run.REAL, run.FLOOR, run.OWN, run.OTHER, run.NONE, "sound x 2", "training"}
    real, floor = rows[run.REAL], rows[run.FLOOR]
    assert real["av_align"]["mean"] == real["followed"]["mean"] == 1 and real["av_align"]["clips"] == 4
    assert floor["av_align"]["mean"] < 0.6 and floor["jumps"] == real["jumps"]
    trained = read_config(tmp_path / "work" / "sound").stages[0]
    assert trained.training.dropout[0].names == ("sound",) and trained.training.init_from.run.endswith("base")

    before = options.out.read_text()
    monkeypatch.setattr(run.control, "train", None)  # finished rows need no training, nor a generator
    monkeypatch.setattr(run.control, "generator_of", lambda *_: None)
    resumed = run.dataclasses.replace(options, base_run=options.work / "base")
    assert run.measure(resumed)["rows"] == rows
    assert json.loads(options.out.read_text()) == json.loads(before)
    options.out.write_text(before.replace(json.loads(before)["model"]["weights"], "0" * 16))
    with refused("digit_rows.Rows.take", "another model", "weights is '0000", "--fresh"):
        run.measure(resumed)
    options.out.write_text(before)
    with refused("record.open_record", "another protocol", "steps is 2 there and 3 now"):
        run.measure(run.dataclasses.replace(options, steps=3))

    text = written_page(report, options.out, "sound", "real and generated clips, beats marked")
    for name in (run.REAL, run.FLOOR, run.NONE, run.OTHER, run.OWN, "sound x 2"):
        assert f"\n| {name} | " in text
    assert "goal >= 0.6" in text and "intervals that meet" in text and "Minutes of training" in text


def test_marks_are_of_the_sound_that_is_heard():
    from vdm_jax.data.digit_beats import DigitBeats
    from vdm_jax.digits.beats import make_beat_clip

    clips = [make_beat_clip(DigitBeats(), "test", i) for i in range(report.SHOWN + 1)]
    marks = report.heard({"rows": dict.fromkeys((run.REAL, run.FLOOR, run.NONE, run.OTHER, run.OWN))}, clips)
    own = [clip.beats.tolist() for clip in clips]
    assert [beats.tolist() for beats in marks[run.OTHER]] == own[1:] and run.FLOOR not in marks
    assert [beats.tolist() for beats in marks[run.REAL]] == [beats.tolist() for beats in marks[run.OWN]] == own[:-1]
    assert not any(len(beats) for beats in marks[run.NONE])


def test_the_page_is_of_its_record():
    check_page(report, run.FOLDER, "sound")
