"""What FVD measures: distortions that do what they say, tables from records, places for them."""

from __future__ import annotations

import numpy as np

from experiments.metrics import clips, report
from experiments.metrics.run import BESIDE, sample_counts
from tests.refusals import refused

REAL = np.random.default_rng(0).integers(0, 256, (3, 6, 16, 16, 3)).astype(np.uint8)


def test_distortions_do_what_they_say():
    found = {name: distort(REAL) for name, distort in clips.DISTORTIONS.items()}
    assert all(videos.shape == REAL.shape and videos.dtype == np.uint8 for videos in found.values())
    np.testing.assert_array_equal(found[clips.NOTHING], REAL)
    assert (found["first frame frozen"] == REAL[:, :1]).all()
    for video, real in zip(found["frames shuffled"], REAL, strict=True):
        assert (video != real).any() and sorted(map(bytes, video)) == sorted(map(bytes, real))
    for kind, levels in (("noise", clips.NOISE), ("blur", clips.BLUR)):
        changes = [np.abs(found[f"{kind} {level:g}"].astype(float) - REAL).mean() for level in levels]
        assert len(levels) > 2 and 0 < changes[0] and (np.diff(changes) > 0).all()


def test_films_that_are_missing_are_named(tmp_path):
    with refused("clips.RealClips.__init__", "bbb.mp4", "bikes.mp4"):
        clips.RealClips(tmp_path)


def test_fewer_clips_have_more_bias():
    found = sample_counts(np.random.default_rng(0).normal(size=(64, 8)))
    assert list(found) == ["8", "16", "32"]
    assert found["8"]["mean"] > found["16"]["mean"] > found["32"]["mean"] > 0


def test_tables_have_their_places():
    row = {"fvd": 20.0, "fvd_to_the_same_clips": 1.0, **{name: {"mean": 0.5, "margin": 0.1} for name in BESIDE}}
    broken = row | {"fvd": 25.0, "motion": {"mean": 0.0, "margin": 0.0}}
    record = {"protocol": {"distorted clips": 4, "reference clips": 8}, "rows": {clips.NOTHING: row, "frozen": broken}}
    text = report.distortions(record)
    assert "| frozen | 25 | 1 | 0 (0) | 0.5 (1) |" in text and f"| {clips.NOTHING} | 20 | - | 0.5 |" in text
    for path, names in ((report.README, ("distortions", "sample_count", "speed", "made")),
                        (report.DOCS, ("distortions", "sample_count", "speed"))):
        for name in names:
            assert f"<!-- {name}:begin -->\n" in path.read_text() and f"<!-- {name}:end -->" in path.read_text()
