"""`vdm-jax train`: train the stages of a config into a run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from jax.sharding import Mesh

from vdm_jax.commands.arguments import override, parse_with_rest
from vdm_jax.commands.configs import config_folder, load_config
from vdm_jax.configuration import Count, CountOrZero
from vdm_jax.data.embeddings import TextEmbeddings, WithEmbeddings
from vdm_jax.data.opening import caption_words, open_source
from vdm_jax.errors import UserError
from vdm_jax.parallel.processes import first, start_processes, together
from vdm_jax.runs.autoencoders import resolved
from vdm_jax.runs.directory import await_run, check_run, find_run, open_run, read_cascade, stage_checkpoints
from vdm_jax.runs.identity import run_locks
from vdm_jax.runs.manifest import Damaged
from vdm_jax.runs.teachers import with_teachers
from vdm_jax.stages.autoencoding import AnyExperiment, AutoencoderExperiment
from vdm_jax.stages.stage import Experiment, Stage
from vdm_jax.training.profiling import steps_to_trace
from vdm_jax.training.report import Report, log_console


@dataclasses.dataclass(frozen=True)
class Train:
    """Train the stages of a config, one after the other, into a run directory.

    CONFIG is a name from 'vdm-jax list' or a path to a Python file with get_config(). Any value of the config can be
    overridden with a typed flag: --base.training.steps 2000, --data.seed 1, --mesh.fsdp 2. An interrupted run resumes
    when the same command is given again; stages that are finished are left alone.

    Several hosts train together when the same command is started on each: a TPU slice, SLURM, Open MPI and Kubernetes
    are recognised, elsewhere --coordinator, --processes and --process-id say it. The run directory must be shared.
    SIGTERM or Ctrl-C in any process saves in all of them and ends with exit code 130; the same command resumes.

    A config of an autoencoder ends with RUN/STAGE/autoencoder.safetensors, which latent stages take, and
    RUN/STAGE/reconstruction.json (PSNR, SSIM and, where its weights are, LPIPS on validation clips).

    Examples:
      vdm-jax train captioned_digits
      vdm-jax train captioned_digits --stage base --base.training.batch-size 32 --run runs/wide
      vdm-jax train captioned_digits --help      # also lists every value that can be overridden
    """

    config: tyro.conf.Positional[str]  # name or path of the config
    run: Path | None = None  # run directory; by default runs/NAME of a shipped config, runs/FILE of FILE.py
    stage: tuple[str, ...] = ()  # train only these stages; all by default
    data_dir: Path | None = None  # where prepared data sets live; ~/.cache/vdm_jax/data by default
    damaged: Damaged = "refuse"  # a damaged newest checkpoint: refuse, or set it aside and go on from an intact one
    coordinator: str | None = None  # HOST:PORT at which process 0 listens, the same in every process
    processes: Count | None = None  # how many there are; 1: on its own, whatever the environment says
    process_id: CountOrZero | None = None  # number of this one, from 0
    heartbeat: Count = 100  # seconds of silence after which a process is taken for dead and the others end
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False  # no progress, warnings only
    plan: bool = True  # refuse a stage that does not fit into the devices' memory; --no-plan tries anyway
    profile: str | None = None  # trace steps into RUN/STAGE/profile: 5 of them, or 10:15 (from the 10th to the 15th)
    xla_flags: str | None = None  # on a TPU: v5e, v5p, v6e, tpu7x (sets with sources), or a file of --flag=value lines


def main(arguments: Sequence[str]) -> int:
    """Entry of the command."""
    program = "vdm-jax train"
    wants_help = any(a in ("-h", "--help") for a in arguments)
    plain = [a for a in arguments if a not in ("-h", "--help")]
    if wants_help:
        show_help(plain, program)
    options, rest = parse_with_rest(Train, arguments, program)
    if options.xla_flags is not None:
        from vdm_jax.planning.flags import apply_flags, read_flags

        apply_flags(read_flags(options.xla_flags))  # before anything looks for devices
    experiment = override(load_config(options.config), rest, f"{program} {options.config}")
    stages = [experiment.stage(name) for name in options.stage] or list(experiment.stages)  # names checked early
    run = options.run or default_run(options.config, experiment)
    started = start_processes(options.coordinator, options.processes, options.process_id,
                              heartbeat=options.heartbeat)
    train(experiment, [stage.name for stage in stages], run, options.data_dir, quiet=options.quiet,
          damaged=options.damaged, started=started, xla_flags=options.xla_flags, plan=options.plan,
          profile=options.profile)
    return 0


def default_run(config: str, experiment: AnyExperiment) -> Path:
    """Where a config is trained by default. One's own is called by its file, so that a copy of a shipped config, which
    has its `name` still, does not meet the run of that."""
    own = config.endswith(".py") and not Path(config).resolve().is_relative_to(config_folder().resolve())
    return Path("runs") / (Path(config).stem if own else experiment.name)


def train(experiment: AnyExperiment, stages: Sequence[str], run: Path, data_dir: Path | None, *, quiet: bool,
          damaged: Damaged = "refuse", started: str | None = None, xla_flags: str | None = None,
          plan: bool = True, profile: str | None = None) -> None:
    """Train the named stages into `run`, with progress on the terminal of process 0.

    `xla_flags` names flags that were applied. With `plan`, stages that do not fit into the devices' memory are refused
    before their first step. `profile` as `steps_to_trace` reads it.
    """
    import jax

    from vdm_jax.evaluation.in_training import StageEvaluation
    from vdm_jax.planning.before import checked_compile
    from vdm_jax.training.autoencoder_loop import AutoencoderTrainer
    from vdm_jax.training.loop import Interrupted, Trainer

    if xla_flags is not None and jax.default_backend() != "tpu":
        raise UserError(f"--xla-flags={xla_flags} is for TPUs and this machine computes on {jax.default_backend()}; "
                        "permitted: no --xla-flags")
    console = log_console(quiet or jax.process_index() != 0)
    if jax.process_index() != 0:
        logging.getLogger().setLevel(logging.ERROR)
    report = Report(console)
    if jax.process_count() > 1:
        report.note(started)
    if plan:
        together(lambda: check_memory(experiment, stages, run, data_dir))  # before data is prepared for it
    experiment = together(lambda: resolve(experiment, run, data_dir))
    together(lambda: check_evaluation(experiment, stages))
    together(lambda: check_data(experiment, stages, run, data_dir))
    first(lambda: check_run(run, experiment))
    together(lambda: check_profile(experiment, stages, run, profile))
    with contextlib.ExitStack() as locks:
        first(lambda: locks.enter_context(run_locks(run, stages)))  # before the config of the run is written anew
        first(lambda: open_run(run, experiment))
        together(lambda: await_run(run, experiment))
        try:
            for name in stages:
                stage = experiment.stage(name)
                if isinstance(experiment, AutoencoderExperiment):
                    AutoencoderTrainer(experiment, stage, run, report, data_dir, damaged=damaged,
                                       profile=profile).train()
                    finish(experiment, name, run, data_dir, report)
                else:
                    Trainer(experiment, stage, run, report, data_dir, damaged=damaged, evaluation=StageEvaluation,
                            least_seconds=least_seconds, profile=profile,
                            compile_step=checked_compile(experiment, stage) if plan else None).train()
        except Interrupted as stop:
            raise KeyboardInterrupt(f"{stop}; the same command resumes") from None
    report.note(f"run directory: {run}")
    if not quiet:
        logging.getLogger("vdm_jax").debug("trained %s", stages)


def least_seconds(stage: Stage, batch: Any, params: Any, mesh: Mesh) -> float | None:
    """Seconds of a training step if all devices computed at the peak of their chip; None where that is not known."""
    from vdm_jax.planning.chips import chip_of
    from vdm_jax.planning.flops import training_work

    chip = chip_of(mesh.devices.flat[0])
    if chip is None:
        return None
    return training_work(stage, batch, params, mesh).model / (chip.flops / chip.devices * mesh.size)


def finish(experiment: AutoencoderExperiment, name: str, run: Path, data_dir: Path | None, report: Report) -> None:
    """Measure a trained autoencoder and write the file that latent stages take."""
    from vdm_jax.evaluation.reconstruction import finish_autoencoder
    from vdm_jax.runs.autoencoders import FILE

    found = finish_autoencoder(run, experiment, experiment.stage(name), data_dir)
    scores = ", ".join(f"{score} {value:.4g}" for score, value in found.scores.items())
    report.note(f"stage {name}: {scores} on {found.clips} clips; latents have scale {found.scale:.5g} and shift "
                f"{found.shift:.5g}; {run / name / FILE}")


def check_evaluation(experiment: AnyExperiment, stages: Sequence[str]) -> None:
    """Look for what the evaluations of all stages need, so that none is missed after days of training."""
    from vdm_jax.evaluation.in_training import metrics_of

    for name in stages:
        if experiment.stage(name).training.evaluation.every:
            metrics_of(experiment, experiment.stage(name))


def check_data(experiment: AnyExperiment, stages: Sequence[str], run: Path, data_dir: Path | None) -> None:
    """Ask whether data and devices serve the stages of a run that is not there yet, so that what is missing is said
    before a directory belongs to this config, which says where the data lies."""
    import rich.console

    from vdm_jax.training.autoencoder_loop import AutoencoderTrainer
    from vdm_jax.training.loop import Trainer

    if not (run / "config.json").exists():
        kind = AutoencoderTrainer if isinstance(experiment, AutoencoderExperiment) else Trainer
        for name in stages:
            kind(experiment, experiment.stage(name), run, Report(rich.console.Console(quiet=True)), data_dir).check()


def check_profile(experiment: AnyExperiment, stages: Sequence[str], run: Path, profile: str | None) -> None:
    """Refuse steps to trace that a stage which is not finished does not run."""
    if profile is None:
        return
    reached = {name: stage_checkpoints(run, name).latest() or 0 for name in stages}
    left = {name: steps for name, steps in reached.items() if steps < experiment.stage(name).training.steps}
    if not left:
        raise UserError(f"--profile={profile} of stages that are finished: {', '.join(stages)}; permitted: stages with "
                        "steps to go (--stage)")
    for name, steps in left.items():
        try:
            steps_to_trace(profile, steps, experiment.stage(name).training.steps)
        except UserError as error:
            raise UserError(f"stage {name!r}: {error}", error.code) from None


def check_memory(experiment: AnyExperiment, stages: Sequence[str], run: Path, data_dir: Path | None = None) -> None:
    """Ask whether the stages of a run that is not there yet fit, before its directory is made."""
    from vdm_jax.planning.before import check_before
    from vdm_jax.planning.budget import check_budget

    if not (run / "config.json").exists():
        check_budget(experiment, stages, data_dir)
        for name in stages:
            check_before(experiment, experiment.stage(name))


def resolve(experiment: AnyExperiment, run: Path, data_dir: Path | None) -> AnyExperiment:
    """Fill in what depends on data and files: the vocabulary of word encoders that name no words, and what the weights
    of autoencoders and of teachers decide.

    A run that exists keeps the words and the hashes it was made with.
    """
    if isinstance(experiment, AutoencoderExperiment):
        return experiment
    stored = read_cascade(find_run(run)) if (run / "config.json").exists() else None
    experiment = with_encoder(resolved(with_hashes(experiment, stored) if stored else experiment), stored)
    experiment = with_teachers(experiment, stored)
    if not experiment.open_vocabulary:
        return experiment
    if stored is not None:
        words = next((text.words for text in stored.texts.values() if not text.embedded), ())
    else:
        images = dict.fromkeys(stage.training.image_data for stage in experiment.stages)
        words = caption_words(experiment.data, open_source(experiment.data, "train", data_dir),
                              [open_source(data, "train", data_dir) for data in images if data is not None])
    return experiment.with_words(words)


def with_encoder(experiment: Experiment, stored: Experiment | None) -> Experiment:
    """The experiment with the text encoder that made the embeddings of its data, as its run has it or the set says."""
    if experiment.encoder is not None or not isinstance(experiment.data, WithEmbeddings):
        return experiment
    found = stored.encoder if stored is not None else TextEmbeddings(experiment.data.path).encoder
    return dataclasses.replace(experiment, encoder=found)


def with_hashes(experiment: Experiment, stored: Experiment) -> Experiment:
    """The experiment with the hashes of autoencoders that its run was made with, where it names none itself."""
    known = {stage.name: stage.latent.sha256 for stage in stored.stages if stage.latent is not None}

    def with_hash(stage):
        if stage.latent is None or stage.latent.sha256 or stage.name not in known:
            return stage
        return dataclasses.replace(stage, latent=dataclasses.replace(stage.latent, sha256=known[stage.name]))

    return dataclasses.replace(experiment, stages=tuple(with_hash(stage) for stage in experiment.stages))


def show_help(plain: Sequence[str], program: str) -> None:
    """Help of the command and, when a config is named, of everything in it that can be overridden."""
    if plain and not plain[0].startswith("-"):
        experiment = load_config(plain[0])
        try:
            override(experiment, ["--help"], f"{program} {plain[0]}")
        except SystemExit:
            print()
    parse_with_rest(Train, ["--help"], program)
