"""Sampler steps and whole runs against closed forms for Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.diffusion.arrays import noise_from_keys
from vdm_jax.diffusion.families import FLOW, VE, VP
from vdm_jax.diffusion.grids import KarrasGrid, LogSNRGrid, TimeGrid
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM, DDPM, DDPMLangevin, DPMSolver, Euler, Heun, Step
from vdm_jax.diffusion.sampling import sample, sampling_levels
from vdm_jax.diffusion.schedules import CosineSchedule, EDMSchedule, FlowSchedule, LinearBetaSchedule
from vdm_jax.diffusion.steps import OnGrid

SHAPE = (2, 1, 1, 2)
VARIANCE_PRESERVING = Process()
EXPLODING = Process(schedule=EDMSchedule(), prediction="edm")
STRAIGHT = Process(schedule=FlowSchedule(), prediction="flow")
TABLE = Process(schedule=LinearBetaSchedule(steps=100, beta_end=0.2))
FAMILIES = pytest.mark.parametrize("family", [VP, VE, FLOW], ids=lambda family: family.name)


def split(seed, batch):
    return jax.random.split(jax.random.key(seed), batch)


def amplitudes(process, logsnr=None):
    """(alpha, sigma) at a log-SNR, or at time 1."""
    return process.schedule.alpha_sigma(
        process.schedule.logsnr(1.0) if logsnr is None else jnp.asarray(logsnr)
    )


def starts(process, logsnr=None, batch=16):
    """Pure noise at the scale of a log-SNR, or of time 1."""
    return amplitudes(process, logsnr)[1] * jax.random.normal(jax.random.key(3), (batch, *SHAPE))


def run(sampler, gaussian, process, steps, keys, **options):
    """Samples of the Gaussian by its own denoiser, compiled."""
    shape = (keys.shape[0], *SHAPE)
    denoise = gaussian.denoiser(process)
    return jax.jit(lambda keys: sample(sampler, denoise, keys, shape, process, steps, **options))(keys)


def one_step(sampler, family, z, x_hat, noise, level, following):
    step = Step(jnp.array(0), level - 1, jnp.asarray(level), jnp.asarray(following), jnp.array(False), 10)
    return sampler.step(lambda *_: x_hat, z, sampler.memory(z), step, family, noise)[0]


@FAMILIES
def test_ancestral_step_is_the_product_of_two_gaussians(family, videos):
    x, z = videos
    level, following = -1.0, 0.7
    (a_t, s_t), (a_s, s_s) = (map(float, family.alpha_sigma(jnp.array(at))) for at in (level, following))
    # z_t | z_s has mean ratio * z_s; its variance is what is missing to make z_t | x come out right.
    ratio = a_t / a_s
    transition = s_t**2 - (ratio * s_s) ** 2
    precision = 1 / s_s**2 + ratio**2 / transition
    mean = (a_s * x / s_s**2 + ratio * z / transition) / precision
    for gamma, std in (
        (0.0, precision**-0.5),
        (1.0, transition**0.5),
        (0.3, precision**-0.35 * transition**0.15),
    ):
        still, moved = (
            one_step(DDPM(gamma=gamma), family, z, x, noise, level, following)
            for noise in (jnp.zeros_like(z), jnp.ones_like(z))
        )
        np.testing.assert_allclose(still, mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(moved - still, std, rtol=1e-4, atol=1e-5)


@FAMILIES
def test_ddim_step(family, videos):
    x, z = videos
    level, following = -1.0, 0.7
    (a_t, s_t), (a_s, s_s) = (map(float, family.alpha_sigma(jnp.array(at))) for at in (level, following))
    noise = jnp.ones_like(z)
    deterministic = a_s * x + s_s * (z - a_t * x) / s_t
    np.testing.assert_allclose(
        one_step(DDIM(), family, z, x, noise, level, following), deterministic, atol=1e-5
    )
    np.testing.assert_allclose(
        one_step(DDIM(eta=1.0), family, z, x, noise, level, following),
        one_step(DDPM(), family, z, x, noise, level, following),
        atol=1e-5,
    )


@FAMILIES
def test_langevin_step_follows_the_ancestral_one(family, videos):
    """At the level reached, with the estimate made there; the estimate here is the same for all z."""
    x, z = videos
    noise, correction, delta, following = 0.3 * jnp.ones_like(z), jnp.ones_like(z), 0.2, 0.7
    reached = one_step(DDPM(gamma=0.3), family, z, x, noise, -1.0, following)
    sampler = DDPMLangevin(gamma=0.3, delta=delta)
    step = Step(jnp.array(0), jnp.array(-2.0), jnp.array(-1.0), jnp.array(following), jnp.array(False), 10)
    got = sampler.step(lambda *_: x, z, None, step, family, noise, correction)[0]
    alpha, sigma = family.alpha_sigma(jnp.array(following))
    score = (alpha * x - reached) / sigma**2
    np.testing.assert_allclose(got, reached + delta / 2 * sigma**2 * score + delta**0.5 * sigma, rtol=1e-4, atol=1e-5)
    assert sampler.evaluations(10) == 19 and sampler.noises == 2


@FAMILIES
def test_churn_keeps_the_marginal_and_stays_in_its_interval(family):
    step = Step(jnp.array(0), jnp.array(-2.0), jnp.array(-1.0), jnp.array(0.0), jnp.array(False), 10)
    z, noise = jnp.ones((1, *SHAPE)), jnp.ones((1, *SHAPE))
    alpha, sigma = family.alpha_sigma(step.level)
    raised, level = Heun(churn=2.0)._add_noise(alpha * z, step, family, 0 * noise)
    alpha_up, sigma_up = family.alpha_sigma(level)
    assert float(sigma_up / alpha_up) == pytest.approx(1.2 * float(sigma / alpha), rel=1e-5)
    np.testing.assert_allclose(raised, alpha_up * z, rtol=1e-5)
    added = Heun(churn=2.0)._add_noise(0 * z, step, family, noise)[0]
    np.testing.assert_allclose(added**2 + (sigma * alpha_up / alpha) ** 2, sigma_up**2, rtol=1e-5)
    louder = Heun(churn=2.0, churn_noise=1.003)._add_noise(0 * z, step, family, noise)[0]
    np.testing.assert_allclose(louder, 1.003 * added, rtol=1e-6)
    for outside in ({"churn_min": 2.0}, {"churn_max": 1.0}):
        np.testing.assert_allclose(
            Heun(churn=2.0, **outside)._add_noise(z, step, family, noise)[0], z, rtol=1e-6
        )
    assert float(Heun(churn=1e3)._add_noise(z, step, family, noise)[1]) == pytest.approx(
        -1 - np.log(2), rel=1e-5
    )


@pytest.mark.parametrize(
    "sampler, process, order, error",
    [
        (DDIM(), VARIANCE_PRESERVING, 1, 0.03),
        (DPMSolver(grid=LogSNRGrid()), VARIANCE_PRESERVING, 2, 0.006),
        (DPMSolver(), EXPLODING, 2, 0.004),
        (Heun(), VARIANCE_PRESERVING, 2, 0.001),
        (Heun(), EXPLODING, 2, 0.004),
        (Heun(), STRAIGHT, 2, 0.001),
    ],
)
def test_order_of_convergence_to_the_exact_flow(sampler, process, order, error, gaussian):
    z = starts(process)
    exact = gaussian.flow(z, *amplitudes(process))
    coarse, fine = (
        float(jnp.abs(run(sampler, gaussian, process, steps, split(0, 16), initial=z) - exact).max())
        for steps in (48, 96)
    )
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.15)
    assert fine < error


@pytest.mark.parametrize("stop", [-3.0, 0.7])
def test_stopping_early_leaves_the_z_of_that_level(stop, gaussian):
    """What the flow makes of it is what it makes of the beginning."""
    z, exact = starts(VARIANCE_PRESERVING), gaussian.flow(starts(VARIANCE_PRESERVING), *amplitudes(VARIANCE_PRESERVING))
    reached = run(Heun(), gaussian, VARIANCE_PRESERVING, 96, split(0, 16), initial=z, stop=stop)
    np.testing.assert_allclose(gaussian.flow(reached, *amplitudes(VARIANCE_PRESERVING, stop)), exact, atol=0.002)
    with refused("stop", "=-30"):
        run(Heun(), gaussian, VARIANCE_PRESERVING, 96, split(0, 16), stop=-30.0)


@pytest.mark.parametrize("process", [VARIANCE_PRESERVING, EXPLODING, STRAIGHT], ids=lambda p: p.prediction)
@pytest.mark.parametrize(
    "grid", [LogSNRGrid(), KarrasGrid(), KarrasGrid(rho=5.0, sigma_min=0.01, sigma_max=40.0)]
)
def test_every_grid_leads_to_the_data(grid, process, gaussian):
    first = sampling_levels(Heun(grid=grid), process.schedule, 60)[0]
    z = starts(process, first)
    exact = gaussian.flow(z, *amplitudes(process, first))
    x = run(Heun(grid=grid), gaussian, process, 60, split(0, 16), initial=z)
    np.testing.assert_allclose(x, exact, atol=0.02)


@pytest.mark.parametrize(
    "sampler, process",
    [
        (DDPM(), VARIANCE_PRESERVING),
        (DDPMLangevin(delta=0.02), VARIANCE_PRESERVING),  # larger steps leave a larger variance
        (DDIM(eta=0.5), VARIANCE_PRESERVING),
        (DPMSolver(), TABLE),
        (Heun(churn=20.0, churn_max=50.0), EXPLODING),
        (Heun(churn=20.0, churn_max=50.0), VARIANCE_PRESERVING),
    ],
)
def test_samples_have_the_mean_and_covariance_of_the_data(sampler, process, gaussian):
    # 8000 samples leave an error of 0.01, and the discretisation another.
    x = np.asarray(run(sampler, gaussian, process, 400, split(5, 8_000))).reshape(8_000, -1)
    np.testing.assert_allclose(x.mean(0), gaussian.mean, atol=0.03)
    np.testing.assert_allclose(np.cov(x.T), gaussian.covariance, atol=0.03)


@pytest.mark.parametrize("gamma", [0.0, 0.3])
@pytest.mark.parametrize("process", [VARIANCE_PRESERVING, EXPLODING, STRAIGHT], ids=lambda p: p.prediction)
def test_ancestral_covariance_is_that_of_its_finite_chain(process, gamma, gaussian):
    # With few steps the chain's covariance is not that of the data, but Gaussian products give it exactly.
    variances, vectors = np.linalg.eigh(gaussian.covariance)
    levels = np.asarray(sampling_levels(DDPM(), process.schedule, 24))
    pairs = [tuple(map(float, amplitudes(process, level))) for level in levels]
    variance = np.full(4, 1.0 if process is VARIANCE_PRESERVING else pairs[0][1] ** 2)
    for (a_t, s_t), (a_s, s_s) in zip(pairs[:-1], pairs[1:], strict=True):
        ratio = a_t / a_s
        transition = s_t**2 - (ratio * s_s) ** 2
        posterior = 1 / (1 / s_s**2 + ratio**2 / transition)
        gain = a_t * variances / (a_t**2 * variances + s_t**2)
        slope = posterior * (a_s * gain / s_s**2 + ratio / transition)
        variance = slope**2 * variance + posterior ** (1 - gamma) * transition**gamma
    alpha, sigma = pairs[-1]
    variance *= (alpha * variances / (alpha**2 * variances + sigma**2)) ** 2
    x = np.asarray(run(DDPM(gamma=gamma), gaussian, process, 24, split(5, 20_000))).reshape(20_000, -1)
    np.testing.assert_allclose(np.cov((x @ vectors).T), np.diag(variance), atol=0.03 * variance.max())
    np.testing.assert_allclose(x.mean(0), gaussian.mean, atol=0.03)


def test_families_agree_where_a_sampler_is_invariant_to_scaling(gaussian):
    grid, logsnr = KarrasGrid(sigma_min=0.002, sigma_max=80.0), -2 * np.log(80.0)
    y = 80 * jax.random.normal(jax.random.key(0), (4, *SHAPE))
    for sampler in (DPMSolver(grid=grid), DDPM(grid=grid)):
        preserving, exploding, straight = (
            run(sampler, gaussian, process, 12, split(1, 4), initial=amplitudes(process, logsnr)[0] * y)
            for process in (VARIANCE_PRESERVING, EXPLODING, STRAIGHT)
        )
        np.testing.assert_allclose(exploding, preserving, atol=2e-4)
        np.testing.assert_allclose(straight, preserving, atol=2e-4)


@pytest.mark.parametrize(
    "sampler, process",
    [
        (DDPM(gamma=0.3), VARIANCE_PRESERVING),
        (DDIM(), VARIANCE_PRESERVING),
        (DDIM(eta=0.7), STRAIGHT),
        (DPMSolver(), EXPLODING),
        (DDPMLangevin(), VARIANCE_PRESERVING),
        (Heun(churn=5.0), VARIANCE_PRESERVING),
        (Heun(churn=5.0), EXPLODING),
    ],
)
def test_a_sample_is_its_last_estimate_and_depends_on_its_own_key_only(sampler, process, gaussian):
    keys = split(7, 5)
    together, trajectory = run(sampler, gaussian, process, 5, keys, trajectory=True)
    alone = run(sampler, gaussian, process, 5, keys[3:4])
    assert trajectory.shape == (5, 5, *SHAPE) and np.all(np.isfinite(trajectory))
    np.testing.assert_array_equal(trajectory[-1], together)
    np.testing.assert_allclose(together[3:4], alone, rtol=1e-4, atol=2e-5)
    assert np.abs(np.asarray(together[0] - together[3])).max() > 1e-2


@pytest.mark.parametrize("sampler", [DDPM(gamma=0.3), DPMSolver(), Heun(churn=5.0)], ids=repr)
def test_fewest_steps(sampler, gaussian):
    one, two = (run(sampler, gaussian, VARIANCE_PRESERVING, steps, split(0, 2)) for steps in (1, 2))
    z = noise_from_keys(split(0, 2), 0, (2, *SHAPE))
    level = jnp.full(2, -20.0 - 2 * np.log(np.sqrt(2)) * isinstance(sampler, Heun))
    np.testing.assert_allclose(one, gaussian.denoiser(VARIANCE_PRESERVING)(z, level), atol=1e-4)
    assert np.all(np.isfinite(two))


@pytest.mark.parametrize(
    "sampler, evaluations", [(DDIM(), 4), (DPMSolver(), 4), (DDPM(), 4), (Heun(), 7), (DDPMLangevin(), 7)]
)
def test_hook_sees_and_replaces_every_estimate(sampler, evaluations, gaussian):
    seen = []

    def hook(x_hat, z, logsnr, index):
        jax.debug.callback(
            lambda level, i: seen.append((float(level), int(i))), logsnr[0], index, ordered=True
        )
        return jnp.full_like(x_hat, 0.25)

    x = sample(sampler, gaussian.denoiser(Process()), split(0, 2), (2, *SHAPE), Process(), 4, hook=hook)
    np.testing.assert_array_equal(x, 0.25)
    jax.effects_barrier()
    assert len(seen) == evaluations
    levels = np.asarray(sampling_levels(sampler, CosineSchedule(), 4))
    np.testing.assert_allclose(sorted({level for level, _ in seen}), levels, rtol=1e-5)
    assert sorted({index for _, index in seen}) == [0, 1, 2, 3]


def test_initial_noise_comes_from_stream_zero_at_the_scale_of_the_family():
    keys = split(0, 3)
    noise = noise_from_keys(keys, 0, (3, *SHAPE))
    for process, scale in ((Process(), 1.0), (EXPLODING, 80.0), (STRAIGHT, 1.0)):
        x = sample(DDIM(), lambda z, _: z, keys, (3, *SHAPE), process, 1)  # one step returns the estimate
        np.testing.assert_allclose(x, scale * noise, rtol=1e-4)


@pytest.mark.parametrize("shared", [False, True])
def test_all_noises_of_a_sample_are_drawn_independently(shared):
    """A sampler whose z is the noise it was given: the initial one, and both of every step."""
    class Given(OnGrid):
        noises = 2

        def __init__(self, which):
            object.__setattr__(self, "grid", None)
            object.__setattr__(self, "which", which)

        def step(self, estimate, z, memory, step, family, *noises):
            return noises[self.which], estimate(z, step.level), None

    shape, keys = (2, 3, 16, 16, 4), split(11, 2)
    seen = [sample(Given(which), lambda z, _: z, keys, shape, Process(), 4, trajectory=True, shared_noise=shared)[1]
            for which in range(2)]
    noises = np.concatenate([seen[0], seen[1][1:]])  # the initial noise is in both
    if shared:
        np.testing.assert_array_equal(noises, np.broadcast_to(noises[:, :, :1], noises.shape))
        noises = noises[:, :, :1]
    rows = noises.reshape(-1, 16 * 16 * 4)  # of each draw, video and frame
    correlations = np.corrcoef(rows) - np.eye(len(rows))
    assert np.abs(correlations).max() < 5.5 / np.sqrt(rows.shape[1])
    np.testing.assert_allclose(rows.std(1), 1, atol=5 / np.sqrt(2 * rows.shape[1]))


def test_start_from_a_diffused_video(gaussian):
    x = gaussian.mean.reshape(1, *SHAPE) + jax.random.normal(jax.random.key(1), (8, *SHAPE)) * 0.5
    logsnr = jnp.full(8, CosineSchedule().logsnr(0.4))
    z = Process().diffuse(x, jax.random.normal(jax.random.key(2), x.shape), logsnr)
    result = run(Heun(), gaussian, Process(), 32, split(0, 8), initial=z, start=0.4)
    exact = gaussian.flow(z, *CosineSchedule().alpha_sigma(logsnr[0]))
    np.testing.assert_allclose(result, exact, atol=5e-3)


def test_grids():
    cosine, edm = CosineSchedule(), EDMSchedule()
    np.testing.assert_allclose(
        cosine.time(sampling_levels(DDIM(), cosine, 4)), [1, 0.75, 0.5, 0.25], atol=1e-6
    )
    np.testing.assert_allclose(
        cosine.time(sampling_levels(DDIM(grid=TimeGrid()), cosine, 4, start=0.5)),
        [0.5, 0.375, 0.25, 0.125],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        sampling_levels(DDIM(grid=LogSNRGrid()), cosine, 4), [-20, -10, 0, 10], atol=1e-4
    )
    ramp = (80 ** (1 / 7) + np.arange(5) / 4 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(np.exp(-sampling_levels(Heun(), edm, 5) / 2), ramp, rtol=1e-4)
    limited = sampling_levels(Heun(grid=KarrasGrid(sigma_min=0.002, sigma_max=80.0)), cosine, 5)
    np.testing.assert_allclose(np.exp(-limited / 2), ramp, rtol=1e-4)


def test_euler_goes_straight_in_sigma_over_alpha_on_the_karras_grid():
    """`z / alpha` moves by d = (z - alpha x_hat) / sigma times the change of `sigma / alpha` (Karras et al. 2022,
    algorithm 1 without its correction), on the ramp of equation 5."""
    schedule = CosineSchedule()
    levels = np.asarray(sampling_levels(Euler(), schedule, 5))
    ramp = np.exp(-levels / 2) ** (1 / 7)
    np.testing.assert_allclose(np.diff(ramp), np.diff(ramp)[0], rtol=1e-3)
    z, x_hat = (np.random.default_rng(i).normal(size=(2, *SHAPE)).astype(np.float32) for i in range(2))
    (alpha, sigma), (alpha_s, sigma_s) = (VP.alpha_sigma(jnp.asarray(v)) for v in levels[1:3])
    moved = alpha_s * (z / alpha + (z - alpha * x_hat) / sigma * (sigma_s / alpha_s - sigma / alpha))
    found = one_step(Euler(), VP, z, x_hat, jnp.zeros_like(z), levels[1], levels[2])
    np.testing.assert_allclose(found, moved, rtol=1e-3, atol=1e-3)


def test_levels_are_constants_under_jit():
    seen = []
    jax.jit(lambda z: seen.append(np.asarray(sampling_levels(DDIM(), LinearBetaSchedule(), 3))) or z)(1.0)
    np.testing.assert_allclose(seen[0], sampling_levels(DDIM(), LinearBetaSchedule(), 3))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: DDPM(gamma=1.5), ("DDPM.gamma", "=1.5", ">= 0", "<= 1")),
        (lambda: DDIM(eta=-1.0), ("DDIM.eta", "=-1.0", ">= 0", "<= 1")),
        (lambda: Heun(churn=-1.0), ("Heun.churn", "=-1")),
        (lambda: Heun(churn_min=2.0, churn_max=1.0), ("Heun.churn_min", "=2.0", "churn_max=1.0")),
        (lambda: KarrasGrid(rho=0.0), ("KarrasGrid.rho", "=0")),
        (lambda: sampling_levels(DDIM(), CosineSchedule(), 0), ("steps", "=0")),
        (lambda: sampling_levels(DDIM(), CosineSchedule(), 2, start=0.0), ("start", "=0.0")),
        (
            lambda: sampling_levels(Heun(grid=KarrasGrid(sigma_max=90.0)), EDMSchedule(), 5),
            ("KarrasGrid", "sigma_max=90.0", "0.002", "sigma_min", "<= 80"),
        ),
        (
            lambda: sampling_levels(Heun(grid=KarrasGrid(sigma_min=1.0)), EDMSchedule(), 5, start=0.1),
            ("sampling.sampling_levels",),
        ),
    ],
)
def test_config_errors(make, message):
    with refused(*message):
        make()


@pytest.mark.parametrize(
    "keys, options, message",
    [
        (lambda: split(0, 3), {}, ("sampling._check", "jax.random.key")),
        (lambda: jax.random.split(jax.random.PRNGKey(0), 2), {}, ("sampling._check", "2")),
        (lambda: jax.random.split(jax.random.key(0, impl="rbg"), 2), {}, ("sampling._check",)),
        (lambda: split(0, 2), {"start": 0.5}, ("start", "=0.5")),
        (lambda: split(0, 2), {"initial": jnp.zeros((2, 1))}, ("sampling._check", "1")),
    ],
)
def test_sample_errors(keys, options, message):
    with refused(*message):
        sample(DDIM(), lambda z, _: z, keys(), (2, *SHAPE), Process(), 2, **options)
