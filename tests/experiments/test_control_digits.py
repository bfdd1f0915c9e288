"""Whether control controls: what known videos measure, the whole experiment at a tiny size, what the page says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.control_digits import measures, report, run
from tests.experiments.digit_pages import check_page, written_page
from tests.refusals import refused
from vdm_jax.digits.clips import DigitClips, generate_clip
from vdm_jax.digits.controls import middles

pytest.importorskip("sklearn")
pytest.importorskip("cv2")
CONFIG = "tests/experiments/tiny_one_digit.py"


@pytest.fixture(scope="module")
def clips():
    return [generate_clip(DigitClips(objects=(1, 1)), "test", i) for i in range(6)]


@pytest.fixture(scope="module")
def real(clips):
    return measures.enlarged(measures.as_made(clips, 8, 16), 64)


def squares(clips, shift=0):
    """Solid squares of 9 pixels around the middles of the digits' paths, every second frame."""
    videos, grid = np.zeros((len(clips), 8, 64, 64, 3), np.uint8), np.arange(64)
    for i, clip in enumerate(clips):
        for j, (y, x) in enumerate(np.rint(middles(clip)[0][::2] + (0, shift))):
            videos[i, j][(abs(grid[:, None] - y) <= 4) & (abs(grid - x) <= 4)] = 255
    return videos


def test_a_path_is_measured_in_pixels(clips, real):
    assert measures.trajectory_errors(squares(clips), clips).max() < 0.71  # of rounding
    shifted = measures.trajectory_errors(squares(clips, 6), clips)
    np.testing.assert_allclose(shifted, 6, atol=0.71)
    of_real, of_others = (measures.trajectory_errors(videos, clips) for videos in (real, np.roll(real, 1, axis=0)))
    assert of_real.max() < 3.5 and of_real.mean() < 2 and of_others.mean() > 8
    assert np.isnan(measures.trajectory_errors(np.zeros_like(real), clips)).all()
    some = squares(clips)
    some[:, 1:] = 0
    np.testing.assert_allclose(measures.trajectory_errors(some, clips), [
        np.linalg.norm(np.rint(middles(clip)[0][0]) - middles(clip)[0][0]) for clip in clips], atol=1e-6)


def test_edges_agree_within_the_tolerance(clips, real):
    np.testing.assert_allclose(measures.edge_f1(real, real), 1)
    there = squares(clips[:2])
    np.testing.assert_allclose(measures.edge_f1(np.roll(there, 2, axis=3), there), 1)
    far = measures.edge_f1(np.roll(there, 20, axis=3), there)
    assert far.max() == 0 and 0.1 < measures.edge_f1(np.roll(there, 4, axis=3), there).min() < 0.8
    assert measures.edge_f1(np.zeros_like(there), there).tolist() == [0, 0]
    assert measures.edge_f1(np.roll(real, 1, axis=0), real).mean() < 0.6


def test_intervals():
    found = measures.with_interval(np.array([1.0, 2.0, 3.0, np.nan]))
    assert found == {"mean": 2.0, "half": pytest.approx(4.30265 / 3**0.5, rel=1e-4), "clips": 3}
    assert measures.with_interval(np.array([np.nan]))["clips"] == 0


def test_the_whole_experiment(tmp_path, monkeypatch):
    options = run.Run(kinds=("edges", "track", "reference"), config=CONFIG, steps=2, clips=4, sampling_steps=2,
                      work=tmp_path / "work", out=tmp_path / "cpu.json", data_dir=tmp_path / "data", quiet=True)
    rows = run.measure(options)["rows"]
    assert set(rows) == {
        run.REAL, run.NONE, run.SILENT, *(f"edges x {a:g} + track x {b:g}" for a, b in run.WEIGHTS),
        *(f"{kind}{what}" for kind in options.kinds for what in ("", ", of another clip", ": training")),
        *(f"{kind}: weight 0 is no control" for kind in ("edges", "track"))}
    assert rows[run.REAL]["edge_f1"]["mean"] == 1 and rows[run.REAL]["edge_f1"]["clips"] == 4
    assert all(rows[f"{kind}: weight 0 is no control"]["equal"] for kind in ("edges", "track"))

    before = options.out.read_text()
    monkeypatch.setattr(run.models, "train", None)  # finished rows need no training, nor a generator
    monkeypatch.setattr(run.Bench, "sampled", None)
    assert run.measure(run.dataclasses.replace(options, base_run=options.work / "base"))["rows"] == rows
    assert json.loads(options.out.read_text()) == json.loads(before)

    resumed = run.dataclasses.replace(options, base_run=options.work / "base")
    with refused("directory.check_run", "seed is 0 there and 1 now"):
        run.measure(run.dataclasses.replace(options, seed=1, out=tmp_path / "other.json"))
    record = json.loads(before)
    assert len(record["base"].pop("weights")) == 16
    options.out.write_text(json.dumps(record))  # of a time when it did not say
    assert run.measure(resumed)["base"] == json.loads(before)["base"] == json.loads(options.out.read_text())["base"]
    options.out.write_text(before.replace(json.loads(before)["base"]["weights"], "0" * 16))
    with refused("digit_rows.Rows.take", "another base", "weights is '0000", "--fresh"):
        run.measure(resumed)
    options.out.write_text(before)
    other = tmp_path / "other.py"
    other.write_text("import dataclasses\nfrom tests.experiments import tiny_one_digit as tiny\n\n\n"
                     "def get_config():\n    experiment = tiny.get_config()\n"
                     "    data = dataclasses.replace(experiment.data, seed=5)\n"
                     "    return dataclasses.replace(experiment, data=data)\n")
    with refused("run.Bench.take_base", "another data", "seed is 0 there and 5 now", "--base-run"):
        run.measure(run.dataclasses.replace(resumed, config=str(other), out=tmp_path / "third.json"))

    text = written_page(report, options.out, "controls", "control, generated, real")
    for name in (run.REAL, "edges, of another clip", "edges x 1 + track x 0.5"):
        assert f"\n| {name} | " in text
    assert "last bit: edges, track." in text and "goal <= 2" in text and "Minutes of training, of the last" in text


def test_the_page_is_of_its_record():
    check_page(report, run.FOLDER, "controls")
