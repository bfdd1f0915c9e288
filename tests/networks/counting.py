"""How many parameters a U-Net has."""

import jax
import jax.numpy as jnp

from vdm_jax.networks.unet import SpaceTimeUNet


def count_parameters(network, shape, conditioning=None):
    """Without allocating any; `shape` is one batch of video `(B, T, H, W, C)`."""
    z, level = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.float32)
    variables = jax.eval_shape(SpaceTimeUNet(network).init, jax.random.key(0), z, level, conditioning)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
