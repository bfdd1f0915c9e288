"""What a stage sees: its target video and conditioning made from clips, in training and in sampling. Pure functions."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped, UInt8

from vdm_jax.cascade.observations import draw_known, with_observed
from vdm_jax.cascade.stage import KeyFrames, LowResolution, Stage, VideoSpec
from vdm_jax.conditioning.conditioning import Conditioning
from vdm_jax.conditioning.vocabulary import PADDING
from vdm_jax.errors import UserError
from vdm_jax.video.arrays import resize, subsample_frames, to_float, upsample_frames

_OBSERVATION_STREAM, _FRAMES_STREAM = 2**31 - 3, 2**31 - 4  # of a batch's key, which is otherwise split


def target_video(
    clip: UInt8[Array, "b t h w 3"], video: VideoSpec, key_frames: bool = False
) -> Float[Array, "b t h w 3"]:
    """The clip at the size a stage makes: some of its frames (`take_frames`), pixels averaged over areas."""
    return resize(to_float(take_frames(clip, video.frames, key_frames)), video.height, video.width, "area")


def take_frames(
    clip: Shaped[Array, "b t h w c"], frames: int, key_frames: bool = False
) -> Shaped[Array, "b n h w c"]:
    """Frames 0, k, 2 k, ... of clips, k = T / frames; of `key_frames`, which go from the first frame to the
    last, k = (T - 1) / (frames - 1). Raises `UserError` where k is no whole number."""
    total = clip.shape[1]
    if not key_frames:
        return subsample_frames(clip, frames)
    if frames < 2 or (total - 1) % (frames - 1):
        raise UserError(f"training.key_frames=True: {frames} frames of clips of {total}; permitted: clips of {frames}, "
                        f"{2 * frames - 1}, {3 * frames - 2}, ... frames")
    return clip[:, :: (total - 1) // (frames - 1)]


def draw_frames(
    clip: UInt8[Array, "b t h w 3"], stage: Stage, key: Key[Array, ""]
) -> UInt8[Array, "b n h w 3"]:
    """`Training.frames` neighbouring frames of each clip, begun at random; clips that have just these as they are."""
    frames = stage.training.frames
    if clip.shape[1] == frames:
        return clip
    clip = take_frames(clip, stage.video.frames, stage.training.key_frames)
    starts = jax.random.randint(key, (len(clip),), 0, clip.shape[1] - frames + 1)
    return jax.vmap(lambda x, start: jax.lax.dynamic_slice_in_dim(x, start, frames))(clip, starts)


def as_trained(stage: Stage) -> Stage:
    """The stage with the number of frames it is trained on (`Training.frames`)."""
    frames, source = stage.training.frames, stage.source
    if frames is None:
        return stage
    return dataclasses.replace(
        stage, video=dataclasses.replace(stage.video, frames=frames),
        source=None if source is None else dataclasses.replace(source, frames=frames),
        training=dataclasses.replace(stage.training, frames=None, key_frames=False),
        sampling=dataclasses.replace(stage.sampling, windows=None))


def hold_valid(x: Float[Array, "b t h w 3"], valid: Bool[Array, "b t"]) -> Float[Array, "b t h w 3"]:
    """The video with each padded frame replaced by the last existing one before it (the first one after it at the
    start), so that nothing made from the video, a low-resolution version say, depends on the padding."""
    frames = jnp.arange(valid.shape[1])
    first = jnp.argmax(valid, axis=1)
    last = jax.lax.cummax(jnp.where(valid, frames, first[:, None]), axis=1)
    return jnp.take_along_axis(x, last[:, :, None, None, None], axis=1)


def degrade(x: Float[Array, "b t h w 3"], source: LowResolution | KeyFrames) -> Float[Array, "b t2 h2 w2 3"]:
    """The video that the stage before would have made of `x`."""
    if isinstance(source, KeyFrames):
        return x[:, :: source.every]
    return resize(subsample_frames(x, source.frames), source.height, source.width, "area")


def enlarge(low: Float[Array, "b t h w 3"], source: LowResolution, video: VideoSpec) -> Float[Array, "b t2 h2 w2 3"]:
    """A low-resolution video at the frames and pixels of the stage's own video."""
    return resize(upsample_frames(low, video.frames, source.fill), video.height, video.width, source.resize)


def text_conditioning(tokens: Int[Array, "b g l"]) -> Conditioning:
    """Conditioning on word ids; padding is masked."""
    return Conditioning(tokens=tokens, text_mask=tokens != PADDING)


def with_low_resolution(
    conditioning: Conditioning, low: Float[Array, "b t h w 3"], stage: Stage, keys: Array, logsnr: Float[Array, b],
    shared_noise: bool = False,
) -> Conditioning:
    """Add the enlarged low-resolution video with noise of level `logsnr`, drawn per sample from `keys` `[B]`
    (noise-conditioning augmentation: Ho et al. 2021, arXiv 2106.15282, section 3.3); the same noise for all frames
    where it is shared."""
    large = enlarge(low, stage.source, stage.video)
    noisy = stage.source.augmentation.augment(large, keys, logsnr, shared_noise)
    return conditioning.replace(low_resolution=noisy, augmentation=logsnr)


def training_inputs(
    stage: Stage, batch: dict[str, Array], key: Array
) -> tuple[Float[Array, "b t h w 3"], Conditioning, int]:
    """Target video, conditioning and number of appended images for one batch of the data pipeline.

    `batch` has `video` uint8 `[B,T,H,W,3]` and, where the network reads text, `tokens` `[B,L]` or `embeddings`
    `[B,L,C]` with `text_mask`; for joint training also `images` `[B,n,H,W,3]` and `image_tokens` `[B,n,L]` (or
    `image_embeddings` `[B,n,L,C]` with `image_text_mask`); where clips are padded `frame_valid` bool `[B,T]`; and
    `reference_NAME` `[B,G,M,C]` for each reference the network takes; where frame rates are drawn `frame_rate` `[B]`.
    """
    clip, valid, known = batch["video"], None, None
    if stage.training.frames is not None:
        if "frame_valid" in batch:
            raise UserError(f"stage {stage.name!r}: training.frames={stage.training.frames} with padded clips; "
                            "permitted: clips without frame_valid")
        clip = draw_frames(clip, stage, jax.random.fold_in(key, _FRAMES_STREAM))
        stage = as_trained(stage)
    x = target_video(clip, stage.video, stage.training.key_frames)
    if "frame_valid" in batch:
        valid = take_frames(batch["frame_valid"][:, :, None, None, None], stage.video.frames,
                            stage.training.key_frames)[:, :, 0, 0, 0]
        x = hold_valid(x, valid)
    if stage.network.observed:
        keys = jax.random.split(jax.random.fold_in(key, _OBSERVATION_STREAM), len(x))
        known = draw_known(stage.training.observations, x, keys, valid)
    conditioning = Conditioning()
    tokens = batch["tokens"][:, None] if "tokens" in batch else None
    images = batch["images"].shape[1] if "images" in batch else 0
    if images:
        pictures = resize(to_float(batch["images"]), stage.video.height, stage.video.width, "area")
        x = jnp.concatenate([x, pictures], axis=1)
        valid = None if valid is None else jnp.pad(valid, ((0, 0), (0, images)), constant_values=True)
        if tokens is not None:
            tokens = jnp.concatenate([tokens, batch["image_tokens"]], axis=1)
    if stage.network.text is not None:
        if tokens is not None:
            conditioning = text_conditioning(tokens)
        elif "embeddings" in batch:
            embeddings, mask = batch["embeddings"][:, None], batch["text_mask"][:, None]
            if images:
                embeddings = jnp.concatenate([embeddings, batch["image_embeddings"]], axis=1)
                mask = jnp.concatenate([mask, batch["image_text_mask"]], axis=1)
            conditioning = Conditioning(embeddings=embeddings, text_mask=mask)
        else:
            raise UserError(f"stage {stage.name!r} reads text, but the batch has neither tokens nor embeddings")
    references = {name: batch[f"reference_{name}"] for name in (r.name for r in stage.network.references)
                  if f"reference_{name}" in batch}  # the network names what is missing
    conditioning = conditioning.replace(frame_valid=valid, references=references)
    if known is not None:
        conditioning = with_observed(conditioning, known.video.shape, known, images)
    if "fps" in stage.network.scalars:
        rate = batch["frame_rate"] if stage.training.frame_rates is not None else jnp.full(len(x), stage.video.fps)
        conditioning = conditioning.replace(scalars={"fps": rate})
    if isinstance(stage.source, LowResolution):
        level_key, noise_key = jax.random.split(key)
        logsnr = stage.source.augmentation.draw_logsnr(level_key, len(x))
        keys = jax.random.split(noise_key, len(x))
        conditioning = with_low_resolution(conditioning, degrade(x, stage.source), stage, keys, logsnr)
    return x, conditioning, images
