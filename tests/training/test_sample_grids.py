"""Sample grids: every row says what it shows, and shows it."""

from types import SimpleNamespace

import numpy as np
import pytest

from vdm_jax.commands.configs import load_config
from vdm_jax.stages.stage import FirstFrame, KeyFrames, LowResolution
from vdm_jax.training import sample_grids
from vdm_jax.training.sample_grids import input_frames, picture_grid, video_grid
from vdm_jax.video.grids import text_strip


def clips(*shape):
    return np.random.default_rng(0).integers(0, 200, (*shape, 3), np.uint8)


@pytest.fixture
def labels(monkeypatch):
    """What is written above rows."""
    found = []
    original = sample_grids.sample_grid
    monkeypatch.setattr(sample_grids, "sample_grid", lambda videos, captions, title: (
        found.extend([title, *captions]), original(videos, captions, title))[1])
    return found


def test_a_super_resolution_grid_names_input_generated_and_real(labels):
    rows = {"generated": clips(2, 4, 64, 64), "real": clips(2, 4, 64, 64) + 9}
    low = clips(2, 2, 32, 32)
    picture = picture_grid(rows, low, LowResolution(frames=2, height=32, width=32), ["a fox", ""], "stage sr, step 5")
    assert labels == ["stage sr, step 5", 'clip 1: input (low resolution, real), caption "a fox"',
                      "clip 1: generated", "clip 1: real",
                      "clip 2: input (low resolution, real)", "clip 2: generated", "clip 2: real"]
    shown = picture[48:112]  # below the title and the first label, of two lines
    np.testing.assert_array_equal(shown[:, :64:2][::2], low[0, 0])  # pixels as they are, twice as large
    assert (shown[:, 66:130] == 255).all()  # a frame that the input lacks
    np.testing.assert_array_equal(shown[::2, 132:196:2], low[0, 1])
    np.testing.assert_array_equal(picture[112 + 2 + 16:][:64, 66:130], rows["generated"][0, 1])


def test_a_base_stage_has_no_input(labels):
    rows = {"generated": clips(1, 2, 64, 64), "real": clips(1, 2, 64, 64)}
    picture = picture_grid(rows, None, None, ["a fox"], "stage base")
    assert [label.split(",")[0] for label in labels] == ["stage base", "clip 1: generated", "clip 1: real"]
    assert picture.shape[1] == 130


def test_the_video_has_a_column_for_each():
    rows = {"generated": clips(2, 4, 64, 64), "real": clips(2, 4, 64, 64)}
    film = video_grid(rows, clips(2, 2, 32, 32), LowResolution(frames=2, height=32, width=32), "stage sr")
    assert film.shape[0] == 4 and film.shape[2] == 3 * 64 + 4
    top = film.shape[1] - (2 * 64 + 2)
    assert top >= 32 and (film[0, :top] == film[3, :top]).all() and film[0, :top].min() < 100
    np.testing.assert_array_equal(film[1, top:top + 64, :64], film[0, top:top + 64, :64])  # the input holds its frame
    np.testing.assert_array_equal(film[1, top:top + 64, 66:130], rows["generated"][0, 1])
    np.testing.assert_array_equal(film[3, top + 66:, 132:], rows["real"][1, 3])


@pytest.mark.parametrize(("source", "frames", "places"), [
    (LowResolution(frames=3, height=4, width=4), 3, [0, 2, 4]), (KeyFrames(frames=2, every=5), 2, [0, 5]),
    (FirstFrame(), 1, [0])])
def test_inputs_stand_at_their_places_in_time(source, frames, places):
    given = clips(1, frames, 4, 4)
    video = input_frames(given, (1, 6, 8, 8, 3), source, 255)
    np.testing.assert_array_equal(video[0, places][:, ::2, ::2], given[0])
    assert (np.delete(video[0], places, axis=0) == 255).all()
    assert (np.delete(input_frames(given, video.shape, source, None)[0], places, axis=0) < 200).all()


def test_a_stage_that_is_trained_on_single_frames_shows_their_inputs(monkeypatch, tmp_path):
    *_, stage = load_config("make_a_video/cascade").stages
    made = SimpleNamespace(stage=stage.trained(), videos=lambda params: clips(1, 1, 64, 64), captions=[""], seed=0,
                           given=clips(1, 1, 32, 32), real=clips(1, 1, 64, 64))
    monkeypatch.setattr(sample_grids, "StageSamples", lambda *arguments: made)
    picture = sample_grids.SampleGrids(None, stage, tmp_path, None, None).write(None, 3)
    assert any(np.array_equal(picture[top:][:64:2, :64:2], made.given[0, 0]) for top in range(len(picture) - 64))


def test_long_words_are_cut_rather_than_lost():
    short, long = text_strip("x" * 5, 64), text_strip("x" * 40, 64)
    assert long.shape[0] >= 4 * short.shape[0] and (long[-16:] < 100).any()
