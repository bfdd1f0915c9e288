"""What a stage sees: its target video and conditioning made from clips, in training and in sampling. Pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.vocabulary import PADDING
from vdm_jax.diffusion.arrays import noise_from_keys
from vdm_jax.errors import UserError
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.stages.latent import encode
from vdm_jax.stages.observations import draw_known, with_observed
from vdm_jax.stages.stage import FirstFrame, KeyFrames, LowResolution, Source, Stage, VideoSpec
from vdm_jax.video.arrays import crop as crop_frames
from vdm_jax.video.arrays import resize, subsample_frames, to_float, upsample_frames

# Of a batch's key, which is otherwise split.
_OBSERVATION_STREAM, _PART_STREAM, _ENCODING_STREAM, _PICTURE_STREAM, _KNOWN_STREAM = (
    2**31 - n for n in (3, 5, 6, 7, 9))
# Samplers draw from streams 0, 1, 2, ... of a sample's key and augmentations from the last ones.
_CROP_STREAM, _PICTURE_NOISE_STREAM, _KNOWN_NOISE_STREAM = 2**31 - 3, 2**31 - 4, 2**31 - 8


def target_video(
    clip: UInt8[Array, "b t h w 3"], video: VideoSpec, key_frames: bool = False
) -> Float[Array, "b t2 h2 w2 3"]:
    """The clip at the size a stage makes: some of its frames (`take_frames`), pixels averaged over areas."""
    return resize(to_float(take_frames(clip, video.frames, key_frames)), video.height, video.width, "area")


def take_frames(clip: Shaped[Array, "b t *rest"], frames: int, key_frames: bool = False) -> Shaped[Array, "b n *rest"]:
    """Frames 0, k, 2 k, ... of clips, k = T / frames; of `key_frames`, which go from the first frame to the
    last, k = (T - 1) / (frames - 1). Raises `UserError` where k is no whole number."""
    total = clip.shape[1]
    if not key_frames:
        if total % frames:
            raise UserError(f"clips of {total} frames for a stage of {frames}; permitted: clips of {frames}, "
                            f"{2 * frames}, {3 * frames}, ... frames")
        return clip[:, :: total // frames]
    if frames < 2 or (total - 1) % (frames - 1):
        raise UserError(f"training.key_frames=True: {frames} frames of clips of {total}; permitted: clips of {frames}, "
                        f"{2 * frames - 1}, {3 * frames - 2}, ... frames")
    return clip[:, :: (total - 1) // (frames - 1)]


def hold_valid(x: Float[Array, "b t h w 3"], valid: Bool[Array, "b t"]) -> Float[Array, "b t h w 3"]:
    """The video with each padded frame replaced by the last existing one before it (the first one after it at the
    start), so that nothing made from the video, a low-resolution version say, depends on the padding."""
    frames = jnp.arange(valid.shape[1])
    first = jnp.argmax(valid, axis=1)
    last = jax.lax.cummax(jnp.where(valid, frames, first[:, None]), axis=1)
    return jnp.take_along_axis(x, last[:, :, None, None, None], axis=1)


def degrade(x: Float[Array, "b t h w 3"], source: Source) -> Float[Array, "b t2 h2 w2 3"]:
    """The video that the stage before would have made of `x`."""
    if isinstance(source, FirstFrame):
        return x[:, :1]
    if isinstance(source, KeyFrames):
        return x[:, :: source.every]
    return resize(subsample_frames(x, source.frames), source.height, source.width, "area")


def enlarge(low: Float[Array, "b t h w 3"], source: LowResolution, video: VideoSpec) -> Float[Array, "b t2 h2 w2 3"]:
    """A low-resolution video at the frames and pixels of another one, which is as large or larger."""
    return resize(upsample_frames(low, video.frames, source.fill), video.height, video.width, source.resize)


def low_grid(stage: Stage) -> VideoSpec:
    """The size to which a stage enlarges its low-resolution video: that of its own, or of its latents."""
    if stage.latent is None or stage.latent.low_resolution == "latents":
        return stage.video
    frames, height, width, _ = stage.shape
    return dataclasses.replace(stage.video, frames=frames, height=height, width=width)


def draw_corners(keys: Array, stage: Stage) -> Int[Array, "b 2"]:
    """First row and column of each sample's training window, in low-resolution pixels, uniform over all places."""
    source, crop = stage.source, stage.training.crop
    room = jnp.array([getattr(source, side) - size // _scale(stage, side) + 1
                      for side, size in zip(("height", "width"), crop, strict=True)])
    return jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, _CROP_STREAM), (2,), 0, room))(keys)


def target_window(
    x: Float[Array, "b t h w 3"], corners: Int[Array, "b 2"], stage: Stage
) -> Float[Array, "b t h2 w2 3"]:
    """The windows of the stage's own videos that begin at the given low-resolution pixels."""
    scales = jnp.array([_scale(stage, "height"), _scale(stage, "width")])
    return _windows(x, corners * scales, stage.training.crop)


def enlarge_window(
    low: Float[Array, "b t h w 3"], corners: Int[Array, "b 2"], stage: Stage
) -> Float[Array, "b t2 h2 w2 3"]:
    """`enlarge` followed by `target_window`, without enlarging whole frames.

    A window of low-resolution pixels is enlarged with one more pixel on each side, the last one that interpolation
    reaches, so that it equals the same window of an enlarged frame up to its edges.
    """
    grid, source, margin = low_grid(stage), stage.source, 1
    scales = grid.height // source.height, grid.width // source.width
    inner = [size // _scale(stage, side) for side, size in zip(("height", "width"), stage.training.crop, strict=True)]
    low = jnp.pad(low, ((0, 0), (0, 0), (margin, margin), (margin, margin), (0, 0)), mode="edge")
    sizes = [size + 2 * margin for size in inner]
    low = upsample_frames(_windows(low, corners, sizes), grid.frames, source.fill)
    large = resize(low, sizes[0] * scales[0], sizes[1] * scales[1], source.resize)
    return crop_frames(large, margin * scales[0], margin * scales[1], inner[0] * scales[0], inner[1] * scales[1])


def _scale(stage: Stage, side: str) -> int:
    return getattr(stage.video, side) // getattr(stage.source, side)


def _windows(x: Array, corners: Int[Array, "b 2"], sizes: Sequence[int]) -> Array:
    return jax.vmap(lambda video, corner: crop_frames(video, corner[0], corner[1], *sizes))(x, corners)


def text_conditioning(tokens: Int[Array, "b g l"]) -> Conditioning:
    """Conditioning on word ids; padding is masked."""
    return Conditioning(tokens=tokens, text_mask=tokens != PADDING)


def with_low_resolution(
    conditioning: Conditioning, low: Float[Array, "b t h w 3"], stage: Stage, keys: Array, logsnr: Float[Array, " b"],
    *, corners: Int[Array, "b 2"] | None = None, corrupt: bool = True, shared_noise: bool = False,
    autoencoder: Any = None,
) -> Conditioning:
    """Add the enlarged low-resolution video, or its latents, augmented per sample from `keys` `[B]` at level `logsnr`
    (Ho et al. 2021, arXiv 2106.15282, section 3), with the same noise for all frames where it is shared; with
    `corners`, its windows. `corrupt=False` adds it as it is."""
    augmentation = stage.source.augmentation

    def augmented(x: Array, at: str) -> Array:
        return augmentation.augment(x, keys, logsnr, shared_noise) if corrupt and augmentation.at == at else x

    low = augmented(low, "low")
    large = enlarge(low, stage.source, low_grid(stage)) if corners is None else enlarge_window(low, corners, stage)
    if stage.latent is not None and stage.latent.low_resolution == "latents":
        large = encode(stage.latent, autoencoder, large)
    return conditioning.replace(low_resolution=augmented(large, "enlarged"), augmentation=logsnr)


def with_first_frame(
    conditioning: Conditioning, picture: Float[Array, "b 1 h w 3"], stage: Stage, keys: Array,
    noise: Float[Array, " b"], autoencoder: Any, drawn: Float[Array, "b 1 h w 3"] | None = None,
) -> Conditioning:
    """Add the latents of the picture that videos begin with and of noise on it, of standard deviation `noise`, which
    is `drawn` from the `keys` `[B]` of the samples or given."""
    drawn = noise_from_keys(keys, _PICTURE_NOISE_STREAM, picture.shape) if drawn is None else drawn
    image = encode(stage.latent, autoencoder, picture + noise[:, None, None, None, None] * drawn, scaled=False)
    return conditioning.replace(image=image, scalars={**conditioning.scalars, "noise": noise})


def with_noisy_known(
    conditioning: Conditioning, stage: Stage, keys: Array, step: Float[Array, " b"]
) -> Conditioning:
    """For a network that takes noisy known latents: these at a timestep of its table, with noise from the `keys` `[B]`
    of the samples, and the timestep, which it is told (He et al. 2022, arXiv 2211.13221, section 3.3); else the
    same."""
    if not getattr(stage.network, "known_steps", 0):
        return conditioning
    x, mask, schedule = conditioning.observed, conditioning.observed_mask, stage.network.timesteps
    alpha, sigma = (a[:, None, None, None, None] for a in schedule.alpha_sigma(schedule.logsnr_at(step)))
    noisy = alpha * x + sigma * noise_from_keys(keys, _KNOWN_NOISE_STREAM, x.shape)
    return conditioning.replace(observed=jnp.where(mask > 0, noisy, 0),
                                scalars={**conditioning.scalars, "known_step": step})


def part_of_clips(stage: Stage, batch: dict[str, Array], key: Array) -> tuple[Stage, dict[str, Array]]:
    """The stage as it is trained, and the batch with that part of every clip, from a random frame on; clips that have
    just as many frames as they are."""
    part, whole = stage.training.frames, stage.video.frames
    if part is None or batch["video"].shape[1] == part:
        return stage.trained(), batch
    first = jax.random.randint(jax.random.fold_in(key, _PART_STREAM), (len(batch["video"]),), 0, whole - part + 1)
    frames = first[:, None] + jnp.arange(part)

    def cut(x: Array) -> Array:
        return jnp.take_along_axis(x, frames.reshape(*frames.shape, *[1] * (x.ndim - 2)), axis=1)

    cuts = {name: cut(take_frames(batch[name], whole, stage.training.key_frames))
            for name in ("video", "frame_valid") if name in batch}
    cuts |= {name: cut(x) for name, x in batch.items() if name.startswith("reference_") and x.shape[1] == whole}
    return stage.trained(), {**batch, **cuts}


def _texts(stage: Stage, batch: dict[str, Array]) -> Conditioning:
    """Captions of clips and of appended images, as words or embeddings. Raises `UserError` when there are none."""
    images = "images" in batch

    def joined(of_clips: str, of_images: str) -> Array:
        clips = batch[of_clips][:, None]
        return jnp.concatenate([clips, batch[of_images]], axis=1) if images else clips

    if "tokens" in batch:
        return text_conditioning(joined("tokens", "image_tokens"))
    if "embeddings" in batch:
        found = Conditioning(embeddings=joined("embeddings", "image_embeddings").astype(jnp.float32),
                             text_mask=joined("text_mask", "image_text_mask"))
        if "null_embeddings" not in batch:
            return found
        return found.replace(null_embeddings=batch["null_embeddings"].astype(jnp.float32), null_mask=batch["null_mask"])
    raise UserError(f"stage {stage.name!r} reads text, but the batch has neither tokens nor embeddings")


def training_inputs(
    stage: Stage, batch: dict[str, Array], key: Array, autoencoder: Any = None
) -> tuple[Float[Array, "b t h w c"], Conditioning, int]:
    """Target video or its latents, conditioning and number of appended images for one batch of the data pipeline.

    `batch` has `video` uint8 `[B,T,H,W,3]` and, where the network reads text, `tokens` `[B,L]` or `embeddings`
    `[B,L,C]` with `text_mask` (and `null_embeddings` with `null_mask`); where it takes a class `label` int `[B]`; for
    joint training also `images` `[B,n,H,W,3]` and `image_tokens` `[B,n,L]` (or `image_embeddings` `[B,n,L,C]` with
    `image_text_mask`); where clips are padded `frame_valid` bool `[B,T]`; `reference_NAME` `[B,G,M,C]` for each
    reference the network takes; where frame rates are drawn `frame_rate` `[B]`. With `training.crop`, target and
    low-resolution video are windows, drawn per sample from the key; both are made from whole frames. `autoencoder` are
    the weights of a latent stage's.
    """
    stage, batch = part_of_clips(stage, batch, key)
    x = target_video(batch["video"], stage.video, stage.training.key_frames)
    valid = None
    if "frame_valid" in batch:
        valid = take_frames(batch["frame_valid"], stage.video.frames, stage.training.key_frames)
        x = hold_valid(x, valid)
    low = None if stage.source is None else degrade(x, stage.source)
    conditioning, corners = _told(stage, batch, len(x)), None
    level_key, noise_key = jax.random.split(key)
    keys = jax.random.split(noise_key, len(x))
    if stage.training.crop is not None:
        corners = draw_corners(keys, stage)
        x = target_window(x, corners, stage)
    images = batch["images"].shape[1] if "images" in batch else 0
    if images:
        pictures = resize(to_float(batch["images"]), stage.video.height, stage.video.width, "area")
        x = jnp.concatenate([x, pictures], axis=1)
    if stage.latent is not None:
        x = _encoded(stage, autoencoder, x, valid, key)
    if stage.network.observed:
        clips = x[:, : x.shape[1] - images]
        draws = jax.random.split(jax.random.fold_in(key, _OBSERVATION_STREAM), len(x))
        known = draw_known(stage.training.observations, clips, draws, valid)
        conditioning = with_observed(conditioning, clips.shape, known, images)
        if steps := getattr(stage.network, "known_steps", 0):
            step = jax.random.randint(jax.random.fold_in(key, _KNOWN_STREAM), (len(x),), 0, steps)
            conditioning = with_noisy_known(conditioning, stage, keys, step.astype(jnp.float32))
    if images and valid is not None:
        valid = jnp.pad(valid, ((0, 0), (0, images)), constant_values=True)
    conditioning = conditioning.replace(frame_valid=valid)
    if isinstance(stage.source, LowResolution):
        logsnr = stage.source.augmentation.draw_logsnr(level_key, len(x))
        conditioning = with_low_resolution(conditioning, low, stage, keys, logsnr, corners=corners,
                                           autoencoder=autoencoder)
    if isinstance(stage.source, FirstFrame):
        mean, std = stage.source.log_noise
        drawn = jax.random.normal(jax.random.fold_in(key, _PICTURE_STREAM), (len(x),))
        conditioning = with_first_frame(conditioning, low, stage, keys, jnp.exp(mean + std * drawn), autoencoder)
    return x, conditioning, images


def _told(stage: Stage, batch: dict[str, Array], count: int) -> Conditioning:
    """Text, class, references and scalars of the clips of a batch."""
    conditioning = Conditioning() if stage.network.text is None else _texts(stage, batch)
    if stage.network.classes:
        if "label" not in batch:
            raise UserError(f"stage {stage.name!r} takes a class, but the batch has no label")
        conditioning = conditioning.replace(labels=batch["label"])
    references = {name: batch[f"reference_{name}"] for name in (r.name for r in stage.network.references)
                  if f"reference_{name}" in batch}  # the network names what is missing
    scalars = constant_scalars(stage, count)
    if stage.training.frame_rates is not None:
        scalars["fps"] = batch["frame_rate"]
    return conditioning.replace(references=references, scalars=scalars)


def constant_scalars(stage: Stage, count: int) -> dict[str, Float[Array, " b"]]:
    """Scalars that a stage is told of `count` videos where nothing else is said of them: its frames per second, and how
    much moves."""
    values = {"fps": stage.video.fps}
    if isinstance(stage.network, LatentNetwork):
        values["motion"] = stage.network.motion
    return {name: jnp.full((count,), values[name]) for name in stage.network.scalars if name in values}


def _encoded(
    stage: Stage, autoencoder: Any, x: Float[Array, "b t h w 3"], valid: Bool[Array, "b t"] | None, key: Array
) -> Float[Array, "b t2 h2 w2 c"]:
    """Latents of training videos. Raises `UserError` for padded clips where latents have several frames each."""
    if valid is not None and stage.latent.frame_factor > 1:
        raise UserError(f"stage {stage.name!r}: clips with padded frames for latents of {stage.latent.frame_factor} "
                        "frames each; permitted: clips of one length")
    return encode(stage.latent, autoencoder, x, jax.random.fold_in(key, _ENCODING_STREAM))
