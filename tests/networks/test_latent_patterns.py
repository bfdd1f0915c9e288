"""The released U-Nets with what no released weights ask for: attention patterns, references, remat, sharding, noise
levels per frame. All by config, with the parameters of the released networks."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.attention.oracle import reference as dense_attention
from tests.refusals import refused
from vdm_jax.attention import Causal, Full, SparseCausal, Spatial, TemporalCausal, WithExtraKeys
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.networks import latent_unet as lu
from vdm_jax.networks.latent_network import LatentNetwork, LatentNetworkModule
from vdm_jax.networks.latent_unet_blocks import TokenBlock
from vdm_jax.networks.latent_unet_network import LatentUNetNetwork, reference_tokens
from vdm_jax.parallel.mesh import MeshSpec, make_mesh

IMAGE = lu.LatentUNet(widths=(4, 8), blocks=1, attention=(True, False), heads=(2, 2),
                      only_cross_attention=(False, False), token_channels=6, groups=2)
SPARSE = dataclasses.replace(IMAGE, spatial_pattern=SparseCausal())
FRAMES = 4


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    return (jnp.asarray(rng.normal(size=(1, FRAMES, 4, 4, 4)), jnp.float32), jnp.array([500.0]),
            jnp.asarray(rng.normal(size=(1, 1, 3, 6)), jnp.float32))


@pytest.fixture(scope="module")
def params(filled, inputs):
    return filled(LatentUNetNetwork(IMAGE), *inputs)


def run(config, params, *inputs, **options):
    return jax.jit(lambda params: LatentUNetNetwork(config).apply({"params": params}, *inputs, **options))(params)


def test_stable_diffusion_with_the_spatial_pattern_makes_each_frame_as_the_image_network(params, inputs):
    x, level, context = inputs
    video = run(IMAGE, params, *inputs)
    for t in (0, FRAMES - 1):
        np.testing.assert_allclose(video[:, t : t + 1], run(IMAGE, params, x[:, t : t + 1], level, context), atol=1e-5)


def test_sparse_causal_attention_in_stable_diffusion_is_dense_attention_to_two_frames(params, inputs):
    """One transformer, written out: queries of frame t, keys and values of frames 0 and t - 1."""
    _, state = jax.jit(lambda params: LatentUNetNetwork(SPARSE).apply(
        {"params": params}, *inputs, mutable=["intermediates"], capture_intermediates=lambda module, method:
        module.name == "self_attention" and method == "__call__"))(params)
    inside = state["intermediates"]["down_0_0_transformer"]["space"]["self_attention"]
    (x,), (found,) = inside["attention_inputs"], inside["__call__"]
    weights = params["down_0_0_transformer"]["space"]["self_attention"]
    q, k, v = ((x @ weights[name]["kernel"]).reshape(*x.shape[:4], 2, 2) for name in ("query", "key", "value"))
    frame = np.arange(FRAMES * 16) // 16
    mask = (frame[None] == 0) | (frame[None] == frame[:, None] - 1)
    y = dense_attention(q, k, v, mask).reshape(x.shape)
    np.testing.assert_allclose(found, y @ weights["out"]["kernel"] + weights["out"]["bias"], atol=1e-4)


def test_sparse_causal_stable_diffusion_sees_the_first_and_the_previous_frame(params, inputs):
    """The first frame is that of the image network; later ones follow a change of the first."""
    x, level, context = inputs
    video = run(SPARSE, params, *inputs)
    np.testing.assert_allclose(video[:, :1], run(IMAGE, params, x[:, :1], level, context), atol=1e-5)
    changed = run(SPARSE, params, x.at[:, 0].add(1.0), level, context)
    assert np.abs(changed - video)[:, 1:].max((0, 2, 3, 4)).min() > 1e-4
    later = run(SPARSE, params, x.at[:, -1].add(1.0), level, context)
    np.testing.assert_allclose(later[:, :-1], video[:, :-1], atol=1e-5)


def test_temporal_layers_take_a_pattern(filled):
    """The temporal block of Stable Video Diffusion, with causal attention: no frame sees later ones."""
    sizes = lu.sizes_of(dataclasses.replace(IMAGE, temporal=True, temporal_pattern=TemporalCausal()))
    block = TokenBlock(2, sizes, over_time=True)
    x, context = (jnp.asarray(np.random.default_rng(1).normal(size=s), jnp.float32)
                  for s in ((1, FRAMES, 2, 2, 4), (1, 1, 3, 6)))
    params = filled(block, x, context)
    apply = jax.jit(lambda x: block.apply({"params": params}, x, context))
    changed = np.abs(apply(x.at[:, 2].set(-x[:, 2])) - apply(x)).max((0, 2, 3, 4))
    assert (changed[:2] < 1e-6).all() and (changed[2:] > 1e-3).all()


def test_references_join_the_keys_of_spatial_attention(params, inputs):
    """Tokens of another network of the same sizes; those of the frame itself change nothing but how often it counts."""
    x, level, context = inputs
    _, state = jax.jit(lambda params: LatentUNetNetwork(IMAGE).apply(
        {"params": params}, x[:, :1], level, context, mutable=["intermediates"]))(params)
    references = reference_tokens(state["intermediates"])
    spec = dataclasses.replace(IMAGE, spatial_pattern=WithExtraKeys(inner=Spatial()))
    assert {name: a.shape for name, a in references.items()} == {
        "down_0_0_transformer": (1, 1, 16, 4), "middle_transformer": (1, 1, 4, 8),
        "up_1_0_transformer": (1, 1, 16, 4), "up_1_1_transformer": (1, 1, 16, 4)}
    assert list(spec.transformers) == list(references)
    found = run(spec, params, *inputs, references=references)
    alone = run(IMAGE, params, *inputs)
    np.testing.assert_allclose(found[:, 0], alone[:, 0], atol=1e-5)  # twice the same keys
    assert np.abs(found - alone)[:, 1:].max() > 1e-4


def test_a_stage_gives_its_references_to_the_network(params, inputs):
    x, _, context = inputs
    network = LatentNetwork(unet=dataclasses.replace(IMAGE, spatial_pattern=WithExtraKeys(inner=Spatial())),
                            timesteps=None)
    references = {name: jnp.ones((1, 1, 2, width)) for name, width in network.unet.transformers.items()}
    apply = lambda logsnr, references: jax.jit(lambda params: LatentNetworkModule(network).apply(
        {"params": params}, x, logsnr, Conditioning(references=references)))(params)
    expected = run(network.unet, params, x, jnp.array([-0.125]), jnp.zeros((1, 1, 1, 6)), references=references)
    np.testing.assert_allclose(apply(jnp.array([1.0]), references), expected, atol=1e-5)
    with refused("conditioning.check_parts", "down_0_0_transformer"):
        apply(jnp.array([1.0]), {})


def test_every_frame_may_have_a_noise_level_of_its_own(params, inputs):
    x, _, context = inputs
    levels = jnp.array([[100.0, 200.0, 300.0, 400.0]])
    video = run(IMAGE, params, x, levels, context)
    for t in (0, 2):
        np.testing.assert_allclose(video[:, t : t + 1],
                                   run(IMAGE, params, x[:, t : t + 1], levels[:, t], context), atol=1e-5)
    np.testing.assert_allclose(run(IMAGE, params, x, jnp.full((1, FRAMES), 500.0), context),
                               run(IMAGE, params, *inputs), atol=1e-5)


@pytest.fixture(scope="module")
def gradient(params, inputs):
    """The jaxpr of a network's gradient, and the gradient."""

    @functools.cache
    def gradient(config):
        loss = lambda params: jnp.square(LatentUNetNetwork(config).apply({"params": params}, *inputs)).mean()
        traced = jax.jit(jax.grad(loss)).trace(params)
        return traced.jaxpr, traced.lower().compile()(params)

    return gradient


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_rematerialisation_changes_no_gradient(remat, gradient):
    (_, expected), (program, found) = gradient(SPARSE), gradient(dataclasses.replace(SPARSE, remat=remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)
    assert program.pretty_print().count("policy") >= 5  # one for every block and the middle


def test_frames_are_split_over_the_mesh(params, inputs):
    expected = run(SPARSE, params, *inputs)
    with jax.set_mesh(make_mesh(MeshSpec(data=4, context=2))):
        network = LatentUNetNetwork(SPARSE)
        lowered = jax.jit(lambda params: network.apply({"params": params}, *inputs)).lower(params)
        found = run(SPARSE, params, *inputs)
    assert lowered.as_text().count("sharding_constraint") >= 6  # the stem, the blocks, the middle
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(("change", "message"), [
    ({"temporal_pattern": WithExtraKeys(inner=Full())}, ("LatentUNet.temporal_pattern",)),
    ({"spatial_pattern": Causal(), "attention_kernel": "gather"}, ("capability.require",)),
    ({"spatial_pattern": SparseCausal(), "attention_context": "relayout"}, ("capability.require", "SparseCausal")),
])
def test_patterns_that_cannot_be_computed_are_refused(change, message):
    with refused(*message):
        dataclasses.replace(IMAGE, **change)
