"""Noise levels as a video transformer takes them."""

from __future__ import annotations

import jax
from jaxtyping import Array, Bool, Float

from vdm_jax.networks.transformer.config import BetaTables
from vdm_jax.networks.unet import encode_level

CLEAN = 20.0  # log-SNR that clean frames have for the network: of the clip in sight, of finished blocks
ROUNDING = 1e-5  # by which the sigma of a log-SNR in float32 may lie below the one that is meant


def level_number(
    logsnr: Float[Array, " ..."], encoding: str, timesteps: BetaTables | None = None
) -> Float[Array, " ..."]:
    """Noise level as a number of order 1000: 1000 sigma of a flow `(1 - sigma) x + sigma eps`, whose log-SNR is
    `2 ln((1 - sigma) / sigma)`, the timestep of a table, or as `unet.encode_level` says."""
    if timesteps is not None:
        return timesteps.timestep(logsnr)
    return 1000 * jax.nn.sigmoid(-logsnr / 2) if encoding == "flow" else encode_level(logsnr, encoding)


def is_noisy(logsnr: Float[Array, " ..."], boundary: float) -> Bool[Array, " ..."]:
    """Which noise levels of a flow are those of the expert for much noise, from sigma `boundary` on."""
    return jax.nn.sigmoid(-logsnr / 2) >= boundary - ROUNDING
