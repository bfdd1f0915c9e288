"""Whether the sizes of an experiment can be held at all, by products of its numbers: no data is opened, nothing is
traced, so that a slip of some zeros ends at once. What passes is then estimated from shapes (`before.py`)."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from vdm_jax.data.opening import default_data_dir
from vdm_jax.errors import UserError
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.planning.advice import capacity_of, machine_memory
from vdm_jax.planning.chips import GIB
from vdm_jax.planning.inputs import clip_shape
from vdm_jax.stages.autoencoding import AnyExperiment, AnyStage
from vdm_jax.stages.stage import Stage

FLOAT = 4  # bytes
GRID = 4  # clips of a sample grid
FRAMES = 4096  # whose table of which frame sees which is made in a second or two, whenever a network is traced
TOKENS = 2**21  # of one attention, whose map of blocks is made in as long

Amount = tuple[str, str, int]  # what it is, the fields that decide it, bytes


def check_budget(experiment: AnyExperiment, stages: Sequence[str], data_dir: Path | None = None) -> None:
    """Refuse stages whose clips, videos or data are more than the memory of this machine and of all devices, or the
    free space of its disk. Raises `UserError` with both sizes and the fields that decide them."""
    mesh = make_mesh(experiment.mesh)
    device = capacity_of(mesh.devices.flat[0])
    for name in stages:
        stage = experiment.stage(name)
        if isinstance(stage, Stage):
            _check_frames(stage)
            _check_tokens(stage)
        for amount in _on_host(experiment, stage):
            _refuse(f"stage {name!r}: {amount[0]}", amount, machine_memory(), "this machine's memory")
        if device is not None:
            amount = _on_devices(stage)
            _refuse(f"stage {name!r}: {amount[0]}", amount, device * mesh.size, f"the memory of {mesh.size} devices")
    size, folder = experiment.data.stored_bytes(), data_dir or default_data_dir()
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    _refuse(f"what is prepared of {type(experiment.data).__name__}", ("", "data: clips, frames, pixels", size),
            shutil.disk_usage(there).free, f"the disk of {folder}")


def _on_host(experiment: AnyExperiment, stage: AnyStage) -> Iterator[Amount]:
    """What the host holds at a time, at the least."""
    spec, (frames, height, width) = stage.training, clip_shape(experiment.data, stage)[0]
    if getattr(spec, "frame_rates", None) is not None:
        frames = stage.video.frames
    batch = -(-spec.batch_size // jax.process_count())
    clip, fields = frames * height * width * 3, "data.frames, height and width (or size)"
    yield f"a batch of {spec.batch_size} clips", f"training.batch_size, {fields}", batch * clip
    if isinstance(stage, Stage) and spec.images_per_clip:
        yield (f"a batch with {spec.images_per_clip} images per clip", "training.batch_size, images_per_clip",
               batch * spec.images_per_clip * height * width * 3)
    yield f"a sample grid of {GRID} videos", "video.frames, height, width", GRID * math.prod(stage.video.shape)
    if spec.evaluation.every:
        yield (f"{spec.evaluation.clips} clips to evaluate", "training.evaluation.clips",
               spec.evaluation.clips * (clip + math.prod(stage.video.shape)))


def _on_devices(stage: AnyStage) -> Amount:
    """What all devices hold of a training step at the least: the videos of a micro-batch, noisy and predicted."""
    video = stage.trained().shape if isinstance(stage, Stage) else stage.video.shape
    size = stage.training.batch_size // stage.training.accumulation * math.prod(video) * FLOAT * 2
    return "the videos of a step", "training.batch_size, video.frames, height, width", size


def _check_frames(stage: Stage) -> None:
    """Refuse a clip of so many frames that the tables of attention, which grow with their square, take long to make."""
    frames = stage.trained().video.frames + stage.training.images_per_clip
    if frames > FRAMES:
        raise UserError(f"stage {stage.name!r}: the table of which frame sees which of {frames} frames is too large "
                        f"to plan with; permitted: at most {FRAMES} of video.frames and training.images_per_clip; "
                        "or --no-plan to try anyway")


def _check_tokens(stage: Stage) -> None:
    """Refuse attention over so many tokens at once that its map of blocks, which grows with their square, takes long
    to make."""
    most = max(stage.network.attended(*stage.trained().shape[:3]), default=0)
    if most > TOKENS:
        raise UserError(f"stage {stage.name!r}: attention over {most} tokens at once is too much to plan with; "
                        f"permitted: at most {TOKENS}, by less of video.frames, height, width; "
                        "or --no-plan to try anyway")


def _refuse(what: str, amount: Amount, there: int, where: str) -> None:
    _, fields, size = amount
    if size > there:
        raise UserError(f"{what}: {size / GIB:.4g} GiB at the least, and {where} has {there / GIB:.4g} GiB; "
                        f"permitted: less of {fields}; or --no-plan to try anyway")
