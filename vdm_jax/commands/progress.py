"""Progress bars: sampling through the stages, going through the cases of a benchmark."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import rich.console
import rich.progress

from vdm_jax.generation.generator import Progress
from vdm_jax.training.report import duration, log_console

SweepProgress = Callable[[int, int, str, float | None], None]


@contextlib.contextmanager
def sampling_progress() -> Iterator[Progress]:
    """A function `(stage, done, total)` that shows one bar per stage."""
    with counting_progress("sampling ") as show:
        yield show


@contextlib.contextmanager
def counting_progress(doing: str = "", unit: str = "videos") -> Iterator[Progress]:
    """A function `(what, done, total)` that shows one bar per `what`, a number of videos or other units."""
    console = log_console()
    columns = (rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn(bar_width=24),
               rich.progress.MofNCompleteColumn(), rich.progress.TextColumn(unit),
               rich.progress.TimeRemainingColumn())
    with rich.progress.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks: dict[str, rich.progress.TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(f"{doing}{stage}", total=total)
            bar.update(tasks[stage], completed=done)

        yield show


@contextlib.contextmanager
def sweep_progress() -> Iterator[SweepProgress]:
    """A function `(done, total, next case, seconds left)` that shows one bar; in a log file a line per case."""
    console = log_console()
    columns = (rich.progress.BarColumn(bar_width=24), rich.progress.MofNCompleteColumn(),
               rich.progress.TextColumn("cases, {task.fields[left]}"), rich.progress.TextColumn("{task.description}"))
    with rich.progress.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("measuring the matmul peak", total=None, left="")

        def show(done: int, total: int, text: str, seconds: float | None) -> None:
            left = "" if seconds is None else f"about {duration(seconds)} left"
            bar.update(task, completed=done, total=total, description=text, left=left)
            if not console.is_terminal and done < total:
                console.print(f"case {min(done + 1, total)}/{total}, {left}: {text}", markup=False)

        yield show


@contextlib.contextmanager
def search_progress() -> Iterator[Callable[[Any], None]]:
    """What `planning.search` tells, as lines, above a bar of the programs done of those there may be."""
    from vdm_jax.planning.report import amount

    console = log_console()
    columns = (rich.progress.BarColumn(bar_width=24), rich.progress.TextColumn("{task.description}"))
    with rich.progress.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def show(step: Any) -> None:
            left = "" if step.left is None else f", at most {duration(step.left)} left"
            count = f"{step.done} of at most {step.most} programs{left}"
            bar.update(task, completed=step.done, total=step.most, description=count)
            needed = step.report.get("memory", {}).get("needed") if step.report else None
            if step.report:
                size = f", {amount(needed)} per device" if needed else ""
                console.print(f"{step.text}: {step.report['verdict']}{size} ({count})", markup=False)
            elif not console.is_terminal:
                console.print(f"{step.text} ...", markup=False)

        yield show
