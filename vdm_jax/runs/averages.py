"""What a stage's checkpoints hold of its averaged parameters: the network, or of a LoRA its factors and the frozen
network that they change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax

from vdm_jax.networks.lora import FACTORS, Adapter, trained_adapter, with_adapters
from vdm_jax.stages.autoencoding import AnyStage
from vdm_jax.stages.parameters import network_shapes, with_factors

if TYPE_CHECKING:
    from vdm_jax.runs.checkpoints import Checkpoints


def restore_network(checkpoints: Checkpoints, stage: AnyStage, step: int | None = None, shapes: Any = None) -> Any:
    """The averaged parameters of the network, those of a LoRA merged into it. `shapes` are those of the network, where
    they are at hand. Raises `UserError` as `Checkpoints.restore_subtree` does."""
    shapes = network_shapes(stage) if shapes is None else shapes
    if not getattr(stage.training, "lora", ()):
        return checkpoints.restore_subtree("ema", shapes, step)[0]
    whole = jax.eval_shape(lambda params: with_factors(stage, params, jax.random.key(0)), shapes)
    params, _ = checkpoints.restore_subtree("params", whole, step)
    del params[FACTORS]  # the average takes their place
    return with_adapters(params, [(restore_factors(checkpoints, stage, step), 1.0)])


def restore_factors(checkpoints: Checkpoints, stage: AnyStage, step: int | None = None) -> Adapter:
    """The averaged factors of a stage that trains a LoRA. Raises `UserError` as `Checkpoints.restore_subtree` does."""
    shapes = network_shapes(stage)
    whole = jax.eval_shape(lambda params: with_factors(stage, params, jax.random.key(0)), shapes)
    found, _ = checkpoints.restore_subtree("ema", {FACTORS: whole[FACTORS]}, step)
    return trained_adapter(stage.training.lora, shapes, found[FACTORS])
