"""Run directories: where an experiment's config and its stages' results live, and loading them back.

    runs/NAME/config.json                     the resolved experiment
    runs/NAME/run.json, train.STAGE.lock      identifier of the run, hash of its config; who trains a stage now
    runs/NAME/STAGE/checkpoints/              training states
    runs/NAME/STAGE/metrics.jsonl, events*    scalars (JSON lines, TensorBoard)
    runs/NAME/STAGE/samples/                  sample grids made in training
    runs/NAME/STAGE/evaluation/               scores by step: training_STEP.json, and checkpoint_STEP.json of 'evaluate'
    runs/NAME/STAGE/params.safetensors        instead of checkpoints, in an exported run: weights only
    runs/NAME/STAGE/autoencoder.safetensors   of an autoencoder, once trained: weights, config, measured scale and shift
    runs/NAME/STAGE/reconstruction.json       of an autoencoder: how well it reconstructs validation clips
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from vdm_jax.configuration import from_json, to_data, to_json
from vdm_jax.errors import UserError
from vdm_jax.generation.encoding import RunEncoder
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.released.models import is_released, load_released, read_released
from vdm_jax.networks.config import UNet
from vdm_jax.networks.lora import Adapter
from vdm_jax.runs.autoencoders import FILE, load_autoencoder, save_autoencoder
from vdm_jax.runs.averages import restore_factors, restore_network
from vdm_jax.runs.failures import write_failure
from vdm_jax.runs.identity import IDENTITY, check_config, is_lock, owner, write_identity
from vdm_jax.runs.listing import CARD, CONFIG, WEIGHTS, checkpoints_path
from vdm_jax.runs.manifest import Damaged
from vdm_jax.runs.shipped import find_shipped, shipped_names
from vdm_jax.runs.traced import Traced
from vdm_jax.stages.autoencoding import AnyExperiment, AnyStage
from vdm_jax.stages.distillation import ConsistencyTraining
from vdm_jax.stages.parameters import network_shapes
from vdm_jax.stages.stage import Experiment, Stage
from vdm_jax.video.writing import atomic_path
from vdm_jax.weights.safetensors import load_params, save_params
from vdm_jax.weights.styles import interpolated

if TYPE_CHECKING:
    from vdm_jax.runs.checkpoints import Checkpoints

log = logging.getLogger(__name__)

# Fields that may differ when a run is taken up again. Of training: how long (while the learning rate does not decay),
# how to report, and in how many parts a step is computed; they do not decide what is learnt.
RESUMABLE = ("steps", "log_every", "checkpoint_every", "keep", "sample_every", "validate_every", "workers",
             "measured_clips", "accumulation")
# Of networks: on what machine and in how much memory the same numbers are computed. `kernel` is that of attention,
# where it is a name; kernels of convolutions are numbers.
COMPUTED_HOW = ("remat", "kernel", "context", "sharded_axis", "attention_kernel", "attention_context")


def open_run(run: Path, experiment: AnyExperiment) -> AnyExperiment:
    """Make a run directory, or take up the one that is there.

    Returns the experiment to train. Raises `UserError` when the directory belongs to another config or to something
    else, naming the first field that differs.
    """
    check_run(run, experiment)
    text = to_json(experiment)
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_identity(run, text)
        with atomic_path(run / CONFIG) as temporary:
            temporary.write_text(text)
    except OSError as error:
        raise UserError(f"run directory {run} cannot be written: {write_failure(error)}; permitted: a directory that "
                        "can be (--run)") from error
    return experiment


def check_run(run: Path, experiment: AnyExperiment) -> None:
    """Raises `UserError` as `open_run` does, and writes nothing."""
    if (run / CONFIG).exists():
        stored = read_config(run)
        for field, old, new in differences(to_data(stored), to_data(experiment)):
            if not may_differ(field, old, new, experiment):
                raise UserError(f"run directory {run} belongs to another config: {field} is {old!r} there and {new!r} "
                                "now; permitted: the same config, or another directory (--run)")
    elif run.is_file():
        raise UserError(f"{run} is a file; permitted: a new or empty directory (--run)")
    elif run.exists() and not all(path.name == IDENTITY or is_lock(path) for path in run.iterdir()):
        raise UserError(f"{run} is not empty and not a run (no {CONFIG}); permitted: a new or empty directory (--run)")


def may_differ(field: str, old: Any, new: Any, experiment: AnyExperiment) -> bool:
    """Whether a run may be taken up with another value of a field, whose name is written as `differences` does."""
    if field.startswith("mesh.") or field == "validation_split":  # any number of devices may go on
        return True
    if field.endswith((".latent.weights", ".distillation.teacher.run")):  # the hash says whether they are the same
        return True
    if ".training.evaluation" in field or field.split(".")[0] == "encoder":  # which samples and trains nothing
        return True
    name = field.split(".")[-1]
    if ".training." in field:
        training = experiment.stage(field.split(".")[1]).training
        # The rate decays, and the intervals of consistency training grow, to the end of the steps.
        planned = training.decay or isinstance(training.distillation, ConsistencyTraining)
        return name in RESUMABLE and not (name == "steps" and planned)
    parts = (".network.", ".latent.autoencoder.")
    texts = isinstance(old, str) and isinstance(new, str)
    return name in COMPUTED_HOW and texts and any(part in field for part in parts)


def await_run(run: Path, experiment: AnyExperiment, seconds: float = 60) -> None:
    """Check that this process sees the run that process 0 has opened, and that it has the same config.

    Raises `UserError` when the directory is not shared, or this process was started with other values. `seconds` is how
    long a shared file system may take to show a new file.
    """
    deadline = time.monotonic() + seconds
    while not (run / CONFIG).exists():
        if time.monotonic() > deadline:
            raise UserError(f"run directory {run} is not visible to every process; permitted: a directory that all "
                            "hosts share, by its absolute path (--run)")
        time.sleep(0.5)
    for field, theirs, ours in differences(to_data(read_config(run)), to_data(experiment)):
        raise UserError(f"{field} is {theirs!r} in process 0 and {ours!r} here; permitted: the same command in every "
                        "process")


def read_config(run: Path) -> AnyExperiment:
    """The experiment of a run or of a released model's folder. Raises `UserError` when there is none or it is
    damaged."""
    path = run / CONFIG
    if not path.exists() and is_released(run):
        return read_released(run)
    if not path.exists():
        raise UserError(f"{run} is not a run: {path} does not exist; permitted: a directory made by 'vdm-jax train'")
    try:
        content = path.read_bytes()
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); permitted: the file that 'vdm-jax train' wrote") from error
    try:
        experiment = from_json(AnyExperiment, text, str(path))
    except UserError:
        raise
    except Exception as error:  # of arithmetic with values that no config of ours has
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); permitted: the file that 'vdm-jax "
                        "train' wrote") from error
    check_config(run, path, content)
    return experiment


def stage_checkpoints(run: Path, stage: str, **options: Any) -> Checkpoints:
    """The checkpoints of a stage of a run; those of other runs and stages are refused. Options as of `Checkpoints`."""
    from vdm_jax.runs.checkpoints import Checkpoints  # orbax, which exported weights are loaded without

    return Checkpoints(checkpoints_path(run, stage), owner=owner(run, stage), **options)


def read_cascade(run: Path) -> Experiment:
    """The experiment of a run of diffusion stages. Raises `UserError` as `read_config`, and for other runs."""
    experiment = read_config(run)
    if not isinstance(experiment, Experiment):
        files = ", ".join(str(run / stage.name / FILE) for stage in experiment.stages)
        raise UserError(f"run {run} trains an autoencoder, which makes no videos by itself; permitted: a run of "
                        f"diffusion stages (they take the autoencoder as a file: {files})")
    return experiment


def differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Fields `(name, old, new)` in which two configs differ, as plain data."""
    if isinstance(old, dict) and isinstance(new, dict) and old.get("kind") == new.get("kind"):
        for key in {**old, **new}:
            yield from differences(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            name = a["name"] if isinstance(a, dict) and "name" in a else i
            yield from differences(a, b, f"{where}.{name}")
    elif old != new:
        yield where, old, new


def find_run(name: str | os.PathLike) -> Path:
    """The directory of a run, an exported run or a released model, given as a path or as a name under `runs/` or, where
    there is none, of weights that come with the package. Raises `UserError` listing what there is."""
    for path in (Path(name), Path("runs") / name):
        if (path / CONFIG).exists() or is_released(path):
            return path
    if (shipped := find_shipped(name)) is not None:
        return shipped
    known = [str(p.parent) for p in sorted(Path("runs").glob(f"*/{CONFIG}"))] + list(shipped_names())
    raise UserError(f"run {str(name)!r} was not found; permitted: a run directory, a folder of diffusers, or one of: "
                    f"{', '.join(known) or 'none yet (train one first)'}")


def load_stage(run: Path, stage: AnyStage, damaged: Damaged = "refuse", step: int | None = None,
               traced: Traced | None = None) -> Any | None:
    """The averaged (EMA) parameters of a trained stage, or None when it has not been trained.

    `damaged="skip"` uses the newest intact checkpoint instead of a damaged newer one, and says so. `step` names another
    checkpoint than the newest. `traced` keeps the shapes of networks.

    Raises `UserError` naming the first parameter that does not fit the stage's network, or what is damaged.
    """
    if not (run / CONFIG).exists() and is_released(run):
        return load_released(run).params.get(stage.name)
    weights, shapes = run / stage.name / WEIGHTS, network_shapes if traced is None else traced.shapes
    if weights.exists():
        return load_params(weights, shapes(stage))[0]
    checkpoints = stage_checkpoints(run, stage.name)
    if checkpoints.latest() is None:
        return None
    step = _readable(checkpoints, stage, damaged) if step is None else step
    return restore_network(checkpoints, stage, step, shapes(stage))


def load_adapter(run: Path, stage: Stage, damaged: Damaged = "refuse") -> Adapter:
    """The averaged factors of a stage that trains a LoRA, `damaged` as in `load_stage`. Raises `UserError` for another
    stage, one that is not trained, and an exported run, whose weights have the factors merged."""
    if not stage.training.lora:
        raise UserError(f"stage {stage.name!r} of {run} trains no LoRA (training.lora=()); permitted: one that "
                        "does")
    checkpoints = stage_checkpoints(run, stage.name)
    if checkpoints.latest() is None:
        raise UserError(f"stage {stage.name!r} of {run} has no checkpoint; permitted: a run directory in which it is "
                        "trained")
    return restore_factors(checkpoints, stage, _readable(checkpoints, stage, damaged))


def _readable(checkpoints: Checkpoints, stage: AnyStage, damaged: Damaged) -> int | None:
    """The newest step, as None, or where damaged ones are to be skipped the newest intact one, with a warning."""
    step = checkpoints.newest_intact() if damaged == "skip" else None
    if step not in (None, checkpoints.latest()):
        log.warning("stage %s: checkpoint %d is used, because newer ones are damaged (%s)", stage.name, step,
                    ", ".join(f"{number}: {reason}" for number, reason in checkpoints.newest_damages().items()))
    return step


def load_autoencoders(experiment: Experiment, run: Path, names: Collection[str]) -> dict[str, Any]:
    """Weights of the autoencoders of those named stages that work in latents; what is the same is there once. Raises
    `UserError` for files that are missing or not the ones the run was made with."""
    found: dict[str, Any] = {}  # by hash
    stages = [stage for stage in experiment.stages if stage.latent is not None and stage.name in names]
    for stage in stages:
        if stage.latent.sha256 not in found:
            found[stage.latent.sha256], = load_autoencoder(stage, run)
    return {stage.name: found[stage.latent.sha256] for stage in stages}


def load(run: str | os.PathLike, devices: list[jax.Device] | None = None, damaged: Damaged = "refuse",
         traced: Traced | None = None) -> Generator:
    """A generator from a run directory, a name under `runs/`, a folder that `export` wrote, or the folder of a released
    model in the layout of diffusers.

    `damaged="skip"` uses the newest intact checkpoint of a stage where a newer one is damaged. `traced` keeps what
    tracing says of a run for the next process (`runs/traced.py`).

    >>> generate = vdm_jax.load("runs/captioned_digits")
    >>> generate(["a red three moving left"], seed=0).save("three.mp4")

    Raises `UserError` when there is no such run, no stage of it is trained, or a checkpoint is damaged.
    """
    path = find_run(run)
    if not (path / CONFIG).exists():
        return load_released(path, devices)
    experiment = read_cascade(path)
    params = {stage.name: load_stage(path, stage, damaged, traced=traced) for stage in experiment.stages}
    params = {name: tree for name, tree in params.items() if tree is not None}
    if not params:
        raise UserError(f"run {path} has no trained stage yet; permitted: a run with at least one checkpoint")
    encoder = None if experiment.encoder is None else RunEncoder(experiment.encoder, experiment)
    return Generator(experiment, params, devices, load_autoencoders(experiment, path, params), encoder,
                     None if traced is None else traced.function)


def stylised(generator: Generator, run: str | os.PathLike, weight: float, damaged: Damaged = "refuse") -> Generator:
    """The generator with the image layers of its first stage moved towards those of an image run
    (`weights/styles.py`): its stage of the same name, or else its first.

    Raises `UserError` when there is no such run, it is not trained, or its layers do not fit.
    """
    path, first = find_run(run), generator.experiment.stages[0]
    stages = read_cascade(path).stages
    stage = next((s for s in stages if s.name == first.name), stages[0])
    style = load_stage(path, stage, damaged)
    if style is None or first.name not in generator.params:
        raise UserError(f"stage {stage.name!r} of {f'run {path}' if style is None else 'the run'} is not trained; "
                        "permitted: a trained image run for a trained first stage")
    if not (isinstance(first.network, UNet) and isinstance(stage.network, UNet)):
        raise UserError(f"a style of stage {stage.name!r} for stage {first.name!r}, whose networks are not both a "
                        "UNet; permitted: two UNets")
    ours, theirs = jax.device_get((generator.params[first.name], style))  # which may be on different devices
    mixed = interpolated(ours, theirs, weight, first.network, stage.network)
    return Generator(generator.experiment, {**generator.params, first.name: mixed}, list(generator.mesh.devices.flat),
                     generator.autoencoders, generator.encoder)


def export(generator: Generator, folder: Path, dtype: str | None = None,
           card: Callable[[Experiment], str] | None = None) -> None:
    """Write a generator as a folder of config and safetensors, which `load` reads like a run.

    `dtype` stores floating-point weights in another type ('float16', 'bfloat16'); those of autoencoders stay as they
    are. `card` gives the text of README.md from the exported config (`runs/model_card.py`).
    """
    for name, params in generator.params.items():
        target = folder / name / WEIGHTS
        target.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"stage": name, "experiment": generator.experiment.name}
        save_params(target, jax.device_get(params), metadata, dtype=dtype)

    def exported(stage: Stage) -> Stage:
        if stage.name not in generator.autoencoders:
            return stage
        weights = jax.device_get(generator.autoencoders[stage.name])
        return dataclasses.replace(stage, latent=save_autoencoder(folder, stage, weights))

    experiment = dataclasses.replace(generator.experiment, stages=tuple(map(exported, generator.experiment.stages)))
    if card is not None:
        with atomic_path(folder / CARD) as temporary:
            temporary.write_text(card(experiment), encoding="utf-8")
    with atomic_path(folder / CONFIG) as temporary:  # last: with it the folder is a run
        temporary.write_text(to_json(experiment))
