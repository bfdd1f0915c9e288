"""Which steps of a stage evaluate the whole network, where that follows from the network."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from vdm_jax.diffusion.caching import ByChange, Cache
from vdm_jax.errors import UserError
from vdm_jax.generation.one_stage import released_steps, stage_levels
from vdm_jax.networks.transformer.caching import level_vectors
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Stage


def cache_of(stage: Stage, sampling: Sampling, params: Any, cache: Cache | ByChange | None, mesh: Mesh) -> Cache | None:
    """The plan of a stage that is sampled in this way. Of `ByChange` it comes from the noise levels that the network
    embeds. Raises `UserError` for that of a network that is no transformer or has two experts, and of frames that have
    levels of their own."""
    if not isinstance(cache, ByChange):
        return cache
    network, where = stage.network, f"Stage {stage.name!r}: cache={cache}"
    if not isinstance(network, VideoTransformer):
        raise UserError(f"{where} with a {type(network).__name__}; permitted: Cache(...) (--cache 3), or a "
                        "VideoTransformer", "Sampling.cache")
    if network.boundary is not None:
        raise UserError(f"{where} with network.boundary={network.boundary}; permitted: None, or one expert",
                        "Sampling.cache")
    if sampling.frame_lag or sampling.frame_schedule is not None:
        raise UserError(f"{where} with frames of different noise levels; permitted: Cache(...)", "Sampling.cache")
    levels, (_, embedded) = jnp.asarray(stage_levels(stage, sampling)), released_steps(stage, sampling)
    if embedded is not None:
        levels = jnp.interp(levels, *embedded)
    with jax.set_mesh(mesh):
        vectors = _whole_vectors(network, {"embedding": params["embedding"]}, levels)
    return cache.plan(np.asarray(vectors))


@functools.partial(jax.jit, static_argnums=0)
def _whole_vectors(network: VideoTransformer, params: Any, levels: Float[Array, " N"]) -> Float[Array, "N C"]:
    """`level_vectors`, on all devices of the mesh in context."""
    return jax.lax.with_sharding_constraint(level_vectors(network, params, levels), P())
