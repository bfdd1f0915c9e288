"""A training step whose clips are spread over devices, through the real network, is the step of one device."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from tests.training.test_step import assert_close, to_host
from vdm_jax.attention import Causal, Full, SparseCausal, Temporal
from vdm_jax.diffusion.process import Process
from vdm_jax.networks.config import Level, SelfAttention, TemporalConvolution, UNet
from vdm_jax.parallel.arrays import global_batch
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.stages.options import Training
from vdm_jax.stages.stage import Stage, VideoSpec
from vdm_jax.training.state import TrainState, abstract_state, make_optimizer
from vdm_jax.training.step import compile_train_step

CONTEXTS = ((SparseCausal(), "halo"), (Causal(), "ring"), (Temporal(), "relayout"), (Full(), "ulysses"))
MIXERS = tuple(SelfAttention(pattern=pattern, context=context, head_dim=8,
                             position="relative" if context == "relayout" else "rotary")
               for pattern, context in CONTEXTS)
LEVEL = Level(channels=16, blocks=1, kernel=1, mixers=(TemporalConvolution(),))
NETWORK = UNet(levels=(LEVEL,), middle=MIXERS, patch=2, embedding_channels=16, groups=4)
STAGE = Stage(name="base", video=VideoSpec(frames=4, height=4, width=4), network=NETWORK, process=Process(),
              training=Training(batch_size=4, learning_rate=1e-3, warmup_steps=4))


@pytest.fixture(scope="module")
def state():
    """A state whose parameters are random (nothing starts at zero), on the host."""
    shapes = abstract_state(STAGE, make_mesh(MeshSpec(data=1), jax.devices()[:1])).params
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        name = path[-1].key
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if name == "kernel" else 0.3
        return np.asarray((name == "scale") + scale * rng.normal(size=leaf.shape), leaf.dtype)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    return TrainState(step=np.int32(0), params=params, opt_state=make_optimizer(STAGE.training).init(params),
                      ema=params, key=jax.random.key(3))


def stepped(state, mesh):
    """State and metrics after one step on a mesh, on the host."""
    def copy(leaf, like):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(jax.random.wrap_key_data(np.array(jax.random.key_data(leaf))), like.sharding)
        return jax.device_put(np.array(leaf), like.sharding)

    video = np.random.default_rng(0).integers(0, 256, (4, *STAGE.video.shape)).astype(np.uint8)
    placed = jax.tree.map(copy, state, abstract_state(STAGE, mesh))
    return to_host(compile_train_step(STAGE, mesh)(placed, global_batch({"video": video}, mesh)))


def test_a_step_with_clips_spread_over_devices_is_the_step_of_one_device(state):
    """Batch over data and fsdp, parameters over fsdp, frames over context; four contexts in one network."""
    after, metrics = stepped(state, make_mesh(MeshSpec(data=2, fsdp=2, context=2)))
    expected, expected_metrics = stepped(state, make_mesh(MeshSpec(data=1), jax.devices()[:1]))
    assert_close(metrics, expected_metrics, rtol=1e-4)
    moments, wanted = (optax.tree.get(s.opt_state, "mu") for s in (after, expected))
    assert_close(moments, wanted, rtol=1e-3, atol=1e-6)  # a tenth of the clipped gradient
    assert_close(after.params, expected.params, rtol=1e-4, atol=5e-6)
