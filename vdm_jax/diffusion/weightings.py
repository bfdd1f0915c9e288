"""Loss weightings: each is the log of a weight on the squared error in x, as a function of the log-SNR.

They say nothing about how often a level is drawn; that is `levels.py`. Weights are kept as logarithms because
they span e^20 over a schedule and only their ratio to the prediction's own weight is ever used.
"""

import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from vdm_jax.configuration import LogSNR, Positive, Range, config
from vdm_jax.diffusion.arrays import Level
from vdm_jax.diffusion.predictions import log_precision


@config
class UniformWeighting:
    """Plain mean squared error in whatever the network predicts.

    For a v model that is SNR + 1 on the x error, for an edm model the weighting of Karras et al. 2022 (see
    `SpaceWeighting`).
    """

    def log_weight(self, logsnr: Level, own: Level) -> Level:
        """Log-weight on the x error; `own` is that of the plain error of the network's own prediction."""
        return own


@config
class SpaceWeighting:
    """Plain mean squared error in a named space, whatever the network predicts.

    Weight on the x error: x 1; eps SNR; v, of the variance-preserving path, SNR + 1 (Salimans & Ho 2022, arXiv
    2202.00512, section 4); flow (1 + sqrt SNR)^2; edm SNR + 1 / sigma_data^2 (Karras et al. 2022, arXiv
    2206.00364, table 1).
    """

    space: Literal[
        "x", "eps", "v", "flow", "edm"
    ]  # the space in which the error counts equally at all levels
    sigma_data: Positive = 0.5  # standard deviation of the data, for 'edm' only

    def log_weight(self, logsnr: Level, own: Level) -> Level:
        """Log-weight on the x error; `own` is that of the plain error of the network's own prediction."""
        return log_precision(self.space, logsnr, self.sigma_data)


@config
class TruncatedSNRWeighting:
    """max(SNR, 1): the larger of the x and eps errors (Salimans & Ho 2022, arXiv 2202.00512, section 4).

    With `gamma` it is min(max(SNR, 1), gamma), the x error at both ends.
    """

    # The SNR above which the x error counts equally, as with `MinSNRWeighting`; None: there is none
    gamma: Annotated[float, Range(least=1, cap=1e12)] | None = None

    def log_weight(self, logsnr: Level, own: Level) -> Level:
        """Log-weight on the x error; `own` is that of the plain error of the network's own prediction."""
        return jnp.clip(logsnr, 0, None if self.gamma is None else math.log(self.gamma))


@config
class MinSNRWeighting:
    """min(SNR, gamma) (Hang et al. 2023, arXiv 2303.09556)."""

    gamma: Positive = 5.0  # the SNR above which the x error counts equally

    def log_weight(self, logsnr: Level, own: Level) -> Level:
        """Log-weight on the x error; `own` is that of the plain error of the network's own prediction."""
        return jnp.minimum(logsnr, math.log(self.gamma))


@config
class SigmoidWeighting:
    """SNR * sigmoid(bias - logsnr), that is sigmoid(bias - logsnr) on the eps error.

    Kingma & Gao 2023 (arXiv 2303.00848); the density with which levels are drawn is not divided out.
    """

    bias: LogSNR = 0.0  # the log-SNR at which the weight on the eps error is one half

    def log_weight(self, logsnr: Level, own: Level) -> Level:
        """Log-weight on the x error; `own` is that of the plain error of the network's own prediction."""
        return logsnr + jax.nn.log_sigmoid(self.bias - logsnr)


@config
class P2Weighting:
    """SNR / (k + SNR)^gamma: 1 / (k + SNR)^gamma on the eps error (Choi et al. 2022, arXiv 2204.00227)."""

    k: Positive = 1.0  # keeps the weight finite at low SNR
    # How strongly clean levels are discounted; 0 is the plain eps error
    gamma: Annotated[float, Range(least=0, cap=100)] = 1.0

    def log_weight(self, logsnr: Level, own: Level) -> Level:
        """Log-weight on the x error; `own` is that of the plain error of the network's own prediction."""
        return logsnr - self.gamma * jnp.logaddexp(logsnr, math.log(self.k))


Weighting = (
    UniformWeighting
    | SpaceWeighting
    | TruncatedSNRWeighting
    | MinSNRWeighting
    | SigmoidWeighting
    | P2Weighting
)
