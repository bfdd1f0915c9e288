"""The runs of a folder, by their files alone: no JAX, no Orbax, so that a list of many runs is there at once."""

from __future__ import annotations

import json
from pathlib import Path

from vdm_jax.errors import UserError
from vdm_jax.runs.identity import check_config

CONFIG, WEIGHTS = "config.json", "params.safetensors"
CARD = "README.md"  # of an exported run


def checkpoints_path(run: Path, stage: str) -> Path:
    """Where a stage's checkpoints are."""
    return run / stage / "checkpoints"


def described_runs(folder: Path) -> dict[Path, str]:
    """What each run directly under a folder is, by directory: its stages with trained steps, or why it is damaged."""
    found = {}
    for path in sorted(folder.glob(f"*/{CONFIG}")):
        try:
            found[path.parent] = described(path.parent)
        except UserError as error:
            found[path.parent] = f"damaged: {error}"
    return found


def described(run: Path) -> str:
    """The stages of a run with the steps they were trained for: `base (20/100) > spatial (not yet)`.

    Raises `UserError` for a config that cannot be read, has changed or lacks its stages. Whether all its values are
    permitted is left to what loads it.
    """
    path = run / CONFIG
    try:
        content = path.read_bytes()
        stages = {stage["name"]: int(stage["training"]["steps"]) for stage in json.loads(content)["stages"]}
        parts = [f"{name} ({_trained(run, name, steps)})" for name, steps in stages.items()]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error}); permitted: the file that 'vdm-jax "
                        "train' wrote") from error
    check_config(run, path, content)
    return " > ".join(parts)


def _trained(run: Path, stage: str, steps: int) -> str:
    if (run / stage / WEIGHTS).exists():
        return "weights"
    checkpoints = checkpoints_path(run, stage)  # a checkpoint has its number for a name once it is complete
    done = [int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()] if checkpoints.is_dir() else []
    return f"{max(done)}/{steps}" if done else "not yet"
