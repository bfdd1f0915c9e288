"""Traces of some steps of a training by JAX's profiler, in `RUN/STAGE/profile/`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from vdm_jax.errors import UserError

FOLDER = "profile"  # in that of the stage
MOST_STEPS = 100  # of a trace: a few show what there is to see, and viewers fail on files of many


def steps_to_trace(text: str, start: int, steps: int) -> range:
    """The steps that `--profile` names, for a stage that goes on from step `start` and ends with step `steps`.

    `N` is N steps, beginning with the second one: the first one compiles. `FIRST:LAST` are those from FIRST to LAST,
    both traced. Raises `UserError` for other texts and for steps that the stage does not run.
    """
    parts = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", text, re.ASCII)
    if parts is None:
        raise UserError(f"--profile={text!r} is not valid; permitted: a number of steps, such as 5, or FIRST:LAST, "
                        "such as 10:15")
    if parts[2] is None:
        most = min(MOST_STEPS, steps - start - 1)
        if not 1 <= int(parts[1]) <= most:
            permitted = f"permitted: 1 to {most}" if most > 0 else "permitted: more steps of training, or no --profile"
            raise UserError(f"--profile={text} asks for {text} steps after the first one of a training that goes from "
                            f"step {start} to {steps}, in one trace; {permitted}")
        return range(start + 2, start + 2 + int(parts[1]))
    first, last = int(parts[1]), int(parts[2])
    if not (start < first <= last <= steps and last - first < MOST_STEPS):
        raise UserError(f"--profile={text} is not in a training that goes on after step {start} and ends with step "
                        f"{steps}; permitted: {start + 1} <= FIRST <= LAST <= {steps}, at most {MOST_STEPS} steps")
    return range(first, last + 1)


class Tracer:
    """Traces steps and says where the trace lies. Process 0 traces what it and its devices do.

    Args:
      steps: to trace; none where empty.
      folder: of traces.
      note: shows a line of text.
      pause: a context for time that is not that of steps (`Throughput.pause`).
    """

    def __init__(self, steps: Sequence[int], folder: Path, note: Callable[[str], None],
                 pause: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext):
        self._steps = steps if jax.process_index() == 0 else ()
        self._folder, self._note, self._pause = folder, note, pause
        self._running = False

    @contextlib.contextmanager
    def step(self, step: int, state: Any) -> Iterator[None]:
        """All inside belongs to a step, from its batch to its call; `state` is that of the step before."""
        if step not in self._steps:
            yield
            return
        if step == self._steps[0]:
            jax.block_until_ready(state)  # earlier steps are not in the trace
            with self._pause():
                self._folder.mkdir(parents=True, exist_ok=True)
                jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def end(self, step: int, result: Any) -> None:
        """After a step: where it is the last one, its result is waited for and the trace written."""
        if not self._running or step != self._steps[-1]:
            return
        jax.block_until_ready(result)
        self.close()
        self._note(f"steps {self._steps[0]} to {step} are traced in {self._folder}: open perfetto_trace.json.gz in it "
                   f"at https://ui.perfetto.dev, or run 'pip install xprof' and 'xprof {self._folder}'")

    def close(self) -> None:
        """Write what was traced so far, as where training stops early."""
        if self._running:
            self._running = False
            with self._pause():
                jax.profiler.stop_trace()
