"""Inversion against exact inverses for Gaussian data, and against diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.diffusion.beta_tables import ScaledLinearBetaSchedule
from vdm_jax.diffusion.families import FLOW
from vdm_jax.diffusion.flow_sigmas import FlowSigmas
from vdm_jax.diffusion.inversion import ddim_inverted, ddpm_inverted, diffused, replayed, sampled_from, steps_from
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM, DDPM, DPMSolver
from vdm_jax.diffusion.sampling import sample, sampling_levels, steps_between
from vdm_jax.diffusion.scheduler_steps import SchedulerSteps
from vdm_jax.diffusion.schedules import CosineSchedule, EDMSchedule, FlowSchedule

COSINE = CosineSchedule(logsnr_min=-10.0, logsnr_max=10.0)
PROCESSES = {"vp": Process(schedule=COSINE), "ve": Process(schedule=EDMSchedule(), prediction="edm"),
             "flow": Process(schedule=FlowSchedule(), prediction="flow")}
KEYS = jax.random.split(jax.random.key(0), 6)


def steps_of(process, count):
    return steps_between(sampling_levels(DDIM(), process.schedule, count))


@pytest.fixture
def data(gaussian, videos):
    """Videos of the Gaussian."""
    root = np.linalg.cholesky(gaussian.covariance)
    return jnp.asarray(gaussian.mean + videos[1].reshape(6, 4) @ root.T, jnp.float32).reshape(videos[0].shape)


@pytest.mark.parametrize("family", PROCESSES)
def test_refined_inversion_is_what_ddim_samples_from(family, gaussian, data):
    process = PROCESSES[family]
    denoise, steps = gaussian.denoiser(process), steps_of(process, 12)
    z = ddim_inverted(denoise, data, steps, process.schedule.family, refinements=40)
    assert z.shape == (12, *data.shape)
    back = sampled_from(z[0], DDIM(), denoise, KEYS, steps, process)
    np.testing.assert_allclose(back, data, atol=1e-5)
    part = jax.tree.map(lambda a: a[5:], steps)  # and from any step in between
    np.testing.assert_allclose(sampled_from(z[5], DDIM(), denoise, KEYS, part, process), data, atol=1e-5)


def test_the_refined_noise_solves_the_linear_system_of_all_steps(gaussian, data):
    """DDIM's steps for a Gaussian are affine: an oracle that inverts their product by linear algebra."""
    process, count = PROCESSES["vp"], 12
    denoise, levels = gaussian.denoiser(process), np.asarray(steps_of(process, count).level, np.float64)
    matrix, shift = np.eye(4), np.zeros(4)
    for i, level in enumerate(levels):
        alpha, sigma = np.sqrt(1 / (1 + np.exp(-level))), np.sqrt(1 / (1 + np.exp(level)))
        gain = alpha * gaussian.covariance @ np.linalg.inv(alpha**2 * gaussian.covariance + sigma**2 * np.eye(4))
        a, b = (1.0, 0.0) if i == count - 1 else (np.sqrt(1 / (1 + np.exp(-levels[i + 1]))),
                                                  np.sqrt(1 / (1 + np.exp(levels[i + 1]))))
        step = b / sigma * np.eye(4) + (a - b / sigma * alpha) * gain
        offset = (a - b / sigma * alpha) * (gaussian.mean - alpha * gain @ gaussian.mean)
        matrix, shift = step @ matrix, step @ shift + offset
    expected = np.linalg.solve(matrix, (np.asarray(data).reshape(6, 4) - shift).T).T
    found = ddim_inverted(denoise, data, steps_of(process, count), process.schedule.family, refinements=40)[0]
    np.testing.assert_allclose(found.reshape(6, 4), expected, atol=2e-4)  # float32 through 12 systems


def test_more_steps_bring_plain_inversion_to_the_flow_of_the_ode(gaussian, data):
    process = PROCESSES["vp"]
    denoise, errors = gaussian.denoiser(process), []
    for count in (16, 128):
        z = ddim_inverted(denoise, data, steps_of(process, count), process.schedule.family)[0]
        alpha, sigma = process.schedule.alpha_sigma(process.schedule.logsnr(1.0))
        errors.append(float(jnp.abs(gaussian.flow(z, alpha, sigma) - data).max()))
    assert errors[1] < errors[0] / 4 and errors[1] < 0.03


def test_ddpm_noises_make_the_video_again_and_another_one_of_another_estimate(gaussian, data):
    process = PROCESSES["vp"]
    denoise, steps, family = gaussian.denoiser(process), steps_of(process, 8), process.schedule.family
    for sampler in (DDPM(), DDPM(gamma=0.4), DDIM(eta=1.0)):
        z, noises = ddpm_inverted(denoise, data, KEYS, steps, process, sampler=sampler)
        again = replayed(denoise, z, noises, steps, family, sampler=sampler)
        np.testing.assert_allclose(again, data, atol=1e-5)
    other = replayed(lambda z, level: denoise(z, level) + 0.1, z, noises, steps, family, sampler=sampler)
    assert float(jnp.abs(other - data).min()) > 0.01
    # Noises of one step differ from those of the next, and from those of the video's own noising.
    assert abs(np.corrcoef(noises[2].ravel(), noises[3].ravel())[0, 1]) < 0.6


def test_the_last_steps_of_many_keep_their_order(gaussian, data):
    """A solver that lowers the order at the end of fewer than 15 steps goes by all steps of the sampler."""
    process = PROCESSES["vp"]
    denoise = gaussian.denoiser(process)

    def made(count, **options):
        steps = steps_from(steps_of(process, count), 0.5)
        return sampled_from(data, DPMSolver(order=3, **options), denoise, KEYS, steps, process)

    np.testing.assert_array_equal(made(16), made(16, lower_order_final=False))
    assert float(jnp.abs(made(8) - made(8, lower_order_final=False)).max()) > 1e-3


def test_a_released_flow_is_inverted_from_noise_alone(gaussian, data):
    """At its first sigma of 1 nothing of the video is left; plain inversion is Euler's step back."""
    process = PROCESSES["flow"]
    spec = SchedulerSteps(scheduler="FlowMatchEulerDiscreteScheduler", flow=FlowSigmas(grid="euler", shift=3.0))
    steps = steps_from(spec.discretise(process.schedule, 6).steps, 1.0)
    denoise, family = gaussian.denoiser(process), FLOW
    z, noises = ddpm_inverted(denoise, data, KEYS, steps, process)
    assert bool(jnp.isfinite(noises).all())
    np.testing.assert_allclose(replayed(denoise, z, noises, steps, family), data, atol=1e-5)
    found = ddim_inverted(denoise, data, steps, family, held="flow")
    x_hat = denoise(found[1], jnp.full(6, steps.level[0]))
    sigma = float(family.alpha_sigma(jnp.float32(steps.level[1]))[1])
    np.testing.assert_allclose(found[0], found[1] + (1 - sigma) * (found[1] - x_hat), atol=1e-5)
    refined = ddim_inverted(denoise, data, steps, family, refinements=40, held="flow")
    np.testing.assert_allclose(sampled_from(refined[0], DDIM(), denoise, KEYS, steps, process), data, atol=1e-5)


def test_the_noise_of_a_step_is_what_its_equation_lacks(gaussian, data):
    """z_s = mean(z_t) + std n, written out (Ho et al. 2022, eq. 3) from levels alone."""
    process = PROCESSES["vp"]
    denoise, steps = gaussian.denoiser(process), steps_of(process, 4)
    z, noises = ddpm_inverted(denoise, data, KEYS, steps, process)
    (a_t, s_t), (a_s, s_s) = (map(float, process.schedule.alpha_sigma(level)) for level in steps.level[:2])
    ratio = a_t / a_s
    kept, variance = s_s**2 / s_t**2, s_t**2 - ratio**2 * s_s**2
    mean = ratio * kept * z + a_s * variance / s_t**2 * denoise(z, jnp.full(6, steps.level[0]))
    after = mean + np.sqrt(variance * kept) * noises[0]
    eps = (after - a_s * data) / s_s  # independent standard normal noise, of the second step
    assert abs(float(eps.std()) - 1) < 0.25
    np.testing.assert_allclose(np.corrcoef(np.ravel(eps), np.ravel((z - a_t * data) / s_t))[0, 1], 0, atol=0.4)


def test_strength_takes_the_last_of_the_steps(gaussian, data):
    process = PROCESSES["vp"]
    steps = steps_of(process, 10)
    for strength, count in ((0.0, 0), (0.05, 0), (0.3, 3), (0.75, 7), (1.0, 10)):
        part = steps_from(steps, strength)
        assert len(part.level) == count and list(part.index) == list(range(count))
        np.testing.assert_array_equal(part.level, steps.level[10 - count:])
    z = diffused(data, KEYS, steps_from(steps, 0.3), process)
    alpha, sigma = process.schedule.alpha_sigma(steps.level[7])
    noise = (z - alpha * data) / sigma
    whole = sample(DDIM(), gaussian.denoiser(process), KEYS, data.shape, process, 10)
    np.testing.assert_allclose(sampled_from(noise, DDIM(), gaussian.denoiser(process), KEYS, steps, process), whole,
                               atol=1e-5)  # the noise is the one that sampling begins with
    with refused("strength", "1.5"):
        steps_from(steps, 1.5)
    with refused("refinements", "-1"):
        ddim_inverted(gaussian.denoiser(process), data, steps, process.schedule.family, refinements=-1)


def test_a_multistep_sampler_begins_anew_in_the_middle(gaussian, data):
    """It must not read steps that were never made."""
    process = PROCESSES["vp"]
    denoise, sampler = gaussian.denoiser(process), DPMSolver()
    part = steps_from(steps_between(sampling_levels(sampler, process.schedule, 16)), 0.5)
    found = sampled_from(diffused(data, KEYS, part, process), sampler, denoise, KEYS, part, process)
    fine = steps_from(steps_of(process, 256), 0.5)
    np.testing.assert_allclose(found, sampled_from(diffused(data, KEYS, fine, process), DDIM(), denoise, KEYS, fine,
                                                   process), atol=0.05)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_inversion_steps_are_those_of_diffusers(kind, videos):
    """`DDIMInverseScheduler` on the same network, a fixed function of z and timestep."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    table = ScaledLinearBetaSchedule()
    process = Process(schedule=table, prediction="eps" if kind == "epsilon" else "v")
    spec = SchedulerSteps(steps_offset=1, set_alpha_to_one=False)
    steps = spec.discretise(table, 5).steps
    log_snrs = np.asarray(table.table(), np.float64)

    def network(z, timestep):
        return 0.6 * z + 0.2 * z[..., ::-1] - 0.1 * (timestep / 1000)

    def denoise(z, logsnr):
        timestep = jnp.interp(-logsnr, -log_snrs.astype(np.float32), jnp.arange(1000.0))[0]
        return process.predictions(network(z, timestep), z, logsnr)["x"]

    held = process.prediction
    found = ddim_inverted(denoise, videos[0], steps, table.family, held=held)
    scheduler = diffusers.DDIMInverseScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind, clip_sample=False,
        set_alpha_to_one=False, steps_offset=1)
    scheduler.set_timesteps(5)
    z, expected = torch.tensor(np.asarray(videos[0])), []
    for timestep in scheduler.timesteps:
        output = torch.tensor(np.ascontiguousarray(network(z.numpy(), float(timestep))))
        z = scheduler.step(output, timestep, z).prev_sample
        expected.append(z.numpy())
    np.testing.assert_allclose(found, np.stack(expected[::-1]), rtol=2e-4, atol=2e-4)
