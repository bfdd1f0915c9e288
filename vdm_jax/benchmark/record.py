"""The record of a benchmark: one JSON file, a row per case, written after every case."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from vdm_jax.errors import UserError
from vdm_jax.video.writing import atomic_path

# What must agree for rows to stand in one file.
IDENTITY = ("device", "versions", "protocol")


def load(path: Path) -> dict[str, Any]:
    """A record. Raises `UserError` when there is none or it is not one."""
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; permitted: a record that a benchmark has written") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error}); permitted: a record that a benchmark has written") from None
    if not isinstance(record, dict) or not {"rows", *IDENTITY} <= set(record):
        raise UserError(f"{path} is not a record; permitted: a file with {', '.join((*IDENTITY, 'rows'))}")
    return record


def open_record(path: Path, about: dict[str, Any], *, fresh: bool = False) -> dict[str, Any]:
    """The record to go on with: that of the file when it was made under the same circumstances, or an empty one.

    Raises `UserError` naming what differs.
    """
    if fresh or not path.exists():
        return {**about, "rows": {}}
    record = load(path)
    for name in IDENTITY:
        if record[name] != about[name]:
            raise UserError(f"{path} was recorded with another {name}: {difference(record[name], about[name])}; "
                            "permitted: the same, another --out, or --fresh to measure everything again")
    return record


def difference(old: Any, new: Any) -> str:
    """The first entry in which two flat dictionaries differ."""
    for key in {**old, **new}:
        if old.get(key) != new.get(key):
            return f"{key} is {old.get(key)!r} there and {new.get(key)!r} now"
    return "nothing"


def save(path: Path, record: dict[str, Any]) -> None:
    """Write the record with today's date, so that an interruption leaves the old one or the new one."""
    record["date"] = datetime.date.today().isoformat()
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
