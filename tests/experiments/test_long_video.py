"""Gaussian long videos: the closed form against samples of the plan, and what is exact for a process without memory."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.long_video import compare as comparison
from experiments.long_video.compare import compare, table
from experiments.long_video.gaussian import covariance, joint, lasting, memoryless
from experiments.long_video.measures import ink, script_followed, seam_ratio
from tests.generation.conftest import base_stage
from vdm_jax.conditions.frame_masks import FrameMask, NoMask
from vdm_jax.data.digit_stories import DigitStories
from vdm_jax.digits.stories import StorySpec, make_story
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.long_video.plan import Autoregressive, NuwaXL
from vdm_jax.stages.options import Training
from vdm_jax.stages.stage import Experiment, VideoSpec

METHODS = [Autoregressive(overlap=1), Autoregressive(overlap=3), NuwaXL()]


@pytest.mark.parametrize("method", METHODS)
def test_plans_are_exact_for_a_process_without_memory(method):
    """One frame says all of the past, and two all of what is outside them."""
    exact = covariance(memoryless, 28)
    made, divergence = joint(method, exact, size=4)
    np.testing.assert_allclose(made, exact, atol=1e-10)
    assert abs(divergence) < 1e-8


@pytest.mark.parametrize("method", METHODS)
def test_the_divergence_is_that_of_the_covariances(method):
    exact = covariance(lasting, 28)
    made, divergence = joint(method, exact, size=4)
    of_both = 0.5 * (np.trace(np.linalg.solve(made, exact)) - 28 + np.linalg.slogdet(made)[1]
                     - np.linalg.slogdet(exact)[1])
    np.testing.assert_allclose(divergence, of_both, rtol=1e-8)
    assert divergence > 0.05


def test_what_a_hierarchy_keeps_and_what_extension_forgets():
    exact = covariance(lasting, 226)
    hierarchy, extension = (joint(method, exact, size=16)[0] for method in (NuwaXL(), Autoregressive(overlap=1)))
    np.testing.assert_allclose(hierarchy[0, ::15], exact[0, ::15], atol=1e-10)  # key frames are exact
    assert exact[0, -1] > 0.4 and extension[0, -1] < 0.1


def test_measures_of_real_stories_and_of_wrong_ones():
    pytest.importorskip("sklearn")
    story = make_story(StorySpec(length=96, act=32, size=32), "test", 2)
    video, captions = story.draw(range(96)), story.captions(range(96))
    np.testing.assert_array_equal(script_followed(video, captions, 16), 1)
    late = story.captions([max(frame - 8, 0) for frame in range(96)])  # the script 8 frames late
    np.testing.assert_array_equal(script_followed(video, late, 16), [1, 1, 0.5, 1, 0.5, 1])
    still = video[np.repeat(np.arange(6), 16)]  # nothing changes but at seams
    assert seam_ratio(video, [15, 47, 79]) < 1.5 and seam_ratio(still, range(15, 95, 16)) > 100
    other = make_story(StorySpec(length=96, act=32, size=32), "test", 3).draw(range(96))
    mixed = np.where((np.arange(96) % 2)[:, None, None, None], video, other)
    assert ink(video, 16).max() < 0.01 < 0.05 < ink(mixed, 16).min()


def test_the_comparison_scores_every_plan_by_block():
    """A generator that shows each story for one clip and then holds its last frame."""
    pytest.importorskip("sklearn")
    spec, seen = StorySpec(length=64, act=8, size=16), []

    def generate(method, scripts, frames, seed):
        seen.append((method.name, frames, seed, [script.prompts[-1][0] for script in scripts]))
        stories = [make_story(spec, "test", index) for index in range(len(scripts))]
        return np.stack([story.draw([min(n, 7) for n in range(frames)]) for story in stories])

    rows = compare(generate, spec, 8, [8, 50], count=2, seeds=(0, 1))
    assert len(rows) == 2 * (1 + 4 * 2) and {name for name, *_ in seen} == {"autoregressive", "nuwa_xl", "windows"}
    assert all(last == [0 if frames == 8 else 48] * 2 for _, frames, _, last in seen)
    real, held = (next(row for row in rows if row["method"] == name and row["frames"] == 50)
                  for name in ("real stories", "NUWA-XL"))
    assert real["script followed, by block"] == [1] * 6 and held["segments"] == 8
    assert held["script followed, by block"][0] == 1 and min(held["script followed, by block"]) < 1
    text = table(rows)
    assert "| NUWA-XL | 50 | 1.00 ± 0.00 |" in text and text.count("\n") == 1 + 2 * 5


def test_a_run_is_compared_with_what_its_training_decides(monkeypatch, tmp_path):
    """The record has the machine, and the segments of the overlap with which the run was extended."""
    pytest.importorskip("sklearn")
    base = base_stage()
    stage = dataclasses.replace(
        base, video=VideoSpec(frames=4, height=16, width=16),
        network=dataclasses.replace(base.network, conditioning_frames=True),
        training=Training(masking=(NoMask(), FrameMask(first=1), FrameMask(first=1, last=1))))
    data = DigitStories(length=16, act=4, size=16, frames=4, strides=(1, 3))
    run = Generator(Experiment(name="one", stages=(stage,), data=data), {})
    monkeypatch.setattr(run, "long", lambda scripts, frames, **options: SimpleNamespace(
        videos=np.zeros((len(scripts), frames, 16, 16, 3), np.uint8)), raising=False)
    monkeypatch.setattr("vdm_jax.load", lambda path: run)
    for name, value in (("HERE", tmp_path), ("RECORD", tmp_path / "results" / "compare.json"), ("DEPTHS", (2,))):
        monkeypatch.setattr(comparison, name, value)
    (tmp_path / "README.md").write_text("<!-- compare:begin -->\n<!-- compare:end -->\n")
    assert comparison.main(["some/run"]) == 0
    record = json.loads((tmp_path / "results" / "compare.json").read_text())
    assert record["machine"]["platform"] == "cpu" and "| windows | 10 |" in (tmp_path / "README.md").read_text()
    assert {row["segments"] for row in record["rows"] if row["method"] == "autoregressive"} == {3}  # of 4, 4 and 4
