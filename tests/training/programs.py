"""Programs of the training loop, traced once for all runs of a stage: tracing them costs more than a tiny run does.

A run that resumes then gets the program that a fresh one was compiled for, which takes no state of other shapes, dtypes
or shardings than that one had.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

from vdm_jax.training import loop, step

train_step = functools.cache(step.compile_train_step)
validation = functools.cache(step.compile_validation)


def share(patch: pytest.MonkeyPatch) -> None:
    """Let the loop take the programs of runs before."""
    patch.setattr(loop, "compile_train_step", train_step)
    patch.setattr(loop, "compile_validation", validation)


def leave_out_pictures(patch: pytest.MonkeyPatch) -> None:
    """Let the loop generate nothing for its sample grids, which are black."""
    patch.setattr(loop.SampleGrids, "write", lambda self, params, step: np.zeros((4, 4, 3), np.uint8))
