"""Stages, cascades and experiments as data.

A stage says which video it makes, from which degraded video, with which network, process and sampler, in pixels or in
the latents of an autoencoder. Base, temporal super-resolution and spatial super-resolution are the same type with other
values. Stages train independently and sample in sequence.
"""

import dataclasses
import math
from typing import Annotated, Literal, Self

from vdm_jax.attention import Full, WithExtraKeys
from vdm_jax.attention.capability import require
from vdm_jax.conditions.first_frame import FirstFrame
from vdm_jax.conditions.frames import CurrentFrame, KeyFrames
from vdm_jax.conditions.inputs import check_uncut
from vdm_jax.conditions.low_resolution import LowResolution
from vdm_jax.conditions.scalars import WEIGHT
from vdm_jax.conditions.text import TextInput
from vdm_jax.configuration import Range, Seed, Size, config
from vdm_jax.data.embeddings import EncoderFolder
from vdm_jax.diffusion.augmentation import Augmentation, TruncatedConditioningAugmentation
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.thresholds import Threshold
from vdm_jax.errors import UserError
from vdm_jax.networks.config import UNet
from vdm_jax.networks.kinds import Network
from vdm_jax.parallel.mesh import MeshSpec
from vdm_jax.stages.distillation import check_distillation
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.left_out import check_dropped, check_named
from vdm_jax.stages.options import DataSet, InitFrom, InitFromFile, Sampling, Training


@config
class VideoSpec:
    """The size of a video."""

    frames: Size
    height: Size  # pixels
    width: Size  # pixels
    # Frames per second at which it is meant to be shown, and the rates that mp4 holds.
    fps: Annotated[float, Range(least=0.01, most=1000)] = 8.0
    channels: Literal[1, 3] = 3  # 1: grey values alone, so that a density counts each once

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(T, H, W, C)` of one clip."""
        return self.frames, self.height, self.width, self.channels


Source = LowResolution | KeyFrames | FirstFrame | CurrentFrame


@config
class Stage:
    """One diffusion model of a cascade."""

    name: str
    video: VideoSpec  # what it makes, pixels
    source: Source | None = None  # what it makes it from; None: from noise
    latent: Latent | None = None  # the autoencoder in whose latents it works; None: it works on pixels
    network: Network
    process: Process
    training: Training = Training()
    sampling: Sampling = Sampling()

    def __post_init__(self):
        video, source = self.video, self.source
        if source is not None:
            source.check(self)
        if self.network.low_resolution != self.starts_from("low_resolution"):
            found = "given" if self.starts_from("low_resolution") else type(source).__name__ if source else "None"
            raise UserError(f"Stage {self.name!r}: network.low_resolution={self.network.low_resolution} but source is "
                            f"{found}; permitted: low_resolution exactly with a source")
        method = self.sampling.inpainting.method
        own = {"frame_lag": self.sampling.frame_lag, "frame_schedule": self.sampling.frame_schedule,
               "inpainting.method": method if method == "noise_levels" else None}
        for name, value in own.items():
            if value and not self.process.frame_levels:
                raise UserError(f"Stage {self.name!r}: sampling.{name}={value} with process.frame_levels=False, so "
                                "that it never sees frames of different levels; permitted: "
                                f"{0 if name == 'frame_lag' else None}, or frame_levels=True")
        self._check_blocks()
        if self.sampling.high_noise_guidance is not None and getattr(self.network, "boundary", None) is None:
            raise UserError(f"Stage {self.name!r}: sampling.high_noise_guidance="
                            f"{self.sampling.high_noise_guidance} for "
                            "a network of one expert; permitted: None, or a VideoTransformer with a boundary",
                            "Sampling.high_noise_guidance")
        check_space(self)
        self.network.check_stage(self)
        self._check_frames()
        factor = 1 if self.latent is None else self.latent.autoencoder.factor
        for name, reduction in zip(("height", "width"), self.network.reduction, strict=True):
            multiple = factor * reduction
            if getattr(video, name) % multiple:
                raise UserError(f"Stage {self.name!r}: video.{name}={getattr(video, name)} is not a multiple of the "
                                f"network's reduction {multiple}; permitted: {multiple}, {2 * multiple}, ...")
        if self.training.crop is not None:
            _check_crop(self)
        if self.training.frame_rates is not None and "fps" not in self.network.scalars:
            raise UserError(f"Stage {self.name!r}: training.frame_rates with network.scalars={self.network.scalars}; "
                            "permitted: scalars with 'fps'")
        if self.training.images_per_clip and source is not None:
            raise UserError(f"Stage {self.name!r}: training.images_per_clip={self.training.images_per_clip}; "
                            "permitted: 0 for a stage with a source (joint training is for base stages)")
        if self.training.images_per_clip and self.network.classes:
            raise UserError(f"Stage {self.name!r}: training.images_per_clip={self.training.images_per_clip} with "
                            f"network.classes={self.network.classes}, one class for the clip and all images; "
                            "permitted: 0")
        shared = [entry.name for entry in self.network.conditions if entry.way != "channels"]
        if self.training.images_per_clip and shared:
            raise UserError(f"Stage {self.name!r}: training.images_per_clip={self.training.images_per_clip} with "
                            f"network.conditions {shared}, of the clip and all images alike; permitted: 0")
        if self.network.conditioning_frames != bool(self.training.masking):
            raise UserError(f"Stage {self.name!r}: network.conditioning_frames={self.network.conditioning_frames} with "
                            f"{len(self.training.masking)} training.masking; permitted: observations exactly "
                            "for a network with conditioning frames")
        if self.sampling.inpainting.method == "network" and not self.network.conditioning_frames:
            raise UserError(f"Stage {self.name!r}: sampling.inpainting.method='network' with "
                            "network.conditioning_frames=False; permitted: 'reconstruction', 'replacement', "
                            "'noise_levels', None")
        if self.sampling.terms and self.takes_weight:
            raise UserError(f"Stage {self.name!r}: sampling.terms={[term.name for term in self.sampling.terms]} of a "
                            f"network that takes the weight of the guidance ({WEIGHT!r}); permitted: (), with guidance",
                            "Sampling.terms")
        self._check_cache()
        check_named(self)
        if self.sampling.guided and not self.sampling.terms and not (
                self.network.conditioning_frames if self.sampling.guided_by == "frames" else self.network.prompted):
            raise UserError(f"Stage {self.name!r}: sampling.guidance={self.sampling.guidance} by "
                            f"{self.sampling.guided_by!r} but network.text=None, network.conditioning_frames="
                            f"{self.network.conditioning_frames}; permitted: 0 for a network without text or "
                            "classes, 'frames' for one with conditioning frames")
        check_distillation(self)
        if not self.takes_weight:
            check_dropped(self)

    def _check_blocks(self) -> None:
        """Raise `UserError` for sampling by blocks of a network that has none, was not trained on clean ones, or
        has an attention kernel that cannot see what is kept."""
        if not self.sampling.by_blocks:
            return
        block, network = self.network.block_frames, self.network
        if not block or self.shape[0] % block or self.source is not None:
            raise UserError(f"Stage {self.name!r}: sampling.by_blocks=True for {self.shape[0]} frames, blocks of "
                            f"{block} and source={self.source}; permitted: a VideoTransformer with BlockCausal "
                            "patterns whose blocks divide the frames, and no source", "Sampling.by_blocks")
        if not (self.process.frame_levels or network.teacher_forcing):
            raise UserError(f"Stage {self.name!r}: sampling.by_blocks=True with process.frame_levels=False and "
                            "network.teacher_forcing=False, so that it never sees noisy frames after clean ones; "
                            "permitted: one of them True", "Sampling.by_blocks")
        seen = WithExtraKeys(inner=Full())  # by a block: all of itself, and what is kept of those before it
        try:
            require(seen, network.attention_kernel, network.attention_context, extra_keys=True)
        except UserError as error:
            raise UserError(f"Stage {self.name!r}: sampling.by_blocks=True: {error}", "Sampling.by_blocks") from None

    def _check_cache(self) -> None:
        """Raise `UserError` for features that the network has not, and steps that the sampler does not take."""
        cache, skips = self.sampling.cache, self.network.skips
        if cache is None:
            return
        where, steps = f"Stage {self.name!r}: sampling.cache", self.sampling.sampler_steps(self.shape[0])
        if not skips:
            raise UserError(f"{where}={cache} with a {type(self.network).__name__} without skip connections; "
                            "permitted: None", "Sampling.cache")
        if cache.branch >= skips:
            raise UserError(f"{where}.branch={cache.branch} of a network with {skips} {self.network.skips_are}; "
                            f"permitted: 0 to {skips - 1}", "Cache.branch")
        if cache.steps and cache.steps[-1] >= steps:
            raise UserError(f"{where}.steps={cache.steps} with {steps} steps of the sampler; permitted: 0 to "
                            f"{steps - 1}", "Cache.steps")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(T, H, W, C)` of what the network denoises: one clip, or its latents."""
        if self.latent is None:
            return self.video.shape
        return self.latent.shape(*self.video.shape[:3])

    @property
    def takes_weight(self) -> bool:
        """Whether the network takes the weight of the guidance, so that one estimate is guided."""
        return WEIGHT in self.network.scalars

    @property
    def source_shape(self) -> tuple[int, int, int] | None:
        """Frames, height and width of the video it starts from, if it starts from one."""
        return None if self.source is None else self.source.size(self.video)

    def starts_from(self, condition: str) -> bool:
        """Whether its source enters as this condition."""
        return self.source is not None and self.source.condition == condition

    def _check_frames(self) -> None:
        """Raise `UserError` where the network cannot see as many frames as it is trained on or sampled with."""
        video, windows, part = self.video.frames, self.sampling.windows, self.training.frames
        if part is not None and (not 0 < part <= video or self.training.frame_rates is not None):
            raise UserError(f"Stage {self.name!r}: training.frames={part} with frame_rates={self.training.frame_rates} "
                            f"is not valid; permitted: 1 to video.frames={video} without frame rates, or None")
        if windows is not None and windows.frames > video:
            raise UserError(f"Stage {self.name!r}: sampling.windows.frames={windows.frames} is not valid; permitted: "
                            f"up to video.frames={video}")
        if windows is not None:
            check_uncut(self.network.conditions, f"Stage {self.name!r}: sampling.windows={windows}")
        if self.source is not None and not self.source.has_parts(video) and not (part is windows is None):
            raise UserError(f"Stage {self.name!r}: source.frames={self.source.frames} of {video} with training.frames "
                            "or sampling.windows, which would start between frames of the source; permitted: "
                            f"source.frames={video}")
        seen = {"training.frames": part or video, "sampling.windows.frames": windows.frames if windows else video}
        multiple = self.network.frame_reduction * (self.latent.frame_factor if self.latent else 1)
        causal = self.latent is not None and self.latent.autoencoder.causal
        for name, frames in seen.items():
            count = self.latent.frames(frames) if causal else frames
            if count % (self.network.frame_reduction if causal else multiple):
                name = "video.frames" if frames == video else name
                if causal:
                    raise UserError(f"Stage {self.name!r}: {name}={frames} is {count} latents, which the network's "
                                    f"reduction {self.network.frame_reduction} does not divide; permitted: frames of "
                                    f"{self.network.frame_reduction}, {2 * self.network.frame_reduction}, ... latents")
                raise UserError(f"Stage {self.name!r}: {name}={frames} is not a multiple of the network's reduction "
                                f"{multiple}; permitted: {multiple}, {2 * multiple}, ...")

    def trained(self) -> "Stage":
        """The stage as it is trained: one that makes parts of `training.frames` frames."""
        frames, source = self.training.frames, self.source
        if frames is None:
            return self
        source = None if source is None else source.part(frames)
        return dataclasses.replace(
            self, video=dataclasses.replace(self.video, frames=frames), source=source,
            training=dataclasses.replace(self.training, frames=None, key_frames=False),
            sampling=dataclasses.replace(self.sampling, windows=None))


def require_rgb(stage: Stage, what: str) -> None:
    """Raise `UserError` for what a stage of grey values cannot do."""
    if stage.video.channels != 3:
        raise UserError(f"{what} of stage {stage.name!r} with video.channels={stage.video.channels}; permitted: 3",
                        "VideoSpec.channels")


def augmentation_of(stage: Stage) -> Augmentation | None:
    """How the low-resolution video of a stage is corrupted, if it starts from one."""
    return None if stage.source is None else stage.source.augmentation


def check_space(stage: Stage) -> None:
    """Raise `UserError` where pixels or latents, the network and what it is asked for do not go together."""
    latent, network, where = stage.latent, stage.network, f"Stage {stage.name!r}"
    channels = stage.video.channels if latent is None else latent.autoencoder.latent_channels
    if network.out_channels != channels:
        raise UserError(f"{where}: network.out_channels={network.out_channels} for "
                        f"{'pixels' if latent is None else 'latents'} of {channels} channels; permitted: {channels}")
    first = stage.starts_from("first_frame")
    if first != network.first_frame or (first and latent is None):
        raise UserError(f"{where}: source={stage.source} with {type(network).__name__}.first_frame="
                        f"{network.first_frame} and latent={'given' if latent else None}; "
                        "permitted: FirstFrame exactly with a LatentNetwork that takes it, in latents")
    if isinstance(stage.training.init_from, InitFromFile) and isinstance(network, UNet):
        raise UserError(f"{where}: training.init_from={stage.training.init_from} with a UNet; permitted: a "
                        "LatentNetwork or a VideoTransformer, whose tensors such files have")
    maps = [entry.name for entry in network.entering("residuals")] if isinstance(network, UNet) else []
    if latent is not None and maps:
        raise UserError(f"{where}: network.conditions={maps} as residuals of a UNet in latents, whose branches see "
                        "maps of the size of what it denoises; permitted: Input.enters='channels', or a LatentNetwork, "
                        "whose ControlNets see pixels")
    _check_values(stage, where)
    if latent is not None:
        _check_latent(stage, latent, where)


def _check_values(stage: Stage, where: str) -> None:
    """Raise `UserError` for noise on the values of latents, hidden frames that a stage is made of, and grey values of a
    stage that is given RGB videos."""
    if not stage.sampling.inpainting.shown and (stage.source is not None or stage.sampling.guided_by == "frames"):
        raise UserError(f"{where}: sampling.inpainting.shown=False with source={stage.source} and guided_by="
                        f"{stage.sampling.guided_by!r}; permitted: True, or no source and guidance by the prompt",
                        "Inpainting.shown")
    if stage.training.dequantise and stage.latent is not None:
        raise UserError(f"{where}: training.dequantise=True in latents; permitted: False, or a stage of pixels",
                        "Training.dequantise")
    if stage.video.channels == 3:
        return
    of_rgb = {"latent": stage.latent, "source": stage.source, "network.conditions": stage.network.conditions,
              "network.references": getattr(stage.network, "references", ()),
              "network.conditioning_frames": stage.network.conditioning_frames}
    for name, value in of_rgb.items():
        if value:
            raise UserError(f"{where}: video.channels=1 with {name}={value}, which is of RGB videos; permitted: 3",
                            "VideoSpec.channels")


def _check_latent(stage: Stage, latent: Latent, where: str) -> None:
    """Raise `UserError` for what cannot be done in latents."""
    try:
        grid = latent.shape(*stage.video.shape[:3])
    except UserError as error:
        raise UserError(f"{where}: {error}", error.code) from None
    if latent.ahead and stage.network.conditioning_frames:
        raise UserError(f"{where}: latent.ahead={latent.ahead} with a network that takes conditioning frames, whose "
                        "mask has none in front; permitted: 0, or another network")
    if latent.autoencoder.channels != 3:
        raise UserError(f"{where}: latent.autoencoder.channels={latent.autoencoder.channels}; permitted: 3, RGB")
    if not isinstance(stage.sampling.threshold, Threshold | None):
        raise UserError(f"{where}: sampling.threshold={stage.sampling.threshold} in latents, whose range is not "
                        "[-1, 1]; permitted: None, or Threshold(limit=...)")
    source, factor = stage.source, latent.frame_factor
    if stage.starts_from("low_resolution") and latent.low_resolution == "pixels":
        for name, size in zip(("frames", "height", "width"), grid, strict=False):
            if size % getattr(source, name):
                raise UserError(f"{where}: source.{name}={getattr(source, name)} with latent.low_resolution='pixels' "
                                f"and latents of {name} {size}; permitted: divisors of {size}, or 'latents'")
    if isinstance(augmentation_of(stage), TruncatedConditioningAugmentation):
        raise UserError(f"{where}: TruncatedConditioningAugmentation in latents, which hands over noisy pixels; "
                        "permitted: NoiseAugmentation, BlurAugmentation")
    single = (source is not None and source.single_frames) or stage.training.images_per_clip or stage.sampling.windows
    if factor > 1 and single:
        raise UserError(f"{where}: KeyFrames, FirstFrame, training.images_per_clip or sampling.windows with latents of "
                        f"{factor} frames each; permitted: an autoencoder that works frame by frame")


def _check_crop(stage: Stage) -> None:
    """Raise `UserError` where a stage cannot learn from windows what it samples on whole videos."""
    crop, video, source = stage.training.crop, stage.video, stage.source
    where = f"Stage {stage.name!r}: training.crop={crop}"
    if source is None:
        raise UserError(f"{where} without a source, whose video would say what is in the window; permitted: None")
    if stage.network.conditioning_frames or stage.starts_from("first_frame"):
        raise UserError(f"{where} with network.conditioning_frames=True or FirstFrame, which see whole frames; "
                        "permitted: one of them")
    encoded = 1 if stage.latent is None else stage.latent.autoencoder.factor
    for name, size, reduction in zip(("height", "width"), crop, stage.network.reduction, strict=True):
        whole, factor = getattr(video, name), getattr(video, name) // getattr(source, name)
        multiple = math.lcm(reduction * encoded, factor)
        if size < 1 or size % multiple or size > whole:
            raise UserError(f"{where}: {name} {size}; permitted: multiples of {multiple} (the network's reduction "
                            f"{reduction}, the scale {factor}) up to {whole}")


@config
class Experiment:
    """A cascade, the data it learns from, and where it runs."""

    name: str
    stages: tuple[Stage, ...]
    data: DataSet | None = None  # None: none, of a released model that is only sampled
    seed: Seed = 0
    mesh: MeshSpec = MeshSpec()
    # Clips of validation losses and sample grids; 'train' for data so small that its validation split has none. Files
    # that the validation split would hold back stay unused unless the data set's fractions give it no share.
    validation_split: Literal["validation", "train"] = "validation"
    # Encoder of captions for stages that read embeddings, filled in when the run is made where the set of embeddings
    # says which made it; None: captions come as embeddings
    encoder: EncoderFolder | None = None

    def __post_init__(self):
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) != len(names):
            raise UserError(f"Experiment.stages={names} is not valid; permitted: at least one, with different names")
        for before, stage in zip(self.stages, self.stages[1:], strict=False):
            require_rgb(before, f"stage {stage.name!r} after what is made")
            need = stage.source_shape
            if need != before.video.shape[:3]:
                size = "x".join(map(str, need)) if need else "nothing"
                raise UserError(f"Stage {stage.name!r} starts from {size}, but stage {before.name!r} before it makes "
                                f"{before.video}; permitted: a source of {before.video}")
            family = before.process.schedule.family.name
            cut = isinstance(augmentation_of(stage), TruncatedConditioningAugmentation)
            if cut and before.latent is not None:
                raise UserError(f"Stage {stage.name!r}: TruncatedConditioningAugmentation after stage "
                                f"{before.name!r}, whose noise is in latents; permitted: "
                                "NoiseAugmentation, BlurAugmentation")
            if cut and family != "vp":
                raise UserError(f"Stage {stage.name!r}: TruncatedConditioningAugmentation, whose noise is "
                                f"variance-preserving, after stage {before.name!r} with a schedule of family "
                                f"{family!r}; permitted: 'vp'")
        for place, stage in enumerate(self.stages):
            start = stage.training.init_from
            if isinstance(start, InitFrom) and start.run is None and start.stage not in names[:place]:
                raise UserError(f"Stage {stage.name!r}: training.init_from.stage={start.stage!r} with run=None; "
                                f"permitted: a stage before it ({', '.join(names[:place]) or 'there is none'}), or "
                                "another run")
        if self.stages[0].source is not None and len(self.stages) > 1:
            raise UserError(f"Stage {names[0]!r} has a source but nothing before it; permitted: source=None")

    @property
    def texts(self) -> dict[str, TextInput]:
        """The text inputs of its stages, by stage."""
        return {stage.name: stage.network.text for stage in self.stages if stage.network.text is not None}

    @property
    def open_vocabulary(self) -> bool:
        """Whether a stage's words are still to be taken from the data."""
        return any(text.open_vocabulary for text in self.texts.values())

    def with_words(self, words: tuple[str, ...]) -> Self:
        """With this vocabulary in every stage that has none of its own."""
        def filled(stage: Stage) -> Stage:
            text = stage.network.text
            if text is None or not text.open_vocabulary:
                return stage
            return dataclasses.replace(stage, network=dataclasses.replace(stage.network, text=text.with_words(words)))

        return dataclasses.replace(self, stages=tuple(map(filled, self.stages)))

    def stage(self, name: str) -> Stage:
        """The stage of that name. Raises `UserError` listing the names."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UserError(f"stage {name!r} is unknown; permitted: {', '.join(s.name for s in self.stages)}")
