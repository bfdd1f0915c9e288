"""The scorer is judged by controls: clips of known truth, whole, and damaged in ways of known cost."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.digits import scorer_controls
from tests.refusals import refused
from vdm_jax.digits import drawing as digit_drawing
from vdm_jax.digits import scorer as scoring
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.digits.clips import COLOURS, DigitObject, generate_clip

CLIPS = 200  # one clip is 0.005, and the standard error of a share of 0.95 is 0.015


SMALL = CaptionedDigits(digit_side=20 / 64, track_draws=1)  # the digits that the thresholds were measured with


@pytest.fixture(scope="module")
def scorer():
    return scoring.DigitScorer(SMALL)


@pytest.fixture(scope="module")
def table():
    return scorer_controls.control_table(CaptionedDigits(), CLIPS)


def draw(*objects, frames=16, size=64):
    """A clip of (digit, colour, corners) objects; `corners` (y, x) in frame sides, evenly over time."""
    video = np.zeros((frames, size, size, 3), np.uint8)
    stamps = digit_drawing.digit_stamps("test", digit_drawing.stamp_side(size, SMALL.digit_side))
    for digit, colour, corners in objects:
        corners = np.asarray(corners, float) * size
        at = np.linspace(0, len(corners) - 1, frames)
        track = np.stack([np.interp(at, np.arange(len(corners)), axis) for axis in corners.T], -1)
        digit_drawing.paint(video, stamps[digit][0], track, COLOURS[colour])
    return video


def test_true_clips_of_unseen_handwriting_are_nearly_all_right(table):
    scores = table["true clips"]
    assert scores["whole"] >= 0.95 and scores["held_out/whole"] >= 0.9 and scores["single/whole"] >= 0.95
    assert scores["count"] >= 0.98 and scores["colour"] >= 0.99
    assert scores["digit"] >= 0.96 and scores["motion"] >= 0.98
    assert scores["clips"] == CLIPS == scores["held_out/clips"] + scores["familiar/clips"]


def test_the_caption_of_another_clip_is_wrong(table):
    scores = table["caption of the next clip"]
    assert scores["whole"] <= 0.02 and scores["digit"] <= 0.08 and scores["motion"] <= 0.1
    assert scores["colour"] <= 0.35
    assert table["second half of the next clip"]["whole"] <= 0.06


@pytest.mark.parametrize("damage", ["frames shuffled", "frames reversed", "first frame frozen"])
def test_damage_to_time_costs_the_motion_and_keeps_the_digits(table, damage):
    # A sixth of the objects stand still and keep their motion; reversed, another sixth go on bouncing.
    most = {"frames shuffled": 0.3, "frames reversed": 0.45, "first frame frozen": 0.3}[damage]
    scores = table[damage]
    assert scores["motion"] <= most and scores["whole"] <= most
    assert scores["digit"] >= 0.92 and scores["colour"] >= 0.97


@pytest.mark.parametrize(
    ("damage", "whole"),
    [
        ("noise 12/255", 0.93),
        ("noise 25/255", 0.9),
        ("blur 1 px", 0.9),
        ("blur 2 px", 0.87),
        ("blur 1 px, noise 12/255", 0.9),
        ("half the frame rate, frames repeated", 0.93),
        ("every other frame", 0.93),
        ("half size", 0.88),
        ("half size and back", 0.9),
        ("quarter size and back", 0.82),
    ],
)
def test_damage_that_leaves_the_content_readable_costs_little(table, damage, whole):
    scores = table[damage]
    assert scores["whole"] >= whole
    assert scores["motion"] >= 0.97 and scores["digit"] >= whole


@pytest.mark.parametrize(
    ("frames", "size", "side", "least"),
    [(16, 64, 20, 0.95), (16, 32, 20, 0.88), (8, 64, 20, 0.93), (40, 64, 20, 0.93), (16, 96, 20, 0.93),
     (8, 64, 32, 0.95), (16, 32, 32, 0.95), (8, 16, 32, 0.9), (16, 64, 28, 0.95)]
)
def test_other_frame_counts_and_sizes_are_scored_by_the_same_rules(frames, size, side, least):
    spec = CaptionedDigits(frames=frames, size=size, digit_side=side / 64)
    clips = [generate_clip(spec, "test", index) for index in range(60)]
    scores = spec.scorer().score(np.stack([clip.video for clip in clips]), [clip.caption for clip in clips]).means()
    assert scores["whole"] >= least and scores["motion"] >= 0.97


def test_a_base_of_16_pixels_and_8_frames_carries_what_a_caption_asks_for():
    spec = CaptionedDigits(objects=(1, 1))
    clips = [generate_clip(spec, "test", index) for index in range(100)]
    videos = np.stack([clip.video[::2] for clip in clips]).astype(np.float32)
    small = videos.reshape(100, 8, 16, 4, 16, 4, 3).mean((3, 5))
    large = np.asarray(jax.image.resize(small, videos.shape, "bilinear")).round().astype(np.uint8)
    scores = spec.scorer().score(large, [clip.caption for clip in clips]).means()
    assert scores["whole"] >= 0.96 and scores["motion"] >= 0.98


def test_nothing_is_seen_in_flat_colour_and_noise(scorer):
    black = np.zeros((16, 64, 64, 3), np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, black.shape, np.uint8)
    red = np.broadcast_to(np.array(COLOURS["red"], np.uint8), black.shape)
    clips = np.stack([black, np.full_like(black, 40), np.full_like(black, 250), red, noise])
    assert scorer.see(clips) == [()] * 5
    scores = scorer.score(black[None], ["a red 3 rising"]).means()
    assert scores == {"whole": 0, "count": 0, "colour": 0, "digit": 0, "motion": 0}


@pytest.mark.parametrize("colour", list(COLOURS))
def test_every_colour_is_told_from_the_others_even_when_dim(scorer, colour):
    video = draw((3, colour, [(0.3, 0.3)]))
    (objects,) = scorer.see((video[None] * 0.6).astype(np.uint8))
    assert objects == (DigitObject(3, colour, "still"),)


@pytest.mark.parametrize(
    ("corners", "motion"),
    [
        ([(0.3, 0.1), (0.3, 0.5)], "right"),
        ([(0.3, 0.5), (0.3, 0.1)], "left"),
        ([(0.1, 0.3), (0.5, 0.3)], "down"),
        ([(0.5, 0.3), (0.1, 0.3)], "up"),
        ([(0.3, 0.3), (0.3, 0.34)], "still"),
        ([(0.3, 0.1), (0.3, 0.68), (0.3, 0.1)], "bounce"),
        ([(0.0, 0.0), (0.5, 0.5)], "bounce"),  # fast and slanting, as only bouncing digits move
        ([(0.3, 0.3), (0.3, 0.4), (0.3, 0.3)], scoring.UNCLEAR),  # sways, and meets no wall
        ([(0.0, 0.0), (0.6, 0.6)] * 8, scoring.UNCLEAR),  # jumps between two places
    ],
)
def test_motions_are_told_apart(scorer, corners, motion):
    (objects,) = scorer.see(draw((6, "white", corners))[None])
    assert objects == (DigitObject(6, "white", motion),)


def test_an_object_that_another_covers_for_a_while_keeps_its_motion(scorer):
    crossing = draw((2, "green", [(0.3, 0.35)]), (0, "blue", [(0.3, 0.05), (0.3, 0.6)]))
    (objects,) = scorer.see(crossing[None])
    assert set(objects) == {DigitObject(2, "green", "still"), DigitObject(0, "blue", "right")}


def test_two_objects_of_one_colour_count_twice_and_specks_do_not(scorer):
    twice = draw((3, "red", [(0.05, 0.05)]), (3, "red", [(0.6, 0.6)]))
    speckled = draw((3, "red", [(0.05, 0.05)]))
    speckled[:, 50:53, 50:53] = COLOURS["red"]
    seen = scorer.see(np.stack([twice, speckled]))
    assert [len(objects) for objects in seen] == [2, 1]
    assert seen[1] == (DigitObject(3, "red", "still"),)


def test_an_object_must_be_there_most_of_the_time(scorer):
    video = draw((3, "red", [(0.3, 0.3)]))
    for absent, count in ((5, 1), (9, 0)):
        flickering = video.copy()
        flickering[:absent] = 0
        (objects,) = scorer.see(flickering[None])
        assert len(objects) == count


RED, BLUE = DigitObject(3, "red", "up"), DigitObject(4, "blue", "left")


@pytest.mark.parametrize(
    ("seen", "count", "colour", "digit", "motion", "whole"),
    [
        ((BLUE, RED), True, 1, 1, 1, True),
        ((RED,), False, 0.5, 0.5, 0.5, False),
        ((RED, dataclasses.replace(BLUE, digit=9)), True, 1, 0.5, 1, False),
        ((RED, dataclasses.replace(BLUE, motion="still")), True, 1, 1, 0.5, False),
        ((RED, dataclasses.replace(BLUE, colour="green")), True, 0.5, 0.5, 0.5, False),
        ((RED, BLUE, BLUE), False, 1, 1, 1, False),
        # Swapped digits: the count and the colours are right, but each colour has the other's digit.
        ((dataclasses.replace(RED, digit=4), dataclasses.replace(BLUE, digit=3)), True, 1, 0, 1, False),
        ((), False, 0, 0, 0, False),
    ],
)
def test_seen_objects_are_compared_by_colour(seen, count, colour, digit, motion, whole):
    result = scoring.compare([(RED, BLUE)], [seen])
    assert (result.count[0], result.whole[0]) == (count, whole)
    assert (result.colour[0], result.digit[0], result.motion[0]) == (colour, digit, motion)


def test_attributes_are_averaged_over_objects_and_groups_are_told_apart():
    held_out = DigitObject(4, "white", "left")
    result = scoring.compare(
        [(RED, BLUE), (RED,), (held_out,)],
        [(RED, BLUE), (dataclasses.replace(RED, digit=8),), (held_out,)],
    )
    assert result.objects.tolist() == [2, 1, 1]
    assert result.held_out.tolist() == [True, False, True]  # BLUE is a 4 moving left too
    summary = result.summary()
    assert summary["digit"] == pytest.approx(3 / 4)
    assert summary["whole"] == pytest.approx(2 / 3) and summary["clips"] == 3
    assert summary["single/whole"] == 0.5 and summary["single/clips"] == 2
    assert summary["held_out/whole"] == 1 and summary["familiar/whole"] == 0
    only_pairs = result.where(result.objects == 2).summary()
    assert "single/whole" not in only_pairs and only_pairs["clips"] == 1


def test_scores_do_not_depend_on_the_batch(scorer):
    clips = [generate_clip(SMALL, "test", index) for index in range(6)]
    together = scorer.see(np.stack([clip.video for clip in clips]))
    assert together == [scorer.see(clip.video[None])[0] for clip in clips]


@pytest.mark.parametrize(
    ("videos", "captions", "message"),
    [
        (np.zeros((1, 4, 32, 32, 3), np.uint8), [], ("scorer.DigitScorer.score", "0", "1")),
        (
            np.zeros((1, 4, 32, 32, 3), np.float32),
            ["a red 3 rising"],
            ("scorer.DigitScorer.see", "[1, 4, 32, 32, 3]"),
        ),
        (np.zeros((1, 4, 32, 48, 3), np.uint8), ["a red 3 rising"], ("scorer.DigitScorer.see",)),
        (np.zeros((1, 1, 32, 32, 3), np.uint8), ["a red 3 rising"], ("scorer.DigitScorer.see", ">= 2")),
        (np.zeros((1, 4, 32, 32, 3), np.uint8), ["a red cat"],
         ("clips._parse_object.expect", "0", "1", "2")),
    ],
)
def test_bad_input_is_refused(scorer, videos, captions, message):
    with refused(*message):
        scorer.score(videos, captions)


def test_control_table_refuses_what_it_cannot_damage():
    with refused("scorer_controls.control_table", "2", "4"):
        scorer_controls.control_table(CaptionedDigits(size=62), 10)
