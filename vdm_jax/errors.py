"""The two exceptions a user is meant to read."""

from __future__ import annotations

import re
import sys
from typing import Any, get_args


class UserError(ValueError):
    """Bad input from outside: a config value, a file, a caption, a checkpoint.

    The message is one line that names the field, the value and what is permitted. Commands print it without a
    stack trace and leave with exit code 2; from Python it is an ordinary `ValueError`.

    `code` says what was refused, whatever the words: the path of the field with which the message begins
    ("UNet.levels", "Stage.video.frames" of "Stage 'base': video.frames=3 ..."), or else the function that refuses
    ("data.captions.read_captions"). A function that refuses several things of no field gives codes of its own.
    """

    def __init__(self, message: str, code: str | None = None):
        super().__init__(message)
        if code is None:
            code = field_of(message)
        if code is None:
            caller = sys._getframe(1)
            name = re.sub(r"\.<\w+>", "", caller.f_code.co_qualname)
            code = f"{caller.f_globals['__name__']}.{name}".removeprefix("vdm_jax.")
        self.code = code


class NotFinite(ArithmeticError):
    """NaN or infinity where a result belongs: videos, losses, scores. The message is one line: what, and where.

    Commands print it without a stack trace and leave with exit code 1: the input was good, the result is not.
    """


_PATH = r"[A-Za-z_]\w*(?:\[\w+\])?(?:\.[A-Za-z_]\w*(?:\[\w+\])?)*"
_FIELD = re.compile(rf"""
      (?P<owner>[A-Z]\w+)\ '[^']*':\ (?P<of>{_PATH})(?=[= ])        # Stage 'base': video.frames=3 ...
    | (?P<relation>[A-Z]\w*[a-z]\w*)(?=\(\w+=|:\ \w+=)              # Windows(frames=4, ...; LatentUNet: temporal=...
    | (?P<name>--[\w.-]+(?==)|{_PATH}(?==))                         # UNet.levels=(), frames=3, --frames=3
    """, re.VERBOSE)


def field_of(message: str) -> str | None:
    """The path of the field with which a message begins."""
    found = _FIELD.match(message)
    if found is None:
        return None
    path = f"{found['owner']}.{found['of']}" if found["owner"] else found["relation"] or found["name"]
    return re.sub(r"\[\w+\]", "", path)


def unknown_kind(what: str, value: Any, kinds: Any) -> UserError:
    """The end of every choice by type: `value` is none of `kinds`, a union of types or a tuple of them."""
    names = ", ".join(kind.__name__ for kind in get_args(kinds) or kinds if kind is not type(None))
    return UserError(f"{what} of kind {type(value).__name__} is unknown; permitted: {names}", code="kind")
