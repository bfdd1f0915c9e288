import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.diffusion.schedules import (
    CosineSchedule,
    EDMSchedule,
    FlowSchedule,
    InterpolatedCosineSchedule,
    LinearBetaSchedule,
    ScaledLinearBetaSchedule,
    Schedule,
    resolution_shift,
)

SCHEDULES = [
    CosineSchedule(),
    CosineSchedule(shift=resolution_shift(256)),
    CosineSchedule(logsnr_min=-15.0, logsnr_max=12.0, shift=3.0),
    InterpolatedCosineSchedule(low_shift=resolution_shift(128, 32), high_shift=resolution_shift(128, 256)),
    LinearBetaSchedule(),
    ScaledLinearBetaSchedule(zero_terminal_snr=True),
    EDMSchedule(),
    FlowSchedule(),
    FlowSchedule(shift=3.0),
]
T = np.linspace(0, 1, 401, dtype=np.float32)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
class TestEverySchedule:
    def test_logsnr_decreases_over_its_stated_range(self, schedule):
        logsnr = schedule.logsnr(T)
        assert np.all(np.diff(logsnr) < 0)
        np.testing.assert_allclose([logsnr[-1], logsnr[0]], schedule.logsnr_range, rtol=1e-5, atol=1e-5)

    def test_time_is_the_inverse(self, schedule):
        np.testing.assert_allclose(schedule.time(schedule.logsnr(T)), T, atol=2e-6)

    def test_time_is_limited_to_the_unit_interval(self, schedule):
        np.testing.assert_allclose(schedule.time(jnp.array([60.0, -60.0])), [0, 1], atol=1e-6)

    def test_alpha_and_sigma_have_the_logsnr(self, schedule):
        logsnr = schedule.logsnr(T)
        alpha, sigma = schedule.alpha_sigma(logsnr)
        np.testing.assert_allclose(2 * (np.log(alpha) - np.log(sigma)), logsnr, rtol=1e-5, atol=1e-5)

    def test_family(self, schedule):
        alpha, sigma = schedule.alpha_sigma(schedule.logsnr(T))
        invariant = {"vp": alpha**2 + sigma**2, "ve": alpha, "flow": alpha + sigma}[schedule.family.name]
        np.testing.assert_allclose(invariant, 1, atol=1e-6)

    def test_velocity_is_the_derivative_along_the_coordinate(self, schedule):
        family, logsnr = schedule.family, jnp.linspace(-6.0, 6.0, 13)
        alpha, sigma = schedule.alpha_sigma(logsnr)
        slope = jax.vmap(jax.grad(family.coordinate))(logsnr)
        d_alpha, d_sigma = (
            jax.vmap(jax.grad(lambda level, i=i: family.alpha_sigma(level)[i]))(logsnr) / slope
            for i in (0, 1)
        )
        expected = {
            "v": (-sigma, alpha),
            "eps": (0 * alpha, 1 + 0 * alpha),
            "flow": (-1 + 0 * alpha, 1 + 0 * alpha),
        }
        np.testing.assert_allclose((d_alpha, d_sigma), expected[family.velocity], atol=1e-4)

    def test_is_a_static_argument_of_jit(self, schedule):
        logsnr = jax.jit(lambda s, t: s.logsnr(t), static_argnums=0)(schedule, T)
        np.testing.assert_allclose(logsnr, schedule.logsnr(T), rtol=1e-4, atol=1e-4)

    def test_any_shape(self, schedule):
        assert schedule.logsnr(T[:6].reshape(2, 3)).shape == (2, 3)
        assert schedule.time(jnp.zeros((2, 3))).shape == (2, 3)


def test_cosine_ends_and_middle():
    np.testing.assert_allclose(CosineSchedule().logsnr(jnp.array([0.0, 0.5, 1.0])), [20, 0, -20], atol=2e-5)


def test_cosine_is_close_to_the_plain_cosine_inside():
    t = np.linspace(0.05, 0.95, 19)
    np.testing.assert_allclose(CosineSchedule().logsnr(t), -2 * np.log(np.tan(np.pi * t / 2)), atol=2e-3)


def test_inverse_cosine_embedding_recovers_time():
    # (2 / pi) arctan(exp(-logsnr / 2)) differs from t only by the offset at the ends, exp(-10) * 2 / pi.
    embedding = 2 / np.pi * np.arctan(np.exp(-np.asarray(CosineSchedule().logsnr(T)) / 2))
    np.testing.assert_allclose(embedding, T, atol=3.1e-5)


def test_resolution_shift_moves_the_logsnr_but_not_its_range():
    shift = resolution_shift(256, 64)
    assert shift == pytest.approx(-2 * math.log(4))
    t = np.linspace(0.1, 0.9, 9)
    np.testing.assert_allclose(
        CosineSchedule(shift=shift).logsnr(t), -2 * np.log(np.tan(np.pi * t / 2)) + shift, atol=5e-3
    )
    assert float(CosineSchedule(shift=shift).logsnr(1.0)) == pytest.approx(-20, abs=1e-5)


def test_interpolated_cosine_moves_from_high_to_low_shift():
    schedule = InterpolatedCosineSchedule(low_shift=-2.0, high_shift=1.0)
    for t in (0.02, 0.3, 0.98):
        plain = -2 * math.log(math.tan(math.pi * t / 2))
        assert float(schedule.logsnr(t)) == pytest.approx(plain - 2.0 * t + 1.0 * (1 - t), abs=0.03)


@pytest.mark.parametrize("cls, power", [(LinearBetaSchedule, 1.0), (ScaledLinearBetaSchedule, 0.5)])
def test_beta_table_is_the_cumulative_product(cls, power):
    schedule = cls(steps=50, beta_start=0.001, beta_end=0.2)
    betas = [(0.001**power + n / 49 * (0.2**power - 0.001**power)) ** (1 / power) for n in range(50)]
    remaining = np.array([math.prod(1 - beta for beta in betas[: n + 1]) for n in range(50)])
    np.testing.assert_allclose(schedule.table(), np.log(remaining / (1 - remaining)), rtol=1e-9)
    alpha, _ = schedule.alpha_sigma(schedule.logsnr_at(jnp.arange(50)))
    np.testing.assert_allclose(alpha**2, remaining, rtol=1e-5)


def test_beta_table_timesteps_and_time():
    schedule = LinearBetaSchedule()
    n = np.array([0, 1, 250, 998, 999])
    np.testing.assert_allclose(schedule.timestep(schedule.logsnr_at(n)), n, atol=1e-3)
    np.testing.assert_allclose(schedule.logsnr(n / 999), schedule.table()[n], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(schedule.logsnr_at(10.5), schedule.table()[10:12].mean(), rtol=1e-5)


def test_zero_terminal_snr_keeps_the_first_level_and_empties_the_last():
    plain, zeroed = ScaledLinearBetaSchedule(), ScaledLinearBetaSchedule(zero_terminal_snr=True)
    a, b = (np.sqrt(1 / (1 + np.exp(-s.table()))) for s in (plain, zeroed))
    assert b[0] == pytest.approx(a[0], rel=1e-12)
    assert zeroed.table()[-1] == -20
    np.testing.assert_allclose(b[:-1], (a - a[-1])[:-1] * a[0] / (a[0] - a[-1]), rtol=1e-9)


def test_published_ends_of_the_linear_table():
    # What is left of the signal's power after the 1000 steps of the two published tables.
    for schedule, remaining in ((LinearBetaSchedule(), 4.036e-5), (ScaledLinearBetaSchedule(), 4.660e-3)):
        assert 1 / (1 + math.exp(-schedule.table()[-1])) == pytest.approx(remaining, rel=1e-3)


def test_edm_ramp():
    t = np.array([0, 0.25, 1])
    sigma = (0.002 ** (1 / 7) + t * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    np.testing.assert_allclose(EDMSchedule().alpha_sigma(EDMSchedule().logsnr(t))[1], sigma, rtol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_time_is_sigma_up_to_the_shift(shift):
    schedule = FlowSchedule(shift=shift)
    alpha, sigma = schedule.alpha_sigma(schedule.logsnr(T))
    np.testing.assert_allclose(sigma, shift * T / (1 + (shift - 1) * T), atol=1.5e-4)
    np.testing.assert_allclose(alpha, 1 - sigma, atol=1e-6)


def test_config_types_resolve():
    for cls in typing.get_args(Schedule):
        assert "logsnr" not in typing.get_type_hints(
            cls
        )  # methods are no fields, and all hints are importable


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: CosineSchedule(logsnr_min=3.0, logsnr_max=3.0), ("CosineSchedule.logsnr_min", "=3.0")),
        (
            lambda: InterpolatedCosineSchedule(low_shift=1.0, high_shift=0.0),
            ("InterpolatedCosineSchedule.low_shift", "=1.0", "high_shift"),
        ),
        (lambda: LinearBetaSchedule(steps=1), ("LinearBetaSchedule.steps", "=1", ">= 2")),
        (lambda: ScaledLinearBetaSchedule(beta_end=1.5), ("ScaledLinearBetaSchedule.beta_end", "=1.5")),
        (lambda: LinearBetaSchedule(beta_end=0.5).table(), ("beta_tables._logsnr_table", "beta_end=0.5", "steps=1000")),
        (lambda: EDMSchedule(sigma_min=2.0, sigma_max=1.0), ("EDMSchedule.sigma_min", "=2")),
        (lambda: EDMSchedule(rho=0.0), ("EDMSchedule.rho", "=0")),
        (lambda: FlowSchedule(shift=0.0), ("FlowSchedule.shift", "=0")),
        (lambda: resolution_shift(0), ("size", "=0")),
    ],
)
def test_errors(make, message):
    with refused(*message):
        make()


def test_interpolated_schedule_of_simple_diffusion():
    """Its formula with shifts for a picture of 128 pixels towards 32 and 256; a shifted schedule is the cosine of moved
    limits plus the shift, which clamps it to its range."""
    low, high = resolution_shift(128, 32), resolution_shift(128, 256)
    schedule = InterpolatedCosineSchedule(low_shift=low, high_shift=high, logsnr_min=-15.0, logsnr_max=15.0)

    def clamped(t, shift):
        first, last = (np.arctan(np.exp(-0.5 * (end - shift))) for end in (15.0, -15.0))
        return -2 * np.log(np.tan(first + t * (last - first))) + shift

    t = np.linspace(0, 1, 11)
    np.testing.assert_allclose(schedule.logsnr(t), t * clamped(t, low) + (1 - t) * clamped(t, high), atol=2e-4)
    np.testing.assert_allclose(schedule.logsnr(np.array([0.0, 1.0])), [15, -15], atol=1e-4)
    alpha, sigma = schedule.alpha_sigma(schedule.logsnr(t))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-6)
