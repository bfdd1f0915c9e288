"""Maps of a few frames, for a SparseCtrl (`networks/sparse_control.py`): the frames that a video is to show, or
sketches and other maps of them (Guo et al. 2023, arXiv 2311.16933).

`sparse_frames` is made of the clips themselves, so that a folder of videos suffices; `sparse_control` of the maps that
come with them, the field `control`. Training shows the maps of one to half of the frames, anywhere: the numbers of
training are not published.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from vdm_jax.conditions.conditioning import (
    Conditioning,
    Encode,
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
from vdm_jax.errors import UserError
from vdm_jax.video.arrays import subsample_frames

COLOURS = 3  # channels of maps before they are encoded
_STREAM = 0x5A75  # of the random numbers that say which frames are shown


class SparseControl(ControlMap):
    """Maps `[T, H, W, 3]`, uint8 or in [0, 1], of which those of given frames count, `sparse_control_mask` `[T]`. Left
    out, no frame is given. Guidance leaves them in both estimates."""

    name = "sparse_control"
    enters = "residuals"
    field: ClassVar[str] = "control"  # of a clip

    def __init__(self):
        self.fields, self.frame_fields = (), ()  # those of other conditions and of the clip

    def batch_shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """Maps of the size of the data set's clips."""
        return {} if self.field == "video" else {self.field: ((*sizes.clip, COLOURS), self.dtype)}

    def of_batch(self, stage: Stage, batch: Mapping[str, Array]) -> dict[str, Any]:
        """The maps of all frames. Raises `UserError` where the batch has none."""
        if self.field not in batch:
            raise UserError(f"stage {stage.name!r} takes {self.name!r}, but the batch has no {self.field!r}; "
                            "permitted: a data set whose clips have it, such as VideoFolder(controls=FOLDER)",
                            "sparse_control.field")
        return {"inputs": {self.name: self.value(stage, batch[self.field])}}

    def in_training(self, conditioning: Conditioning, clips: TrainingClips) -> dict[str, Any]:
        """Maps of some frames, drawn for each sample."""
        maps, frames = conditioning.inputs[self.name], clips.x.shape[1] - clips.images
        if clips.corners is not None:
            scales = jnp.array(scales_of(clips.stage))
            maps = cut_windows(maps, clips.corners * scales, clips.stage.training.crop)
        mask = jax.vmap(lambda key: drawn_frames(key, frames))(clips.keys)
        value = self._made(clips.stage, subsample_frames(maps, frames), mask, clips.x.shape[2:4], clips.encode)
        return {"inputs": {self.name: jnp.pad(value, ((0, 0), (0, clips.images), (0, 0), (0, 0), (0, 0)))}}

    def arguments(self, network: Network) -> tuple[str, ...]:
        """The maps, which of them are given, and the options of residuals."""
        return (*super().arguments(network), f"{self.name}_mask")

    def frame_arguments(self, network: Network) -> tuple[str, ...]:
        """Maps and mask."""
        return self.name, f"{self.name}_mask"

    def of_request(self, stage: Stage, request: Request) -> dict[str, Any]:
        """The maps, their mask as a further channel, and the options. Raises `UserError` for another shape, number of
        frames or range, a mask of another shape, and options that cannot be."""
        given, mask, frames = request.get(self.name), request.get(f"{self.name}_mask"), stage.video.frames
        shape, count = np.shape(given), len(request.captions)
        if len(shape) != 5 or (shape[0], shape[-1]) != (count, COLOURS) or shape[1] % frames:
            raise UserError(f"{self.name} of shape {list(shape)} given for stage {stage.name!r}; permitted: [{count}, "
                            f"{frames}, height, width, {COLOURS}]", "sparse_control.shape")
        self.check_range(stage, given)
        if mask is None or np.shape(mask) != shape[:2]:
            raise UserError(f"{self.name}_mask of shape {list(np.shape(mask))} with {self.name} of shape {list(shape)}"
                            f"; permitted: {list(shape[:2])}, True for frames that are given", "sparse_control.mask")
        maps = self.value(stage, jnp.asarray(given))
        kept = jnp.asarray(mask, jnp.float32)[:, :: shape[1] // frames, None, None, None]
        kept = jnp.broadcast_to(kept, (*maps.shape[:-1], 1))
        return {"inputs": {self.name: jnp.concatenate([maps * kept, kept], -1)}, "scalars": self._options(request)}

    def request_of(self, network: Network, clips: list[Mapping[str, Any]]) -> dict[str, Any]:
        """The first frame's maps of the clips."""
        if self.field not in clips[0]:
            return {}
        maps = np.stack([clip[self.field] for clip in clips])
        return {self.name: maps, f"{self.name}_mask": np.arange(maps.shape[1])[None].repeat(len(maps), 0) == 0}

    def in_sampling(self, conditioning: Conditioning, videos: SampledVideos) -> dict[str, Any]:
        """Maps in the size of what the branch sees, or latents of them, with their mask. What plans give is that
        already."""
        value = conditioning.inputs[self.name]
        wanted = self.grid(videos.stage, videos.shape[1:4])
        network = videos.stage.network
        in_pixels = self._of_latents(network) and videos.encode is None  # then what is given has that size too
        if value.shape[1:] == (*wanted, self.entry(network).width) and not in_pixels:
            return {}
        maps, mask = value[..., :COLOURS], value[:, :, 0, 0, COLOURS]
        return {"inputs": {self.name: self._made(videos.stage, maps, mask, videos.shape[2:4], videos.encode)}}

    def grid(self, stage: Stage, sides: tuple[int, ...]) -> tuple[int, ...]:
        """Frames, height and width of its maps: those of what the network denoises where they are latents."""
        return sides if self._of_latents(stage.network) else super().grid(stage, sides)

    def _of_latents(self, network: Network) -> bool:
        nets = dict(zip([entry.name for entry in network.entering("residuals")], getattr(network, "control_nets", ()),
                        strict=False))
        return getattr(nets.get(self.name), "of_latents", False)

    def _made(
        self, stage: Stage, maps: Float[Array, "B T H W 3"], mask: Bool[Array, "B T"] | Float[Array, "B T"],
        sides: tuple[int, ...], encode: Encode | None,
    ) -> Float[Array, "B T H2 W2 C"]:
        """What the branch sees: maps in [0, 1], or their latents, where the mask is 1, zero elsewhere, and the mask."""
        grid = self.grid(stage, (maps.shape[1], *sides))
        if self._of_latents(stage.network) and encode is not None:
            pixels = (side * stage.latent.autoencoder.factor for side in sides)  # of the window that is trained on
            maps = encode(2 * fitted(maps, maps.shape[1], *pixels) - 1)
        elif self._of_latents(stage.network):
            maps = 2 * fitted(maps, *grid) - 1
        else:
            maps = fitted(maps, *grid)
        kept = jnp.broadcast_to(mask.astype(maps.dtype)[:, :, None, None, None], (*maps.shape[:-1], 1))
        return jnp.concatenate([maps * kept, kept], axis=-1)


class SparseFrames(SparseControl):
    """Frames of the clip itself, or in sampling of any pictures."""

    name = "sparse_frames"
    enters = "residuals"
    field = "video"
    of_video = True
    host_fields = ()


SPARSE = (SparseControl.name, SparseFrames.name)


def drawn_frames(key: Key[Array, ""], frames: int) -> Bool[Array, " T"]:
    """Which of so many frames are given: one to half of them, each number alike, anywhere."""
    count_key, place_key = jax.random.split(jax.random.fold_in(key, _STREAM))
    count = jax.random.randint(count_key, (), 1, max(frames // 2, 1) + 1)
    return jax.random.permutation(place_key, frames) < count

