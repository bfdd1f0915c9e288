"""A video transformer split over devices is that of one device: loss and every gradient of a training step."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests.parallel.test_equality import random_params
from vdm_jax.attention import Spatial, Temporal
from vdm_jax.attention.positions import RotaryAxes, RotaryCoordinates
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.schedules import FlowSchedule
from vdm_jax.networks.config import EmbeddedText
from vdm_jax.networks.transformer.config import VideoTransformer, wan
from vdm_jax.networks.transformer.members import cogvideox, ltx
from vdm_jax.parallel.arrays import global_batch
from vdm_jax.parallel.compiling import compiler_options
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.parallel.rules import batch_sharding, parameter_shardings
from vdm_jax.stages.parameters import initial_params
from vdm_jax.stages.stage import Stage, VideoSpec
from vdm_jax.training.step import gradients

SIZES = {"out_channels": 3, "patch": (1, 2, 2), "width": 16, "heads": 4, "hidden": 24, "level_channels": 8}
WAN = wan(**SIZES, layers=2, text=EmbeddedText(width=6), text_length=4)
LATTE = VideoTransformer(**SIZES, layers=4, patterns=(Spatial(), Temporal()), text=EmbeddedText(width=6),
                         rotary=RotaryAxes(dims=(2, 2, 0)), qk_norm="heads", attention_context="ulysses")
JOINT = cogvideox(**SIZES, layers=2, text=EmbeddedText(width=6), text_length=4, level_width=12,
                  rotary=RotaryAxes(dims=(2, 2, 0), grid=(8, 8)))
COORDINATES = ltx(**SIZES, layers=2, text=EmbeddedText(width=6),
                  rotary=RotaryCoordinates(steps=(1 / 8, 2.0, 2.0)))  # of videos in pixels at 8 per second
NETWORKS = {"wan": WAN, "latte": LATTE, "joint text": JOINT, "coordinates": COORDINATES}
# What splits the network, and how its attention exchanges tokens.
CASES = {
    "ulysses over columns": (dataclasses.replace(WAN, sharded_axis="width", attention_context="ulysses"),
                             MeshSpec(data=1, context=2, fsdp=2, tensor=2)),
    "ring over frames": (dataclasses.replace(WAN, attention_context="ring", remat="full"), MeshSpec(data=2, context=4)),
    "rows": (dataclasses.replace(WAN, sharded_axis="height"), MeshSpec(data=2, context=2, tensor=2)),
    "fsdp": (dataclasses.replace(WAN, remat="dots"), MeshSpec(data=1, fsdp=8)),
    "latte": (LATTE, MeshSpec(data=1, context=2, fsdp=2, tensor=2)),
    "joint text": (dataclasses.replace(JOINT, remat="full"), MeshSpec(data=1, context=2, fsdp=2, tensor=2)),
    "coordinates": (dataclasses.replace(COORDINATES, sharded_axis="width", attention_context="ulysses"),
                    MeshSpec(data=2, context=2, tensor=2)),
}
FAST = ("ulysses over columns",)


def batch_of_clips():
    rng = np.random.default_rng(0)
    return {"video": rng.integers(0, 256, (8, 4, 8, 8, 3)).astype(np.uint8),
            "embeddings": rng.normal(size=(8, 3, 6)).astype(np.float16), "text_mask": np.arange(8)[:, None] > [0, 0, 0]}


def loss_and_gradients(network, mesh, params):
    stage = Stage(name="base", video=VideoSpec(frames=4, height=8, width=8), network=network,
                  process=Process(schedule=FlowSchedule(shift=3.0), prediction="flow") if network.timesteps is None
                  else Process(schedule=network.timesteps, prediction="v"))
    shapes = jax.eval_shape(lambda key: initial_params(stage, key), jax.random.key(0))
    params = random_params(stage, 1) if params is None else params
    shardings = parameter_shardings(shapes, mesh)
    with jax.set_mesh(mesh):
        step = jax.jit(lambda params, batch, key: gradients(stage, params, batch, key, unroll=True),
                       in_shardings=(shardings, batch_sharding(mesh), None), compiler_options=compiler_options(mesh),
                       out_shardings=(None, None, shardings))
        batch = global_batch(batch_of_clips(), mesh)
        loss, _, grads = step(jax.device_put(params, shardings), batch, jax.random.key(7))
    return float(loss), jax.tree.map(np.asarray, grads)


@functools.cache
def alone(kind):
    return loss_and_gradients(NETWORKS[kind], make_mesh(MeshSpec(), jax.devices()[:1]), None)


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.full)
                                  for name in CASES])
def test_loss_and_every_gradient_are_those_of_one_device(name):
    """To 1e-5 of the norm of each parameter's gradient, in float32."""
    network, spec = CASES[name]
    expected_loss, expected = alone(name if name in NETWORKS else "wan")
    loss, grads = loss_and_gradients(network, make_mesh(spec), None)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    found_leaves = jax.tree_util.tree_leaves_with_path(grads)
    for (path, found), wanted in zip(found_leaves, jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(wanted) > 1e-7, path
        error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
        assert error < 1e-5, f"{jax.tree_util.keystr(path)}: {error:.1e}"
