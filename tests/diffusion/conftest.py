"""Data whose optimal denoiser and probability-flow map are known in closed form."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion.arrays import expand

SHAPE = (2, 1, 1, 2)  # T H W C


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """x ~ N(mean, covariance) over the flattened video of SHAPE."""

    mean: np.ndarray
    covariance: np.ndarray

    def _scaled(self, z, factor, alpha_in, alpha_out):
        """`alpha_out mean + U factor U^T (z - alpha_in mean)`, factor [..., D] over the eigenvectors U."""
        _, vectors = np.linalg.eigh(self.covariance)
        centred = z.reshape(z.shape[0], -1) - alpha_in * self.mean
        return (alpha_out * self.mean + (centred @ vectors * factor) @ vectors.T).reshape(z.shape)

    def denoiser(self, process):
        """E[x | z] at every level."""
        variances = np.linalg.eigvalsh(self.covariance)

        def denoise(z, logsnr):
            alpha, sigma = (expand(a, z[:, :1, 0, 0, 0]) for a in process.schedule.alpha_sigma(logsnr))
            factor = alpha * variances / (alpha**2 * variances + sigma**2)
            return self._scaled(z, factor, alpha, 1.0)

        return denoise

    def flow(self, z, alpha, sigma):
        """Where the probability-flow ODE takes z from level (alpha, sigma) to clean data."""
        variances = np.linalg.eigvalsh(self.covariance)
        return self._scaled(z, np.sqrt(variances / (alpha**2 * variances + sigma**2)), alpha, 1.0)


@pytest.fixture
def gaussian():
    covariance = np.array(
        [[0.50, 0.20, 0.05, 0.00], [0.20, 0.40, 0.10, 0.05], [0.05, 0.10, 0.30, -0.1], [0.0, 0.05, -0.1, 0.6]]
    )
    return Gaussian(np.array([0.4, -0.3, 0.2, 0.0]), covariance)


@pytest.fixture
def videos():
    """Six fixed videos [6, 2, 1, 1, 2] and as much noise."""
    x, noise = np.random.default_rng(0).normal(size=(2, 6, *SHAPE)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(noise)
