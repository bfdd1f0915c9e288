"""Control maps of digits: what each kind says of a clip, and what it does not say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vdm_jax.digits.clips import DigitClips, generate_clip
from vdm_jax.digits.controls import HEIGHT, RADIUS, draw_control, middles
from vdm_jax.digits.drawing import COLOURS, paint
from vdm_jax.digits.scorer import DigitScorer
from vdm_jax.video.strokes import decoded

pytest.importorskip("sklearn")
ONE, TWO = DigitClips(objects=(1, 1)), DigitClips(objects=(2, 2))


@pytest.fixture(scope="module")
def clips():
    return [generate_clip(ONE, "test", index) for index in range(12)]


def middle_of_light(frame):
    """Mean place (y, x), weighted by how light a pixel is."""
    light = frame.astype(float).max(-1)
    return np.array([(light.sum(1 - axis) * np.arange(len(light))).sum() / light.sum() for axis in (0, 1)])


@pytest.mark.parametrize("spec", [ONE, TWO])
def test_what_is_known_of_a_clip_draws_it_again(spec):
    for index in range(4):
        clip = generate_clip(spec, "test", index)
        again = np.zeros_like(clip.video)
        for item, stamp, track in zip(clip.objects, clip.stamps, clip.tracks, strict=True):
            paint(again, stamp, track, COLOURS[item.colour])
        np.testing.assert_array_equal(again, clip.video)


def test_a_track_is_where_the_square_is_and_nothing_else(clips):
    for clip in clips:
        found = draw_control(clip, "track")
        for frame, middle in zip(found, middles(clip)[0], strict=True):
            np.testing.assert_allclose(middle_of_light(frame), middle, atol=0.02)
        assert not clip.video[found.max(-1) == 0].any() and found.sum() / 255 / 3 == pytest.approx(16 * 32**2, rel=0.01)
        other = dataclasses.replace(clip, stamps=clips[0].stamps, video=np.zeros_like(clip.video))
        np.testing.assert_array_equal(draw_control(other, "track"), found)


def test_a_stroke_is_the_step_to_the_next_frame(clips):
    moving = [clip for clip in clips if clip.objects[0].motion != "still"]
    for clip in moving[:4]:
        path = middles(clip)[0]
        displacements, mask = decoded(draw_control(clip, "strokes"))
        assert not mask[-1].any()
        for t, (here, step) in enumerate(zip(path, np.diff(path, axis=0), strict=False)):
            np.testing.assert_allclose(displacements[t][mask[t]][:, ::-1].mean(0), step, atol=0.05)
            places = np.argwhere(mask[t])
            assert np.linalg.norm(places - here, axis=1).max() <= RADIUS * 64
            assert 0.8 * np.pi * 4**2 < len(places) < 1.2 * np.pi * 4**2


def test_edges_lie_where_the_digit_ends(clips):
    """Where there is an edge something changes within two pixels, and the outline of a digit has one as near."""
    for clip in clips:
        found = draw_control(clip, "edges")
        assert set(np.unique(found)) == {0, 255}
        for frame, edge in zip(clip.video[::5], found[::5, ..., 0] > 0, strict=True):
            light = np.pad(frame.max(-1).astype(int), 2, mode="edge")
            near = np.stack([light[y : y + 64, x : x + 64] for y in range(5) for x in range(5)])
            assert (np.ptp(near, axis=0)[edge] > 60).mean() > 0.85
            solid = np.pad(frame.max(-1) > 128, 1)
            inner = solid[:-2, 1:-1] & solid[2:, 1:-1] & solid[1:-1, :-2] & solid[1:-1, 2:]
            outline = np.argwhere(solid[1:-1, 1:-1] & ~inner)
            distances = np.linalg.norm(outline[:, None] - np.argwhere(edge), axis=-1).min(1)
            assert (distances <= 2).mean() > 0.95


def test_a_height_grows_away_from_the_background(clips):
    for clip in clips[:4]:
        stamp, found = clip.stamps[0], draw_control(dataclasses.replace(clip, tracks=(np.zeros((16, 2)),)), "height")
        side = len(stamp)
        np.testing.assert_array_equal(found, np.repeat(found[:1], 16, axis=0))
        outside = np.argwhere(np.pad(stamp, 1) <= 0.5) - 1
        for y, x in np.argwhere(stamp > 0.5)[::7]:
            distance = np.linalg.norm(outside - (y, x), axis=1).min()
            assert found[0, y, x, 0] == pytest.approx(255 * min(distance / (HEIGHT * 64), 1), abs=1)
        assert not found[0, :side, :side][stamp <= 0.5].any() and found.max() > 100


def test_a_reference_shows_the_handwriting_alone(clips):
    scorer = DigitScorer(ONE)
    for clip in clips:
        found = draw_control(clip, "reference")
        np.testing.assert_array_equal(found, np.repeat(found[:1], 16, axis=0))
        elsewhere = dataclasses.replace(clip, tracks=clips[0].tracks, objects=clips[0].objects, video=clips[0].video)
        np.testing.assert_array_equal(draw_control(elsewhere, "reference"), found)
    seen, itself = (scorer.see(np.stack(videos)) for videos in (
        [draw_control(clip, "reference") for clip in clips], [clip.video for clip in clips]))
    assert sum(one.digit == other.digit for (one,), (other,) in zip(seen, itself, strict=True)) >= 11
    assert {(item.colour, item.motion) for (item,) in seen} == {("white", "still")}


def test_two_digits_have_two_squares_and_two_pictures():
    clip = generate_clip(TWO, "test", 0)
    assert len(middles(clip)) == 2 and draw_control(clip, "track").sum() > 1.2 * 16 * 32**2 * 255 * 3
    found = draw_control(clip, "reference")[0].max(-1)
    assert found[:, :32].any() and found[:, 32:].any()
