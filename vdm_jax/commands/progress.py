"""A progress bar for sampling through the stages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import rich.console
import rich.progress

from vdm_jax.cascade.generator import Progress


@contextlib.contextmanager
def sampling_progress() -> Iterator[Progress]:
    """A function `(stage, done, total)` that shows one bar per stage."""
    console = rich.console.Console(stderr=True, highlight=False)
    columns = (rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn(bar_width=24),
               rich.progress.MofNCompleteColumn(), rich.progress.TextColumn("videos"),
               rich.progress.TimeRemainingColumn())
    with rich.progress.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks: dict[str, rich.progress.TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(f"sampling {stage}", total=total)
            bar.update(tasks[stage], completed=done)

        yield show
