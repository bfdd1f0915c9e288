"""Few-step students in closed form: on Gaussian videos the teacher is exact, so what a student must learn is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.diffusion.consistency import Boundary, consistent_estimate
from vdm_jax.diffusion.distillation import (
    PseudoHuber,
    SquaredDistance,
    growing_intervals,
    halving_target,
    interval_level,
    matching_error,
    solved,
    target_decay,
)
from vdm_jax.diffusion.families import FLOW, VE, VP
from vdm_jax.diffusion.grids import TimeGrid
from vdm_jax.diffusion.predictions import predictions_of
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM, Heun, Step, StochasticDDIM
from vdm_jax.diffusion.sampling import check_steps, sample, sampling_levels, steps_between
from vdm_jax.diffusion.schedules import CosineSchedule, EDMSchedule, FlowSchedule, ScaledLinearBetaSchedule

SHAPE = (2, 1, 1, 2)
PROCESSES = {"vp": Process(schedule=CosineSchedule()), "ve": Process(schedule=EDMSchedule(), prediction="edm"),
             "flow": Process(schedule=FlowSchedule(), prediction="flow")}


def every(fixed, batch=6):
    return jnp.full((batch,), fixed, jnp.float32)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_step_with_the_target_ends_where_two_steps_of_the_teacher_do(name, gaussian, videos):
    process, (x, noise) = PROCESSES[name], videos
    family, teacher = process.schedule.family, gaussian.denoiser(process)
    levels = tuple(every(process.schedule.logsnr(t)) for t in (0.75, 0.625, 0.5))
    z = process.diffuse(x, noise, levels[0])
    ends = z
    for before, after in zip(levels, levels[1:], strict=False):
        ends = solved(DDIM(), teacher, ends, before, after, family)
    target = halving_target(teacher, z, levels, jnp.zeros(6, bool), family)
    student = solved(DDIM(), lambda *_: target, z, levels[0], levels[2], family)
    np.testing.assert_allclose(student, ends, rtol=2e-5, atol=2e-5)
    # The published quotient, of which the mean of the two estimates is another form.
    (a_t, s_t), (a_s, s_s) = (family.alpha_sigma(levels[i][0]) for i in (0, 2))
    quotient = (ends - s_s / s_t * z) / (a_s - s_s / s_t * a_t)
    np.testing.assert_allclose(target, quotient, rtol=1e-4, atol=1e-4)


def test_the_last_step_learns_the_teachers_last_estimate(gaussian, videos):
    process, (x, noise) = PROCESSES["vp"], videos
    teacher = gaussian.denoiser(process)
    levels = tuple(every(process.schedule.logsnr(t)) for t in (0.25, 0.125, 0.0))
    z = process.diffuse(x, noise, levels[0])
    middle = solved(DDIM(), teacher, z, levels[0], levels[1], process.schedule.family)
    target = halving_target(teacher, z, levels, jnp.array([True] * 3 + [False] * 3), process.schedule.family)
    expected = teacher(middle, levels[1])
    np.testing.assert_array_equal(target[:3], expected[:3])
    assert not np.array_equal(target[3:], expected[3:])  # a share of the first estimate, as small as the last sigma
    np.testing.assert_allclose(target[3:], expected[3:], atol=1e-3)


def test_halving_twice_samples_what_the_first_teacher_samples(gaussian):
    """Eight steps of the teacher, four of its perfect student, two of that one's: the same videos, so that progressive
    distillation has only the error that the first teacher's steps have."""
    process = PROCESSES["vp"]
    schedule, keys = process.schedule, jax.random.split(jax.random.key(0), 4)

    def halved(teacher, steps):
        def student(z, logsnr):
            time = schedule.time(logsnr)
            levels = (logsnr, schedule.logsnr(time - 0.5 / steps), schedule.logsnr(jnp.maximum(time - 1 / steps, 0)))
            return halving_target(teacher, z, levels, time < 1.5 / steps, schedule.family)

        return student

    denoisers = {8: gaussian.denoiser(process)}
    for steps in (4, 2):
        denoisers[steps] = halved(denoisers[2 * steps], steps)
    found = {steps: sample(DDIM(grid=TimeGrid()), denoise, keys, (4, *SHAPE), process, steps)
             for steps, denoise in denoisers.items()}
    np.testing.assert_allclose(found[4], found[8], atol=1e-4)
    np.testing.assert_allclose(found[2], found[8], atol=2e-4)


@pytest.mark.parametrize("family", [VP, VE, FLOW], ids=lambda family: family.name)
def test_a_stochastic_step_keeps_the_marginals(family, videos):
    """With the true video as estimate z is `alpha x + sigma noise` at every level: the mean is exact, and the two
    noises together have the right variance."""
    x, noise = videos
    level, following, after = (jnp.float32(v) for v in (-2.0, -0.5, 1.3))
    step = Step(jnp.array(0), level - 1, level, following, jnp.array(False), 8, after)

    def stepped(eps, drawn):
        alpha, sigma = family.alpha_sigma(level)
        return StochasticDDIM().step(lambda *_: x, alpha * x + sigma * eps, None, step, family, drawn)[0]

    alpha, sigma = family.alpha_sigma(following)
    nothing = jnp.zeros_like(x)
    np.testing.assert_allclose(stepped(nothing, nothing), alpha * x, rtol=1e-5, atol=1e-5)
    kept, drawn = ((stepped(*pair) - alpha * x) / noise for pair in ((noise, nothing), (nothing, noise)))
    np.testing.assert_allclose(kept**2 + drawn**2, jnp.full_like(x, sigma**2), rtol=2e-4)
    # Two steps on is all there is to know of the rest: the last steps go to the estimate and back.
    last = step._replace(after=jnp.float32(jnp.inf))
    end = StochasticDDIM().step(lambda *_: x, noise, None, last, family, noise)[0]
    np.testing.assert_allclose(end, alpha * x + sigma * noise, rtol=1e-5, atol=1e-5)


def test_the_stochastic_sampler_draws_from_the_gaussian(gaussian):
    process, keys = PROCESSES["vp"], jax.random.split(jax.random.key(1), 8192)
    videos = jax.jit(lambda keys: sample(StochasticDDIM(grid=TimeGrid()), gaussian.denoiser(process), keys,
                                         (8192, *SHAPE), process, 128))(keys).reshape(8192, -1)
    np.testing.assert_allclose(videos.mean(0), gaussian.mean, atol=0.03)
    np.testing.assert_allclose(np.cov(videos.T), gaussian.covariance, atol=0.04)


def test_steps_know_the_one_after_the_next():
    levels = sampling_levels(DDIM(), CosineSchedule(), 4)
    np.testing.assert_array_equal(steps_between(levels).after, [levels[2], levels[3], np.inf, np.inf])
    np.testing.assert_array_equal(steps_between(levels, stop=float(levels[2]) + 0.1).after[-2:],
                                  np.float32([float(levels[2]) + 0.1] * 2))
    assert steps_between(levels[:1]).after.shape == (1,)
    with refused("sampler", "StochasticDDIM", "permitted: another sampler"):
        check_steps(StochasticDDIM(), 0, scheduled=True)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_bounded_estimate_is_the_video_itself_at_the_end(name, videos):
    process, (x, noise) = PROCESSES[name], videos
    estimate = consistent_estimate(lambda z, logsnr: jnp.full_like(z, 7), process.schedule, Boundary())
    end = every(process.schedule.logsnr_range[1])
    z = process.diffuse(x, noise, end)
    alpha, _ = process.schedule.alpha_sigma(end[0])
    np.testing.assert_allclose(estimate(z, end), z / alpha, atol=1e-5)
    np.testing.assert_allclose(estimate(noise, every(process.schedule.logsnr_range[0])), 7, atol=1e-3)  # pure noise


def test_a_bounded_estimate_is_the_published_function_of_the_network():
    """`c_skip(t) x + c_out(t) F` with eps = 0.002 and the network F of EDM."""
    process = PROCESSES["ve"]
    x, noise, raw = np.random.default_rng(1).normal(size=(3, 6, *SHAPE)).astype(np.float32)
    level = jnp.linspace(*process.schedule.logsnr_range, 6)
    t, z = np.exp(-level / 2).reshape(-1, 1, 1, 1, 1), process.diffuse(x, noise, level)
    found = consistent_estimate(process.denoiser(lambda *_: raw), process.schedule, Boundary())(z, level)
    skip, out = 0.25 / ((t - 0.002) ** 2 + 0.25), 0.5 * (t - 0.002) / np.sqrt(0.25 + t**2)
    np.testing.assert_allclose(found, skip * z + out * raw, rtol=1e-4, atol=1e-4)
    assert set(predictions_of(x, noise, level, level)) >= {"edm"}


@pytest.mark.parametrize(("solver", "order"), [(Heun(), 3), (DDIM(), 2)], ids=["Heun", "DDIM"])
def test_the_flow_to_the_end_is_consistent_but_for_the_solvers_error(solver, order, gaussian, videos):
    """The function that maps z to the end of the Gaussian's flow has the same value at both ends of an interval; what
    is left is the local error of the solver, which falls with its order as intervals halve."""
    process, (x, noise) = PROCESSES["flow"], videos
    schedule, teacher = process.schedule, gaussian.denoiser(process)

    def end(z, level):
        alpha, sigma = schedule.alpha_sigma(level[0])
        return gaussian.flow(z, alpha, sigma)

    def error(count):
        noisy, cleaner = (interval_level(schedule, jnp.full(6, count // 2 + more), count) for more in (1, 0))
        z = process.diffuse(x, noise, noisy)
        step = solved(solver, teacher, z, noisy, cleaner, schedule.family)
        return float(jnp.abs(end(z, noisy) - end(step, cleaner)).max())

    coarse, fine = error(8), error(16)
    assert order - 0.7 < np.log2(coarse / fine) < order + 0.7, (coarse, fine)


def test_intervals_of_tables_are_those_of_latent_consistency_models():
    schedule = ScaledLinearBetaSchedule()
    found = schedule.timestep(interval_level(schedule, jnp.array([0, 1, 2, 50]), 50))
    np.testing.assert_allclose(found, [0, 19, 39, 999], atol=1e-2)


def test_intervals_grow_as_published():
    root = [int(growing_intervals(step, 1000, 2, 150, "root")) + 1 for step in (0, 250, 1000)]
    assert root == [2, int(np.ceil(np.sqrt(0.25 * (151**2 - 4) + 4) - 1)) + 1, 151]
    doubling = [int(growing_intervals(step, 800, 10, 1280, "doubling")) for step in (0, 99, 100, 250, 700, 799)]
    assert doubling == [10, 10, 20, 40, 1280, 1280]
    assert float(target_decay(1, 2, 0.9)) == pytest.approx(0.9)  # N = s_0 at the beginning
    assert float(target_decay(150, 2, 0.9)) == pytest.approx(0.9 ** (2 / 151))
    assert float(target_decay(150, 2, 0.0)) == 0


def test_pseudo_huber_distances_are_squared_near_zero_and_absolute_far_away():
    difference = jnp.stack([jnp.full((2, 1, 1, 2), value) for value in (1e-4, 100.0)])
    whole = PseudoHuber()(difference)
    c = 0.00054 * 2
    np.testing.assert_allclose(whole, [np.hypot(2e-4, c) - c, 200 - c], rtol=1e-3)
    np.testing.assert_allclose(PseudoHuber(over="value")(difference), [np.hypot(1e-4, 1e-3) - 1e-3, 100 - 1e-3],
                               rtol=1e-3)
    mask = jnp.array([1.0, 0.0]).reshape(1, 2, 1, 1, 1)
    half = difference.at[:, 1].set(9.0)
    np.testing.assert_allclose(SquaredDistance()(half, mask), [1e-8, 1e4], rtol=1e-5)


# ---------------------------------------------------------------------------------------------- distribution matching


def gaussian_estimate(z, mean, std, alpha, sigma):
    return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (z - alpha * mean)


def test_the_gradient_of_matching_is_the_difference_of_two_scores():
    """Of Gaussian videos whose scores are those of their noisy densities; where the mask is 0 there is none."""
    rng, (alpha, sigma) = np.random.default_rng(0), (0.8, 0.6)
    x, noise = jnp.asarray(rng.normal(size=(2, 3, 2, 2, 2, 1)), jnp.float32)
    z, gaussians = alpha * x + sigma * noise, {"real": (0.5, 0.4), "fake": (-0.2, 0.7)}
    estimates = {name: gaussian_estimate(z, *of, alpha, sigma) for name, of in gaussians.items()}
    scores = {name: jax.grad(lambda z, mean=mean, std=std: -0.5 * jnp.sum(jnp.square(z - alpha * mean)) / (
        alpha**2 * std**2 + sigma**2))(z) for name, (mean, std) in gaussians.items()}
    mask = jnp.zeros((1, 2, 1, 1, 1)).at[:, 0].set(1.0)
    for shown, size in ((None, 8), (mask, 4)):
        counted = jnp.ones_like(x) if shown is None else jnp.broadcast_to(shown, x.shape)
        found = jax.grad(lambda x, shown=shown: matching_error(x, estimates["real"], estimates["fake"], shown).sum())(x)
        distance = (jnp.abs(x - estimates["real"]) * counted).sum((1, 2, 3, 4), keepdims=True) / size
        wanted = sigma**2 / alpha * (scores["fake"] - scores["real"]) / distance / size * counted
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6)


def test_a_student_that_descends_it_comes_to_the_teachers_distribution():
    """Of a student `b + s noise` and the exact critic of its Gaussian."""
    def step(student, key):
        video_key, noise_key, level_key = jax.random.split(key, 3)
        noise, more = (jax.random.normal(k, (64, 1, 4, 4, 1)) for k in (video_key, noise_key))
        angle = jax.random.uniform(level_key, (64, 1, 1, 1, 1), minval=0.1, maxval=1.4)
        alpha, sigma = jnp.cos(angle), jnp.sin(angle)

        def error(student):
            x = student[0] + student[1] * noise
            z = jax.lax.stop_gradient(alpha * x + sigma * more)
            fake = gaussian_estimate(z, *jax.lax.stop_gradient(student), alpha, sigma)
            return matching_error(x, gaussian_estimate(z, 0.5, 0.3, alpha, sigma), fake).mean()

        return student - 0.1 * jax.grad(error)(student), None

    student, _ = jax.jit(lambda: jax.lax.scan(step, jnp.array([-0.4, 1.0]), jax.random.split(jax.random.key(0), 600)))()
    np.testing.assert_allclose(student, [0.5, 0.3], atol=0.03)
