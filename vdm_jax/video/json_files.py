"""JSON files that a stranger may have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAX_BYTES = 2**26  # far beyond the keypoints of a long video


def read_json(path: Path) -> Any:
    """What a file holds. Raises `OSError`, `ValueError` or `RecursionError` for a file that cannot be read, is no JSON
    or has more than `MAX_BYTES`."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    return json.loads(content.decode())
