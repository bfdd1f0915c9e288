"""What FVD measures and what it misses, on real clips: noise, blur, frozen and shuffled frames, next to the metrics
that are always reported with it; and how FVD depends on the number of clips.

Run:  python -m experiments.metrics.run --clips FOLDER      (README.md says what to put there)

Features are kept in --work, so an interrupted run goes on; results/cpu.json is the record.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from experiments.metrics.clips import DISTORTIONS, NOTHING, Clips, RealClips
from vdm_jax.benchmark.machine import describe, versions
from vdm_jax.benchmark.record import open_record, save
from vdm_jax.metrics.detectors import weights
from vdm_jax.metrics.frechet import Moments, frechet_distance
from vdm_jax.metrics.fvd import i3d_features
from vdm_jax.metrics.fvd_protocols import find_protocol
from vdm_jax.metrics.measures import MEASURES
from vdm_jax.video.writing import atomic_path

FOLDER = Path(__file__).parent
BESIDE = ("motion", "frame_lpips", "warp_error", "frame_consistency")  # measured of every set
SIZES = (8, 16, 32, 48, 64, 96, 128, 256)  # clips a side
DRAWS = 5  # of the clips of a size


@dataclasses.dataclass(frozen=True)
class Run:
    """Measure what FVD measures of distorted real clips, and how it depends on the number of clips."""

    clips: Path  # folder with the films
    work: Path = Path("runs/metrics_experiment")  # where features are kept
    out: Path = FOLDER / "results" / "cpu.json"
    count: int = 192  # clips, the second half of them the reference
    distorted: int = 16  # of the first half, that are distorted
    fresh: bool = False  # forget the record


def main() -> None:
    """Entry of the script."""
    options = tyro.cli(Run)
    clips, half, few = RealClips(options.clips), options.count // 2, options.distorted
    protocol = find_protocol("original")
    record = open_record(options.out, fresh=options.fresh, about={
        "device": describe(jax.devices()[0], 1), "versions": versions(),
        "protocol": {"clips": clips.about | {"clips": options.count}, "reference clips": half, "distorted clips": few,
                     "fvd": f"{protocol.name}: {protocol.source}; {protocol.resize}, covariance {protocol.divisor}",
                     "detectors": {file.name: file.sha256 for file in (weights.I3D, weights.ALEXNET)}}})
    options.work.mkdir(parents=True, exist_ok=True)
    pool = features("real", lambda part: clips[part], options.count, options.work)
    for name, distort in DISTORTIONS.items():
        if name not in record["rows"]:
            found = distort(clips[0:few])
            seen = pool[:few] if name == NOTHING else features(name, lambda part, all=found: all[part], few,
                                                               options.work)
            record["rows"][name] = row(found, seen, pool[half:], pool[:few])
            save(options.out, record)
        print(name, record["rows"][name], flush=True)
    if "sample_count" not in record:
        record["sample_count"] = sample_counts(pool)
        save(options.out, record)


def row(found: Clips, seen: np.ndarray, reference: np.ndarray, clean: np.ndarray) -> dict[str, Any]:
    """All metrics of one set of clips; `seen`, `reference` and `clean` are features."""
    return {"fvd": distance(reference, seen), "fvd_to_the_same_clips": distance(clean, seen),
            **{metric: spread(MEASURES[metric].values, found) for metric in BESIDE}}


def spread(measure: Callable[[Clips], np.ndarray], clips: Clips) -> dict[str, float]:
    """Mean of a measure over clips and the 95 % margin of that mean."""
    values = measure(clips)
    return {"mean": float(values.mean()), "margin": float(1.96 * values.std(ddof=1) / len(values) ** 0.5)}


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """FVD of two sets of features."""
    return frechet_distance(Moments.of(one), Moments.of(other))


def sample_counts(pool: np.ndarray) -> dict[str, Any]:
    """FVD of two sets of real clips that share none, drawn again and again: what is not 0 is bias."""
    found = {}
    for size in SIZES:
        if 2 * size > len(pool):
            continue
        draws = []
        for seed in range(DRAWS):
            order = np.random.default_rng([3, size, seed]).permutation(len(pool))
            draws.append(distance(pool[order[:size]], pool[order[size : 2 * size]]))
        found[str(size)] = {"mean": float(np.mean(draws)), "deviation": float(np.std(draws, ddof=1)), "draws": DRAWS}
    return found


def features(name: str, clips: Callable[[slice], Clips], count: int, work: Path) -> np.ndarray:
    """I3D features of the first `count` clips, 16 clips at a time, each part kept."""
    parts = []
    for start in range(0, count, 16):
        stop = min(start + 16, count)
        path = work / f"{name.replace(' ', '_')}-{start:04d}-{stop:04d}.npy"
        if not path.exists():
            part = i3d_features(clips(slice(start, stop)), find_protocol("original").resize)
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                np.save(file, part)
            print(f"features: {name}, {stop} of {count}", flush=True)
        parts.append(np.load(path, allow_pickle=False))
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
