"""The two exceptions a user is meant to read."""

from __future__ import annotations

import importlib.util
from typing import Any, get_args

PACKAGES = {"cv2": "OpenCV", "jinja2": "Jinja2", "skimage": "scikit-image", "sklearn": "scikit-learn"}  # by import name


class UserError(ValueError):
    """Bad input from outside: a config value, a file, a caption, a checkpoint.

    The message is one line that names the field, the value and what is permitted. Commands print it without a
    stack trace and leave with exit code 2; from Python it is an ordinary `ValueError`.
    """


class NotFinite(ArithmeticError):
    """NaN or infinity where a result belongs: videos, losses, scores. The message is one line: what, and where.

    Commands print it without a stack trace and leave with exit code 1: the input was good, the result is not.
    """


def require_package(what: str, module: str, extra: str, otherwise: str = "") -> None:
    """Raises `UserError` where a package is not installed, naming what needs it, the extra to install and what else is
    permitted. The package is not imported."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{what} needs {PACKAGES.get(module, module)}, which is not installed; permitted: pip install "
                        f"'vdm_jax[{extra}]'{otherwise}")


def unknown_kind(what: str, value: Any, kinds: Any) -> UserError:
    """The end of every choice by type: `value` is none of `kinds`, a union of types or a tuple of them."""
    names = ", ".join(kind.__name__ for kind in get_args(kinds) or kinds if kind is not type(None))
    return UserError(f"{what} of kind {type(value).__name__} is unknown; permitted: {names}")
