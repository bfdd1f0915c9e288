"""Self-Forcing: rollouts of a causal student in training, what of them has a gradient, and what scores do with it."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.attention import BlockCausal, Full
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.diffusion.arrays import noise_from_keys
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM, Consistency
from vdm_jax.diffusion.sampling import sampling_levels
from vdm_jax.diffusion.schedules import FlowSchedule
from vdm_jax.generation.block_sampling import block_keys, sample_by_blocks
from vdm_jax.generation.one_stage import with_threshold
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.networks.transformer.levels import CLEAN
from vdm_jax.networks.transformer.past import empty, following
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.stages.distillation import SelfForcing, Teacher
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.parameters import initial_params, network_shapes
from vdm_jax.stages.stage import Stage, VideoSpec
from vdm_jax.training import distillation as losses
from vdm_jax.training.distillation import Roles, critic_loss, judging, matching_loss, simulated
from vdm_jax.training.draws import bound_network, draw
from vdm_jax.training.init_from import plan_transformer
from vdm_jax.training.rollout import rollout
from vdm_jax.training.state import abstract_state, initial_state
from vdm_jax.training.step import jit_train_step

FRAMES, BLOCK, STEPS = 6, 2, 3
NETWORK = VideoTransformer(out_channels=3, patch=(1, 4, 4), width=12, heads=2, hidden=16, layers=2, level_channels=8,
                           patterns=(BlockCausal(block=BLOCK),), teacher_forcing=True)
FORCING = SelfForcing(teacher=Teacher(run="teacher", stage="base"), steps=STEPS, critic_updates=2)
CAUSAL = dataclasses.replace(FORCING, scores="causal")
PROCESS = Process(schedule=FlowSchedule(shift=3.0), prediction="x", frame_levels=True, frame_block=BLOCK)
SAMPLING = Sampling(sampler=Consistency(), steps=STEPS, by_blocks=True)
SHAPE = (2, FRAMES, 8, 8, 3)


def stage_of(spec=FORCING, *, network=NETWORK, process=PROCESS, sampling=SAMPLING, **training) -> Stage:
    training = Training(**{"batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 0, "sample_every": 0,
                           "validate_every": 0, "steps": 4, "distillation": spec, **training})
    return Stage(name="base", video=VideoSpec(frames=FRAMES, height=8, width=8), network=network, process=process,
                 training=training, sampling=sampling)


def random_params(stage, seed=0, size=0.3):
    """Parameters of which none is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: (size * rng.normal(size=a.shape)).astype(a.dtype), network_shapes(stage))


@pytest.fixture(scope="module")
def batch():
    return {"video": np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)}


# ---------------------------------------------------------------------------------------------------------- rollouts


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("number", range(STEPS))
def test_a_rollout_is_what_the_sampler_with_kept_keys_draws(number, window):
    """From the same keys, of the steps up to the one at which blocks end; the sampler's result is bounded."""
    network = dataclasses.replace(NETWORK, patterns=(BlockCausal(block=BLOCK, window=window),))
    stage = stage_of(network=network)
    params, keys = random_params(stage), jax.random.split(jax.random.key(1), 2)
    levels = sampling_levels(Consistency(), PROCESS.schedule, STEPS)
    sampling = dataclasses.replace(SAMPLING, steps=number + 1)
    wanted = jax.jit(lambda: sample_by_blocks(
        stage, sampling, params, keys, [Conditioning()], levels[: number + 1],
        finish=lambda denoise: with_threshold(denoise, sampling)))()
    found = jax.jit(lambda numbers: rollout(stage, params, keys, Conditioning(), levels, numbers, SHAPE))(
        jnp.full(FRAMES // BLOCK, number))
    np.testing.assert_allclose(jnp.clip(found, -1, 1), wanted, atol=1e-5)
    assert np.abs(found).max() > 1 > np.abs(wanted).min() and np.std(wanted) > 0.1


def by_hand(stage, params, keys, numbers):
    """For each block, what goes into its one estimate with a gradient: noisy frames, level and what is kept before it.
    Constants, made by a loop that knows no gradients."""
    module, process = network_module(stage.network), stage.process
    levels = sampling_levels(Consistency(), process.schedule, STEPS)
    noise, past, constants = noise_from_keys(keys, 0, SHAPE), empty(stage.network, 2, SHAPE[1:4]), []
    apply = jax.jit(functools.partial(module.apply, {"params": params}), static_argnames="mutable")
    for block, number in enumerate(numbers):
        own = block_keys(keys, jnp.int32(block))
        z = noise[:, block * BLOCK :][:, :BLOCK] * process.schedule.alpha_sigma(levels[0])[1]
        for step in range(number):
            x = jnp.clip(apply(z, jnp.full(2, levels[step]), past=past), -1, 1)
            z = process.diffuse(x, noise_from_keys(own, step + 1, z.shape), jnp.full(2, levels[step + 1]))
        constants.append((z, jnp.full(2, levels[number]), past))
        x = jnp.clip(apply(z, jnp.full(2, levels[number]), past=past), -1, 1)
        past = following(stage.network, past, apply(x, jnp.full(2, CLEAN), past=past, mutable=("kept",))[1])
    return constants


@pytest.mark.parametrize("numbers", [(1, 1, 1), (2, 0, 1)])
def test_the_gradient_is_that_of_one_estimate_of_each_block(numbers):
    """Against the sum of the blocks' estimates at constants that a loop without gradients has made, by JAX and by a
    difference quotient. A gradient through kept keys, or through steps before, would be in neither."""
    stage = stage_of()
    params, keys = random_params(stage), jax.random.split(jax.random.key(1), 2)
    constants = by_hand(stage, params, keys, numbers)
    module = network_module(stage.network)
    weights = jnp.asarray(np.random.default_rng(3).normal(size=SHAPE), jnp.float32)
    levels = sampling_levels(Consistency(), PROCESS.schedule, STEPS)

    @jax.jit
    def wanted(params):
        blocks = [module.apply({"params": params}, z, level, past=past) for z, level, past in constants]
        return (weights * jnp.concatenate(blocks, axis=1)).mean()

    @jax.jit
    def found(params):
        return (weights * rollout(stage, params, keys, Conditioning(), levels, jnp.array(numbers), SHAPE)).mean()

    np.testing.assert_allclose(found(params), wanted(params), rtol=1e-4, atol=1e-6)
    grads = jax.grad(found)(params)
    for one, two in zip(*map(jax.tree.leaves, (grads, jax.grad(wanted)(params))), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=2e-6)
    direction = random_params(stage, 5, 1.0)
    slope = float(sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (grads, direction)), strict=True)))

    def quotient(function, step=3e-3):
        ahead, behind = (function(jax.tree.map(lambda p, d, s=s: p + s * d, params, direction)) for s in (step, -step))
        return float(ahead - behind) / (2 * step)

    assert slope == pytest.approx(quotient(wanted), rel=2e-2)
    assert slope != pytest.approx(quotient(found), rel=0.1)  # which has the other ways too


def test_blocks_may_draw_steps_of_their_own(batch, monkeypatch):
    seen = []
    monkeypatch.setattr("vdm_jax.training.rollout.rollout",
                        lambda *arguments: (seen.append(arguments[5]), jnp.zeros(SHAPE))[1])
    for same in (True, False):
        stage = stage_of(dataclasses.replace(FORCING, same_step=same))
        for seed in range(8):
            simulated(stage, {}, draw(stage, batch, jax.random.key(seed)))
    together, apart = np.array(seen[:8]), np.array(seen[8:])
    assert together.shape == (8, FRAMES // BLOCK) and (together == together[:, :1]).all()
    assert (apart != apart[:, :1]).any() and set(together.ravel()) == set(apart.ravel()) == set(range(STEPS))


# ------------------------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize("spec", [FORCING, CAUSAL], ids=["bidirectional", "causal"])
def test_what_teacher_and_critic_see(spec, batch):
    """All frames and no clean clip; or of each block the clean ones of the student before it, and no others."""
    stage = stage_of(spec)
    params, drawn = random_params(stage), draw(stage, batch, jax.random.key(4))
    np.testing.assert_array_equal(drawn.conditioning.history, drawn.x)  # of the batch, which neither sees
    x, z = (jnp.asarray(np.random.default_rng(n).normal(size=SHAPE), jnp.float32) for n in (1, 2))
    network, seen = judging(stage, drawn, x)
    estimate = jax.jit(lambda x, z: bound_network(
        stage, params, judging(stage, drawn, x)[1], train=False, network=network)(z, jnp.zeros(2)))

    def changed(x, z):
        return [bool(np.abs((estimate(x, z) - before)[:, t]).max() > 1e-4) for t in range(FRAMES)]

    before = estimate(x, z)
    own, later = [False, False, True, True, False, False], [False] * 4 + [True] * 2
    if spec is FORCING:
        assert network.patterns == (Full(),) and seen.conditioning.history is None and seen.logsnr.shape == (2,)
        assert changed(x, z.at[:, 2].add(1.0)) == [True] * FRAMES and changed(x.at[:, 2].add(1.0), z) == [False] * 6
    else:
        assert network == stage.network and seen.logsnr.shape == (2, FRAMES)
        assert changed(x, z.at[:, 2].add(1.0)) == own and changed(x.at[:, 2].add(1.0), z) == later


def test_networks_of_one_video_are_drawn_to_the_teachers(batch):
    """Networks of zeros that predict x, off by b: whatever the noise, their videos are b. Teacher 0, critic and student
    0.3: the gradient points to the teacher with the size 1, and the error is half of its square; the critic that is
    right has no loss."""
    for spec in (FORCING, CAUSAL):
        stage = stage_of(spec)
        zero = jax.tree.map(np.zeros_like, random_params(stage))
        off = {**zero, "out": {**zero["out"], "bias": zero["out"]["bias"] + np.float32(0.3)}}
        drawn = draw(stage, batch, jax.random.key(4))
        np.testing.assert_allclose(jax.jit(lambda: simulated(stage, off, drawn))(), 0.3, rtol=1e-5)  # noqa: B023
        roles = Roles({"teacher": zero, "critic": off, "student": off}, jnp.int32(0))
        assert float(matching_loss(stage, off, drawn, None, roles)[0]) == pytest.approx(0.5, rel=1e-4)
        assert float(critic_loss(stage, off, drawn, roles)[0]) < 1e-9 < float(critic_loss(stage, zero, drawn, roles)[0])


def test_the_gradient_of_a_rollout_is_the_difference_of_scores_of_gaussian_videos(batch, monkeypatch):
    """Teacher and critic of Gaussians whose frames are correlated, in place of networks: the gradient of the student's
    bias is the sum over the clip of sigma^2 / alpha times the difference of the scores of noisy clips."""
    stage = stage_of()
    mix = np.random.default_rng(7).normal(size=(2, FRAMES, FRAMES)).astype(np.float32) / 2
    covariances = dict(zip(("real", "fake"), mix @ mix.transpose(0, 2, 1) + 0.2 * np.eye(FRAMES, dtype=np.float32),
                           strict=True))
    means, noisy = {"real": 0.2, "fake": -0.1}, []

    def noisy_inverse(name, level):
        alpha, sigma = PROCESS.schedule.alpha_sigma(level)
        cover = alpha[:, None, None] ** 2 * covariances[name] + sigma[:, None, None] ** 2 * jnp.eye(FRAMES)
        return jnp.linalg.inv(cover), alpha

    def estimate(name):  # the mean of x given z
        def denoise(z, level):
            noisy.append((z, level))
            inverse, alpha = noisy_inverse(name, level)
            gain = alpha[:, None, None] * jnp.einsum("tu,buv->btv", covariances[name], inverse)
            centred = z - (alpha * means[name])[:, None, None, None, None]
            return means[name] + jnp.einsum("btu,buhwc->bthwc", gain, centred)
        return denoise

    monkeypatch.setattr(losses, "teacher_denoiser", lambda *_, **__: estimate("real"))
    monkeypatch.setattr(Process, "denoiser", lambda process, network: network)
    monkeypatch.setattr(losses, "bound_network", lambda *_, **__: estimate("fake"))
    monkeypatch.setattr(losses, "simulated", lambda stage, params, drawn: clip + params)
    clip = jnp.asarray(np.random.default_rng(8).normal(size=SHAPE), jnp.float32)
    drawn = draw(stage, batch, jax.random.key(4))
    roles = Roles({"teacher": None, "critic": None}, jnp.int32(0))
    found = jax.grad(lambda change: matching_loss(stage, change, drawn, None, roles)[0])(jnp.zeros(SHAPE))
    z, level = noisy[0]
    assert level.shape == (2,)  # one of the clip

    def log_density(z, name):
        inverse, alpha = noisy_inverse(name, level)
        centred = z - (alpha * means[name])[:, None, None, None, None]
        return -0.5 * jnp.einsum("bthwc,btu,buhwc->", centred, inverse, centred)

    real, fake = (jax.grad(log_density)(z, name) for name in ("real", "fake"))
    alpha, sigma = (a[:, None, None, None, None] for a in PROCESS.schedule.alpha_sigma(level))
    distance = jnp.abs(clip - estimate("real")(z, level)).mean((1, 2, 3, 4), keepdims=True)
    wanted = sigma**2 / alpha * (fake - real) / distance / clip[0].size / len(clip)
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=1e-7)
    assert np.abs(wanted).max() > 1e-4


# ---------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("spec", [FORCING, pytest.param(CAUSAL, marks=pytest.mark.full)],
                         ids=["bidirectional", "causal"])
@pytest.mark.parametrize("mesh", [MeshSpec(data=2, fsdp=2, tensor=2)], ids=str)
def test_a_step_on_a_mesh_is_that_of_one_device(spec, mesh):
    """Eight devices: losses, and the gradients in both optimizers' first moments."""
    rng, stage = np.random.default_rng(0), stage_of(spec, batch_size=4)
    batch = {"video": rng.integers(0, 256, (4, *SHAPE[1:])).astype(np.uint8)}
    state = jax.jit(lambda key: initial_state(stage, key))(jax.random.key(0))
    state = state.replace(params=random_params(stage), step=jnp.int32(1), networks={
        **state.networks, "teacher": random_params(stage, 1), "critic": random_params(stage, 2)})
    state, found = jax.device_get(state.replace(key=jax.random.key_data(state.key))), []
    for spec_, devices in ((MeshSpec(), jax.devices()[:1]), (mesh, jax.devices())):
        on = make_mesh(spec_, devices)
        with jax.set_mesh(on):
            placed = state.replace(key=jax.random.wrap_key_data(state.key))
            placed = jax.tree.map(lambda a, to: jax.device_put(a, to.sharding), placed, abstract_state(stage, on))
            after, metrics = jit_train_step(stage, on)(placed, batch)
        moments = after.opt_state, after.networks["critic_optimizer"]
        found.append(jax.device_get((metrics, moments)))
    (one, alone), (many, spread) = found
    assert one["student_loss"] > 0 and not one["skipped"]
    for name in ("loss", "student_loss", "gradient_norm"):
        np.testing.assert_allclose(many[name], one[name], rtol=1e-4)
    for a, b in zip(*map(jax.tree.leaves, (alone, spread)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-6)


def test_a_teacher_of_all_frames_has_the_students_parameters():
    stage = stage_of()
    network = FORCING.judging(NETWORK)
    assert not network.teacher_forcing and network.block_frames is None
    other = jax.eval_shape(lambda key: initial_params(dataclasses.replace(
        stage, network=network, sampling=Sampling(), training=Training(validate_every=0)), key), jax.random.key(0))
    assert len(plan_transformer(NETWORK, network_shapes(stage), network, other, "x").copied) == len(
        jax.tree.leaves(other))


@pytest.mark.parametrize(("make", "code", "named"), [
    (lambda: stage_of(sampling=dataclasses.replace(SAMPLING, by_blocks=False)), "Stage.sampling.by_blocks",
     ("by_blocks=False", "permitted: True", "BlockCausal")),
    (lambda: stage_of(network=dataclasses.replace(NETWORK, patterns=(Full(),), teacher_forcing=False)),
     "Sampling.by_blocks", ("blocks of None", "BlockCausal")),
    (lambda: stage_of(network=dataclasses.replace(NETWORK, patterns=(BlockCausal(block=4),))), "Sampling.by_blocks",
     ("6 frames, blocks of 4", "divide")),
    (lambda: dataclasses.replace(FORCING, steps=0), "SelfForcing.steps", ("steps=0", "permitted: ")),
    (lambda: stage_of(sampling=dataclasses.replace(SAMPLING, sampler=DDIM())), "Stage.sampling.sampler",
     ("DDIM", "SelfForcing", "permitted: Consistency")),
    (lambda: stage_of(network=dataclasses.replace(NETWORK, teacher_forcing=False), images_per_clip=1),
     "Stage.training.images_per_clip", ("images_per_clip=1", "permitted: 0")),
    (lambda: stage_of(trainable=("out",)), "Stage.training.trainable", ("SelfForcing", "permitted: ()")),
    (lambda: FORCING.check_teacher(stage_of(), stage_of()), "Stage.training.distillation.scores",
     ("'bidirectional'", "BlockCausal", "permitted: 'causal'")),
])
def test_what_does_not_go_together_is_refused_by_its_field(make, code, named):
    with refused(code, *named):
        make()
