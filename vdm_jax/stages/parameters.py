"""Parameters of a stage's network, and inputs of the shapes that it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from vdm_jax.conditions.conditioning import Conditioning, Sizes, conditions_of
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.lora import FACTORS, initial_factors, trained_adapter, with_adapters
from vdm_jax.stages.autoencoding import AnyStage, AutoencoderStage
from vdm_jax.stages.stage import Stage
from vdm_jax.weights import model_kinds


def conditioning_of(
    stage: Stage, sizes: Sizes, make: Callable[[tuple[int, ...], Any], Any], given: bool = False
) -> Conditioning:
    """What the stage's network takes, of arrays that `make` returns for the shape of one example and a dtype; with
    `given` only what comes from data or a request."""
    found = Conditioning()
    for condition in conditions_of(stage.network):
        if given and condition.made:
            continue
        for name, (shape, kind) in condition.shapes(stage, sizes).items():
            part, _, key = name.partition("/")
            value = make(shape, kind)
            found = found.adding({part: {key: value} if key else value})
    return found


def example_conditioning(stage: Stage, batch: int = 1) -> Conditioning:
    """Zeros of the shapes that the stage's network takes in training."""
    return conditioning_of(stage.trained(), Sizes(), lambda shape, kind: jnp.zeros((batch, *shape), kind))


def initial_params(stage: AnyStage, key: PRNGKeyArray) -> Any:
    """Parameters of a stage's network."""
    if isinstance(stage, AutoencoderStage):
        spec = stage.network
        frames = 1 if spec.causal else spec.time_factor
        return model_kinds.module(spec).init(key, jnp.zeros((1, frames, spec.factor, spec.factor, 3)))["params"]
    video, level = jnp.zeros((1, *stage.trained().shape)), jnp.zeros((1,))
    return network_module(stage.network).init(key, video, level, example_conditioning(stage))["params"]


def network_shapes(stage: AnyStage) -> Any:
    """Shapes of `initial_params`, without computing anything."""
    return jax.eval_shape(lambda key: initial_params(stage, key), jax.random.key(0))


def with_factors(stage: AnyStage, params: Any, key: PRNGKeyArray) -> Any:
    """Parameters of the network and, where the stage trains a LoRA, new factors next to them: what is in a training
    state. Raises `UserError` for patterns that match no kernel."""
    lora = getattr(stage.training, "lora", ())
    return {**params, FACTORS: initial_factors(lora, params, key)} if lora else params


def network_params(stage: AnyStage, params: Any) -> Any:
    """Parameters of the network, of those of a training state: with the factors of its LoRA merged into them."""
    lora = getattr(stage.training, "lora", ())
    if not lora:
        return params
    base = {name: tree for name, tree in params.items() if name != FACTORS}
    return with_adapters(base, [(trained_adapter(lora, base, params[FACTORS]), 1.0)])
