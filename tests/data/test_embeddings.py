import dataclasses
import json
import logging
import pickle

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.data.controlled_digits import ControlledDigits
from vdm_jax.data.digit_beats import DigitBeats
from vdm_jax.data.digit_stories import DigitStories
from vdm_jax.data.embeddings import (
    TextEmbeddings,
    WithEmbeddings,
    WithEmbeddingsSource,
    check_embeddings,
    write_embeddings,
)
from vdm_jax.data.image_folder import ImageFolder
from vdm_jax.data.opening import open_source
from vdm_jax.data.pipeline import Pipeline
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.errors import UserError
from vdm_jax.video.writing import write_png

TEXTS = {"a red one": 2, "grün": 1, "a very long text": 5}


def vectors(caption):
    """As many vectors of 3 numbers as `TEXTS` says, distinguished by the caption's length."""
    return len(caption) + np.arange(TEXTS[caption] * 3, dtype=np.float32).reshape(-1, 3) / 8


@pytest.fixture
def texts(tmp_path):
    captions = [*TEXTS, "", "grün"]
    return write_embeddings(tmp_path / "texts", captions, [vectors(c or "grün") for c in captions], about="a test")


class Clips:
    def __init__(self, captions=(*TEXTS, "")):
        self._captions = captions

    def __len__(self):
        return len(self._captions)

    def __getitem__(self, index):
        return {"video": np.full((2, 4, 4, 3), index, np.uint8), "caption": self._captions[index]}

    def captions(self):
        yield from self._captions


class Movable(Clips):
    def clip(self, index, rng):
        return self[index] | {"label": int(rng.integers(9))}

    def clip_at(self, index, rng, fps, frames):
        return self[index] | {"fps": fps}


def test_what_is_looked_up_is_what_was_written(texts):
    found = TextEmbeddings(texts)
    assert len(found) == 3 and (found.width, found.longest) == (3, 5) and found.metadata["about"] == "a test"
    for copy in (found, pickle.loads(pickle.dumps(found))):
        for caption in TEXTS:
            array, mask = copy.look_up(caption, 4)
            count = min(TEXTS[caption], 4)
            assert array.shape == (4, 3) and array.dtype == np.float16 and mask.tolist() == [True] * count + [False] * (
                4 - count)
            np.testing.assert_array_equal(array[:count], vectors(caption)[:count])
            assert not array[count:].any()
        array, mask = copy.look_up("", 4)
        assert not array.any() and not mask.any()
    stacked, masks = found.batch(["grün", ""])
    assert stacked.shape == (2, 5, 3) and masks.sum(1).tolist() == [1, 0]
    with refused("embeddings.TextEmbeddings._lacks", "1", "'A red one'"):
        found.look_up("A red one", 4)
    assert sorted(p.name for p in texts.parent.iterdir()) == ["texts"]


def test_many_texts_are_found(tmp_path):
    captions = [f"caption {n}" for n in range(2000)]
    arrays = (np.full((1 + n % 3, 2), n, np.float32) for n in range(2000))
    found = TextEmbeddings(write_embeddings(tmp_path / "x", iter(captions), arrays))
    found.check(captions)
    assert all(found.look_up(captions[n], 3)[0][0, 0] == n and found.look_up(captions[n], 3)[1].sum() == 1 + n % 3
               for n in range(0, 2000, 37))
    with refused("embeddings.TextEmbeddings._lacks", "2001", "'caption 2000'"):
        found.check([*captions[1:], "caption 2000", "caption 2001"])


@pytest.mark.parametrize(("captions", "arrays", "message"), [
    (["a", "b"], [np.ones((1, 2))], ("embeddings._write",)),
    (["a", "b"], [np.ones((1, 2)), np.ones((1, 3))], ("embeddings._checked", "[1, 3]", "'b'", "[tokens, 2]")),
    (["a"], [np.ones(3)], ("embeddings._checked", "[3]", "'a'", "[tokens, width]")),
    (["a"], [np.ones((0, 3))], ("embeddings._checked", "[0, 3]", "'a'")),
    (["a"], [np.full((1, 3), 1e6)], ("embeddings._checked", "1000000.0", "65504")),
    (["a"], [np.full((1, 3), np.nan)], ("embeddings._checked",)),
    ([""], [np.ones((1, 3))], ("embeddings._write",)),
])
def test_what_cannot_be_written(tmp_path, captions, arrays, message):
    with refused(*message):
        write_embeddings(tmp_path / "x", captions, arrays)
    assert not list(tmp_path.iterdir())


def test_sets_that_are_missing_damaged_or_there_already(texts, tmp_path):
    with refused("embeddings.write_embeddings"):
        write_embeddings(texts, ["a"], [np.ones((1, 2))])
    with refused("embeddings.TextEmbeddings.__init__", "write_embeddings"):
        TextEmbeddings(tmp_path)
    rows = texts / "rows.float16"
    rows.write_bytes(rows.read_bytes()[:-2])
    with refused("embeddings.TextEmbeddings.__init__", "46", "48"):
        TextEmbeddings(texts)
    (texts / "keys.npy").write_bytes(pickle.dumps("never read"))
    with refused("embeddings.TextEmbeddings._table"):
        rows.write_bytes(bytes(48))
        TextEmbeddings(texts)
    metadata = texts / "metadata.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"version": 9}))
    with refused("embeddings.TextEmbeddings.__init__", "9", "1"):
        TextEmbeddings(texts)


def test_clips_are_joined_by_caption(texts, caplog):
    with caplog.at_level(logging.WARNING):
        source = WithEmbeddingsSource(WithEmbeddings(data=CaptionedDigits(), path=str(texts), length=3), Movable())
    assert "texts of up to 5 tokens; only the first 3 are read" in caplog.text
    clip = source[1]
    assert clip["caption"] == "grün" and clip["text_mask"].tolist() == [True, False, False]
    np.testing.assert_array_equal(clip["embeddings"][0], vectors("grün")[0])
    assert not source[3]["text_mask"].any()
    moved = source.clip(0, np.random.default_rng(0))
    assert moved["text_mask"].sum() == 2 and "label" in moved
    at_rate = source.clip_at(1, np.random.default_rng(0), 4.0, 2)
    assert at_rate["fps"] == 4.0 and at_rate["text_mask"].sum() == 1
    still = source.frame(2, np.random.default_rng(0))
    assert still["video"].shape == (1, 4, 4, 3) and still["text_mask"].all()
    assert list(source.captions()) == [*TEXTS, ""] and source.skipped == {}
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[0]["embeddings"], source[0]["embeddings"])
    assert not hasattr(WithEmbeddingsSource(source.spec, Clips()), "clip")
    assert not hasattr(WithEmbeddingsSource(source.spec, Clips()), "clip_at")
    with refused("embeddings.TextEmbeddings._lacks", "1", "2", "'unknown'"):
        WithEmbeddingsSource(source.spec, Clips(("unknown", "grün")))
    with refused("WithEmbeddings.length", "=0"):
        WithEmbeddings(data=CaptionedDigits(), path="x", length=0)


def test_images_bring_theirs_into_the_batch(texts, tmp_path):
    """Image and caption pairs next to clips, all with embeddings of one shape."""
    for number in range(2):
        write_png(tmp_path / "images" / f"{number}.png", np.full((4, 4, 3), 100 + number, np.uint8))
    (tmp_path / "captions.csv").write_text("file,caption\n0.png,grün\n")
    images = ImageFolder(path=str(tmp_path / "images"), captions=str(tmp_path / "captions.csv"), height=4, width=4,
                         fractions=(1.0, 0.0, 0.0))
    clips = WithEmbeddingsSource(WithEmbeddings(data=CaptionedDigits(), path=str(texts), length=4), Clips())
    stills = open_source(WithEmbeddings(data=images, path=str(texts), length=4), "train")
    batch = Pipeline(clips, batch_size=4, seed=0, images_per_clip=2, images_source=stills).batch(0)
    assert batch["embeddings"].shape == (4, 4, 3) and batch["text_mask"].dtype == bool
    assert batch["image_embeddings"].shape == (4, 2, 4, 3) and batch["image_embeddings"].dtype == np.float16
    for picture, caption, array, mask in zip(
            batch["images"].reshape(8, 4, 4, 3), batch["image_captions"].ravel(),
            batch["image_embeddings"].reshape(8, 4, 3), batch["image_text_mask"].reshape(8, 4), strict=True):
        assert caption == ("grün" if picture[0, 0, 0] == 100 else "")
        np.testing.assert_array_equal(array, stills.texts.look_up(caption, 4)[0])
        assert mask.tolist() == [caption == "grün", False, False, False]
    own = Pipeline(clips, batch_size=4, seed=0, images_per_clip=2).batch(0)
    assert own["image_embeddings"].shape == (4, 2, 4, 3)
    other = open_source(WithEmbeddings(data=images, path=str(texts), length=5), "train")
    with refused("pipeline.Pipeline._check_images", "images_source", "[5, 3]", "[4, 3]"):
        Pipeline(clips, batch_size=4, seed=0, images_per_clip=2, images_source=other)


def test_the_width_is_checked_against_the_network(texts):
    source = WithEmbeddingsSource(WithEmbeddings(data=CaptionedDigits(), path=str(texts)), Clips())
    check_embeddings(source, 3, "base")
    with refused("embeddings.check_embeddings", "'base'", "EmbeddedText.width=8", "3"):
        check_embeddings(source, 8, "base")
    with refused("embeddings.check_embeddings", "WithEmbeddings"):
        check_embeddings(Clips(), 8, "base")


def test_the_empty_text_may_be_encoded(texts, tmp_path):
    spec = WithEmbeddings(data=ImageFolder(path="x", height=8, width=8), path=str(texts), length=4, empty="encoded")
    with refused("embeddings.TextEmbeddings.empty"):
        WithEmbeddingsSource(spec, Clips())
    captions, empty = [*TEXTS, ""], np.full((2, 3), 70.0)
    path = write_embeddings(tmp_path / "with_empty", captions, [vectors(c or "grün") for c in captions], empty=empty)
    source = WithEmbeddingsSource(dataclasses.replace(spec, path=str(path)), Clips())
    clips = [source[i] for i in range(4)]
    for clip in clips:
        assert (clip["null_embeddings"][:2] == 70).all() and clip["null_mask"].tolist() == [True, True, False, False]
    assert (clips[3]["embeddings"][:2] == 70).all() and clips[3]["text_mask"].sum() == 2
    assert clips[0]["text_mask"].sum() == TEXTS["a red one"] and not (clips[0]["embeddings"] == 70).any()
    assert TextEmbeddings(path).look_up("", 4)[1].sum() == 0  # who does not ask for it reads none
    with refused("WithEmbeddings.empty", "='some'", "'none'", "'encoded'"):
        dataclasses.replace(spec, empty="some")


def test_a_damaged_clip_is_never_another_one_where_the_exact_one_is_asked_for(texts):
    class Damaged(Movable):
        def exact(self, index):
            raise UserError(f"clip {index} does not decode", code="damaged")

    spec = WithEmbeddings(data=CaptionedDigits(), path=str(texts), length=3)
    with refused("damaged", "clip 1"):
        WithEmbeddingsSource(spec, Damaged()).exact(1)
    assert WithEmbeddingsSource(spec, Movable()).exact(1)["caption"] == "grün"


@pytest.mark.parametrize("data", [
    CaptionedDigits(train_clips=6, size=16, frames=2), ControlledDigits(train_clips=6, size=16, frames=2),
    ControlledDigits(train_clips=6, size=16, frames=2, says_digit=False), DigitBeats(train_clips=4, size=32),
    DigitStories(train_stories=3, size=16, frames=4, length=16, strides=(1, 2))], ids=lambda data: type(data).__name__)
def test_digits_say_their_captions_so_that_they_can_be_embedded(data, tmp_path):
    source = data.open("train", tmp_path)
    said, shown = list(source.captions()), [source[i] for i in range(len(source))]
    for clip in shown:
        assert set(clip.get("frame_captions", (clip["caption"],))) <= set(said)
    if "frame_captions" not in shown[0]:
        assert said == [clip["caption"] for clip in shown]
    captions = sorted(set(said))
    write_embeddings(tmp_path / "words", captions, (np.full((2, 3), i) for i in range(len(captions))))
    joined = WithEmbeddings(data=data, path=str(tmp_path / "words"), length=2).open("train", tmp_path)
    assert joined[0]["embeddings"].shape == (2, 3)
