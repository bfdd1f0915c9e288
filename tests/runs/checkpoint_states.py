"""States to save, and what tests of checkpoints do with them."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.runs.checkpoints import Checkpoints

ROOT = pathlib.Path(__file__).parents[2]


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: tuple
    ema: dict
    key: jax.Array


def mesh_of(*shape):
    names = ("data", "model")[:len(shape)]
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))


def make_state(seed=0, mesh=None, width=8):
    """A small state with everything a real one has: adamw with masked leaves, bfloat16, NaN, a typed key."""
    rng = np.random.default_rng(seed)
    params = {"down": {"kernel": jnp.asarray(rng.standard_normal((16, width)), jnp.float32),
                       "bias": jnp.asarray(rng.standard_normal(width), jnp.bfloat16)},
              "scale": jnp.asarray([np.nan, np.inf, -0.0, 1e-42], jnp.float32)}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(
        optax.linear_schedule(0.0, 1e-3, 10), mask=jax.tree.map(lambda leaf: leaf.ndim > 1, params)))
    moments = jax.tree.map(lambda leaf: leaf + 1, optimizer.init(params))
    state = State(step=jnp.int32(seed), params=params, opt_state=moments,
                  ema=jax.tree.map(lambda leaf: leaf * 2, params), key=jax.random.key(seed))
    if mesh is None:
        return state
    return jax.device_put(state, shardings_of(state, mesh))


def shardings_of(state, mesh):
    """Matrices are split over every axis of the mesh, everything else is replicated."""
    split, whole = NamedSharding(mesh, P(*mesh.axis_names)), NamedSharding(mesh, P())
    return jax.tree.map(lambda leaf: split if leaf.ndim == 2 else whole, state)


def abstract(state, mesh=None):
    if mesh is None:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    return jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
                        state, shardings_of(state, mesh))


def raw_bytes(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        assert raw_bytes(a) == raw_bytes(b), path


def save_steps(directory, *steps, **options):
    with Checkpoints(directory, keep=None, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {})


def files_of(directory, step):
    """Name -> size of every file of a checkpoint that its manifest lists."""
    return json.loads((directory / str(step) / "manifest.json").read_text())["sizes"]


def largest(directory, step):
    sizes = files_of(directory, step)
    return directory / str(step) / max(sizes, key=sizes.get)


def restore_after(checkpoints):
    checkpoints.wait()
    return checkpoints.restore(abstract(make_state()))


def run_python(code, *arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, text=True, stdout=pipe, stderr=pipe)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
