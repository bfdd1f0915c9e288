"""Samplers and grids of released latent models: against closed forms here, step for step against diffusers in full."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.diffusion.arrays import noise_from_keys
from vdm_jax.diffusion.consistency import consistent
from vdm_jax.diffusion.families import VE, VP
from vdm_jax.diffusion.grids import KarrasGrid, TimestepGrid
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM, PNDM, Consistency, DPMSolver, Heun, Step
from vdm_jax.diffusion.sampling import sample, sampling_levels
from vdm_jax.diffusion.schedules import CosineSchedule, ScaledLinearBetaSchedule

STABLE = ScaledLinearBetaSchedule()
VIDEO = CosineSchedule(logsnr_min=-2 * np.log(700), logsnr_max=-2 * np.log(0.002))  # Stable Video Diffusion
SHAPE = (2, 1, 1, 2)


@pytest.mark.parametrize("grid, steps, expected", [
    (TimestepGrid(offset=1), 5, [801, 601, 401, 201, 1]), (TimestepGrid(), 3, [666, 333, 0]),
    (TimestepGrid(spacing="trailing"), 5, [999, 799, 599, 399, 199]),
    (TimestepGrid(spacing="trailing"), 3, [999, 666, 332]),
    (TimestepGrid(spacing="linspace"), 5, [999, 749, 500, 250, 0]),
    (TimestepGrid(spacing="distilled"), 4, [999, 759, 499, 259]),
])
def test_timesteps(grid, steps, expected):
    np.testing.assert_array_equal(grid.timesteps(1000, steps, 1.0), expected)
    levels = sampling_levels(DDIM(grid=grid), STABLE, steps)
    np.testing.assert_allclose(levels, STABLE.table()[expected], rtol=1e-6)


def test_a_later_start_takes_its_share_of_the_timesteps():
    np.testing.assert_array_equal(TimestepGrid(offset=1).timesteps(1000, 4, 0.8), [601, 401, 201, 1])
    np.testing.assert_array_equal(TimestepGrid(spacing="trailing").timesteps(1000, 4, 0.8), [799, 599, 399, 199])
    np.testing.assert_array_equal(TimestepGrid(spacing="distilled").timesteps(1000, 2, 0.5), [499, 259])


@pytest.mark.parametrize("make, message", [
    (lambda: TimestepGrid(spacing="even"), ("TimestepGrid.spacing", "='even'", "'leading'")),
    (lambda: TimestepGrid(spacing="trailing", offset=1), ("TimestepGrid.offset", "=1")),
    (lambda: sampling_levels(DDIM(grid=TimestepGrid()), CosineSchedule(), 4),
     ("grids.TimestepGrid.levels", "CosineSchedule")),
    (lambda: sampling_levels(DDIM(grid=TimestepGrid(spacing="distilled")), STABLE, 51), ("steps", "50")),
    (lambda: PNDM(extrapolate="x"), ("PNDM.extrapolate", "='x'", "'eps'", "'v'")),
    (lambda: Heun(along="time"), ("Heun.along", "='time'", "'family'", "'sigma'")),
    (lambda: consistent(lambda z, level: z, CosineSchedule()), ("consistency.consistent", "CosineSchedule")),
])
def test_refusals(make, message):
    with refused(*message):
        make()


def run(sampler, denoise, schedule, steps, z, prediction="v", **options):
    keys = jax.random.split(jax.random.key(0), len(z))
    process = Process(schedule=schedule, prediction=prediction)
    return jax.jit(lambda z: sample(sampler, denoise, keys, z.shape, process, steps, initial=z, **options))(z)


def test_ddim_is_eulers_method_on_karras_sigmas(gaussian):
    """x <- x + (x - x_hat(x)) / sigma (sigma' - sigma), for x = z / alpha."""
    denoise = jax.jit(gaussian.denoiser(Process(schedule=VIDEO)))
    grid = KarrasGrid(sigma_min=0.002, sigma_max=700.0)
    ramp = np.linspace(0, 1, 6)
    sigmas = (700 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 700 ** (1 / 7))) ** 7
    np.testing.assert_allclose(np.exp(-sampling_levels(DDIM(grid=grid), VIDEO, 6) / 2), sigmas, rtol=1e-4)
    z = jax.random.normal(jax.random.key(1), (3, *SHAPE))
    x = np.asarray(z) * np.sqrt(700.0**2 + 1)
    for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        x_hat = np.asarray(denoise((x / np.sqrt(1 + sigma**2)).astype(np.float32), np.full(3, -2 * np.log(sigma))))
        x = x + (x - x_hat) / sigma * (following - sigma)
    np.testing.assert_allclose(run(DDIM(grid=grid), denoise, VIDEO, 6, z), x, rtol=1e-3, atol=1e-4)


def test_pndm_weighs_the_noise_of_four_steps():
    """With eps_hat known at every level, each step is DDIM's with the sum of Adams and Bashforth."""
    levels, eps = jnp.array([-2.0, -1.0, 0.0, 1.0, 2.0, 3.0]), jnp.array([1.0, -0.5, 0.25, 2.0, -1.0])
    z = jnp.ones((1, 1, 1, 1, 1))
    memory = PNDM().memory(z)

    def estimate(z, level):
        alpha, sigma = VP.alpha_sigma(level)
        return (z - sigma * eps[jnp.argmin(jnp.abs(levels - level))]) / alpha

    sums = [(eps[0] + eps[1]) / 2, (3 * eps[1] - eps[0]) / 2, (23 * eps[2] - 16 * eps[1] + 5 * eps[0]) / 12,
            (55 * eps[3] - 59 * eps[2] + 37 * eps[1] - 9 * eps[0]) / 24,
            (55 * eps[4] - 59 * eps[3] + 37 * eps[2] - 9 * eps[1]) / 24]
    go = jax.jit(lambda z, memory, i: PNDM().step(
        estimate, z, memory, Step(i, levels[i] - 1, levels[i], levels[i + 1], jnp.array(False), 6), VP, z))
    alphas, sigmas = map(np.asarray, VP.alpha_sigma(levels))
    for i, slope in enumerate(np.asarray(jnp.stack(sums))):
        expected = alphas[i + 1] * (np.asarray(z) - sigmas[i] * slope) / alphas[i] + sigmas[i + 1] * slope
        z, _, memory = go(z, memory, jnp.asarray(i))
        np.testing.assert_allclose(z, expected, rtol=1e-5)


def test_pndm_may_weigh_v_instead():
    """The second step goes along (3 v_1 - v_0) / 2 from where it is."""
    z, before = jnp.full((1, 1, 1, 1, 1), 0.7), jnp.full((3, 1, 1, 1, 1, 1), -0.4)
    (alpha, sigma), (alpha_s, sigma_s) = VP.alpha_sigma(jnp.array(0.0)), VP.alpha_sigma(jnp.array(1.0))
    step = Step(jnp.array(1), jnp.array(-1.0), jnp.array(0.0), jnp.array(1.0), jnp.array(False), 6)
    found, _, memory = jax.jit(lambda z: PNDM(extrapolate="v").step(lambda z, level: alpha * z - sigma * 0.3, z, before,
                                                                    step, VP, z))(z)
    v = 1.5 * 0.3 - 0.5 * -0.4
    np.testing.assert_allclose(memory[0], 0.3, rtol=1e-5)
    np.testing.assert_allclose(found, alpha_s * (alpha * z - sigma * v) + sigma_s * (sigma * z + alpha * v), rtol=1e-5)


def test_heun_along_sigma_is_heun_of_z_over_alpha():
    """A step in the variance-preserving family is the published one, of z / alpha, in the exploding one."""
    levels, z = jnp.array([-3.0, -1.0]), jnp.full((1, 1, 1, 1, 1), 0.7)
    step = Step(jnp.array(0), levels[0] - 1, levels[0], levels[1], jnp.array(False), 4)
    estimate = lambda x, level: jnp.tanh(x) * jax.nn.sigmoid(level)  # of z / alpha

    @jax.jit
    def both(z):
        alpha = VP.alpha_sigma(levels)[0]
        ours = Heun(along="sigma").step(lambda z, level: estimate(z / VP.alpha_sigma(level)[0], level), z, None, step,
                                        VP, z)[0]
        return ours / alpha[1], Heun().step(estimate, z / alpha[0], None, step, VE, z)[0]

    np.testing.assert_allclose(*both(z), rtol=1e-5)


def test_pndm_converges_faster_than_ddim(gaussian):
    denoise = gaussian.denoiser(Process(schedule=STABLE))
    z = jax.random.normal(jax.random.key(1), (8, *SHAPE))
    grid = TimestepGrid(offset=1)
    final = lambda sampler, steps: run(sampler, denoise, STABLE, steps, z, stop=float(STABLE.table()[0]))
    exact = final(DPMSolver(grid=grid), 500)
    error = lambda sampler: float(jnp.abs(final(sampler, 50) - exact).max())
    assert error(PNDM(grid=grid)) < error(DDIM(grid=grid)) / 5


def test_pndm_evaluates_once_more_than_it_steps():
    calls = []

    def denoise(z, logsnr):
        jax.debug.callback(lambda level: calls.append(float(level)), logsnr[0])
        return 0.5 * z

    for steps in (1, 2, 5):
        calls.clear()
        jax.block_until_ready(run(PNDM(grid=TimestepGrid(offset=1)), denoise, STABLE, steps, jnp.ones((1, *SHAPE))))
        jax.effects_barrier()
        assert len(calls) == PNDM().evaluations(steps)


def test_consistency_draws_all_noise_anew(gaussian):
    sampler = Consistency(grid=TimestepGrid(spacing="distilled"))
    z = jax.random.normal(jax.random.key(1), (2, *SHAPE))
    denoise = consistent(lambda z, logsnr: 0.3 * z + 1, STABLE)
    found = run(sampler, denoise, STABLE, 3, z)
    keys = jax.random.split(jax.random.key(0), 2)
    for i, timestep in enumerate([999, 679, 339]):
        skip, out = 0.25 / (1e2 * timestep**2 + 0.25), 10 * timestep / np.sqrt(1e2 * timestep**2 + 0.25)
        x = skip * z + out * (0.3 * z + 1)
        if i < 2:
            alpha, sigma = STABLE.alpha_sigma(STABLE.table()[[679, 339][i]])
            z = alpha * x + sigma * noise_from_keys(keys, i + 1, z.shape)
    np.testing.assert_allclose(found, x, rtol=1e-5)


def test_a_consistency_model_is_the_identity_at_timestep_0():
    z = jnp.ones((1, *SHAPE))
    denoise = consistent(lambda z, logsnr: 7 * z, STABLE)
    np.testing.assert_allclose(denoise(z, jnp.asarray(STABLE.table()[:1], jnp.float32)), z, atol=1e-3)
    np.testing.assert_allclose(denoise(z, jnp.asarray(STABLE.table()[500:501], jnp.float32)), 7 * z, rtol=1e-5)


BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STABLE_END = {"stop": float(STABLE.table()[0])}
# Scheduler of diffusers, its options, number of steps; our sampler, options of `sample`.
PEERS = {
    "ddim leading": ("DDIMScheduler", {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}, 7,
                     DDIM(grid=TimestepGrid(offset=1)), STABLE_END),
    "ddim trailing": ("DDIMScheduler", {"timestep_spacing": "trailing", "clip_sample": False}, 8,
                      DDIM(grid=TimestepGrid(spacing="trailing")), {}),
    "pndm": ("PNDMScheduler", {"steps_offset": 1, "skip_prk_steps": True}, 7, PNDM(grid=TimestepGrid(offset=1)),
             STABLE_END),
    "dpm": ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing", "lower_order_final": False,
                                            "final_sigmas_type": "zero", "euler_at_final": True}, 8,
            DPMSolver(grid=TimestepGrid(spacing="trailing")), {}),
    "euler trailing": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, 8,
                       DDIM(grid=TimestepGrid(spacing="trailing")), {}),
    "euler karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 12.0}, 7,
                     DDIM(grid=KarrasGrid(sigma_min=0.05, sigma_max=12.0)), {}),
}


@pytest.mark.full
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("name", PEERS)
def test_steps_of_diffusers(name, prediction):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    scheduler, options, steps, sampler, ours = PEERS[name]
    if prediction == "v" and name == "pndm":
        sampler = dataclasses.replace(sampler, extrapolate="v")
    theirs = getattr(diffusers, scheduler)(**BETAS, **options, prediction_type={
        "eps": "epsilon", "v": "v_prediction"}[prediction])
    theirs.set_timesteps(steps)
    network = lambda z, tanh: 0.8 * tanh(z) + 0.1 * z

    z = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    x = torch.from_numpy(z) * theirs.init_noise_sigma
    first = sampling_levels(sampler, STABLE, steps)[0]
    if theirs.init_noise_sigma != 1:  # z / alpha there
        x = torch.from_numpy(z) / float(STABLE.alpha_sigma(first)[0])
    for timestep in theirs.timesteps:
        scaled = theirs.scale_model_input(x, timestep)
        x = theirs.step(network(scaled, torch.tanh), timestep, x).prev_sample
    process = Process(schedule=STABLE, prediction=prediction)
    denoise = process.denoiser(lambda z, logsnr: network(z, jnp.tanh))
    found = run(sampler, denoise, STABLE, steps, jnp.asarray(z), prediction, **ours)
    np.testing.assert_allclose(found, x.numpy(), rtol=2e-4, atol=2e-4)


@pytest.mark.full
def test_steps_of_the_video_sampler():
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    theirs = diffusers.EulerDiscreteScheduler(
        **BETAS, prediction_type="v_prediction", use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0,
        timestep_type="continuous", timestep_spacing="leading", steps_offset=1)
    theirs.set_timesteps(9)
    z = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    x = torch.from_numpy(z) * theirs.init_noise_sigma
    seen = []
    for timestep in theirs.timesteps:
        seen.append(float(timestep))
        x = theirs.step(torch.tanh(theirs.scale_model_input(x, timestep)), timestep, x).prev_sample
    sampler = DDIM(grid=KarrasGrid(sigma_min=0.002, sigma_max=700.0))
    # What the network is told of the noise, ln(sigma) / 4, is an eighth of our log-SNR with the other sign.
    np.testing.assert_allclose(seen, -sampling_levels(sampler, VIDEO, 9) / 8, rtol=1e-4)
    denoise = Process(schedule=VIDEO).denoiser(lambda z, logsnr: jnp.tanh(z))
    np.testing.assert_allclose(run(sampler, denoise, VIDEO, 9, jnp.asarray(z)), x.numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.full
def test_steps_of_latent_consistency():
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    theirs = diffusers.LCMScheduler(**BETAS, clip_sample=False)
    theirs.set_timesteps(4)
    sampler = Consistency(grid=TimestepGrid(spacing="distilled"))
    assert theirs.timesteps.tolist() == TimestepGrid(spacing="distilled").timesteps(1000, 4, 1.0).tolist()
    z = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    x, keys = torch.from_numpy(z), jax.random.split(jax.random.key(0), 2)
    process = Process(schedule=STABLE, prediction="eps")
    denoise = consistent(process.denoiser(lambda z, logsnr: jnp.tanh(z)), STABLE)
    for i, timestep in enumerate(theirs.timesteps):
        output = theirs.step(torch.tanh(x), timestep, x)
        if i < 3:  # with our noise
            following = theirs.alphas_cumprod[theirs.timesteps[i + 1]]
            noise = torch.from_numpy(np.array(noise_from_keys(keys, i + 1, z.shape)))
            x = following.sqrt() * output.denoised + (1 - following).sqrt() * noise
    found = run(sampler, denoise, STABLE, 4, jnp.asarray(z), "eps")
    np.testing.assert_allclose(found, output.denoised.numpy(), rtol=2e-4, atol=2e-4)
