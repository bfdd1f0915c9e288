import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.diffusion import predictions
from vdm_jax.diffusion.arrays import expand
from vdm_jax.diffusion.families import FLOW, VE, VP

KINDS = ("x", "eps", "v", "flow", "score", "edm")
LOGSNR = jnp.array([-5.0, -1.0, 0.0, 0.5, 2.0, 6.0])


@pytest.mark.parametrize("family", [VP, VE, FLOW], ids=lambda family: family.name)
@pytest.mark.parametrize("kind", KINDS)
def test_each_prediction_implies_all_others(kind, family, videos):
    x, eps = videos
    alpha, sigma = family.alpha_sigma(LOGSNR)
    z = expand(alpha, x) * x + expand(sigma, x) * eps
    truth = predictions.predictions_of(x, eps, alpha, sigma, 0.7)
    implied = predictions.convert(kind, truth[kind], z, alpha, sigma, 0.7)
    assert set(implied) == set(KINDS)
    for name in KINDS:
        np.testing.assert_allclose(implied[name], truth[name], rtol=2e-4, atol=2e-4, err_msg=name)


def test_definitions(videos):
    x, eps = videos
    alpha, sigma = 0.8, 0.6
    truth = predictions.predictions_of(x, eps, jnp.full(6, alpha), jnp.full(6, sigma))
    np.testing.assert_allclose(truth["v"], 0.8 * eps - 0.6 * x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(truth["flow"], eps - x, rtol=1e-5, atol=1e-6)
    z = alpha * x + sigma * eps
    np.testing.assert_allclose(truth["score"], -(z - alpha * x) / sigma**2, rtol=1e-4, atol=1e-5)


def test_edm_is_the_published_preconditioning(videos):
    x, eps = videos
    sigma, data = 1.7, 0.5
    z = x + sigma * eps
    network = jax.random.normal(jax.random.key(1), x.shape)
    c_skip, c_out = data**2 / (sigma**2 + data**2), sigma * data / np.sqrt(sigma**2 + data**2)
    implied = predictions.convert("edm", network, z, jnp.ones(6), jnp.full(6, sigma), data)
    np.testing.assert_allclose(implied["x"], c_skip * z + c_out * network, rtol=1e-5, atol=1e-6)
    scale = predictions.input_scale("edm", jnp.ones(6), jnp.full(6, sigma), data)
    np.testing.assert_allclose(scale, 1 / np.sqrt(sigma**2 + data**2), rtol=1e-6)


def test_levels_per_frame(videos):
    x, eps = videos
    logsnr = jnp.linspace(-2, 2, 12).reshape(6, 2)
    alpha, sigma = VP.alpha_sigma(logsnr)
    v = predictions.predictions_of(x, eps, alpha, sigma)["v"]
    for frame in (0, 1):
        single = predictions.predictions_of(x, eps, alpha[:, frame], sigma[:, frame])["v"]
        np.testing.assert_allclose(v[:, frame], single[:, frame], rtol=1e-6)


@pytest.mark.parametrize("kind", ["v", "flow", "edm"])
@pytest.mark.parametrize("logsnr", [-20.0, 20.0])
def test_both_ends_stay_well_conditioned(kind, logsnr, videos):
    x, eps = videos
    family = {"v": VP, "flow": FLOW, "edm": VE}[kind]
    alpha, sigma = family.alpha_sigma(jnp.full(6, logsnr))
    z = expand(alpha, x) * x + expand(sigma, x) * eps
    truth = predictions.predictions_of(x, eps, alpha, sigma)
    implied = predictions.convert(kind, truth[kind], z, alpha, sigma)
    np.testing.assert_allclose(implied["x"], x, atol=4e-3)
    np.testing.assert_allclose(implied["eps"], eps, atol=4e-3)


@pytest.mark.parametrize(
    "kind, family",
    [("x", VP), ("eps", VP), ("v", VP), ("eps", FLOW), ("flow", FLOW), ("flow", VE), ("edm", VE)],
)
def test_log_precision_is_the_ratio_of_squared_errors(kind, family, videos):
    x, eps = videos
    alpha, sigma = family.alpha_sigma(LOGSNR)
    z = expand(alpha, x) * x + expand(sigma, x) * eps
    wrong = predictions.convert("x", x + 0.3, z, alpha, sigma)[kind]
    right = predictions.convert("x", x, z, alpha, sigma)[kind]
    ratio = jnp.square(wrong - right).mean((1, 2, 3, 4)) / 0.3**2
    np.testing.assert_allclose(jnp.exp(predictions.log_precision(kind, LOGSNR)), ratio, rtol=2e-3)


def test_unknown_prediction_is_an_error(videos):
    with refused("prediction", "='noise'"):
        predictions.convert("noise", videos[0], videos[0], jnp.ones(6), jnp.ones(6))
    with refused("prediction", "='noise'"):
        predictions.log_precision("noise", LOGSNR)
