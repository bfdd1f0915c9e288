"""How a stage is trained and how it is sampled, as data."""

import re
from typing import Annotated, Literal

from vdm_jax.conditions.frame_masks import MaskingStrategy
from vdm_jax.configuration import (
    Count,
    CountOrZero,
    Guidance,
    LogNoise,
    NonNegative,
    Positive,
    Range,
    SamplingSteps,
    ShareBelowOne,
    Size,
    SizeOrZero,
    Workers,
    config,
)
from vdm_jax.data.embeddings import Clips, WithEmbeddings
from vdm_jax.data.frame_rates import FrameRates
from vdm_jax.diffusion.caching import Cache
from vdm_jax.diffusion.consistency import Boundary
from vdm_jax.diffusion.frame_schedules import FrameSchedule
from vdm_jax.diffusion.samplers import DDIM, Sampler
from vdm_jax.diffusion.sampling import check_steps, schedule_of
from vdm_jax.diffusion.scheduler_steps import COGVIDEOX, SchedulerSteps
from vdm_jax.diffusion.thresholds import Threshold
from vdm_jax.errors import UserError
from vdm_jax.networks.lora import FACTORS, LoRA
from vdm_jax.stages.distillation import ConsistencyDistillation, ConsistencyTraining, Distillation

DataSet = Clips | WithEmbeddings
# Schedulers whose timesteps `Sampling.dynamic_guidance` goes by: those of CogVideoX, and that of its inversion
BY_TIMESTEP = (*COGVIDEOX, "DDIMScheduler")
Images = Annotated[int, Range(least=0, cap=1024)]


@config
class StaticThreshold:
    """Estimates are clipped to [-1, 1]."""


@config
class DynamicThreshold:
    """Estimates are clipped to a percentile of their magnitude and rescaled (Saharia et al. 2022, arXiv 2205.11487,
    section 2.3)."""

    percentile: Annotated[float, Range(above=0, most=100)] = 99.5
    per: Literal["clip", "frame"] = "clip"  # one limit per clip or per frame


Thresholds = StaticThreshold | DynamicThreshold | Threshold


@config
class InitFrom:
    """A trained stage as which the network of another one begins (`weights/inflation.py`)."""

    stage: str  # its name
    run: str | None = None  # directory or name of its run; None: the run that is being trained


@config
class InitFromFile:
    """Weights of an open latent U-Net, as which or in place of whose image layers a `LatentNetwork` begins, or of a
    released video transformer, as which a `VideoTransformer` does."""

    path: str  # .safetensors file that `vdm-jax convert` wrote


@config
class Evaluation:
    """Scores of what a stage makes while it is trained, of few videos of validation clips: to see where a run goes.
    They fall or rise with the number of clips, so only those of one setting compare, and none is for a paper."""

    every: CountOrZero = 0  # steps, and at the end; 0: never
    clips: Annotated[int, Range(least=2, cap=10**9)] = 16  # videos, one for each of the first validation clips
    # Of `evaluation/in_training.py`: digits (what captions of captioned digits ask for), motion, frame_lpips, fvd, ...;
    # with fvd or kvd come motion and frame_lpips, psnr, ssim and lpips are for stages with a source. (): digits, where
    # the data has them, and motion
    metrics: tuple[str, ...] = ()


@config
class CommonTraining:
    """How any network is trained, of a diffusion stage or an autoencoder."""

    steps: Count = 10_000
    batch_size: Count = 16  # clips per step, over all devices
    optimizer: Literal["adamw", "adafactor"] = "adamw"  # the second without weight decay
    learning_rate: Positive = 2e-4  # peak, of the optimizer
    warmup_steps: CountOrZero = 200
    decay: bool = False  # cosine decay of the learning rate to a tenth
    weight_decay: NonNegative = 0.0
    b1: ShareBelowOne = 0.9  # of AdamW, like b2
    b2: ShareBelowOne = 0.99
    clip_norm: Positive | None = 1.0  # global gradient norm
    ema_decay: ShareBelowOne = 0.999  # reached after about ten times its horizon; earlier steps average less
    log_every: Count = 25  # steps
    checkpoint_every: Count = 1000  # steps
    keep: Count = 2  # checkpoints
    sample_every: CountOrZero = 1000  # steps between sample grids; 0: only at the end
    validate_every: CountOrZero = 1000  # steps between validation losses; 0: never
    flips: bool = False  # mirror half of the clips; only for data whose captions do not say left or right
    random_starts: bool = False  # clips of long videos begin at a random frame; data sets of fixed clips cannot
    workers: Workers = 0  # processes that read data; 0: threads
    # Regular expressions found in the paths of the parameters that are trained, such as "inflation|temporal"; the rest
    # stays as it is. (): all are trained
    trainable: tuple[str, ...] = ()

    def __post_init__(self):
        kind = type(self).__name__
        check_patterns(f"{kind}.trainable", self.trainable)
        if self.optimizer == "adafactor" and self.weight_decay:
            raise UserError(f"{kind}.weight_decay={self.weight_decay} with optimizer='adafactor'; permitted: 0")

    @property
    def trained(self) -> tuple[str, ...]:
        """Patterns of the parameters that are trained; (): all."""
        return self.trainable


@config
class Dropout:
    """Conditions that are left out together of some training samples, for guidance by their names."""

    names: tuple[str, ...]  # of conditions
    probability: ShareBelowOne = 0.05  # DreamPose: 0.05 each for the picture, the pose and both

    def __post_init__(self):
        if not self.names or len(set(self.names)) < len(self.names):
            raise UserError(f"Dropout.names={self.names}; permitted: one or more names of conditions, each once")


@config
class Training(CommonTraining):
    """How a diffusion stage is trained."""

    clip_norm: Positive = 1.0  # global gradient norm
    accumulation: Count = 1  # micro-batches per step
    text_dropout: ShareBelowOne = 0.1  # share of captions (and class labels) replaced by the null caption (and class)
    # Conditions that are left out by name, of a sample those of one entry at most, next to `text_dropout`
    dropout: tuple[Dropout, ...] = ()
    # Height and width, pixels, of the random window of its video that a stage with a source is trained on; it samples
    # whole videos all the same. None: whole videos
    crop: tuple[Size, Size] | None = None
    images_per_clip: Images = 0  # independent images appended to each clip (joint training)
    image_data: DataSet | None = None  # where they come from; None: frames of other clips
    evaluation: Evaluation = Evaluation()  # scores of the stage's own videos
    init_from: InitFrom | InitFromFile | None = None  # weights to begin with, rather than random ones
    distillation: Distillation | None = None  # to few steps, by another loss; a student begins as its teacher
    # Low-rank factors that are trained in place of the network, which stays as it begins; of several the first whose
    # pattern matches a kernel decides. (): none
    lora: tuple[LoRA, ...] = ()
    masking: tuple[MaskingStrategy, ...] = ()  # masking strategies of clips (UNet.conditioning_frames); each draws one
    # at which clips are read, given to the network as scalar "fps"; None: their own
    frame_rates: FrameRates | None = None
    frames: Size | None = None  # of the parts of clips that are trained on, begun at random; None: whole clips
    key_frames: bool = False  # of longer clips frames from the first to the last, not every (T / frames)-th
    # Uniform noise, as wide as one of 256 values, on the videos it learns from: for densities (bits_per_dim), which are
    # of videos with it
    dequantise: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.batch_size % self.accumulation:
            raise UserError(f"Training.accumulation={self.accumulation} does not divide batch_size={self.batch_size}; "
                            f"permitted: divisors of {self.batch_size}")
        for spec in self.lora:
            check_patterns("LoRA.patterns", spec.patterns)
        begins = self.init_from or getattr(self.distillation, "teacher", None)
        if self.lora and (begins is None or self.trainable):
            raise UserError(f"Training.lora with init_from={self.init_from}, trainable={self.trainable}; permitted: a "
                            "trained network to begin with, or a teacher, of which nothing else is trained")
        if self.lora and not isinstance(self.distillation, ConsistencyDistillation | ConsistencyTraining | None):
            raise UserError(f"Training.lora with distillation={self.distillation}, whose students become teachers or "
                            "have a critic; permitted: a ConsistencyDistillation or ConsistencyTraining",
                            "Training.lora")
        if sum(entry.probability for entry in self.dropout) >= 1:
            raise UserError(f"Training.dropout={[entry.probability for entry in self.dropout]}; "
                            "permitted: a sum below 1")

    @property
    def trained(self) -> tuple[str, ...]:
        """Patterns of the parameters that are trained, of a LoRA its factors; (): all."""
        return (f"^/{FACTORS}/",) if self.lora else self.trainable


def check_patterns(where: str, patterns: tuple[str, ...]) -> None:
    """Raise `UserError` for what is no regular expression; ones that match nothing are found with the network."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise UserError(f"{where} has {pattern!r}, which is no regular expression ({error}); permitted: those of "
                            "Python") from None


@config
class Oscillation:
    """Guidance that goes down and up again from step to step (Ho et al. 2022, arXiv 2210.02303, section 2.6)."""

    low: Guidance = 1.0  # weight of every second step; the others have `Sampling.guidance`
    constant_steps: CountOrZero = 0  # first steps without oscillation; how many is not published


@config
class GuidanceTerm:
    """A condition by which videos are guided, and how strongly (`diffusion/guidance.py: in_turn`)."""

    name: str  # of a condition that training leaves out, or "time": the estimate without it is made frame by frame
    scale: Guidance  # s; 1 is off

    @property
    def weight(self) -> float:
        """w = s - 1."""
        return float(self.scale) - 1


@config
class Inpainting:
    """How a masked video is filled in: by the network, which takes it (`conditions/frames.py`), or by
    methods for networks that do not (`diffusion/conditional.py`). What is given comes out as it is."""

    # None: the network, where it takes conditioning frames (UNet.conditioning_frames), else noise_levels, where it
    # was trained with them, else reconstruction guidance. A network that takes it sees it with the other methods too.
    # noise_levels: a network trained with `Process.frame_levels` sees given frames without noise, at a noise level of
    # their own (Diffusion Forcing: Chen et al. 2024, arXiv 2407.01392)
    method: Literal["network", "reconstruction", "replacement", "noise_levels"] | None = None
    weight: NonNegative = 1.0  # w_r of reconstruction guidance; 50 and 9 published for single data sets
    # log-SNR at which given frames are shown by `noise_levels`; None: where the sampler's last step begins. Published
    # is a small noise level that does not grow with the rollout (timestep 15 of 1000 for videos)
    level: LogNoise | None = None
    # Whether a network that takes conditioning frames sees them with reconstruction and replacement too; False: it
    # makes the video as from nothing, as a network that takes none
    shown: bool = True

    def __post_init__(self):
        if not self.shown and self.method not in ("reconstruction", "replacement"):
            raise UserError(f"Inpainting.shown=False with method={self.method!r}; permitted: True, or 'reconstruction' "
                            "or 'replacement'", "Inpainting.shown")


@config
class Windows:
    """Windows along time that overlap, by which a video is denoised (`diffusion/windows.py`)."""

    frames: Size  # of a window
    # Frames that neighbours share at the least; 2 in Lumiere (Bar-Tal et al. 2024, arXiv 2401.12945)
    overlap: SizeOrZero = 2
    chunk: Count = 1  # windows denoised together; memory grows with it
    # One window, which follows the frames being denoised: for frame schedules that finish frames from the first on.
    # `overlap` is how many finished frames stay in it
    follows: bool = False

    def __post_init__(self):
        if self.overlap >= self.frames:
            raise UserError(f"Windows(frames={self.frames}, overlap={self.overlap}) is not valid; permitted: "
                            "overlap < frames")


@config
class Sampling:
    """How a stage is sampled unless the user says otherwise."""

    sampler: Sampler = DDIM()
    steps: SamplingSteps = 50
    guidance: Guidance = 0.0  # w of (1 + w) conditional - w unconditional
    # What the unconditional estimate lacks: captions, class and picture, or conditioning frames (context
    # guidance: Blattmann et al. 2023, arXiv 2304.08818, section 3.2; He et al. 2022, arXiv 2211.13221)
    guided_by: Literal["prompt", "frames"] = "prompt"
    # Guidance by several conditions, which come in one after the other, in place of `guidance`
    terms: tuple[GuidanceTerm, ...] = ()
    # w of the last frame, where it changes linearly from that of the first (Stable Video Diffusion, arXiv 2311.15127);
    # None: all frames have the same
    last_frame_guidance: Guidance | None = None
    # w at noise levels from network.boundary on, where the network has two experts (Wan 2.2); None: the same
    high_noise_guidance: Guidance | None = None
    oscillation: Oscillation | None = None  # of the guidance; None: the same weight at every step
    # w = s / 2 (1 - cos(pi ((N - t) / N)^5)) with s = 1 + guidance, of N steps at the timesteps t of a scheduler
    # (`BY_TIMESTEP`): what CogVideoX's authors call dynamic guidance. Timesteps go up to 999 and steps to 50, so that
    # it goes up and down in no simple order
    dynamic_guidance: bool = False
    # The two estimates of a guided video on two halves of the devices: half the videos at a time, each in half the time
    split_guidance: bool = False
    threshold: Thresholds | None = StaticThreshold()
    # Noise levels of a scheduler of diffusers, in place of the sampler's grid; None: the grid
    scheduler: SchedulerSteps | None = None
    # Condition of a consistency model at the lowest noise (`diffusion/consistency.py`), of a latent one the scaling of
    # its timesteps; None: no such model
    consistency: Positive | Boundary | None = None
    # Deep features of the network kept from step to step (`diffusion/caching.py`); None: every step evaluates all of it
    cache: Cache | None = None
    inpainting: Inpainting = Inpainting()  # of masked videos
    windows: Windows | None = None  # None: the network sees the whole video
    batch_size: Count = 16  # clips at a time, over all devices
    # Steps by which every frame is behind the one before it, for networks trained with `Process.frame_levels`: the
    # first frames are finished before the last ones begin (Diffusion Forcing: Chen et al. 2024, arXiv 2407.01392)
    frame_lag: CountOrZero = 0
    # Any other scheduling matrix of the frames' levels, in place of a lag
    frame_schedule: FrameSchedule | None = None
    # Blocks of frames are made one after the other by a causal network, which keeps keys and values of finished ones
    by_blocks: bool = False
    # All frames of a video get the same noise, at the start and at every step. A network without temporal layers
    # then makes details that stay where they are (Make-A-Video: Singer et al. 2022, arXiv 2209.14792, section 3.2)
    shared_noise: bool = False

    def __post_init__(self):
        if self.last_frame_guidance is not None and (self.oscillation or self.windows):
            raise UserError(f"Sampling.last_frame_guidance={self.last_frame_guidance} with oscillation or windows; "
                            "permitted: None")
        if self.high_noise_guidance is not None and (not self.guidance or self.oscillation or self.by_blocks
                                                     or self.last_frame_guidance is not None):
            raise UserError(f"Sampling.high_noise_guidance={self.high_noise_guidance} with guidance={self.guidance}, "
                            "oscillation, by_blocks or last_frame_guidance; permitted: guidance other than 0, alone")
        if self.dynamic_guidance:
            self._check_dynamic()
        names = [term.name for term in self.terms]
        if len(set(names)) < len(names):
            raise UserError(f"Sampling.terms={names}; permitted: each name once")
        others = [name for name in ("guidance", "last_frame_guidance", "oscillation", "split_guidance")
                  if getattr(self, name)]
        if names and others:
            raise UserError(f"Sampling.terms={names} with {others[0]}={getattr(self, others[0])}; permitted: one of "
                            "them")
        others = [name for name in ("windows", "frame_lag", "frame_schedule", "terms", "last_frame_guidance",
                                    "oscillation", "split_guidance", "consistency") if getattr(self, name)]
        if self.by_blocks and others:
            raise UserError(f"Sampling.by_blocks=True with {others[0]}={getattr(self, others[0])}; permitted: one of "
                            "them")
        if self.scheduler is not None and self.sampler.grid is not None:
            raise UserError(f"Sampling.scheduler={self.scheduler.scheduler} with sampler.grid={self.sampler.grid}; "
                            "permitted: one of them")
        if self.cache is not None and (self.windows or "time" in names):
            raise UserError(f"Sampling.cache={self.cache} with windows={self.windows}, terms={names}, which evaluate "
                            "the network several times a step; permitted: None, or no windows and terms without 'time'",
                            "Sampling.cache")
        check_steps(self.sampler, self.frame_lag, scheduled=self.scheduler is not None,
                    frame_schedule=self.frame_schedule)

    def _check_dynamic(self) -> None:
        kind = None if self.scheduler is None else self.scheduler.scheduler
        others = {name: getattr(self, name) for name in (
            "oscillation", "by_blocks", "last_frame_guidance", "high_noise_guidance", "terms")}
        others = {name: value for name, value in others.items() if not (value is None or value is False or value == ())}
        once = self.sampler.evaluations(self.steps) == self.steps
        if kind not in BY_TIMESTEP or self.scheduler.log_sigma_embedding or not once or self.guidance <= 0 or others:
            given = {"scheduler": kind, "sampler": self.sampler, "guidance": self.guidance, **others}
            raise UserError("Sampling.dynamic_guidance=True with "
                            f"{', '.join(f'{name}={value}' for name, value in given.items())}; permitted: "
                            f"{', '.join(BY_TIMESTEP)}, embedding timesteps, a sampler of one evaluation a step, "
                            "guidance above 0, and no other kind of guidance", "Sampling.dynamic_guidance")

    def evaluations(self, frames: int) -> int:
        """Evaluations of the denoiser of videos (or latents) of so many frames; by blocks, one more of each block."""
        if schedule_of(self.frame_lag, self.frame_schedule) is not None and not self.by_blocks:
            return self.sampler_steps(frames)
        return self.sampler.evaluations(self.steps) + self.by_blocks

    def sampler_steps(self, frames: int) -> int:
        """Steps of the sampler of so many frames: more than `steps` where frames go one after the other."""
        schedule = schedule_of(self.frame_lag, self.frame_schedule)
        return self.steps if schedule is None else len(schedule.matrix(self.steps, frames)) - 1

    @property
    def guided(self) -> bool:
        """Whether there is guidance at all."""
        return bool(self.guidance or self.last_frame_guidance or self.terms)
