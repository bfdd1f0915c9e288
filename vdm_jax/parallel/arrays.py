"""From host arrays to arrays on the mesh."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from vdm_jax.parallel.rules import batch_sharding


def process_rows(size: int, mesh: Mesh) -> Int[np.ndarray, " R"]:
    """The rows of a batch of `size` rows that the devices of this process hold, in ascending order.

    Processes hold the same rows where the mesh splits one clip over them, so these are not `size / processes` rows.
    """
    places = batch_sharding(mesh).addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[rows] for (rows,) in places]))


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh, size: int | None = None) -> dict[str, Any]:
    """Each process's rows of a batch as global arrays split along the first axis.

    Args:
      batch: arrays `[R, ...]`, row r of which is row `process_rows(size, mesh)[r]` of the global batch.
      mesh: over the devices of all processes.
      size: rows of the global batch; None where this process has all of them.
    """
    sharding = batch_sharding(mesh)

    def place(values: np.ndarray) -> jax.Array:
        total = len(values) if size is None else size
        rows = np.arange(total) if size is None else process_rows(total, mesh)
        if len(values) != len(rows):
            raise ValueError(f"{len(values)} rows where the devices of this process hold {len(rows)} of {total}")

        def part(index: tuple[slice, ...]) -> np.ndarray:
            first, last, _ = index[0].indices(total)
            start, stop = np.searchsorted(rows, (first, last))
            return values[start:stop]

        return jax.make_array_from_callback((total, *values.shape[1:]), sharding, part)

    return {name: place(np.asarray(values)) for name, values in batch.items()}
