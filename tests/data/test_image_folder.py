import logging
import pickle

import numpy as np
import pytest
from PIL import Image

from tests.refusals import refused
from vdm_jax.data.image_folder import ImageFolder, ImageFolderSource
from vdm_jax.video.fitting import fit_frame


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    (root / "c").mkdir(parents=True)
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = np.random.default_rng(0).integers(0, 256, (20, 20, 3))
    Image.fromarray(wide).save(root / "a_wide.png")
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(root / "b_grey.png")
    Image.fromarray(np.full((9, 7, 4), (10, 20, 30, 255), np.uint8)).save(root / "c" / "alpha.webp", lossless=True)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown rotated by 90 degrees clockwise
    halves = np.zeros((16, 16, 3), np.uint8)
    halves[:8] = 255
    Image.fromarray(halves).save(root / "d_turned.jpg", exif=turned, quality=95)
    (root / "e_bad.png").write_bytes(b"no image")
    return root


def spec_of(folder, **fields):
    return ImageFolder(**{"path": str(folder), "height": 10, "width": 10, "fractions": (1.0, 0.0, 0.0), **fields})


def test_images_are_clips_of_one_frame(folder, caplog):
    with caplog.at_level(logging.WARNING):
        source = ImageFolderSource(spec_of(folder))
    assert len(source) == 4 and list(source.skipped) == ["e_bad.png"] and caplog.text.count("e_bad.png") == 1
    clips = list(source)
    assert all(c["video"].shape == (1, 10, 10, 3) and c["video"].dtype == np.uint8 for c in clips)
    whole = np.asarray(Image.open(folder / "a_wide.png")).astype(float)
    expected = whole[:, 10:30].reshape(10, 2, 10, 2, 3).mean((1, 3))
    assert np.abs(clips[0]["video"][0] - expected).max() <= 1
    assert (clips[1]["video"] == 77).all()
    assert (clips[2]["video"] == [10, 20, 30]).all()
    turned = clips[3]["video"][0].astype(int)
    assert turned[:, 7:].min() > 200 and turned[:, :3].max() < 50  # the white upper half is on the right


def test_captions_and_pickling(folder, tmp_path):
    (tmp_path / "c.csv").write_text("file,caption\nc/alpha.webp,dark blue\n")
    source = pickle.loads(pickle.dumps(ImageFolderSource(spec_of(folder, captions=str(tmp_path / "c.csv")))))
    assert [clip["caption"] for clip in source] == list(source.captions()) == ["", "", "dark blue", ""]


def test_captions_beside_the_images(folder, caplog):
    (folder / "c" / "alpha.txt").write_text("dark blue\n")
    with caplog.at_level(logging.WARNING):
        source = ImageFolderSource(spec_of(folder, caption_suffix=".txt"))
    assert list(source.captions()) == ["", "", "dark blue", ""] and source[2]["caption"] == "dark blue"
    assert "4 files have no caption (the first is a_wide.png)" in caplog.text
    with refused("ImageFolder.caption_suffix", "='.txt'", "captions='x.csv'"):
        spec_of(folder, caption_suffix=".txt", captions="x.csv")


def test_damage_behind_a_good_header_gives_the_next_image(folder, caplog):
    path = folder / "a_wide.png"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    source = ImageFolderSource(spec_of(folder))
    assert len(source) == 4
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(source[0]["video"], source[1]["video"])
    assert "skipped a_wide.png: not a readable image" in caplog.text


def test_errors(folder, tmp_path):
    with refused("ImageFolder.path"):
        ImageFolderSource(spec_of(tmp_path / "none"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_text("no")
    with refused("ImageFolder.path", "'train'", "x.png"):
        ImageFolderSource(spec_of(tmp_path / "bad"))
    with refused("ImageFolder.width", "=0"):
        spec_of(folder, width=0)


def test_fit_enlarges_and_reads_grey():
    frame = np.full((4, 6, 1), 9, np.uint8)
    assert (fit_frame(frame, 8, 8) == 9).all() and fit_frame(frame, 8, 8).shape == (8, 8, 3)


def test_oversized_pictures_are_skipped_and_suffixes_have_a_dot(folder, monkeypatch):
    monkeypatch.setattr("vdm_jax.data.image_folder.MAX_PIXELS", 10)
    with refused("ImageFolder.path", "10"):
        ImageFolderSource(spec_of(folder))
    for suffix in ("txt", ".", "", "./x", ".a.b"):
        with refused("ImageFolder.caption_suffix"):
            spec_of(folder, caption_suffix=suffix)
