"""Teachers of distilled stages: averaged parameters of other runs, distinguished by their hash."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import jax
import numpy as np

from vdm_jax.errors import UserError
from vdm_jax.runs.directory import find_run, load_stage, read_cascade
from vdm_jax.runs.manifest import Damaged
from vdm_jax.stages.distillation import Teacher
from vdm_jax.stages.stage import Experiment, Stage
from vdm_jax.weights.safetensors import flatten


def with_teachers(experiment: Experiment, stored: Experiment | None, damaged: Damaged = "refuse") -> Experiment:
    """The experiment with the hashes of its teachers: those that its run was made with (`stored`), or else of what is
    there now. Raises `UserError` for a teacher that is missing or not trained."""
    known = {stage.name: teacher.sha256 for stage in (stored.stages if stored else ())
             if (teacher := teacher_of(stage)) is not None}

    def pinned(stage: Stage) -> Stage:
        teacher = teacher_of(stage)
        if teacher is None or teacher.sha256:
            return stage
        found = known.get(stage.name) or params_hash(_load(stage, teacher, damaged))
        distillation = dataclasses.replace(stage.training.distillation,
                                           teacher=dataclasses.replace(teacher, sha256=found))
        return dataclasses.replace(stage, training=dataclasses.replace(stage.training, distillation=distillation))

    return dataclasses.replace(experiment, stages=tuple(map(pinned, experiment.stages)))


def teacher_of(stage: Stage) -> Teacher | None:
    """The teacher of a stage, if it has one."""
    return None if stage.training.distillation is None else stage.training.distillation.teacher


def teacher_params(stage: Stage, damaged: Damaged = "refuse") -> Any:
    """The averaged parameters of a stage's teacher, on the host. Raises `UserError` where they are missing or have
    changed since the student's run was made."""
    teacher = teacher_of(stage)
    params = _load(stage, teacher, damaged)
    if teacher.sha256 and (found := params_hash(params)) != teacher.sha256:
        raise UserError(f"Stage {stage.name!r}: training.distillation.teacher.sha256={teacher.sha256!r}, but the stage "
                        f"{teacher.stage!r} of run {teacher.run} has {found!r} now: it has been trained since; "
                        "permitted: the teacher that the run was made with, or a new run (--run)")
    return params


def check_teacher(stage: Stage, damaged: Damaged = "refuse") -> None:
    """Raises `UserError` as `teacher_params` does; nothing for a stage without a teacher."""
    if getattr(stage.training.distillation, "teacher", None) is not None:
        teacher_params(stage, damaged)


def params_hash(params: Any) -> str:
    """SHA-256 of parameters: their names, types, shapes and numbers."""
    found = hashlib.sha256()
    for name, leaf in sorted(flatten(params).items()):
        array = np.ascontiguousarray(leaf)
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def _load(stage: Stage, teacher: Teacher, damaged: Damaged) -> Any:
    folder = find_run(teacher.run)
    params = load_stage(folder, read_cascade(folder).stage(teacher.stage), damaged)
    if params is None:
        raise UserError(f"Stage {stage.name!r}: training.distillation.teacher.stage={teacher.stage!r} of run {folder} "
                        "is not trained; permitted: a trained stage")
    return jax.device_get(params)
