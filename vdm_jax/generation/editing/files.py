"""Editing a video file of any length: clip by clip, in memory that does not grow with it, and going on after an
interruption. Methods whose clip is the whole video (`whole_video`) have all of it in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from vdm_jax.conditions.inputs import check_uncut
from vdm_jax.configuration import to_data, to_json
from vdm_jax.errors import UserError
from vdm_jax.generation.editing.edit import edit
from vdm_jax.generation.editing.methods import EditMethod
from vdm_jax.generation.editing.rerender_clips import arrays_of, carry_of
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.jobs import Progress
from vdm_jax.generation.long_video.frames import Frames, FramesInFolder, request_key
from vdm_jax.generation.long_video.sampling import CHUNK, weights_of
from vdm_jax.metrics.frames import psnr
from vdm_jax.stages.stage import Stage
from vdm_jax.video.grids import tile_videos
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.sound import has_sound
from vdm_jax.video.writing import Sound, write_frames

EDITED, SOURCE = 0, 1  # places of the two videos in the store


@dataclasses.dataclass(frozen=True)
class VideoJob:
    """A video file, and how it is cut into the clips that a stage makes.

    The clips follow one another; the last one is filled up with its last frame. `fps` is the rate at which the file is
    read, by presentation times, and written again; None: its own mean rate.
    """

    path: Path
    caption: str
    source_caption: str | None = None
    method: EditMethod | Mapping[str, EditMethod] | None = None  # None: `edit`'s
    fps: float | None = None
    frames: int | None = None  # that are edited, from the first on; None: all
    seed: int = 0
    at_once: int = 1  # clips that are edited together
    maps: Path | None = None  # video of control maps, frame for frame, for networks that take such
    maps_end: bool = False  # the maps may end after the last frame that is edited, as those made for it alone do
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # further ones of `edit`


@dataclasses.dataclass(frozen=True)
class Cut:
    """How a video is cut into clips: one after another, or each with the video's first frame before its own."""

    frames: int  # of the video
    size: int  # frames of a clip
    carries_first: bool = False

    def __post_init__(self):
        if self.carries_first and self.size < 2:
            raise UserError(f"clips of {self.size} frame with a method whose clips begin with the video's first frame; "
                            "permitted: 2 frames or more, such as --num-frames 8 of a released model", "edit.frames")

    @property
    def step(self) -> int:
        """Frames of its own that a further clip has."""
        return self.size - self.carries_first

    @property
    def clips(self) -> int:
        """How many there are."""
        return 1 + max(0, -(-(self.frames - self.size) // self.step))

    def places(self, clip: int) -> Int[np.ndarray, " T"]:
        """The frames of a clip, which may reach beyond the end."""
        first = self.carries_first + clip * self.step
        own = np.arange(first, first + self.step)
        return np.concatenate([[0], own]) if self.carries_first else own

    def finished(self, clips: int) -> int:
        """Frames of the first so many clips."""
        return min(self.carries_first + clips * self.step, self.frames) if clips else 0


@dataclasses.dataclass(frozen=True)
class KeyCut(Cut):
    """How a video is cut into clips from one key frame to the next, both included; the last one may be shorter."""

    @property
    def step(self) -> int:
        """Frames that a further clip adds."""
        return self.size - 1

    def places(self, clip: int) -> Int[np.ndarray, " T"]:
        """The frames of a clip."""
        first = clip * self.step
        return np.arange(first, min(first + self.size, self.frames))

    def finished(self, clips: int) -> int:
        """Frames of the first so many clips."""
        return min(clips * self.step + 1, self.frames) if clips else 0


@dataclasses.dataclass(frozen=True)
class EditedVideo:
    """An edited video, finished or not, in memory or in a folder."""

    job: VideoJob
    fps: float
    frames: Frames  # the edited video and the given one
    finished: int  # frames
    begins: float  # seconds of the file at which its first frame is shown

    @property
    def round_trip(self) -> dict[str, list[float]]:
        """PSNR in dB by stage, of every finished clip, those of calls before among them; empty unless asked for."""
        notes = self.frames.notes
        return {stage: [value for note in notes for value in note[stage]] for stage in (notes[0] if notes else ())}

    @property
    def complete(self) -> bool:
        """Whether all frames are there."""
        return self.finished == self.frames.shape[1]

    def stream(self) -> Iterator[UInt8[np.ndarray, "2 T H W 3"]]:
        """The finished frames of both videos in pieces of some frames."""
        for start in range(0, self.finished, CHUNK):
            numbers = range(start, min(start + CHUNK, self.finished))
            yield np.stack([self.frames.read(place, numbers) for place in (EDITED, SOURCE)])

    def save(self, path: Path, side_by_side: bool = False) -> Path:
        """Write the finished frames to an .mp4, with the file's sound, a .gif or a .png of frames; `side_by_side` next
        to the given ones."""
        sound = None
        if Path(path).suffix.lower() == ".mp4" and has_sound(self.job.path):
            sound = Sound(self.job.path, self.begins, self.finished / self.fps)
        frames = (frame for part in self.stream() for frame in (tile_videos(part[::-1]) if side_by_side else part[0]))
        return write_frames(path, frames, self.fps, sound=sound)

    def record(self) -> dict[str, Any]:
        """What was done, and how far the result is from the given video, as plain data."""
        job, found = self.job, [psnr(part[:1], part[1:]) * part.shape[1] for part in self.stream()]
        methods = job.method if isinstance(job.method, Mapping) else {"all": job.method}
        return {
            "video": str(job.path), "caption": job.caption, "source_caption": job.source_caption, "seed": job.seed,
            "frames": self.finished, "fps": self.fps, "size": list(self.frames.shape[2:4]),
            "sound": has_sound(job.path), "maps": None if job.maps is None else str(job.maps),
            "method": {stage: {"name": each.name, **{k: v for k, v in to_data(each).items() if k != "kind"}}
                       for stage, each in methods.items() if each is not None},
            "options": {name: value for name, value in job.options.items() if value is not None},
            "psnr_to_source": float(np.sum(found) / max(self.finished, 1)),
            "round_trip_psnr": {stage: float(np.mean(values)) for stage, values in self.round_trip.items()},
        }


def edit_video(
    generator: Generator, job: VideoJob, *, folder: Path | None = None, progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> EditedVideo:
    """Edit a video file with the stages of a cascade, or with a released model.

    Args:
      folder: where finished frames are kept, so that the same call goes on after an interruption; memory by default.
      progress: called with ("clips", clips done, clips in all).
      stop: asked after each batch of clips; True ends the call there, with the video unfinished.

    Raises `UserError` for a file that cannot be read, maps that are not one for each frame or no network takes, files
    of a method that cannot be read, more frames than one clip has with a network that takes maps of the frames around
    each one (`Input.window`), and as `edit`.
    """
    last = job.options.get("last")
    stages, spec = generator.stages(None, last), generator.stages(None, last)[-1].video
    with contextlib.ExitStack() as files:
        reader = files.enter_context(VideoReader(job.path))
        maps = None if job.maps is None else files.enter_context(VideoReader(job.maps))
        name = _map_name(stages, job)
        fps = reader.fps if job.fps is None else job.fps
        numbers = _numbers(reader, fps, job.frames)
        least = int(numbers.max()) + 1 if job.maps_end else len(reader)
        if maps is not None and not least <= len(maps) <= len(reader):
            raise UserError(f"{job.maps} has {len(maps)} frames for {len(reader)} of {job.path}; permitted: a map for "
                            f"each frame{f', at least for the first {least}' if job.maps_end else ''}", "edit.maps")
        for method in _given_methods(job):  # refused before a folder is there
            method.check_files()
        cut = _cut(job, len(numbers), spec.frames)
        _check_uncut(stages, cut)
        frames, clips = _frames(generator, job, stages, numbers, folder), cut.clips
        begins = float(reader.index.pts[0] * reader.index.time_base)

        def tell() -> None:
            if progress is not None:
                progress("clips", frames.done, clips)

        tell()
        try:
            while frames.done < clips and not (frames.done and stop()):
                batch = range(frames.done, min(frames.done + job.at_once, clips))
                _edit_clips(generator, job, reader, maps, name, numbers, batch, frames, cut)
                tell()
        except BaseException:
            if not frames.done:  # nothing to go on with
                frames.remove()
            raise
    return EditedVideo(job, fps, frames, cut.finished(frames.done), begins)


def _frames(
    generator: Generator, job: VideoJob, stages: tuple[Stage, ...], numbers: Int[np.ndarray, " T"], folder: Path | None
) -> Frames:
    """Where the frames are kept. Raises `UserError` for a folder that has those of another request, file or weights."""
    own = [path for method in _given_methods(job) for path in method.files()]
    stats = [path.stat() for path in (job.path, job.maps, *own) if path is not None]
    said = (*map(to_json, stages), _methods(job), repr(dataclasses.replace(job, method=None)), numbers.tolist(),
            *((stat.st_size, stat.st_mtime_ns) for stat in stats))
    key, shape = request_key(said, (), weights_of(generator, stages)), (2, len(numbers), *stages[-1].video.shape[1:])
    return Frames(shape, key) if folder is None else FramesInFolder(folder, shape, key)


def _edit_clips(
    generator: Generator, job: VideoJob, reader: VideoReader, maps: VideoReader | None, name: str | None,
    numbers: np.ndarray, batch: range, frames: Frames, cut: Cut,
) -> None:
    """Edit some clips, write them, and note their round trips."""
    spec = generator.stages(None, job.options.get("last"))[-1].video
    places = np.concatenate([cut.places(clip) for clip in batch])
    shown = numbers[np.minimum(places, len(numbers) - 1)]

    def read(file: VideoReader) -> np.ndarray:
        return file.frames(shown, spec.height, spec.width).reshape(len(batch), -1, spec.height, spec.width, 3)

    source = read(reader)
    given = {} if name is None else {name: source if maps is None else read(maps)}
    captions = None if job.source_caption is None else [job.source_caption] * len(batch)
    method = {} if job.method is None else {"method": job.method}
    state, one_noise = frames.state(), cut.carries_first or isinstance(cut, KeyCut)
    if isinstance(cut, KeyCut) and state is None and frames.done:
        raise UserError("what the next clip goes on with is missing next to the finished frames; permitted: delete the "
                        "folder", "edit.state")
    made = edit(generator, source, [job.caption] * len(batch), source_captions=captions, seed=job.seed,
                first_index=0 if one_noise else batch[0], same_noise=one_noise,
                carry=None if state is None else carry_of(state), **method, **given, **job.options)
    rows = [row for row, place in enumerate(places) if place < len(numbers) and (place or not row)]
    for place, videos in ((EDITED, made.videos), (SOURCE, source)):
        frames.write(place, places[rows].tolist(), videos.reshape(-1, *videos.shape[2:])[rows])
    done = batch[-1] + 1
    frames.finish(done, {stage: values.tolist() for stage, values in made.round_trip.items()} or None,
                  None if made.carry is None or done == cut.clips else arrays_of(made.carry))


def numbers_of(path: Path, fps: float | None = None, most: int | None = None) -> Int[np.ndarray, " T"]:
    """Which frames of a file are edited: those on screen at a rate, its own by default, all or as many as there shall
    be at most. Raises `UserError` for a file that cannot be read."""
    with VideoReader(path) as reader:
        return _numbers(reader, reader.fps if fps is None else fps, most)


def _numbers(reader: VideoReader, fps: float, most: int | None) -> Int[np.ndarray, " T"]:
    whole = max(1, math.floor(reader.duration * fps + 0.5))
    return reader.index.at(np.arange(whole if most is None else min(whole, most)) / fps)


def _cut(job: VideoJob, frames: int, size: int) -> Cut:
    """The clips of a video of so many frames, by a stage that makes clips of a size. Raises `UserError` for several
    clips at once where each goes on from the one before."""
    methods = _given_methods(job)
    for method in methods:
        if method.by_key_frames:
            if job.at_once > 1:
                raise UserError(f"at_once={job.at_once} with method={method.name!r}, whose clips go on from one "
                                "another; permitted: 1", "edit.at_once")
            return KeyCut(frames, method.interval + 1)
    return Cut(frames, size, any(method.carries_first for method in methods))


def _check_uncut(stages: Sequence[Stage], cut: Cut) -> None:
    """Raise `UserError` for several clips by networks that take maps of the frames around each one."""
    if cut.clips > 1:
        for stage in stages:
            check_uncut(stage.network.conditions,
                        f"Stage {stage.name!r}: {cut.frames} frames in {cut.clips} clips of {cut.size}")


def _given_methods(job: VideoJob) -> list[EditMethod]:
    given = job.method.values() if isinstance(job.method, Mapping) else [job.method]
    return [method for method in given if method is not None]


def _methods(job: VideoJob) -> Any:
    if isinstance(job.method, Mapping):
        return {name: to_json(method) for name, method in job.method.items()}
    return None if job.method is None else to_json(job.method)


def _map_name(stages: tuple[Any, ...], job: VideoJob) -> str | None:
    """The condition that is a map of the video: made by the network of the video itself, or given. Raises `UserError`
    for maps that no network takes, or of which none is given."""
    entries = {entry.name: entry.condition for stage in stages for entry in stage.network.conditions
               if entry.condition.form == "map" and (entry.condition.of_video or entry.condition.dtype == np.uint8)}
    own = [name for name, condition in entries.items() if condition.of_video]
    given = [name for name in entries if name not in own]
    if job.maps is None and not given:
        return own[0] if own else None
    if (job.maps is None) or len(given) != 1:
        raise UserError(f"control maps of {job.maps} for networks that take {', '.join(given) or 'none'}; permitted: "
                        "one file of maps exactly for networks that take one", "edit.maps")
    return given[0]
