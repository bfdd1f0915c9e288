import io
import logging
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.refusals import refused
from vdm_jax.configuration import from_json, to_json
from vdm_jax.data.image_shards import ImageShards
from vdm_jax.data.opening import caption_words, open_source
from vdm_jax.digits.captioned_digits import CaptionedDigits


def picture(level):
    file = io.BytesIO()
    Image.fromarray(np.full((6, 9, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path):
    write_tar(tmp_path / "00000.tar", {
        "000000.png": picture(10), "000000.txt": b"a dark one\n", "000000.json": b"{}",
        "000001.txt": "ein grünes".encode(), "000001.PNG": picture(20)})
    write_tar(tmp_path / "more" / "00001.tar", {
        "000000.png": picture(30), "000000.txt": b"third", "000002.png": picture(40)[:40], "000003.png": picture(50)})
    return tmp_path


def spec_of(shards, **fields):
    return ImageShards(**{"path": str(shards), "height": 4, "width": 4, "fractions": (1.0, 0.0, 0.0), **fields})


def test_pairs_are_read_in_place(shards, caplog):
    source = open_source(spec_of(shards), "train")
    expected = [(10, "a dark one"), (20, "ein grünes"), (30, "third"), (50, ""), (50, "")]  # the fourth is broken
    with caplog.at_level(logging.WARNING):
        for copy in (source, pickle.loads(pickle.dumps(source))):
            assert [(int(clip["video"].mean()), clip["caption"]) for clip in copy] == expected
    assert source[0]["video"].shape == (1, 4, 4, 3) and source[0]["video"].dtype == np.uint8
    assert list(source.skipped) == ["more/00001.tar/000002.png"] and "not a readable image" in caplog.text
    assert list(source.captions()) == ["a dark one", "ein grünes", "third", "", ""]
    with pytest.raises(IndexError):
        source[5]


def test_splits_share_no_image(shards):
    write_tar(shards / "many.tar", {f"{n}.png": picture(n) for n in range(60)})
    splits = [open_source(spec_of(shards, fractions=(0.6, 0.2, 0.2)), s) for s in ("train", "validation", "test")]
    names = [set(source._names) for source in splits]
    assert sum(map(len, names)) == len(set.union(*names)) == 65 and all(names)


def test_words_of_the_images_belong_to_the_vocabulary(shards):
    images = open_source(spec_of(shards), "train")
    digits = CaptionedDigits()
    words = caption_words(digits, None, [images])
    assert {"grünes", "third", "red", "moving"} <= set(words) and set(caption_words(digits, None)) < set(words)
    assert caption_words(spec_of(shards), images, [images]) == ("a", "dark", "ein", "grünes", "one", "third")


def test_what_cannot_be_read(shards, tmp_path):
    whole = (shards / "00000.tar").read_bytes()
    for data in (whole[:700], b"no tar" * 200):
        (shards / "00000.tar").write_bytes(data)
        source = open_source(spec_of(shards), "train")
        assert len(source) == 3 and "00000.tar is unreadable" in source.skipped["00000.tar"]
    write_tar(tmp_path / "none" / "a.tar", {})
    (tmp_path / "none" / "a.tar").write_bytes(b"no tar" * 200)
    with refused("ImageShards.path", "a.tar"):
        open_source(spec_of(tmp_path / "none"), "train")
    write_tar(tmp_path / "texts" / "a.tar", {"a.txt": b"alone"})
    with refused("ImageShards.path"):
        open_source(spec_of(tmp_path / "texts"), "train")
    with refused("ImageShards.height", "=0"):
        spec_of(shards, height=0)
    assert from_json(ImageShards, to_json(spec_of("x"))) == spec_of("x")


@pytest.mark.parametrize("prefix", ["./", "set/", "./set/", "set//", "/set/", "//"])
def test_names_with_dots_and_slashes_keep_their_captions(tmp_path, prefix):
    write_tar(tmp_path / "a.tar", {f"{prefix}{n}{end}": data for n in range(2) for end, data in (
        (".png", picture(n)), (".txt", f"caption {n}".encode()))})
    assert list(open_source(spec_of(tmp_path), "train").captions()) == ["caption 0", "caption 1"]
