"""What the arrays of a tree are, as text, and how two trees differ.

The signatures of a tree are a flat dict from the name of each leaf to its dtype and shape, such as
`{'down/kernel': 'float32[3,3,64]'}`. They can be stored as JSON and shown to people.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util


def signatures(tree: Any) -> dict[str, str]:
    """Name -> dtype and shape of every leaf of a pytree of (abstract) arrays, typed PRNG keys included."""
    return {jax.tree_util.keystr(path, simple=True, separator="/"):
            f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def abstract_dict(described: Mapping[str, str]) -> dict[str, Any]:
    """The inverse of `signatures` for nested dicts of numbers: leaves are `jax.ShapeDtypeStruct`s."""
    return traverse_util.unflatten_dict({name: _abstract(text) for name, text in described.items()}, sep="/")


def _abstract(text: str) -> jax.ShapeDtypeStruct:
    dtype, shape = text.rstrip("]").split("[")
    return jax.ShapeDtypeStruct([int(size) for size in shape.split(",") if size], jax.numpy.dtype(dtype))


def mismatch(found: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """How two signatures differ, on one line that names up to three leaves of each kind; '' if they are equal."""
    problems = {
        "missing": sorted(set(wanted) - set(found)),
        "unexpected": sorted(set(found) - set(wanted)),
        "different": [f"{name} ({found[name]} instead of {text})"
                      for name, text in sorted(wanted.items()) if found.get(name, text) != text],
    }
    return "; ".join(f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
                     for kind, names in problems.items() if names)
