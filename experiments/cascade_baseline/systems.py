"""Four published kinds of cascade, small enough for a CPU, that all make 16 frames of 64x64 from a caption.

What differs is what the papers differ in: how many stages, which layers mix frames, whether a video network begins as
an image network and what of it is then trained. The rest is shared and ours: networks of one or two levels on large
patches that predict the clean video, one optimiser, one sampler.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vdm_jax.attention.patterns import Spatial, Temporal
from vdm_jax.commands.configs import load_config
from vdm_jax.conditions.frame_masks import FrameMask
from vdm_jax.diffusion.augmentation import NoiseAugmentation
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import CosineSchedule
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.digits.clips import caption_words
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

SPATIAL, TEMPORAL = SelfAttention(pattern=Spatial()), SelfAttention(pattern=Temporal(), position="sinusoidal")
RELATIVE = SelfAttention(pattern=Temporal(), position="shaw")
CROSS, CONVOLUTION = CrossAttention(), TemporalConvolution()
BASE = Process(schedule=CosineSchedule(shift=-3.0), prediction="x")
DETAIL = Process(schedule=CosineSchedule(shift=-1.0), prediction="x")
AUGMENTATION = NoiseAugmentation(training_logsnr=(2.0, 9.0), sampling_logsnr=7.5)
DATA = CaptionedDigits(train_clips=10_000, single_object_fraction=0.85, digit_side=20 / 64, track_draws=1)
TEXT = WordEncoder(words=caption_words(), length=16, width=64, layers=1)
# What a caption decides at high noise is a product of words and places, as in the demo; frames are distinguished by
# attention alone, so that an image network becomes a video network exactly.
PLACES = {"position_period": 25.0, "position_axes": ("row", "column")}
GENERATING = Sampling(sampler=DDIM(eta=1.0), steps=32, guidance=1.0, batch_size=32)
ENLARGING = Sampling(sampler=DDIM(), steps=8, batch_size=32)


@dataclasses.dataclass(frozen=True)
class Part:
    """A run of a system: an experiment, and the share of the system's budget that each of its stages gets."""

    name: str
    experiment: Experiment
    shares: dict[str, float]


def training(rate: float, clips: int, **more) -> Training:
    """Without its number of steps, which the budget decides."""
    return Training(batch_size=clips, learning_rate=rate, warmup_steps=30, decay=True, ema_decay=0.99, log_every=25,
                    checkpoint_every=1000, sample_every=0, validate_every=0, **more)


def network(patch: int, mixers: tuple[Mixer, ...], **more) -> UNet:
    """One level on large patches, with text."""
    read = (*mixers, CROSS)
    return UNet(levels=(Level(channels=128, blocks=1, mixers=read),), middle=(*read, *read), patch=patch, text=TEXT,
                **PLACES, **more)


def stage(name: str, frames: int, pixels: int, unet: UNet, source: LowResolution | KeyFrames | None = None,
          sampling: Sampling | None = None, part: int | None = None, **more) -> Stage:
    """A stage at a rate of 8 frames per second for 16 frames, trained on parts of so many frames."""
    enlarges, clips = isinstance(source, LowResolution), 32 if frames == 1 else 8
    return Stage(
        name=name, video=VideoSpec(frames=frames, height=pixels, width=pixels, fps=8 * frames / 16), source=source,
        network=unet, process=DETAIL if enlarges else BASE,
        sampling=sampling or (ENLARGING if enlarges else GENERATING),
        training=training(2e-3 if enlarges else 1.5e-3, clips, frames=part, **more))


def from_low(frames: int, pixels: int) -> LowResolution:
    """A low-resolution video of so many frames and pixels."""
    return LowResolution(frames=frames, height=pixels, width=pixels, augmentation=AUGMENTATION)


def detail(mixers: tuple[Mixer, ...], kernel: int = 1, **more) -> UNet:
    """A small network that changes an enlarged video."""
    return UNet(levels=(Level(channels=48, blocks=1, kernel=kernel, mixers=mixers),), patch=4, low_resolution=True,
                residual=True, **more)


def vdm(work: Path) -> list[Part]:
    """One model of the whole video: spatial, then temporal attention with relative positions."""
    base = stage("base", 16, 64, network(16, (SPATIAL, RELATIVE), stem_kernel=1, out_kernel=1))
    return [Part("vdm", Experiment(name="vdm_style", stages=(base,), data=DATA), {"base": 1.0})]


def imagen_video(work: Path) -> list[Part]:
    """Base with temporal attention, temporal and spatial super-resolution with temporal convolutions."""
    stages = (stage("base", 8, 32, network(8, (SPATIAL, TEMPORAL))),
              stage("temporal", 16, 32, detail((CONVOLUTION,), kernel=3), from_low(8, 32)),
              stage("spatial", 16, 64, detail((CONVOLUTION,)), from_low(16, 32)))
    shares = {"base": 0.8, "temporal": 0.1, "spatial": 0.1}
    return [Part("imagen_video", Experiment(name="imagen_video_style", stages=stages, data=DATA), shares)]


def make_a_video(work: Path) -> list[Part]:
    """Image networks first; then a decoder, an interpolation network and super-resolution that begin as them, with
    pseudo-3D convolutions and temporal attention, all of which is trained."""
    image = stage("image", 1, 32, network(8, (SPATIAL,)))
    large = stage("image_large", 1, 64, detail(()), from_low(1, 32))
    images = Part("make_a_video_images", Experiment(name="make_a_video_style_images", stages=(image, large), data=DATA),
                  {"image": 0.3, "image_large": 0.05})

    def begun(name: str, of: str, run: str | None = str(work / images.name), **more) -> dict:
        return {"init_from": InitFrom(stage=of, run=run), "key_frames": True, **more}

    over_frames = network(8, (SPATIAL, TEMPORAL), temporal_kernel=3)
    stages = (
        stage("decoder", 6, 32, over_frames, **begun("decoder", "image")),
        stage("interpolation", 16, 32, dataclasses.replace(over_frames, conditioning_frames=True),
              KeyFrames(frames=6, every=3), **begun("interpolation", "decoder", None, masking=(FrameMask(every=3),))),
        stage("spatial", 16, 64, detail((), temporal_kernel=3), from_low(16, 32), **begun("spatial", "image_large")))
    videos = Part("make_a_video", Experiment(name="make_a_video_style", stages=stages, data=DATA),
                  {"decoder": 0.35, "interpolation": 0.2, "spatial": 0.1})
    return [images, videos]


def lumiere(work: Path) -> list[Part]:
    """Image networks first; then a base of all frames that also shrinks in time, and super-resolution in overlapping
    windows; of both only what is added to the image networks is trained."""
    load_config("lumiere/cascade")  # makes the private files of the shipped configs importable
    from vdm_jax_configs.lumiere._network import ADDED, inflated

    levels = (Level(channels=64, blocks=1), Level(channels=128, blocks=1, mixers=(SPATIAL, CROSS)))
    small = UNet(levels=levels, middle=(SPATIAL, CROSS), patch=4, text=TEXT, **PLACES)
    large = detail(())
    images = Part("lumiere_images", Experiment(name="lumiere_style_images", data=DATA, stages=(
        stage("base", 1, 32, small), stage("spatial", 1, 64, large, from_low(1, 32)))), {"base": 0.4, "spatial": 0.05})

    def begun(of: str, added: tuple[str, ...] = ADDED) -> dict:
        return {"init_from": InitFrom(stage=of, run=str(work / images.name)), "trainable": added}

    windows = dataclasses.replace(ENLARGING, windows=Windows(frames=8, overlap=2))
    stages = (
        stage("base", 16, 32, inflated(small, (2, 1), 32, position="sinusoidal"), **begun("base")),
        stage("spatial", 16, 64, inflated(large, (1,), 16), from_low(16, 32), windows, part=8,
              **begun("spatial", ADDED[1:])))  # it keeps all frames
    return [images, Part("lumiere", Experiment(name="lumiere_style", stages=stages, data=DATA),
                         {"base": 0.45, "spatial": 0.1})]


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
        training = dataclasses.replace(one.training, steps=steps, checkpoint_every=steps, log_every=min(25, steps))
        return dataclasses.replace(one, training=training)

    return dataclasses.replace(part.experiment, stages=tuple(paid(one) for one in part.experiment.stages))
