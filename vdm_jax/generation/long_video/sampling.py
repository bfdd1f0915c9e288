"""Long videos of a stage of a cascade: plan, conditioning, keys and frames brought together for the driver."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.frame_masks import MaskedVideo, masked_low_resolution
from vdm_jax.configuration import to_json
from vdm_jax.diffusion.arrays import noise_from_keys
from vdm_jax.errors import UserError
from vdm_jax.generation.compiled import DRAWN, Noise
from vdm_jax.generation.given_frames import checked_frames
from vdm_jax.generation.jobs import Jobs, Progress
from vdm_jax.generation.long_video.driver import Task, finished_frames, sample_plan
from vdm_jax.generation.long_video.frames import Frames, FramesInFolder, request_key
from vdm_jax.generation.long_video.plan import Method
from vdm_jax.generation.long_video.script import LongRequest, Script, first_captions
from vdm_jax.generation.one_stage import inpainting_method, sampling_parts
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Stage
from vdm_jax.video.arrays import to_uint8

CHUNK = 16  # frames that are in memory at a time when a video is written


@dataclasses.dataclass(frozen=True)
class LongVideos:
    """Long videos, finished or not, in memory or in a folder."""

    captions: tuple[str, ...]  # the first of each
    stage: str
    fps: float
    frames: Frames
    finished: int  # frames that are final, from the first on

    @property
    def complete(self) -> bool:
        """Whether all frames are there."""
        return self.finished == self.frames.shape[1]

    @property
    def videos(self) -> UInt8[np.ndarray, "B T H W 3"]:
        """The finished frames of all videos, all in memory."""
        return np.stack([self.frames.read(i, range(self.finished)) for i in range(self.frames.shape[0])])

    def stream(self) -> Iterator[UInt8[np.ndarray, "B T H W 3"]]:
        """The finished frames in pieces of some frames."""
        for start in range(0, self.finished, CHUNK):
            numbers = range(start, min(start + CHUNK, self.finished))
            yield np.stack([self.frames.read(i, numbers) for i in range(self.frames.shape[0])])

    def save(self, path: str | os.PathLike) -> Path:
        """Write the finished frames to one .mp4 (side by side, in memory that does not grow with the length), .gif, or
        .png grid of frames with captions. Raises `UserError` where none is finished."""
        from vdm_jax.video.grids import sample_grid, tile_videos
        from vdm_jax.video.writing import write_frames, write_png

        if Path(path).suffix.lower() == ".png":
            return write_png(path, sample_grid(self.videos, self.captions))
        return write_frames(path, (frame for part in self.stream() for frame in tile_videos(part)), self.fps)


class StageSampler(Protocol):
    """What a generator does for one stage."""

    mesh: Any
    params: Any
    autoencoders: Any

    def run_stage(self, stage: Stage, place: int, sampling: Sampling, jobs: Jobs, text: Conditioning, low: Any,
                  masked_video: MaskedVideo | None = None, *, at_once: int) -> Float[np.ndarray, "N T H W 3"]:
        """Clips of one stage."""


@dataclasses.dataclass(frozen=True)
class LongJob:
    """Long videos of a cascade's first stages that are asked for."""

    stages: tuple[Stage, ...]  # that the method needs, with their sampling as asked for
    method: Method
    total: int  # frames
    fps: float
    scripts: tuple[Script, ...]
    requests: tuple[LongRequest, ...]  # one per stage
    seed: int
    first_index: int
    masked_video: MaskedVideo | None  # of the first segment
    low: Float[np.ndarray, "B N H2 W2 3"] | None  # the whole videos with fewer pixels
    every: int  # of how many frames `low` has one

    def sample(
        self, generator: StageSampler, folder: Path | None, at_once: int | None, progress: Progress | None,
        stop: Callable[[], bool],
    ) -> LongVideos:
        """Sample what is not there yet; see `Generator.long`."""
        size, videos = self.stage.video.frames, len(self.scripts)
        stages = (self.method.sampled_by(self.stage, self.total), *self.stages[1:])
        stage = stages[0]
        self._checked()
        widest = max(map(len, self.method.rounds(self.total, size)))
        parts = math.lcm(*(sampling_parts(s, s.sampling, generator.mesh) for s in stages))
        at_once = min(stage.sampling.batch_size, widest * videos) if at_once is None else at_once
        at_once = -(-at_once // parts) * parts
        shape = (videos, self.total, *stage.video.shape[1:])
        key = self._key(at_once, generator)
        frames = Frames(shape, key) if folder is None else FramesInFolder(folder, shape, key)
        tasks, jobs = self.method.segments(self.total, size) * videos, self._jobs()

        def sample(batch: list[Task], given: MaskedVideo | None) -> UInt8[np.ndarray, "N T H W 3"]:
            rows = np.array([task.video for task in batch])
            blocks = np.array([task.segment.number for task in batch])
            place, noise = batch[0].segment.stage, self._noise(stage, rows)
            own = dataclasses.replace(jobs, indices=jobs.indices[rows], blocks=blocks, noise=noise)
            given = self._given(batch, given, rows)
            clips = generator.run_stage(stages[place], place, stages[place].sampling, own, self._conditioning(batch),
                                        None, given, at_once=at_once)
            return np.asarray(to_uint8(clips))

        def tell(done: int) -> None:
            if progress is not None:
                progress(stage.name, done, tasks)

        tell(frames.done)
        try:
            sample_plan(self.method.rounds(self.total, size), frames, sample, at_once=at_once, tell=tell, stop=stop)
        except BaseException:
            if not frames.done:  # nothing to go on with
                frames.remove()
            raise
        finished = finished_frames(self.method.rounds(self.total, size), frames)
        return LongVideos(first_captions(self.scripts), stages[-1].name, self.fps, frames, finished)

    @property
    def stage(self) -> Stage:
        """The first."""
        return self.stages[0]

    def _jobs(self) -> Jobs:
        return Jobs(self.seed, self.first_index + np.arange(len(self.scripts)))

    def _conditioning(self, batch: list[Task]) -> Conditioning:
        """Of the tasks of a batch, each in its row."""
        of_segment = {task.segment: self.requests[task.segment.stage].conditioning(task.segment) for task in batch}
        rows = [jax.tree.map(lambda a, task=task: a[task.video], of_segment[task.segment]) for task in batch]
        return jax.tree.map(lambda *parts: jnp.stack(parts), *rows)

    def _given(self, batch: list[Task], given: MaskedVideo | None, rows: np.ndarray) -> MaskedVideo | None:
        """What is given of the clips of a batch, by earlier segments and by the user."""
        segment = batch[0].segment
        if segment.number == 0 and self.masked_video is not None:
            video, mask, *_ = self._checked()  # a mask may have one entry for all frames of the clip
            given = MaskedVideo(video, np.broadcast_to(mask, (*video.shape[:2], *mask.shape[2:])))
            given = jax.tree.map(lambda a: _extended(np.asarray(a)[rows], segment.length), given)
        if self.low is None:
            return given
        size, shape = self.low[rows], (segment.length, *self.stage.video.shape[1:])
        found = [masked_low_resolution(size[i : i + 1], self.every, shape, task.segment.start,
                                       None if given is None else jax.tree.map(lambda a, i=i: a[i : i + 1], given),
                                       task.segment.stride) for i, task in enumerate(batch)]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *found)

    def _checked(self) -> MaskedVideo | None:
        """What is given of the first clips. Raises `UserError` as `checked_frames`, and for stages that fill in frames
        and do not go by `low`."""
        given = self.masked_video
        if self.low is not None:
            for stage in self.stages[1:]:
                if (method := inpainting_method(stage, stage.sampling)) != "reconstruction":
                    raise UserError(f"a low-resolution video is given for stage {stage.name!r} with inpainting.method="
                                    f"{method!r}; permitted: 'reconstruction'")
            given = masked_low_resolution(self.low, self.every, self.stage.video.shape, masked_video=given)
        return checked_frames(given, self.stage, len(self.scripts))

    def _noise(self, stage: Stage, rows: np.ndarray) -> Noise:
        """The initial noise of some videos, where the method has it in another order."""
        size = self.stage.shape[0]
        orders = [self.method.noise_order(stage.shape[0], size, self.seed + self.first_index + int(row))
                  for row in rows]
        if orders[0] is None:
            return DRAWN
        keys = self._jobs().keys(rows, 0)
        base = np.asarray(noise_from_keys(keys, 0, (len(rows), *self.stage.shape)))
        return Noise(initial=np.stack([noise[order] for noise, order in zip(base, orders, strict=True)]))

    def _key(self, at_once: int, generator: StageSampler) -> str:
        """Says of frames in a folder that they are of this request and these weights."""
        said = (*map(to_json, self.stages), to_json(self.method), self.total, self.scripts, self.seed, self.first_index,
                self.every, at_once)
        given = (self.masked_video, self.low, [(dict(r.request.given), r.text) for r in self.requests])
        return request_key(said, given, weights_of(generator, self.stages))


def weights_of(generator: StageSampler, stages: tuple[Stage, ...]) -> tuple[list[Any], list[Any]]:
    """The parameters of stages and of their autoencoders."""
    return ([generator.params[stage.name] for stage in stages],
            [generator.autoencoders[stage.name] for stage in stages if stage.latent is not None])


def _extended(part: np.ndarray, frames: int) -> np.ndarray:
    """A part of masked videos with as many frames; of those beyond its end nothing is given."""
    return np.pad(part, ((0, 0), (0, frames - part.shape[1]), *[(0, 0)] * (part.ndim - 2)))
