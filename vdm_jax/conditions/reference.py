"""References: features of pictures, made outside the network or by a second U-Net next to it, as further keys and
values of self-attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float

from vdm_jax.conditions.conditioning import (
    Condition,
    Conditioning,
    Encode,
    Network,
    Request,
    SampledVideos,
    Shapes,
    Sizes,
    Stage,
    TrainingClips,
    nulled,
)
from vdm_jax.configuration import SizeOrZero, Width, config
from vdm_jax.errors import UserError
from vdm_jax.video.arrays import resize, to_float

PICTURE, SEEN = "reference_picture", "reference_seen"  # the condition, and whether a sample sees it


@config
class Reference:
    """Features made outside the network (of a reference picture, of key frames) that attention layers may see."""

    name: str  # key in `Conditioning.references`
    width: Width  # channels per token
    # Side of the patches that pictures in the size of the video are cut into, pixels: their values are the features. 0:
    # features arrive as they are
    patch: SizeOrZero = 0

    def __post_init__(self):
        if self.patch and self.width != 3 * self.patch**2:
            raise UserError(f"Reference.width={self.width} with patch={self.patch}; permitted: {3 * self.patch**2}")
        if self.name == "text":
            raise UserError("Reference.name='text' is not valid; permitted: any other name")


    def tokens(self, video: Any, sizes: Sizes) -> int:
        """Of one picture or clip, in the size of `video` (`VideoSpec`)."""
        return (video.height // self.patch) * (video.width // self.patch) if self.patch else sizes.tokens

    def features(self, given: Array, stage: Stage) -> Float[Array, "B G M C"]:
        """Features `[B, G, M, C]` as they are, or of the patches of pictures `[B, n, H, W, 3]`, uint8 or in [-1, 1],
        one group of all. Raises `UserError` for a picture size that patches do not divide."""
        if not self.patch:
            return given.astype(jnp.float32)
        video = stage.video
        if video.height % self.patch or video.width % self.patch:
            raise UserError(f"Reference.patch={self.patch} for pictures of {video.height}x{video.width}; permitted: "
                            "divisors of both")
        pictures = to_float(given) if given.dtype == jnp.uint8 else given
        pictures = resize(pictures, video.height, video.width, "area")
        return rearrange(pictures, "b n (h p) (w q) c -> b 1 (n h w) (p q c)", p=self.patch, q=self.patch)


class References(Condition):
    """Features by name, of which each clip has one group or one per frame; or pictures by name, cut into patches."""

    name = "reference"
    enters = "features"
    parts = ("references", "reference_masks")
    frame_parts = ("references", "reference_masks")
    fields = ("reference_*",)
    frame_fields = ("reference_*",)

    def taken(self, network: Network) -> bool:
        """Where the network names references."""
        return bool(network.references)

    def needed(self, network: Network) -> tuple[str, ...]:
        """The features of each name."""
        return tuple(f"references/{reference.name}" for reference in network.references)

    def shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """One group of tokens for each."""
        return {f"references/{r.name}": ((1, r.tokens(stage.video, sizes), r.width), jnp.float32)
                for r in stage.network.references}

    def batch_shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """One group of tokens for each, or one picture."""
        return {f"reference_{r.name}": ((1, *sizes.clip[1:], 3), jnp.uint8) if r.patch else
                ((1, sizes.tokens, r.width), jnp.float32) for r in stage.network.references}

    def assumed(self, stage: Stage, sizes: Sizes) -> list[str]:
        """The number of tokens."""
        return [f"reference {r.name!r} is assumed to have {sizes.tokens} tokens (--text-tokens), one group per clip"
                for r in stage.network.references if not r.patch]

    def of_batch(self, stage: Stage, batch: Mapping[str, Array]) -> dict[str, Any]:
        """The features of the batch; the network names those that are missing."""
        return {"references": {r.name: r.features(batch[f"reference_{r.name}"], stage)
                               for r in stage.network.references if f"reference_{r.name}" in batch}}

    def arguments(self, network: Network) -> tuple[str, ...]:
        """`references`, by name."""
        return ("references",)

    def of_request(self, stage: Stage, request: Request) -> dict[str, Any]:
        """The features that are given, one group for a video where they have no axis of groups; or the pictures, one
        for a video where they have no axis of several."""
        given, count, found = request.get("references") or {}, len(request.captions), {}
        for reference in stage.network.references:
            shape = np.shape(given.get(reference.name))
            if reference.patch:
                if len(shape) not in (4, 5) or (shape[0], shape[-1]) != (count, 3):
                    raise UserError(f"references[{reference.name!r}] of shape {list(shape)} given for stage "
                                    f"{stage.name!r}; permitted: pictures [{count}, height, width, 3], or several "
                                    f"[{count}, n, height, width, 3]")
                value = jnp.asarray(given[reference.name])
                found[reference.name] = reference.features(value[:, None] if value.ndim == 4 else value, stage)
                continue
            if len(shape) not in (3, 4) or (shape[0], shape[-1]) != (count, reference.width):
                raise UserError(f"references[{reference.name!r}] of shape {list(shape)} given for stage "
                                f"{stage.name!r}; permitted: [{count}, tokens, {reference.width}], or with groups "
                                f"[{count}, 1 or frames, tokens, {reference.width}]")
            value = jnp.asarray(given[reference.name], jnp.float32)
            found[reference.name] = value[:, None] if value.ndim == 3 else value
        return {"references": found}

    def request_of(self, network: Network, clips: list[Mapping[str, Any]]) -> dict[str, Any]:
        """The features of the clips."""
        names = [r.name for r in network.references if f"reference_{r.name}" in clips[0]]
        return {"references": {name: np.stack([clip[f"reference_{name}"] for clip in clips]) for name in names}}

    def present(self, conditioning: Conditioning) -> bool:
        """Where there is any."""
        return bool(conditioning.references)


class ReferencePicture(Condition):
    """A picture of what the video shows, or several: a second U-Net sees it, whose features are further keys and values
    of the first one (ReferenceNet: Hu et al. 2023, arXiv 2311.17117), or its latents become tokens next to those of an
    image prompt (`networks/picture_adapter.py`). Where it is left out its latents are zeros, and the first one sees
    none of the features, or of the image prompt."""

    name = PICTURE
    enters = "features"
    fields = ("reference_picture",)
    guidance = "prompt"

    def taken(self, network: Network) -> bool:
        """Where it has such a second U-Net, or makes tokens of the picture."""
        return network.reference_picture

    def needed(self, network: Network) -> tuple[str, ...]:
        """The picture."""
        return (f"inputs/{self.name}",)

    def shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """The latents of one picture."""
        return {f"inputs/{self.name}": ((1, *stage.shape[1:]), jnp.float32), f"scalars/{SEEN}": ((), jnp.float32)}

    def batch_shapes(self, stage: Stage, sizes: Sizes) -> Shapes:
        """One picture in the size of the clips."""
        return {self.name: ((1, *sizes.clip[1:], 3), jnp.uint8)}

    def of_batch(self, stage: Stage, batch: Mapping[str, Array]) -> dict[str, Any]:
        """The pictures of the batch. Raises `UserError` where there are none."""
        if self.name not in batch:
            raise UserError(f"stage {stage.name!r} takes {self.name!r}, but the batch has none; permitted: a data set "
                            "whose clips have it, such as VideoFolder(references=FOLDER)")
        return self._of_pictures(stage, batch[self.name])

    def in_training(self, conditioning: Conditioning, clips: TrainingClips) -> dict[str, Any]:
        """Their latents."""
        return self._encoded(conditioning, clips.encode)

    def arguments(self, network: Network) -> tuple[str, ...]:
        """`references`, with the name "picture"."""
        return ("references",)

    def of_request(self, stage: Stage, request: Request) -> dict[str, Any]:
        """The pictures that are given, one for a video where they have no axis of several. Raises `UserError` for
        another shape."""
        given, count = jnp.asarray((request.get("references") or {}).get("picture", ())), len(request.captions)
        if given.ndim not in (4, 5) or (given.shape[0], given.shape[-1]) != (count, 3):
            raise UserError(f"references['picture'] of shape {list(given.shape)} given for stage {stage.name!r}; "
                            f"permitted: pictures [{count}, height, width, 3], or several [{count}, n, height, width, "
                            "3]")
        return self._of_pictures(stage, given[:, None] if given.ndim == 4 else given)

    def request_of(self, network: Network, clips: list[Mapping[str, Any]]) -> dict[str, Any]:
        """The pictures of the clips."""
        if self.name not in clips[0]:
            return {}
        return {"references": {"picture": np.stack([clip[self.name] for clip in clips])}}

    def in_sampling(self, conditioning: Conditioning, videos: SampledVideos) -> dict[str, Any]:
        """Their latents; what plans give is that already."""
        if conditioning.inputs[self.name].shape[2:] == videos.shape[2:]:
            return {}
        return self._encoded(conditioning, videos.encode)

    def present(self, conditioning: Conditioning) -> bool:
        """Where there is a picture."""
        return self.name in conditioning.inputs

    def null(self, conditioning: Conditioning, where: Bool[Array, " B"] | None) -> dict[str, Any]:
        """Zeros, which are not seen."""
        seen = {SEEN: nulled(conditioning.scalars[SEEN], 0, where)} if SEEN in conditioning.scalars else {}
        return {"inputs": {self.name: nulled(conditioning.inputs[self.name], 0, where)}, "scalars": seen}

    def _of_pictures(self, stage: Stage, given: Array) -> dict[str, Any]:
        """Pictures `[B, n, H, W, 3]`, uint8 or in [-1, 1], in the size of the video."""
        given = to_float(given) if given.dtype == jnp.uint8 else given
        pictures = resize(given, stage.video.height, stage.video.width, "area")
        return {"inputs": {self.name: pictures}, "scalars": {SEEN: jnp.ones(len(pictures))}}

    def _encoded(self, conditioning: Conditioning, encode: Encode | None) -> dict[str, Any]:
        pictures = conditioning.inputs[self.name]
        return {} if encode is None else {"inputs": {self.name: encode(pictures)}}
