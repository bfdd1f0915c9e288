"""A tiny autoencoder with random weights, as a file that `vdm-jax convert` might have written."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vdm_jax.networks.autoencoders.config import Autoencoder
from vdm_jax.weights import model_kinds
from vdm_jax.weights.pretrained import Pretrained, save_imported

# Of latents of 4 channels, two pixels a side. The file has another scale than this says, and a shift.
AUTOENCODER = Autoencoder(widths=(8, 8), blocks=1, groups=4, middle_attention=False)
SCALE, SHIFT = 1.7, 0.25


def random_params(config, seed=0):
    """Parameters of an open model with nothing zero: kernels of unit gain, everything else of order 0.3."""
    rng, params = np.random.default_rng(seed), {}
    for path, leaf in model_kinds.shapes(config).items():
        name = path.split("/")[-1]
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if name == "kernel" else 0.3
        params[path] = jnp.asarray((name == "scale") + scale * rng.normal(size=leaf.shape), leaf.dtype)
    return traverse_util.unflatten_dict(params, sep="/")


def write_model(path, config, seed=0):
    """A file of a model with random parameters; returns the model."""
    model = Pretrained(config, jax.device_get(random_params(config, seed)))
    save_imported(path, model)
    return model
