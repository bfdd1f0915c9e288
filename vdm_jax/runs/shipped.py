"""Weights that come with the package: exported runs in `vdm_jax/shipped/`, each with a manifest.

`manifest.json` says how the weights came about and how good they are: the training command, the commit of the code, the
steps of each stage, the scores with their protocol; and the hash of every other file of the folder, which is compared
when the weights are loaded. `write_manifest` writes it next to what `runs.directory.export` wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vdm_jax.errors import UserError
from vdm_jax.runs.listing import CONFIG
from vdm_jax.video.writing import atomic_path

SHIPPED = Path(__file__).parent.parent / "shipped"
MANIFEST = "manifest.json"


def shipped_names() -> tuple[str, ...]:
    """Names of the runs that come with the package."""
    return tuple(sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG}")))


def find_shipped(name: str | os.PathLike) -> Path | None:
    """The folder of a run that comes with the package, by its name; None where there is none. Raises `UserError` where
    a file of it is not the one that was shipped."""
    if str(name) not in shipped_names():
        return None
    check_manifest(SHIPPED / name)
    return SHIPPED / name


def write_manifest(folder: Path, about: Mapping[str, Any]) -> Path:
    """Write what is known `about` the weights of an exported run, and the SHA-256 of its files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    hashes = {path.relative_to(folder).as_posix(): _hash(path) for path in files}
    with atomic_path(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps({**about, "files": hashes}, indent=1) + "\n")
    return folder / MANIFEST


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder. Raises `UserError` for one that is missing or damaged."""
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found["files"], dict):
            return found
        reason = "'files' is no object"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise UserError(f"{path} cannot be read ({reason}); permitted: the file as it was shipped, by installing vdm_jax "
                    "again")


def check_manifest(folder: Path) -> None:
    """Raise `UserError` naming the first file of a folder that is missing or not the one of its manifest."""
    for name, expected in read_manifest(folder)["files"].items():
        path = folder / name
        if not path.is_file() or _hash(path) != expected:
            raise UserError(f"{path} is {'damaged' if path.is_file() else 'missing'}; permitted: the file as it was "
                            "shipped, by installing vdm_jax again")


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
