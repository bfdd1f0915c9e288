"""Weights of a trained stage with which the training of another begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from vdm_jax.cascade.stage import Stage
from vdm_jax.errors import UserError
from vdm_jax.networks.inflation import Inflation, plan_inflation
from vdm_jax.training.manifest import Damaged
from vdm_jax.training.runs import find_run, load_stage, read_config
from vdm_jax.training.state import initial_params


def starting_weights(stage: Stage, run: Path, damaged: Damaged = "refuse") -> tuple[Inflation, Any]:
    """How a stage of `run` begins as the one that `Training.start` names, and the averaged parameters of that one, on
    the host.

    Raises `UserError` when it is not there or not trained, predicts something else, or its network does not fit.
    """
    start = stage.training.start
    folder = run if start.run is None else find_run(start.run)
    source = read_config(folder).stage(start.stage)
    if source.process.prediction != stage.process.prediction:
        raise UserError(f"Stage {stage.name!r}: process.prediction={stage.process.prediction!r}, but it is to begin as "
                        f"stage {source.name!r} of {folder}, which predicts {source.process.prediction!r}; permitted: "
                        "the same")
    params = load_stage(folder, source, damaged)
    if params is None:
        raise UserError(f"Stage {stage.name!r} is to begin as stage {source.name!r} of {folder}, which is not trained; "
                        "permitted: train that first")
    shapes = jax.eval_shape(lambda key: initial_params(stage, key), jax.random.key(0))
    return plan_inflation(stage.network, shapes, source.network, params), jax.device_get(params)
