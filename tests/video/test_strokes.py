"""Displacements as pictures, and strokes drawn by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.data.decoding import read_frames
from vdm_jax.video.strokes import Stroke, cut_evenly, decoded, encoded, mirrored, read_strokes, steps_at

DRAWN = {"width": 32, "height": 16, "frames": 5,
         "strokes": [{"points": [[4, 8], [12, 8], [12, 12]]}, {"points": [[30, 2], [26, 2]], "first": 1, "last": 3}]}


def test_displacements_survive_as_pictures_and_stillness_exactly():
    rng = np.random.default_rng(0)
    moved, mask = rng.uniform(-2, 2, (3, 16, 20, 2)).astype(np.float32), rng.random((3, 16, 20)) < 0.5
    picture = encoded(moved, mask, 0.125)
    found, there = decoded(picture, 0.125)
    np.testing.assert_array_equal(there, mask)
    np.testing.assert_allclose(found[mask], moved[mask], atol=1.01 / 127)
    assert (found[~mask] == 0).all() and (picture[~mask] == (128, 128, 0)).all()
    back, _ = decoded(mirrored(picture), 0.125)
    np.testing.assert_array_equal(back[..., 0], -found[..., ::-1, 0])
    assert encoded(np.full((16, 4, 2), 99.0), np.ones((16, 4), bool))[0, 0].tolist() == [255, 255, 255]


def test_a_path_is_cut_into_equal_steps():
    points = cut_evenly(np.array([[0.0, 0.0], [3.0, 0.0], [3.0, 3.0]]), 4)
    assert points.tolist() == [[0, 0], [1.5, 0], [3, 0], [3, 1.5], [3, 3]]
    assert cut_evenly(np.array([[2.0, 1.0], [2.0, 1.0]]), 2).tolist() == [[2, 1]] * 3  # a point that stays


def test_steps_are_drawn_where_they_begin():
    strokes = [Stroke(1, np.array([[4.0, 4.0], [6.0, 4.0], [6.0, 9.0]]))]
    for frame, wanted in ((0, None), (1, (2, 0)), (2, (0, 5)), (3, None)):
        moved, mask = steps_at(strokes, frame, 12, 12, 1.0)
        assert mask.sum() == (0 if wanted is None else 5)  # a disc of radius 1
        if wanted is not None:
            assert moved[4, 4 if frame == 1 else 6].tolist() == list(wanted)
    assert steps_at(strokes, 1, 12, 12, 0.0)[1].sum() == 1


def test_strokes_of_a_file_are_maps_of_any_size(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps(DRAWN))
    maps = read_frames(tmp_path / "s.json", 5, 32, 64, 8.0)
    assert maps.shape == (5, 32, 64, 3)
    moved, mask = decoded(maps)
    assert moved[0, 16, 8].tolist() == pytest.approx([4, 0], abs=0.51)  # cut at an eighth of the height
    assert mask[1, 4, 60] and not mask[0, 4, 60] and not mask[4].any()
    with refused("decoding.frames", "s.json", "5 frames", "at least 6"):
        read_frames(tmp_path / "s.json", 6, 32, 64, 8.0)


@pytest.mark.parametrize(("change", "named"), [
    ({"frames": 0}, "frames=0"), ({"height": "x"}, "height"), ({"strokes": 3}, "strokes=3"), ({"more": 1}, "more"),
    ({"strokes": [{"points": [[1, 2]]}]}, "strokes[0]"), ({"strokes": [{"points": [[1, 2], [3, None]]}]}, "strokes[0]"),
    ({"strokes": [{"points": [[1, 2], [3, 4]], "last": 5}]}, "to 5"), ({"strokes": [{}]}, "points"),
    ({"strokes": [{"points": [[1, 2], [33, 4]]}]}, "[33.0, 4.0] outside"), ({"width": 29}, "x in [0, 29]"),
])
def test_files_that_are_wrong_are_named(change, named, tmp_path):
    (tmp_path / "s.json").write_text(json.dumps(DRAWN | change))
    with refused("strokes", "s.json", named):
        read_strokes(tmp_path / "s.json")
    for text in ("{", "[" * 100_000):
        (tmp_path / "s.json").write_text(text)
        with refused("strokes", "s.json"):
            read_strokes(tmp_path / "s.json")
