"""`vdm-jax distil`: students of a trained run that sample in few steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vdm_jax.commands.arguments import override, parse_with_rest, refuse_unused
from vdm_jax.configuration import Count, Guidance, SamplingSteps, Width
from vdm_jax.errors import UserError
from vdm_jax.runs.manifest import Damaged

if TYPE_CHECKING:  # JAX is not imported before the options are checked
    from vdm_jax.stages.stage import Experiment, Stage

WEIGHT_CHANNELS = 256  # of the code of the guidance's weight of latent U-Nets, as of released ones
TIMESTEP_SCALING = 10.0  # of latent consistency models
LEARNING_RATE = 1e-4  # of Salimans & Ho 2022, table 2; another one by --STAGE.training.learning-rate


@dataclasses.dataclass(frozen=True)
class Distil:
    """Train students of a run's stages that sample in few steps, one stage after the other, into a new run.

    TEACHER is a run directory, a name under runs/, or a folder that 'vdm-jax export' wrote; the students learn from its
    data. The new run samples, scores and exports like any other, by its own few steps: 'vdm-jax sample NEW "..."' needs
    no further flags. Stages that are not named by --stage come along as they are. An interrupted distillation goes on
    when the same command is given again; a teacher that has been trained since is refused.

    Methods:
      progressive   halves the steps of DDIM until --steps are left: of a teacher of 48 steps with --steps 4 in rounds
                    of 32, 16, 8 and 4 steps. Each student is the next teacher. Guidance is learnt in a round before
      guided        that round alone: one evaluation per step instead of two, with the teacher's own sampler and steps
      consistency   the student maps any point of the teacher's trajectory to its end; --steps draws new noise between
      dmd           the student's videos come to have the teacher's distribution (DMD2), by a critic that learns them
      self_forcing  dmd of a causal network, which is trained on clips that it makes block by block as in sampling

    Guidance. A teacher that is sampled with guidance is distilled with its weight, which is then part of the student.
    --guidance-range 0 4 makes the weight an input: 'vdm-jax sample NEW --guidance 3' still chooses it, for free.

    Any value of the new config can be overridden as with 'vdm-jax train': --base.training.batch-size 32.

    Examples:
      vdm-jax distil captioned_digits --method progressive --steps 4 --run runs/digits_4
      vdm-jax distil captioned_digits --method progressive --steps 8 --sampler stochastic --guidance-range 0 4
      vdm-jax distil captioned_digits --method consistency --steps 2 --stage base --updates 20000
      vdm-jax distil captioned_digits --method consistency --steps 4 --lora-rank 16
      vdm-jax distil captioned_digits --method dmd --steps 4 --updates 20000
      vdm-jax distil captioned_digits --method guided --guidance-range 0 4
      vdm-jax distil causal_digits --method self_forcing --steps 4 --updates 10000
      vdm-jax distil causal_digits --method self_forcing --score-teacher runs/full_attention
    """

    teacher: tyro.conf.Positional[str]  # run directory or name
    method: Literal["progressive", "guided", "consistency", "dmd", "self_forcing"] = "progressive"
    steps: SamplingSteps = 4  # of the students; of 'guided' the teacher's own
    run: Path | None = None  # directory of the new run; runs/TEACHER_METHOD_STEPS by default
    stage: tuple[str, ...] = ()  # distil only these stages; all by default
    # Training steps: of each round of 'progressive' and 'guided', of all of the others; of 'dmd' and 'self_forcing' the
    # critic's, the student has a fifth of them
    updates: Count = 2000
    guidance_range: tuple[Guidance, Guidance] | None = None  # lowest and highest weight that students take as an input
    # Of 'progressive': steps of DDIM of the first teacher, --steps times 2, 4, ...; by default the fewest of these that
    # are as many as the teacher is sampled with
    start: SamplingSteps | None = None
    sampler: Literal["ddim", "stochastic"] = "ddim"  # of 'progressive'; stochastic as in Imagen Video
    intervals: Count | None = None  # of 'consistency': parts of the teacher's trajectory; 64, in latents 50
    # Of 'consistency': rank of low-rank factors of all kernels that are trained in place of the network (LCM-LoRA; 64
    # published). 'vdm-jax export NEW OUT --lora plain' writes them alone
    lora_rank: Width | None = None
    # Of 'self_forcing': another run, by whose scores students learn and whose guidance they take, such as one of the
    # same layers with full attention; by default TEACHER itself. The students begin as TEACHER in any case
    score_teacher: str | None = None
    data_dir: Path | None = None  # where prepared data sets live; ~/.cache/vdm_jax/data by default
    damaged: Damaged = "refuse"  # a damaged newest checkpoint: refuse, or set it aside and go on from an intact one
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False  # no progress, warnings only
    plan: bool = True  # refuse a stage that does not fit into the devices' memory; --no-plan tries anyway


def main(arguments: Sequence[str]) -> int:
    """Entry of the command."""
    options, rest = parse_with_rest(Distil, arguments, "vdm-jax distil")
    unread = {"progressive": ("intervals", "lora_rank", "score_teacher"),
              "guided": ("steps", "start", "sampler", "intervals", "lora_rank", "score_teacher"),
              "consistency": ("start", "sampler", "score_teacher"),
              "dmd": ("start", "sampler", "intervals", "lora_rank", "score_teacher"),
              "self_forcing": ("start", "sampler", "intervals", "lora_rank", "guidance_range")}
    refuse_unused(options, unread[options.method], f"with --method {options.method}",
                  f"another --method, or {options.method} without it")
    from vdm_jax.commands.train_command import train
    from vdm_jax.parallel.processes import first, start_processes
    from vdm_jax.runs.directory import find_run, read_cascade

    folder = find_run(options.teacher)
    experiment = read_cascade(folder)
    run = options.run or default_run(options)
    if run.resolve() == folder.resolve():
        raise UserError(f"--run={run} is the teacher's own; permitted: another directory")
    if experiment.data is None:
        raise UserError(f"run {folder} says no data to learn from, as released models do not; permitted: a run of "
                        "'vdm-jax train' or what 'vdm-jax export' made of it")
    names = [experiment.stage(name).name for name in options.stage] or [stage.name for stage in experiment.stages]
    students = override(distilled(experiment, names, folder, options), rest, f"vdm-jax distil {options.teacher}")
    started = start_processes(None, None, None)
    train(students, names, run, options.data_dir, quiet=options.quiet, damaged=options.damaged, started=started,
          plan=options.plan)
    first(lambda: take_along(folder, run, students, names, options.damaged))
    return 0


def default_run(options: Distil) -> Path:
    """Where students go by default."""
    steps = "" if options.method == "guided" else f"_{options.steps}"
    return Path("runs") / f"{Path(options.teacher).name}_{options.method}{steps}"


def distilled(experiment: Experiment, names: Sequence[str], folder: Path, options: Distil) -> Experiment:
    """The teacher's experiment with students in place of the named stages. Raises `UserError` for what cannot be
    distilled."""
    ranged = takers(experiment, names) if options.guidance_range is not None else []
    stages = tuple(student(stage, folder, options, stage.name in ranged) if stage.name in names else
                   with_autoencoder(stage, folder) for stage in experiment.stages)
    return dataclasses.replace(experiment, name=f"{experiment.name}_{options.method}", stages=stages)


def takers(experiment: Experiment, names: Sequence[str]) -> list[str]:
    """The stages whose students take the weight of the guidance: those sampled with guidance, or else the first
    that could be. Raises `UserError` where there is none."""
    stages = [experiment.stage(name) for name in names]
    able = [stage for stage in stages if stage.network.prompted and stage.training.text_dropout]
    found = [stage for stage in able if stage.sampling.guided] or able[:1]
    if not found:
        raise UserError(f"--guidance-range with stages {', '.join(names)}, which have learnt no estimate without the "
                        "prompt; permitted: no --guidance-range")
    return [stage.name for stage in found]


def student(stage: Stage, folder: Path, options: Distil, ranged: bool) -> Stage:
    """The student of a stage: its network, training and sampling."""
    from vdm_jax.conditions.scalars import WEIGHT
    from vdm_jax.networks.lora import LoRA
    from vdm_jax.stages.distillation import guides
    from vdm_jax.stages.options import Evaluation, InitFrom

    scores, teacher = folder, stage
    if options.method == "self_forcing":
        check_causal(stage)
        scores, teacher = score_teacher(stage, folder, options)
    weights, by = guidance_of(teacher, options, ranged)
    spec = distillation_of(stage, scores, options, weights, by, causal=teacher.network.block_frames is not None)
    rounds = getattr(spec, "rounds", None)
    training = dataclasses.replace(
        stage.training, distillation=spec, trainable=(),
        init_from=None if scores == folder else InitFrom(run=str(folder), stage=stage.name), evaluation=Evaluation(),
        lora=() if options.lora_rank is None else (LoRA(rank=options.lora_rank, patterns=("/",)),),
        steps=options.updates * (1 if rounds is None else len(rounds)), learning_rate=LEARNING_RATE, warmup_steps=0,
        decay=False, ema_decay=stage.training.ema_decay if rounds is None else 0.0, sample_every=0, validate_every=0,
        text_dropout=0.0 if weights is not None else stage.training.text_dropout,
        dropout=stage.training.dropout if weights is None else tuple(
            entry for entry in stage.training.dropout if not guides(entry.names, stage.sampling.guided_by)))
    network = stage.network
    if weights is not None and weights[0] < weights[1] and WEIGHT not in network.scalars:
        if hasattr(network, "unet"):
            network = dataclasses.replace(network, scalars=(*network.scalars, WEIGHT), unet=dataclasses.replace(
                network.unet, weight_channels=WEIGHT_CHANNELS))
        else:
            network = dataclasses.replace(network, scalars=(*network.scalars, WEIGHT))
    return with_autoencoder(dataclasses.replace(
        stage, network=network, training=training, sampling=sampling_of(stage, options, weights)), folder)


def guidance_of(stage: Stage, options: Distil, ranged: bool) -> tuple[tuple[float, float] | None, str]:
    """The weights that a student learns, and how its teacher is guided. Raises `UserError` for guidance that is no
    number."""
    sampling, own = stage.sampling, stage.training.distillation
    if sampling.terms:
        raise UserError(f"stage {stage.name!r} has sampling.terms={[term.name for term in sampling.terms]}, no one "
                        "weight that a student could hold; permitted: a teacher sampled with sampling.guidance",
                        "distil.guidance")
    if stage.takes_weight and (own is None or own.guidance is None):
        raise UserError(f"stage {stage.name!r} takes the weight of the guidance, and its config says no range of it; "
                        "permitted: a stage with training.distillation.guidance", "distil.guidance")
    if stage.takes_weight:
        return own.guidance, "input"
    if ranged:
        return options.guidance_range, "two_estimates"
    if not sampling.guided:
        return None, "two_estimates"
    if sampling.last_frame_guidance is not None or sampling.oscillation is not None or sampling.dynamic_guidance:
        raise UserError(f"stage {stage.name!r} has sampling.last_frame_guidance={sampling.last_frame_guidance}, "
                        f"oscillation={sampling.oscillation} and dynamic_guidance={sampling.dynamic_guidance}, no one "
                        "weight that a student could hold; permitted: --guidance-range, for the last two",
                        "distil.guidance")
    return (sampling.guidance, sampling.guidance), "two_estimates"


def distillation_of(
    stage: Stage, folder: Path, options: Distil, weights: tuple[float, float] | None, by: str, *, causal: bool
):
    """What the student learns of the stage of its name in `folder`, whose network is causal or not."""
    from vdm_jax.diffusion.samplers import DDIM
    from vdm_jax.diffusion.weightings import TruncatedSNRWeighting
    from vdm_jax.stages.distillation import (
        ConsistencyDistillation,
        DistributionMatching,
        ProgressiveDistillation,
        SelfForcing,
        Teacher,
    )

    common = {"teacher": Teacher(run=str(folder), stage=stage.name), "guidance": weights, "teacher_guidance": by}
    if options.method == "consistency":
        solver = {"solver": DDIM()} if timesteps(stage) else {}  # as in latent consistency distillation
        return ConsistencyDistillation(intervals=intervals_of(stage, options), **solver, **common)
    if options.method == "dmd":
        return DistributionMatching(steps=options.steps, **common)
    if options.method == "self_forcing":
        return SelfForcing(steps=options.steps, scores="causal" if causal else "bidirectional", **common)
    steps = stage.sampling.steps if options.method == "guided" else options.steps
    truncated = isinstance(stage.process.weighting, TruncatedSNRWeighting)  # the teacher's own, which may have a gamma
    weighting = {"weighting": stage.process.weighting} if truncated else {}
    if options.method == "guided":
        if weights is None or by == "input":
            raise UserError(f"--method=guided with stage {stage.name!r}, which is sampled without two estimates; "
                            "permitted: stages with guidance (--stage), or --guidance-range")
        return ProgressiveDistillation(start=steps, steps=steps, updates=options.updates, **weighting, **common)
    start = options.start or 2 * steps
    while options.start is None and start < stage.sampling.steps:
        start *= 2
    return ProgressiveDistillation(start=start, steps=steps, updates=options.updates, **weighting, **common)


def check_causal(stage: Stage) -> None:
    """Raise `UserError` for a stage whose network makes no videos block by block."""
    if stage.network.block_frames is None:
        raise UserError(f"--method=self_forcing with stage {stage.name!r}, whose network is not causal; permitted: "
                        "stages of a VideoTransformer with BlockCausal patterns (--stage), or another method",
                        "distil.method")


def score_teacher(stage: Stage, folder: Path, options: Distil) -> tuple[Path, Stage]:
    """The run by whose scores a causal student learns, and its stage of the student's name. Raises `UserError` where
    there is none, or it is guided by something else."""
    from vdm_jax.runs.directory import find_run, read_cascade

    if options.score_teacher is None:
        return folder, stage
    other = find_run(options.score_teacher)
    teacher, own = read_cascade(other).stage(stage.name), stage.sampling.guided_by
    if teacher.sampling.guided_by != own:
        raise UserError(f"--score-teacher={options.score_teacher}: stage {stage.name!r} there has sampling.guided_by="
                        f"{teacher.sampling.guided_by!r}, and in {folder} {own!r}, by which the student learns; "
                        f"permitted: a run of {own!r}", "distil.score_teacher")
    return other, teacher


def sampling_of(stage: Stage, options: Distil, weights: tuple[float, float] | None):
    """How the student is sampled unless the user says otherwise."""
    from vdm_jax.diffusion.consistency import Boundary
    from vdm_jax.diffusion.grids import TimeGrid, TimestepGrid
    from vdm_jax.diffusion.samplers import DDIM, Consistency, StochasticDDIM

    sampling = dataclasses.replace(stage.sampling, split_guidance=False, frame_lag=0, dynamic_guidance=False)
    if weights is not None:
        constant = weights[0] == weights[1]
        guidance = 0.0 if constant else min(max(sampling.guidance, weights[0]), weights[1])
        sampling = dataclasses.replace(sampling, guidance=guidance, high_noise_guidance=None)
    if options.method == "guided":
        return sampling
    if options.method == "self_forcing":  # whatever guidance the run itself has been sampled with
        sampling = dataclasses.replace(sampling, guidance=0.0, by_blocks=True)
    sampling = dataclasses.replace(sampling, steps=options.steps, scheduler=None, oscillation=None)
    if options.method == "progressive":
        kind = DDIM if options.sampler == "ddim" else StochasticDDIM
        return dataclasses.replace(sampling, sampler=kind(grid=TimeGrid()), consistency=None)
    if options.method in ("dmd", "self_forcing"):  # 4 of 1000 timesteps are 999, 749, 499 and 249
        grid = TimestepGrid(spacing="trailing") if timesteps(stage) else None
        return dataclasses.replace(sampling, sampler=Consistency(grid=grid), consistency=None)
    if not timesteps(stage):
        return dataclasses.replace(sampling, sampler=Consistency(), consistency=Boundary())
    grid = TimestepGrid(spacing="distilled", original=intervals_of(stage, options))  # the levels of training
    return dataclasses.replace(sampling, sampler=Consistency(grid=grid), consistency=TIMESTEP_SCALING)


def timesteps(stage: Stage) -> bool:
    """Whether a stage's noise levels are the timesteps of a table, as those of latent models."""
    from vdm_jax.diffusion.beta_tables import BetaTable

    return isinstance(stage.process.schedule, BetaTable)


def intervals_of(stage: Stage, options: Distil) -> int:
    """Parts of the teacher's trajectory."""
    return options.intervals or (50 if timesteps(stage) else 64)


def with_autoencoder(stage: Stage, folder: Path) -> Stage:
    """A stage of the teacher's run with the autoencoder that an exported run has in it."""
    from vdm_jax.runs.autoencoders import FILE

    inside = folder / stage.name / FILE
    if stage.latent is None or not inside.is_file():
        return stage
    return dataclasses.replace(stage, latent=dataclasses.replace(stage.latent, weights=str(inside)))


def take_along(folder: Path, run: Path, experiment: Experiment, names: Sequence[str], damaged: Damaged) -> None:
    """Copy the averaged weights of trained stages that are not distilled, so that the new run samples all of them."""
    from vdm_jax.runs.directory import load_stage, read_cascade
    from vdm_jax.runs.listing import WEIGHTS
    from vdm_jax.weights.safetensors import save_params

    for stage in read_cascade(folder).stages:
        target = run / stage.name / WEIGHTS
        if stage.name in names or target.exists():
            continue
        params = load_stage(folder, stage, damaged)
        if params is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            save_params(target, params, {"stage": stage.name, "experiment": experiment.name})
