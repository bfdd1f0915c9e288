"""LoRAs of what samples: read from files, weighted and merged into copies of the networks, which themselves stay.

    styled = with_loras(generator, {"style.safetensors": 0.8, "light.safetensors": 0.4})
    generator(...)                                                # without them, to the last bit
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from vdm_jax.data.text_encoding import CaptionEncoder
from vdm_jax.errors import UserError
from vdm_jax.generation.generator import Generator
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.lora import Adapter, with_adapters
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.parallel.rules import parameter_shardings
from vdm_jax.stages.stage import Stage
from vdm_jax.weights.lora_files import NETWORK, Target, lora_stage, networks_in, plain_target, read_lora, target_of
from vdm_jax.weights.transformer_fields import is_wan

LoRAs = Mapping[str | os.PathLike, float]  # file -> weight
TEXT = "text_encoder"
Weighted = Sequence[tuple[Adapter, float]]


def with_loras(generator: Generator, loras: LoRAs) -> Generator:
    """The generator with the LoRAs of some files merged into its networks, and into the encoder of its captions where
    a file has factors of that.

    Of a cascade, a file changes the stage that it was trained as or, where it does not say, the one that it fits.

    Raises `UserError` as `read_lora` does, and for a file that fits no stage, or several.
    """
    of_stages: dict[str, list[tuple[Adapter, float]]] = {}
    of_text: list[tuple[Adapter, float]] = []
    encoder = generator.encoder
    for path, weight in loras.items():
        has_text = TEXT in networks_in(path) and hasattr(encoder, "captions")
        text = {TEXT: target_of(encoder.captions.config)} if has_text and encoder.captions is not None else {}
        name, found = _for_stage(generator, path, text)
        if NETWORK in found:
            of_stages.setdefault(name, []).append((found[NETWORK], weight))
        if TEXT in found:
            of_text.append((found[TEXT], weight))
    changed = {name: merged_on(generator.mesh, generator.params[name], parts) for name, parts in of_stages.items()}
    other = generator.of(generator.experiment, {**generator.params, **changed})
    if of_text:
        other.encoder = copy.copy(encoder)
        other.encoder.captions = with_text_loras(encoder.captions, of_text)
    return other


def with_text_loras(encoder: CaptionEncoder, adapters: Weighted) -> CaptionEncoder:
    """An encoder of captions with adapters merged, which shares what is compiled."""
    return encoder.with_params(merged_on(encoder.mesh, encoder.params, adapters))


def merged_on(mesh: Mesh, params: Any, adapters: Weighted) -> Any:
    """`with_adapters`, placed on a mesh as parameters are."""
    found = with_adapters(params, adapters)
    return jax.device_put(found, parameter_shardings(found, mesh))


def stage_target(stage: Stage, params: Any) -> Target:
    """A stage's network, as LoRAs may be for it."""
    if isinstance(stage.network, LatentNetwork):
        return target_of(stage.network.unet, params)
    if isinstance(stage.network, VideoTransformer) and is_wan(stage.network):
        return target_of(stage.network, params)
    return plain_target(params)


def _for_stage(generator: Generator, path: str | os.PathLike, text: Mapping[str, Target]
               ) -> tuple[str, dict[str, Adapter]]:
    """The stage that a file is for, and its adapters. Raises `UserError` as `with_loras` does."""
    stages = [stage for stage in generator.experiment.stages if stage.name in generator.params]
    named = [stage for stage in stages if stage.name == lora_stage(path)] or stages
    fitting, failures = [], []
    for stage in named:
        try:
            fitting.append((stage.name, read_lora(path, {NETWORK: stage_target(stage, generator.params[stage.name]),
                                                         **text})))
        except UserError as error:
            failures.append(error)
    if len(fitting) > 1:
        raise UserError(f"{path} fits the networks of stages {', '.join(name for name, _ in fitting)} and does not say "
                        "for which it is; permitted: a file that 'vdm-jax export --lora' wrote, or a run of one "
                        "stage")
    if not fitting:
        raise failures[0]
    return fitting[0]
