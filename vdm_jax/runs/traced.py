"""What tracing says of a stage, kept on disk: the shapes of its parameters, and its sampling as a program.

A process that begins anew traces a network for seconds before XLA sees it. JAX's compilation cache spares the compiler
what it has compiled before; files in a folder within that cache spare Python what it has traced before (`jax.export`).
They are kept by all that a trace depends on: the stage, the arguments' shapes, the code of the package, versions, JAX's
settings and the number of processors. What else a user registers is not part of that, so that commands keep traces, and
calls from Python do not.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax import traverse_util
from jax.sharding import Mesh

from vdm_jax.parallel.compiling import compiler_options, processors
from vdm_jax.stages.autoencoding import AnyStage
from vdm_jax.stages.parameters import network_shapes
from vdm_jax.versions import source_digest, versions
from vdm_jax.video.writing import atomic_path

MOST = 200  # files that are kept, the newest; each has up to 1 MB
FOLDER = "traced"
log = logging.getLogger(__name__)


def kept_traces() -> Traced | None:
    """Those in the folder of JAX's compilation cache; None where it is off."""
    folder = jax.config.jax_compilation_cache_dir
    return Traced(Path(folder) / FOLDER) if folder and jax.config.jax_enable_compilation_cache else None


class Traced:
    """Traces in a folder, which is made when the first is written. Files that are damaged are traced anew."""

    def __init__(self, folder: Path):
        self.folder = folder

    def shapes(self, stage: AnyStage) -> Any:
        """`network_shapes` of a stage."""
        path = self._path("shapes", repr(stage))
        if (content := _read(path)) is None:
            shapes = network_shapes(stage)
            flat = traverse_util.flatten_dict(shapes, sep="/")
            self._write(path, json.dumps({name: [leaf.shape, str(leaf.dtype)] for name, leaf in flat.items()}).encode())
            return shapes
        found = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in json.loads(content).items()}
        return traverse_util.unflatten_dict(found, sep="/")

    def function(self, function: jax.stages.Wrapped, about: tuple[Any, ...], mesh: Mesh) -> Callable[..., Any]:
        """A jitted function of a stage, which is read where it was traced before; `about` is all that it depends on
        besides its arguments. One of several devices, or of another kind than a CPU, is returned as it is."""
        device = mesh.devices.flat[0]
        if mesh.size > 1 or device.platform != "cpu":
            return function
        programs: dict[Any, Callable[..., Any]] = {}

        def call(*arguments: Any) -> Any:
            leaves, tree = jax.tree.flatten(arguments)
            given = str(tree), *(str(jax.typeof(leaf)) for leaf in leaves)
            if given not in programs:
                path = self._path("function", repr(about), *given, device.device_kind)
                exported = self._exported(path, function, tree, leaves)
                programs[given] = jax.jit(exported.call, compiler_options=compiler_options(mesh))
            return programs[given](*leaves)

        return call

    def _exported(self, path: Path, function: jax.stages.Wrapped, tree: Any, leaves: list[Any]) -> Any:
        from jax import export

        if (content := _read(path)) is None:
            traced = jax.jit(lambda *leaves: function.__wrapped__(*jax.tree.unflatten(tree, leaves)))
            content = bytes(export.export(traced)(*leaves).serialize())
            self._write(path, content)
        else:
            log.info("sampling is read from %s: attention 'auto' chose its kernels when that was traced", path)
        return export.deserialize(bytearray(content))

    def _path(self, *about: str) -> Path:
        settings = repr(sorted(jax.config.values.items()))
        text = "\0".join([*about, _surroundings(), settings, str(processors())])  # attention's tiles depend on them
        return self.folder / hashlib.sha256(text.encode()).hexdigest()[:32]

    def _write(self, path: Path, content: bytes) -> None:
        try:
            with atomic_path(path) as temporary:
                temporary.write_bytes(hashlib.sha256(content).digest() + content)
            files = sorted((file for file in self.folder.iterdir() if not file.name.startswith(".")),
                           key=lambda file: file.stat().st_mtime)
            for old in files[:-MOST]:
                old.unlink(missing_ok=True)
        except OSError:  # a cache that cannot be written, or another process that removes what is old
            pass


def _read(path: Path) -> bytes | None:
    """The content of a file, None where there is none, or it is not what was written."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    return stored[32:] if hashlib.sha256(stored[32:]).digest() == stored[:32] else None


@functools.cache
def _surroundings() -> str:
    """Versions and code that traces depend on."""
    return json.dumps({**versions(), "flax": importlib.metadata.version("flax"), "code": source_digest()})
