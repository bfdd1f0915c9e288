"""What the blocks of a video transformer add, kept from step to step: in the network, in a sampler, in plans."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from tests.refusals import refused
from vdm_jax.attention import BlockCausal, Spatial, Temporal
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.inputs import Input
from vdm_jax.conditions.pooled_text import POOLED_TEXT
from vdm_jax.conditions.scalars import WEIGHT
from vdm_jax.conditions.text import EmbeddedText
from vdm_jax.diffusion.arrays import noise_from_keys
from vdm_jax.diffusion.caching import TEACACHE, ByChange, Cache, keeping
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import FlowSchedule
from vdm_jax.generation import cache_plans
from vdm_jax.generation.cache_plans import cache_of
from vdm_jax.generation.compiled import jit_sampling, of_any_steps, step_functions, stepwise_sampling
from vdm_jax.generation.one_stage import sample_keys, sample_stage, stage_levels
from vdm_jax.networks.config import Level, UNet
from vdm_jax.networks.layers import Dense, silu
from vdm_jax.networks.skips import Deep
from vdm_jax.networks.transformer.blocks import Block, BlockInputs, Modulation, modulated
from vdm_jax.networks.transformer.caching import level_vectors
from vdm_jax.networks.transformer.config import AddedSinusoids, VideoTransformer, wan
from vdm_jax.networks.transformer.members import cogvideox, hunyuan
from vdm_jax.networks.transformer.network import Embedding, Patches, VideoTransformerModule
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.parallel.rules import parameter_shardings
from vdm_jax.planning.flops import network_forward, sampling_work
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Stage, VideoSpec

TEXT = EmbeddedText(width=6)
WAN = wan(out_channels=3, width=16, heads=2, hidden=12, layers=3, text=TEXT, level_channels=8, text_length=4)
LATTE = VideoTransformer(out_channels=3, width=12, heads=2, hidden=16, layers=4, patterns=(Spatial(), Temporal()),
                         level_channels=8, text=TEXT)
COG = cogvideox(out_channels=3, width=16, heads=2, layers=2, text=TEXT, text_length=5, level_width=8,
                sinusoids=AddedSinusoids())
HUNYUAN = hunyuan(out_channels=3, width=16, heads=2, hidden=12, layers=2, single_layers=1, text=TEXT, level_channels=8,
                  text_refiner=1, conditions=(Input(name=POOLED_TEXT, width=5),))
CAPTIONS = Conditioning(embeddings=jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 4, 6)), jnp.float32),
                        text_mask=jnp.array([[[1, 1, 1, 1]], [[1, 1, 0, 0]]], bool))
KEYS, STEPS = sample_keys(0, jnp.arange(2), 0), 6
STAGE = Stage(name="base", video=VideoSpec(frames=2, height=4, width=4), network=WAN,
              process=Process(schedule=FlowSchedule(), prediction="flow"),
              sampling=Sampling(sampler=DDIM(), steps=STEPS, guidance=1.5, threshold=None))


@pytest.mark.parametrize("spec, branches", [(WAN, (0, 2)), (LATTE, (2,)), (COG, (1,)), (HUNYUAN, (1,))])
def test_what_the_blocks_add_given_back_changes_nothing(spec, branches, filled, normal):
    z, level, module = normal(1, 2, 2, 4, 4, 3), jnp.array([0.5, -1.0]), VideoTransformerModule(spec)
    captions = CAPTIONS
    if spec is HUNYUAN:
        captions = CAPTIONS.replace(scalars={WEIGHT: jnp.ones(2)}, inputs={POOLED_TEXT: normal(2, 2, 5)})
    params = filled(module, z, level, captions)

    def applied(z, level, **options):
        return module.apply({"params": params}, z, level, captions, **options)

    @jax.jit
    def estimates(z):
        found = []
        for branch in branches:
            whole, added = keeping(lambda through, b=branch: applied(z, level, deep=Deep(b, through)))
            reused = Deep(branch, lambda make, added=added: added)
            found.append((whole, applied(z, level, deep=reused), applied(2 * z, level, deep=reused)))
        return applied(z, level), found

    plain, found = estimates(z)
    for whole, reused, other in found:
        np.testing.assert_allclose(whole, plain, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(reused, plain, rtol=1e-4, atol=1e-5)
        assert np.abs(other - plain).max() > 1e-3  # what stands before and after them is computed


def by_hand(params, z, logsnr, conditioning, first, added=None):
    """The prediction of `WAN` block by block and what those but the first ones add to the tokens; or with that of
    another step."""
    x = Patches(WAN).apply({"params": params["patches"]}, z)
    vector, text = Embedding(WAN).apply({"params": params["embedding"]}, z.shape[1], logsnr, conditioning, 0)
    level = Dense(6 * WAN.width).apply({"params": params["modulation"]}, silu(vector))
    inputs = BlockInputs(level.reshape(len(z), 1, 6, WAN.width), text=text)

    def block(x, place):
        own = jax.tree.map(lambda leaf: leaf[place], params["blocks"]["block_0"])
        return Block(WAN, WAN.patterns[0]).apply({"params": own}, x, inputs)

    for place in range(first):
        x = block(x, place)
    before = x
    for place in range(first, WAN.layers if added is None else first):
        x = block(x, place)
    added = x - before if added is None else added
    shift, scale = Modulation(WAN, 2).apply({"params": params["out_modulated"]}, vector)
    x = modulated(before + added, shift[:, :, None, None], scale[:, :, None, None], WAN.epsilon, jnp.float32)
    values = Dense(12).apply({"params": params["out"]}, x)
    return rearrange(values, "b t h w (p q c) -> b t (h p) (w q) c", p=2, q=2), added


@pytest.fixture(scope="module")
def videos(filled, normal):
    """Parameters of the stage, and a function from a plan to its videos."""
    params = filled(VideoTransformerModule(WAN), normal(0, 2, 2, 4, 4, 3), jnp.zeros(2), CAPTIONS)
    made = {}

    def video(cache):
        if cache not in made:
            sampling = dataclasses.replace(STAGE.sampling, cache=cache)
            dataclasses.replace(STAGE, sampling=sampling)
            made[cache] = np.asarray(jax.jit(lambda p: sample_stage(STAGE, sampling, p, KEYS, CAPTIONS))(params))
        return made[cache]

    return params, video


def test_a_loop_over_steps_and_blocks_makes_the_same_video(videos):
    """DDIM of a flow by hand: both estimates of the guidance keep what their blocks have added."""
    params, video = videos
    levels = stage_levels(STAGE, STAGE.sampling)
    sigma = 1 / (1 + np.exp(np.asarray(levels) / 2))  # of (1 - sigma) x + sigma eps
    z, kept = noise_from_keys(KEYS, 0, (2, *STAGE.shape)) * sigma[0], {}
    program = jax.jit(by_hand, static_argnums=4)
    null = CAPTIONS.without("prompt")
    for step in range(STEPS):
        velocity, level = [], jnp.full(2, levels[step])
        for name, conditioning in (("text", CAPTIONS), ("null", null)):
            found, added = program(params, z, level, conditioning, 1, None if step in (0, 1, 4) else kept[name])
            kept[name] = added
            velocity.append(found)
        predicted = velocity[0] + 1.5 * (velocity[0] - velocity[1])
        x_hat, eps = z - sigma[step] * predicted, z + (1 - sigma[step]) * predicted
        z = x_hat if step == STEPS - 1 else (1 - sigma[step + 1]) * x_hat + sigma[step + 1] * eps
    np.testing.assert_allclose(video(Cache(steps=(0, 1, 4), branch=1)), jnp.clip(z, -1, 1), atol=2e-4)


def test_whole_steps_change_no_bit_and_the_error_grows_with_those_that_are_not(videos):
    _, video = videos
    plain = video(None)
    for whole in (Cache(every=1), Cache(steps=tuple(range(STEPS)), branch=1)):
        np.testing.assert_array_equal(video(whole), plain)
    two, six = (np.sqrt(np.mean((video(Cache(every=n)) - plain) ** 2)) for n in (2, STEPS))
    assert 1e-4 < two < six


def test_devices_share_what_is_kept(videos):
    """Tokens over two devices and weights over two: the videos of one device. A step at a time too, by one program for
    all steps and plans, as the first features are split like those that a step leaves."""
    params, video = videos
    cache, mesh = Cache(steps=(0, 1, 4), branch=1), make_mesh(MeshSpec(data=1, context=2, fsdp=2), jax.devices()[:4])
    stage = dataclasses.replace(
        STAGE, network=dataclasses.replace(WAN, sharded_axis="width", attention_context="ulysses"),
        sampling=dataclasses.replace(STAGE.sampling, cache=cache))
    shardings = parameter_shardings(params, mesh)
    with jax.set_mesh(mesh):
        given = (jax.device_put(params, shardings), KEYS, CAPTIONS, None, None)
        made = jit_sampling(stage, stage.sampling, mesh, shardings)(*given)
        functions = step_functions(*of_any_steps(stage, stage.sampling), mesh, shardings)
        by_steps = stepwise_sampling(stage, stage.sampling, mesh, shardings, functions=functions)(*given)
        every = dataclasses.replace(stage.sampling, cache=Cache(steps=tuple(range(STEPS)), branch=1))
        assert of_any_steps(stage, every) == of_any_steps(stage, stage.sampling)
        plain = stepwise_sampling(stage, every, mesh, shardings, functions=functions)(*given)
    np.testing.assert_allclose(made, video(cache), atol=1e-4)
    np.testing.assert_allclose(by_steps, video(cache), atol=1e-4)
    np.testing.assert_allclose(plain, video(None), atol=1e-4)
    assert functions.advance._cache_size() == 1


def test_flops_are_those_of_the_blocks_that_are_computed(videos):
    params, _ = videos
    mesh = make_mesh(MeshSpec(data=1), jax.devices()[:1])
    batch = {"video": jax.ShapeDtypeStruct((2, *STAGE.video.shape), "uint8"),
             "embeddings": jax.ShapeDtypeStruct((2, 4, 6), "float32"),
             "text_mask": jax.ShapeDtypeStruct((2, 4), "bool")}
    doubled = jax.tree.map(lambda x: jax.ShapeDtypeStruct((4, *x.shape[1:]), x.dtype), batch)
    none, one, two, full = (network_forward(STAGE, doubled, params, mesh, branch=b).model for b in (0, 1, 2, None))
    assert one - none == two - one == full - two > none  # equal blocks, and little else
    cached = dataclasses.replace(STAGE.sampling, cache=Cache(steps=(0, 4), branch=1))
    plain, found = (sampling_work(STAGE, spec, batch, params, mesh) for spec in (STAGE.sampling, cached))
    assert plain.model == STEPS * full and found.model == pytest.approx(2 * full + 4 * one)


def test_a_plan_by_change_adds_up_what_the_embedding_of_the_level_changes(videos):
    """Against the module that embeds, and a loop; the first and the last step are whole."""
    params, video = videos
    levels, mesh = stage_levels(STAGE, STAGE.sampling), make_mesh(MeshSpec(data=1), jax.devices()[:1])
    vectors = np.asarray(level_vectors(WAN, params, jnp.asarray(levels)))
    of_module = [Embedding(WAN).apply({"params": params["embedding"]}, 2, jnp.full(2, level), CAPTIONS, 0)[0][0, 0]
                 for level in levels]
    np.testing.assert_allclose(vectors, np.stack(of_module), rtol=1e-5, atol=1e-6)
    changes = [np.abs(b - a).mean() / np.abs(a).mean() for a, b in zip(vectors, vectors[1:], strict=False)]
    threshold = changes[0] + 0.5 * changes[1]  # reached at step 2
    wanted, total = [0], 0.0
    for step, change in enumerate(changes, 1):
        total += change
        if total >= threshold or step == STEPS - 1:
            wanted, total = [*wanted, step], 0.0
    cache_of(STAGE, STAGE.sampling, params, ByChange(), mesh)
    compiled = cache_plans._whole_vectors._cache_size()
    found = cache_of(STAGE, STAGE.sampling, params, ByChange(threshold=threshold, branch=1), mesh)
    assert cache_plans._whole_vectors._cache_size() == compiled  # of any threshold
    assert found == Cache(steps=tuple(wanted), branch=1) and wanted[:2] == [0, 2]
    assert np.isfinite(video(found)).all()
    assert ByChange(threshold=1e-9).plan(vectors).steps == tuple(range(STEPS))
    assert ByChange(threshold=1e9).plan(vectors).steps == (0, STEPS - 1)
    doubled = ByChange(threshold=2 * threshold, coefficients=(2.0, 0.0), branch=1)
    assert doubled.plan(vectors) == found and all(len(numbers) == 5 for numbers in TEACACHE.values())
    assert cache_of(STAGE, STAGE.sampling, params, None, mesh) is None


@pytest.mark.parametrize("network, sampling, code, named", [
    ({}, {"cache": Cache(branch=3)}, "Cache.branch", ("branch=3", "3 blocks", "0 to 2")),
    ({}, {"cache": Cache(steps=(0, 6))}, "Cache.steps", ("(0, 6)", "6 steps")),
    ({"layers": 4, "patterns": (Spatial(), Temporal())}, {"cache": Cache(branch=1)}, "Cache.branch",
     ("branch=1", "multiples of 2")),
    ({"boundary": 0.9}, {"cache": Cache()}, "Sampling.cache", ("boundary=0.9", "one expert")),
    ({"patterns": (BlockCausal(block=1),)}, {"cache": Cache(), "by_blocks": True}, "Sampling.cache",
     ("by_blocks=True", "permitted: None"))])
def test_plans_that_a_transformer_cannot_go_by_are_refused(network, sampling, code, named):
    forced = {"teacher_forcing": True} if "by_blocks" in sampling else {}
    network = dataclasses.replace(WAN, **network, **forced)
    with refused(code, *named):
        dataclasses.replace(STAGE, network=network, sampling=dataclasses.replace(STAGE.sampling, **sampling))


def test_plans_by_change_of_other_networks_are_refused(videos):
    params, _ = videos
    mesh = make_mesh(MeshSpec(data=1), jax.devices()[:1])
    unet = UNet(levels=(Level(channels=8, blocks=1),), embedding_channels=8, groups=2)
    other = dataclasses.replace(STAGE, network=unet, sampling=Sampling(), process=Process())
    with refused("Sampling.cache", "UNet", "VideoTransformer"):
        cache_of(other, other.sampling, params, ByChange(), mesh)
    two = dataclasses.replace(STAGE, network=dataclasses.replace(WAN, boundary=0.9))
    with refused("Sampling.cache", "boundary=0.9"):
        cache_of(two, two.sampling, params, ByChange(), mesh)
    lagging = dataclasses.replace(STAGE.sampling, frame_lag=1)
    with refused("Sampling.cache", "different noise levels"):
        cache_of(STAGE, lagging, params, ByChange(), mesh)
