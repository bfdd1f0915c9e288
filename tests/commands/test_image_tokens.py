"""Runs that read what an image encoder makes of first frames: made once, trained on, and made of a given picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vdm_jax
from tests.refusals import refused
from tests.weights.folders import tensors_of, write
from vdm_jax.commands.main import main
from vdm_jax.conditions.frame_masks import masked_first_frame
from vdm_jax.data.array_record import PreparedClips, PreparedClipsSource, prepare_clips
from vdm_jax.data.picture_encoding import PictureEncoder
from vdm_jax.networks.encoders.clip_vision import CLIPVision
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.writing import write_png

TINY = str(Path(__file__).parent / "tiny_image_tokens.py")
ENCODER = CLIPVision(size=8, patch=4, width=8, layers=2, heads=2, hidden=16, project=0)  # 5 tokens of a picture


class Clips:
    """Clips whose frames all differ."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        video = np.random.default_rng(index).integers(0, 256, (3, 8, 8, 3), np.uint8)
        return {"video": video, "caption": "a red three", "fps": 8.0}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with clips, an image encoder, the tokens and a run."""
    home = tmp_path_factory.mktemp("image_tokens")
    for split, count in (("train", 9), ("validation", 4)):
        prepare_clips(Clips(count), home / "clips", split, "raw")
    write(home / "encoder", ENCODER, tensors_of(ENCODER))
    write_png(home / "picture.png", Clips(9)[8]["video"][0])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(["embed", TINY, "--first-frames", "--encoder", "encoder", "--batch-size", "2"]) == 0
        assert main(["train", TINY, "--run", "run"]) == 0
    return home


def test_clips_have_the_tokens_of_their_own_first_frame(home, monkeypatch):
    monkeypatch.chdir(home)
    encoder = PictureEncoder("encoder")
    for split, count in (("train", 9), ("validation", 4)):
        source = PreparedClipsSource(PreparedClips(path="clips", image_tokens="tokens"), split)
        assert len(source) == count
        for number in range(count):
            clip = source[number]
            expected = encoder([Image.fromarray(clip["video"][0])], hidden=True).vectors[0]
            assert clip["image_tokens"].shape == (5, 8) and clip["image_tokens"].dtype == np.float32
            np.testing.assert_allclose(clip["image_tokens"], expected, rtol=5e-4, atol=1e-6)  # kept as float16


def test_an_interrupted_run_goes_on_and_other_tokens_are_refused(home, monkeypatch, fails):
    monkeypatch.chdir(home)
    whole = np.load("tokens/train.npy")
    record = json.loads(Path("tokens/train.json").read_text())
    assert (record["clips"], record["done"]) == (9, 9)
    common = ["embed", TINY, "--first-frames", "--encoder", "encoder", "--out", "again", "--batch-size", "2"]
    assert main(common) == 0
    rows = np.lib.format.open_memmap("again/train.npy", mode="r+")
    rows[4:] = 0
    rows.flush()
    Path("again/train.json").write_text(json.dumps(record | {"done": 4}))
    data = PreparedClips(path="clips", image_tokens="again")
    with refused("image_tokens", "tokens of 4 of 9 clips of"):
        PreparedClipsSource(data)
    assert main(common) == 0
    np.testing.assert_array_equal(np.load("again/train.npy"), whole)
    Path("again/train.json").write_text(json.dumps(record | {"clips": 11}))
    assert "tokens of 11 clips of" in fails(*common)
    other = record | {"bytes": record["bytes"] + 1}  # as after another preparation
    Path("again/train.json").write_text(json.dumps(other))
    assert f"of {other['bytes']} bytes by" in fails(*common)
    with refused("image_tokens", f"of {other['bytes']} bytes for a split of 9 clips of {record['bytes']} bytes"):
        PreparedClipsSource(data)
    Path("again/train.json").write_text("{}")
    assert "again/train.json is damaged" in fails(*common)
    Path("again/train.json").write_text(json.dumps(record))
    Path("again/train.npy").write_bytes(b"\x93NUMPY no array")
    with refused("image_tokens", "again/train.npy is damaged"):
        PreparedClipsSource(data)
    with refused("PreparedClips.image_tokens", "='none' has no tokens of the split 'train'"):
        PreparedClipsSource(PreparedClips(path="clips", image_tokens="none"))
    source = PreparedClipsSource(PreparedClips(path="clips", image_tokens="tokens"))
    with refused("PreparedClips.image_tokens", "with Training.frame_rates, whose clips begin anywhere"):
        source.clip_at(0, np.random.default_rng(0), 4.0, 2)


def test_a_run_goes_on_from_a_picture_by_the_encoder_of_its_tokens(home, monkeypatch, fails):
    """As the Python call with the tokens, and not without them."""
    monkeypatch.chdir(home)
    common = ["sample", "run", "a red three", "--image", "picture.png", "--out", "a.gif", "--seed", "3"]
    assert main(common) == 0
    found = VideoReader("a.gif").frames([0, 1, 2])
    assert main([*common[:-4], "--out", "b.gif", "--seed", "3", "--image-encoder", "encoder"]) == 0
    np.testing.assert_array_equal(VideoReader("b.gif").frames([0, 1, 2]), found)
    picture = np.asarray(Image.open("picture.png"))
    tokens = PictureEncoder("encoder")([Image.fromarray(picture)], hidden=True).vectors
    generator = vdm_jax.load("run")
    given = masked_first_frame(np.asarray(picture[None] / 127.5 - 1, np.float32), 3)
    made = generator(["a red three"], seed=3, masked_video=given, image_tokens=tokens)
    made.save("c.gif")
    np.testing.assert_array_equal(VideoReader("c.gif").frames([0, 1, 2]), found)
    other = generator(["a red three"], seed=3, masked_video=given, image_tokens=-5 * tokens)
    assert np.abs(other.videos.astype(int) - made.videos).max() > 0
    assert "--image-encoder=encoder is for --image-prompt" in fails("generate", "run", "--image", "picture.png",
                                                                    "--image-encoder", "encoder")
    said = fails("sample", "run", "x", "--image-encoder", "encoder")
    assert "--image-encoder=encoder is for --image-prompt or --image" in said


def test_what_has_no_first_frames_is_refused(home, monkeypatch, fails):
    monkeypatch.chdir(home)
    more = ["--first-frames", "--encoder", "encoder"]
    said = fails("embed", "captioned_digits", *more)
    assert "captioned_digits has CaptionedDigits for data; permitted with --first-frames: PreparedClips" in said
    assert "is no config" in fails("embed", "clips", *more)
