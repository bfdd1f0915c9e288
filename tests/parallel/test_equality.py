"""A sharded program is the program of one device: loss and every gradient of a training step, and sampled videos.

One network with everything that a mesh can split: strided and temporal convolutions, spatial, temporal and full
attention, cross-attention, perceptrons. Its copy for rows has attention whose sequences stay with a device, and one
that is gathered by the compiler.
"""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.attention.patterns import Full, SparseCausal, Spatial, Temporal
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM, DDPM
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.generation import generator as generator_module
from vdm_jax.generation.generator import Generator
from vdm_jax.networks.config import (
    CrossAttention,
    FeedForward,
    Level,
    SelfAttention,
    TemporalConvolution,
    UNet,
    WordEncoder,
)
from vdm_jax.parallel.arrays import global_batch
from vdm_jax.parallel.collectives import collectives
from vdm_jax.parallel.compiling import compiler_options
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.parallel.rules import batch_sharding, parameter_shardings
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.parameters import initial_params
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec
from vdm_jax.training.step import gradients

MESHES = {
    "data 8": MeshSpec(),
    "fsdp 8": MeshSpec(data=1, fsdp=8),
    "tensor 2 x fsdp 4": MeshSpec(data=1, tensor=2, fsdp=4),
    "context 4 x data 2": MeshSpec(data=2, context=4),
    "context 2 x fsdp 2 x tensor 2": MeshSpec(data=1, context=2, fsdp=2, tensor=2),
    "height 4 x data 2": MeshSpec(data=2, context=4),
}
# The axes of the first two are also axes of the others.
EACH_MESH = [pytest.param(name, marks=pytest.mark.full) if name in ("data 8", "fsdp 8") else name for name in MESHES]
WORDS = tuple("abcdef")
TEXT = WordEncoder(words=WORDS, length=4, width=8, layers=1, head_dim=4)


def networks() -> tuple[UNet, UNet]:
    """The same parameters on frames and on rows spread over devices."""
    def network(sharded_axis: str, contexts: tuple[str, str, str]) -> UNet:
        patterns = (Spatial(), Temporal(), SparseCausal())
        attention = (SelfAttention(pattern=p, context=c, head_dim=8) for p, c in zip(patterns, contexts, strict=True))
        mixers = (TemporalConvolution(), *attention, CrossAttention(head_dim=8), FeedForward(expansion=2))
        levels = Level(channels=8, blocks=1), Level(channels=16, blocks=1)
        return UNet(levels=levels, middle=mixers, patch=2, groups=4, embedding_channels=16, position_period=8.0,
                    temporal_kernel=3, text=TEXT, sharded_axis=sharded_axis)

    return network("frames", ("none", "relayout", "halo")), network("height", ("none", "none", "all_gather"))


def stage_of(name: str) -> Stage:
    """The stage as a mesh of that name splits it."""
    return Stage(name="base", video=VideoSpec(frames=4, height=16, width=8), process=Process(),
                 network=networks()[name.startswith("height")])


def random_params(stage: Stage, seed: int):
    """Parameters with nothing zero: kernels of unit gain, everything else of order 0.3."""
    shapes = jax.eval_shape(lambda key: initial_params(stage, key), jax.random.key(0))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if name == "kernel" else 0.3
        return np.asarray((name == "scale") + scale * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def params():
    return random_params(stage_of(""), 1)


@functools.cache
def compiled(name: str):
    """The compiled loss and gradients on a mesh; on one device for any other name."""
    mesh = make_mesh(MESHES[name]) if name in MESHES else make_mesh(MeshSpec(), jax.devices()[:1])
    stage = stage_of(name)
    shapes = jax.eval_shape(lambda key: initial_params(stage, key), jax.random.key(0))
    shardings = parameter_shardings(shapes, mesh)
    rows = jax.eval_shape(lambda: batch_of_clips())
    with jax.set_mesh(mesh):
        step = jax.jit(lambda params, batch, key: gradients(stage, params, batch, key, unroll=True),
                       in_shardings=(shardings, batch_sharding(mesh), None), compiler_options=compiler_options(mesh),
                       out_shardings=(None, None, shardings))
        return mesh, shardings, step.lower(shapes, rows, jax.random.key(0)).compile()


def batch_of_clips():
    """Eight clips, the first of them without a caption."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 8, (8, 4)).astype(np.int32)
    tokens[0] = 0
    return {"video": rng.integers(0, 256, (8, 4, 16, 8, 3)).astype(np.uint8), "tokens": tokens}


def loss_and_gradients(name: str, params):
    mesh, shardings, step = compiled(name)
    batch = global_batch(batch_of_clips(), mesh)
    loss, _, grads = step(jax.device_put(params, shardings), batch, jax.device_put(jax.random.key(7), None))
    return float(loss), jax.tree.map(np.asarray, grads)


@pytest.mark.parametrize("name", EACH_MESH)
def test_loss_and_every_gradient_are_those_of_one_device(name, params):
    """To 1e-5 of the norm of each parameter's gradient, in float32."""
    expected_loss, expected = loss_and_gradients("one device", params)
    loss, grads = loss_and_gradients(name, params)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    errors = jax.tree.map(lambda a, b: float(np.linalg.norm(a - b) / np.linalg.norm(b)), grads, expected)
    norms = [np.linalg.norm(leaf) for leaf in jax.tree.leaves(expected)]
    assert min(norms) > 1e-6 * max(norms)  # every parameter takes part
    worst = max(jax.tree_util.tree_leaves_with_path(errors), key=lambda item: item[1])
    assert worst[1] < 1e-5, worst


def test_rows_are_exchanged_and_large_activations_never_gathered():
    """The first level's, `[4, 4, 8, 4, C]` with the clips of one device; attention, below it, may gather its own."""
    text = compiled("height 4 x data 2")[2].as_text()
    gathered = re.findall(r"= \(?\w+\[([\d,]*)\]\S* all-gather(?:-start)?\(", text)
    assert any(shape.startswith("1,3,3,") for shape in gathered)  # kernels are
    assert not [shape for shape in gathered if shape.startswith(("4,4,8,4,", "16,8,4,"))]
    assert collectives(text)["collective-permute"]["count"] >= 24


# ---------------------------------------------------------------------------------------------- sampling

CAPTIONS = ("a b", "c", "d e f", "b", "a")


def cascade(mesh: MeshSpec, sharded_axis: str = "frames", batch_size: int = 8) -> Experiment:
    """4 frames of 8x8 from words, then 8 frames of 16x8."""
    mixers = (SelfAttention(pattern=Full(), context="all_gather", head_dim=8), CrossAttention(head_dim=8))
    base = UNet(levels=(Level(channels=16, blocks=1, kernel=1, mixers=mixers),), patch=2, embedding_channels=16,
                text=TEXT, sharded_axis=sharded_axis)
    large = UNet(levels=(Level(channels=8, blocks=1, mixers=(TemporalConvolution(),)),), patch=2, embedding_channels=16,
                 low_resolution=True, sharded_axis=sharded_axis)
    return Experiment(name="tiny", data=CaptionedDigits(size=16, frames=4), mesh=mesh, stages=(
        Stage(name="base", video=VideoSpec(frames=4, height=8, width=8), network=base, process=Process(prediction="x"),
              sampling=Sampling(sampler=DDPM(gamma=0.3), steps=3, guidance=1.0, batch_size=batch_size)),
        Stage(name="large", video=VideoSpec(frames=8, height=16, width=8), network=large,
              process=Process(prediction="x"), source=LowResolution(frames=4, height=8, width=8),
              sampling=Sampling(sampler=DDIM(eta=0.5), steps=2, batch_size=batch_size))))


@pytest.fixture(scope="module")
def videos():
    """Float videos of all stages: `videos(experiment, devices)`."""
    weights = {stage.name: random_params(stage, i) for i, stage in enumerate(cascade(MeshSpec()).stages)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator_module, "to_uint8", np.asarray)
        yield lambda experiment, devices=None: Generator(experiment, weights, devices)(CAPTIONS, seed=3).stages


@pytest.fixture(scope="module")
def alone(videos):
    """The videos made by one device, one batch."""
    return videos(cascade(MeshSpec()), jax.devices()[:1])


@pytest.mark.parametrize("name", EACH_MESH)
def test_a_cascade_samples_the_same_videos_on_every_mesh(name, videos, alone):
    """To 1e-4 of the range [-1, 1]: two networks, five steps and what they make of rounding."""
    got = videos(cascade(MESHES[name], "height" if name.startswith("height") else "frames"))
    for stage, expected in alone.items():
        np.testing.assert_allclose(got[stage], expected, atol=1e-4, err_msg=stage)
    differences = np.abs(alone["large"][:, None] - alone["large"][None]).max((2, 3, 4, 5))
    assert differences[~np.eye(len(CAPTIONS), dtype=bool)].min() > 0.1  # five different videos


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_cascade_samples_the_same_videos_in_every_batch_size(batch_size, videos, alone):
    experiment = cascade(MeshSpec(data=1, context=2), batch_size=batch_size)
    got = videos(experiment, jax.devices()[:2])
    for stage, expected in alone.items():
        np.testing.assert_allclose(got[stage], expected, atol=1e-4, err_msg=stage)


def test_weights_of_one_spread_are_those_of_the_other():
    frames, height = (jax.eval_shape(lambda key, n=n: initial_params(dataclasses.replace(stage_of(""), network=n), key),
                                     jax.random.key(0)) for n in networks())
    assert jax.tree.map(jnp.shape, frames) == jax.tree.map(jnp.shape, height)
