"""Versions of what a result depends on."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

VERSION = "0.1.0"  # of this package
PACKAGE = Path(__file__).parent  # where it is installed
PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin")


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the parts of JAX that are installed."""
    import importlib.metadata  # 20 ms, which 'import vdm_jax' is spared

    found = {"python": platform.python_version(), "vdm_jax": VERSION}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def source_digest(rooms: tuple[str, ...] = (".",)) -> str:
    """Short SHA-256 of the code of some rooms of the package, or of all."""
    import hashlib

    found = hashlib.sha256()
    for path in sorted(p for room in rooms for p in (PACKAGE / room).rglob("*.py")):
        found.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:16]
