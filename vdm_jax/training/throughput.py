"""Speed of a training run: steps and clips per second, time left, waiting for data, share of the peak."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Iterator

from vdm_jax.configuration import Positive, check_value


class Throughput:
    """Speed over the last minute or so; compilation and pauses do not count.

    Call `update` when the device has done a step (or a few). The clock starts with the first call, which leaves the
    first step and its compilation out. Wrap evaluation and saving in `with throughput.pause():`, once the device has
    done all steps before them: a step that ends inside would seem to take no time. Wrap what brings the next batch in
    `with throughput.waiting():`.

    Args:
      clips_per_step: global batch size, clips.
      total_steps: step at which the run ends.
      window: seconds without pauses that the speed is averaged over; at the least the time between two updates.
      least_seconds: what a step takes when the devices compute at their peak, where that is known.
      clock: seconds, monotonic.
    """

    def __init__(self, clips_per_step: int, total_steps: int, *, window: float = 60.0,
                 least_seconds: float | None = None, clock: Callable[[], float] = time.monotonic):
        check_value(window, Positive, "Throughput.window")
        self._clips_per_step = clips_per_step
        self._total_steps = total_steps
        self._window, self.least_seconds = window, least_seconds
        self._clock = clock
        self._marks: collections.deque[tuple[int, float, float]] = collections.deque()  # step, time, waited so far
        self._paused = 0.0  # seconds, all pauses so far
        self._waited = 0.0  # seconds, for data
        self._depth = 0  # pauses may nest: a save inside an evaluation counts once

    def update(self, step: int) -> None:
        """Notes that `step` steps of the run are done."""
        now = self._clock() - self._paused
        self._marks.append((int(step), now, self._waited))
        while len(self._marks) > 2 and self._marks[1][1] <= now - self._window:
            self._marks.popleft()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside is spent waiting for data."""
        start = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - start

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside does not count."""
        start = self._clock()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._paused += self._clock() - start

    def rates(self) -> dict[str, float]:
        """`steps_per_second`, `clips_per_second`, `seconds_remaining`; `step_ms` and, of it, `data_wait_ms`; `mfu` (the
        share of the devices' peak) where `least_seconds` is known. Empty until two updates were seen."""
        if len(self._marks) < 2:
            return {}
        (first, start, before), (last, end, after) = self._marks[0], self._marks[-1]
        if last <= first or end <= start:
            return {}
        speed = (last - first) / (end - start)
        share = {} if self.least_seconds is None else {"mfu": self.least_seconds * speed}
        return {
            "steps_per_second": speed,
            "clips_per_second": speed * self._clips_per_step,
            "seconds_remaining": max(self._total_steps - last, 0) / speed,
            "step_ms": 1e3 / speed,
            "data_wait_ms": 1e3 * (after - before) / (last - first),
            **share,
        }
