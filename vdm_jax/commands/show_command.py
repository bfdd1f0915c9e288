"""`vdm-jax show`: every value of a config, by the flag that overrides it."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import io
import shlex
import tokenize
import typing
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import tyro

from vdm_jax.commands.arguments import parse
from vdm_jax.errors import UserError

if TYPE_CHECKING:
    from vdm_jax.stages.autoencoding import AnyExperiment


@dataclasses.dataclass(frozen=True)
class Show:
    """Print the values of a config, a run or a released model, a line each: the flag of `vdm-jax train` that overrides
    it, its value, and what it means. Where no flag changes a value, its place stands without dashes.

    Examples:
      vdm-jax show captioned_digits
      vdm-jax show captioned_digits --filter learning_rate
      vdm-jax show runs/captioned_digits --filter sampling
    """

    config: tyro.conf.Positional[str]  # name or path of a config, a run, or a released model's folder
    filter: str | None = None  # only lines whose flag has this text


@dataclasses.dataclass(frozen=True)
class Line:
    """One value of a config."""

    path: str  # of fields, joined by '.'
    value: str
    meaning: str  # the field's comment
    flag: bool = True  # whether a flag changes it

    def __str__(self) -> str:
        return f"{'--' if self.flag else ''}{self.path} {self.value}".rstrip()


def main(arguments: Sequence[str]) -> int:
    """Entry of the command."""
    options = parse(Show, arguments, "vdm-jax show")
    from vdm_jax.commands.configs import load_any

    lines = list(lines_of(load_any(options.config)))
    if options.filter is not None:
        lines = matching(lines, options.filter)
    width = min(60, max(len(str(line)) for line in lines))
    for line in lines:
        print(f"{line!s:{width}}  # {line.meaning}" if line.meaning else line)
    return 0


def lines_of(experiment: AnyExperiment) -> Iterator[Line]:
    """The values of an experiment in the order of its fields, by the paths that overrides have."""
    for stage in experiment.stages:
        yield from walk(stage, stage.name)
    for name in ("data", "mesh", "seed", "validation_split"):
        yield from walk(getattr(experiment, name), name, comments(type(experiment)).get(name, ""))


def walk(value: Any, path: str, meaning: str = "") -> Iterator[Line]:
    """The values of one field and of what it consists of."""
    path = path.replace("_", "-")
    if dataclasses.is_dataclass(value):
        fields = [field for field in dataclasses.fields(value) if not (path.count(".") == 0 and field.name == "name")]
        if not fields:
            yield Line(path, type(value).__name__, meaning, flag=False)
        for field in fields:
            item = getattr(value, field.name)
            if item == () and holds_parts(typing.get_type_hints(type(value))[field.name]):
                item = None  # as a flag knows the items that there are, it cannot add one
            yield from walk(item, f"{path}.{field.name}", comments(type(value))[field.name])
    elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
        for number, item in enumerate(value):
            yield from walk(item, f"{path}.{number}", meaning)
    elif isinstance(value, bool):
        *parents, name = path.split(".")
        yield Line(".".join([*parents, name if value else f"no-{name}"]), "", meaning)
    else:
        items = value if isinstance(value, tuple) else (value,)
        yield Line(path, shlex.join(map(str, items)), meaning, flag=value is not None)


def holds_parts(hint: Any) -> bool:
    """Whether a hint is about values that have fields of their own."""
    return dataclasses.is_dataclass(hint) or any(map(holds_parts, typing.get_args(hint)))


@functools.cache
def comments(kind: type) -> dict[str, str]:
    """The comment of every field of a dataclass: that on its line, else those right above it, of the class that
    declares it."""
    found = {field.name: "" for field in dataclasses.fields(kind)}
    for owner in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        above: list[str] = []
        name = None
        for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(owner)).readline):
            words = token.line.split("#")[0].strip()
            if token.type == tokenize.COMMENT:
                text = token.string.lstrip("# ")
                if words:
                    found[name] = text if name in found else ""
                else:
                    above.append(text)
            elif token.type == tokenize.NAME and words.startswith(f"{token.string}:") and token.string in found:
                name = token.string
                found[name], above = " ".join(above), []
    return {name: found[name] for name in (field.name for field in dataclasses.fields(kind))}


def matching(lines: list[Line], text: str) -> list[Line]:
    """The lines whose path has the text. Raises `UserError` naming near ones where there is none."""
    text = text.replace("_", "-")
    chosen = [line for line in lines if text in line.path]
    if not chosen:
        names = sorted({part for line in lines for part in line.path.split(".") if not part.isdigit()})
        close = difflib.get_close_matches(text, names, n=3, cutoff=0.4) or names
        raise UserError(f"--filter={text} is in no flag of this config; permitted: a part of one, such as "
                        f"{', '.join(close)}")
    return chosen
