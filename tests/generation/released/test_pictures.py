"""Pictures of every kind as 8-bit RGB: what is white by type, how they are turned, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.refusals import refused
from vdm_jax.generation.released.pictures import open_pictures

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
GREY = np.repeat(RAMP[..., None], 3, -1)


def opened(picture):
    (image,) = open_pictures(picture)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("pixels", [
    RAMP, RAMP[..., None], GREY, np.dstack([GREY, RAMP]), RAMP.astype(np.uint16) * 257,
    RAMP.astype(np.int32) * 257, (RAMP / 255).astype(np.float32), RAMP / 255, (RAMP / 255).astype(np.float16),
], ids=lambda pixels: f"{pixels.dtype} {pixels.shape}")
def test_arrays_by_type(pixels):
    np.testing.assert_array_equal(opened(pixels), GREY)


@pytest.mark.parametrize("make, suffix", [
    (lambda: Image.fromarray(RAMP), "png"), (lambda: Image.fromarray(RAMP.astype(np.uint16) * 257), "png"),
    (lambda: Image.fromarray(RAMP.astype(np.uint16) * 257), "tiff"),
    (lambda: Image.fromarray(RAMP.astype(np.int32) * 257), "tiff"),
    (lambda: Image.fromarray((RAMP / 255).astype(np.float32)), "tiff"),
    (lambda: Image.merge("LA", [Image.fromarray(RAMP)] * 2), "png"),
    (lambda: Image.fromarray(GREY).convert("P", palette=Image.Palette.ADAPTIVE, colors=256), "png"),
], ids=["L", "I;16", "I;16 tiff", "I", "F", "LA", "P"])
def test_images_and_their_files(make, suffix, tmp_path):
    image = make()
    np.testing.assert_array_equal(opened(image), GREY)
    image.save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(opened(tmp_path / f"a.{suffix}"), GREY)
    with Image.open(tmp_path / f"a.{suffix}") as file:
        np.testing.assert_array_equal(opened(file), GREY)


def test_one_bit_cmyk_and_a_palette_with_transparency():
    np.testing.assert_array_equal(opened(RAMP > 127), np.where(GREY > 127, 255, 0))
    np.testing.assert_array_equal(opened(Image.fromarray(RAMP > 127)), np.where(GREY > 127, 255, 0))
    np.testing.assert_array_equal(opened(Image.new("CMYK", (2, 2), (0, 255, 255, 0))), [[[255, 0, 0]] * 2] * 2)
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.info["transparency"] = 0
    np.testing.assert_array_equal(opened(palette), [[[10, 200, 30]] * 2])


def test_an_image_and_its_file_are_turned_alike(tmp_path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, :2] = 255
    tags = Image.Exif()
    tags[0x0112] = 6  # to be turned a quarter for display
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=tags)
    by_path = opened(tmp_path / "a.png")
    assert by_path.shape == (6, 4, 3) and (by_path[:2] == 255).all() and (by_path[2:] == 0).all()
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(opened(image), by_path)


@pytest.mark.parametrize("picture, message", [
    (np.array([[0.0, 1.5]]), ("pictures._of_array", "0.0", "1.5", "1.0")), (np.array([[np.nan]]),
     ("pictures._of_array",)),
    (np.array([[-1]], np.int32), ("pictures._of_array", "0", "65535")),
    (np.zeros((2, 2), np.int64), ("pictures._of_array",)), (np.zeros((2, 2), complex), ("pictures._of_array",)),
    (np.zeros((2, 2, 2), np.uint8), ("pictures._of_array", "[2, 2, 2]")), (np.zeros((0, 2, 3), np.uint8),
     ("pictures._of_array", "0", "2")),
    (np.zeros(3, np.uint8), ("pictures._of_array", "[3]")), (None, ("pictures._opened", "NoneType")), (b"png",
     ("pictures._opened",)),
])
def test_refusals(picture, message):
    with refused(*message):
        open_pictures(picture)


def test_a_file_that_is_cut_off(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    for picture in (tmp_path / "b.png", Image.open(tmp_path / "b.png")):
        with refused("image"):
            open_pictures(picture)
