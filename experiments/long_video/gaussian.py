"""How far each way of making a long video is from the exact one, where that is known: Gaussian videos.

A video is one pixel of a Gaussian process. A stage that is perfect draws each segment of a plan
(`vdm_jax/generation/long_video/plan.py`) from its exact distribution given the frames that the plan gives it. What a
plan then gets wrong is what its segments do not see. The joint distribution is Gaussian too, and its distance from the
exact one has a closed form.

Run:   python -m experiments.long_video.gaussian         writes results/gaussian.json and README.md; a minute
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.readme_tables import insert
from vdm_jax.benchmark.record import save
from vdm_jax.generation.long_video.plan import Autoregressive, Method, NuwaXL
from vdm_jax.versions import versions

HERE = Path(__file__).parent
RECORD = HERE / "results" / "gaussian.json"
SIZE = 16  # frames of a clip
LENGTHS = (16, 226, 3376)
METHODS: dict[str, Method] = {
    "autoregressive, 1 frame given": Autoregressive(overlap=1),
    "autoregressive, 8 frames given": Autoregressive(overlap=8),
    "autoregressive, 15 frames given": Autoregressive(overlap=15),
    "NUWA-XL": NuwaXL()}


def memoryless(distance: np.ndarray) -> np.ndarray:
    """Correlation over time of a process that one frame says all of."""
    return 0.95 ** distance


def lasting(distance: np.ndarray) -> np.ndarray:
    """Of one with a part that never changes (an identity), a slow part, a fast one, and noise of each frame."""
    return 0.3 + 0.4 * 0.995 ** distance + 0.25 * 0.8 ** distance + 0.05 * (distance == 0)


PROCESSES = {"memoryless": memoryless, "lasting": lasting}


def covariance(process: Any, frames: int) -> Float[np.ndarray, "N N"]:
    """Of all frames, exactly."""
    number = np.arange(frames)
    return process(np.abs(number[:, None] - number).astype(float))


def joint(method: Method, exact: Float[np.ndarray, "N N"], size: int = SIZE) -> tuple[np.ndarray, float]:
    """The covariance of what a method makes, and its divergence KL(exact || made), nats.

    The segments' conditional distributions are the exact ones, so the divergence is the information about a segment
    that earlier frames hold and the given ones do not: half of `sum log det S - log det C`, with S the covariances of
    the segments given what is given.
    """
    frames = len(exact)
    made, logdet, done = np.zeros_like(exact), 0.0, np.zeros(0, int)
    for segment in (segment for round_ in method.rounds(frames, size) for segment in round_):
        given = np.array([segment.frames[i] for i in segment.given], int)
        new = np.array([n for n in segment.frames if n < frames and n not in set(given.tolist())], int)
        weights = np.linalg.solve(exact[np.ix_(given, given)], exact[np.ix_(given, new)]).T
        noise = exact[np.ix_(new, new)] - weights @ exact[np.ix_(given, new)]
        logdet += np.linalg.slogdet(noise)[1]
        made[np.ix_(new, done)] = weights @ made[np.ix_(given, done)]
        made[np.ix_(done, new)] = made[np.ix_(new, done)].T
        made[np.ix_(new, new)] = weights @ made[np.ix_(given, given)] @ weights.T + noise
        done = np.concatenate([done, new])
    return made, 0.5 * (logdet - np.linalg.slogdet(exact)[1])


def measure() -> list[dict[str, Any]]:
    """A row for each process, length and method."""
    rows = []
    for process, correlation in PROCESSES.items():
        for frames in LENGTHS:
            exact = covariance(correlation, frames)
            for name, method in METHODS.items():
                made, divergence = joint(method, exact)
                rows.append({"process": process, "frames": frames, "method": name,
                             "nats per frame": divergence / frames, "first and last frame": made[0, -1],
                             "exactly": exact[0, -1], "two apart": float(np.diag(made, 2).min()),
                             "two apart exactly": exact[0, 2]})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| process | frames | method | KL, nats per frame | correlation of first and last frame | exactly "
             "| least correlation two frames apart | exactly |", "|---|---:|---|---:|---:|---:|---:|---:|"]
    lines += [f"| {row['process']} | {row['frames']} | {row['method']} | {abs(row['nats per frame']):.4f} | "
              f"{row['first and last frame']:.3f} | {row['exactly']:.3f} | {row['two apart']:.3f} | "
              f"{row['two apart exactly']:.3f} |" for row in rows if row["frames"] > SIZE]
    return "\n".join(lines)


def main() -> None:
    """Measure, record and write the table."""
    rows = measure()
    RECORD.parent.mkdir(exist_ok=True)
    save(RECORD, {"versions": versions(), "rows": rows})
    readme = HERE / "README.md"
    readme.write_text(insert(readme.read_text(), "gaussian", table(rows)))


if __name__ == "__main__":
    main()
