"""XLA flags per TPU generation, in files next to this one. Applied only when asked for."""

from __future__ import annotations

import os
from pathlib import Path

from vdm_jax.errors import UserError

FOLDER = Path(__file__).parent / "flags"


def flag_sets() -> dict[str, Path]:
    """The shipped files by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.txt"))}


def read_flags(name: str) -> tuple[tuple[str, str], ...]:
    """Flags `(name without dashes, value)` of a shipped set, or of a file of one's own, one `--flag=value` per line.

    Raises `UserError` for an unknown set and for a line of another form.
    """
    path = flag_sets().get(name, Path(name))
    if not path.is_file():
        raise UserError(f"--xla-flags={name} is unknown; permitted: {', '.join(flag_sets())}, or a file with one "
                        "--flag=value per line")
    found = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        text = line.split("#", 1)[0].strip()
        if not text:
            continue
        flag, separator, value = text.removeprefix("--").partition("=")
        if not (text.startswith("--") and separator and flag and value):
            raise UserError(f"{path}, line {number}: {text!r} is no flag; permitted: --flag=value")
        found.append((flag, value))
    return tuple(found)


def apply_flags(flags: tuple[tuple[str, str], ...]) -> None:
    """Give flags to libtpu through `LIBTPU_INIT_ARGS`, after those that are there; before JAX looks for devices."""
    text = " ".join(f"--{name}={value}" for name, value in flags)
    os.environ["LIBTPU_INIT_ARGS"] = " ".join(filter(None, (os.environ.get("LIBTPU_INIT_ARGS"), text)))
