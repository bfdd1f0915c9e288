"""Speed and time left, by a clock that the test moves."""

import math

import pytest

from tests.refusals import refused
from vdm_jax.training.report import shown_speed
from vdm_jax.training.throughput import Throughput


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_throughput_leaves_out_the_first_step_and_pauses():
    clock = Clock()
    speed = Throughput(clips_per_step=4, total_steps=20, clock=clock)
    clock.now += 60  # compilation
    speed.update(1)
    assert speed.rates() == {}
    for step in range(2, 6):
        clock.now += 0.5
        speed.update(step)
    with speed.pause():
        clock.now += 30
        with speed.pause():  # a save inside an evaluation
            clock.now += 10
    clock.now += 0.5
    speed.update(6)
    assert speed.rates() == {"steps_per_second": 2.0, "clips_per_second": 8.0, "seconds_remaining": 7.0,
                             "step_ms": 500.0, "data_wait_ms": 0.0}


def test_throughput_forgets_what_left_the_window_and_resumes_anywhere():
    clock = Clock()
    speed = Throughput(clips_per_step=1, total_steps=1000, window=2.0, clock=clock)
    for step, seconds in ((500, 0), (501, 9), (502, 1), (504, 1)):
        clock.now += seconds
        speed.update(step)
    assert speed.rates()["steps_per_second"] == 1.5
    assert speed.rates()["seconds_remaining"] == (1000 - 504) / 1.5


def test_a_pause_that_fails_still_ends():
    clock = Clock()
    speed = Throughput(clips_per_step=1, total_steps=10, clock=clock)
    speed.update(1)
    with pytest.raises(KeyError), speed.pause():
        clock.now += 50
        raise KeyError
    clock.now += 1
    speed.update(2)
    assert speed.rates()["steps_per_second"] == 1.0


@pytest.mark.parametrize("log_every", [1, 25, 400])
def test_throughput_follows_the_last_minute_however_often_it_is_logged(log_every):
    """A machine that becomes slower shows it within a minute, or at the next log."""
    clock = Clock()
    speed = Throughput(clips_per_step=1, total_steps=2000, clock=clock)
    for step in range(1, 1201):
        clock.now += 0.05 if step <= 800 else 0.5
        if step % log_every == 0:
            speed.update(step)
    assert speed.rates()["steps_per_second"] == pytest.approx(2.0)
    assert speed.rates()["seconds_remaining"] == pytest.approx(400.0)


def test_waiting_for_data_is_shown_apart_and_use_of_the_devices_where_it_is_known():
    clock = Clock()
    speed = Throughput(clips_per_step=4, total_steps=20, least_seconds=0.2, clock=clock)
    speed.update(1)
    for step in range(2, 6):
        with speed.waiting():
            clock.now += 0.125
        clock.now += 0.375
        speed.update(step)
    rates = speed.rates()
    assert (rates["step_ms"], rates["data_wait_ms"], rates["mfu"]) == (500.0, 125.0, 0.4)
    assert shown_speed(rates) == "8.0 clips/s, 500 ms per step (125 ms waiting for data), MFU 40%"


@pytest.mark.parametrize("window", [0, -1.0, math.nan])
def test_window_is_checked(window):
    with refused("Throughput.window", f"window={window}"):
        Throughput(1, 1, window=window)
