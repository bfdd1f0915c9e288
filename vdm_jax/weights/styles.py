"""A video network in the style of an image network.

Lumiere (Bar-Tal et al. 2024, arXiv 2401.12945) keeps the layers of a text-to-image network and adds layers over time.
With the weights of an image network that was fine-tuned on a style put in their place, motion suffers; a mixture
`W = a W_style + (1 - a) W_orig`, with a chosen by hand between 0.5 and 1, keeps it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vdm_jax.configuration import Share, check_value
from vdm_jax.errors import UserError
from vdm_jax.networks.config import UNet
from vdm_jax.parallel.rules import path_name
from vdm_jax.weights.inflation import STEM, plan_inflation


def interpolated(params: Any, style: Any, weight: float, network: UNet, style_network: UNet) -> Any:
    """Parameters of a video network with its image layers moved towards those of an image network.

    Args:
      params: of the video network.
      style: of an image network of the same layout; which tensor belongs to which is what `inflation.py` says.
      weight: a; 0 leaves the video network as it is, 1 takes the style's layers.
      network, style_network: the configs of the two.

    Returns:
      `a style + (1 - a) params` where the style has a tensor, and `params` in layers over time and at inputs that the
      image network does not take.

    Raises:
      UserError: a weight outside [0, 1]; tensors of the image layers that are missing in one of the two, or of another
        shape, by name.
    """
    check_value(weight, Share, "weight")
    try:
        plan = plan_inflation(network, params, style_network, style)
    except UserError as error:
        raise UserError(f"the style does not fit: {error}") from None
    taken = plan.apply(params, style)
    given = plan.apply(params, jax.tree.map(jnp.ones_like, style))  # its first kernel: 1 at the style's input channels

    def mix(path: tuple, ours: Array, theirs: Array, there: Array) -> Array:
        name = path_name(path)
        if name not in plan.copied:
            return ours
        mixed = weight * theirs + (1 - weight) * ours
        return jnp.where(there == 1, mixed, ours) if name == STEM else mixed

    return jax.tree_util.tree_map_with_path(mix, params, taken, given)
