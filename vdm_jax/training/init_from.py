"""Weights of a trained stage, or of an open model, with which the training of a stage begins."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from vdm_jax.errors import UserError
from vdm_jax.networks.autoencoders.config import Autoencoder
from vdm_jax.networks.autoencoders.kinds import NORMALISATION
from vdm_jax.networks.config import UNet
from vdm_jax.networks.flow_predictor import FlowPredictor
from vdm_jax.networks.kinds import Network
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.networks.lora import adapted
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.runs.directory import find_run, load_stage, read_cascade
from vdm_jax.runs.manifest import Damaged
from vdm_jax.runs.teachers import teacher_params
from vdm_jax.stages.autoencoding import AnyStage, AutoencoderStage
from vdm_jax.stages.distillation import SelfForcing, Teacher
from vdm_jax.stages.options import InitFrom, InitFromFile
from vdm_jax.stages.parameters import network_shapes
from vdm_jax.stages.stage import Stage
from vdm_jax.training.trainable import split
from vdm_jax.weights.inflation import BeginApart, Inflation, plan_inflation
from vdm_jax.weights.latent_inflation import plan_latent_inflation
from vdm_jax.weights.pretrained import load_imported
from vdm_jax.weights.safetensors import flatten
from vdm_jax.weights.signatures import mismatch

# Parameters of an autoencoder that one of images does not have.
_OVER_TIME = re.compile(r"/temporal/|/temporal_attention/|/temporal_residual/|/mix/|/out_temporal/")


def starting_weights(stage: Stage, run: Path, damaged: Damaged = "refuse") -> tuple[Inflation | BeginApart, Any]:
    """How a stage of `run` begins as the one, or as the file, that `Training.init_from` names, and the (averaged)
    parameters of that one, on the host. A student begins as its teacher; where `init_from` is given too, its teacher
    and critic do, and there are two of both.

    Raises `UserError` when it is not there or not trained, predicts something else, or its network does not fit.
    """
    found = _weights_of(stage, beginning(stage), run, damaged)
    if (own := _own_start(stage)) is None:
        return found
    student = _weights_of(stage, own, run, damaged)
    return BeginApart(student[0], found[0]), {"student": student[1], "teacher": found[1]}


def _own_start(stage: AnyStage) -> InitFrom | InitFromFile | None:
    """As what a student begins that does not begin as its teacher."""
    teacher = getattr(stage.training.distillation, "teacher", None)
    return None if teacher is None else stage.training.init_from


def _weights_of(
    stage: Stage, start: InitFrom | InitFromFile | Teacher, run: Path, damaged: Damaged
) -> tuple[Inflation, Any]:
    shapes = network_shapes(stage)
    if isinstance(start, InitFromFile):
        model = load_imported(start.path)
        if isinstance(stage.network, VideoTransformer) and isinstance(model.config, VideoTransformer):
            where = f"Stage {stage.name!r}: training.init_from.path={start.path!r}"
            return plan_transformer(stage.network, shapes, model.config, model.params, where), model.params
        if not isinstance(model.config, LatentUNet) or isinstance(stage.network, VideoTransformer):
            raise UserError(f"Stage {stage.name!r}: training.init_from.path={start.path!r} holds a "
                            f"{type(model.config).__name__}; permitted: a "
                            f"{'VideoTransformer' if isinstance(stage.network, VideoTransformer) else 'LatentUNet'}")
        return plan_latent_inflation(stage.network.unet, shapes, model.config, model.params), model.params
    folder = run if start.run is None else find_run(start.run)
    source = read_cascade(folder).stage(start.stage)
    for field, ours, theirs in unlike(stage, source):
        raise UserError(f"Stage {stage.name!r}: {field}={ours!r}, but it is to begin as stage {source.name!r} of "
                        f"{folder}, whose {field} is {theirs!r}; permitted: the same")
    spec = stage.training.distillation
    if isinstance(start, Teacher) and isinstance(spec, SelfForcing):
        spec.check_teacher(stage, source)
    params = teacher_params(stage, damaged) if isinstance(start, Teacher) else load_stage(folder, source, damaged)
    if params is None:
        raise UserError(f"Stage {stage.name!r} is to begin as stage {source.name!r} of {folder}, which is not trained; "
                        "permitted: train that first", "init_from.starting_weights")
    return planned(stage.network, shapes, source.network, params), jax.device_get(params)


def beginning(stage: AnyStage) -> InitFrom | InitFromFile | Teacher | str | None:
    """As what the network of a stage begins; a student as its teacher."""
    distillation = stage.training.distillation
    return stage.training.init_from if distillation is None or distillation.teacher is None else distillation.teacher


def check_beginning(stage: AnyStage) -> None:
    """Raise `UserError` for a file or another run that a stage is to begin from and that is not there, and for patterns
    of parameters to train, or to add a LoRA to, that match none."""
    for start in (beginning(stage), _own_start(stage)):
        path = start.path if isinstance(start, InitFromFile) else start
        if isinstance(path, str) and not Path(path).is_file():
            raise UserError(f"stage {stage.name!r}: training.init_from={path!r} is not a file; permitted: a "
                            ".safetensors file that vdm-jax convert wrote")
        if isinstance(start, InitFrom | Teacher) and start.run is not None:
            read_cascade(find_run(start.run)).stage(start.stage)
    if stage.training.trainable:
        split(network_shapes(stage), stage.training.trainable)
    if getattr(stage.training, "lora", ()):
        adapted(stage.training.lora, network_shapes(stage))


def unlike(stage: Stage, source: Stage) -> Iterator[tuple[str, Any, Any]]:
    """Fields `(name, ours, theirs)` by which two stages give other meanings to what their networks see and predict, so
    that weights of one are no beginning for the other. Noise levels may differ: networks are conditioned on them."""
    def meanings(stage: Stage) -> dict[str, Any]:
        process, latent = stage.process, stage.latent
        edm = process.prediction == "edm"
        found = {"process.prediction": process.prediction, "process.schedule.family": process.schedule.family.name,
                 "process.sigma_data": process.sigma_data if edm else None,
                 "latent": "None" if latent is None else "an autoencoder"}
        if latent is not None:
            coder = latent.autoencoder
            found |= {"latent.sha256": latent.sha256, "latent.autoencoder.channels": stage.shape[-1]}
            found |= {f"latent.autoencoder.{name}": getattr(coder, name) for name in NORMALISATION
                      if hasattr(coder, name)}
        return found

    ours, theirs = meanings(stage), meanings(source)
    for name in ours:
        unknown = name == "latent.sha256" and "" in (ours[name], theirs.get(name))  # of a released folder
        if name in theirs and ours[name] != theirs[name] and not unknown:
            yield name, ours[name], theirs[name]


def starting_autoencoder(stage: AutoencoderStage) -> tuple[Inflation, dict[str, Any]]:
    """How an autoencoder begins as that of the file `AutoencoderTraining.init_from`, and the parameters of the file.

    Raises `UserError` for a file that is missing or holds something else, and naming every tensor that it lacks, that
    has no place, or whose shape differs.
    """
    path = stage.training.init_from
    model = load_imported(path)
    where = f"AutoencoderStage {stage.name!r}: training.init_from={path!r}"
    wanted = type(stage.network)
    if type(model.config) is not wanted:
        raise UserError(f"{where} holds {type(model.config).__name__}; permitted: {wanted.__name__}")
    decide = ("groups", "layout", "time_factor") if wanted is Autoencoder else ("patch", "shortcuts", "halve_frames")
    for name in decide:  # what tensors of the same shapes compute
        ours, theirs = getattr(stage.network, name), getattr(model.config, name)
        if ours != theirs:
            raise UserError(f"{where} has {name}={theirs!r} and network.{name}={ours!r}; permitted: the same")
    ours = flatten(network_shapes(stage))
    theirs = flatten(model.params)
    new = [name for name in ours if name not in theirs and _OVER_TIME.search(f"/{name}")]
    wrong = [f"{name} from nothing" for name in ours if name not in theirs and name not in new]
    wrong += [f"nothing from {name}" for name in theirs if name not in ours]
    wrong += [f"{name} {list(ours[name].shape)} from {list(theirs[name].shape)}" for name in ours
              if name in theirs and ours[name].shape != theirs[name].shape]
    if wrong:
        shown = "; ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise UserError(f"{where} does not fit: {shown}; permitted: an autoencoder of the same sizes, which may lack "
                        "layers over time")
    copied = {f"/{name}": f"/{name}" for name in ours if name in theirs}
    return Inflation(copied, (), tuple(f"/{name}" for name in new), None, 1), model.params


def planned(network: Network, shapes: Any, source: Network, source_shapes: Any) -> Inflation:
    """How one network begins as another of its kind. Raises `UserError` for two kinds, and as their plans do."""
    if isinstance(network, UNet) and isinstance(source, UNet):
        return plan_inflation(network, shapes, source, source_shapes)
    if isinstance(network, VideoTransformer) and isinstance(source, VideoTransformer):
        return plan_transformer(network, shapes, source, source_shapes, "the network")
    if isinstance(network, FlowPredictor) and isinstance(source, FlowPredictor):
        return plan_of_same_layers(shapes, source_shapes, "the network begins as a FlowPredictor")
    if not (isinstance(network, LatentNetwork) and isinstance(source, LatentNetwork)):
        raise UserError(f"a {type(network).__name__} that is to begin as a {type(source).__name__}; permitted: two of "
                        "a kind")
    if network.text != source.text:
        raise UserError(f"LatentNetwork.text={network.text} of a network that is to begin as one with {source.text}; "
                        "permitted: the same")
    return plan_latent_inflation(network.unet, shapes, source.unet, source_shapes)


# Fields of a video transformer that decide what tensors of the same shapes compute.
MEANING = ("heads", "patch", "rotary", "qk_norm", "modulation", "level_encoding", "text", "text_tokens",
           "text_length", "text_stream", "cross_norm", "norm", "guidance_perceptron", "out_scale_first",
           "sinusoids", "timesteps", "qk_epsilon", "mask_channels", "patch_order", "epsilon", "boundary")


def plan_transformer(
    network: VideoTransformer, shapes: Any, source: VideoTransformer, source_shapes: Any, where: str
) -> Inflation:
    """How one video transformer begins as another of the same layers. Patterns may differ: a causal one begins as one
    that sees all frames. Raises `UserError`, beginning with `where`, for other layers, and fields that differ."""
    for name in MEANING:
        if getattr(network, name) != getattr(source, name):
            raise UserError(f"{where} begins as a VideoTransformer of {name}={getattr(source, name)}, and has {name}="
                            f"{getattr(network, name)}; permitted: the same", f"VideoTransformer.{name}")
    return plan_of_same_layers(shapes, source_shapes, f"{where} begins as a VideoTransformer")


def plan_of_same_layers(shapes: Any, source_shapes: Any, what: str) -> Inflation:
    """How a network begins as another of the same layers, each as itself. Raises `UserError`, beginning with `what`,
    for others."""
    ours, theirs = ({name: str(list(leaf.shape)) for name, leaf in flatten(tree).items()}
                    for tree in (shapes, source_shapes))
    if text := mismatch(theirs, ours):
        raise UserError(f"{what} of other layers: {text}; permitted: one of the same", "Training.init_from")
    return Inflation({f"/{name}": f"/{name}" for name in ours}, (), (), None, 1)
