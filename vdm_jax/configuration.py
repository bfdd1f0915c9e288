"""Configs as JSON: frozen dataclasses out to plain data and back, checked field by field.

A config is data. It is written next to every run and read back without executing anything: a union member is told
apart by its class name under the key `kind`, and only classes that the type hints permit are ever built.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import types
import typing
from typing import Any, Literal, TypeVar

from vdm_jax.errors import UserError

T = TypeVar("T")


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
    """Short SHA-256 of a config's values, to tell runs and caches of different configs apart."""
    text = json.dumps(to_data(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def from_json(kind: type[T], text: str, where: str = "config") -> T:
    """The config of type `kind` written by `to_json`. Raises `UserError` naming the first field that is off."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    return from_data(kind, data, where)


def from_data(hint: Any, data: Any, where: str = "config") -> Any:
    """Build a value of type hint `hint` from plain data; `where` names the field in error messages."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _from_union(arguments, data, where)
    if dataclasses.is_dataclass(hint):
        return _from_object(hint, data, where)
    if origin is tuple:
        if not isinstance(data, list):
            raise _mismatch(where, data, "a list")
        items = [arguments[0]] * len(data) if arguments[-1] is Ellipsis else arguments
        if len(items) != len(data):
            raise _mismatch(where, data, f"a list of {len(items)}")
        return tuple(from_data(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(items, data, strict=True)))
    if origin is Literal:
        if data not in arguments:
            raise _mismatch(where, data, ", ".join(repr(a) for a in arguments))
        return data
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if hint is type(None):
        hint = types.NoneType
    if not isinstance(data, hint) or (isinstance(data, bool) and hint is not bool):
        raise _mismatch(where, data, getattr(hint, "__name__", str(hint)))
    return data


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _from_object(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise _mismatch(where, data, f"an object of kind {kind.__name__}")
    name = data.get("kind", kind.__name__)
    if name != kind.__name__:
        raise _mismatch(f"{where}.kind", name, kind.__name__)
    names = [f.name for f in dataclasses.fields(kind)]
    for key in data:
        if key != "kind" and key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise UserError(f"{where}.{key} is not a field of {kind.__name__}{hint}; permitted: {', '.join(names)}")
    values = {key: from_data(_hints(kind)[key], v, f"{where}.{key}") for key, v in data.items() if key != "kind"}
    try:
        return kind(**values)
    except TypeError as error:
        raise UserError(f"{where}: {error}") from error


def _from_union(members: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in members:
        return None
    classes = {m.__name__: m for m in members if dataclasses.is_dataclass(m)}
    if isinstance(data, dict) and classes:
        name = data.get("kind")
        if name not in classes:
            raise _mismatch(f"{where}.kind", name, ", ".join(classes))
        return _from_object(classes[name], data, where)
    for member in members:
        if dataclasses.is_dataclass(member) or member is type(None):
            continue
        try:
            return from_data(member, data, where)
        except UserError:
            continue
    raise _mismatch(where, data, " | ".join(getattr(m, "__name__", str(m)) for m in members))


def _mismatch(where: str, value: Any, permitted: str) -> UserError:
    shown = repr(value)
    return UserError(f"{where}={shown if len(shown) < 80 else shown[:77] + '...'} is not valid; permitted: {permitted}")
