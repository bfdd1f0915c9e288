"""Configs as JSON: frozen dataclasses out to plain data and back, checked field by field.

A config is data. It is written next to every run and read back without executing anything: a union member is chosen
apart by its class name under the key `kind`, and only classes that the type hints permit are ever built. Types, choices
and ranges of fields stand in their hints and are checked here alone (`config`), whatever way a value comes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import json
import numbers
import re
import types
import typing
from typing import Annotated, Any, Literal, TypeVar

from vdm_jax.errors import UserError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a field permits, as metadata of its hint: `Annotated[int, Range(least=1)]`."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    odd: bool = False  # with `least`
    also: float | None = None  # also permitted, such as -1 for what is left
    cap: float | None = None  # beyond which no number makes sense; named only where it is broken

    def __contains__(self, value: float) -> bool:
        if value == self.also:
            return True
        return ((self.least is None or value >= self.least) and (self.most is None or value <= self.most)
                and (self.above is None or value > self.above) and (self.below is None or value < self.below)
                and (not self.odd or value % 2 == 1) and (self.cap is None or value <= self.cap))

    def permitted(self, value: Any = None) -> str:
        """What is permitted, in words; the cap where a value is above it."""
        broken = self.cap if isinstance(value, int | float) and self.cap is not None and value > self.cap else None
        if self.also is not None:
            return f"{self.also:.10g} or {dataclasses.replace(self, also=None).permitted(value)}"
        if self.odd and broken is None:
            return f"{self.least}, {self.least + 2}, {self.least + 4}, ..."
        parts = ((">=", self.least), (">", self.above), ("<=", self.most), ("<", self.below), ("<=", broken))
        return " and ".join(f"{sign} {bound:.10g}" for sign, bound in parts if bound is not None)


@dataclasses.dataclass(frozen=True)
class Length:
    """How many elements of a tuple, or letters of a text, are the least that a field permits, as `Range` does."""

    least: int = 1

    def __contains__(self, value: Any) -> bool:
        return len(value) >= self.least


@dataclasses.dataclass(frozen=True)
class Ascending:
    """The numbers of a tuple do not fall: a lowest and a highest one."""

    def __contains__(self, value: Any) -> bool:
        return all(one <= other for one, other in zip(value, value[1:], strict=False))


# Bounds of a number whose hint names none: wide enough for every use, narrow enough that sums and products stay finite.
INTEGERS, FLOATS = Range(least=-2**31 + 1, most=2**31 - 1), Range(least=-1e12, most=1e12)
Count = Annotated[int, Range(least=1, cap=10**9)]  # how many of something, of which there is one at the least
CountOrZero = Annotated[int, Range(least=0, cap=10**9)]
Size = Annotated[int, Range(least=1, cap=2**16)]  # of an axis: frames, pixels, heads
OddSize = Annotated[int, Range(least=1, odd=True, cap=2**16)]  # of a window or kernel with a centre
SizeOrZero = Annotated[int, Range(least=0, cap=2**16)]
Width = Annotated[int, Range(least=1, cap=2**20)]  # of an axis of weights: channels, classes, words
WidthOrZero = Annotated[int, Range(least=0, cap=2**20)]
Depth = Annotated[int, Range(least=1, cap=256)]  # layers one after another, each of which is traced
DepthOrZero = Annotated[int, Range(least=0, cap=256)]
Resamples = Annotated[int, Range(least=2, also=0, cap=10**9)]  # for an interval; 0: none
SamplingSteps = Annotated[int, Range(least=1, cap=10**5)]
Devices = Annotated[int, Range(least=1, also=-1, cap=2**20)]  # along an axis of a mesh; -1: what is left
Workers = Annotated[int, Range(least=0, cap=1024)]  # processes of one machine
Positive = Annotated[float, Range(above=0, cap=1e12)]
NonNegative = Annotated[float, Range(least=0, cap=1e12)]
Share = Annotated[float, Range(least=0, most=1)]
ShareAboveZero = Annotated[float, Range(above=0, most=1)]
BetweenZeroAndOne = Annotated[float, Range(above=0, below=1)]
ShareBelowOne = Annotated[float, Range(least=0, below=1)]
LogSNR = Annotated[float, Range(least=-80, most=80)]  # exp of these is a float32
LogNoise = Annotated[float, Range(least=-40, most=40)]  # logarithm of a standard deviation, or of a variance
Spread = Annotated[float, Range(least=0, cap=40)]  # standard deviation of such logarithms
SpreadAboveZero = Annotated[float, Range(above=0, cap=40)]
Offset = Annotated[float, Range(least=-1e6, most=1e6)]
Guidance = Annotated[float, Range(least=-1000, most=1000)]
Split = Literal["train", "validation", "test"]  # of a data set
SPLITS = typing.get_args(Split)
Seed = Annotated[int, Range(least=0, most=2**32 - 1)]  # of which JAX keys are made, one for one


@typing.dataclass_transform(kw_only_default=True, frozen_default=True)
def config(kind: type[T]) -> type[T]:
    """A frozen, keyword-only dataclass that checks every field by its hint when it is made, then its `__post_init__`.

    Hints say types, choices (`Literal`) and ranges (`Annotated[int, Range(least=1)]`). Numbers are finite. A value that
    does not fit raises `UserError` naming class, field, value and what is permitted, however it was given: in Python,
    as JSON or on a command line.
    """
    relations = getattr(kind, "__post_init__", None)

    def checked(self: Any) -> None:
        check_fields(self)
        if relations is not None:
            relations(self)

    kind.__post_init__ = checked
    return dataclasses.dataclass(frozen=True, kw_only=True)(kind)


def check_fields(value: Any, flags: bool = False) -> None:
    """Check the fields of a dataclass by their hints; `flags` names them as a command line does. Raises `UserError`."""
    kind = type(value)
    for name, hint in _hints(kind).items():
        code = f"{kind.__name__}.{name}"
        check_value(getattr(value, name), hint, f"--{name.replace('_', '-')}" if flags else code, code)


def check_value(value: Any, hint: Any, where: str, code: str | None = None) -> None:
    """Check a value by a type hint; hints of other things than data permit everything. Raises `UserError` with `code`,
    which is `where` unless given."""
    if not _fits(value, hint):
        element = _misfit(value, hint)
        raise _mismatch(where, value if element is None else element, permitted_by(hint, value), code)


def permitted_by(hint: Any, value: Any = None) -> str:
    """What a hint permits, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        ranges = [extra.permitted(value) for extra in arguments[1:] if isinstance(extra, Range)]
        lengths = [f", at least {extra.least}" for extra in arguments[1:] if isinstance(extra, Length)]
        orders = [", ascending" for extra in arguments[1:] if isinstance(extra, Ascending)]
        return (ranges[0] if ranges else permitted_by(arguments[0], value)) + "".join(lengths + orders)
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(permitted_by(member, value) for member in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"a tuple of {permitted_by(arguments[0])}"
        return f"({', '.join(map(permitted_by, arguments))})"
    if origin is Literal:
        return ", ".join(map(repr, arguments))
    if hint is types.NoneType:
        return "None"
    if hint is str:
        return "text without control characters"
    if hint in (int, float):
        what, bounds = ("a whole number", INTEGERS) if hint is int else ("a finite number", FLOATS)
        return f"{what} {bounds.permitted()}"
    return getattr(hint, "__name__", str(hint))


def _fits(value: Any, hint: Any, ranges: tuple[Range, ...] = ()) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return (_fits(value, arguments[0], tuple(extra for extra in arguments[1:] if isinstance(extra, Range)))
                and all(value in extra for extra in arguments[1:] if isinstance(extra, Length | Ascending)))
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, member, ranges) for member in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return len(hints) == len(value) and all(map(_fits, value, hints))
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if hint in (int, float):
        number = numbers.Integral if hint is int else numbers.Real
        if not isinstance(value, number) or isinstance(value, bool):
            return False
        return value - value == 0 and all(value in bound for bound in ranges or (INTEGERS if hint is int else FLOATS,))
    if hint is str:
        return isinstance(value, str) and not _CONTROL.search(value)
    if hint in (bool, types.NoneType) or dataclasses.is_dataclass(hint):
        return isinstance(value, hint)
    return True


def _misfit(value: Any, hint: Any) -> Any | None:
    """The element of a long tuple that does not fit."""
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and arguments[-1] is Ellipsis and isinstance(value, tuple) and len(value) > 1:
        return next((element for element in value if not _fits(element, arguments[0])), None)
    return None


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def to_data(value: Any) -> Any:
    """Plain JSON data of a config value: dataclasses become objects with their class name under `kind`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_data(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, tuple | list):
        return [to_data(v) for v in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 8.0 and 8 are equal configs, and so are their texts
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(f"config value {value!r} of type {type(value).__name__} is not data; permitted: dataclass, "
                    "tuple, str, int, float, bool, None")


def to_json(config: Any) -> str:
    """Indented JSON text of a config; equal configs give equal text."""
    return json.dumps(to_data(config), indent=1) + "\n"


def digest(config: Any) -> str:
    """Short SHA-256 of a config's values, to distinguish runs and caches of different configs."""
    text = json.dumps(to_data(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def from_json(kind: type[T], text: str, where: str = "config") -> T:
    """The config of type `kind` written by `to_json`. Raises `UserError` naming the first field that is off."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    return from_data(kind, data, where)


def from_data(hint: Any, data: Any, where: str = "config", code: str | None = None) -> Any:
    """Build a value of type hint `hint` from plain data, under today's names (`RENAMED`, `REMOVED`) and with
    the fields that came later (`ADDED`).

    `where` names the field in error messages, `code` in the `UserError` that is raised, in place of `where`.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    bare = arguments[0] if origin is Annotated else hint
    if bare is not hint and typing.get_args(bare):
        value = from_data(bare, data, where, code)
    elif origin in (typing.Union, types.UnionType):
        value = _from_union(hint, data, where, code)
    elif dataclasses.is_dataclass(hint):
        return _from_object(hint, data, where, code)
    elif origin is tuple:
        items = [arguments[0]] * len(data) if isinstance(data, list) and arguments[-1] is Ellipsis else arguments
        if not isinstance(data, list) or len(items) != len(data):
            raise _mismatch(where, data, "a list" if arguments[-1] is Ellipsis else f"a list of {len(items)}", code)
        return tuple(from_data(h, v, f"{where}[{i}]", code) for i, (h, v) in enumerate(zip(items, data, strict=True)))
    else:
        value = float(data) if bare is float and isinstance(data, int) and not isinstance(data, bool) else data
    check_value(value, hint, where, code)
    return value


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _from_object(kind: type, data: Any, where: str, code: str | None) -> Any:
    if not isinstance(data, dict):
        raise _mismatch(where, data, f"an object of kind {kind.__name__}", code)
    name = RENAMED.get(data.get("kind"), data.get("kind", kind.__name__))
    if name != kind.__name__:
        raise _mismatch(f"{where}.kind", name, kind.__name__, code)
    before = {field: ADDED[f"{kind.__name__}.{field}"] for field in _hints(kind) if f"{kind.__name__}.{field}" in ADDED}
    values = {}
    for key, value in (before | _todays(kind, data, where)).items():
        if key not in _hints(kind):
            close = difflib.get_close_matches(key, _hints(kind), n=1)
            meant = f" (did you mean {close[0]!r}?)" if close else ""
            raise UserError(f"{where}.{key} is not a field of {kind.__name__}{meant}; permitted: "
                            f"{', '.join(_hints(kind))}", f"{kind.__name__}.{key}")
        values[key] = from_data(_hints(kind)[key], value, f"{where}.{key}", f"{kind.__name__}.{key}")
    for field in dataclasses.fields(kind):
        if field.name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}.{field.name} is missing; permitted: {permitted_by(_hints(kind)[field.name])}",
                            f"{kind.__name__}.{field.name}")
    return kind(**values)


def _from_union(hint: Any, data: Any, where: str, code: str | None) -> Any:
    members = typing.get_args(hint)
    classes = {m.__name__: m for m in members if dataclasses.is_dataclass(m)}
    if isinstance(data, dict) and classes:
        name = RENAMED.get(data.get("kind"), data.get("kind"))
        if name not in classes:
            raise _mismatch(f"{where}.kind", name, ", ".join(classes), code)
        return _from_object(classes[name], data, where, code)
    for member in members:
        if not dataclasses.is_dataclass(member):
            with contextlib.suppress(UserError):
                return from_data(member, data, where, code)
    raise _mismatch(where, data, permitted_by(hint, data), code)


def _mismatch(where: str, value: Any, permitted: str, code: str | None) -> UserError:
    shown = repr(value)
    return UserError(f"{where}={shown if len(shown) < 80 else shown[:77] + '...'} is not valid; permitted: {permitted}",
                     code or where)


# ------------------------------------------------------------------------------------------------- names of before

# What has another name now. Stored configs of the names before are read under today's; command lines are refused with
# the name of today.
#   "OldClass": "NewClass"
#   "Class.old_field": "new_field", the class by its name of today; "not new_field" where true is false now
#   "Class.field='old'": "new", a choice; the field by its name of today
RENAMED: dict[str, str] = {
    # Samplers
    "Ancestral": "DDPM", "AncestralLangevin": "DDPMLangevin",
    # Conditioning frames and the masks of training
    "NothingKnown": "NoMask", "FramesKnown": "FrameMask", "BoxKnown": "BoxMask", "StillKnown": "CinemagraphMask",
    "Training.observations": "masking", "UNet.observed": "conditioning_frames",
    "Completion": "Inpainting", "Sampling.completion": "inpainting", "Sampling.guided_by='known'": "frames",
    "LatentNetwork.known": "frame_conditioning", "LatentNetwork.known_steps": "frame_noise_steps",
    "LatentNetwork.known_step": "frame_noise_step",
    # Cascades, windows, where training begins
    "TruncatedAugmentation": "TruncatedConditioningAugmentation", "Windows.at_once": "chunk",
    "Latent.seen_frames": "overlap_frames",
    "Start": "InitFrom", "StartFile": "InitFromFile", "Training.start": "init_from",
    "AutoencoderTraining.start": "init_from",
    # Attention and networks
    "External": "WithExtraKeys", "SelfAttention.bank": "extra_tokens",
    "UNet.spread": "sharded_axis", "LatentUNet.spread": "sharded_axis",
    "UNet.modulation='film'": "scale_shift",
    "Stack": "TemporalConv", "LatentUNet.stack": "temporal_conv", "LatentUNet.offsets": "max_relative_position",
    "LatentUNet.only_context": "only_cross_attention", "LatentUNet.context_channels": "token_channels",
    "LatentUNet.film": "scale_shift_norm",
    "LatentUNet.convolve_tokens": "not use_linear_projection", "LatentUNet.known_channels": "conditioning_channels",
}
# "Class.field": the value with which a field did nothing before it went. Other values are refused.
REMOVED: dict[str, Any] = {"AutoencoderLoss.adaptive": True, "TemporalConv.first_heads": 8}
# "Class.field": what objects stored before the field were made with, where its default is another now.
ADDED: dict[str, Any] = {"CaptionedDigits.digit_side": 20 / 64, "CaptionedDigits.track_draws": 1}


def _todays(kind: type, data: dict[str, Any], where: str) -> dict[str, Any]:
    """Fields of a stored object under today's names, without its `kind`. Raises `UserError` for two names of one field,
    and for what went."""
    found = {}
    for key, value in data.items():
        if key == "kind":
            continue
        before = f"{kind.__name__}.{key}"
        if before in REMOVED and key not in _hints(kind):
            if value != REMOVED[before]:
                raise UserError(f"{where}.{key}={value!r}: {before} is no more; permitted: {REMOVED[before]!r}", before)
            continue
        name = renamed_field(kind, key)
        if name.startswith("not "):
            name, value = name.removeprefix("not "), not value
        value = RENAMED.get(f"{kind.__name__}.{name}={value!r}", value) if isinstance(value, str) else value
        if name in found or (name != key and name in data):
            raise UserError(f"{where}.{key}={value!r}: {before} is {kind.__name__}.{name} now, which is given too; "
                            "permitted: one of them", before)
        found[name] = value
    return found


def todays_name(error: Exception) -> str | None:
    """Today's name of the class or field of before whose absence is the error, in Python."""
    absent = re.findall(r"'(\w+)'", str(error))
    return next((today for before, today in RENAMED.items() if before.rpartition(".")[2] in absent), None)


def renamed_field(kind: type, name: str) -> str:
    """Today's name of a field of a class (`not NAME` of one that is negated), which is its own unless it is an old one
    of `RENAMED`."""
    return RENAMED.get(f"{kind.__name__}.{name}", name) if name not in _hints(kind) else name
