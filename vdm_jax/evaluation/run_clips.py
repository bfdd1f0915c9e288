"""The videos of an evaluation by number: real clips of a data set, and what a cascade generates for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Shaped, UInt8

from vdm_jax.conditions.frame_masks import MaskedVideo
from vdm_jax.configuration import digest, to_data
from vdm_jax.data.source import RandomAccessSource
from vdm_jax.errors import UserError
from vdm_jax.evaluation.settings import MetricSettings
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.given_frames import frames_stage
from vdm_jax.generation.prompts import request_of
from vdm_jax.metrics.fvd_protocols import find_protocol
from vdm_jax.seeds import generator_for
from vdm_jax.video.arrays import resize, subsample_frames, to_float, to_uint8

Videos = UInt8[np.ndarray, "N T H W 3"]
Side = Literal["real", "generated"]
DRAW, START = "draw of clips for metrics", "start of clips for metrics"  # purposes of random numbers


class Clips:
    """The videos of an evaluation by number: real ones, and those generated for them. `about` is all that decides about
    them, as JSON data, and `name` a short name of that; `real_name` is one of what decides about the real ones."""

    def __init__(self, generator: Generator, source: RandomAccessSource, settings: MetricSettings):
        self.generator, self.source, self.settings = generator, source, settings
        first, last = generator.experiment.stages[0].video, generator.experiment.stages[-1].video
        self.first, self.shape = first, (last.frames, last.height, last.width)
        if settings.given_frames >= first.frames:
            raise UserError(f"given_frames={settings.given_frames} of the {first.frames} frames of stage "
                            f"{generator.experiment.stages[0].name!r}; permitted: fewer")
        if "frame_valid" in source[0]:
            raise UserError("clips with padded frames cannot be scored; permitted: VideoFolder(short='skip')")
        random = find_protocol(settings.protocol).start == "random" and hasattr(source, "clip")
        self.start = "random" if random else "as the data set gives it"
        self.draw = find_protocol(settings.protocol).draw or "without replacement"
        # Where a protocol draws with replacement, reference and given clips are two draws.
        self._of_real, self._of_generated = (self._drawn(side) for side in (0, 1))
        real = self._about_real()
        self.about = real | self._about_generated()
        self.real_name, self.name = _short_name(real | {"size": self.shape}), _short_name(self.about)

    def real(self, numbers: Sequence[int]) -> Videos:
        """Real clips at the frames and pixels of the last stage."""
        return self._fitted(self._of_real[list(numbers)], *self.shape)

    def generated(self, numbers: Sequence[int]) -> Videos:
        """The videos of these numbers; video `i` is for clip `i % count`."""
        settings, of = self.settings, self._given(numbers)
        items = [self._clip(i) for i in of]
        given = {}
        for stage in self.generator.experiment.stages:
            given |= request_of(stage, items)
        if settings.given_frames:
            video = frames_stage(self.generator.experiment.stages).video
            clips = self._fitted(of, video.frames, video.height, video.width)
            mask = np.zeros((len(clips), video.frames, 1, 1, 1), np.float32)
            mask[:, : self._given_until(video.frames)] = 1
            given["masked_video"] = MaskedVideo(to_float(clips), mask)
        videos = self.generator([item["caption"] for item in items], seed=settings.seed, first_index=numbers[0],
                                steps=settings.steps, guidance=settings.guidance, **given).videos
        return grey(videos) if find_protocol(settings.protocol).grey else videos

    def counterparts(self, numbers: Sequence[int]) -> Videos:
        """The real clip that each of the videos should be."""
        return self._fitted(self._given(numbers), *self.shape)

    def captions(self, side: Side, numbers: Sequence[int]) -> list[str]:
        """What each of the videos of a side shows or should show."""
        of = self._of_real[list(numbers)] if side == "real" else self._given(numbers)
        return [self._clip(int(i))["caption"] for i in of]

    def unknown(self, videos: Shaped[np.ndarray, "N T *rest"]) -> Shaped[np.ndarray, "N M *rest"]:
        """The frames that were not given: at the rate of the last stage, those after the last given one."""
        return videos[:, self._given_until(self.shape[0]) :]

    def _given_until(self, frames: int) -> int:
        """Of a stage of so many frames, the first one that is not given."""
        given = self.settings.given_frames
        return (given - 1) * (frames // self.first.frames) + 1 if given else 0

    @property
    def stride(self) -> int:
        """Source frames between two frames of a clip."""
        data = self.generator.experiment.data
        own = getattr(getattr(data, "data", data), "frame_stride", 1)
        return own * (len(self.source[0]["video"]) // self.shape[0])

    @property
    def data(self) -> str:
        """A short name of the data set and its config."""
        data = self.generator.experiment.data
        return f"{type(data).__name__} {digest(data)}"

    def _about_real(self) -> dict[str, Any]:
        # The config of a data set may name a folder whose files have changed since.
        clip = self.source[0]
        fingerprint = hashlib.sha256(np.ascontiguousarray(clip["video"]).tobytes() + clip["caption"].encode())
        start = f"random: {START}, seed {self.settings.seed}" if self.start == "random" else self.start
        draw = {} if self.draw == "without replacement" else {
            "draw": f"{self.draw}: {DRAW}, seed {self.settings.seed}", "count": self.settings.count}
        return {"data": to_data(self.generator.experiment.data), "split": self.settings.split, "start": start, **draw,
                "source_clips": len(self.source), "first_clip": fingerprint.hexdigest()[:16]}

    def _about_generated(self) -> dict[str, Any]:
        settings, experiment = self.settings, self.generator.experiment
        norms = {name: f"{float(optax.tree.norm(params)):.8g}" for name, params in self.generator.params.items()}
        return {"experiment": experiment.name, "stages": digest(experiment.stages), "weights": norms,
                "seed": settings.seed, "steps": settings.steps, "guidance": settings.guidance,
                "given_frames": settings.given_frames,
                **({"grey": True} if find_protocol(settings.protocol).grey else {}),
                # A video's clip follows from the count, unless each clip has one video.
                "clips": settings.count if settings.samples_per_clip > 1 else "one a video"}

    def _drawn(self, side: int) -> np.ndarray:
        """Clips of the split that the numbers of a side stand for."""
        count = self.settings.count
        if self.draw == "without replacement":
            return np.arange(count)
        return generator_for(self.settings.seed, DRAW, side).integers(len(self.source), size=count)

    def _given(self, numbers: Sequence[int]) -> list[int]:
        """The clips that generated videos of these numbers are for."""
        return [int(self._of_generated[i % self.settings.count]) for i in numbers]

    def _clip(self, number: int) -> dict[str, Any]:
        if self.start == "random":
            return self.source.clip(number, generator_for(self.settings.seed, START, number))
        return self.source[number]

    def _fitted(self, numbers: Sequence[int], count: int, height: int, width: int) -> Videos:
        clips = np.stack([self._clip(i)["video"] for i in map(int, numbers)])
        if clips.shape[1:4] == (count, height, width):
            return clips
        small = resize(subsample_frames(to_float(jnp.asarray(clips)), count), height, width, "area")
        return np.asarray(to_uint8(small))


def grey(videos: Videos) -> Videos:
    """Videos whose channels are their mean."""
    mean = np.round(videos.mean(-1, keepdims=True, dtype=np.float32)).astype(np.uint8)
    return np.repeat(mean, videos.shape[-1], axis=-1)


def _short_name(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
