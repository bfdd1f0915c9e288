"""What FVD hears and what it does not, on real clips: noise, blur, frozen and shuffled frames, beside the metrics that
are always reported with it; and how FVD depends on the number of clips.

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

from experiments.metrics.clips import DISTORTIONS, NOTHING, Clips, real_clips
from vdm_jax.benchmark.machine import describe, versions
from vdm_jax.benchmark.record import open_record, save
from vdm_jax.evaluation.detectors import weights
from vdm_jax.evaluation.frechet import Moments, frechet_distance
from vdm_jax.evaluation.fvd import i3d_features
from vdm_jax.evaluation.fvd_protocols import find_protocol
from vdm_jax.evaluation.run_metrics import MEASURES
from vdm_jax.video.writing import atomic_path

FOLDER = Path(__file__).parent
BESIDE = ("motion", "frame_lpips", "warp_error", "frame_consistency")  # measured of every set
SIZES = (8, 16, 32, 48, 64, 96, 128, 256)  # clips a side
DRAWS = 10  # of the clips of a size


@dataclasses.dataclass(frozen=True)
class Run:
    """Measure what FVD hears of distorted real clips, and how it depends on the number of clips."""

    clips: Path  # folder with the films
    work: Path = Path("runs/metrics_experiment")  # where features are kept
    out: Path = FOLDER / "results" / "cpu.json"
    count: int = 192  # clips, half of them the reference
    distorted: int = 32  # of the other half, that are distorted
    fresh: bool = False  # forget the record


def main() -> None:
    """Entry of the script."""
    options = tyro.cli(Run)
    clips, about = real_clips(options.clips, options.count)
    half = options.count // 2
    reference, others = clips[:half], clips[half:]
    protocol = find_protocol("original")
    record = open_record(options.out, fresh=options.fresh, about={
        "device": describe(jax.devices()[0], 1), "versions": versions(),
        "protocol": {"clips": about, "reference clips": half, "distorted clips": options.distorted,
                     "fvd": f"{protocol.name}: {protocol.source}; {protocol.resize}, covariance {protocol.divisor}",
                     "detectors": {file.name: file.sha256 for file in (weights.I3D, weights.ALEXNET)}}})
    options.work.mkdir(parents=True, exist_ok=True)
    base = features("reference", reference, options.work)
    rest = features("others", others, options.work)
    record["sample_count"] = sample_counts(np.concatenate([base, rest]))
    save(options.out, record)
    for name, distort in DISTORTIONS.items():
        if name not in record["rows"]:
            found, clean = distort(others[: options.distorted]), rest[: options.distorted]
            seen = clean if name == NOTHING else features(name, found, options.work)
            record["rows"][name] = row(found, seen, base, clean)
            save(options.out, record)
        print(name, record["rows"][name], flush=True)


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


def features(name: str, clips: Clips, work: Path) -> np.ndarray:
    """I3D features, 16 clips at a time, each part kept."""
    parts = []
    for start in range(0, len(clips), 16):
        path = work / f"{name.replace(' ', '_')}-{start:04d}.npy"
        if not path.exists():
            part = i3d_features(clips[start : start + 16], find_protocol("original").resize)
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                np.save(file, part)
            print(f"features: {name}, {min(start + 16, len(clips))} of {len(clips)}", flush=True)
        parts.append(np.load(path, allow_pickle=False))
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
