"""The training loop of one stage: data in, checkpoints, metrics and sample grids out. All effects are here."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from vdm_jax.configuration import digest
from vdm_jax.data.embeddings import check_embeddings
from vdm_jax.data.opening import WITHOUT_VALIDATION, open_source, open_validation
from vdm_jax.data.pipeline import FlipAugmentation, Pipeline
from vdm_jax.data.source import RandomAccessSource
from vdm_jax.errors import NotFinite, UserError
from vdm_jax.parallel.arrays import global_batch, process_rows
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.processes import first_says, together
from vdm_jax.parallel.rules import batch_parts
from vdm_jax.runs.autoencoders import load_autoencoder
from vdm_jax.runs.checkpoints import Checkpoints
from vdm_jax.runs.directory import stage_checkpoints
from vdm_jax.runs.failures import write_failure
from vdm_jax.runs.manifest import Damaged
from vdm_jax.runs.records import EVALUATION, MetricWriter, read_records
from vdm_jax.runs.teachers import check_teacher
from vdm_jax.seeds import key_for
from vdm_jax.stages.inputs import device_fields, training_inputs
from vdm_jax.stages.latent import abstract_weights
from vdm_jax.stages.options import DataSet
from vdm_jax.stages.stage import Experiment, Stage
from vdm_jax.training.init_from import beginning, check_beginning, starting_weights
from vdm_jax.training.perceptual import perceptual_weights
from vdm_jax.training.profiling import FOLDER as PROFILE
from vdm_jax.training.profiling import Tracer, steps_to_trace
from vdm_jax.training.report import Report, StageProgress, duration
from vdm_jax.training.sample_grids import SampleGrids
from vdm_jax.training.state import TrainState, abstract_state, averaging, create_state
from vdm_jax.training.step import Batch, CompileStep, compile_train_step, compile_validation
from vdm_jax.training.stopping import StopRequests, stop_requests
from vdm_jax.training.throughput import Throughput
from vdm_jax.video.writing import atomic_path
from vdm_jax.weights.inflation import BeginApart, Inflation

VALIDATION = "validation"  # purpose of random numbers
MAX_SKIPPED = 20  # steps in a row without a finite gradient before a run gives up
# From (averaged parameters, step, function called with the videos done) to scalars, in process 0; made from
# (experiment, stage, its folder, mesh, data_dir, weights of its autoencoder). The room of evaluation lies below this
# one, so commands hand it in.
Evaluate = Callable[[Any, int, Callable[[int], None]], dict[str, float]]
MakeEvaluate = Callable[[Experiment, Stage, Path, Mesh, Path | None, tuple[Any, ...]], Evaluate]


class Interrupted(Exception):
    """The user or the cluster asked the run to stop; everything is saved."""


class Grids(Protocol):
    """Pictures that show how far training has come."""

    def write(self, params: Any, step: int) -> np.ndarray:
        """Write those of a step; returns one, uint8 `[H, W, 3]`."""


@dataclasses.dataclass
class Trainer:
    """One stage of an experiment being trained in a run directory, by one process or several alike.

    Args:
      experiment: resolved config.
      stage: which of its stages.
      run: the run directory.
      report: where progress is shown.
      data_dir: where prepared data sets live.
      devices: to train on; all devices of all processes by default.
      damaged: what to do when the newest checkpoint is damaged: refuse, or set it aside and use the one before.
      evaluation: what evaluates the stage where its training asks for it (`evaluation.in_training.StageEvaluation`).
      compile_step: what compiles the train step, and may refuse it (`planning.before.checked_compile`).
      least_seconds: seconds of a step at the devices' peak, for the MFU, of a stage, the shapes of a batch and of the
        parameters, and a mesh; None: not known.
      profile: steps to trace, as `steps_to_trace` reads them.
    """

    experiment: Experiment
    stage: Stage
    run: Path
    report: Report
    data_dir: Path | None = None
    devices: Sequence[jax.Device] | None = None
    damaged: Damaged = "refuse"
    evaluation: MakeEvaluate | None = None
    compile_step: CompileStep | None = None
    least_seconds: Callable[[Stage, Any, Any, Mesh], float | None] | None = None
    profile: str | None = None
    sources: dict[str, RandomAccessSource] = dataclasses.field(default_factory=dict)  # by split, once opened
    autoencoder: tuple[Any, ...] = ()  # weights of a latent stage's, once read

    def train(self) -> None:
        """Train to the configured number of steps, resuming from the last checkpoint if there is one.

        Raises `UserError` for bad data or checkpoints and where the run can no longer be written, `NotFinite` for too
        many steps without a finite gradient and final samples that are not finite, `Interrupted` after a clean early
        stop.
        """
        try:
            self._train()
        except OSError as error:
            steps = stage_checkpoints(self.run, self.stage.name).steps()
            kept = f"the same command goes on from step {steps[-1]}" if steps else "nothing was saved yet"
            raise UserError(f"stage {self.stage.name!r}: {error.filename or self.run}: {write_failure(error)}; "
                            f"{kept}") from error

    def check(self) -> None:
        """Raise `UserError` where devices or data cannot serve the stage, without writing anything: read one clip and
        ask for the shapes of what becomes of it."""
        mesh = make_mesh(self.experiment.mesh, self.devices)
        self._check_batch(mesh)
        check_beginning(self.stage)
        pipeline = self._pipeline("train", mesh)
        if self.stage.training.validate_every:
            self._pipeline("validation", mesh)
        else:  # sample grids show its clips
            self._source(self.experiment.data, "validation")
        batch = dataclasses.replace(pipeline, rows=(0,), images_per_clip=min(pipeline.images_per_clip, 1)).batch(0)
        shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in device_fields(batch).items()}
        jax.eval_shape(self._inputs, shapes, jax.random.key(0), *abstract_weights(getattr(self.stage, "latent", None)))

    def _check_batch(self, mesh: Mesh) -> None:
        spec = self.stage.training
        if spec.batch_size // spec.accumulation % batch_parts(mesh):
            raise UserError(f"training.batch_size={spec.batch_size} with accumulation={spec.accumulation} does not "
                            f"divide over {batch_parts(mesh)} devices; permitted: multiples of "
                            f"{batch_parts(mesh) * spec.accumulation}")

    def _train(self) -> None:
        spec = self.stage.training
        mesh = make_mesh(self.experiment.mesh, self.devices)
        self._check_batch(mesh)
        if spec.evaluation.every and self.evaluation is None:
            raise UserError(f"Stage {self.stage.name!r}: training.evaluation.every={spec.evaluation.every} with "
                            "Trainer.evaluation=None; permitted: StageEvaluation, or every=0")
        folder = self.run / self.stage.name
        with stage_checkpoints(self.run, self.stage.name, keep=spec.keep) as checkpoints:
            pipeline = None
            if checkpoints.latest() is None:  # before a network is initialised, which can take minutes
                pipeline = together(lambda: self._pipeline("train", mesh))
            state, start = self._state(checkpoints, mesh)
            if start >= spec.steps:
                self.report.note(f"stage {self.stage.name}: already trained to step {start}")
                return
            traced = range(0) if self.profile is None else steps_to_trace(self.profile, start, spec.steps)
            pipeline = pipeline or together(lambda: self._pipeline("train", mesh))
            together(self._read_frozen)
            with MetricWriter(folder, first_step=start + 1) as writer, stop_requests() as stop:
                state = self._loop(state, start, mesh, pipeline, checkpoints, writer, stop, traced)
        self._summarise(folder, state)
        if stop.requested and jax.process_count() == 1:  # during the last step; with others it shows in the next stage
            raise Interrupted(f"stopped at the end of stage {self.stage.name!r}; everything is saved")

    def _state(self, checkpoints: Checkpoints, mesh: Mesh) -> tuple[TrainState, int]:
        if self.damaged == "skip":
            for step, reason in checkpoints.set_damaged_aside().items():
                self.report.note(f"stage {self.stage.name}: checkpoint {step} is damaged and set aside: {reason}")
        if checkpoints.latest() is None:
            self.report.note(f"stage {self.stage.name}: initialising the network")
            if beginning(self.stage) is None:
                return create_state(self.stage, self.experiment.seed, mesh), 0
            inflation, source = together(self._starting_weights)
            self.report.note(f"stage {self.stage.name}: begins as {beginning(self.stage)}: {inflation}")
            return create_state(self.stage, self.experiment.seed, mesh, inflation, source), 0
        together(lambda: check_teacher(self.stage, self.damaged))
        state, meta = together(lambda: checkpoints.restore(abstract_state(self.stage, mesh)))
        self.report.note(f"stage {self.stage.name}: resuming at step {meta['step']}")
        return state, meta["step"]

    def _pipeline(self, split: str, mesh: Mesh) -> Pipeline:
        """The data of a split; position is the step, so nothing about it needs saving."""
        spec = self.stage.training
        source = self._source(self.experiment.data, split)
        beside = self._read_beside(source, split)
        self.sources[split] = source
        size = spec.batch_size
        if split == "validation":  # a small split is validated on as many clips as it has
            parts = batch_parts(mesh)
            size = min(size, len(source)) // parts * parts
            if not size:
                raise UserError(f"the validation split has {len(source)} clips for {parts} devices; permitted: at "
                                f"least {parts}{WITHOUT_VALIDATION}")
        elif size > len(source):
            raise UserError(f"Stage {self.stage.name!r}: training.batch_size={size} is larger than the data set; "
                            f"permitted: 1 to {len(source)}")
        return Pipeline(source, batch_size=size, seed=self.experiment.seed,
                        augment=FlipAugmentation() if spec.flips and split == "train" else None,
                        random_starts=spec.random_starts and split == "train",
                        rows=tuple(process_rows(size, mesh).tolist()), workers=spec.workers, **beside)

    def _source(self, data: DataSet, split: str) -> RandomAccessSource:
        if split == "validation":
            return open_validation(data, self.experiment.validation_split, self.data_dir)
        return open_source(data, split, self.data_dir)

    # What is trained. Another kind of stage has another trainer (`autoencoder_loop.py`), which says these anew.

    def _read_frozen(self) -> None:
        """Weights of networks that the stage uses and does not train."""
        self.autoencoder = load_autoencoder(self.stage, self.run)
        perceptual_weights(self.stage)  # looked for before any work

    def _inputs(self, batch: Batch, key: jax.Array, *autoencoder: Any) -> Any:
        """What the stage makes of a batch."""
        return training_inputs(self.stage, batch, key, *autoencoder)[:2]

    def _starting_weights(self) -> tuple[Inflation | BeginApart, Any]:
        """How the network begins as another one, and the parameters of that one."""
        return starting_weights(self.stage, self.run, self.damaged)

    def _read_beside(self, source: RandomAccessSource, split: str) -> dict[str, Any]:
        """Options of the pipeline for what is read next to the clips: text, images, frame rates."""
        spec, text = self.stage.training, self.stage.network.text
        images = None if spec.image_data is None else self._source(spec.image_data, split)
        if text is not None and text.embedded:
            for origin in (source, images) if images is not None else (source,):
                check_embeddings(origin, text.width, self.stage.name)
        rates = spec.frame_rates
        if rates is not None and split == "validation":  # at the rate the stage is meant for, whatever training is at
            rates = dataclasses.replace(rates, lowest=self.stage.video.fps, highest=self.stage.video.fps)
        return {"tokenize": None if text is None else text.tokenize,
                "frame_rates": rates, "frames": self.stage.video.frames, "images_per_clip": spec.images_per_clip,
                "images_source": images}

    def _step(self, mesh: Mesh) -> Callable[[int, TrainState, Batch], tuple[TrainState, dict[str, Any]]]:
        """The training step, a function of its number (from 1), state and batch."""
        fixed = self.autoencoder or perceptual_weights(self.stage)
        function = compile_train_step(self.stage, mesh, fixed, self.compile_step)
        return lambda step, state, batch: function(state, batch)

    def _losses(self, mesh: Mesh) -> Callable[[Any, Batch], dict[str, float]]:
        """A function from averaged parameters and a batch to `validation_loss`, and what else is validated."""
        function = compile_validation(self.stage, mesh, self.autoencoder)
        key = key_for(self.experiment.seed, VALIDATION)
        return lambda params, batch: {"validation_loss": float(function(params, batch, key))}

    def _grids(self, folder: Path, mesh: Mesh) -> Grids:
        """What pictures are made of, from time to time."""
        return SampleGrids(self.experiment, self.stage, folder, mesh, self.data_dir, self.autoencoder)

    def _loop(self, state: TrainState, start: int, mesh: Mesh, pipeline: Pipeline, checkpoints: Checkpoints,
              writer: MetricWriter, stop: StopRequests, traced: Sequence[int] = ()) -> TrainState:
        spec = self.stage.training
        step_function = self._step(mesh)
        validate = self._validation(mesh)
        folder = self.run / self.stage.name / "samples"
        grids = together(lambda: self._grids(folder, mesh))
        evaluate = self._evaluation(mesh, writer)
        averaged = averaging(self.stage, mesh)
        throughput = Throughput(spec.batch_size, spec.steps)
        pending: list[tuple[int, dict[str, Any]]] = []  # metrics still on the device
        skipped_in_a_row = 0
        with (self.report.stage(self.stage.name, start, spec.steps) as progress, pipeline.iterate(start) as batches,
              contextlib.closing(Tracer(traced, self.run / self.stage.name / PROFILE, progress.note,
                                        throughput.pause)) as tracer):
            began = time.monotonic()
            if evaluate and start and start % spec.evaluation.every == 0 and self._unevaluated(start):
                evaluate(averaged(state), start, progress)  # it was stopped before it came to this
            for step in range(start + 1, spec.steps + 1):
                with tracer.step(step, state):
                    with throughput.waiting():
                        batch = next(batches)
                    on_device = device_batch(batch, mesh, spec.batch_size)
                    if step == start + 1 and self.least_seconds is not None:
                        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
                                              (on_device, state.params))
                        throughput.least_seconds = self.least_seconds(self.stage, *shapes, mesh)
                    state, metrics = step_function(step, state, on_device)
                tracer.end(step, metrics)
                pending.append((step, metrics))
                if step == start + 1:
                    jax.block_until_ready(metrics)
                    progress.note(f"first step compiled in {time.monotonic() - began:.0f} s")
                    throughput.update(step)
                last = step == spec.steps
                if step % spec.log_every == 0 or last:
                    skipped_in_a_row = self._log(pending, throughput, writer, skipped_in_a_row)
                    progress.update(step, pending[-1][1]["loss"], throughput.rates())
                    pending.clear()
                stopping = stop.agreed()
                every = (spec.checkpoint_every, spec.validate_every, spec.sample_every, spec.evaluation.every)
                if stopping or any(number and step % number == 0 for number in every):
                    jax.block_until_ready(metrics)  # steps that end during the pause would seem to take no time
                with throughput.pause():
                    if last or stopping or step % spec.checkpoint_every == 0:
                        self._save(checkpoints, step, state)
                    if validate and (step % spec.validate_every == 0 or last):
                        losses = validate(averaged(state))
                        writer.write(step, losses)
                        progress.note(f"step {step}: " + ", ".join(
                            f"{name.replace('_', ' ')} {value:.4f}" for name, value in losses.items()))
                    if last or (spec.sample_every and step % spec.sample_every == 0):
                        self._write_grid(grids, averaged(state), step, writer, progress)
                    if evaluate and (step % spec.evaluation.every == 0 or last):
                        evaluate(averaged(state), step, progress)
                if stopping and not last:
                    checkpoints.wait()
                    raise Interrupted(f"stopped at step {step} of stage {self.stage.name!r}; everything is saved")
        return state

    def _write_grid(self, grids: Grids, params: Any, step: int, writer: MetricWriter,
                     progress: StageProgress) -> None:
        """Samples that are not finite end the run only where they are its result."""
        try:
            writer.image(step, "samples", grids.write(params, step))
        except NotFinite as error:
            if step == self.stage.training.steps:
                raise NotFinite(f"step {step}: {error}; everything is saved") from error
            progress.note(f"step {step}: no samples: {error}")

    def _log(self, pending: list, throughput: Throughput, writer: MetricWriter, skipped_in_a_row: int) -> int:
        """Fetch the window's metrics, write their mean, and count steps whose gradient was not finite."""
        fetched = jax.device_get([metrics for _, metrics in pending])
        throughput.update(pending[-1][0])  # here, where the device has really finished
        for (number, _), metrics in zip(pending, fetched, strict=True):
            skipped_in_a_row = skipped_in_a_row + 1 if metrics["skipped"] else 0
            if skipped_in_a_row >= MAX_SKIPPED:
                raise NotFinite(f"stage {self.stage.name!r}: loss or gradient was not finite for {MAX_SKIPPED} steps "
                                f"in a row, up to step {number}; permitted: a lower training.learning_rate, or "
                                "network.dtype='float32'")
        step = pending[-1][0]
        finite = [m for m in fetched if not m["skipped"]] or fetched
        means = {name: float(np.mean([m[name] for m in finite])) for name in fetched[0]}
        means["skipped"] = float(np.sum([m["skipped"] for m in fetched]))
        pending[-1] = (step, means)
        writer.write(step, {**means, **throughput.rates()})
        return skipped_in_a_row

    def _summarise(self, folder: Path, state: TrainState) -> None:
        """Write and show what the run came to: size of the network, clips, files that had to be skipped."""
        skipped = dict(getattr(self.sources["train"], "skipped", {}))
        averaged = {**state.params, **state.ema} if getattr(self.stage.training, "lora", ()) else state.ema
        parameters = sum(leaf.size for leaf in jax.tree.leaves(averaged))
        summary = {"stage": self.stage.name, "steps": self.stage.training.steps, "parameters": parameters,
                   "training_clips": len(self.sources["train"]), "skipped_files": skipped}
        if jax.process_index() == 0:
            with atomic_path(folder / "summary.json") as temporary:
                temporary.write_text(json.dumps(summary, indent=1) + "\n")
        note = f"; {len(skipped)} files skipped (see summary.json)" if skipped else ""
        self.report.note(f"stage {self.stage.name}: {parameters / 1e6:.2f} M parameters, "
                         f"{len(self.sources['train'])} training clips{note}")

    def _save(self, checkpoints: Checkpoints, step: int, state: TrainState) -> None:
        checkpoints.save(step, state, {"stage": self.stage.name, "config": digest(self.experiment)})

    def _validation(self, mesh: Mesh) -> Callable[[Any], dict[str, float]] | None:
        """A function from parameters to losses on a fixed validation batch with fixed noise, or None."""
        if not self.stage.training.validate_every:
            return None
        pipeline = together(lambda: self._pipeline("validation", mesh))
        batch = device_batch(pipeline.batch(0), mesh, pipeline.batch_size)
        losses = self._losses(mesh)
        return lambda params: losses(params, batch)

    def _evaluation(self, mesh: Mesh, writer: MetricWriter) -> Callable[[Any, int, StageProgress], None] | None:
        """What scores the averaged parameters at a step, writes the scores and shows them, or None."""
        if not self.stage.training.evaluation.every:
            return None
        score = together(lambda: self.evaluation(self.experiment, self.stage, self.run / self.stage.name, mesh,
                                                 self.data_dir, self.autoencoder))
        total = self.stage.training.evaluation.clips

        def evaluate(params: Any, step: int, progress: StageProgress) -> None:
            began = time.monotonic()
            try:
                scores = score(params, step, lambda done: progress.doing(f"evaluating {done}/{total}"))
            except (UserError, NotFinite) as error:  # a score is not worth a run
                progress.note(f"step {step}: no evaluation: {error}")
                return
            writer.write(step, scores)
            progress.note(f"step {step}: scores of {total} generated videos: {_shown(scores)} "
                          f"(took {duration(time.monotonic() - began)})")

        return evaluate

    def _unevaluated(self, step: int) -> bool:
        """Whether process 0 finds no evaluation of a step among the metrics; all processes get the same answer."""
        folder = self.run / self.stage.name
        return first_says(lambda: not any(record["step"] == step and any(name.startswith(EVALUATION) for name in record)
                                          for record in read_records(folder)))


def _shown(scores: dict[str, float]) -> str:
    """Scores as a line, each next to that of the real clips, where there is one."""
    parts = []
    for name, value in scores.items():
        if not name.startswith(f"{EVALUATION}real/"):
            short = name.removeprefix(EVALUATION)
            real = scores.get(f"{EVALUATION}real/{short}")
            parts.append(f"{short} {value:.3g}" + ("" if real is None else f" (real clips {real:.3g})"))
    return ", ".join(parts)


def device_batch(batch: dict[str, Any], mesh: Mesh, size: int | None = None) -> dict[str, jax.Array]:
    """The fields of a batch that the device reads, on the mesh; `size` as in `global_batch`. Raises like
    `device_fields`."""
    return global_batch(device_fields(batch), mesh, size)
