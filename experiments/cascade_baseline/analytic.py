"""Reconstruction guidance against replacement where the truth is known: Gaussian videos with their optimal denoiser.

A video is 16 frames of one pixel of a stationary process, so its distribution given any part of it is known exactly.
Both methods of `vdm_jax/diffusion/conditional.py` (Ho et al. 2022, arXiv 2204.03458, section 3.1) sample it given its
first frames, its first and last frame, means of pairs of frames, and block by block to 64 frames.

Run:   python -m experiments.cascade_baseline.analytic         writes results/analytic.json and README.md; a minute
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.readme_tables import insert
from vdm_jax.benchmark.machine import describe
from vdm_jax.benchmark.record import load, save
from vdm_jax.diffusion.conditional import low_resolution_error, masked_error, reconstruction_guided, replaced
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDPM
from vdm_jax.diffusion.sampling import sample
from vdm_jax.diffusion.schedules import CosineSchedule
from vdm_jax.versions import versions

HERE = Path(__file__).parent
RECORD = HERE / "results" / "analytic.json"
FRAMES, COUNT, STEPS = 16, 4000, 128
CORRELATION = 0.9  # of neighbouring frames; variance 0.5
WEIGHTS = (None, 1.0, 2.0, 5.0)  # None: replacement
PROCESS = Process(schedule=CosineSchedule())
EYE = np.eye(FRAMES)
TASKS = {  # rows of the linear map from the video to what is given
    "extension: 8 first frames given": EYE[:8],
    "interpolation: first and last frame known": EYE[[0, -1]],
    "super-resolution: means of pairs of frames known": np.kron(np.eye(FRAMES // 2), [[0.5, 0.5]]),
}


def covariance(frames: int) -> np.ndarray:
    """Of the process over some frames."""
    return 0.5 * CORRELATION ** np.abs(np.subtract.outer(np.arange(frames), np.arange(frames)))


def optimal_denoiser() -> Callable[[jax.Array, jax.Array], jax.Array]:
    """E[x | z] of 16 frames `[B, T, 1, 1, 1]`."""
    variances, vectors = np.linalg.eigh(covariance(FRAMES))

    def denoise(z: jax.Array, logsnr: jax.Array) -> jax.Array:
        alpha, sigma = (a[:, None] for a in PROCESS.schedule.alpha_sigma(logsnr))
        factor = alpha * variances / (alpha**2 * variances + sigma**2)
        return ((z.reshape(len(z), -1) @ vectors * factor) @ vectors.T).reshape(z.shape)

    return denoise


def sampled(matrix: np.ndarray, seen: jax.Array, weight: float | None, seed: int) -> np.ndarray:
    """Samples `[N, T]` given `matrix @ x = seen` `[N, M]`; frames known as they are are also replaced."""
    denoise = optimal_denoiser()
    frames = (matrix.max(1) == 1).all()
    mask = jnp.asarray(matrix.sum(0)).reshape(1, -1, 1, 1, 1)

    def run(keys: jax.Array, seen: jax.Array) -> jax.Array:
        shape, guided = (len(keys), FRAMES, 1, 1, 1), denoise
        known = (seen @ matrix).reshape(shape)
        if weight is not None:
            error = masked_error(known, mask) if frames else low_resolution_error(
                seen, lambda x: x.reshape(len(x), -1) @ matrix.T)
            guided = reconstruction_guided(denoise, [error], weight, PROCESS.schedule.family)
        guided = replaced(guided, known, mask) if frames else guided
        return sample(DDPM(), guided, keys, shape, PROCESS, STEPS)

    return np.asarray(jax.jit(run)(jax.random.split(jax.random.key(seed), len(seen)), seen)).reshape(len(seen), -1)


def errors(matrix: np.ndarray, weight: float | None) -> dict[str, float]:
    """Error of mean and covariance given something two deviations away, as a share of the truth (Frobenius norms)."""
    whole = covariance(FRAMES)
    scale = np.linalg.cholesky(matrix @ whole @ matrix.T)
    seen = scale @ np.where(np.arange(len(matrix)) == 0, 2.0, 0.0)
    gain = whole @ matrix.T @ np.linalg.inv(matrix @ whole @ matrix.T)
    mean, left = gain @ seen, whole - gain @ matrix @ whole
    x = sampled(matrix, jnp.broadcast_to(jnp.asarray(seen, jnp.float32), (COUNT, len(seen))), weight, seed=0)
    return {"mean": float(np.linalg.norm(x.mean(0) - mean) / np.linalg.norm(mean)),
            "covariance": float(np.linalg.norm(np.cov(x.T) - left) / np.linalg.norm(left))}


def extended(weight: float | None, frames: int = 64) -> dict[str, float]:
    """What 64 frames look like that were made in blocks which know 8 frames of the block before."""
    half = FRAMES // 2
    video = np.random.default_rng(0).multivariate_normal(np.zeros(FRAMES), covariance(FRAMES), COUNT)
    for block in range((frames - FRAMES) // half):
        x = sampled(EYE[:half], jnp.asarray(video[:, -half:], jnp.float32), weight, seed=block)
        video = np.concatenate([video, x[:, half:]], axis=1)
    steps = np.square(np.diff(video)).mean(0)  # mean squared change from frame to frame
    seams = np.arange(FRAMES - 1, frames - 1, half)
    expected = 2 * 0.5 * (1 - CORRELATION)
    return {"change at seams": float(steps[seams].mean() / expected),
            "change elsewhere": float(np.delete(steps, seams).mean() / expected),
            "variance at the end": float(video[:, -half:].var() / 0.5)}


def record() -> dict[str, Any]:
    """All rows, by method."""
    rows = {}
    for weight in WEIGHTS:
        name = "replacement" if weight is None else f"reconstruction guidance, weight {weight:g}"
        print(name, file=sys.stderr)
        tasks = {task: errors(matrix, weight) for task, matrix in TASKS.items()
                 if weight is not None or (matrix.max(1) == 1).all()}
        rows[name] = {"tasks": tasks, "64 frames": extended(weight)}
    return {"device": describe(jax.devices()[0], 1), "versions": versions(), "rows": rows, "protocol": {
        "data": f"{FRAMES} frames of a stationary Gaussian process, correlation {CORRELATION} of neighbours",
        "work": f"{COUNT} samples, ancestral, {STEPS} steps, optimal denoiser"}}


def table(rows: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| | " + " | ".join(f"{task}: error of mean, covariance" for task in TASKS) +
             " | 64 frames in blocks: squared change at seams, elsewhere, variance at the end (1 is right) |",
             "|---|" + "---:|" * (len(TASKS) + 1)]
    for name, row in rows.items():
        cells = [f"{row['tasks'][task]['mean']:.2f}, {row['tasks'][task]['covariance']:.2f}" if task in row["tasks"]
                 else "not possible" for task in TASKS]
        lines.append(f"| {name} | " + " | ".join(cells) + " | " +
                     ", ".join(f"{value:.2f}" for value in row["64 frames"].values()) + " |")
    return "\n".join(lines)


def main() -> int:
    """Record and report."""
    RECORD.parent.mkdir(exist_ok=True)
    save(RECORD, record())
    readme = HERE / "README.md"
    readme.write_text(insert(readme.read_text(), "analytic", table(load(RECORD)["rows"])))
    print(readme)
    return 0


if __name__ == "__main__":
    sys.exit(main())
