"""Any folder of videos as clips: frame-exact windows, decoded when asked for.

Seeking and decoding the original files every epoch is ten times and more slower than reading prepared records
(`array_record`), which is the thing to do before a long run. For a first look, or a set that changes, nothing need be
prepared.
"""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vdm_jax.configuration import Positive, Share, Size, config
from vdm_jax.data.captions import read_captions
from vdm_jax.data.crops import Crop
from vdm_jax.data.decoding import MapFolder, decode_frames, stem
from vdm_jax.data.folder import SkippedFiles, check_fractions, files_of_split, in_range, list_files
from vdm_jax.data.image_folder import fitted
from vdm_jax.data.image_prompts import VectorFolder
from vdm_jax.data.sound import SoundTrack
from vdm_jax.data.source import RandomAccessSource, ReadAsIs
from vdm_jax.errors import UserError

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp",
            ".ts")

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@config
class VideoFolder(ReadAsIs):
    """Videos anywhere below a folder, cut into clips that do not overlap, or one clip of each."""

    path: str  # the folder; it is only read
    captions: str | None = None  # CSV file with the columns file (relative to the folder) and caption
    frames: Size = 16  # frames of a clip
    height: Size = 64  # pixels; frames are cut to the aspect ratio as `crop` says, then resized
    width: Size = 64  # pixels
    crop: Crop = "center"  # or "random": cut anywhere; "pad": whole frames with black borders; "squeeze": whole frames
    frame_stride: Size = 1  # every how many-th frame of the file is taken; 1 where `fps` is given
    fps: Positive | None = None  # frames per second to sample at, by timestamps; None: the file's own, by the stride
    clips: Literal["consecutive", "one"] = "consecutive"  # of a file: all that fit, or one that may begin anywhere
    # Files shorter than a clip: left out, or padded with their last frame; `frame_valid` then says which frames exist
    short: Literal["skip", "pad"] = "skip"
    # Folder with a picture for each file, of the same name but for its ending: the clip's `reference_picture`
    references: str | None = None
    # Folder with the vectors of a picture for each file, as 'vdm-jax embed' makes them: the clip's `image_prompt`
    image_prompts: str | None = None
    # Folder with a control map for each file, of the same name but for its ending, a video of as many frames or a
    # picture: the clip's `control`
    controls: str | None = None
    # What is heard in each frame, of the sound in the files or of vectors made beforehand: the clip's `sound`
    sound: SoundTrack | None = None
    fractions: tuple[Share, Share, Share] = (0.9, 0.05, 0.05)  # of the files: train, validation, test
    cache: str | None = None  # folder for frame indexes; None: ~/.cache/vdm_jax/video_index

    def __post_init__(self):
        check_fractions("VideoFolder", self.fractions)
        if self.fps is not None and self.frame_stride != 1:
            raise UserError(f"VideoFolder.frame_stride={self.frame_stride} with fps={self.fps}; permitted: one of them")

    def open(self, split: str, data_dir: Path) -> RandomAccessSource:
        """The clips of one split."""
        return VideoFolderSource(self, split)

    @property
    def padded(self) -> bool:
        """Where short files are padded."""
        return self.short == "pad"


class VideoFolderSource:
    """Random access to the clips of one split; splits share no file. With `short="pad"` clips have `frame_valid` bool
    [T], with `references` `reference_picture` uint8 [1, H, W, 3], with `image_prompts` `image_prompt` float32 [M, C]
    and of hidden states `null_image_prompt`, and with `controls` `control` uint8 [T, H, W, 3] and, where `vdm-jax
    annotate` made them, `control_kind` str; with `sound` `sound` float32 [T, F].

    Files that do not open, have no reference picture, image prompt or control map, or are shorter than a clip (unless
    padded), are left out, logged once and listed with the reason in `skipped`. Without `clip`'s random start, clip i of
    a file begins where clip i - 1 ended.

    Args:
      files: what the clips of each file hold other than video and fps, by name, for sets that come with their own
      lists.
        None: all videos of the folder, split by fractions, with captions from the table.

    Raises:
      UserError: the folder is missing or holds no readable video that is long enough, or the caption table is wrong.
    """

    def __init__(
        self, spec: VideoFolder, split: str = "train", files: Mapping[str, Mapping[str, Any]] | None = None
    ):
        from vdm_jax.video.index_cache import default_cache_folder, index_files

        self.spec, self.split = spec, split
        self.skipped = SkippedFiles()
        self._folder = Path(spec.path).expanduser()
        if files is None:
            every = list_files("VideoFolder", spec.path, SUFFIXES, self.skipped)
            captions = read_captions("VideoFolder", spec.captions, every)
            files = {n: {"caption": captions[n]} for n in files_of_split("VideoFolder", every, split, spec.fractions)}
        names = list(files)
        cache = Path(spec.cache).expanduser() if spec.cache else default_cache_folder()
        digest = hashlib.sha256(str(self._folder.absolute()).encode()).hexdigest()[:16]
        indexes = index_files([self._folder / name for name in names], cache / f"{digest}-{split}.json")
        self._files, self._timelines = [], []
        self._pictures = None if spec.references is None else pictures_below(spec.references, "VideoFolder.references")
        self._vectors = None if spec.image_prompts is None else VectorFolder(spec.image_prompts)
        self._maps = None if spec.controls is None else MapFolder(spec.controls, SUFFIXES, cache)
        if self._maps is not None and spec.fps is None:
            self._maps.check_stride(spec.frame_stride)
        for name, index in zip(names, indexes, strict=True):
            if isinstance(index, str):
                self.skipped.add(name, index)
                continue
            try:
                timeline = _Timeline(index, spec)
            except (ArithmeticError, ValueError) as error:  # time stamps that say nothing
                self.skipped.add(name, f"time stamps without sense ({error})")
                continue
            if self._pictures is not None and stem(name) not in self._pictures:
                self.skipped.add(name, f"no picture {stem(name)}.* in {spec.references}")
                continue
            if self._vectors is not None and (problem := self._vectors.problem(stem(name))):
                self.skipped.add(name, problem)
                continue
            if self._maps is not None and (problem := self._maps.problem(name, len(index))):
                self.skipped.add(name, problem)
                continue
            if spec.sound is not None and (problem := self._unheard(name, index.duration)):
                self.skipped.add(name, problem)
                continue
            if not timeline.clips:
                self.skipped.add(name, f"too short for a clip: {len(index)} frames, {index.duration:.2f} s")
                continue
            self._files.append(name)
            self._timelines.append(timeline)
        if not self._files:
            name, reason = next(iter(self.skipped.items()))
            raise UserError(f"VideoFolder.path={spec.path!r}: none of {len(names)} files of split {split!r} gives a "
                            f"clip of {spec.frames} frames; the first, {name}: {reason}")
        self._facts = [dict(files[name]) for name in self._files]
        self._ends = np.cumsum([timeline.clips for timeline in self._timelines])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._read(index, lambda timeline, window: timeline.frames(window, 0.0))

    def exact(self, index: int) -> dict[str, Any]:
        """Clip `index`, and no other in its place: raises `UserError` where it does not decode."""
        file, window = self._place(index)
        timeline = self._timelines[file]
        return self.skipped.noting(self._files[file], lambda: self._clip(file, timeline.frames(window, 0.0), index))

    def clip(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Clip `index` begun at random between its own start and the next clip's, as far as the file goes."""
        shift = rng.random()
        return self._read(index, lambda timeline, window: timeline.frames(window, shift))

    def frame(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One random frame of clip `index` as a clip with T = 1; only that frame is decoded."""
        share = int(rng.integers(self.spec.frames))
        shift = rng.random() if self.spec.clips == "one" else 0.0  # one clip stands for the whole file

        def one(timeline: _Timeline, window: int) -> np.ndarray:
            numbers = timeline.frames(window, shift)
            return numbers[[share % int((numbers >= 0).sum())]]  # of those that are there

        return self._read(index, one)

    def clip_at(self, index: int, rng: np.random.Generator, fps: float, frames: int) -> dict[str, Any]:
        """`frames` frames at the rate `fps` from anywhere in the file of clip `index`. A file that is too short for it
        is read at the lowest rate at which it is not; the clip's `fps` says which."""
        shift = rng.random()

        def read(number: int) -> dict[str, Any]:
            timeline = self._timelines[number]
            numbers, rate = timeline.at(fps, frames, shift)
            return self._clip(number, numbers, index, rate)

        file, _ = self._place(index)
        return self.skipped.first_readable(file, self._files, read)

    def captions(self) -> Iterator[str]:
        """The caption of every clip, without decoding."""
        for facts, timeline in zip(self._facts, self._timelines, strict=True):
            for _ in range(timeline.clips):
                yield facts["caption"]

    def _read(self, index: int, frames) -> dict[str, Any]:
        """The frames that `frames(timeline, window)` names, of the file and window that clip `index` stands for."""
        file, window = self._place(index)
        return self.skipped.first_readable(file, self._files, lambda number: self._clip(
            number, frames(self._timelines[number], window if number == file else 0), index))

    def _place(self, index: int) -> tuple[int, int]:
        """The file and the window in it that clip `index` stands for."""
        index = in_range(index, len(self))
        file = int(np.searchsorted(self._ends, index, side="right"))
        return file, index - int(self._ends[file]) + self._timelines[file].clips

    def _unheard(self, name: str, duration: float) -> str | None:
        """Why a video has no sound that is as long as it."""
        try:
            return self.spec.sound.check(self._folder, name, duration)
        except UserError as error:
            return str(error)

    def _clip(self, file: int, numbers: np.ndarray, index: int, fps: float | None = None) -> dict[str, Any]:
        """Frames of a file, at a rate that is the timeline's by default, as a clip. Where they are cut at random, that
        is a function of clip, start and file name."""
        numbers, valid = self._timelines[file].existing(numbers)
        seed = hashlib.sha256(f"{self._files[file]}\0{index}\0{numbers[0]}".encode()).digest()
        place = tuple(int.from_bytes(seed[k : k + 4], "big") / (2**32 - 1) for k in (0, 4))
        name, timeline = self._files[file], self._timelines[file]
        video = decode_frames(self._folder / name, timeline.index, numbers, self.spec, place)
        fps = timeline.fps if fps is None else fps
        clip = {"video": video, **self._facts[file], "fps": fps}
        if self.spec.short == "pad":
            clip["frame_valid"] = valid
        if self._pictures is not None:
            picture = fitted(self._pictures[stem(name)], self.spec.height, self.spec.width)
            clip["reference_picture"] = picture[None]
        if self._vectors is not None:
            clip |= self._vectors.fields(stem(name))
        if self._maps is not None:
            clip["control"] = self._maps.frames(name, numbers, self.spec, place)
            if self._maps.record is not None:
                clip["control_kind"] = self._maps.record.kind
        if self.spec.sound is not None:
            seconds = timeline.index.seconds(numbers)
            clip["sound"] = self.spec.sound.of_frames(self._folder, name, seconds, fps, timeline.index.duration)
        return clip


def pictures_below(folder: str, field: str) -> dict[str, Path]:
    """The pictures below a folder, the value of a field, by their names without endings. Raises `UserError` where there
    are none."""
    root = Path(folder).expanduser()
    found = {stem(path.relative_to(root).as_posix()): path for path in sorted(root.rglob("*"))
             if path.suffix.lower() in PICTURES}
    if not found:
        raise UserError(f"{field}={folder!r} has no pictures; permitted: a folder with {', '.join(PICTURES)} files "
                        "named like the videos")
    return found


class _Timeline:
    """Which frames of one file the clips take."""

    def __init__(self, index, spec: VideoFolder):
        self.index, self._length, self._stride, self._rate = index, spec.frames, spec.frame_stride, spec.fps
        if spec.fps is None:
            self.fps = index.fps / spec.frame_stride
            self._step = spec.frames * spec.frame_stride  # between clips, in frames of the file
            self._last = len(index) - ((spec.frames - 1) * spec.frame_stride + 1)  # where the last clip may begin
        else:
            self.fps = float(spec.fps)
            self._step = spec.frames  # in frames at the rate asked for
            self._last = int(index.duration * spec.fps + 1e-6) - spec.frames
        # Frames there are, in frames of the file or at the rate asked for; a short file gives one clip of all of them
        self._there = len(index) if spec.fps is None else max(int(index.duration * spec.fps + 1e-6), 1)
        if spec.short == "pad" and self._last < 0:
            self._last = 0
        if spec.clips == "one":
            self._step = self._last + 1  # a random start may be anywhere

    @functools.cached_property
    def clips(self) -> int:
        """Number of clips that fit."""
        return 0 if self._last < 0 else 1 + self._last // self._step

    def existing(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frame numbers with the last frame in place of those that are not there (-1), and which are there."""
        valid = numbers >= 0
        return np.where(valid, numbers, numbers.max()), valid

    def frames(self, clip: int, shift: float) -> np.ndarray:
        """Frame numbers of a clip whose start is moved by a share, in [0, 1), of the room there is; -1: not there."""
        start = clip * self._step
        start += int(shift * min(self._step, self._last - start + 1))
        numbers = start + np.arange(self._length) * self._stride
        found = numbers if self._rate is None else self.index.at(numbers / self._rate)
        return np.where(numbers < self._there, found, -1)

    def at(self, fps: float, frames: int, shift: float) -> tuple[np.ndarray, float]:
        """Frame numbers of a clip at a rate, begun at a share of the room there is, and the rate."""
        duration = self.index.duration
        rate = max(fps, frames / duration)
        return self.index.at(shift * max(duration - frames / rate, 0.0) + np.arange(frames) / rate), float(rate)
