"""Conditioning frames that are given to a call: for which stages, checked and in the sizes of these."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from vdm_jax.conditions.frame_masks import MaskedVideo
from vdm_jax.errors import UserError
from vdm_jax.generation.one_stage import inpainting_method
from vdm_jax.stages.stage import Stage, require_rgb


def checked_frames(masked_video: MaskedVideo | None, stage: Stage, count: int) -> MaskedVideo | None:
    """Conditioning frames of `count` videos of a stage, with a mask for each. Raises `UserError` for other sizes, and
    for a low-resolution video where guidance does not go by it."""
    if masked_video is None:
        return None
    require_rgb(stage, "given frames")
    if masked_video.low is not None and inpainting_method(stage, stage.sampling) != "reconstruction":
        raise UserError(f"a low-resolution video is given for stage {stage.name!r} with inpainting.method="
                        f"{inpainting_method(stage, stage.sampling)!r}; permitted: 'reconstruction'")
    video, mask = (np.asarray(part, np.float32) for part in masked_video[:2])
    shape = (count, *stage.video.shape)
    fits = mask.ndim == 5 and all(m in (1, n) for m, n in zip(mask.shape, (*shape[:-1], 1), strict=True))
    if video.shape != shape or not fits:
        raise UserError(f"given video of shape {list(video.shape)} with mask {list(mask.shape)} for stage "
                        f"{stage.name!r}; permitted: {list(shape)}, and a mask that broadcasts to "
                        f"{[*shape[:-1], 1]}")
    return masked_video._replace(video=video, mask=np.broadcast_to(mask, (count, *mask.shape[1:])))


def frames_stage(stages: Sequence[Stage]) -> Stage:
    """The last stage that sees conditioning frames as they are given: one whose network takes them next to a video of
    all frames; else the first stage."""
    return next((stage for stage in reversed(stages) if _sees_frames(stage)), stages[0])


def _sees_frames(stage: Stage) -> bool:
    return stage.network.conditioning_frames and (stage.source is None or not stage.source.single_frames)


def frames_by_stage(masked_video: MaskedVideo | None, stages: Sequence[Stage], count: int) -> dict[str, MaskedVideo]:
    """Conditioning frames of the first stage and of later ones that see them, by name. They are given at the size of
    one of the stages; the stages before it get them degraded, as they were in its training. Raises `UserError` as
    `checked_frames`."""
    if masked_video is None:
        return {}
    shape = np.shape(masked_video.video)[1:]
    place = next((i for i, stage in enumerate(stages) if stage.video.shape == shape and (not i or _sees_frames(stage))),
                 0)
    frames, found = checked_frames(masked_video, stages[place], count), {}
    for i in range(place, -1, -1):
        if i == 0 or _sees_frames(stages[i]):
            found[stages[i].name] = frames
        if i:
            frames = _degraded(frames, stages[i])
    return found


def _degraded(masked_video: MaskedVideo, stage: Stage) -> MaskedVideo:
    """Conditioning frames of a stage as its source shows them. Of pixels that are averages, those are given of which
    all were."""
    mask = np.broadcast_to(masked_video.mask, masked_video.video.shape)
    video, mask = (np.asarray(stage.source.degrade(jnp.asarray(part))) for part in (masked_video.video, mask))
    return MaskedVideo(video, (mask[..., :1] == 1).astype(np.float32))
