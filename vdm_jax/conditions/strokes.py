"""Strokes: the motion of some points of each frame, for a network that makes the rest of it (MCDiff: Chen et al. 2023,
arXiv 2304.14404).

In sampling they are the pictures of `video/strokes.py`, such as a file of strokes is read as. In training they are
drawn from the optical flow of the clip, the field `control` as `vdm-jax annotate --kind flow` makes it: some points in
proportion to how far they go, so that they lie on what moves, and some anywhere, each as a disc of its displacement.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from vdm_jax.conditions.conditioning import (
    Conditioning,
    Network,
    Request,
    SampledVideos,
    Shapes,
    Sizes,
    Stage,
    TrainingClips,
)
from vdm_jax.conditions.control import ControlMap
from vdm_jax.conditions.inputs import fitted
from vdm_jax.conditions.low_resolution import cut_windows, scales_of
from vdm_jax.configuration import CountOrZero, Share, config
from vdm_jax.errors import UserError
from vdm_jax.video.strokes import RADIUS

STROKES, FLOW, CURRENT = "strokes", "flow", "current_frame"  # in `Conditioning.inputs`
WIDTH = 3  # channels: displacement to the right and down, as shares of `video.strokes.LIMIT` of the height, and mask
_STREAM = 0x57A0  # of the random numbers that say where strokes are


@config
class DrawnStrokes:
    """How strokes are drawn from the optical flow of a training clip. Published are 30 % of the 17 keypoints of a
    person and 4 to 8 other points (sec. 4); here moving points take the place of keypoints."""

    moving: CountOrZero = 5  # points, in proportion to how far they go
    general: CountOrZero = 4  # points anywhere
    radius: Share = RADIUS  # of the disc of a step, as a share of the height of a frame

    def __post_init__(self):
        if not self.moving + self.general:
            raise UserError(f"DrawnStrokes(moving={self.moving}, general={self.general}) is not valid; permitted: at "
                            "least one point")


class StrokeMap(ControlMap):
    """The steps of strokes from each frame to the next, pictures of displacements. A network that completes them to the
    flow (`Conditioned.flow_strokes`) also sees the frame that is given, in pixels, and in training the flow. Where they
    are left out nothing is known of the motion."""

    name = STROKES
    enters = "channels"
    ways = ("channels",)  # residuals would need their options, and the size of pixels
    field: ClassVar[str] = "control"  # of a clip

    def __init__(self):
        self.fields, self.frame_fields = (), ()  # those of another condition

    def shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """Of the strokes and, where they are completed, of the given frame."""
        frame = (1, *self.grid(stage, stage.shape[:3])[1:], 3)
        completed = stage.network.flow_strokes is not None
        return super().shapes(stage, sizes) | ({f"inputs/{CURRENT}": (frame, jnp.float32)} if completed else {})

    def grid(self, stage: Stage, sides: tuple[int, ...]) -> tuple[int, ...]:
        """Frames, height and width of its maps: those of the pixels where they are completed."""
        frames, height, width = sides
        pixels = stage.latent is not None and stage.network.flow_strokes is not None
        factor = stage.latent.autoencoder.factor if pixels else 1
        return frames, factor * height, factor * width

    def batch_shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """Pictures of the flow in the size of the data set's clips."""
        return {self.field: ((*sizes.clip, WIDTH), self.dtype)}

    def value(self, stage: Stage, given: Array) -> Array:
        """Displacements and mask of pictures, in the size of the stage's video."""
        return fitted(displacements(given), *stage.video.shape[:3])

    def of_batch(self, stage: Stage, batch: Mapping[str, Array]) -> dict[str, Any]:
        """The flow of the clips, and strokes drawn from it, the same at each call. Raises `UserError` where the batch
        has none."""
        if self.field not in batch:
            raise UserError(f"stage {stage.name!r} takes {self.name!r}, but the batch has no {self.field!r}; "
                            "permitted: a data set whose clips have their optical flow, such as VideoFolder(controls="
                            "FOLDER) with what vdm-jax annotate --kind flow made", "strokes.field")
        flow = self.value(stage, batch[self.field])
        return {"inputs": {self.name: drawn_for_clips(stage.network, _same_keys(len(flow)), flow), FLOW: flow}}

    def in_training(self, conditioning: Conditioning, clips: TrainingClips) -> dict[str, Any]:
        """Strokes drawn anew, the flow, and the first frame; nothing of appended images. Windows are cut from whole
        frames with their strokes, so that these are as many and as large as in sampling."""
        frames, *sides = clips.x.shape[1:4]
        grid, flow = self.grid(clips.stage, (frames - clips.images, *sides)), conditioning.inputs[FLOW]
        flow = flow if clips.corners is not None else fitted(flow, *grid)
        maps = {self.name: drawn_for_clips(clips.stage.network, clips.keys, flow), FLOW: flow}
        if clips.corners is not None:
            corners, crop = clips.corners * jnp.array(scales_of(clips.stage)), clips.stage.training.crop
            maps = {name: fitted(cut_windows(value, corners, crop), *grid) for name, value in maps.items()}
        found = {name: jnp.pad(value, ((0, 0), (0, clips.images), (0, 0), (0, 0), (0, 0)))
                 for name, value in maps.items()}
        completed = clips.stage.network.flow_strokes is not None
        return {"inputs": found | ({CURRENT: clips.video[:, :1]} if completed else {})}

    def of_request(self, stage: Stage, request: Request) -> dict[str, Any]:
        """The pictures that are given for each caption. Raises `UserError` for another shape or range."""
        given, shape = request.get(self.name), np.shape(request.get(self.name))
        ends = len(request.captions), stage.video.frames, WIDTH
        if len(shape) != 5 or (*shape[:2], shape[-1]) != ends:
            raise UserError(f"{self.name} of shape {list(shape)} given for stage {stage.name!r}; permitted: "
                            f"[{ends[0]}, {ends[1]}, height, width, {WIDTH}], steps of as many frames as the video has",
                            "strokes.shape")
        self.check_range(stage, given)
        return {"inputs": {self.name: self.value(stage, jnp.asarray(given))}}

    def request_of(self, network: Network, clips: list[Mapping[str, Any]]) -> dict[str, Any]:
        """Strokes drawn from the flow of the clips, as pictures in [0, 1], the same at each call."""
        if self.field not in clips[0]:
            return {}
        flow = displacements(jnp.asarray(np.stack([clip[self.field] for clip in clips])))
        found = drawn_for_clips(network, _same_keys(len(flow)), flow)
        levels = jnp.concatenate([128 + jnp.round(127 * found[..., :2]), 255 * found[..., 2:]], axis=-1)
        return {self.name: np.asarray(levels / 255)}

    def in_sampling(self, conditioning: Conditioning, videos: SampledVideos) -> dict[str, Any]:
        """Strokes in the size of what completes them, and the frame that is given. Raises `UserError` where none is."""
        if not self.present(conditioning):
            return {}
        found = {self.name: fitted(conditioning.inputs[self.name], *self.grid(videos.stage, videos.shape[1:4]))}
        if videos.stage.network.flow_strokes is None:
            return {"inputs": found}
        if videos.pixels is None:
            raise UserError(f"stage {videos.stage.name!r} goes on from a frame, and none is given; permitted: "
                            "--image FILE, or masked_video=masked_first_frame(pictures, frames)", "strokes.frame")
        return {"inputs": found | {CURRENT: videos.pixels.video[:, :1]}}


def displacements(pictures: Array) -> Float[Array, "*rest H W 3"]:
    """Displacements and mask of pictures, uint8 or in [0, 1], as in `video.strokes.decoded` but for their scale:
    shares of the limit."""
    levels = jnp.asarray(pictures, jnp.float32) * (1 if pictures.dtype == jnp.uint8 else 255)
    mask = levels[..., 2:] > 127
    return jnp.concatenate([jnp.where(mask, (levels[..., :2] - 128) / 127, 0), mask.astype(jnp.float32)], axis=-1)


def drawn_for_clips(
    network: Network, keys: Key[Array, " B"], flow: Float[Array, "B T H W 3"]
) -> Float[Array, "B T H W 3"]:
    """Strokes of each frame of clips, drawn from their flow as the network says."""
    draw = functools.partial(drawn_strokes, network.flow_strokes or DrawnStrokes())
    return jax.vmap(lambda key, maps: jax.vmap(draw)(
        jax.random.split(jax.random.fold_in(key, _STREAM), len(maps)), maps))(keys, flow)


def _same_keys(count: int) -> Key[Array, " B"]:
    return jax.random.split(jax.random.key(_STREAM), count)


def drawn_strokes(
    spec: DrawnStrokes, key: Key[Array, ""], flow: Float[Array, "H W 3"]
) -> Float[Array, "H W 3"]:
    """Steps of strokes of one frame, displacements and mask, drawn from its flow where that has a mask. Points are
    drawn without replacement, and fewer where fewer are there or move; moving ones lie above others."""
    height, width = flow.shape[:2]
    there, (still_key, moving_key) = flow[..., 2].reshape(-1) > 0.5, jax.random.split(key)
    lengths = jnp.where(there, jnp.linalg.norm(flow[..., :2], axis=-1).reshape(-1), 0)

    def points(key: Array, weights: Array, count: int) -> tuple[Array, Array]:  # by the largest of Gumbel variables
        scores = jnp.where(weights > 0, jnp.log(weights), -jnp.inf) + jax.random.gumbel(key, weights.shape)
        best, place = jax.lax.top_k(scores, min(count, len(weights)))
        return place, jnp.isfinite(best)

    found = (points(still_key, there.astype(jnp.float32), spec.general), points(moving_key, lengths, spec.moving))
    place, valid = (jnp.concatenate(parts) for parts in zip(*found, strict=True))
    return rasterised(jnp.stack([place % width, place // width], axis=-1).astype(jnp.float32),
                      flow.reshape(-1, WIDTH)[place, :2], valid, height, width, spec.radius * height)


def rasterised(
    points: Float[Array, "N 2"], steps: Float[Array, "N 2"], valid: Bool[Array, " N"], height: int, width: int,
    radius: float,
) -> Float[Array, "height width 3"]:
    """A sparse flow and its mask: the step of each valid point (x, y), pixels, in a disc around it, as in
    `video.strokes.steps_at`. Later points lie above earlier ones; the discs have one pixel at the least."""
    x, y = points[:, 0, None, None], points[:, 1, None, None]
    distances = (jnp.arange(width) - x) ** 2 + (jnp.arange(height)[:, None] - y) ** 2
    inside = (distances <= max(radius, 0.71) ** 2) & valid[:, None, None]
    top = jnp.max(jnp.where(inside, jnp.arange(1, len(points) + 1)[:, None, None], 0), axis=0)  # 0: none
    flow = jnp.concatenate([jnp.zeros((1, 2)), steps])[top]
    return jnp.concatenate([flow, (top > 0)[..., None].astype(flow.dtype)], axis=-1)
