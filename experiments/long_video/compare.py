"""Hierarchy against autoregression on stories of digits: one network, every plan, scores by block and length.

Needs a run of `configs/nuwa_xl/digits.py`, whose network was trained with first and last frame, the first frame, or
nothing given, so that it serves every plan.

Run:   python -m experiments.long_video.compare RUN         writes results/compare.json and README.md
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from experiments.long_video.measures import ink, script_followed, seam_ratio
from experiments.readme_tables import insert
from vdm_jax.benchmark.machine import describe
from vdm_jax.benchmark.record import save
from vdm_jax.digits.stories import Story, StorySpec, make_story
from vdm_jax.generation.long_video.plan import Autoregressive, Method, NuwaXL, Windowed
from vdm_jax.generation.long_video.script import Script
from vdm_jax.versions import versions

HERE = Path(__file__).parent
RECORD = HERE / "results" / "compare.json"
COUNT, SEEDS, DEPTHS = 16, (0, 1, 2), (1, 2, 3)
METHODS: dict[str, Method] = {"autoregressive": Autoregressive(), "NUWA-XL": NuwaXL(),
                              "windows": Windowed(), "windows, FreeNoise": Windowed(rescheduled=True)}
Generate = Callable[[Method, Sequence[Script], int, int], UInt8[np.ndarray, "B N H W 3"]]  # (..., frames, seed)


def compare(generate: Generate, spec: StorySpec, size: int, lengths: Sequence[int], *, count: int = COUNT,
            seeds: Sequence[int] = SEEDS, methods: Mapping[str, Method] = METHODS) -> list[dict[str, Any]]:
    """A row for each method (as its stage decides, `Method.of_stage`), length and seed, and one of real stories; `size`
    is the frames of a clip, and of a block."""
    rows = []
    for frames in lengths:
        stories = [make_story(spec, "test", index) for index in range(count)]
        scripts = [Script(tuple(p for p in story.script() if p[0] < frames)) for story in stories]
        real = np.stack([story.draw(range(frames)) for story in stories])
        rows.append({"method": "real stories", "frames": frames, "seed": 0, **scored(real, stories, size)})
        for name, method in methods.items():
            for seed in seeds:
                start = time.perf_counter()
                videos = generate(method, scripts, frames, seed)
                rows.append({"method": name, "frames": frames, "seed": seed,
                             "seconds": round(time.perf_counter() - start, 1),
                             "segments": method.segments(frames, size), **scored(videos, stories, size)})
    return rows


def scored(videos: UInt8[np.ndarray, "B N H W 3"], stories: Sequence[Story], size: int) -> dict[str, Any]:
    """Means over videos, of each block where that is said."""
    frames = videos.shape[1]
    followed = [script_followed(video, story.captions(range(frames)), size)
                for video, story in zip(videos, stories, strict=True)]
    seams = range(size - 1, frames - 1, size - 1)  # where clips between key frames meet
    return {"script followed, by block": np.mean(followed, axis=0).round(3).tolist(),
            "ink, by block": np.mean([ink(video, size) for video in videos], axis=0).round(4).tolist(),
            "seam ratio": round(float(np.mean([seam_ratio(v, seams) for v in videos])), 3) if len(seams) else None}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means and standard deviations over seeds of the first and the last block, as Markdown."""
    lines = ["| method | frames | script followed, first block | last block | seam ratio | seconds |",
             "|---|---:|---:|---:|---:|---:|"]
    for name, frames in dict.fromkeys((row["method"], row["frames"]) for row in rows):
        of = [row for row in rows if (row["method"], row["frames"]) == (name, frames)]
        blocks = np.array([row["script followed, by block"] for row in of])
        shown = [f"{blocks[:, i].mean():.2f} ± {blocks[:, i].std():.2f}" for i in (0, -1)]
        seams = [row["seam ratio"] for row in of if row["seam ratio"] is not None]
        seconds = [row["seconds"] for row in of if "seconds" in row]
        lines.append(f"| {name} | {frames} | {' | '.join(shown)} | {f'{np.mean(seams):.2f}' if seams else ''} | "
                     f"{f'{np.mean(seconds):.1f}' if seconds else ''} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Sample with a run, record and report."""
    import vdm_jax

    generator = vdm_jax.load(arguments[0])
    stage, data = generator.experiment.stages[0], generator.experiment.data
    size = stage.video.frames
    methods = {name: method.of_stage(stage, stage.sampling) for name, method in METHODS.items()}
    devices = generator.mesh.devices.flatten()

    def generate(method: Method, scripts: Sequence[Script], frames: int, seed: int) -> np.ndarray:
        return generator.long(scripts, frames=frames, method=method, seed=seed).videos

    rows = compare(generate, data, size, [(size - 1) ** depth + 1 for depth in DEPTHS], methods=methods)
    RECORD.parent.mkdir(exist_ok=True)
    save(RECORD, {"run": Path(arguments[0]).name, "machine": describe(devices[0], len(devices)), "versions": versions(),
                  "calls per segment": stage.sampling.evaluations(size), "rows": rows})
    readme = HERE / "README.md"
    readme.write_text(insert(readme.read_text(), "compare", table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
