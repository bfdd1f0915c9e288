"""Stopping early: signals become a request, and all processes stop after the same step.

Alone, a process counts SIGINT and SIGTERM itself. With others, a signal may arrive in one of them only, or at different
times: JAX's preemption service tells the others and finds the next step that none has begun, without any collective in
the steps themselves. It watches SIGTERM (about once a second); SIGINT is handed on to it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
from collections.abc import Iterator
from typing import Any

import jax

log = logging.getLogger(__name__)

# Calls of `agreed` so far, over all stages: the service compares numbers of calls, and steps start anew in each stage.
_calls = itertools.count(1)


class StopRequests:
    """Whether this process has been asked to stop, and whether all stop now."""

    requested = False  # a signal has arrived here

    def agreed(self) -> bool:
        """Whether to stop after the step just done. Every process calls it exactly once after every step."""
        if jax.process_count() == 1:
            return self.requested
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(next(_calls))


@contextlib.contextmanager
def stop_requests(unit: str = "step") -> Iterator[StopRequests]:
    """Turn the first SIGINT or SIGTERM into a request to stop after the step, or another unit of work; a second SIGINT
    interrupts at once."""
    requests, previous = StopRequests(), {}
    alone = jax.process_count() == 1

    def handle(number: int, frame: Any) -> None:
        requests.requested = True
        log.warning("stopping after this %s and saving (again to stop at once)", unit)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if not alone:
            os.kill(os.getpid(), signal.SIGTERM)  # to the handler of the preemption service, which Python does not see

    for number in (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,):
        with contextlib.suppress(ValueError):  # not the main thread
            previous[number] = signal.signal(number, handle)
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
