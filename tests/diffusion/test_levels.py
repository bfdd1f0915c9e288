import jax
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.diffusion.levels import LogitNormalTime, LogNormalSigma, UniformTime
from vdm_jax.diffusion.schedules import CosineSchedule, EDMSchedule, FlowSchedule

CASES = [  # sampling, schedule, statistic that is (standard) uniform or normal
    (UniformTime, CosineSchedule(), lambda schedule, logsnr: schedule.time(logsnr)),
    (LogNormalSigma, EDMSchedule(), lambda _, logsnr: -logsnr / 2),
    (LogitNormalTime, FlowSchedule(), lambda schedule, logsnr: np.log(1 / schedule.time(logsnr) - 1)),
]
MOMENTS = {UniformTime: (0.5, 12**-0.5), LogNormalSigma: (-1.2, 1.2), LogitNormalTime: (0.0, 1.0)}


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("cls, schedule, statistic", CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_distribution(cls, schedule, statistic, stratified):
    draws = cls(stratified=stratified).draw(jax.random.key(0), 20_000, schedule)
    values = np.asarray(statistic(schedule, draws))
    mean, std = MOMENTS[cls]
    tolerance = 1e-3 if stratified else 0.03
    assert draws.shape == (20_000,) and np.all(np.isfinite(draws))
    assert values.mean() == pytest.approx(mean, abs=tolerance)
    assert values.std() == pytest.approx(std, abs=3 * tolerance)


def test_stratified_times_are_evenly_spaced_with_a_random_offset():
    schedule = CosineSchedule()
    offsets = []
    for seed in range(50):
        times = np.asarray(schedule.time(UniformTime().draw(jax.random.key(seed), 8, schedule)))
        np.testing.assert_allclose(np.diff(np.sort(times)), 1 / 8, atol=1e-5)
        offsets.append(times[0])
    # One example alone still sees all times, or examples at fixed places in the batch would differ in level.
    assert np.histogram(offsets, bins=4, range=(0, 1))[0].min() > 4


def test_independent_times_are_not_evenly_spaced():
    draws = UniformTime(stratified=False).draw(jax.random.key(0), 8, CosineSchedule())
    assert np.ptp(np.diff(np.sort(CosineSchedule().time(draws)))) > 0.05


@pytest.mark.parametrize("cls", [LogNormalSigma, LogitNormalTime])
def test_errors(cls):
    with refused(f"{cls.__name__}.std", "=0.0", "> 0"):
        cls(std=0.0)
