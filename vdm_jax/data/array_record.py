"""Clips prepared once into ArrayRecord files: the fastest thing to train from.

A prepared set is a folder with one folder per split, each holding

    clips.array_record   one record per clip: the length of a JSON header (4 bytes, little endian), the header
                         (caption, fps, ..., lengths of the parts), the parts (raw pixels, jpeg frames, or one mp4)
    captions.json        the captions in the order of the clips
    metadata.json        sizes, format, number of clips, number of clips that did not decode, bytes of the record file,
                         files skipped; written last

A split's folder appears whole, by renaming, or not at all. Natural video of 16x64x64, read by 4 threads on 2 cores:
'raw' 124 KB and 1200 clips/s, 'jpeg' 48 KB and 360, 'mp4' 9 KB and 260 (and 20 from the original files).
"""

import collections
import functools
import io
import json
import math
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from jaxtyping import UInt8

from vdm_jax.configuration import Count, check_value, config
from vdm_jax.data.first_frames import FirstFrameTokens
from vdm_jax.data.folder import Numbered, SkippedFiles, in_range
from vdm_jax.data.record_files import check_record_file
from vdm_jax.data.source import RandomAccessSource, ReadAsIs
from vdm_jax.errors import UserError
from vdm_jax.video.strides import clip_by_stride

T = TypeVar("T")
ClipFormat = Literal["raw", "jpeg", "mp4"]

RECORDS, CAPTIONS, METADATA = "clips.array_record", "captions.json", "metadata.json"
JPEG_QUALITY = 95
MP4_CRF = 18

MAX_CLIP_BYTES = 2**33  # of the pixels of one clip

_VERSION = 1  # of the layout above
_DAMAGE = (RuntimeError, LookupError, ValueError, TypeError, ArithmeticError)  # what reading a damaged record can raise
# Neighbours in a group would be read together at random access; coded video does not compress further.
_WRITER_OPTIONS = {"raw": "group_size:1", "jpeg": "group_size:1,uncompressed", "mp4": "group_size:1,uncompressed"}


# --- writing --------------------------------------------------------------------------------------------------------


def prepare_clips(
    source: RandomAccessSource,
    path: str | Path,
    split: str = "train",
    format: ClipFormat = "raw",
    progress: Callable[[int, int], None] | None = None,
    workers: int = 1,
) -> Path:
    """Writes every clip of a source to `path/split` once; returns that folder. `PreparedClips(path=path)` reads it.

    Clips that do not decode are left out, never replaced by others: `metadata` has their number and the files' names.

    Args:
      progress: called with (clips done, clips in all) after every clip.
      workers: threads that decode and encode; what is written does not depend on them.

    Raises:
      UserError: the folder exists, the source is empty, none of its clips decodes, its clips differ in shape, or hold
        arrays other than `video`; the folder cannot be written. Then nothing is left of it.
    """
    check_value(format, ClipFormat, "format")
    check_value(workers, Count, "workers")
    target = Path(path).expanduser() / split
    if target.exists():
        raise UserError(f"prepare_clips: {target} exists; permitted: a new folder, or delete this one first")
    if not len(source):
        raise UserError("prepare_clips: the source has no clips")
    partial = target.with_name(f".{split}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)  # left by a preparation that was killed
        partial.mkdir()
        _write(source, partial, format, progress, workers)
        partial.rename(target)
    except OSError as error:
        raise UserError(f"prepare_clips: {target} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _write(source, folder: Path, format: str, progress, workers: int) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    captions, shape, fps, total, reasons = [], None, None, len(source), []
    writer = ArrayRecordWriter(str(folder / RECORDS), _WRITER_OPTIONS[format])
    try:
        for number, found in enumerate(_in_order(lambda n: _record(source, n, format), total, workers)):
            if isinstance(found, DamagedClip):
                reasons.append(str(found))
            else:
                record, clip_shape, clip_fps, caption = found
                if shape is None:
                    shape, fps = clip_shape, clip_fps
                if clip_shape != shape:
                    raise UserError(f"prepare_clips: clip {number} is uint8 {list(clip_shape)}; permitted: uint8 "
                                    f"{list(shape)} like the first")
                writer.write(record)
                captions.append(caption)
            if progress is not None:
                progress(number + 1, total)
    except RuntimeError as error:  # of the writer: a full disk
        raise UserError(f"prepare_clips: {folder / RECORDS} cannot be written: {error}") from error
    finally:
        writer.close()
    if shape is None:
        raise UserError(f"prepare_clips: none of {total} clips decodes; the first: {reasons[0]}")
    (folder / CAPTIONS).write_text(json.dumps(captions, ensure_ascii=False), encoding="utf-8")
    frames, height, width, _ = shape
    metadata = {
        "version": _VERSION, "clips": len(captions), "skipped_clips": len(reasons), "frames": frames, "height": height,
        "width": width, "fps": fps, "format": format, "bytes": (folder / RECORDS).stat().st_size,
        "skipped": dict(getattr(source, "skipped", {})),
    }
    (folder / METADATA).write_text(json.dumps(metadata, indent=1, ensure_ascii=False), encoding="utf-8")


class DamagedClip(Exception):
    """A clip that does not decode, and why."""


def _record(source, number: int, format: str) -> tuple[bytes, tuple[int, ...], float | None, str] | DamagedClip:
    """The record of a clip, its shape, rate and caption; or why it does not decode."""
    try:
        clip = getattr(source, "exact", source.__getitem__)(number)
    except UserError as error:
        return DamagedClip(str(error))
    lost = [name for name in clip if name in ("frame_valid", "control", "sound") or name.startswith("reference_")]
    if lost:
        raise UserError(f"prepare_clips: clips have {', '.join(lost)}, which records do not hold; permitted: "
                        "VideoFolder(short='skip', references=None, controls=None, sound=None)")
    video = np.asarray(clip["video"])
    if video.dtype != np.uint8 or video.ndim != 4:
        raise UserError(f"prepare_clips: clip {number} is {video.dtype} {list(video.shape)}; permitted: uint8 "
                        "[T, H, W, 3]")
    return _encode(clip, video, format, number), video.shape, clip.get("fps"), clip["caption"]


def _in_order(work: Callable[[int], T], count: int, workers: int) -> Iterator[T]:
    """`work(0), work(1), ...` by some threads, of which no more than two each are under way or waiting."""
    with ThreadPoolExecutor(workers) as pool:
        waiting = collections.deque(pool.submit(work, number) for number in range(min(2 * workers, count)))
        try:
            for number in range(len(waiting), count + len(waiting)):
                found = waiting.popleft().result()
                if number < count:
                    waiting.append(pool.submit(work, number))
                yield found
        finally:
            for future in waiting:
                future.cancel()


def _encode(clip: dict[str, Any], video: np.ndarray, format: str, number: int) -> bytes:
    header = {}
    for name, value in clip.items():
        if name == "video":
            continue
        value = value.item() if isinstance(value, np.generic) else value
        if not isinstance(value, str | int | float):
            raise UserError(f"prepare_clips: clip {number} has {name!r} of type {type(value).__name__}; permitted: "
                            "video, text and numbers")
        header[name] = value
    parts = _encode_video(video, format, clip.get("fps", 1.0))
    text = json.dumps({"clip": header, "parts": [len(part) for part in parts]}).encode()
    return b"".join([len(text).to_bytes(4, "little"), text, *parts])


def _encode_video(video: np.ndarray, format: str, fps: float) -> list[bytes]:
    if format == "raw":
        return [video.tobytes()]
    if format == "mp4":
        from vdm_jax.video.writing import encode_mp4

        file = io.BytesIO()
        encode_mp4(file, video, fps, crf=MP4_CRF)
        return [file.getvalue()]
    from PIL import Image

    parts = []
    for frame in video:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, format="JPEG", quality=JPEG_QUALITY)
        parts.append(file.getvalue())
    return parts


# --- reading --------------------------------------------------------------------------------------------------------


@config
class PreparedClips(ReadAsIs):
    """Clips written by `prepare_clips`."""

    path: str  # the folder that holds the folders of the splits
    # Folder of what an image encoder makes of first frames (vdm-jax embed CONFIG --first-frames), for networks that
    # read image tokens; "": clips come without
    image_tokens: str = ""

    def open(self, split: str, data_dir: Path) -> RandomAccessSource:
        """The clips of one split."""
        return PreparedClipsSource(self, split)

    def clip_shape(self) -> tuple[int, int, int] | None:
        """`(T, H, W)` as recorded for the training split; None where that is not here."""
        path = Path(self.path).expanduser() / "train" / METADATA
        if not path.is_file():
            return None
        about = json.loads(path.read_text(encoding="utf-8"))
        return about["frames"], about["height"], about["width"]


class PreparedClipsSource:
    """Random access to one prepared split.

    `metadata` is what was recorded at preparation: clips, frames, height, width, fps, format, skipped.
    Clips whose record is damaged are logged once and listed with the reason in `skipped`; the next one takes their
    place.

    Raises:
      UserError: the split is missing, of another version, or its record file is truncated.
    """

    def __init__(self, spec: PreparedClips, split: str = "train"):
        self.spec, self.split, self.skipped = spec, split, SkippedFiles()
        self._folder = Path(spec.path).expanduser() / split
        self.metadata = self._load(METADATA)
        version = self.metadata.get("version") if isinstance(self.metadata, dict) else None
        if version != _VERSION:
            raise UserError(f"{self._folder}: layout version {version}; permitted: {_VERSION}; prepare the set again")
        self._check_metadata()
        records = self._folder / RECORDS
        size = records.stat().st_size if records.is_file() else 0
        if size != self.metadata["bytes"]:
            raise UserError(f"{records} has {size} bytes instead of {self.metadata['bytes']}: it is truncated or "
                            "damaged; copy or prepare the set again")
        check_record_file(records, most=2 * self._clip_bytes + 2**20)
        tokens = spec.image_tokens
        self._tokens = FirstFrameTokens(tokens, split, len(self), size) if tokens else None

    def __len__(self) -> int:
        return self.metadata["clips"]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.skipped.first_readable(in_range(index, len(self)), self._names, self._read)

    def exact(self, index: int) -> dict[str, Any]:
        """Clip `index`, and no other in its place: raises `UserError` where its record is damaged."""
        number = in_range(index, len(self))
        return self.skipped.noting(self._names[number], lambda: self._read(number))

    def clip_at(self, index: int, rng: np.random.Generator, fps: float, frames: int) -> dict[str, Any]:
        """`frames` frames from anywhere in clip `index`, by the stride that comes nearest to the rate `fps`. Raises
        `UserError` where clips have tokens of their first frames."""
        if self._tokens is not None:
            raise UserError(f"PreparedClips.image_tokens={self.spec.image_tokens!r} with Training.frame_rates, whose "
                            "clips begin anywhere; permitted: one of them")
        return clip_by_stride(f"PreparedClips.path={self.spec.path!r}", self[index], fps, frames, rng)

    def captions(self) -> Iterator[str]:
        """The caption of every clip, without reading the clips."""
        found = self._load(CAPTIONS)
        if not isinstance(found, list) or len(found) != len(self) or not all(isinstance(text, str) for text in found):
            raise UserError(f"{self._folder / CAPTIONS} is no list of {len(self)} texts; copy or prepare the set again")
        yield from found

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_records"}

    @functools.cached_property
    def _records(self):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        return ArrayRecordDataSource([str(self._folder / RECORDS)])

    @property
    def _clip_bytes(self) -> int:
        """Size of the pixels of a clip."""
        return math.prod(self.metadata[name] for name in ("frames", "height", "width")) * 3

    def _check_metadata(self) -> None:
        whole = {name: self.metadata.get(name) for name in ("clips", "frames", "height", "width", "bytes")}
        wrong = [name for name, value in whole.items() if type(value) is not int or value < 1]
        if self.metadata.get("format") not in get_args(ClipFormat):
            wrong.append("format")
        elif not wrong and self._clip_bytes > MAX_CLIP_BYTES:
            wrong += ["frames", "height", "width"]
        if wrong:
            raise UserError(f"{self._folder / METADATA} is damaged ({wrong[0]}={self.metadata.get(wrong[0])!r}); copy "
                            "or prepare the set again")

    @property
    def _names(self) -> Numbered:
        return Numbered(f"{self._folder / RECORDS}, clip", len(self))

    def _read(self, index: int) -> dict[str, Any]:
        """The clip of a record. Raises `UserError` for one that is damaged."""
        try:
            header, parts = self._parts(index)
            shape = tuple(self.metadata[name] for name in ("frames", "height", "width"))
            video = self._decoded(parts, shape)
            if video.shape != (*shape, 3):
                raise UserError(f"video {list(video.shape)}; permitted: {[*shape, 3]}")
        except (*_DAMAGE, MemoryError) as error:
            raise UserError(f"unreadable ({error})") from error
        return {"video": video, **header["clip"], **({} if self._tokens is None else self._tokens.fields(index))}

    def _load(self, name: str) -> Any:
        path = self._folder / name
        if not path.is_file():
            there = sorted(p.parent.name for p in self._folder.parent.glob(f"*/{METADATA}"))
            raise UserError(
                f"{self._folder} holds no prepared clips ({name} is missing); permitted: a split of "
                f"{self._folder.parent} ({', '.join(there) or 'it has none'}), made by vdm-jax prepare SOURCE --out "
                f"{self._folder.parent}")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({error}); copy or prepare the set again") from error

    def _parts(self, index: int) -> tuple[dict[str, Any], list[memoryview]]:
        """What a record says of its clip, and its parts: as many and as long as the format has them."""
        record = memoryview(self._records[index])
        start = 4 + int.from_bytes(record[:4], "little")
        header = json.loads(bytes(record[4:start]))
        lengths, facts = header["parts"], header["clip"]
        known = isinstance(facts, dict) and isinstance(facts.get("caption"), str) and "video" not in facts
        if not known or not all(isinstance(value, str | int | float) for value in facts.values()):
            raise ValueError("its header is none of a clip")
        wanted = self.metadata["frames"] if self.metadata["format"] == "jpeg" else 1
        if len(lengths) != wanted or min(lengths) < 0 or start + sum(lengths) != len(record):
            raise ValueError("its parts are not as long as it says")
        ends = start + np.cumsum([0, *lengths])
        return header, [record[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]

    def _decoded(self, parts: list[memoryview], shape: tuple[int, int, int]) -> UInt8[np.ndarray, "T H W 3"]:
        frames, height, width = shape
        if self.metadata["format"] == "raw":
            # A copy, because arrays over the bytes of a record are read-only.
            return np.frombuffer(parts[0], np.uint8).reshape(frames, height, width, 3).copy()
        if self.metadata["format"] == "jpeg":
            return np.stack([_jpeg(part, height, width) for part in parts])
        from vdm_jax.video.frame_index import FrameIndex
        from vdm_jax.video.reading import VideoReader

        with VideoReader(io.BytesIO(parts[0]), FrameIndex.counted(frames)) as reader:
            return reader.frames(range(frames))[:, :height, :width]  # odd sizes were padded to even


def _jpeg(part: memoryview, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    from vdm_jax.data.image_folder import opened

    with opened(io.BytesIO(part)) as image:
        if image.size != (width, height):
            raise UserError(f"a frame of {image.height}x{image.width}; permitted: {height}x{width}")
        return np.asarray(image.convert("RGB"))
