"""The two exceptions a user is meant to read."""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from typing import Any, get_args

PACKAGES = {"cv2": "OpenCV", "jinja2": "Jinja2", "skimage": "scikit-image", "sklearn": "scikit-learn"}  # by import name


class UserError(ValueError):
    """Bad input from outside: a config value, a file, a caption, a checkpoint.

    The message is one line that names the field, the value and what is permitted. Commands print it without a
    stack trace and leave with exit code 2; from Python it is an ordinary `ValueError`.

    `code` says what was refused, whatever the words: the path of the field with which the message begins
    ("UNet.levels", "Stage.video.frames" of "Stage 'base': video.frames=3 ..."), the class whose fields do not go
    together ("Windows"), or else the function that refuses ("captions.read_text"). One that refuses several things of
    no field gives codes of its own.
    """

    def __init__(self, message: str, code: str | None = None):
        super().__init__(message)
        if code is None:
            code = field_of(message)
        if code is None:
            code = _refuser(sys._getframe(1).f_code, sys._getframe(1).f_globals["__name__"])
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


def _refuser(function: types.CodeType, module: str) -> str:
    """File and function, of a class that checks its fields its name alone."""
    name = re.sub(r"\.<\w+>", "", function.co_qualname)
    owner, _, last = name.rpartition(".")
    return owner if last == "__post_init__" else f"{module.rpartition('.')[2]}.{name}"


def field_of(message: str) -> str | None:
    """The path of the field with which a message begins."""
    found = _FIELD.match(message)
    if found is None:
        return None
    path = f"{found['owner']}.{found['of']}" if found["owner"] else found["relation"] or found["name"]
    return re.sub(r"\[\w+\]", "", path)


def require_package(what: str, module: str, extra: str, otherwise: str = "") -> None:
    """Raises `UserError` where a package is not installed, naming what needs it, the extra to install and what else is
    permitted. The package is not imported."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{what} needs {PACKAGES.get(module, module)}, which is not installed; permitted: pip install "
                        f"'vdm_jax[{extra}]'{otherwise}", code="package")


def unknown_kind(what: str, value: Any, kinds: Any) -> UserError:
    """The end of every choice by type: `value` is none of `kinds`, a union of types or a tuple of them."""
    names = ", ".join(kind.__name__ for kind in get_args(kinds) or kinds if kind is not type(None))
    return UserError(f"{what} of kind {type(value).__name__} is unknown; permitted: {names}", code="kind")
