"""LPIPS as the distance of a consistency loss, and its weights, which training uses and does not train."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from vdm_jax.diffusion.arrays import Video
from vdm_jax.diffusion.distillation import Perceptual
from vdm_jax.metrics.detectors import lpips
from vdm_jax.stages.latent import abstract_weights
from vdm_jax.stages.stage import Stage


def perceptual_distance(
    spec: Perceptual, weights: Any, x: Video, target: Video, mask: Float[Array, "B T ..."] | None = None
) -> Float[Array, " B"]:
    """LPIPS of each example, the mean of its frames of which something counts: x, where `mask` is 1."""
    x = x if mask is None else jnp.where(mask > 0, x, target)
    frames = (video.reshape(-1, *video.shape[2:]) for video in (x, target))
    found = lpips.distance(weights, *frames, spec.backbone).reshape(x.shape[:2])
    if mask is None:
        return found.mean(1)
    counted = jnp.broadcast_to(jnp.any(mask > 0, axis=tuple(range(2, mask.ndim))), found.shape)
    return found.sum(1) / jnp.maximum(counted.sum(1), 1)


def perceptual(stage: Stage) -> Perceptual | None:
    """The distance of the stage's loss, if it has such weights."""
    distance = getattr(stage.training.distillation, "distance", None)
    return distance if isinstance(distance, Perceptual) else None


def perceptual_weights(stage: Stage) -> tuple[Any, ...]:
    """The weights of LPIPS as a further argument of the train step; none for a stage whose loss has none. Raises
    `UserError` where they are not at hand."""
    found = perceptual(stage)
    return () if found is None else (lpips.parameters(found.backbone),)


def abstract_fixed(stage: Stage, mesh: Mesh) -> tuple[Any, ...]:
    """Shapes of the weights that a train step uses and does not train, an autoencoder's or those of LPIPS, on a
    mesh: one further argument, or none."""
    found = perceptual(stage)
    if found is None:
        return abstract_weights(stage.latent, mesh)
    whole = NamedSharding(mesh, P())
    return (jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
                         lpips.abstract_parameters(found.backbone)),)


def fixed_shardings(stage: Stage, mesh: Mesh) -> tuple[Any, ...]:
    """Where these weights live."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract_fixed(stage, mesh))
