"""How many parameters a stage has, without allocating them."""

from __future__ import annotations

import functools
import json

import jax

from vdm_jax.cascade.autoencoding import AnyStage, AutoencoderStage
from vdm_jax.commands.configs import config_folder, config_names, load_config
from vdm_jax.configuration import digest
from vdm_jax.training.state import initial_params
from vdm_jax.video.writing import atomic_path

SIZES = "sizes.json"  # beside the shipped configs, whose networks take a minute to count


def parameter_count(stage: AnyStage) -> int:
    """Parameters of a stage's network: looked up for shipped configs, else counted."""
    return _known().get(_key(stage)) or counted(stage)


def counted(stage: AnyStage) -> int:
    """Parameters of a stage's network by `jax.eval_shape`; seconds for a large one."""
    shapes = jax.eval_shape(lambda key: initial_params(stage, key), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def write_sizes() -> None:
    """Count all shipped configs; what has not changed is not counted again."""
    stages = {_key(stage): stage for name in config_names() for stage in load_config(name).stages}
    sizes = {key: parameter_count(stage) for key, stage in sorted(stages.items())}
    with atomic_path(config_folder() / SIZES) as temporary:
        temporary.write_text(json.dumps(sizes, indent=1) + "\n")
    _known.cache_clear()


def _key(stage: AnyStage) -> str:
    if isinstance(stage, AutoencoderStage) or stage.latent is None:
        return digest((stage.network, stage.video))
    return digest((stage.network, stage.video, stage.latent.autoencoder, stage.latent.low_resolution))


@functools.cache
def _known() -> dict[str, int]:
    path = config_folder() / SIZES
    return json.loads(path.read_text()) if path.is_file() else {}
