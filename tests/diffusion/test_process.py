import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.diffusion.arrays import expand
from vdm_jax.diffusion.levels import LogNormalSigma
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.schedules import (
    CosineSchedule,
    EDMSchedule,
    FlowSchedule,
    ScaledLinearBetaSchedule,
)
from vdm_jax.diffusion.weightings import MinSNRWeighting, SpaceWeighting

PROCESSES = [
    Process(),
    Process(prediction="x"),
    Process(prediction="eps"),
    Process(schedule=FlowSchedule(), prediction="flow"),
    Process(schedule=EDMSchedule(), prediction="edm", level_sampling=LogNormalSigma()),
]
LOGSNR = jnp.array([-4.0, -1.0, 0.0, 0.5, 2.0, 4.0])


def half(z, logsnr):
    """A network that is wrong in a way that depends on both of its inputs."""
    return 0.5 * z + expand(0.01 * logsnr, z)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.prediction)
def test_perfect_network_has_no_loss_and_returns_x(process, videos):
    x, noise = videos
    alpha, sigma = process.schedule.alpha_sigma(LOGSNR)
    z = process.diffuse(x, noise, LOGSNR)
    np.testing.assert_allclose(z, expand(alpha, x) * x + expand(sigma, x) * noise, rtol=1e-6)
    answer = process.predictions(jnp.zeros_like(x), z, LOGSNR) | {"x": x, "eps": noise, "flow": noise - x}
    answer["v"] = expand(alpha, x) * noise - expand(sigma, x) * x
    if process.prediction == "edm":
        c_skip, c_out = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / jnp.sqrt(sigma**2 + 0.25)
        answer["edm"] = (x - expand(c_skip, x) * z) / expand(c_out, x)

    def network(z_in, logsnr):
        scale = 1 / jnp.sqrt(sigma**2 + 0.25) if process.prediction == "edm" else jnp.ones_like(sigma)
        np.testing.assert_allclose(z_in, expand(scale, z) * z, rtol=1e-5)
        return answer[process.prediction]

    np.testing.assert_allclose(process.denoiser(network)(z, LOGSNR), x, rtol=1e-3, atol=1e-4)
    loss, _ = process.loss(network, x, jax.random.key(0), logsnr=LOGSNR, noise=noise)
    np.testing.assert_allclose(loss, 0, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.prediction)
@pytest.mark.parametrize("space", ["x", "eps", "v"])
def test_weighted_loss_is_the_weighted_error_of_x_hat(process, space, videos):
    x, noise = videos
    process = dataclasses.replace(process, weighting=SpaceWeighting(space=space))
    loss, aux = process.loss(half, x, jax.random.key(0), logsnr=LOGSNR, noise=noise)
    x_hat = process.denoiser(half)(process.diffuse(x, noise, LOGSNR), LOGSNR)
    x_mse = jnp.square(x_hat - x).mean((1, 2, 3, 4))
    weight = {"x": 1.0, "eps": jnp.exp(LOGSNR), "v": jnp.exp(LOGSNR) + 1}[space]
    np.testing.assert_allclose(aux["x_mse"], x_mse, rtol=1e-3)
    np.testing.assert_allclose(loss, weight * x_mse, rtol=1e-3)
    np.testing.assert_allclose(loss, aux["weight"] * aux["x_mse"], rtol=1e-4)
    np.testing.assert_array_equal(aux["logsnr"], LOGSNR)


def test_default_loss_is_the_plain_error_in_v(videos):
    x, noise = videos
    alpha, sigma = (expand(a, x) for a in Process().schedule.alpha_sigma(LOGSNR))
    v = alpha * noise - sigma * x
    expected = jnp.square(half(alpha * x + sigma * noise, LOGSNR) - v).mean((1, 2, 3, 4))
    loss, aux = Process().loss(half, x, jax.random.key(0), logsnr=LOGSNR, noise=noise)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(aux["prediction_mse"], expected, rtol=1e-5)


def test_mask_restricts_the_mean(videos):
    x, noise = videos
    mask = jnp.ones((6, 2, 1, 1, 1)).at[:, 0].set(0).at[5].set(0)
    arguments = {"logsnr": LOGSNR, "noise": noise}
    loss, _ = Process().loss(half, x, jax.random.key(0), mask=mask, **arguments)
    second_frame, _ = Process().loss(half, x[:, 1:], jax.random.key(0), logsnr=LOGSNR, noise=noise[:, 1:])
    np.testing.assert_allclose(loss[:5], second_frame[:5], rtol=1e-5)
    assert loss[5] == 0
    gradient = jax.grad(lambda m: Process().loss(half, x, jax.random.key(0), mask=m, **arguments)[0].sum())(
        mask
    )
    assert np.all(np.isfinite(gradient))


def test_drawn_noise_is_standard_and_levels_follow_the_config():
    x = jnp.zeros((64, 4, 8, 8, 1))
    seen = {}

    def network(z, logsnr):
        seen["eps"] = z / expand(Process().schedule.alpha_sigma(logsnr)[1], z)
        return z

    _, aux = Process().loss(network, x, jax.random.key(1))
    times = np.sort(CosineSchedule().time(aux["logsnr"]))
    np.testing.assert_allclose(np.diff(times), 1 / 64, atol=1e-5)
    # Levels near time 0 lose nothing here because x is zero.
    assert float(seen["eps"].std()) == pytest.approx(1, abs=0.02)
    assert float(seen["eps"].mean()) == pytest.approx(0, abs=0.02)
    again = Process().loss(network, x, jax.random.key(2))[1]["logsnr"]
    assert not np.allclose(again, aux["logsnr"])


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.prediction)
def test_loss_and_gradient_are_finite_at_both_ends(process, videos):
    process = dataclasses.replace(process, weighting=MinSNRWeighting())
    x, noise = videos
    logsnr = jnp.array(process.schedule.logsnr_range * 3)

    def total(scale):
        return process.loss(lambda z, level: scale * half(z, level), x, jax.random.key(0), logsnr=logsnr)[
            0
        ].sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(0.9)
    assert np.isfinite(value) and np.isfinite(gradient)


def test_network_output_may_be_half_precision(videos):
    x, noise = videos
    network = lambda z, logsnr: half(z, logsnr).astype(jnp.bfloat16)  # noqa: E731
    loss, _ = Process().loss(network, x, jax.random.key(0))
    assert loss.dtype == jnp.float32
    assert Process().denoiser(network)(noise, LOGSNR).dtype == jnp.float32


def test_processes_are_static_arguments_of_jit(videos):
    x, noise = videos
    run = jax.jit(lambda process, z: process.denoiser(half)(z, LOGSNR), static_argnums=0)
    for process in PROCESSES:
        np.testing.assert_allclose(
            run(process, noise), process.denoiser(half)(noise, LOGSNR), rtol=1e-4, atol=1e-4
        )


def test_type_hints_resolve():
    assert typing.get_type_hints(Process)["sigma_data"] is float


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"prediction": "noise"}, ("Process.prediction", "='noise'", "'x'", "'eps'", "'v'", "'flow'", "'edm'")),
        ({"schedule": EDMSchedule(), "prediction": "v"}, ("Process.prediction", "'v'")),
        ({"schedule": FlowSchedule(), "prediction": "v"}, ("Process.prediction", "'v'", "FlowSchedule")),
        ({"prediction": "edm"}, ("Process.prediction", "'edm'", "CosineSchedule")),
        (
            {"schedule": ScaledLinearBetaSchedule(zero_terminal_snr=True), "prediction": "eps"},
            ("Process.prediction", "'eps'", "zero_terminal_snr=True"),
        ),
        ({"sigma_data": 0.0}, ("Process.sigma_data", "=0.0", "> 0")),
    ],
)
def test_errors(fields, message):
    with refused(*message) as error:
        Process(**fields)
    assert "\n" not in str(error.value)


def test_the_absolute_error_counts_where_that_is_asked_for():
    x, noise = jnp.zeros((2, 1, 2, 2, 1)), jnp.arange(8.0).reshape(2, 1, 2, 2, 1)
    mask, arguments = jnp.ones((2, 1, 2, 2, 1)).at[0, 0, 0].set(0), {"logsnr": jnp.zeros(2), "noise": noise}
    process = Process(prediction="eps", error="absolute")
    loss, aux = process.loss(lambda z, level: 0 * z, x, jax.random.key(0), mask=mask, **arguments)
    np.testing.assert_allclose(loss, [2.5, 5.5], rtol=1e-6)
    np.testing.assert_allclose(aux["prediction_mse"], [6.5, 31.5], rtol=1e-6)
    with refused("Process.error", "='absolute'", "multiscale=4", "'squared'"):
        Process(error="absolute", multiscale=4)


def test_multiscale_loss_adds_errors_of_block_means():
    """1/s of the mean squared error pooled to s pixels of the shorter side; a padded frame does not count."""
    rng = np.random.default_rng(0)
    x, noise = (jnp.asarray(rng.normal(size=(2, 3, 8, 16, 3)), jnp.float32) for _ in range(2))
    logsnr, mask = jnp.array([-1.0, 2.0]), jnp.array([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])[:, :, None, None, None]
    process = Process(prediction="eps", multiscale=4)
    loss, aux = process.loss(lambda z, _: 0.5 * z, x, jax.random.key(0), logsnr=logsnr, noise=noise, mask=mask)
    plain, _ = Process(prediction="eps").loss(
        lambda z, _: 0.5 * z, x, jax.random.key(0), logsnr=logsnr, noise=noise, mask=mask)
    error = np.asarray(0.5 * process.diffuse(x, noise, logsnr) - noise, float)
    expected = np.zeros(2)
    for side in (8, 4):
        k = 8 // side
        pooled = error.reshape(2, 3, 8 // k, k, 16 // k, k, 3).mean((3, 5))
        expected += [np.square(pooled[0]).mean() / side, np.square(pooled[1, :1]).mean() / side]
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(aux["prediction_mse"], plain, rtol=1e-5)


@pytest.mark.parametrize(("height", "mask", "message"), [
    (2, None, "Process.multiscale=3 for frames of 2x8; permitted: up to 2"),
    (7, None, "Process.multiscale=3: frames of 7x8 cannot be halved; permitted: even sizes down to it"),
    (8, (1, 1, 8, 1, 1), "Process.multiscale=3 with a mask of shape (1, 1, 8, 1, 1); permitted: the same within a "
                         "frame"),
])
def test_multiscale_loss_refuses_what_it_cannot_pool(height, mask, message):
    x = jnp.zeros((1, 1, height, 8, 3))
    with refused("Process.multiscale") as error:
        Process(multiscale=3).loss(half, x, jax.random.key(0), mask=None if mask is None else jnp.ones(mask))
    assert str(error.value) == message
    with refused("Process.multiscale", "=-1", ">= 0"):
        Process(multiscale=-1)


def test_levels_of_another_shape_are_refused():
    x = jnp.zeros((2, 3, 4, 4, 3))
    with refused("process.Process.loss", "[2, 4]", "[2]", "[2, 3]"):
        Process().loss(half, x, jax.random.key(0), logsnr=jnp.zeros((2, 4)))
    with refused("process.Process.loss", "[2, 1, 4, 4, 3]"):
        Process().loss(half, x, jax.random.key(0), noise=jnp.zeros((2, 1, 4, 4, 3)))


def test_the_loss_is_that_of_its_draws():
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 3, 4, 4, 3)), jnp.float32)
    logsnr, noise = Process().draw(jax.random.key(5), x.shape)
    drawn, given = Process().loss(half, x, jax.random.key(5)), Process().loss(half, x, None, logsnr=logsnr, noise=noise)
    jax.tree.map(np.testing.assert_array_equal, drawn, given)
