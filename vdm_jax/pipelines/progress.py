"""A bar of the steps of a pipeline, on a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import rich.console
import rich.progress

from vdm_jax.generation.generator import Progress


@contextlib.contextmanager
def shown(progress: Progress | bool | None) -> Iterator[Progress | None]:
    """The function to report to, or None: the one given; a bar on a terminal for None and True; nothing for False."""
    console = rich.console.Console(stderr=True, highlight=False)
    if callable(progress) or progress is False or not console.is_terminal:
        yield progress if callable(progress) else None
        return
    columns = (rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn(bar_width=24),
               rich.progress.MofNCompleteColumn(), rich.progress.TextColumn("steps"),
               rich.progress.TimeRemainingColumn())
    with rich.progress.Progress(*columns, console=console) as bar:
        tasks: dict[str, rich.progress.TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield show
