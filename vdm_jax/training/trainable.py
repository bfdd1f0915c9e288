"""Which parameters a stage trains: all of them, or those whose paths match patterns, the others staying as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax

from vdm_jax.errors import UserError
from vdm_jax.parallel.rules import path_name


def split(params: Any, patterns: Sequence[str]) -> tuple[Any, Any]:
    """`(trained, frozen)` parts of nested dicts of parameters.

    A parameter is trained if a regular expression of `patterns` is found in its path, which is written like
    `/down_0_0/residual/conv_in/kernel`; without patterns all are. Raises `UserError` for a pattern that is found in
    none.
    """
    if not patterns:
        return params, {}
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise UserError(f"Training.trainable has {pattern!r}, which no parameter matches; permitted: regular "
                            f"expressions found in paths such as {', '.join(names[:: max(len(names) // 4, 1)][:5])}")
    return _part(params, patterns, True), _part(params, patterns, False)


def merged(trained: Any, frozen: Any) -> Any:
    """The parameters whose two parts `split` gave."""
    both = {name: merged(trained[name], frozen[name]) for name in trained if name in frozen}
    return {**frozen, **trained, **both}


def _part(params: Any, patterns: Sequence[str], wanted: bool, where: str = "") -> Any:
    found = {}
    for name, value in params.items():
        path = f"{where}/{name}"
        if hasattr(value, "items"):
            if inner := _part(value, patterns, wanted, path):
                found[name] = inner
        elif any(re.search(pattern, path) for pattern in patterns) == wanted:
            found[name] = value
    return found
