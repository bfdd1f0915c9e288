"""Command lines from dataclasses through tyro, with errors on one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from vdm_jax.commands.outputs import check_file
from vdm_jax.configuration import Guidance, Seed, check_fields, renamed_field
from vdm_jax.errors import UserError, field_of

if TYPE_CHECKING:  # JAX is not imported for every command
    from vdm_jax.stages.autoencoding import AnyExperiment

T = TypeVar("T")
VALIDATION_SPLIT = Annotated[Literal["validation", "train"], tyro.conf.arg(
    help="clips of validation losses and sample grids; train: for data so small that its validation split has none")]
# Of sample, evaluate and generate: an option's name says which of the two ways to write guidance it is.
GUIDANCE = Annotated[Guidance | None, tyro.conf.arg(
    help="w in cond + w (cond - uncond), of a cascade's first stage; 0 is off. --guidance-scale is 1 + w: give one")]
GUIDANCE_SCALE = Annotated[Guidance | None, tyro.conf.arg(
    help="s in uncond + s (cond - uncond), of a cascade's first stage; 1 is off. --guidance is s - 1: give one")]
LORA = Annotated[tuple[str, ...], tyro.conf.arg(
    help="LoRA files, each FILE or FILE=WEIGHT (1 by default), in the layout of diffusers (peft), kohya or 'vdm-jax "
         "export --lora'; several add up")]
CONFIG = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)


def parse(kind: type[T], arguments: Sequence[str], program: str, *, default: T | None = None) -> T:
    """Parse a command line into `kind`. Raises `UserError` with tyro's message on one line; `--help` exits."""
    _refuse_renamed(kind, arguments)
    with _one_line(kind):
        extra = {} if default is None else {"default": default}
        values = tyro.cli(kind, args=list(arguments), prog=program, description=kind.__doc__,
                          config=(tyro.conf.AvoidSubcommands,), **extra)
    check_fields(values, flags=True)
    return values


def parse_with_rest(kind: type[T], arguments: Sequence[str], program: str) -> tuple[T, list[str]]:
    """Like `parse`, but also returns the arguments that `kind` does not know."""
    _refuse_renamed(kind, arguments)
    with _one_line(kind):
        values, rest = tyro.cli(kind, args=list(arguments), prog=program, description=kind.__doc__,
                                return_unknown_args=True)
    check_fields(values, flags=True)
    return values, rest


def _refuse_renamed(kind: type, arguments: Sequence[str]) -> None:
    """Refuse flags of names of before, with those of today. Raises `UserError`."""
    for flag in (argument.partition("=")[0] for argument in arguments if argument.startswith("--")):
        name = "--" + ".".join(part for _, part in _fields(kind, flag)).replace("_", "-")
        if name != flag.replace("_", "-"):
            negated = " (true is false now)" if "not " in name else ""
            raise UserError(f"{flag}: it has another name; permitted: {name.replace('not ', '')}{negated}", "renamed")


def _fields(kind: type, flag: str) -> list[tuple[type, str]]:
    """The path of a flag: of each part the class that has it, and its name of today."""
    owner, path = kind, []
    for part in flag.removeprefix("--").replace("-", "_").split("."):
        of = owner if isinstance(owner, type) else type(owner)
        if isinstance(owner, tuple):
            owner = {str(number): element for number, element in enumerate(owner)}.get(part)
        elif dataclasses.is_dataclass(owner):
            part = renamed_field(of, part)
            owner = getattr(owner, part.removeprefix("not "), None)
        path.append((of, part))
    return path


def given(options: Any) -> dict[str, Any]:
    """The options that differ from their defaults, by field."""
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options)
            if getattr(options, field.name) != field.default}


def refuse_unused(options: Any, names: Iterable[str], where: str, permitted: str) -> None:
    """Refuse options that differ from their defaults and that what is asked for does not read.

    Args:
      options: a parsed command line.
      names: fields of those options.
      where: what was asked for, with the option that asks for it: "with --report", "without --search".
      permitted: what the user may do.

    Raises:
      UserError: naming the first of them and its value, `where` and `permitted`.
    """
    found = given(options)
    for name in names:
        if name in found:
            raise UserError(f"{_as_typed(name, found[name])} {where} is not used; permitted: {permitted}")


def refuse_unread(options: Any, readers: Mapping[str, Sequence[str]]) -> None:
    """Refuse options that none of `options.metrics` reads; `readers` are the metrics that do, by field. Raises
    `UserError`."""
    for name, metrics in readers.items():
        if not set(metrics) & set(options.metrics):
            refuse_unused(options, [name], f"with --metrics {' '.join(options.metrics)}",
                          f"--metrics with any of {', '.join(metrics)}")


def _as_typed(name: str, value: Any) -> str:
    """An option and its value as on the command line; of a flag, and of fields that have flags of their own, the
    name."""
    flag = "--" + name.replace("_", "-")
    if dataclasses.is_dataclass(value) or value is True:
        return flag
    return f"{flag}={' '.join(map(str, value)) if isinstance(value, tuple) else value}"


def override(experiment: AnyExperiment, arguments: Sequence[str], program: str) -> AnyExperiment:
    """The experiment with typed overrides: `--STAGE.FIELD value`, `--data.FIELD value`, `--mesh.FIELD value`,
    `--seed`, `--validation-split`.

    Raises `UserError` naming the flag, its value and what is permitted, or the rule that the new values break.
    """
    fields = [(stage.name, type(stage), stage) for stage in experiment.stages]
    parts = ((name, getattr(experiment, name)) for name in ("data", "mesh"))
    fields += [(name, type(part), part) for name, part in parts if part is not None]
    fields.append(("seed", Seed, experiment.seed))
    fields.append(("validation_split", VALIDATION_SPLIT, experiment.validation_split))
    kind = dataclasses.make_dataclass(
        "Overrides", [(name, hint, dataclasses.field(default=value)) for name, hint, value in fields], frozen=True)
    kind.__doc__ = f"Values of the config {experiment.name!r} that can be overridden."
    values = parse(kind, arguments, program)
    return dataclasses.replace(
        experiment, stages=tuple(getattr(values, stage.name) for stage in experiment.stages),
        data=getattr(values, "data", None), seed=values.seed, mesh=values.mesh,
        validation_split=values.validation_split)


def weighted_files(flag: str, given: Sequence[str]) -> dict[Path, float]:
    """The files of an option of `FILE` and `FILE=WEIGHT`, with their weights, 1 by default. Raises `UserError` for a
    file that is not there or given twice, and a weight that is no number."""
    found: dict[Path, float] = {}
    for text in given:
        name, sign, number = text.rpartition("=")
        if not sign or Path(text).is_file():
            name, number = text, "1"
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not abs(weight) <= 1e6:
            raise UserError(f"{flag}={text} has weight {number!r}; permitted: FILE, or FILE=WEIGHT, a finite number")
        if not Path(name).is_file() or Path(name) in found:
            raise UserError(f"{flag}={text}: {name} is {'given twice' if Path(name) in found else 'not a file'}; "
                            "permitted: each .safetensors file of a LoRA once")
        found[Path(name)] = weight
    return found


def check_outputs(paths: Sequence[Path]) -> None:
    """Refuse files of `--out` that could not be written once they are made. Raises `UserError`."""
    from vdm_jax.video.writing import SUFFIXES

    for path in paths:
        check_file(path, SUFFIXES)


@contextlib.contextmanager
def _one_line(kind: type) -> Any:
    """Turn tyro's boxed message about flags of `kind` and exit into a `UserError` of the field that it names."""
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            yield
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        message = plain(captured.getvalue())
        flag = re.search(r"--([a-z][\w.-]*)", message)
        owner, name = _fields(kind, flag[1])[-1] if flag else (kind, None)
        code = field_of(message.partition(": ")[2]) or (f"{owner.__name__}.{name}" if name else None)
        raise UserError(message, code) from None
    finally:
        if sys.exc_info()[0] is None:
            sys.stderr.write(captured.getvalue())


def plain(message: str) -> str:
    """A boxed, coloured, wrapped message as one line of text, without the box's title, which the text repeats.

    What is permitted comes last: `FLAG: reason; permitted: FLAG TYPE help`.
    """
    message = re.sub(r"\x1b\[[0-9;]*m", "", message)
    lines = [line for line in message.splitlines() if not line.startswith(("╭", "┌", "╰", "└", "+-"))]
    lines = [line.strip("│| ").rstrip() for line in lines]
    sections: list[list[str]] = [[]]
    for line in filter(None, lines):
        if set(line) <= set("─-"):
            sections.append([])
        else:
            sections[-1].append(line)
    return "; ".join(text for text in map(_section, sections) if text)


def _section(lines: list[str]) -> str:
    """One part of tyro's message in our words; nothing for the pointer to the help."""
    if not lines or lines[0].startswith("For full helptext"):
        return ""
    if lines[0] == "Argument helptext:":
        return "permitted: " + " ".join(lines[1:])
    if lines[0] == "Perhaps you meant:":
        flags = [line for line in lines[1:] if line.startswith("-")]
        return f"did you mean {', '.join(flags)}?"
    text = " ".join(" ".join(lines).split()).removeprefix("Error parsing ")
    choice = re.fullmatch(r"invalid choice (.*) for argument '(.*)'\. Expected one of \((.*?),?\)\.", text)
    return "{1}={0} is not valid; permitted: {2}".format(*choice.groups()) if choice else text


def cache_plan(numbers: Sequence[int], threshold: float | None = None) -> Any:
    """The plan of `--cache` or `--cache-threshold`, None without them. Raises `UserError` for numbers that are none,
    and for both."""
    from vdm_jax.diffusion.caching import ByChange, Cache

    if threshold is not None:
        if numbers:
            raise UserError(f"--cache={' '.join(map(str, numbers))} with --cache-threshold={threshold}; permitted: one "
                            "of them")
        return ByChange(threshold=threshold)
    if not numbers:
        return None
    try:
        return Cache(every=numbers[0]) if len(numbers) == 1 else Cache(steps=tuple(numbers))
    except UserError as error:
        raise UserError(f"--cache={' '.join(map(str, numbers))} ({error})") from None


def word_weights(given: Sequence[str], flag: str) -> tuple[Any, ...]:
    """The weights of `--FLAG WORD=FACTOR ...`. Raises `UserError` for what is none."""
    from vdm_jax.generation.editing.prompt_to_prompt import WordWeight

    found = []
    for text in given:
        word, sign, number = text.rpartition("=")
        try:
            found.append(WordWeight(word=word, weight=float(number)))
        except ValueError:
            sign = ""
        if not (sign and word):
            raise UserError(f"--{flag}={text}; permitted: WORD=FACTOR, such as robot=2")
    return tuple(found)
