"""Command lines from dataclasses through tyro, with errors on one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from vdm_jax.cascade.stage import Experiment
from vdm_jax.errors import UserError

T = TypeVar("T")
CONFIG = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)


def parse(kind: type[T], arguments: Sequence[str], program: str, *, default: T | None = None) -> T:
    """Parse a command line into `kind`. Raises `UserError` with tyro's message on one line; `--help` exits."""
    with _one_line():
        extra = {} if default is None else {"default": default}
        return tyro.cli(kind, args=list(arguments), prog=program, description=kind.__doc__,
                        config=(tyro.conf.AvoidSubcommands,), **extra)


def parse_with_rest(kind: type[T], arguments: Sequence[str], program: str) -> tuple[T, list[str]]:
    """Like `parse`, but also returns the arguments that `kind` does not know."""
    with _one_line():
        return tyro.cli(kind, args=list(arguments), prog=program, description=kind.__doc__, return_unknown_args=True)


def override(experiment: Experiment, arguments: Sequence[str], program: str) -> Experiment:
    """The experiment with typed overrides: `--STAGE.FIELD value`, `--data.FIELD value`, `--mesh.FIELD value`.

    Raises `UserError` naming the flag, its value and what is permitted, or the rule that the new values break.
    """
    fields = [(stage.name, type(stage), stage) for stage in experiment.stages]
    fields += [(name, type(getattr(experiment, name)), getattr(experiment, name)) for name in ("data", "seed", "mesh")]
    kind = dataclasses.make_dataclass(
        "Overrides", [(name, hint, dataclasses.field(default=value)) for name, hint, value in fields], frozen=True)
    kind.__doc__ = f"Values of the config {experiment.name!r} that can be overridden."
    values = parse(kind, arguments, program)
    return dataclasses.replace(
        experiment, stages=tuple(getattr(values, stage.name) for stage in experiment.stages),
        data=values.data, seed=values.seed, mesh=values.mesh)


@contextlib.contextmanager
def _one_line() -> Any:
    """Turn tyro's boxed message and exit into a `UserError`."""
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            yield
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(plain(captured.getvalue())) from None
    finally:
        if sys.exc_info()[0] is None:
            sys.stderr.write(captured.getvalue())


def plain(message: str) -> str:
    """A boxed, coloured, wrapped message as one line of text."""
    message = re.sub(r"\x1b\[[0-9;]*m", "", message)
    lines = [re.sub(r"[│╭╮╰╯─┌┐└┘]+", " ", line).strip() for line in message.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("For full helptext", "Argument helptext"))]
    return " ".join(" ".join(lines).split())
