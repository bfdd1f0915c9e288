"""What a training step draws at random is drawn independently: within a batch and from one step to the next.

Rank correlations of every two quantities are computed per step. Of independent ones, `(B - 1) r^2` has mean 1 and, as r
is nearly normal, variance 2: its mean over the steps is held against 1 with five standard errors. A mean of r alone
would pass over two ramps with drawn offsets, whose correlations are large and of both signs.
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import rankdata

from tests.training.latents import AUTOENCODER, random_params
from vdm_jax.conditions.frame_masks import BoxMask, FrameMask, NoMask
from vdm_jax.data.frame_rates import FrameRates
from vdm_jax.data.pipeline import FlipAugmentation, Pipeline
from vdm_jax.diffusion.augmentation import BlurAugmentation, NoiseAugmentation
from vdm_jax.diffusion.levels import LogNormalSigma
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.schedules import EDMSchedule, LinearBetaSchedule
from vdm_jax.networks.config import Level, UNet, WordEncoder
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import FirstFrame, LowResolution, Stage, VideoSpec
from vdm_jax.training.step import draw

BATCH, STEPS = 64, 48
SIGMAS = 5
TEXT = WordEncoder(words=("a", "b"), length=2, width=8, layers=1, head_dim=8)
NETWORK = UNet(levels=(Level(channels=4, blocks=1),), embedding_channels=8, groups=2, text=TEXT)
TOKENS = jnp.full((BATCH, 2), 2)


def stage_of(network=NETWORK, size=8, frames=2, **more):
    return Stage(name="stage", video=VideoSpec(frames=frames, height=size, width=size), network=network,
                 **({"process": Process(), "training": Training(text_dropout=0.3)} | more))


def places(blue=0):
    """Clips whose red and green are row and column, and whose blue is black or so many times the row's square."""
    row, column = np.meshgrid(np.arange(16), np.arange(16), indexing="ij")
    frame = np.stack([4 * row, 4 * column, blue * row**2], axis=-1).astype(np.uint8)
    return jnp.broadcast_to(jnp.asarray(frame), (BATCH, 2, 16, 16, 3))


def drawn_of(stage, batches, read, autoencoder=None):
    """Quantities `[STEPS, BATCH]` by name of the draws of consecutive steps, read by `read(Drawn)`."""
    def one(step, batch):
        found = draw(stage, batch, jax.random.fold_in(jax.random.key(7), step), autoencoder)
        text = found.conditioning.text_mask
        common = {"noise level": found.logsnr, "noise": found.noise[:, 0, 0, 0, 0]}
        if text is not None:
            common["text dropped"] = text[:, 0].any(-1)
        return common | read(found)

    return {name: np.asarray(a, np.float64) for name, a in
            jax.jit(jax.vmap(one))(jnp.arange(STEPS), batches).items()}


def repeated(batch):
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (STEPS, *a.shape)), batch)


def window_stage(augmentation):
    return stage_of(dataclasses.replace(NETWORK, low_resolution=True), size=16,
                    source=LowResolution(frames=2, height=8, width=8, augmentation=augmentation),
                    training=Training(crop=(8, 8), text_dropout=0.3))


def place(found):
    return {"row": found.x[:, 0, 0, 0, 0], "column": found.x[:, 0, 0, 0, 1]}


def noisy(augmentation):
    """A stage trained on windows: their places, level and noise of the low-resolution video, which is black in blue."""
    def read(found):
        low, level = found.conditioning.low_resolution[:, 0, 0, 0, 2], found.conditioning.augmentation
        alpha, sigma = jnp.sqrt(jax.nn.sigmoid(level)), jnp.sqrt(jax.nn.sigmoid(-level))
        return place(found) | {"augmentation level": level, "augmentation noise": (low + alpha) / sigma}

    return drawn_of(window_stage(augmentation), repeated({"video": places(), "tokens": TOKENS}), read)


def blurred():
    """The same stage with blur, which moves a square by its width alone, wherever that is."""
    batches = repeated({"video": places(blue=1), "tokens": TOKENS})
    sharp, found = (drawn_of(window_stage(BlurAugmentation(at="enlarged", probability=p)), batches, lambda found: place(
        found) | {"blur": found.conditioning.low_resolution[:, 0, 4, 4, 2]}) for p in (0.0, 0.5))
    return found | {"blur": np.round(found["blur"] - sharp["blur"], 5)}


class Numbers:
    """Clips whose pixels are their number, their start and their column."""

    def __len__(self):
        return 200

    def __getitem__(self, index):
        return self.clip_at(index, np.random.default_rng(index), 1.0, 2)

    def clip_at(self, index, rng, fps, frames):
        video = np.zeros((frames, 8, 8, 3), np.uint8)
        video[..., 0], video[..., 1], video[..., 2] = index, rng.integers(256), np.arange(8)
        return {"video": video, "caption": "a", "fps": fps}


def base():
    """A base stage: rates, starts, flips and independent images of the pipeline, and the frame mask."""
    stage = stage_of(dataclasses.replace(NETWORK, conditioning_frames=True, scalars=("fps",)), training=Training(
        text_dropout=0.3, images_per_clip=1, frame_rates=FrameRates(first=(2.0, 2.0), last=(2.0, 2.0)),
        masking=(NoMask(), FrameMask(first=1), BoxMask())))
    pipeline = Pipeline(Numbers(), batch_size=BATCH, seed=7, tokenize=lambda caption: [2, 2], images_per_clip=1,
                        augment=FlipAugmentation(), frame_rates=stage.training.frame_rates, frames=2)
    batches = [pipeline.batch(step) for step in range(STEPS)]
    names = ("video", "tokens", "images", "image_tokens", "frame_rate")
    batches = {name: jnp.asarray(np.stack([batch[name] for batch in batches])) for name in names}

    def read(found):
        x, mask = found.x, found.conditioning.conditioning_mask
        return {"clip": x[:, 0, 0, 0, 0], "start": x[:, 0, 0, 0, 1], "flip": x[:, 0, 0, 0, 2] > -0.99,
                "rate": found.conditioning.scalars["fps"], "image": x[:, 2, 0, 0, 0],
                "image flip": x[:, 2, 0, 0, 2] > -0.99, "mask in the first frame": mask[:, 0].mean((1, 2, 3)),
                "mask in the second frame": mask[:, 1].mean((1, 2, 3))}

    # Masks of one clip belong together.
    return drawn_of(stage, batches, read), {("mask in the first frame", "mask in the second frame")}


LATENT = Latent(autoencoder=AUTOENCODER)
UNET = LatentUNet(in_channels=8, widths=(4,), blocks=1, attention=(True,), heads=(2,), groups=2,
                  only_cross_attention=(False,), token_channels=6)


def first_frame():
    """A latent stage that begins with a picture: the noise on it and its dropout, samples of moments, parts."""
    network = LatentNetwork(unet=dataclasses.replace(UNET, scalars=1, scalar_channels=8), timesteps=None,
                            first_frame=True, scalars=("noise",))
    stage = stage_of(network, frames=3, source=FirstFrame(), latent=LATENT, sampling=Sampling(threshold=None),
                     process=Process(schedule=EDMSchedule(), prediction="edm", level_sampling=LogNormalSigma()),
                     training=Training(text_dropout=0.3, frames=1))
    # The latents of grey clips differ by what is drawn from their moments alone. Frames differ little: see the part.
    video = jnp.broadcast_to(100 + 20 * jnp.arange(3, dtype=jnp.uint8)[:, None, None, None], (BATCH, 3, 8, 8, 3))

    def read(found):
        image = found.conditioning.image
        return {"latent": found.x[:, 0, 0, 0, 0], "picture dropped": (image == 0).all((1, 2, 3, 4)),
                "picture noise": found.conditioning.scalars["noise"]}

    return drawn_of(stage, repeated({"video": video}), read, random_params(AUTOENCODER))


def known_latents():
    """A latent stage whose conditioning latents are noised to a drawn timestep."""
    network = LatentNetwork(unet=dataclasses.replace(UNET, in_channels=5, max_relative_position=2, classes=251,
                                                     token_channels=0),
                            timesteps=LinearBetaSchedule(), frame_conditioning="in_place", frame_noise_steps=250,
                            frame_noise_step=100)
    stage = stage_of(network, latent=LATENT, sampling=Sampling(threshold=None),
                     process=Process(schedule=LinearBetaSchedule(), prediction="eps"),
                     training=Training(masking=(FrameMask(first=1), NoMask())))

    def read(found):
        return {"frame mask": found.conditioning.conditioning_mask[:, 0, 0, 0, 0], "latent": found.x[:, 1, 0, 0, 0],
                "known step": found.conditioning.scalars["frame_noise_step"]}

    return drawn_of(stage, repeated({"video": jnp.full((BATCH, 2, 8, 8, 3), 90, jnp.uint8)}), read,
                    random_params(AUTOENCODER))


CASES = {"noise augmentation": lambda: noisy(NoiseAugmentation()),
         "noise augmentation, uniform in log-SNR": lambda: noisy(
             NoiseAugmentation(training_logsnr=(-3.0, 5.0), at="low")),
         "blur augmentation": blurred,
         "base stage and its data": base, "first frame": first_frame, "conditioning latents": known_latents}


def correlations(a, b):
    """Rank correlation of every step at which both vary."""
    ranks = [rankdata(x, axis=1) - (x.shape[1] + 1) / 2 for x in (a, b)]
    scale = np.sqrt(np.prod([(r**2).sum(1) for r in ranks], axis=0))
    return (ranks[0] * ranks[1]).sum(1)[scale > 0] / scale[scale > 0]


def dependence(quantities, passed_over=frozenset()):
    """Pairs that are correlated, within a step or between a step and the next, with how much."""
    found = {}
    for a, b in itertools.combinations_with_replacement(quantities, 2):
        for lag in (0, 1):
            if (a, b) in passed_over or (a == b and not lag):
                continue
            r = correlations(quantities[a][: STEPS - lag], quantities[b][lag:])
            square, mean = (BATCH - 1) * (r**2).mean(), np.sqrt(BATCH - 1) * r.mean()
            if square > 1 + SIGMAS * np.sqrt(2 / len(r)) or abs(mean) > SIGMAS / np.sqrt(len(r)):
                found[a, b, lag] = square, mean
    return found


@pytest.mark.parametrize("case", CASES)
def test_no_two_draws_of_a_step_are_correlated(case):
    quantities = CASES[case]()
    quantities, passed_over = quantities if isinstance(quantities, tuple) else (quantities, frozenset())
    varying = [name for name, a in quantities.items() if np.ptp(a) > 0]
    assert set(quantities) == set(varying), "a quantity that does not vary shows nothing"
    assert dependence(quantities, passed_over) == {}


def test_two_ramps_of_a_batch_would_be_found():
    """The control: quantiles in batch order, each with an offset of its own."""
    rng = np.random.default_rng(0)
    ramps = [(rng.random((STEPS, 1)) + np.arange(BATCH) / BATCH) % 1 for _ in range(2)]
    assert ("a", "b", 0) in dependence({"a": ramps[0], "b": ramps[1]})
    assert dependence({"a": rng.random((STEPS, BATCH)), "b": rng.random((STEPS, BATCH)) < 0.3}) == {}
