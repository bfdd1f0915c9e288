"""What a person sees while a run goes on: a progress bar with loss, speed and remaining time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import rich.console
import rich.progress


def log_console(quiet: bool = False) -> rich.console.Console:
    """The console of progress and notes, on stderr. Lines stay whole: a log file has no width."""
    return rich.console.Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)


class Report:
    """Progress on a console; on a terminal a live bar, in a log file one line per logged step."""

    def __init__(self, console: rich.console.Console | None = None):
        self.console = console or log_console()

    def note(self, text: str) -> None:
        """One line of text."""
        self.console.print(text, markup=False)

    @contextlib.contextmanager
    def stage(self, name: str, start: int, steps: int) -> Iterator[StageProgress]:
        """The progress of one stage's training."""
        columns = (
            rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn(bar_width=24),
            rich.progress.MofNCompleteColumn(), rich.progress.TextColumn("loss {task.fields[loss]}"),
            rich.progress.TextColumn("{task.fields[speed]}"), rich.progress.TextColumn("{task.fields[remaining]}"),
        )
        with rich.progress.Progress(*columns, console=self.console, disable=not self.console.is_terminal) as bar:
            task = bar.add_task(f"training {name}", total=steps, completed=start, loss="-", speed="compiling ...",
                                remaining="")
            yield StageProgress(self, bar, task, name, steps)


class StageProgress:
    """Handle on one stage's progress."""

    def __init__(self, report: Report, bar: rich.progress.Progress, task: rich.progress.TaskID, name: str, steps: int):
        self._report, self._bar, self._task, self._name, self._steps = report, bar, task, name, steps

    def note(self, text: str) -> None:
        """One line of text above the bar."""
        self._report.note(f"stage {self._name}: {text}")

    def doing(self, text: str) -> None:
        """Show in the bar what happens between two steps; the next step replaces it."""
        self._bar.update(self._task, speed=text, remaining="")

    def update(self, step: int, loss: float, rates: Mapping[str, float]) -> None:
        """Show a finished step."""
        speed = shown_speed(rates) if rates else ""
        remaining = f"{duration(rates['seconds_remaining'])} left" if rates and step < self._steps else ""
        self._bar.update(self._task, completed=step, loss=f"{loss:.4f}", speed=speed, remaining=remaining)
        if not self._report.console.is_terminal:
            self.note(f"step {step}/{self._steps}, loss {loss:.4f}, {speed}, {remaining}".rstrip(", "))


def shown_speed(rates: Mapping[str, float]) -> str:
    """Clips per second, time of a step, how much of it passes waiting for data, and MFU where it is known."""
    text = f"{rates['clips_per_second']:.1f} clips/s"
    if "step_ms" in rates:
        text += f", {rates['step_ms']:.0f} ms per step ({rates['data_wait_ms']:.0f} ms waiting for data)"
    return text + (f", MFU {rates['mfu']:.0%}" if "mfu" in rates else "")


def duration(seconds: float) -> str:
    """Seconds as a short text: 42 s, 3 min 20 s, 5 h 12 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
