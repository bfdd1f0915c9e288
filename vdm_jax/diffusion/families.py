"""The three families of Gaussian paths `z = alpha x + sigma eps`, as functions of the log-SNR.

All three describe the same process up to a scaling of z, since `z / alpha = x + exp(-lambda/2) eps` in each.
What differs is the curve that z follows as noise is added. With a coordinate u along that curve, `dz/du =
alpha'(u) x + sigma'(u) eps` is the velocity that solvers integrate:

    family   alpha          sigma          u                      dz/du
    vp       cos u          sin u          atan(sigma / alpha)    alpha eps - sigma x   (v)
    ve       1              u              sigma                  eps
    flow     1 - u          u              sigma                  eps - x               (flow)
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from vdm_jax.diffusion.arrays import Level


@dataclasses.dataclass(frozen=True)
class Family:
    """One family; see the table above. `velocity` names dz/du as a key of the prediction dict."""

    name: Literal["vp", "ve", "flow"]
    alpha_sigma: Callable[[Level], tuple[Level, Level]]
    coordinate: Callable[[Level], Level]
    velocity: Literal["v", "eps", "flow"]


class FamilyMember:
    """What a schedule inherits from its family."""

    family: ClassVar[Family]

    def alpha_sigma(self, logsnr: Level) -> tuple[Level, Level]:
        """Signal and noise amplitude at a log-SNR of any shape."""
        return self.family.alpha_sigma(jnp.asarray(logsnr, jnp.float32))


def _vp_alpha_sigma(logsnr: Level) -> tuple[Level, Level]:
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


def _ve_alpha_sigma(logsnr: Level) -> tuple[Level, Level]:
    return jnp.ones_like(logsnr), jnp.exp(-logsnr / 2)


def _flow_alpha_sigma(logsnr: Level) -> tuple[Level, Level]:
    return jax.nn.sigmoid(logsnr / 2), jax.nn.sigmoid(-logsnr / 2)


VP = Family("vp", _vp_alpha_sigma, lambda logsnr: jnp.arctan(jnp.exp(-logsnr / 2)), "v")
VE = Family("ve", _ve_alpha_sigma, lambda logsnr: jnp.exp(-logsnr / 2), "eps")
FLOW = Family("flow", _flow_alpha_sigma, lambda logsnr: jax.nn.sigmoid(-logsnr / 2), "flow")
