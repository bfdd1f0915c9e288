"""A detector applied to many clips: batch by batch, each batch split over the devices of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vdm_jax.configuration import Count, check_value
from vdm_jax.errors import UserError


def detector_devices() -> tuple[jax.Device, ...]:
    """All accelerators of this process; one CPU, since the first one's threads use all cores already."""
    devices = jax.local_devices()
    return tuple(devices[:1] if devices[0].platform == "cpu" else devices)


class Extractor:
    """A network with its weights on devices. What it gives for an item depends on neither the batch size nor the number
    of devices, but for the order of float32 sums.

    Args:
      apply: (params, batch `[B, ...]`) to features `[B, ...]`, or a tuple of such; compiled here.
      params: its weights; every device has a copy.
      batch_size: items at a time on each device.
      devices: `detector_devices()` by default.
    """

    def __init__(self, apply: Callable[[Any, jax.Array], Any], params: Any, batch_size: int,
                 devices: Sequence[jax.Device] | None = None):
        check_value(batch_size, Count, "batch_size")
        devices = detector_devices() if devices is None else tuple(devices)
        mesh = Mesh(np.array(devices), ("batch",))
        self.rows, self._devices = batch_size * len(devices), len(devices)
        self._compiled: set[int] = set()  # numbers of rows
        self._split = NamedSharding(mesh, PartitionSpec("batch"))
        self._params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        self._apply = jax.jit(apply)

    def __call__(self, items: Iterable[np.ndarray], progress: Callable[[int], None] = lambda done: None) -> Any:
        """Features of all items, `[N, ...]` on the host. The last batch is filled up, and no item is dropped.

        `progress` is called with the number of items done. Raises `UserError` for no items, and for items of different
        shapes.
        """
        done, batch, shape = [], [], None
        for item in items:
            shape = shape or item.shape
            if item.shape != shape:
                raise UserError(f"items of shapes {list(shape)} and {list(item.shape)}; permitted: one shape")
            batch.append(item)
            if len(batch) == self.rows:
                done.append(self._run(batch))
                batch = []
                progress(len(done) * self.rows)
        if batch:
            done.append(self._run(batch))
            progress((len(done) - 1) * self.rows + len(batch))
        if not done:
            raise UserError("no clips to take features of; permitted: one or more")
        return jax.tree.map(lambda *parts: np.concatenate(parts), *done)

    def _run(self, batch: list[np.ndarray]) -> Any:
        # A batch that is not full takes a program that is there already, or one for no more rows than it needs.
        needed = -(-len(batch) // self._devices) * self._devices
        rows = min((rows for rows in self._compiled if rows >= needed), default=needed)
        self._compiled.add(rows)
        filled = np.stack([*batch, *batch[-1:] * (rows - len(batch))])
        found = self._apply(self._params, jax.device_put(filled, self._split))
        return jax.tree.map(lambda part: np.asarray(part)[: len(batch)], found)
