import dataclasses
import hashlib
import importlib.util
import itertools
import pickle

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.data.source import ClipData
from vdm_jax.digits import clips as cd
from vdm_jax.digits import drawing as digit_drawing
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.errors import UserError

SMALL = CaptionedDigits(frames=4, size=32, train_clips=5, validation_clips=3, test_clips=4)
OBJECTS_SEEN = 1500  # clips whose plans the statistical tests look at; nothing is drawn for them
RECORDED_CAPTIONS = [
    "a red 5 moving left and a blue 2 staying in place",
    "a white nine bouncing off the walls and a blue 5 moving down",
    "a yellow two bouncing",
]
RECORDED_SUMS = [3292864, 6873387, 2300512]
SMALL_DIGITS = {"digit_side": 20 / 64, "track_draws": 1}  # those of clips stored before these were fields
SMALL_SUMS = [1332952, 2463709, 893331]


def objects_of(split, count=OBJECTS_SEEN, spec=None):
    source = cd.CaptionedDigitsSource(
        dataclasses.replace(spec or CaptionedDigits(), **{f"{split}_clips": count}), split
    )
    return [source.objects(index) for index in range(count)]


def centres(video):
    """Brightness-weighted (y, x) of each frame."""
    light = video.max(-1).astype(float)
    total = light.sum((1, 2))
    grid = np.arange(light.shape[1])
    return np.stack([light.sum(2) @ grid, light.sum(1) @ grid], -1) / total[:, None]


def test_clip_depends_on_seed_split_and_index_alone():
    spec = CaptionedDigits()
    first = cd.generate_clip(spec, "train", 7)
    cd.generate_clip(spec, "test", 3)
    again = cd.generate_clip(dataclasses.replace(spec, train_clips=1), "train", 7)
    np.testing.assert_array_equal(first.video, again.video)
    assert (first.caption, first.objects) == (again.caption, again.objects)
    others = [("train", 8, 0), ("validation", 7, 0), ("test", 7, 0), ("train", 7, 1)]
    for split, index, seed in others:
        other = cd.generate_clip(dataclasses.replace(spec, seed=seed), split, index)
        assert not np.array_equal(first.video, other.video)


@pytest.mark.parametrize(("spec", "recorded"), [
    (CaptionedDigits(), RECORDED_SUMS), (CaptionedDigits(**SMALL_DIGITS), SMALL_SUMS)])
def test_recorded_clips(spec, recorded):
    """A change here is a change of the data set: raise the version of the TFDS builder with it."""
    clips = [cd.generate_clip(spec, split, 0) for split in cd.SPLITS]
    assert [clip.caption for clip in clips] == RECORDED_CAPTIONS
    # Rounding may differ by a grey level between machines, the total hardly.
    sums = [int(clip.video.sum()) for clip in clips]
    np.testing.assert_allclose(sums, recorded, rtol=1e-3)


def test_no_scan_belongs_to_two_splits():
    digests = {
        split: {hashlib.sha256(scan.tobytes()).digest() for scan in digit_drawing.digit_scans(split)[0]}
        for split in cd.SPLITS
    }
    assert [len(digests[split]) for split in cd.SPLITS] == [1200, 200, 397]  # together the 1,797 there are
    for one, other in itertools.combinations(cd.SPLITS, 2):
        assert not digests[one] & digests[other]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_held_out_pairs_are_never_in_train_or_validation(split):
    seen = {(item.digit, item.motion) for clip in objects_of(split) for item in clip}
    everything = set(itertools.product(range(10), cd.MOTIONS))
    assert seen == everything - set(cd.HELD_OUT_PAIRS)


def test_test_split_has_seen_and_held_out_pairs():
    items = [item for clip in objects_of("test") for item in clip]
    assert {(item.digit, item.motion) for item in items} == set(itertools.product(range(10), cd.MOTIONS))
    assert np.mean([item.held_out for item in items]) == pytest.approx(0.1, abs=0.03)
    assert {motion for _, motion in cd.HELD_OUT_PAIRS} == set(cd.MOTIONS)


def test_objects_of_a_clip_have_different_colours_and_the_asked_count():
    clips = objects_of("train", spec=CaptionedDigits(single_object_fraction=0.25))
    assert all(len({item.colour for item in clip}) == len(clip) for clip in clips)
    assert np.mean([len(clip) == 1 for clip in clips]) == pytest.approx(0.25, abs=0.04)
    assert {item.colour for clip in clips for item in clip} == set(cd.COLOURS)
    for count in (1, 2):
        spec = CaptionedDigits(objects=(count, count), single_object_fraction=0.5)
        assert {len(clip) for clip in objects_of("train", 30, spec)} == {count}


def test_captions_parse_back_and_use_the_closed_vocabulary():
    captions = cd.prompts(CaptionedDigits(), "test", OBJECTS_SEEN)
    assert [cd.parse_caption(caption) for caption in captions] == objects_of("test")
    words = cd.caption_words()
    assert {word for caption in captions for word in caption.split()} == set(words)
    assert list(words) == sorted(set(words))
    numbers = [part.split()[2] for caption in captions for part in caption.split(" and ")]
    assert np.mean([number in cd.DIGIT_WORDS for number in numbers]) == pytest.approx(0.3, abs=0.05)
    assert all(len(phrases) >= 3 for phrases in cd.PHRASES.values())


def test_parse_caption_accepts_capitals_and_keeps_the_order():
    one, other = cd.parse_caption("  An orange Seven falling and a red 0 not moving ")
    assert one == cd.DigitObject(7, "orange", "down") and one.held_out is False
    assert other == cd.DigitObject(0, "red", "still")
    assert cd.DigitObject(7, "orange", "right").held_out


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("", "''; expected one of: a, an"),
        ("a purple 3 rising", "'purple'; expected one of: red, green, blue"),
        ("a orange 3 rising", "'a'; expected one of: an"),
        ("a red eleven rising", "'eleven'; expected one of: 0, 1, 2"),
        ("a red 3 flying", "'flying'; expected one of: moving left, going to the left"),
        ("a red 3", "''; expected one of: moving left"),
        ("a red 3 rising and a red 4 falling", "two digits of one colour"),
        ("a red 3 rising and a blue 4 falling and a green 1 rising", "names 3 digits; permitted: 1 or 2"),
    ],
)
def test_captions_outside_the_grammar_say_what_was_expected(caption, expected):
    with pytest.raises(UserError) as error:
        cd.parse_caption(caption)
    assert expected in str(error.value) and repr(caption) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("frames", "size", "digit_side"), [(2, 16, 0.5), (16, 64, 0.5), (16, 64, 20 / 64),
                                                            (5, 50, 20 / 64)])
@pytest.mark.parametrize("motion", digit_drawing.MOTIONS)
def test_tracks_do_what_their_motion_says_inside_the_frame(motion, frames, size, digit_side):
    room = size - digit_drawing.stamp_side(size, digit_side)
    for seed in range(50):
        track = digit_drawing.draw_track(np.random.default_rng(seed), motion, frames, size, digit_side)
        assert track.shape == (frames, 2) and track.min() >= -1e-9 and track.max() <= room + 1e-9
        steps = np.diff(track, axis=0)
        if motion == "still":
            assert not steps.any()
        elif motion != "bounce":
            axis = int(motion in ("left", "right"))
            travel = (1 if motion in ("right", "down") else -1) * (track[-1] - track[0])[axis] / size
            assert 18 / 44 <= travel / (1 - digit_side) <= 39 / 44
            np.testing.assert_allclose(steps, np.broadcast_to(steps[0], steps.shape), atol=1e-9)
            assert not steps[:, 1 - axis].any()


@pytest.mark.parametrize("side", [20, 32])
def test_bounces_always_turn_back_at_a_wall(side):
    room = 64 - side
    for seed in range(200):
        track = digit_drawing.draw_track(np.random.default_rng(seed), "bounce", 400, 64, side / 64)
        turned = (np.sign(np.diff(track, axis=0)).min(0) < 0) & (np.sign(np.diff(track, axis=0)).max(0) > 0)
        assert turned.any()
        turning = track[:, turned]
        assert np.minimum(turning, room - turning).min() < 0.3
        path = np.linalg.norm(np.diff(track, axis=0), axis=-1).sum()
        assert 66 / 44 <= path / room <= 97.5 / 44 + 1e-6


def test_two_digits_cover_each_other_less_the_more_tracks_are_drawn():
    def light(draws):
        spec = CaptionedDigits(objects=(2, 2), frames=4, size=32, track_draws=draws)
        return sum(int((cd.generate_clip(spec, "train", index).video.max(-1) > 60).sum()) for index in range(40))

    assert light(1) < light(4) < light(16)
    side, still = 8, np.zeros((3, 2))
    assert digit_drawing.covered(still, still + 2.0, side) == pytest.approx(0.75**2)
    assert digit_drawing.covered(still, still + np.array([0.0, 9.0]), side) == 0


@pytest.mark.parametrize("size", [32, 64])
def test_drawn_pixels_move_as_the_caption_says(size):
    spec = CaptionedDigits(size=size, objects=(1, 1))
    for index in range(30):
        clip = cd.generate_clip(spec, "train", index)
        (item,) = clip.objects
        path = centres(clip.video)
        dy, dx = (path[-1] - path[0]) / size
        expected = {"left": dx < -0.17, "right": dx > 0.17, "up": dy < -0.17, "down": dy > 0.17}
        extent = np.ptp(path, axis=0).max()
        expected |= {"still": extent < 0.1, "bounce": extent > 0.3 * size}
        assert expected[item.motion], clip.caption
        brightest = clip.video.reshape(-1, 3)[clip.video.reshape(-1, 3).sum(-1).argmax()]
        np.testing.assert_allclose(brightest, cd.COLOURS[item.colour], atol=1)


def test_paint_shifts_by_whole_pixels_exactly_and_by_fractions_with_the_same_light():
    stamp = np.random.default_rng(0).uniform(size=(5, 5)).astype(np.float32)
    track = np.array([[0, 0], [3, 7], [2.25, 4.5], [11, 11]])  # the last one touches both far walls
    video = np.zeros((4, 16, 16, 3), np.uint8)
    digit_drawing.paint(video, stamp, track, (200, 100, 0))
    for frame, (y, x) in ((0, (0, 0)), (1, (3, 7)), (3, (11, 11))):
        expected = np.zeros((16, 16), np.float32)
        expected[y : y + 5, x : x + 5] = 200 * stamp
        np.testing.assert_allclose(video[frame, :, :, 0], expected, atol=0.51)
    light = video[..., 0].sum((1, 2), dtype=float)
    np.testing.assert_allclose(light, 200 * stamp.sum(), atol=18)  # half a level for each of 36 pixels
    assert not video[..., 2].any()
    np.testing.assert_allclose(centres(video)[2] - centres(video)[0], [2.25, 4.5], atol=0.02)


def test_paint_covers_what_lies_below():
    video = np.full((1, 16, 16, 3), 80, np.uint8)
    stamp = np.zeros((5, 5), np.float32)
    stamp[1, 1], stamp[2, 2] = 1, 0.5
    digit_drawing.paint(video, stamp, np.array([[4, 4]]), (0, 200, 80))
    assert video[0, 5, 5].tolist() == [0, 200, 80]
    assert video[0, 6, 6].tolist() == [40, 140, 80]
    assert (np.delete(video.reshape(-1, 3), [5 * 16 + 5, 6 * 16 + 6], 0) == 80).all()


def test_source_follows_the_random_access_contract():
    source = cd.CaptionedDigitsSource(SMALL, "train")
    clips = list(source)  # ends by IndexError
    assert len(source) == len(clips) == 5
    for index, clip in enumerate(clips):
        assert set(clip) == {"video", "caption", "fps"} and clip["fps"] == 8.0
        assert clip["video"].shape == (4, 32, 32, 3) and clip["video"].dtype == np.uint8
        assert cd.parse_caption(clip["caption"]) == source.objects(index)
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[np.int64(3)]["video"], clips[3]["video"])
    for index in (-1, 5):
        with pytest.raises(IndexError):
            source[index]
    assert [len(cd.CaptionedDigitsSource(SMALL, split)) for split in cd.SPLITS] == [5, 3, 4]


def test_prompts_are_the_captions_of_the_clips_and_can_be_chosen():
    source = cd.CaptionedDigitsSource(SMALL, "test")
    assert cd.prompts(SMALL, "test", 4) == tuple(clip["caption"] for clip in source)
    for objects, held_out in itertools.product((1, 2), (False, True)):
        captions = cd.prompts(SMALL, "test", 20, objects=objects, held_out=held_out)
        parsed = [cd.parse_caption(caption) for caption in captions]
        assert len(parsed) == 20 and {len(clip) for clip in parsed} == {objects}
        assert {any(item.held_out for item in clip) for clip in parsed} == {held_out}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "tests"}, ("split", "='tests'", "'train'", "'validation'", "'test'")),
        ({"split": "train", "held_out": True}, ("clips.prompts", "'train'", "'test'")),
        ({"split": "test", "objects": 3}, ("clips.prompts", "objects=3")),
    ],
)
def test_impossible_prompts_are_refused(arguments, message):
    with refused(*message):
        cd.prompts(SMALL, count=1, **arguments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": -1}, ("CaptionedDigits.seed", "=-1", ">= 0")),
        ({"frames": 1}, ("CaptionedDigits.frames", "=1")),
        ({"size": 8}, ("CaptionedDigits.size", "=8", "16")),
        ({"size": 32.0}, ("CaptionedDigits.size", "=32.0")),
        ({"test_clips": 0}, ("CaptionedDigits.test_clips", "=0")),
        ({"objects": (1, 3)}, ("CaptionedDigits.objects", "=(1, 3)")),
        ({"single_object_fraction": 1.5}, ("CaptionedDigits.single_object_fraction", "=1.5", ">= 0", "<= 1")),
        ({"fps": 0}, ("CaptionedDigits.fps", "=0")),
    ],
)
def test_bad_specs_are_refused(fields, message):
    with refused(*message):
        CaptionedDigits(**fields)


def test_the_data_set_says_what_it_is(tmp_path):
    assert isinstance(SMALL, ClipData)
    assert SMALL.clip_shape() == cd.CaptionedDigitsSource(SMALL, "test")[0]["video"].shape[:3]
    assert SMALL.vocabulary() == cd.caption_words()
    folder = SMALL.prepare(tmp_path)
    assert 0 < SMALL.stored_bytes() <= sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    source, examples = SMALL.open("validation", tmp_path), SMALL.scorer().examples("validation", 3)
    for clip, example in zip(source, examples, strict=False):
        assert (clip["video"] == example["video"]).all() and clip["caption"] == example["caption"]
    with refused("scorer.DigitScorer.examples"):
        SMALL.scorer().examples("validation", 10**6)


def test_without_scikit_learn_the_package_to_install_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with refused("package", "'vdm_jax[digits]'"):
        SMALL.scorer()
    digit_drawing.digit_scans.cache_clear()
    with refused("package", "'vdm_jax[digits]'"):
        digit_drawing.digit_scans("train")
