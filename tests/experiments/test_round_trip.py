"""Round trips of digits: which rows are measured, what a row is, and what the page says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from experiments.editing import round_trip, run
from tests.experiments.test_editing import generator
from tests.refusals import refused
from vdm_jax.generation.editing.edit import edit
from vdm_jax.generation.editing.sdedit import SDEdit


def test_round_trips_are_measured_once_for_the_same_weights(tmp_path, monkeypatch):
    model, page, alone = generator(), tmp_path / "page.md", "last step alone"
    monkeypatch.setattr(round_trip, "load", lambda name: model)
    page.write_text("<!-- round_trip:begin -->\n<!-- round_trip:end -->\n")
    options = round_trip.Run(model="tiny", clips=2, steps=(2,), ways=(round_trip.GOAL_WAY, alone),
                             out=tmp_path / "rows.json")
    round_trip.main(options, page)
    rows = run.read(options.out)
    assert [(row["steps"], row["way"], row["clips"]) for row in rows] == [(2, alone, 2), (2, round_trip.GOAL_WAY, 2)]
    for row in rows:  # of one stage, which is conditioned on nothing
        assert row["psnr"]["base"] == pytest.approx(row["psnr"][round_trip.TOGETHER], abs=0.1)
    clips = run.clips_of(model.experiment.data, 2)
    videos, captions = np.stack([clip.video for clip in clips]), [clip.caption for clip in clips]
    made = edit(model, videos, captions, method=SDEdit(strength=0.5), steps=2, guidance=0.0).videos
    mse = ((made.astype(float) - videos) ** 2).mean((2, 3, 4))  # of each frame
    assert rows[0]["psnr"]["base"] == pytest.approx((10 * np.log10(255**2 / mse)).mean(1), abs=0.1)
    round_trip.main(options, page)  # which goes on with nothing
    assert run.read(options.out) == rows and f"| 2 | {alone} |" in page.read_text()
    with refused("round_trip.ways", "ways='magic'", "last step alone, inverted, no refinements"):
        round_trip.main(dataclasses.replace(options, ways=("magic",)), page)
    monkeypatch.setattr(round_trip, "request_key", lambda *given: "other weights")
    monkeypatch.setattr(round_trip, "measured", lambda *given: {"base": [1.0, 2.0]})
    round_trip.main(options, page)
    assert [row["psnr"] for row in run.read(options.out)] == [{"base": [1.0, 2.0]}] * 2


def test_stages_that_miss_the_goal_are_named():
    row = {"steps": 50, "way": round_trip.GOAL_WAY, "clips": 2, "psnr": {"base": [34.0, 36.0], "large": [34.0, 35.8]}}
    said = "The goal, 35 dB at 50 steps, is reached by base (35.0 dB); missed by large (34.9 dB)."
    assert round_trip.verdict(row) == said
    assert said in round_trip.table([row]) and said not in round_trip.table([row | {"steps": 32}])
    assert round_trip.verdict(row | {"psnr": {"base": [40.0]}}).endswith("is reached by base (40.0 dB).")


def test_the_page_has_the_record_of_round_trips():
    rows, text = run.read(round_trip.Run().out), (run.FOLDER / "README.md").read_text()
    assert round_trip.insert(text, "round_trip", round_trip.table(rows)) == text
    assert [(row["steps"], row["way"], row["clips"]) for row in rows] == [
        (steps, way, 8) for steps in (32, 50) for way in round_trip.WAYS]
