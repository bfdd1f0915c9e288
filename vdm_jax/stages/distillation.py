"""How a stage is trained to sample in few steps, as data: which networks its loss sees, and what it makes of them.

A distillation is a loss over networks with roles: the student, which is trained; `teacher`, another run's stage;
`target`, a moving average of the student; and `critic`, which is trained on the student's videos. All have the
student's shapes. The training state holds them (`training/distillation.py`), so that a run is resumed and planned like
any other.
"""

import dataclasses
import math
from typing import Annotated, Any, ClassVar, Literal

from vdm_jax.attention import BlockCausal, Full
from vdm_jax.conditions.conditioning import CONDITIONS
from vdm_jax.conditions.scalars import WEIGHT
from vdm_jax.configuration import (
    Ascending,
    Count,
    Guidance,
    NonNegative,
    Positive,
    Range,
    SamplingSteps,
    ShareAboveZero,
    ShareBelowOne,
    config,
)
from vdm_jax.diffusion.distillation import Distance, Perceptual, PseudoHuber, Solver
from vdm_jax.diffusion.samplers import Consistency, Heun
from vdm_jax.diffusion.weightings import TruncatedSNRWeighting, Weighting
from vdm_jax.errors import UserError
from vdm_jax.networks.config import UNet
from vdm_jax.networks.transformer.config import VideoTransformer

# Lowest and highest weight w of (1 + w) conditional - w unconditional that training draws. Equal ones: a constant one
Weights = Annotated[tuple[Guidance, Guidance], Ascending()]
TeacherGuidance = Literal["two_estimates", "input"]
Intervals = Annotated[int, Range(least=2, cap=2**20)]
Times = Annotated[tuple[ShareAboveZero, ShareAboveZero], Ascending()]


@config
class Teacher:
    """The trained stage that a student learns from."""

    run: str  # directory or name of its run
    stage: str  # its name
    sha256: str = ""  # of its averaged parameters; filled in when the student's run is made


@config
class ProgressiveDistillation:
    """Halves the steps of DDIM, again and again: each student is the next teacher (Salimans & Ho 2022, arXiv
    2202.00512), with guided distillation as its first round (Meng et al. 2022, arXiv 2210.03142).

    In that round the student learns the guided estimate of the teacher, at all noise levels, and by the scalar
    "guidance" for all weights, if its network takes it. Every round begins with a new optimizer; the learning rate
    falls to 0 in it.
    """

    teacher: Teacher
    start: SamplingSteps = 64  # steps of the first teacher; 1024 published
    steps: SamplingSteps = 4  # of the student at the end: `start` halved some times
    updates: Count = 10_000  # training steps of a round; 50,000 published
    guidance: Weights | None = None  # None: of the conditional estimate alone, without a first round
    # How the teacher is guided; by its input where it was distilled with guidance itself, without a first round
    teacher_guidance: TeacherGuidance = "two_estimates"
    weighting: Weighting = TruncatedSNRWeighting()  # of the error, by log-SNR

    roles: ClassVar[tuple[str, ...]] = ("teacher",)
    dropout: ClassVar[bool] = False
    evaluations: ClassVar[int] = 2  # of networks without gradient, per example

    def __post_init__(self):
        halvings = math.log2(self.start / self.steps)
        if halvings != int(halvings) or halvings < 0 or not self.rounds:
            raise UserError(f"ProgressiveDistillation.start={self.start} with steps={self.steps} and guidance="
                            f"{self.guidance}; permitted: steps times 2, 4, 8, ... (or 1, with guidance)")

    @property
    def rounds(self) -> tuple[int, ...]:
        """Steps of the student by round; 0 for the round that learns guidance."""
        halvings = int(math.log2(self.start / self.steps))
        learns = self.guidance is not None and self.teacher_guidance == "two_estimates"
        return (0,) * learns + tuple(self.start // 2**n for n in range(1, halvings + 1))

    def check_training(self, stage: Any) -> None:
        """Raise `UserError` for training that does not end with the last round."""
        where, total = f"Stage {stage.name!r}", len(self.rounds) * self.updates
        if stage.training.steps != total:
            raise UserError(f"{where}: training.steps={stage.training.steps} with {len(self.rounds)} rounds of "
                            f"training.distillation.updates={self.updates}; permitted: {total}")
        if stage.training.warmup_steps or stage.training.decay:
            raise UserError(f"{where}: training.warmup_steps={stage.training.warmup_steps} with training.decay="
                            f"{stage.training.decay} of a ProgressiveDistillation, whose learning rate falls in every "
                            "round; permitted: 0 and False")


@config
class ConsistencyDistillation:
    """Every point of the teacher's trajectory is mapped to its end (Song et al. 2023, arXiv 2303.01469, algorithm 2);
    in latents with a weight of the guidance, latent consistency distillation (Luo et al. 2023, arXiv 2310.04378)."""

    teacher: Teacher
    intervals: Intervals = 64  # of the schedule's time; 17 and 39 published for images, 50 for latents
    solver: Solver = Heun()  # of the teacher's step over an interval
    distance: Distance = PseudoHuber()
    target_decay: ShareBelowOne = 0.95  # of the moving average that is the target; 0: the student itself
    guidance: Weights | None = None  # of the teacher; None: its conditional estimate alone
    teacher_guidance: TeacherGuidance = "two_estimates"  # as of `ProgressiveDistillation`

    dropout: ClassVar[bool] = True

    @property
    def roles(self) -> tuple[str, ...]:
        """Networks next to the student."""
        return ("teacher", "target") if self.target_decay else ("teacher",)

    @property
    def evaluations(self) -> int:
        """Of networks without gradient, per example: the solver's, and the target's."""
        twice = self.guidance is not None and self.teacher_guidance == "two_estimates"
        return (1 + isinstance(self.solver, Heun)) * (1 + twice) + 1

    def __post_init__(self):
        if getattr(self.solver, "eta", 0) or getattr(self.solver, "churn", 0) or self.solver.grid is not None:
            raise UserError(f"ConsistencyDistillation.solver={self.solver}; permitted: DDIM without eta, or Heun "
                            "without churn, without a grid")

    def check_training(self, stage: Any) -> None:
        """Raise `UserError` for sampling that is not of this student."""
        check_consistency(self, stage)


@config
class ConsistencyTraining:
    """Consistency without a teacher: two points of a trajectory are the video with the same noise at two levels (Song
    et al. 2023, arXiv 2303.01469, algorithm 3); with `growth="doubling"`, `target_decay=0` and `PseudoHuber` that of
    Song & Dhariwal 2023, arXiv 2310.14189, but for its distribution of levels."""

    first: Intervals = 10  # intervals of the schedule's time at the first step
    last: Intervals = 1280  # and at the last one
    growth: Literal["root", "doubling"] = "doubling"
    distance: Distance = PseudoHuber()
    # Of the moving average that is the target, at `first` intervals; it grows with them. 0: the student itself
    target_decay: ShareBelowOne = 0.0

    dropout: ClassVar[bool] = True
    evaluations: ClassVar[int] = 1
    teacher: ClassVar[None] = None
    guidance: ClassVar[None] = None

    @property
    def roles(self) -> tuple[str, ...]:
        """Networks next to the student."""
        return ("target",) if self.target_decay else ()

    def __post_init__(self):
        if self.first > self.last:
            raise UserError(f"ConsistencyTraining.first={self.first} with last={self.last}; permitted: first <= last")

    def check_training(self, stage: Any) -> None:
        """Raise `UserError` for sampling that is not of this student."""
        check_consistency(self, stage)


@config
class Matching:
    """What students have in common whose videos come to have the teacher's distribution: the gradient of a video is the
    difference of the teacher's score and that of a critic, which learns the student's videos and is trained at every
    step, the student at every `critic_updates`-th. Clips of the data set say what videos are conditioned on; nothing
    else is learnt from them."""

    teacher: Teacher
    steps: SamplingSteps = 4  # of the student's sampler in training; 1 and 4 published
    critic_updates: Count = 5  # training steps for each of the student's
    critic_rate: Positive = 1.0  # learning rate of the critic, relative to the student's; 0.2 in Self-Forcing
    times: Times = (0.02, 0.98)  # earliest and latest of the noise at which scores are compared
    guidance: Weights | None = None  # of the teacher; None: its conditional estimate alone
    teacher_guidance: TeacherGuidance = "two_estimates"  # as of `ProgressiveDistillation`

    roles: ClassVar[tuple[str, ...]] = ("teacher", "critic")
    optimized: ClassVar[tuple[str, ...]] = ("critic",)  # next to the student
    dropout: ClassVar[bool] = True
    regression: ClassVar[float] = 0.0  # to videos of the teacher
    adversarial: ClassVar[float] = 0.0  # by a classifier
    writes: ClassVar[int] = 0  # of keys and values, per frame

    @property
    def evaluations(self) -> float:
        """Of networks without gradient, per example and step, next to the critic's own; those with gradient as 3."""
        own = (self.steps - 1) / 2 + self.writes  # of the student on its way, on average
        return own + 1 + (3 + own + self._of_teacher + 1) / self.critic_updates

    @property
    def _of_teacher(self) -> int:
        return 2 if self.guidance is not None and self.teacher_guidance == "two_estimates" else 1

    def check_training(self, stage: Any) -> None:
        """Raise `UserError` for sampling that is not of this student, and for training of parts of it."""
        sampling, where, kind = stage.sampling, f"Stage {stage.name!r}", type(self).__name__
        if not isinstance(sampling.sampler, Consistency) or sampling.consistency is not None or sampling.scheduler:
            raise UserError(f"{where}: sampling.sampler={type(sampling.sampler).__name__} with consistency="
                            f"{sampling.consistency}, scheduler={sampling.scheduler} of a {kind}; "
                            "permitted: Consistency, with consistency=None and scheduler=None",
                            "Stage.sampling.sampler")
        if stage.training.trainable:
            raise UserError(f"{where}: training.trainable={stage.training.trainable} with a {kind}, "
                            "whose critic is trained as a whole; permitted: ()", "Stage.training.trainable")


@config
class DistributionMatching(Matching):
    """Distribution matching distillation (DMD2: Yin et al. 2024, arXiv 2405.14867): the student is trained on what its
    own sampler comes to (backward simulation, section 4.5), with `adversarial` also on what tells its videos from clips
    (section 4.3)."""

    # Weight of the squared distance to what the teacher makes of the same noise by DDIM, as in the first version
    # (arXiv 2311.18828; there by LPIPS, 0.25 with guidance); 0: none
    regression: NonNegative = 0.0
    regression_steps: SamplingSteps = 16  # of the teacher's DDIM
    adversarial: NonNegative = 0.0  # weight of the student's loss by a classifier on the critic's features; 0: none
    classifier: Positive = 0.01  # weight of the classifier's loss, next to the critic's

    @property
    def evaluations(self) -> float:
        """As of `Matching`, and those of the regression and of the classifier, which takes the way up, that it does not
        run, as run: an upper bound."""
        pairs = (self.regression_steps * self._of_teacher + 3) * (self.regression > 0)
        judged = (6 + 3 / self.critic_updates) * (self.adversarial > 0)
        return super().evaluations + pairs / self.critic_updates + judged

    def check_training(self, stage: Any) -> None:
        """As of `Matching`. Raises `UserError` also for a classifier of networks without a middle."""
        super().check_training(stage)
        network = stage.network
        if self.adversarial and not (isinstance(network, UNet) and network.resample_order == "after"):
            order = f" with resample_order={network.resample_order!r}" if isinstance(network, UNet) else ""
            raise UserError(f"Stage {stage.name!r}: training.distillation.adversarial={self.adversarial} of a "
                            f"{type(network).__name__}{order}; permitted: 0, or a UNet with resample_order='after', "
                            "whose middle a classifier sees", "DistributionMatching.adversarial")


@config
class SelfForcing(Matching):
    """Distribution matching of a causal student that is trained on its own rollouts (Self-Forcing: Huang et al. 2025,
    arXiv 2506.08009, algorithm 1): it makes the clip block by block after its own earlier blocks, with the keys that it
    keeps, as it does in sampling. Every block ends on the estimate of a random one of the student's steps, which alone
    has a gradient: the steps before it, the finished blocks and their keys and values have none.

    A finished block is kept at the noise level that sampling keeps it at, none; the published code adds noise of sigma
    0.005 in training alone. The student begins as its teacher, or as `Training.init_from` says. Levels at which scores
    are compared are uniform in the schedule's time between `times`; published are all times of a flow with the shift 5,
    and sigma brought into [0.02, 0.98].
    """

    critic_rate: Positive = 0.2  # learning rate of the critic, relative to the student's; the published one
    # What teacher and critic see. bidirectional: all frames, at one noise level, as published; the teacher is a run
    # with the student's layers and full attention. causal: of every block the noisy frames and the student's clean
    # blocks before it; the teacher is a causal run. Scores of blocks are those of their conditional distributions,
    # whose divergences add up to that of the clip
    scores: Literal["bidirectional", "causal"] = "bidirectional"
    same_step: bool = True  # the random step is that of all blocks of a batch; False: each block of it draws its own

    dropout: ClassVar[bool] = False
    writes: ClassVar[int] = 1

    def judging(self, network: VideoTransformer) -> VideoTransformer:
        """The network of teacher and critic, which has the parameters of the student's."""
        if self.scores == "causal":
            return network
        patterns = tuple(Full() if isinstance(one, BlockCausal) else one for one in network.patterns)
        return dataclasses.replace(network, patterns=patterns, teacher_forcing=False)

    def check_training(self, stage: Any) -> None:
        """Raise `UserError` for a student that is not sampled block by block, and as for `DistributionMatching`."""
        where, images = f"Stage {stage.name!r}", stage.training.images_per_clip
        if not stage.sampling.by_blocks:  # `Stage` has refused blocks that are not causal, or do not divide
            raise UserError(f"{where}: sampling.by_blocks=False of a SelfForcing; permitted: True, of a "
                            "VideoTransformer with BlockCausal patterns whose blocks divide the frames",
                            "Stage.sampling.by_blocks")
        if stage.takes_weight:
            raise UserError(f"{where}: network.scalars={stage.network.scalars} have {WEIGHT!r} with a SelfForcing; "
                            "permitted: two equal weights of training.distillation.guidance, without the scalar",
                            "Stage.network.scalars")
        if images:
            raise UserError(f"{where}: training.images_per_clip={images} with a SelfForcing, whose student makes "
                            "frames of one clip; permitted: 0", "Stage.training.images_per_clip")
        super().check_training(stage)
        self.judging(stage.network)

    def check_teacher(self, stage: Any, teacher: Any) -> None:
        """Raise `UserError` for the stage of a teacher that sees other frames than `scores` says."""
        causal = teacher.network.block_frames is not None
        if causal != (self.scores == "causal"):
            raise UserError(f"Stage {stage.name!r}: training.distillation.scores={self.scores!r} of a teacher whose "
                            f"network has patterns={getattr(teacher.network, 'patterns', None)}; permitted: "
                            f"{'causal' if causal else 'bidirectional'!r}", "Stage.training.distillation.scores")


Distillation = (ProgressiveDistillation | ConsistencyDistillation | ConsistencyTraining | DistributionMatching
                | SelfForcing)


def check_consistency(spec: Distillation, stage: Any) -> None:
    """Raise `UserError` for sampling that is not of a consistency model."""
    sampling = stage.sampling
    if sampling.consistency is None or not isinstance(sampling.sampler, Consistency):
        raise UserError(f"Stage {stage.name!r}: sampling.consistency={sampling.consistency} with sampling.sampler="
                        f"{type(sampling.sampler).__name__} of a {type(spec).__name__}; permitted: Consistency, with "
                        "consistency=Boundary(), or the scaling of timesteps of a latent one (10)")
    least = spec.distance.least_side if isinstance(spec.distance, Perceptual) else 0
    seen = stage.training.crop or stage.video.shape[1:3]
    if least and (stage.latent is not None or stage.video.channels != 3 or min(seen) < least):
        raise UserError(f"Stage {stage.name!r}: training.distillation.distance={spec.distance} of "
                        f"{'latents' if stage.latent else f'{stage.video.channels} channels of {seen} pixels'}; "
                        f"permitted: RGB pixels, {least} a side or more, or another distance", "Distance")


def check_distillation(stage: Any) -> None:
    """Raise `UserError` where a stage and what it is distilled by do not go together."""
    spec, training, where = stage.training.distillation, stage.training, f"Stage {stage.name!r}"
    takes = WEIGHT in stage.network.scalars
    weights = None if spec is None else spec.guidance
    # Whose weights may have learnt it elsewhere
    released = spec is None and (hasattr(stage.network, "unet") or getattr(stage.network, "guidance_perceptron", False))
    if takes and not released and (weights is None or weights[0] == weights[1]):
        raise UserError(f"{where}: network.scalars={stage.network.scalars} have {WEIGHT!r}, a weight of guidance, "
                        f"and training.distillation.guidance={weights} draws none; permitted: two weights, such as "
                        "(0, 4), or other scalars")
    if spec is None:
        return
    if not takes and weights is not None and weights[0] != weights[1]:
        raise UserError(f"{where}: training.distillation.guidance={weights} with network.scalars="
                        f"{stage.network.scalars}; permitted: scalars with {WEIGHT!r}, or two equal weights")
    if stage.process.frame_levels and not isinstance(spec, SelfForcing):
        raise UserError(f"{where}: process.frame_levels=True with training.distillation={type(spec).__name__}; "
                        "permitted: False, or a SelfForcing", "Stage.process.frame_levels")
    if training.validate_every:
        raise UserError(f"{where}: training.validate_every={training.validate_every} with training.distillation, whose "
                        "loss is no error of single estimates; permitted: 0 (training.evaluation scores samples)")
    if spec.teacher is not None and training.init_from is not None and not isinstance(spec, SelfForcing):
        raise UserError(f"{where}: training.init_from={training.init_from} with training.distillation="
                        f"{type(spec).__name__}, whose student begins as its teacher; permitted: None, or a "
                        "SelfForcing", "Stage.training.init_from")
    if not takes and spec.teacher is not None and spec.teacher_guidance == "input":
        raise UserError(f"{where}: training.distillation.teacher_guidance='input' with network.scalars="
                        f"{stage.network.scalars}; permitted: 'two_estimates', or scalars with {WEIGHT!r}")
    if weights is not None:
        _check_guided(stage, weights, takes)
    spec.check_training(stage)


def guides(names: tuple[str, ...], guided_by: str) -> bool:
    """Whether guidance goes by one of these conditions."""
    return any(CONDITIONS[name].guidance == guided_by for name in names)


def _check_guided(stage: Any, weights: tuple[float, float], takes: bool) -> None:
    """Raise `UserError` for guidance that the student does not learn."""
    where, sampling = f"Stage {stage.name!r}", stage.sampling
    if stage.training.text_dropout and sampling.guided_by == "prompt":
        raise UserError(f"{where}: training.text_dropout={stage.training.text_dropout} with "
                        f"training.distillation.guidance={weights}, which its estimates hold; permitted: 0")
    for entry in stage.training.dropout:
        if entry.probability and guides(entry.names, sampling.guided_by):
            raise UserError(f"{where}: training.dropout of {', '.join(entry.names)} with "
                            f"training.distillation.guidance={weights}, which its estimates hold; permitted: entries "
                            "without these")
    if not (stage.network.conditioning_frames if sampling.guided_by == "frames" else stage.network.prompted):
        raise UserError(f"{where}: training.distillation.guidance={weights} by {sampling.guided_by!r} of a network "
                        "that takes no such input; permitted: None")
    asked = [sampling.guidance] if sampling.oscillation is None else [sampling.guidance, sampling.oscillation.low]
    asked = [0.0, 1 + sampling.guidance] if sampling.dynamic_guidance else asked
    if takes and not all(weights[0] <= weight <= weights[1] for weight in asked):
        raise UserError(f"{where}: sampling.guidance={', '.join(f'{weight:g}' for weight in asked)} of a student that "
                        f"has learnt weights from {weights[0]:g} to {weights[1]:g}; permitted: these",
                        "Sampling.guidance")
    if not takes and sampling.guided:
        raise UserError(f"{where}: sampling.guidance={sampling.guidance:g} of a student whose estimates hold the "
                        f"weight {weights[0]:g} already; permitted: 0", "Sampling.guidance")
    if takes and sampling.last_frame_guidance is not None:
        raise UserError(f"{where}: sampling.last_frame_guidance={sampling.last_frame_guidance} with network.scalars "
                        f"that have {WEIGHT!r}, one weight for all frames; permitted: None")
