"""Pieces of the page about runs: tables, and files inside it."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LARGEST = 12 * 2**20  # bytes of a picture or video that is put into the page
TYPES = {".png": "image/png", ".gif": "image/gif", ".mp4": "video/mp4"}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (f'<div class="scroll"><table><thead><tr>{"".join(f"<th>{cell}</th>" for cell in header)}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>")


def folded(summary: str, body: str) -> str:
    """HTML under a line of text that opens it."""
    return f"<details><summary>{html.escape(summary)}</summary>{body}</details>"


def key(name: str, colour: str) -> str:
    """A run's name with its colour."""
    return f'<span class="key" style="background:{colour}"></span>{html.escape(name)}'


def embedded(path: Path) -> str:
    """A picture or video inside the page, or its place on disk where it is too large."""
    size = path.stat().st_size
    if size > LARGEST:
        return f'<p class="note">{html.escape(str(path))} is left out: {size / 2**20:.0f} MiB.</p>'
    kind = TYPES[path.suffix]
    data = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    name = html.escape(path.name)
    element = (f'<video controls loop muted playsinline src="{data}"></video>' if kind.startswith("video") else
               f'<img alt="{name}" src="{data}">')
    return f"<figure>{element}<figcaption>{name}</figcaption></figure>"


def short(value: Any) -> str:
    """JSON data as one short line."""
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
