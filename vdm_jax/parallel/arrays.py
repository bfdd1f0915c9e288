"""From host arrays to arrays on the mesh."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vdm_jax.parallel.rules import batch_sharding


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Each process's rows of a batch as global arrays split along the first axis."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
