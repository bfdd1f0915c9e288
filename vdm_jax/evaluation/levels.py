"""The level of conditioning augmentation, searched after training: one trained cascade, one score per level.

Stages learn all levels at once, and which one suits the flaws of the stage before is only seen in what the whole
cascade makes (Ho et al. 2021, arXiv 2106.15282: quality has its best at a level in between).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optax

from vdm_jax.configuration import to_data
from vdm_jax.errors import NotFinite, UserError
from vdm_jax.generation.generator import Generator
from vdm_jax.video.writing import atomic_path

Score = Callable[[Generator], Mapping[str, float]]  # a cascade to named numbers, more is better


def search_levels(
    generator: Generator, levels: Sequence[float], score: Score, path: Path, *, protocol: Mapping[str, Any],
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Score the cascade at each level (log-SNR) and write the record to `path` after each; levels that it has already
    are not scored again.

    Args:
      score: of a cascade whose stages sample at the level.
      protocol: how `score` does it, as JSON data; kept in the record with the config and the weights' norms.

    Returns the record: `protocol`, and `levels` as a list of `{"logsnr", "scores"}`, from noisy to clean.
    Raises `UserError` for levels that are not finite, for a cascade without augmentation levels, and for a record of
    something else.
    """
    wrong = [level for level in levels if not math.isfinite(level)]
    if wrong or not levels:
        raise UserError(f"augmentation levels {list(levels)}; permitted: one or more finite log-SNRs")
    norms = {name: f"{float(optax.tree.norm(params)):.6g}" for name, params in generator.params.items()}
    stages = to_data(generator.experiment)["stages"]
    record = {"protocol": {**protocol, "stages": stages, "weights": norms}, "levels": []}
    if path.exists():
        found = json.loads(path.read_text())
        if found.get("protocol") != json.loads(json.dumps(record["protocol"])):
            raise UserError(f"{path} is the record of other weights or another protocol; permitted: the same ones, or "
                            "another folder")
        record = found
    for level in levels:
        if any(math.isclose(row["logsnr"], level, abs_tol=1e-6) for row in record["levels"]):
            note(f"log-SNR {level:g}: already scored")
            continue
        scores = dict(score(generator.with_augmentation_level(level)))
        record["levels"] = sorted([*record["levels"], {"logsnr": level, "scores": scores}], key=lambda r: r["logsnr"])
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")
        note(f"log-SNR {level:g}: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    return record


def best_level(record: Mapping[str, Any], name: str) -> float:
    """The log-SNR with the highest score of that name. Raises `NotFinite` where one of them is none."""
    if wrong := [row["logsnr"] for row in record["levels"] if not math.isfinite(row["scores"][name])]:
        raise NotFinite(f"{name} at log-SNR {wrong[0]:g} is no finite number, so no level is the best")
    return max(record["levels"], key=lambda row: row["scores"][name])["logsnr"]
