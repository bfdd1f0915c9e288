"""A LoRA on eight devices is that on one: a train step of its factors, and videos with it merged and taken out."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from vdm_jax.attention.patterns import Spatial, Temporal
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.generation import generator as generator_module
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.loras import with_loras
from vdm_jax.networks.config import Level, SelfAttention, TemporalConvolution, UNet
from vdm_jax.networks.lora import FACTORS, LoRA, trained_adapter
from vdm_jax.parallel.arrays import global_batch
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.stages.options import InitFrom, Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax.training.state import abstract_state, initial_state
from vdm_jax.training.step import jit_train_step
from vdm_jax.weights.lora_files import NETWORK, plain_target, write_lora

MESHES = {"fsdp 8": MeshSpec(data=1, fsdp=8), "context 4 x fsdp 2": MeshSpec(data=1, context=4, fsdp=2)}
MIXERS = (TemporalConvolution(), SelfAttention(pattern=Spatial(), head_dim=8),
          SelfAttention(pattern=Temporal(), context="relayout", head_dim=8))
LORA = (LoRA(rank=4, alpha=2.0, patterns=("_attention_",)), LoRA(rank=3, patterns=("conv", "^/(stem|out)/")))
STAGE = Stage(
    name="base", video=VideoSpec(frames=4, height=8, width=8), process=Process(prediction="x"),
    network=UNet(levels=(Level(channels=8, blocks=1, kernel=3, mixers=MIXERS),), groups=4, embedding_channels=16),
    training=Training(batch_size=8, warmup_steps=0, learning_rate=1e-2, lora=LORA,
                      init_from=InitFrom(stage="base", run="base")),
    sampling=Sampling(sampler=DDIM(), steps=2, batch_size=8))
CAPTIONS = ("",) * 3


def mesh_of(name: str) -> jax.sharding.Mesh:
    """A mesh of all devices, or one device for any other name."""
    return make_mesh(MESHES[name]) if name in MESHES else make_mesh(MeshSpec(), jax.devices()[:1])


@pytest.fixture(scope="module")
def state():
    """A state in which neither the network nor the factors have zeros; arrays of the host."""
    shapes = jax.eval_shape(lambda key: initial_state(STAGE, key), jax.random.key(0))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if path[-1].key == "kernel" else 0.3
        return ((path[-1].key == "scale") + scale * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    params = jax.tree_util.tree_map_with_path(draw, shapes.params)
    step, opt_state = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), (shapes.step, shapes.opt_state))
    return shapes.replace(step=step, params=params, opt_state=opt_state, ema={FACTORS: params[FACTORS]})


def stepped(name, state):
    """A state after one step on a mesh, and the metrics, on the host."""
    mesh = mesh_of(name)
    state = state.replace(key=jax.random.key(3))
    placed = jax.device_put(state, jax.tree.map(lambda a: a.sharding, abstract_state(STAGE, mesh)))
    if name in MESHES:
        split = [leaf for leaf in jax.tree.leaves(placed.params[FACTORS]) if not leaf.sharding.is_fully_replicated]
        assert split  # the factors too
    clips = np.random.default_rng(2).integers(0, 256, (8, 4, 8, 8, 3)).astype(np.uint8)
    with jax.set_mesh(mesh):
        found, metrics = jit_train_step(STAGE, mesh)(placed, global_batch({"video": clips}, mesh))
    return jax.tree.map(np.asarray, (found.replace(key=0), metrics))


@pytest.fixture(scope="module")
def alone(state):
    return stepped("one device", state)


@pytest.mark.parametrize("name", MESHES)
def test_a_step_of_the_factors_is_that_of_one_device(name, state, alone):
    """The gradient, which the optimizer's first moment is a tenth of, to 1e-5 of its norm for every factor; the network
    keeps its bits."""
    found, metrics = stepped(name, state)
    for key in ("loss", "gradient_norm", "x_mse"):
        np.testing.assert_allclose(metrics[key], alone[1][key], rtol=1e-5)
    ours, theirs = (optax.tree_utils.tree_get(s.opt_state, "mu") for s in (found, alone[0]))
    assert set(ours) == {FACTORS}  # nothing else has optimizer state
    errors = jax.tree.map(lambda a, b: float(np.linalg.norm(a - b) / np.linalg.norm(b)), ours, theirs)
    assert max(jax.tree.leaves(errors)) < 1e-5
    factors = found.params.pop(FACTORS)
    jax.tree.map(np.testing.assert_array_equal, found.params, {k: v for k, v in state.params.items() if k != FACTORS})
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(*map(jax.tree.leaves, (factors, state.params[FACTORS])),
                                                        strict=True))


@pytest.fixture(scope="module")
def videos(state, tmp_path_factory):
    """Float videos on a mesh by its name: without the LoRA, with it merged, and after that without it again."""
    params = {name: tree for name, tree in state.params.items() if name != FACTORS}
    path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    write_lora(path, {NETWORK: (plain_target(params), trained_adapter(LORA, params, state.params[FACTORS]))})

    def sampled(name):
        mesh, devices = (MESHES[name], None) if name in MESHES else (MeshSpec(), jax.devices()[:1])
        base = Generator(Experiment(name="tiny", data=CaptionedDigits(size=16, frames=4), mesh=mesh, stages=(STAGE,)),
                         {"base": params}, devices)
        merged = with_loras(base, {path: 0.7})
        kernel = merged.params["base"]["stem"]["kernel"]
        assert kernel.sharding == base.params["base"]["stem"]["kernel"].sharding
        return [generator(CAPTIONS, seed=3).videos for generator in (base, merged, base)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator_module, "to_uint8", np.asarray)
        yield sampled


@pytest.fixture(scope="module")
def videos_alone(videos):
    return videos("one device")


@pytest.mark.parametrize("name", MESHES)
def test_videos_with_it_and_without_are_those_of_one_device(name, videos, videos_alone):
    """To 1e-4 of the range [-1, 1]; what it was merged into gives the same videos afterwards, to the last bit."""
    found = videos(name)
    for ours, theirs in zip(found, videos_alone, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_array_equal(found[2], found[0])
    assert np.abs(found[1] - found[0]).max() > 0.05
