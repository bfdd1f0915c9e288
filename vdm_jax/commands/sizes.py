"""How many parameters a stage has, without allocating them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from typing import TYPE_CHECKING

from vdm_jax.commands.configs import config_folder, config_names, load_config
from vdm_jax.configuration import digest

if TYPE_CHECKING:  # what is recorded is read without JAX
    from vdm_jax.stages.autoencoding import AnyStage

SIZES = "sizes.json"  # next to the shipped configs, whose networks take a minute to count


@dataclasses.dataclass(frozen=True)
class StageSize:
    """What a list shows of a stage."""

    name: str
    video: str  # frames x height x width
    parameters: int


def stage_sizes(config: str) -> tuple[StageSize, ...]:
    """The stages of a shipped config: as recorded, or of the config itself where its files have changed since."""
    known = _recorded()["configs"].get(config, {})
    return tuple(StageSize(*row) for row in known["stages"]) if known.get("files") == _files(config) else _sizes(config)


def parameter_count(stage: AnyStage) -> int:
    """Parameters of a stage's network: looked up for shipped configs, else counted."""
    return _recorded()["networks"].get(_key(stage)) or counted(stage)


def counted(stage: AnyStage) -> int:
    """Parameters of a stage's network by `jax.eval_shape`; seconds for a large one."""
    import jax

    from vdm_jax.stages.parameters import network_shapes

    shapes = network_shapes(stage)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def write_sizes() -> None:
    """Count all shipped configs; what has not changed is not counted again."""
    from vdm_jax.video.writing import atomic_path

    stages = {_key(stage): stage for name in config_names() for stage in load_config(name).stages}
    networks = {key: parameter_count(stage) for key, stage in sorted(stages.items())}
    configs = {name: {"files": _files(name), "stages": [dataclasses.astuple(size) for size in _sizes(name)]}
               for name in config_names()}
    with atomic_path(config_folder() / SIZES) as temporary:
        temporary.write_text(json.dumps({"configs": configs, "networks": networks}, indent=1) + "\n")
    _recorded.cache_clear()


def _sizes(config: str) -> tuple[StageSize, ...]:
    return tuple(StageSize(stage.name, str(stage.video), parameter_count(stage))
                 for stage in load_config(config).stages)


def _files(config: str) -> str:
    """Hash of a config's file and of the private files next to it."""
    path = config_names()[config]
    content = (file.read_bytes() for file in (path, *sorted(path.parent.glob("_*.py"))))
    return hashlib.sha256(b"\0".join(content)).hexdigest()[:16]


def _key(stage: AnyStage) -> str:
    latent = getattr(stage, "latent", None)  # which autoencoders have none
    return digest((stage.network, stage.video, *((latent.autoencoder, latent.low_resolution) if latent else ())))


@functools.cache
def _recorded() -> dict[str, dict]:
    path = config_folder() / SIZES
    return json.loads(path.read_text()) if path.is_file() else {"configs": {}, "networks": {}}
