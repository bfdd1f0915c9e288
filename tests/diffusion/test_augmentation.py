import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.diffusion.arrays import noise_from_keys
from vdm_jax.diffusion.augmentation import (
    BlurAugmentation,
    NoiseAugmentation,
    TruncatedConditioningAugmentation,
    gaussian_blur,
)
from vdm_jax.diffusion.schedules import CosineSchedule

KEYS = jax.random.split(jax.random.key(0), 6)


@pytest.mark.parametrize("snr, alpha, sigma", [(3.0, 0.8660, 0.5000), (5.0, 0.9129, 0.4082)])
def test_published_levels(snr, alpha, sigma):
    x = jnp.ones((6, 4, 16, 16, 1))
    augmented = NoiseAugmentation().augment(x, KEYS, jnp.full(6, np.log(snr)))
    zero = NoiseAugmentation().augment(0 * x, KEYS, jnp.full(6, np.log(snr)))
    np.testing.assert_allclose(augmented - zero, alpha, atol=1e-4)
    assert float(zero.std()) == pytest.approx(sigma, rel=0.03)


def test_default_sampling_level_is_snr_3():
    assert np.exp(NoiseAugmentation().sampling_logsnr) == pytest.approx(3)


def test_each_sample_uses_its_own_key_and_no_stream_of_a_sampler(videos):
    augment = NoiseAugmentation().augment
    together, alone = augment(videos[0], KEYS, jnp.zeros(6)), augment(videos[0][2:3], KEYS[2:3], jnp.zeros(1))
    np.testing.assert_allclose(together[2:3], alone, rtol=1e-6)
    noise = augment(0 * videos[0], KEYS, jnp.full(6, -20.0))
    assert not np.allclose(noise, noise_from_keys(KEYS, 0, noise.shape), atol=0.1)


def test_training_levels():
    uniform = NoiseAugmentation(training_logsnr=(0.5, 2.0)).draw_logsnr(jax.random.key(0), 4000)
    assert uniform.min() >= 0.5 and uniform.max() <= 2.0
    assert float(uniform.mean()) == pytest.approx(1.25, abs=0.03)
    times = CosineSchedule().time(NoiseAugmentation().draw_logsnr(jax.random.key(0), 64))
    np.testing.assert_allclose(np.diff(np.sort(times)), 1 / 64, atol=1e-5)


def test_blur_is_a_normalised_3x3_gaussian_on_every_frame():
    impulse = jnp.zeros((1, 2, 5, 5, 1)).at[0, 1, 2, 2, 0].set(1.0)
    blurred = np.asarray(gaussian_blur(impulse, jnp.array([0.5])))[0, :, :, :, 0]
    side = np.exp(-0.5 / 0.5**2)
    kernel = np.array([side, 1, side]) / (1 + 2 * side)
    np.testing.assert_allclose(blurred[1, 1:4, 1:4], np.outer(kernel, kernel), rtol=1e-5)
    assert blurred.sum() == pytest.approx(1, rel=1e-5) and not blurred[0].any()
    np.testing.assert_allclose(gaussian_blur(jnp.ones((1, 1, 3, 3, 1)), jnp.array([0.6])), 1, rtol=1e-6)


def test_blur_acts_on_its_share_of_the_videos():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(200, 1, 4, 4, 1)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 200)
    augment = BlurAugmentation().augment
    changed = np.abs(np.asarray(augment(x, keys) - x)).max((1, 2, 3, 4)) > 0
    assert 70 < changed.sum() < 130
    np.testing.assert_allclose(augment(x, keys)[7:8], augment(x[7:8], keys[7:8]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(BlurAugmentation(probability=0.0).augment(x, keys), x)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: NoiseAugmentation(training_logsnr=(2.0, 1.0)), ("NoiseAugmentation.training_logsnr", "=(2.0, 1.0)")),
        (lambda: TruncatedConditioningAugmentation(training_logsnr=(2.0, 1.0)),
         ("TruncatedConditioningAugmentation.training_logsnr", "=(2.0")),
        (lambda: NoiseAugmentation(at="full"),
         ("NoiseAugmentation.at", "='full'", "'enlarged'", "'low'")),
        (lambda: BlurAugmentation(probability=2.0), ("BlurAugmentation.probability", "=2.0", ">= 0", "<= 1")),
        (lambda: BlurAugmentation(sigma=(0.0, 1.0)), ("BlurAugmentation.sigma", "=(0.0, 1.0)")),
    ],
)
def test_errors(make, message):
    with refused(*message):
        make()
