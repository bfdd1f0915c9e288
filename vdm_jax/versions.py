"""Versions of what a result depends on."""

from __future__ import annotations

import importlib.metadata
import platform

import vdm_jax

PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin")


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the parts of JAX that are installed."""
    found = {"python": platform.python_version(), "vdm_jax": vdm_jax.__version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
