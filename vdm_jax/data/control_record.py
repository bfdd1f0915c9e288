"""How the control maps of a folder were made: a small file that `vdm-jax annotate` writes next to them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vdm_jax.errors import UserError
from vdm_jax.video.json_files import read_json

RECORD = "annotation.json"


@dataclasses.dataclass(frozen=True)
class ControlRecord:
    """What the maps are, and with which settings."""

    kind: str
    settings: dict[str, Any]


def read_record(folder: Path) -> ControlRecord | None:
    """The record of a folder; None where there is none. Raises `UserError` for a file that is none."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = ControlRecord(**read_json(path))
        if not isinstance(record.kind, str) or not isinstance(record.settings, dict):
            raise TypeError("kind or settings")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a readable record of maps ({error}); permitted: the file that vdm-jax annotate "
                        "writes", "control_record") from error
    return record
