import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.diffusion.predictions import log_precision
from vdm_jax.diffusion.weightings import (
    MinSNRWeighting,
    P2Weighting,
    SigmoidWeighting,
    SpaceWeighting,
    TruncatedSNRWeighting,
    UniformWeighting,
)

LOGSNR = np.linspace(-20, 20, 41).astype(np.float32)
SNR = np.exp(LOGSNR.astype(np.float64))
SIGMA_VE = SNR**-0.5


@pytest.mark.parametrize(
    "weighting, closed_form",
    [
        (SpaceWeighting(space="x"), np.ones_like(SNR)),
        (SpaceWeighting(space="eps"), SNR),
        (SpaceWeighting(space="v"), SNR + 1),
        (SpaceWeighting(space="flow"), (1 + np.sqrt(SNR)) ** 2),
        (SpaceWeighting(space="edm", sigma_data=0.5), (SIGMA_VE**2 + 0.25) / (SIGMA_VE * 0.5) ** 2),
        (TruncatedSNRWeighting(), np.maximum(SNR, 1)),
        (TruncatedSNRWeighting(gamma=5.0), np.clip(SNR, 1, 5)),
        (MinSNRWeighting(), np.minimum(SNR, 5)),
        (MinSNRWeighting(gamma=2.0), np.minimum(SNR, 2)),
        (SigmoidWeighting(bias=-1.0), SNR / (1 + np.exp(LOGSNR.astype(np.float64) + 1))),
        (P2Weighting(k=2.0, gamma=0.5), SNR / np.sqrt(2 + SNR)),
    ],
    ids=repr,
)
def test_closed_form(weighting, closed_form):
    log_weight = weighting.log_weight(jnp.asarray(LOGSNR), jnp.full(41, 99.0))
    np.testing.assert_allclose(np.exp(np.asarray(log_weight, np.float64)), closed_form, rtol=2e-5)


@pytest.mark.parametrize("space", ["x", "eps", "v", "flow", "edm"])
def test_uniform_is_the_space_of_the_network(space):
    logsnr = jnp.asarray(LOGSNR)
    own = log_precision(space, logsnr)
    expected = SpaceWeighting(space=space).log_weight(logsnr, own)
    np.testing.assert_array_equal(UniformWeighting().log_weight(logsnr, own), expected)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: SpaceWeighting(space="noise"),
            ("SpaceWeighting.space", "='noise'", "'x'", "'eps'", "'v'", "'flow'", "'edm'"),
        ),
        (lambda: SpaceWeighting(space="edm", sigma_data=0.0), ("SpaceWeighting.sigma_data", "=0")),
        (lambda: MinSNRWeighting(gamma=0.0), ("MinSNRWeighting.gamma", "=0")),
        (lambda: P2Weighting(k=0.0), ("P2Weighting.k", "=0.0", "> 0")),
    ],
)
def test_errors(make, message):
    with refused(*message):
        make()
