"""Streams of random numbers by what they are for, so that no two of one seed are the same.

A name stands for a number above all that count samples, steps or stages: `jax.random.split(key)[i]` is
`fold_in(key, i)`, and a key folded with a small number may be another's part.
"""

from __future__ import annotations

import zlib

import jax
import numpy as np
from jaxtyping import PRNGKeyArray


def key_for(seed: int, purpose: str) -> PRNGKeyArray:
    """The key of a seed for a purpose, such as "validation"."""
    return jax.random.fold_in(jax.random.key(seed), _number(purpose))


def generator_for(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """NumPy's generator of a seed for a purpose, and for numbers of clips or the like (up to two).

    The purpose comes last, since zeros at the end do not count: the seeds [s, 2] and [s, 2, 0] are one.
    """
    return np.random.default_rng([seed, *numbers, _number(purpose)])


def _number(purpose: str) -> int:
    return zlib.crc32(purpose.encode()) | 1 << 31
