"""The table of edits: which captions are asked for, what a perfect edit scores, and what the page says."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.editing import propagation, report, run
from tests.experiments import tiny_base
from tests.generation.conftest import random_params
from tests.refusals import refused
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.digits.clips import COLOURS, DigitClips, caption_words, parse_caption
from vdm_jax.digits.scorer import DigitScorer
from vdm_jax.generation.generator import Generator
from vdm_jax.stages.stage import VideoSpec

SPEC = DigitClips()


@pytest.fixture(scope="module")
def clips():
    return run.clips_of(SPEC, 3)


def test_captions_differ_in_what_is_edited(clips):
    for kind, same in (("colour", ("digit", "motion")), ("digit", ("colour", "motion")), ("both", ("motion",))):
        captions = run.edited_captions(clips, kind, 0)
        assert captions == run.edited_captions(clips, kind, 0)
        for caption, clip in zip(captions, clips, strict=True):
            (wanted,), (item,) = parse_caption(caption), clip.objects
            assert not wanted.held_out
            for name in ("colour", "digit", "motion"):
                assert (getattr(wanted, name) == getattr(item, name)) == (name in same), (kind, name)


def test_a_recoloured_clip_is_a_perfect_edit(clips):
    source, captions = np.stack([clip.video for clip in clips]), run.edited_captions(clips, "colour", 0)
    made = []
    for clip, caption in zip(clips, captions, strict=True):
        old, new = (np.array(COLOURS[item.colour]) for item in (clip.objects[0], parse_caption(caption)[0]))
        made.append((clip.video @ old / (old @ old))[..., None].clip(0, 1) * new)
    scorer, made = DigitScorer(SPEC), np.round(made).astype(np.uint8)
    perfect, none = (run.measured(scorer, videos, source, captions) for videos in (made, source))
    assert perfect["whole"] == 1 and none["whole"] == 0
    assert perfect["trajectory_error"] < 0.6 and none["trajectory_error"] == 0
    assert perfect["background_change"] < 0.002 and perfect["lost_frames"] == 0
    moved = run.measured(scorer, np.roll(made, 5, axis=3), source, captions)
    assert 4 < moved["trajectory_error"] and moved["colour"] == 1
    row = {"edit": "colour", "method": "none", "clips": 3, "cpu_seconds_per_clip": 1.0, **none}
    assert "| colour | none | 3 | 0.00 | 0.00 |" in report.table([row])
    lines = report.table([row, row | {run.PEAK: None}, row | {run.PEAK: 812}]).splitlines()
    assert [line.split(" | ")[-1] for line in lines[2:]] == ["- |", "- |", "812 |"]  # a dash where it was not measured


def generator():
    """A tiny stage of random weights that makes clips of the size of its data."""
    experiment = tiny_base.get_config()
    network = experiment.stages[0].network
    network = dataclasses.replace(network, text=dataclasses.replace(network.text, words=caption_words()))
    video = VideoSpec(frames=4, height=32, width=32)
    stage = dataclasses.replace(experiment.stages[0], network=network, video=video)
    data = CaptionedDigits(size=32, frames=4, objects=(1, 1), train_clips=16, validation_clips=8, test_clips=8)
    experiment = dataclasses.replace(experiment, stages=(stage,), data=data)
    return Generator(experiment, {stage.name: random_params(stage, 0)}, jax.devices()[:1])


def test_every_edit_is_measured_once_by_methods_that_read_words(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "load", lambda name: generator())
    names = ("prompt_to_prompt", "fatezero", "fatezero everywhere")
    methods = (run.NO_EDIT, *(f"{name}, no guidance" for name in names))
    options = run.Run(model="tiny", clips=2, edits=("both",), methods=methods, out=tmp_path / "digits.json")
    run.main(options)
    rows = run.read(options.out)
    assert [(row["edit"], row["method"], row["clips"]) for row in rows] == [("both", name, 2) for name in methods]
    assert all(0 <= row["whole"] <= 1 and row["cpu_seconds_per_clip"] > 0 for row in rows)
    assert rows[0]["trajectory_error"] == 0 < min(row["trajectory_error"] for row in rows[1:])
    peaks = [row[run.PEAK] for row in rows]
    assert all(peak is None or 100 < peak < 100_000 for peak in peaks)
    run.main(options)  # which goes on with nothing
    assert run.read(options.out) == rows
    old = [{name: value for name, value in rows[0].items() if name != run.PEAK}, *rows[1:]]
    options.out.write_text(json.dumps(old))
    monkeypatch.setattr(run, "forget_peak", lambda: False)
    run.main(options)  # which measures the row without a peak again, in its place
    again = run.read(options.out)
    assert again[1:] == rows[1:] and again[0][run.PEAK] is None and again[0]["method"] == run.NO_EDIT
    with refused("run.methods", "methods='magic'", "no edit, generated anew, ddim, no guidance"):
        run.main(dataclasses.replace(options, methods=("magic",)))


@pytest.mark.parametrize("name", report.TABLES)
def test_the_page_is_of_its_record(name):
    text, rows = (run.FOLDER / "README.md").read_text(), run.read(run.FOLDER / "results" / f"{name}.json")
    assert rows and report.insert(text, name, report.table(rows)) == text


def test_the_page_has_the_record_of_the_propagation():
    text, rows = (run.FOLDER / "README.md").read_text(), json.loads(propagation.RECORD.read_text())
    assert propagation.insert(text, "propagation", propagation.table(rows)) == text
    for row in rows:
        values = list(row["psnr"].values())
        assert list(row["psnr"]) == list(propagation.METHODS) and values == sorted(values)


def test_a_still_video_is_found_by_every_method_of_propagation():
    video = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 8, 10, 3)).astype(np.uint8).repeat(
        8, 1).repeat(8, 2), 11, axis=0)
    truth = propagation.edited(video)
    assert set(np.unique(truth)) <= set(range(16, 256, 32))
    for name, frames in propagation.others(video).items():
        assert np.abs(frames.astype(int) - truth[1:-1]).max() <= 1, name
