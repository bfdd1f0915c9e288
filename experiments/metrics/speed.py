"""How many clips a second I3D takes, ours next to the same network in PyTorch, in turns in one process.

Run:  python -m experiments.metrics.speed       (needs the extra [metrics] and requirements/peers.txt)

Both have the batch norms folded into the convolutions and see the same 16-frame clips at 224x224, float32. Machines are
shared, so each pair of turns gives a ratio, and the median of the ratios counts; CPU seconds stand next to wall
seconds.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from experiments.metrics.torch_i3d import torch_i3d
from vdm_jax.benchmark.machine import describe, versions
from vdm_jax.benchmark.record import save
from vdm_jax.metrics.detectors import i3d, weights

FOLDER = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Speed:
    """Measure I3D next to PyTorch."""

    batch: int = 4  # clips at a time
    pairs: int = 5  # turns of each
    out: Path = FOLDER / "results" / "speed_cpu.json"


def main() -> None:
    """Entry of the script."""
    import torch

    options = tyro.cli(Speed)
    torch.set_num_threads(os.cpu_count() or 1)
    params = i3d.parameters()
    clips = np.random.default_rng(0).uniform(-1, 1, (options.batch, 16, i3d.SIDE, i3d.SIDE, 3)).astype(np.float32)
    apply = jax.jit(lambda x: i3d.I3D().apply({"params": params}, x))
    network, theirs = torch_i3d(params), torch.tensor(clips).permute(0, 4, 1, 2, 3).contiguous()

    def ours() -> np.ndarray:
        return np.asarray(apply(clips))

    def peers() -> np.ndarray:
        with torch.inference_mode():
            return network(theirs).numpy()

    apart = float(np.abs(ours() - peers()).max())  # compiles, too
    rows = [{"vdm_jax": timed(ours), "torch": timed(peers)} for _ in range(options.pairs)]
    record = {
        "device": describe(jax.devices()[0], 1),
        "versions": versions() | {"torch": importlib.metadata.version("torch")},
        "protocol": {"clips": f"{options.batch} of 16 frames at {i3d.SIDE}x{i3d.SIDE}, float32",
                     "pairs": f"{options.pairs}, in turns, in one process", "threads": f"{os.cpu_count()} each",
                     "detector": f"{weights.I3D.name} (SHA-256 {weights.I3D.sha256})",
                     "machine": "shared with other processes while this was measured", "GPU": "not measured"},
        "rows": {"pairs": rows, "largest difference of logits": apart, **summary(rows, options.batch)}}
    save(options.out, record)
    print(record["rows"])


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Wall and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def summary(rows: list[dict[str, dict[str, float]]], batch: int) -> dict[str, Any]:
    """Medians: clips a second by wall and by CPU seconds, and how many times faster ours is."""
    found: dict[str, Any] = {}
    for clock in ("wall", "cpu"):
        for side in ("vdm_jax", "torch"):
            found[f"{side}, clips per {clock} second"] = batch / statistics.median(row[side][clock] for row in rows)
        found[f"ratio, {clock}"] = statistics.median(row["torch"][clock] / row["vdm_jax"][clock] for row in rows)
    return found


if __name__ == "__main__":
    main()
