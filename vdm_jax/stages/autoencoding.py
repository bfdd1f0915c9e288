"""The training of an autoencoder as data: a stage of its own kind, and the experiment that it makes up.

Losses and their defaults are those of latent diffusion (Rombach et al. 2022, arXiv 2112.10752, appendix G): for a frame
of P numbers and its latents, averaged over the frames of a batch,

    sum over P of (|x - y| + w_lpips LPIPS(x, y)) / exp(s) + s,   s the log-variance
    + w_kl KL(latents, standard normal)   summed over the latents of a clip, per frame
    + w_adversarial a (-D(y))             from `discriminator_start` on

where `a` is the ratio of the norms of the gradients of the first and the last line at the kernel that makes the video
(Esser et al. 2021, arXiv 2012.09841, equation 7).
"""

import re
from typing import ClassVar, Literal

from vdm_jax.configuration import (
    Count,
    CountOrZero,
    LogNoise,
    NonNegative,
    Positive,
    Seed,
    ShareBelowOne,
    config,
)
from vdm_jax.errors import UserError
from vdm_jax.networks.autoencoders.causal_config import CausalAutoencoder
from vdm_jax.networks.autoencoders.config import Autoencoder
from vdm_jax.networks.discriminator import Discriminator
from vdm_jax.parallel.mesh import MeshSpec
from vdm_jax.stages.options import CommonTraining, DataSet, Evaluation
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec


@config
class AutoencoderLoss:
    """What an autoencoder learns to make small."""

    reconstruction: Literal["l1", "l2"] = "l1"  # errors of numbers in [-1, 1], absolute or squared
    logvar: LogNoise = 0.0  # log-variance s of the errors
    learned_logvar: bool = False  # whether s is learned; in the code of latent diffusion it stays 0
    kl_weight: NonNegative = 1e-6
    perceptual_weight: NonNegative = 1.0  # of LPIPS; 0: none, and its weights are not needed
    perceptual: Literal["alexnet", "vgg16"] = "vgg16"  # network of LPIPS
    discriminators: tuple[Discriminator, ...] = ()  # each weighs the same; (): no adversarial loss
    discriminator_weight: NonNegative = 0.5  # next to the adaptive one
    discriminator_start: CountOrZero = 50_000  # steps without adversarial loss; discriminators stay as they are


@config
class AutoencoderTraining(CommonTraining):
    """How an autoencoder is trained. `sample_every` is of grids of originals next to reconstructions."""

    accumulation: ClassVar[int] = 1
    distillation: ClassVar[None] = None
    evaluation: ClassVar[Evaluation] = Evaluation()  # of videos it would make: never

    loss: AutoencoderLoss = AutoencoderLoss()
    learning_rate: Positive = 1e-4  # of the autoencoder and of the discriminators
    warmup_steps: CountOrZero = 0
    b1: ShareBelowOne = 0.5  # like b2 as in latent diffusion
    b2: ShareBelowOne = 0.9
    clip_norm: Positive | None = None  # global gradient norm; losses are sums over a frame, so norms are large
    measured_clips: Count = 256  # clips at the most that the latents and the reconstructions are measured on at the end
    # File of an autoencoder (written by vdm-jax convert, or by a training like this) as which this one begins; layers
    # over time that it does not have begin as initialised. None: random weights
    init_from: str | None = None


@config
class AutoencoderStage:
    """An autoencoder and how it is trained."""

    name: str
    video: VideoSpec  # the clips it is trained on
    network: Autoencoder | CausalAutoencoder
    training: AutoencoderTraining = AutoencoderTraining()

    def __post_init__(self):
        multiples = {"height": self.network.factor, "width": self.network.factor}
        if self.network.causal:
            self._check_causal()
        else:
            multiples["frames"] = self.network.time_factor
        for name, multiple in multiples.items():
            if getattr(self.video, name) % multiple:
                raise UserError(f"AutoencoderStage {self.name!r}: video.{name}={getattr(self.video, name)} is not a "
                                f"multiple of what the network shrinks it by; permitted: {multiple}, {2 * multiple}, "
                                "...")
        if (self.network.channels, self.video.channels) != (3, 3):
            raise UserError(f"AutoencoderStage {self.name!r}: network.channels={self.network.channels} with "
                            f"video.channels={self.video.channels}; permitted: 3, as clips have")
        last, patterns = "/" + "/".join(self.network.last_kernel), self.training.trainable
        loss = self.training.loss
        if patterns and loss.discriminators and not any(re.search(p, last) for p in patterns):
            raise UserError(f"AutoencoderStage {self.name!r}: training.trainable={patterns} leaves out {last}, whose "
                            "gradients weigh the adversarial loss; permitted: patterns that match it")

    def _check_causal(self) -> None:
        try:
            self.network.latent_frames(self.video.frames)
        except UserError as error:
            raise UserError(f"AutoencoderStage {self.name!r}: {error}") from None


@config
class AutoencoderExperiment:
    """Autoencoders, the data they learn from, and where that runs. Each ends as a file that latent stages take."""

    name: str
    stages: tuple[AutoencoderStage, ...]
    data: DataSet
    seed: Seed = 0
    mesh: MeshSpec = MeshSpec()
    validation_split: Literal["validation", "train"] = "validation"  # as of `Experiment`

    def __post_init__(self):
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) != len(names):
            raise UserError(f"AutoencoderExperiment.stages={names} is not valid; permitted: at least one, with "
                            "different names")

    def stage(self, name: str) -> AutoencoderStage:
        """The stage of that name. Raises `UserError` listing the names."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UserError(f"stage {name!r} is unknown; permitted: {', '.join(s.name for s in self.stages)}")


AnyExperiment = Experiment | AutoencoderExperiment
AnyStage = Stage | AutoencoderStage
