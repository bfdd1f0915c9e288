"""What a stage sees: its target video and conditioning made from clips. Pure functions."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

from vdm_jax.conditions.conditioning import CONDITIONS, Conditioning, Encode, TrainingClips, claimed, conditions_of
from vdm_jax.conditions.low_resolution import cut_windows, scales_of
from vdm_jax.diffusion.likelihood import dequantised
from vdm_jax.errors import UserError
from vdm_jax.stages.latent import encode
from vdm_jax.stages.stage import Stage, VideoSpec
from vdm_jax.video.arrays import grey, resize, to_float

# Of a batch, next to the fields that conditions claim.
TARGETS = ("video", "images")

# Of a batch's key, which is otherwise split; conditions have others.
_PART_STREAM, _ENCODING_STREAM = 2**31 - 5, 2**31 - 6
_VALUE_STREAM = 2**31 - 10
_CROP_STREAM = 2**31 - 3  # of a sample's key; samplers draw from streams 0, 1, 2, ..., augmentations from the last ones


def target_video(
    clip: UInt8[Array, "B T H W 3"], video: VideoSpec, key_frames: bool = False
) -> Float[Array, "B T2 H2 W2 3"]:
    """The clip at the size a stage makes: some of its frames (`take_frames`), pixels averaged over areas."""
    return resize(to_float(take_frames(clip, video.frames, key_frames)), video.height, video.width, "area")


def take_frames(clip: Shaped[Array, "B T *rest"], frames: int, key_frames: bool = False) -> Shaped[Array, "B N *rest"]:
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


def hold_valid(x: Float[Array, "B T H W 3"], valid: Bool[Array, "B T"]) -> Float[Array, "B T H W 3"]:
    """The video with each padded frame replaced by the last existing one before it (the first one after it at the
    start), so that nothing made from the video, a low-resolution version say, depends on the padding."""
    frames = jnp.arange(valid.shape[1])
    first = jnp.argmax(valid, axis=1)
    last = jax.lax.cummax(jnp.where(valid, frames, first[:, None]), axis=1)
    return jnp.take_along_axis(x, last[:, :, None, None, None], axis=1)


def draw_corners(keys: Array, stage: Stage) -> Int[Array, "B 2"]:
    """First row and column of each sample's training window, in low-resolution pixels, uniform over all places."""
    source, crop = stage.source, stage.training.crop
    room = jnp.array([whole - size // scale + 1 for whole, size, scale in
                      zip((source.height, source.width), crop, scales_of(stage), strict=True)])
    return jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, _CROP_STREAM), (2,), 0, room))(keys)


def target_window(
    x: Float[Array, "B T H W 3"], corners: Int[Array, "B 2"], stage: Stage
) -> Float[Array, "B T H2 W2 3"]:
    """The windows of the stage's own videos that begin at the given low-resolution pixels."""
    return cut_windows(x, corners * jnp.array(scales_of(stage)), stage.training.crop)


def part_of_clips(stage: Stage, batch: dict[str, Array], key: Array) -> tuple[Stage, dict[str, Array]]:
    """The stage as it is trained, and the batch with the frames of that: all that the stage makes or a part of every
    clip, from a random frame on; clips that have just as many frames as they are."""
    part, whole, clip = stage.training.frames, stage.video.frames, batch["video"].shape[1]
    names = [name for name, x in batch.items() if name == "video" or claimed(name, "frame_fields")]
    if part is not None and clip == part:
        return stage.trained(), batch
    batch = {**batch, **{name: take_frames(batch[name], whole, stage.training.key_frames)
                         for name in names if batch[name].shape[1] == clip}}
    if part is None:
        return stage, batch
    first = jax.random.randint(jax.random.fold_in(key, _PART_STREAM), (len(batch["video"]),), 0, whole - part + 1)
    frames = first[:, None] + jnp.arange(part)

    def cut(x: Array) -> Array:
        return jnp.take_along_axis(x, frames.reshape(*frames.shape, *[1] * (x.ndim - 2)), axis=1)

    return stage.trained(), {**batch, **{name: cut(batch[name]) for name in names if batch[name].shape[1] == whole}}


def device_fields(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a batch that the device reads. Raises `UserError` for one that no condition claims: it would be
    lost without a word."""
    unread = [name for name in batch
              if name not in TARGETS and not claimed(name, "fields") and not claimed(name, "host_fields")]
    if unread:
        permitted = [*TARGETS, *(field for condition in CONDITIONS.values()
                                 for field in (*condition.fields, *condition.host_fields))]
        raise UserError(f"clips have {', '.join(map(repr, unread))}, which no stage reads; permitted: "
                        f"{', '.join(permitted).replace('*', 'NAME')}")
    return {name: x for name, x in batch.items() if name in TARGETS or claimed(name, "fields")}


def given_conditioning(stage: Stage, batch: Mapping[str, Array]) -> Conditioning:
    """Of a batch, what does not depend on the videos."""
    conditioning = Conditioning()
    for condition in conditions_of(stage.network):
        conditioning = conditioning.adding(condition.of_batch(stage, batch))
    return conditioning


def encoder(stage: Stage, autoencoder: Any) -> Encode | None:
    """`encode` of a stage that works in latents, with the weights of its autoencoder."""
    return None if stage.latent is None else functools.partial(encode, stage.latent, autoencoder)


def training_inputs(
    stage: Stage, batch: dict[str, Array], key: Array, autoencoder: Any = None
) -> tuple[Float[Array, "B T H W C"], Conditioning, int]:
    """Target video or its latents, conditioning and number of appended images for one batch of the data pipeline.

    `batch` has `video` uint8 `[B,T,H,W,3]`, for joint training `images` `[B,n,H,W,3]`, and the fields that the
    conditions of the network read. With `training.crop`, target and low-resolution video are windows, drawn per sample
    from the key; both are made from whole frames. `autoencoder` are the weights of a latent stage's.
    """
    stage, batch = part_of_clips(stage, batch, key)
    x, valid, corners = target_video(batch["video"], stage.video), batch.get("frame_valid"), None
    if valid is not None:
        x = hold_valid(x, valid)
    low = None if stage.source is None else stage.source.degrade(x)
    keys = jax.random.split(jax.random.split(key)[1], len(x))
    if stage.training.crop is not None:
        corners = draw_corners(keys, stage)
        x = target_window(x, corners, stage)
    images = batch["images"].shape[1] if "images" in batch else 0
    if images:
        pictures = resize(to_float(batch["images"]), stage.video.height, stage.video.width, "area")
        x = jnp.concatenate([x, pictures], axis=1)
    if stage.video.channels == 1:
        x = grey(x)
    if stage.training.dequantise:
        x = dequantised(x, jax.random.fold_in(key, _VALUE_STREAM))
    video = x
    if stage.latent is not None:
        x = _encoded(stage, autoencoder, x, valid, key)
    clips = TrainingClips(stage, x, images, valid, low, corners, key, keys, encoder(stage, autoencoder), video)
    conditioning = given_conditioning(stage, batch)
    for condition in conditions_of(stage.network):
        conditioning = conditioning.adding(condition.in_training(conditioning, clips))
    return x, conditioning, images


def _encoded(
    stage: Stage, autoencoder: Any, x: Float[Array, "B T H W 3"], valid: Bool[Array, "B T"] | None, key: Array
) -> Float[Array, "B T2 H2 W2 C"]:
    """Latents of training videos. Raises `UserError` for padded clips where latents have several frames each."""
    if valid is not None and stage.latent.frame_factor > 1:
        raise UserError(f"stage {stage.name!r}: clips with padded frames for latents of {stage.latent.frame_factor} "
                        "frames each; permitted: clips of one length")
    return encode(stage.latent, autoencoder, x, jax.random.fold_in(key, _ENCODING_STREAM))
