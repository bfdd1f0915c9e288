import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.video import arrays


def random_video(*shape):
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, shape), jnp.float32)


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_conversion_is_exact_for_every_level(convert):
    levels = convert(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1))
    floats = arrays.to_float(levels)
    assert isinstance(floats, type(levels)) and floats.dtype == np.float32
    assert floats.min() == -1 and floats.max() == 1
    np.testing.assert_array_equal(arrays.to_uint8(floats), levels)


def test_conversion_clips_and_rounds():
    values = np.array([-3.0, -1.0, 0.0, 1.0, 9.0, 1 / 127.5 * 0.51 - 1, 1 / 127.5 * 0.49 - 1], np.float32)
    np.testing.assert_array_equal(arrays.to_uint8(values), [0, 0, 128, 255, 255, 1, 0])


def test_conversion_refuses_the_wrong_type():
    with refused("arrays.to_float", "dtype=float32"):
        arrays.to_float(np.zeros(3, np.float32))
    with refused("arrays.to_uint8", "dtype=uint8"):
        arrays.to_uint8(np.zeros(3, np.uint8))


def test_area_is_the_block_mean():
    video = random_video(2, 3, 12, 8, 3)
    small = jax.jit(lambda x: arrays.resize(x, 4, 2))(video)
    expected = np.asarray(video).reshape(2, 3, 4, 3, 2, 4, 3).mean((3, 5))
    np.testing.assert_allclose(small, expected, atol=1e-6)


def test_area_with_other_factors_keeps_constants_and_the_mean():
    video = random_video(2, 15, 9, 1)
    np.testing.assert_allclose(arrays.resize(jnp.full((1, 15, 9, 1), 0.3), 6, 4), 0.3, atol=1e-6)
    # 9 is a whole multiple of 3: along that axis the means are exact whatever happens along the other.
    small = arrays.resize(video, 10, 3)
    along_width = np.asarray(video).reshape(2, 15, 3, 3, 1).mean(3)
    np.testing.assert_allclose(small, jax.image.resize(along_width, (2, 10, 3, 1), "linear"), atol=1e-5)


def test_area_does_not_alias_where_bilinear_does():
    stripes = jnp.tile(jnp.array([1.0, -1.0]), 30)[None, :, None] * jnp.ones((8, 60, 1))
    assert abs(arrays.resize(stripes, 8, 25)[:, 3:-3]).max() < 0.1
    assert abs(arrays.resize(stripes, 8, 25, "bilinear")).max() > 0.5


def test_bilinear_and_nearest_by_hand():
    row = jnp.array([0.0, 1.0]).reshape(1, 2, 1)
    np.testing.assert_allclose(arrays.resize(row, 1, 4, "bilinear").ravel(), [0, 0.25, 0.75, 1])
    np.testing.assert_allclose(arrays.resize(row, 1, 4, "nearest").ravel(), [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: arrays.resize(v, 4, 4, "cubic"), ("method", "='cubic'", "'area'", "'bilinear'", "'nearest'")),
        (lambda v: arrays.resize(v, 0, 4), ("size",)),
        (lambda v: arrays.resize(v[0, 0, 0], 4, 4), ("arrays.resize", "[..., H, W, C]")),
        (lambda v: arrays.resize(v.astype(jnp.uint8), 4, 4), ("arrays._require_float", "dtype=uint8")),
        (lambda v: arrays.subsample_frames(v, 5), ("arrays.subsample_frames", "frames=5", "6", "1", "2", "3")),
        (lambda v: arrays.upsample_frames(v, 9), ("arrays.upsample_frames", "frames=9", "6", "12", "18")),
        (lambda v: arrays.upsample_frames(v, 12, "mirror"),
         ("arrays.upsample_frames", "mode='mirror'", "'repeat'", "'blank'", "'linear'")),
        (lambda v: arrays.subsample_frames(v[0], 1), ("arrays._require_frames", "[..., T, H, W, C]")),
        (lambda v: arrays.crop(v, 0, 0, 9, 2), ("arrays.crop", "9x2", "8x8")),
        (lambda v: arrays.crop(v, 0, 7, 4, 2), ("arrays.crop", "left=7", "0", "6")),
    ],
)
def test_errors_name_value_and_what_is_permitted(call, message):
    with refused(*message):
        call(jnp.zeros((1, 6, 8, 8, 3))[0])


def test_subsample_takes_every_kth_frame():
    video = random_video(2, 6, 4, 4, 3)
    np.testing.assert_array_equal(arrays.subsample_frames(video, 2), video[:, ::3])


@pytest.mark.parametrize("mode", ["repeat", "blank", "linear"])
def test_subsampling_undoes_upsampling(mode):
    video = random_video(2, 4, 3, 3, 3)
    wide = arrays.upsample_frames(video, 12, mode)
    assert wide.shape == (2, 12, 3, 3, 3)
    np.testing.assert_allclose(arrays.subsample_frames(wide, 4), video, atol=1e-6)


def test_upsampling_by_hand():
    video = jnp.array([1.0, 3.0]).reshape(2, 1, 1, 1)
    for mode, expected in [("repeat", [1, 1, 3, 3]), ("blank", [1, 0, 3, 0]), ("linear", [1, 2, 3, 3])]:
        np.testing.assert_allclose(arrays.upsample_frames(video, 4, mode).ravel(), expected)


def test_crops():
    video = random_video(2, 3, 8, 10, 3)
    np.testing.assert_array_equal(arrays.crop(video, 1, 2, 4, 5), video[:, :, 1:5, 2:7])
    np.testing.assert_array_equal(jax.jit(lambda x, t: arrays.crop(x, t, 0, 4, 5))(video, 3), video[:, :, 3:7, :5])
