"""The training state: warm-up, what decays and is clipped, and the same values on any mesh."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vdm_jax.attention.patterns import Temporal
from vdm_jax.conditions.frame_masks import NoMask
from vdm_jax.diffusion.process import Process
from vdm_jax.networks.config import CrossAttention, EmbeddedText, Level, SelfAttention, UNet, WordEncoder
from vdm_jax.networks.unet import SpaceTimeUNet
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.stages.options import Training
from vdm_jax.stages.parameters import example_conditioning
from vdm_jax.stages.stage import LowResolution, Stage, VideoSpec
from vdm_jax.training.state import abstract_state, create_state, learning_rate, make_optimizer

LEVEL = Level(channels=8, blocks=1, mixers=(SelfAttention(pattern=Temporal(), head_dim=8),))
STAGE = Stage(name="base", video=VideoSpec(frames=2, height=4, width=4), process=Process(),
              network=UNet(levels=(LEVEL,), embedding_channels=16))


def data_of(tree):
    """Numpy arrays of a state, keys included."""
    def convert(leaf):
        return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)

    return jax.tree.map(convert, tree)


def rates(spec, steps):
    return [float(learning_rate(spec)(step)) for step in steps]


def test_warm_up_reaches_the_peak_at_its_last_step():
    spec = Training(steps=100, warmup_steps=4, learning_rate=0.8)
    np.testing.assert_allclose(rates(spec, [1, 2, 3, 4, 5, 100]), [0.2, 0.4, 0.6, 0.8, 0.8, 0.8], rtol=1e-6)


def test_without_warm_up_the_first_step_has_the_peak():
    np.testing.assert_allclose(rates(Training(steps=9, warmup_steps=0, learning_rate=0.5), [1, 2, 9]), 0.5)


def test_warm_up_is_not_longer_than_the_training():
    spec = Training(steps=5, warmup_steps=100, learning_rate=0.5)
    np.testing.assert_allclose(rates(spec, [1, 5]), [0.1, 0.5], rtol=1e-6)


def test_decay_is_half_a_cosine_to_a_tenth():
    spec = Training(steps=104, warmup_steps=4, learning_rate=0.8, decay=True)
    np.testing.assert_allclose(rates(spec, [2, 4, 54, 104, 200]), [0.4, 0.8, 0.8 * 0.55, 0.08, 0.08], rtol=1e-5)


def test_the_optimizer_applies_the_rate_of_its_step():
    """An update of Adam by gradients that stay the same is the rate times their sign."""
    spec = Training(steps=100, warmup_steps=4, learning_rate=0.8)
    optimizer, params, grads = make_optimizer(spec), {"w": jnp.zeros(3)}, {"w": jnp.array([0.1, -0.2, 0.3])}
    state = optimizer.init(params)
    for step in range(1, 7):
        updates, state = optimizer.update(grads, state, params)
        np.testing.assert_allclose(updates["w"], rates(spec, [step])[0] * np.array([-1, 1, -1]), rtol=1e-4)


def test_weights_decay_and_biases_do_not():
    spec = Training(warmup_steps=0, learning_rate=0.1, weight_decay=0.5)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    optimizer = make_optimizer(spec)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5 * np.ones((2, 2)), rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], np.zeros(2))


def test_gradients_are_clipped_by_their_global_norm():
    spec = Training(clip_norm=0.5, b1=0.9)
    params = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
    optimizer = make_optimizer(spec)
    for size, expected in ((100.0, 0.5), (0.01, 0.01)):
        grads = jax.tree.map(lambda p, size=size: jnp.full_like(p, size / np.sqrt(7)), params)
        _, state = optimizer.update(grads, optimizer.init(params), params)
        first_moment = optax.tree_utils.tree_get(state, "mu")
        np.testing.assert_allclose(optax.tree.norm(first_moment), 0.1 * expected, rtol=1e-5)


def test_adafactor_keeps_sums_over_rows_and_columns_and_is_split_like_the_rest():
    """Of a large kernel two vectors instead of a second moment; a step goes against the gradient, at the rate of its
    step times the size of the parameter."""
    spec = Training(optimizer="adafactor", steps=100, warmup_steps=0, learning_rate=0.1)
    params = {"kernel": jnp.full((128, 256), 2.0), "bias": jnp.ones(4)}
    optimizer = make_optimizer(spec)
    state = optimizer.init(params)
    held = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert 128 + 256 <= held < 500
    grads = {"kernel": jnp.full((128, 256), 1e-3), "bias": -jnp.full(4, 1e-3)}
    updates, _ = optimizer.update(grads, state, params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 2.0, rtol=1e-3)
    np.testing.assert_allclose(updates["bias"], 0.1, rtol=1e-3)
    network = UNet(levels=(Level(channels=128, blocks=1),), embedding_channels=128)
    stage = dataclasses.replace(STAGE, network=network, training=spec)
    whole = abstract_state(stage, make_mesh(MeshSpec(data=1, fsdp=4, tensor=2)))
    factored = [leaf for leaf in jax.tree.leaves(whole.opt_state) if leaf.ndim > 1]
    assert factored and all(leaf.sharding.shard_shape(leaf.shape) != leaf.shape for leaf in factored)


@pytest.mark.parametrize("text", [None, WordEncoder(words=("a",), length=4, width=16), EmbeddedText(width=5)], ids=str)
@pytest.mark.parametrize("source", [None, LowResolution(frames=2, height=2, width=2)], ids=["base", "from a source"])
def test_example_conditioning_is_all_a_network_takes(text, source):
    mixers = () if text is None else (CrossAttention(head_dim=8),)
    network = UNet(levels=(Level(channels=8, blocks=1, mixers=mixers),), text=text, low_resolution=source is not None,
                   conditioning_frames=True, scalars=("fps", "motion"))
    stage = dataclasses.replace(STAGE, network=network, source=source, training=Training(
        masking=(NoMask(),)))
    example = example_conditioning(stage, batch=3)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(example)} == {3}
    z = jnp.zeros((3, *stage.video.shape))
    module = SpaceTimeUNet(network)
    out, _ = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), z, jnp.zeros(3), example))
    assert out.shape == z.shape


@pytest.fixture(scope="module")
def states():
    """The state of one seed on two meshes."""
    specs = {"single": (MeshSpec(), jax.devices()[:1]), "fsdp": (MeshSpec(data=2, fsdp=4), None)}
    meshes = {name: make_mesh(spec, devices) for name, (spec, devices) in specs.items()}
    return {name: (mesh, create_state(STAGE, 7, mesh)) for name, mesh in meshes.items()}


def test_a_fresh_state(states):
    _, state = states["single"]
    assert state.step == 0 and state.step.dtype == jnp.int32
    jax.tree.map(np.testing.assert_array_equal, state.params, state.ema)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((state.params, state.ema))]
    assert len(set(buffers)) == len(buffers)  # the average is a copy: both are donated to the step
    assert jax.tree.structure(state.opt_state) == jax.tree.structure(make_optimizer(STAGE.training).init(state.params))


def test_the_seed_decides_parameters_and_key(states):
    mesh, state = states["single"]
    same, other = (create_state(STAGE, seed, mesh) for seed in (7, 8))
    jax.tree.map(np.testing.assert_array_equal, data_of(same), data_of(state))
    assert (data_of(other.key) != data_of(state.key)).any()
    assert np.abs(other.params["stem"]["kernel"] - state.params["stem"]["kernel"]).max() > 0.01


def test_a_state_is_the_same_on_any_mesh(states):
    jax.tree.map(np.testing.assert_array_equal, data_of(states["fsdp"][1]), data_of(states["single"][1]))


@pytest.mark.parametrize("name", ["single", "fsdp"])
def test_the_abstract_state_describes_the_created_one(states, name):
    mesh, state = states[name]
    abstract = abstract_state(STAGE, mesh)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype) and b.sharding.is_equivalent_to(a.sharding, b.ndim)
    split = [leaf for leaf in jax.tree.leaves(state.params) if not leaf.sharding.is_fully_replicated]
    assert bool(split) == (name == "fsdp")
