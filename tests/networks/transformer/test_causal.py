"""Causal video transformers: what a block sees, training on clean blocks, and sampling with keys that are kept."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parallel.test_equality import random_params
from tests.refusals import refused
from vdm_jax.attention import BlockCausal, Full, Spatial, TeacherForcing
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import FlowSchedule
from vdm_jax.generation.editing.one_stage import edit_sampling
from vdm_jax.generation.editing.sdedit import SDEdit
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.long_video.plan import Blocks
from vdm_jax.generation.one_stage import sample_stage
from vdm_jax.networks.config import EmbeddedText
from vdm_jax.networks.transformer.config import VideoTransformer, wan
from vdm_jax.networks.transformer.network import CLEAN, VideoTransformerModule
from vdm_jax.networks.transformer.past import empty, following
from vdm_jax.parallel.mesh import MeshSpec
from vdm_jax.stages.inputs import training_inputs
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec

FRAMES = 8
SIZES = {"out_channels": 3, "heads": 2, "hidden": 12, "layers": 2, "level_channels": 8, "text": EmbeddedText(width=6)}
WAN = wan(**SIZES, width=16, text_length=4, patterns=(BlockCausal(block=2),))
SINK = dataclasses.replace(WAN, patterns=(BlockCausal(block=2, window=4, sink=2),))
DIT = VideoTransformer(**SIZES, width=12, patterns=(Spatial(), BlockCausal(block=2)), patch=(1, 2, 2))
TEXT = Conditioning(embeddings=jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 3, 6)), jnp.float32),
                    text_mask=jnp.ones((2, 1, 3), bool))


@pytest.fixture(scope="module")
def made(filled, normal):
    """`spec -> params, apply`: apply is jitted."""
    @functools.cache
    def make(spec):
        module = VideoTransformerModule(spec)
        params = filled(module, normal(0, 2, 2, 4, 4, 3), jnp.zeros(2), TEXT)
        return params, jax.jit(functools.partial(module.apply, {"params": params}), static_argnames=("mutable",))
    return make


def blocks_of(block, window, sink, frames):
    """Which frame sees which, written out."""
    def sees(query, key):
        end = (query // block + 1) * block
        return key < end and (window is None or key >= end - window or key < sink)
    return np.array([[sees(q, k) for k in range(frames)] for q in range(frames)])


@pytest.mark.parametrize("window, sink", [(None, 0), (4, 0), (4, 2), (6, 4)])
def test_what_blocks_see(window, sink):
    pattern = BlockCausal(block=2, window=window, sink=sink)
    wanted = blocks_of(2, window, sink, 12)
    np.testing.assert_array_equal(pattern.frame_table(12), wanted)
    forced = TeacherForcing(frames=12, block=2, window=window, sink=sink).frame_table(24)
    np.testing.assert_array_equal(forced[:12, :12], wanted)  # clean: as the causal network
    assert not forced[:12, 12:].any()
    own = np.arange(12)[:, None] // 2 == np.arange(12) // 2
    np.testing.assert_array_equal(forced[12:, 12:], own)  # noisy: its own block alone
    np.testing.assert_array_equal(forced[12:, :12], wanted & ~own)  # and clean blocks before it


def test_an_earlier_block_does_not_change_with_later_ones(made, normal):
    x = normal(1, 2, FRAMES, 4, 4, 3)
    _, apply = made(WAN)
    y, changed = apply(x, jnp.zeros(2), TEXT), apply(x.at[:, 5].add(1.0), jnp.zeros(2), TEXT)
    np.testing.assert_allclose(y[:, :4], changed[:, :4], atol=1e-6)
    assert np.abs(y[:, 4] - changed[:, 4]).max() > 1e-3  # of the same block


@pytest.mark.parametrize("spec", [WAN, DIT], ids=["wan", "dit"])
def test_teacher_forcing_is_every_block_after_clean_ones(spec, made, normal):
    """One pass over clean and noisy frames against a pass for each block: the clean clip up to it, then it."""
    x, z, level = normal(1, 2, FRAMES, 4, 4, 3), normal(2, 2, FRAMES, 4, 4, 3), jnp.array([0.5, -1.0])
    _, apply = made(spec)
    y = apply(z, level, TEXT.replace(history=x))
    for start in (0, 2, 6):
        both = jnp.concatenate([x[:, :start], z[:, start:]], axis=1)
        levels = jnp.where(jnp.arange(FRAMES) < start, CLEAN, level[:, None])
        np.testing.assert_allclose(y[:, start : start + 2], apply(both, levels, TEXT)[:, start : start + 2], atol=2e-5)


@pytest.mark.parametrize("spec", [WAN, SINK, DIT], ids=["wan", "sink", "dit"])
def test_kept_keys_are_those_of_recomputation(spec, made, normal):
    """Every block with what is kept of those before it, against the network on all frames so far: 1e-5."""
    frames = 12
    x, z, level = normal(1, 2, frames, 4, 4, 3), normal(2, 2, frames, 4, 4, 3), jnp.array([0.5, -1.0])
    _, apply = made(spec)
    past = empty(spec, 2, (frames, 4, 4))
    for start in range(0, frames, 2):
        both = jnp.concatenate([x[:, :start], z[:, start:]], axis=1)
        levels = jnp.where(jnp.arange(frames) < start, CLEAN, level[:, None])
        wanted = apply(both, levels, TEXT)[:, start : start + 2]
        np.testing.assert_allclose(apply(z[:, start : start + 2], level, TEXT, past=past), wanted, atol=1e-5)
        _, state = apply(x[:, start : start + 2], jnp.full(2, CLEAN), TEXT, past=past, mutable="kept")
        past = following(spec, past, state)
    if spec is SINK:
        assert past.numbers.tolist() == [0, 1, 10, 11]


def stage_of(spec, **sampling):
    return Stage(name="base", video=VideoSpec(frames=FRAMES, height=4, width=4), network=spec,
                 process=Process(schedule=FlowSchedule(), prediction="flow", frame_levels=True, frame_block=2),
                 sampling=Sampling(sampler=DDIM(), steps=3, by_blocks=True, threshold=None, **sampling))


def test_sampling_by_blocks_is_recomputation_of_all_frames(made):
    """Guided samples, against a loop that has no memory: every estimate by the network on all frames."""
    spec = SINK
    params, apply = made(spec)
    stage = stage_of(spec, guidance=0.5)
    keys = jax.random.split(jax.random.key(0), 2)
    found = jax.jit(lambda keys: sample_stage(stage, stage.sampling, params, keys, TEXT))(keys)
    null, process = TEXT.without_text(), stage.process
    from vdm_jax.diffusion.arrays import noise_from_keys
    from vdm_jax.diffusion.sampling import sampling_levels
    sigmas = np.append(jax.nn.sigmoid(-np.asarray(sampling_levels(DDIM(), process.schedule, 3)) / 2), 0.0)
    z = np.array(noise_from_keys(keys, 0, (2, FRAMES, 4, 4, 3)))
    z *= sigmas[0]
    for start in range(0, FRAMES, 2):
        own = slice(start, start + 2)
        for sigma, following_sigma in zip(sigmas, sigmas[1:], strict=False):
            levels = np.where(np.arange(FRAMES) < start, CLEAN, 2 * np.log((1 - sigma) / sigma))
            levels = jnp.broadcast_to(jnp.asarray(levels, jnp.float32), (2, FRAMES))
            c, u = (np.asarray(apply(jnp.asarray(z), levels, text))[:, own] for text in (TEXT, null))
            z[:, own] += (following_sigma - sigma) * (c + 0.5 * (c - u))
    np.testing.assert_allclose(found, np.clip(z, -1, 1), atol=2e-5)


def test_factors_on_words_are_refused_by_blocks():
    stage, keys = stage_of(WAN), jax.random.split(jax.random.key(0), 2)
    with refused("Sampling.by_blocks", "'base'", "by_blocks=True with token_weights", "by_blocks=False"):
        sample_stage(stage, stage.sampling, {}, keys, TEXT.replace(token_weights=jnp.ones((2, 1, 3))))


@pytest.mark.full
def test_sampling_by_blocks_on_a_mesh_is_that_of_one_device():
    """Caches are split by samples and heads: the same videos on data x fsdp x tensor devices."""
    stage = stage_of(WAN, guidance=0.5)
    stage = dataclasses.replace(stage, sampling=dataclasses.replace(stage.sampling, batch_size=4))
    params = random_params(stage, 1)
    text = {"embeddings": np.random.default_rng(0).normal(size=(4, 3, 6)).astype(np.float32)}
    found = []
    for mesh, devices in ((MeshSpec(), jax.devices()[:1]), (MeshSpec(data=2, fsdp=2, tensor=2), jax.devices())):
        experiment = Experiment(name="x", stages=(stage,), mesh=mesh)
        found.append(Generator(experiment, {"base": params}, devices)(["a"] * 4, seed=1, **text).videos.astype(int))
    assert np.abs(found[0] - found[1]).max() <= 1 and found[0].std() > 1
    assert stage.sampling.evaluations(FRAMES) == 4


@pytest.mark.full
def test_longer_videos_are_made_block_by_block():
    """A video of twice the frames of a clip is that of a stage with so many frames."""
    stage = stage_of(SINK)
    params, text = random_params(stage, 1), {"embeddings": np.ones((1, 3, 6), np.float32)}
    video = dataclasses.replace(stage.video, frames=2 * FRAMES)
    whole = Generator(Experiment(name="x", stages=(dataclasses.replace(stage, video=video),)), {"base": params},
                      jax.devices()[:1])(["a"], seed=1, **text).videos.astype(int)
    generator = Generator(Experiment(name="x", stages=(stage,)), {"base": params}, jax.devices()[:1])
    long = generator.long(["a"], frames=2 * FRAMES, method=Blocks(), **text)
    found = generator.long(["a"], frames=2 * FRAMES, method=Blocks(), seed=1, **text).videos.astype(int)
    assert found.shape == whole.shape and found.std() > 1 and (found != long.videos).any()


def test_blocks_of_longer_videos_need_a_causal_network():
    stage = dataclasses.replace(stage_of(WAN), network=dataclasses.replace(WAN, patterns=(Full(),)), sampling=Sampling(
        threshold=None))
    with refused("long_video.blocks", "BlockCausal"):
        Blocks().check(stage, stage.sampling, 2 * FRAMES)
    made = Blocks().sampled_by(stage_of(WAN), 2 * FRAMES)
    assert made.video.frames == 2 * FRAMES and made.sampling.by_blocks and made.sampling.windows is None


def test_training_shows_the_clean_clip_and_blocks_of_levels():
    stage = stage_of(dataclasses.replace(WAN, teacher_forcing=True))
    batch = {"video": np.full((2, FRAMES, 4, 4, 3), 51, np.uint8), "embeddings": np.zeros((2, 3, 6), np.float16),
             "text_mask": np.ones((2, 3), bool)}
    x, conditioning = training_inputs(stage, batch, jax.random.key(0))[:2]
    np.testing.assert_array_equal(conditioning.history, x)
    levels, _ = stage.process.draw(jax.random.key(0), x.shape)
    assert levels.shape == (2, FRAMES) and (levels[:, ::2] == levels[:, 1::2]).all()
    assert len(np.unique(levels)) == FRAMES


@pytest.mark.parametrize("code, named, make", [
    ("BlockCausal.window", ("window=3", "block=2"), lambda: BlockCausal(block=2, window=3)),
    ("VideoTransformer.teacher_forcing", ("Full", "BlockCausal"), lambda: dataclasses.replace(
        WAN, patterns=(Full(),), teacher_forcing=True)),
    ("Sampling.by_blocks", ("BlockCausal",), lambda: stage_of(dataclasses.replace(WAN, patterns=(Full(),)))),
    ("Sampling.by_blocks", ("8 frames", "blocks of 3"), lambda: stage_of(dataclasses.replace(
        WAN, patterns=(BlockCausal(block=3),)))),
    ("Sampling.by_blocks", ("teacher_forcing=False",), lambda: dataclasses.replace(
        stage_of(WAN), process=Process(schedule=FlowSchedule(), prediction="flow"))),
    ("Sampling.by_blocks", ("frame_lag=2",), lambda: Sampling(by_blocks=True, frame_lag=2)),
    ("Sampling.by_blocks", ("by_blocks=True", "kernel='splash'", "'xla'"), lambda: stage_of(dataclasses.replace(
        WAN, attention_kernel="splash"))),
    ("Sampling.by_blocks", ("by_blocks=True", "kernel='gather'", "'xla'"), lambda: stage_of(dataclasses.replace(
        SINK, attention_kernel="gather"))),
    ("Sampling.by_blocks", ("by_blocks=True", "edited", "False"), lambda: edit_sampling(
        stage_of(WAN), stage_of(WAN).sampling, SDEdit(), 0.0)),
    ("Process.frame_block", ("frame_block=2", "frame_levels=False"), lambda: Process(frame_block=2)),
])
def test_refusals(code, named, make):
    with refused(code, *named):
        make()


def test_a_history_of_another_length_is_refused(made, normal):
    with refused("network.check_inputs", "Conditioning.history", "(2, 4, 4, 4, 3)"):
        VideoTransformerModule(WAN).apply({"params": made(WAN)[0]}, normal(0, 2, 8, 4, 4, 3), jnp.zeros(2),
                                          TEXT.replace(history=normal(0, 2, 4, 4, 4, 3)))
