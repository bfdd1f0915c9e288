"""The models of the experiment: a base that reads captions, and the same with ControlNets, which `run.py` trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vdm_jax.commands.configs import load_config
from vdm_jax.commands.train_command import resolve, train
from vdm_jax.conditions.control import MAPS
from vdm_jax.conditions.inputs import Input
from vdm_jax.data.controlled_digits import ControlledDigits
from vdm_jax.digits.clips import DigitClips
from vdm_jax.digits.controls import Kind
from vdm_jax.errors import UserError
from vdm_jax.generation.generator import Generator
from vdm_jax.runs.directory import check_run, load_stage, read_config, stage_checkpoints
from vdm_jax.stages.options import InitFrom
from vdm_jax.stages.stage import Experiment

# What is trained: the ControlNet, and where captions lack a word that the base was trained with, the base too
LOCKED, ALL = ("^/control_net_",), ()
TRAINABLE: dict[Kind, tuple[str, ...]] = {"reference": ALL}


def base_of(config: str, seed: int) -> Experiment:
    """The base, whose first stage makes videos from captions alone."""
    return dataclasses.replace(load_config(config), seed=seed)


def controlled(base: Experiment, base_run: Path, kind: Kind, steps: int, seed: int) -> Experiment:
    """The base with a ControlNet for one kind of maps, trained from where the base of a run ended."""
    stage = base.stages[0]
    training = dataclasses.replace(
        stage.training, steps=steps, decay=True, checkpoint_every=min(100, steps), keep=2, validate_every=0,
        sample_every=0, trainable=TRAINABLE.get(kind, LOCKED), init_from=InitFrom(stage=stage.name, run=str(base_run)))
    stage = dataclasses.replace(with_maps(base, 1).stages[0], training=training)
    shared = {field.name: getattr(base.data, field.name) for field in dataclasses.fields(DigitClips)}
    data = ControlledDigits(**shared, controls=(kind,), says_digit=kind != "reference")
    return dataclasses.replace(base, name=f"{base.name}_{kind}", stages=(stage,), data=data, seed=seed)


def with_maps(base: Experiment, count: int) -> Experiment:
    """The base with ControlNets for so many maps."""
    stage = base.stages[0]
    entries = tuple(Input(name=name, width=3) for name in MAPS[:count])
    network = dataclasses.replace(stage.network, conditions=entries)
    return dataclasses.replace(base, stages=(dataclasses.replace(stage, network=network),))


def trained(experiment: Experiment, run: Path, data_dir: Path | None, *, quiet: bool) -> tuple[Experiment, Any]:
    """`read` after training the first stage, unless it is trained. Raises `UserError` where the run is of another
    config, trained or not."""
    stage = experiment.stages[0]
    check_run(run, resolve(experiment, run, data_dir))
    if stage_checkpoints(run, stage.name).latest() != stage.training.steps:
        train(experiment, [stage.name], run, data_dir, quiet=quiet)
    return read(run)


def read(run: Path) -> tuple[Experiment, Any]:
    """The experiment of a run with its vocabulary, and the averaged parameters of its first stage. Raises `UserError`
    where that is not trained."""
    experiment = read_config(run)
    stage = experiment.stages[0]
    params = load_stage(run, stage)
    if params is None:
        raise UserError(f"stage {stage.name!r} of {run} is not trained; permitted: a run that is")
    return dataclasses.replace(experiment, stages=(stage,)), params


def generator_of(experiment: Experiment, params: Mapping[str, Any]) -> Generator:
    """What samples the first stage."""
    return Generator(experiment, {experiment.stages[0].name: params})


def joined(base: Experiment, params: Sequence[Mapping[str, Any]]) -> Generator:
    """The base with the ControlNets of several models, which have it in common, in their order."""
    nets = {f"control_net_{name}": one["control_net_control"] for name, one in zip(MAPS, params, strict=False)}
    shared = {name: value for name, value in params[0].items() if name != "control_net_control"}
    return generator_of(with_maps(base, len(params)), shared | nets)
