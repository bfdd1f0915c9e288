"""What a latent stage is: sizes of latents, conditioning frames in them, and every way in which it cannot be."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from tests.training.latents import AUTOENCODER, random_params
from vdm_jax.commands.configs import load_config
from vdm_jax.conditions.frame_masks import FrameMask, MaskedVideo, NoMask
from vdm_jax.conditions.low_resolution import low_grid
from vdm_jax.configuration import from_json, to_json
from vdm_jax.diffusion.augmentation import NoiseAugmentation, TruncatedConditioningAugmentation
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.generation.one_stage import finished
from vdm_jax.networks.autoencoders.config import Autoencoder
from vdm_jax.networks.config import EmbeddedText, Level, UNet
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.stages.inputs import training_inputs
from vdm_jax.stages.latent import Latent, decode, encode, encode_masked_video
from vdm_jax.stages.options import InitFromFile, Sampling, Training
from vdm_jax.stages.parameters import initial_params
from vdm_jax.stages.stage import Experiment, FirstFrame, KeyFrames, LowResolution, Stage, VideoSpec
from vdm_jax.weights import model_kinds

LATENT = Latent(autoencoder=AUTOENCODER)
UNET = UNet(levels=(Level(channels=8, blocks=1, kernel=1), Level(channels=8, blocks=1, kernel=1)), out_channels=4)
OPEN = LatentUNet(widths=(8,), blocks=1, attention=(True,), heads=(2,), only_cross_attention=(False,),
                  token_channels=6, groups=4)
CLIP = Autoencoder(widths=(8, 8, 8), blocks=1, groups=4, layout="clip", time_factor=4, middle_attention=False)


def make(size=(4, 16, 24), **changes):
    frames, height, width = size
    values = {"name": "base", "video": VideoSpec(frames=frames, height=height, width=width), "latent": LATENT,
              "network": UNET, "process": Process(), "sampling": Sampling(threshold=None)} | changes
    return Stage(**values)


def upsampling(**changes):
    low = LowResolution(frames=4, height=8, width=12, augmentation=changes.pop("augmentation", NoiseAugmentation()))
    network = dataclasses.replace(UNET, low_resolution=True)
    return make(name="large", source=low, network=network, **changes)


@pytest.fixture(scope="module")
def weights():
    return random_params(AUTOENCODER)


@pytest.fixture(scope="module")
def batch():
    return {"video": np.random.default_rng(0).integers(0, 256, (2, 4, 16, 24, 3)).astype(np.uint8)}


def test_sizes_of_latents_and_a_config_as_json():
    stage = make()
    assert stage.video.shape == (4, 16, 24, 3) and stage.shape == (4, 8, 12, 4)
    clip = make(latent=Latent(autoencoder=CLIP), network=dataclasses.replace(UNET, levels=UNET.levels[:1]))
    assert clip.shape == (1, 4, 6, 4)
    experiment = Experiment(name="x", stages=(stage,), data=CaptionedDigits(size=16, frames=4))
    assert from_json(Experiment, to_json(experiment)) == experiment
    shapes = jax.eval_shape(lambda: initial_params(stage, jax.random.key(0)))
    assert shapes["stem"]["kernel"].shape[-2] == shapes["out"]["kernel"].shape[-1] == 4


@pytest.mark.parametrize(("form", "channels", "grid"), [("latents", 4, (4, 16, 24)), ("pixels", 3, (4, 8, 12))])
def test_a_low_resolution_video_enters_as_latents_or_as_pixels(form, channels, grid, weights, batch):
    """The first is enlarged to the size of the video, the second is already as large as the latents."""
    latent = dataclasses.replace(LATENT, low_resolution=form, encode="mode")
    stage = upsampling(latent=latent, augmentation=NoiseAugmentation(training_logsnr=(30.0, 30.0)))
    spec = low_grid(stage)
    assert (spec.frames, spec.height, spec.width) == grid
    x, conditioning, _ = training_inputs(stage, batch, jax.random.key(0), weights)
    assert x.shape == (2, 4, 8, 12, 4) and conditioning.low_resolution.shape == (2, 4, 8, 12, channels)
    shapes = jax.eval_shape(lambda: initial_params(stage, jax.random.key(0)))
    assert shapes["stem"]["kernel"].shape[-2] == 4 + channels
    window = dataclasses.replace(stage, training=Training(crop=(8, 16)))
    x, conditioning, _ = training_inputs(window, batch, jax.random.key(0), weights)
    assert x.shape == (2, 4, 4, 8, 4) and conditioning.low_resolution.shape == (2, 4, 4, 8, channels)


def test_known_frames_and_boxes_in_latents(weights, batch):
    video = jnp.asarray(batch["video"] / 127.5 - 1, jnp.float32)
    mask = np.zeros((2, 4, 16, 24, 1), np.float32)
    mask[:, 0] = 1
    mask[:, 1, 3:9, 2:10] = 1  # rows 4 to 7 and columns 2 to 9 fill latents
    masked_video = encode_masked_video(LATENT, weights, MaskedVideo(video, mask))
    expected = np.zeros((2, 4, 8, 12, 1), np.float32)
    expected[:, 0], expected[:, 1, 2:4, 1:5] = 1, 1
    np.testing.assert_array_equal(masked_video.mask, expected)
    np.testing.assert_allclose(masked_video.video[:, 0], encode(LATENT, weights, video)[:, 0], atol=1e-5)
    whole = encode_masked_video(LATENT, weights, MaskedVideo(video, np.ones((2, 1, 1, 1, 1))))
    assert whole.mask.shape == (2, 4, 8, 12, 1) and whole.mask.all()
    made = finished(make(), jnp.zeros((2, 4, 8, 12, 4)), None, MaskedVideo(video, mask), weights)
    np.testing.assert_array_equal(made[:, 0], video[:, 0])  # what is given comes out as it is
    assert np.abs(made[:, 2] - video[:, 2]).max() > 0.1
    with refused("latent.encode_masked_video"):
        encode_masked_video(LATENT, weights, MaskedVideo(video, mask, video, mask[:, :, :1, :1]))


def test_training_clips_of_which_frames_are_known(weights, batch):
    network = dataclasses.replace(UNET, conditioning_frames=True)
    stage = make(network=network, training=Training(masking=(FrameMask(first=1), NoMask(weight=1e-9))))
    x, conditioning, _ = training_inputs(stage, batch, jax.random.key(0), weights)
    np.testing.assert_array_equal(conditioning.conditioning_frames[:, 0], x[:, 0])
    assert not conditioning.conditioning_frames[:, 1:].any() and conditioning.conditioning_mask.shape == (2, 4, 8, 12,
                                                                                                          1)
    shapes = jax.eval_shape(lambda: initial_params(stage, jax.random.key(0)))
    assert shapes["stem"]["kernel"].shape[-2] == 4 + 5


@pytest.mark.parametrize(("change", "message"), [
    (lambda: make((4, 15, 24)),
     ("video.height", "=15", "2", "4")),
    (lambda: make((4, 18, 24)), ("Stage.video.height", "=18")),
    (lambda: make((6, 16, 16), latent=Latent(autoencoder=CLIP)), ("video.frames", "=6")),
    (lambda: make(sampling=Sampling()), ("Stage.sampling.threshold", "=StaticThreshold(", "[-1, 1]")),
    (lambda: make(latent=None), ("Stage.network.out_channels", "=4")),
    (lambda: make(network=dataclasses.replace(UNET, out_channels=3)), ("Stage.network.out_channels", "=3")),
    (lambda: upsampling(augmentation=TruncatedConditioningAugmentation()),
     ("Stage.TruncatedConditioningAugmentation",)),
    (lambda: make(source=FirstFrame()), ("Stage.source", "FirstFrame", "LatentNetwork")),
    (lambda: make(network=LatentNetwork(unet=dataclasses.replace(OPEN, in_channels=5))),
     ("Stage.network.unet.in_channels", "=5")),
    (lambda: make(training=Training(init_from=InitFromFile(path="x"))), ("Stage.training.init_from", "LatentNetwork")),
    (lambda: make((8, 16, 16), latent=Latent(autoencoder=CLIP), training=Training(images_per_clip=1)),
     ("stage._check_latent", "4")),
    (lambda: upsampling(latent=dataclasses.replace(LATENT, low_resolution="pixels"),
                        video=VideoSpec(frames=4, height=8, width=12)),
     ("Stage.source.height", "=8", "latent.low_resolution='pixels'")),
    (lambda: Latent(tile=(12, 10)), ("Latent.tile", "=(12, 10)", "overlap=0")),
    (lambda: Latent(encode="mean"), ("Latent.encode", "='mean'", "'sample'", "'mode'")),
    (lambda: Latent(decode_frames=0), ("Latent.decode_frames", "=0", ">= 1")),
    (lambda: LatentNetwork(unet=OPEN, text=EmbeddedText(width=7)), ("LatentNetwork.text", "token_channels=6")),
    (lambda: LatentNetwork(unet=dataclasses.replace(OPEN, scalars=1), scalars=("speed",)), ("LatentNetwork.scalars",)),
    (lambda: LatentNetwork(unet=dataclasses.replace(OPEN, scalars=1), scalars=("noise",)),
     ("LatentNetwork", "first_frame=False")),
    (lambda: FirstFrame(noise=-1.0), ("FirstFrame.noise", "=-1.0", ">= 0")),
    (lambda: Sampling(last_frame_guidance=1e9), ("Sampling.last_frame_guidance", "=1000000000.0", "<= 1000")),
])
def test_stages_that_cannot_be(change, message):
    with refused(*message) as error:
        change()
    assert "\n" not in str(error.value)


def test_a_stage_that_stops_early_has_pixels():
    after = Stage(name="large", video=VideoSpec(frames=4, height=32, width=48), process=Process(),
                  source=LowResolution(frames=4, height=16, width=24, augmentation=TruncatedConditioningAugmentation()),
                  network=UNet(levels=UNET.levels, low_resolution=True))
    with refused("Stage.TruncatedConditioningAugmentation", "'base'"):
        Experiment(name="x", stages=(make(), after), data=CaptionedDigits(size=32, frames=4))


def test_the_demo_in_latents_takes_the_demo_autoencoder():
    latent = load_config("latent_digits").stages[0].latent
    autoencoders = load_config("autoencoder/digits")
    spec = dataclasses.replace(autoencoders.stages[0].network, scale=latent.autoencoder.scale,
                               shift=latent.autoencoder.shift)  # these are measured
    assert latent.autoencoder == spec and latent.weights == f"runs/{autoencoders.name}"


def test_a_stage_may_fill_in_frames():
    network = dataclasses.replace(UNET, conditioning_frames=True)
    stage = make((5, 16, 24), source=KeyFrames(frames=2, every=4), network=network,
                 training=Training(masking=(FrameMask(first=1),)))
    assert stage.source_shape == (2, 16, 24)


def test_latents_are_scaled_and_shifted_as_published():
    """z = (mean - shift) * scale, from the autoencoder's own moments: Rombach et al. 2022 scale by 0.18215."""
    spec = dataclasses.replace(AUTOENCODER, scale=0.18215, shift=0.25)
    latent, weights = Latent(autoencoder=spec), random_params(spec)
    video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 2, 8, 8, 3)), jnp.float32)
    mean = model_kinds.module(spec).apply({"params": weights}, video, method="encode").mean
    np.testing.assert_allclose(encode(latent, weights, video), (mean - 0.25) * 0.18215, atol=1e-6)
    np.testing.assert_allclose(encode(latent, weights, video, scaled=False), mean, atol=1e-6)
    assert np.abs((mean - 0.25) * 0.18215 - mean).max() > 0.1
    z = jnp.asarray(np.random.default_rng(1).normal(size=(1, 2, 4, 4, 4)), jnp.float32)
    made = model_kinds.module(spec).apply({"params": weights}, z / 0.18215 + 0.25, method="decode")
    np.testing.assert_allclose(decode(latent, weights, z), np.clip(made, -1, 1), atol=1e-4)
