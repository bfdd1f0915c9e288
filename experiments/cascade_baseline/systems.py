"""Four published kinds of cascade, small enough for a CPU, that all make 16 frames of 64x64 from a caption.

What differs is what the papers differ in: how many stages, which layers mix frames, whether a video network begins as
an image network and what of it is then trained. The rest is shared and ours: digits are placed at 4x4 pixels and drawn
at 16x16 (but in the one model of VDM, which does both at once), networks predict the clean video, one optimiser, one
sampler.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vdm_jax.attention.patterns import Full, Spatial, Temporal
from vdm_jax.commands.configs import load_config
from vdm_jax.conditions.frame_masks import FrameMask
from vdm_jax.diffusion.augmentation import NoiseAugmentation
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import CosineSchedule
from vdm_jax.diffusion.weightings import TruncatedSNRWeighting
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.networks.config import (
    CrossAttention,
    Level,
    Mixer,
    SelfAttention,
    TemporalConvolution,
    UNet,
    WordEncoder,
)
from vdm_jax.planning.flops import training_work
from vdm_jax.planning.inputs import training_batch
from vdm_jax.stages.options import InitFrom, Sampling, Training, Windows
from vdm_jax.stages.stage import Experiment, KeyFrames, LowResolution, Stage, VideoSpec

FULL, SPATIAL = SelfAttention(pattern=Full()), SelfAttention(pattern=Spatial())
TEMPORAL = SelfAttention(pattern=Temporal(), position="sinusoidal")
RELATIVE = SelfAttention(pattern=Temporal(), position="shaw")
CROSS, CONVOLUTION = CrossAttention(), TemporalConvolution()
PLACES = Process(schedule=CosineSchedule(shift=-1.0), prediction="x")  # of colours, and of what only sharpens
# Shapes are decided above an SNR of 1
SHAPES = Process(schedule=PLACES.schedule, prediction="x", weighting=TruncatedSNRWeighting(gamma=5.0))
DATA = CaptionedDigits(train_clips=20_000, objects=(1, 1))
TEXT = WordEncoder(length=16, width=64, layers=1, pooling="attention")
# Frames are distinguished by attention alone, so that an image network becomes a video network exactly
AXES = {"position_axes": ("row", "column")}
GENERATING = Sampling(sampler=DDIM(eta=1.0), steps=32, guidance=1.0, batch_size=32)
DRAWING = Sampling(sampler=DDIM(), steps=32, guidance=1.0, batch_size=32)
SHARPENING = Sampling(sampler=DDIM(), steps=8, batch_size=32)


@dataclasses.dataclass(frozen=True)
class Part:
    """A run of a system: an experiment, and the share of the system's budget that each of its stages gets."""

    name: str
    experiment: Experiment
    shares: dict[str, float]


def stage(name: str, size: tuple[int, int], network: UNet, clips: int, rate: float = 1.5e-3,
          source: LowResolution | KeyFrames | None = None, part: int | None = None, **more: Any) -> Stage:
    """A stage that makes so many frames of so many pixels, trained on so many clips a step, or on parts of so many
    frames. Its number of steps is decided by the budget."""
    frames, pixels = size
    process = PLACES if pixels == 4 or network.residual else SHAPES
    sampling = SHARPENING if network.residual else DRAWING if network.low_resolution else GENERATING
    training = {name: more.pop(name) for name in ("init_from", "key_frames", "masking", "trainable") if name in more}
    return Stage(
        name=name, video=VideoSpec(frames=frames, height=pixels, width=pixels, fps=8 * frames / 16), source=source,
        network=network, process=process, sampling=more.pop("sampling", sampling), training=Training(
            batch_size=clips, learning_rate=rate, warmup_steps=100, decay=True, ema_decay=0.998, log_every=50,
            checkpoint_every=250, sample_every=0, validate_every=0, frames=part, **training), **more)


def from_low(frames: int, pixels: int, sampled: float = 7.5, **more: Any) -> LowResolution:
    """A low-resolution video of so many frames and pixels, with noise of so much log-SNR when sampled."""
    augmentation = NoiseAugmentation(training_logsnr=(2.0, 9.0), sampling_logsnr=sampled)
    return LowResolution(frames=frames, height=pixels, width=pixels, augmentation=augmentation, **more)


def placing(mixers: tuple[Mixer, ...], **more: Any) -> UNet:
    """The network of 4x4 pixels with text: all positions are tokens."""
    read = (*mixers, CROSS)
    return UNet(**{"levels": (Level(channels=96, blocks=1, mixers=read),), "middle": read, "position_period": 25.0,
                   "embedding_channels": 192, "text": TEXT, **more})


def drawing(mixers: tuple[Mixer, ...], high: tuple[Mixer, ...] = (), **more: Any) -> UNet:
    """The network of 16x16 pixels with text: convolutions on 2x2 pixels, attention on the 4x4 positions below."""
    read = (*mixers, CROSS)
    levels = (Level(channels=64, blocks=1, mixers=(*high, CROSS)), Level(channels=128, blocks=1, mixers=read))
    return UNet(levels=levels, middle=read, patch=2, position_period=25.0, embedding_channels=128, text=TEXT, **more)


def sharpening(mixers: tuple[Mixer, ...], patch: int = 4, **more: Any) -> UNet:
    """A small network that changes an enlarged video."""
    return UNet(levels=(Level(channels=64, blocks=1, kernel=1, mixers=mixers),), patch=patch, low_resolution=True,
                residual=True, **more)


def vdm(work: Path) -> list[Part]:
    """One model of the whole motion and shape: spatial, then temporal attention with relative positions; then its
    spatial super-resolution."""
    stages = (stage("base", (16, 16), drawing((SPATIAL, RELATIVE), (RELATIVE,), **AXES), 8),
              stage("spatial", (16, 64), sharpening((CONVOLUTION,)), 8, 2e-3, from_low(16, 16)))
    return [Part("vdm", Experiment(name="vdm_style", stages=stages, data=DATA), {"base": 0.9, "spatial": 0.1})]


def imagen_video(work: Path) -> list[Part]:
    """Base, spatial super-resolution of few frames, temporal super-resolution, spatial super-resolution of all. The
    first two see tubelets of all their frames, as the demo's; temporal convolutions mix frames in the others."""
    stages = (
        stage("base", (8, 4), placing((FULL,), temporal_patch=8), 64),
        stage("spatial_1", (8, 16), drawing((FULL,), temporal_patch=8, low_resolution=True), 32,
              source=from_low(8, 4, 6.0)),
        stage("temporal", (16, 16), sharpening((CONVOLUTION,), 2), 8, 2e-3, from_low(8, 16, fill="linear")),
        stage("spatial_2", (16, 64), sharpening((CONVOLUTION,)), 8, 2e-3, from_low(16, 16)))
    shares = {"base": 0.26, "spatial_1": 0.6, "temporal": 0.04, "spatial_2": 0.1}
    return [Part("imagen_video", Experiment(name="imagen_video_style", stages=stages, data=DATA), shares)]


def images(network: UNet) -> Part:
    """Image networks of 4x4, 16x16 and 64x64 pixels, as which video networks begin."""
    stages = (stage("image", (1, 4), network, 64),
              stage("image_large", (1, 16), drawing((SPATIAL,), low_resolution=True, **AXES), 32,
                    source=from_low(1, 4, 6.0)),
              stage("image_largest", (1, 64), sharpening(()), 32, 2e-3, from_low(1, 16)))
    return Part("images", Experiment(name="digit_images", stages=stages, data=DATA),
                {"image": 0.05, "image_large": 0.3, "image_largest": 0.02})


def two_levels(mixers: tuple[Mixer, ...]) -> UNet:
    """The image network of 4x4 pixels: two levels of as many positions, so that a video network can shrink in time from
    one to the other."""
    return placing(mixers, levels=(Level(channels=96, blocks=1, mixers=mixers[1:], stride=(1, 1)),
                                   Level(channels=96, blocks=1, mixers=(*mixers, CROSS))), **AXES)


def make_a_video(work: Path) -> list[Part]:
    """Image networks first; then a decoder, an interpolation network and super-resolution that begin as them, with
    pseudo-3D convolutions and temporal attention, all of which is trained."""
    before = images(two_levels((SPATIAL,)))

    def begun(name: str, run: str | None = str(work / before.name), **more: Any) -> dict[str, Any]:
        return {"init_from": InitFrom(stage=name, run=run), "key_frames": True, **more}

    frames = two_levels((SPATIAL, TEMPORAL))
    frames = dataclasses.replace(frames, temporal_kernel=3)
    stages = (
        stage("decoder", (6, 4), frames, 32, **begun("image")),
        stage("interpolation", (16, 4), dataclasses.replace(frames, conditioning_frames=True), 8,
              source=KeyFrames(frames=6, every=3), **begun("decoder", None, masking=(FrameMask(every=3),))),
        stage("spatial_1", (16, 16), drawing((SPATIAL, TEMPORAL), low_resolution=True, temporal_kernel=3, **AXES), 8,
              1e-3, from_low(16, 4, 6.0), **begun("image_large")),
        stage("spatial_2", (16, 64), sharpening((), temporal_kernel=3), 8, 2e-3, from_low(16, 16),
              **begun("image_largest")))
    shares = {"decoder": 0.22, "interpolation": 0.05, "spatial_1": 0.3, "spatial_2": 0.06}
    return [before, Part("make_a_video", Experiment(name="make_a_video_style", stages=stages, data=DATA), shares)]


def lumiere(work: Path) -> list[Part]:
    """Image networks first; then a base of all frames that also shrinks in time, and super-resolution in overlapping
    windows; of all only what is added to the image networks is trained."""
    load_config("lumiere/cascade")  # makes the private files of the shipped configs importable
    from vdm_jax_configs.lumiere._network import ADDED, inflated

    before = images(two_levels((SPATIAL,)))
    small, large, largest = (one.network for one in before.experiment.stages)

    def begun(of: str, added: tuple[str, ...] = ADDED) -> dict[str, Any]:
        return {"init_from": InitFrom(stage=of, run=str(work / before.name)), "trainable": added}

    def windowed(sampling: Sampling) -> Sampling:
        return dataclasses.replace(sampling, windows=Windows(frames=8, overlap=2))

    stages = (
        stage("base", (16, 4), inflated(small, (2, 1), 32, position="sinusoidal"), 16, **begun("image")),
        stage("spatial_1", (16, 16), inflated(large, (1, 1), 32, position="sinusoidal"), 16,
              source=from_low(16, 4, 6.0), sampling=windowed(DRAWING), part=8, **begun("image_large", ADDED[1:])),
        stage("spatial_2", (16, 64), inflated(largest, (1,), 16), 8, 2e-3, from_low(16, 16),
              sampling=windowed(SHARPENING), part=8, **begun("image_largest", ADDED[1:])))  # it keeps all frames
    shares = {"base": 0.27, "spatial_1": 0.3, "spatial_2": 0.06}
    return [before, Part("lumiere", Experiment(name="lumiere_style", stages=stages, data=DATA), shares)]


SYSTEMS = {"VDM": vdm, "Imagen Video": imagen_video, "Make-A-Video": make_a_video, "Lumiere": lumiere}


def step_flops(of: Stage, data: CaptionedDigits) -> float:
    """FLOPs of one train step, three times forward."""
    import jax

    from vdm_jax.parallel.mesh import MeshSpec, make_mesh
    from vdm_jax.stages.parameters import initial_params

    batch, _ = training_batch(of, data, of.training.batch_size, text_tokens=0)
    params = jax.eval_shape(lambda key: initial_params(of, key), jax.random.key(0))
    return training_work(of, batch, params, make_mesh(MeshSpec(), jax.devices()[:1])).model


def within_budget(part: Part, budget: float) -> Experiment:
    """The experiment with as many steps for each stage as its share of the budget (FLOPs) pays for."""
    def paid(one: Stage) -> Stage:
        steps = max(1, int(part.shares[one.name] * budget / step_flops(one, part.experiment.data)))
        training = dataclasses.replace(one.training, steps=steps, checkpoint_every=min(250, steps),
                                       log_every=min(50, steps))
        return dataclasses.replace(one, training=training)

    return dataclasses.replace(part.experiment, stages=tuple(paid(one) for one in part.experiment.stages))
