"""Video sets of TensorFlow Datasets, already prepared on disk as ArrayRecord, read without TensorFlow.

TFDS names the frames differently in every set, and has splits for few of them; `KNOWN_SETS` says where the things
are. Another set is read by giving `frames_key`. Preparing an official set needs TensorFlow and a download and is not
done here.
Every item is decoded whole to cut one clip from it: for training at length, prepare the clips once more with
`array_record.prepare_clips`.
"""

import dataclasses
import functools
import importlib.util
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, TypeVar

import numpy as np

from vdm_jax.configuration import SPLITS, Positive, Size, Split, check_value, config
from vdm_jax.data.folder import Numbered, SkippedFiles, in_range
from vdm_jax.data.record_files import MAX_CHUNK_BYTES, check_record_file
from vdm_jax.data.source import RandomAccessSource, ReadAsIs
from vdm_jax.data.tfds_files import check_descriptions
from vdm_jax.errors import UserError
from vdm_jax.video.strides import stride_for

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class KnownSet:
    """Where a set keeps what, with `/` between the levels of nested features, and what serves as each split."""

    frames: str
    splits: tuple[str, str, str]  # train, validation, test, as TFDS writes them
    caption: str | None = None
    label: str | None = None


_OWN_TEST = ("train[:95%]", "train[95%:]", "test")
_OWN_VALIDATION = ("train[:95%]", "train[95%:]", "validation")


def _parts_of(split: str) -> tuple[str, str, str]:
    return (f"{split}[:90%]", f"{split}[90%:95%]", f"{split}[95%:]")


KNOWN_SETS = {
    "ucf101": KnownSet("video", _OWN_TEST, label="label"),
    "bair_robot_pushing_small": KnownSet("image_main", _OWN_TEST),
    "moving_mnist": KnownSet("image_sequence", _parts_of("test")),
    "robonet": KnownSet("video", _parts_of("train")),
    "starcraft_video": KnownSet("rgb_screen", ("train", "validation", "test")),
    "davis": KnownSet("video/frames", _OWN_VALIDATION),
    "webvid": KnownSet("video", _OWN_VALIDATION, caption="caption"),
}


@config
class TFDSVideo(ReadAsIs):
    """One clip per item of a prepared TFDS video set."""

    name: str  # as TFDS has it: name, name/config or name/config:version
    data_dir: str | None = None  # the TFDS data folder; None: TFDS's own default (~/tensorflow_datasets)
    frames: Size = 16  # frames of a clip
    height: Size = 64  # pixels; frames are cut centrally to the aspect ratio, then resized
    width: Size = 64  # pixels
    frame_stride: Size = 1  # every how many-th frame of the item is taken
    fps: Positive | None = None  # frames per second that a clip claims, after the stride; None: unknown
    short_items: Literal["error", "repeat"] = "error"  # items with too few frames: refuse, or hold the last frame
    splits: tuple[str, str, str] | None = None  # TFDS splits for train, validation, test; None: as KNOWN_SETS says
    frames_key: str | None = None  # feature that holds the frames, `/` between levels; None: as KNOWN_SETS says
    caption_key: str | None = None  # feature with the text; None: as KNOWN_SETS says
    label_key: str | None = None  # class label, whose name is the caption if there is no text; None: likewise

    def __post_init__(self):
        if self.frames_key is None and self.name.split("/")[0].split(":")[0] not in KNOWN_SETS:
            raise UserError(f"TFDSVideo.name={self.name!r} without frames_key; permitted: {', '.join(KNOWN_SETS)}, or "
                            "another set with frames_key")

    def open(self, split: str, data_dir: Path) -> RandomAccessSource:
        """The clips of one split."""
        return TFDSVideoSource(self, split)

    def fields(self) -> KnownSet:
        """Where the things are: what the config gives, else what is known of the set."""
        known = KNOWN_SETS.get(self.name.split("/")[0].split(":")[0], KnownSet("", ("train", "validation", "test")))
        return KnownSet(
            frames=self.frames_key or known.frames,
            splits=self.splits or known.splits,
            caption=self.caption_key or known.caption,
            label=self.label_key or known.label,
        )


class TFDSVideoSource:
    """Random access to one split. A clip is the beginning of an item; `clip` and `frame` begin at random.

    Clips have `caption` (the text, or the name of the class in words) and, where the set has classes, `label`.

    Items that do not decode are logged once and listed with the reason in `skipped`; the next one takes their place.

    Raises:
      UserError: the set is not prepared as ArrayRecord (names the folder looked in and how to prepare it), a split or
        feature does not exist, an item is too short.
    """

    def __init__(self, spec: TFDSVideo, split: str = "train"):
        check_value(split, Split, "split")
        self.spec, self.split, self._fields = spec, split, spec.fields()
        self.skipped = SkippedFiles()
        check_records(self._builder, self._tfds_split)
        self._length = len(self._items)
        if not self._length:
            raise UserError(f"TFDSVideo.name={spec.name!r}: split {self._tfds_split!r} is empty")
        _, first = self._first_readable(0, self._stored)
        for key in (self._fields.frames, self._fields.caption, self._fields.label):
            if key is not None:
                self._feature(first, key)
        self._classes = self._class_names() if self._fields.label else None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._clip(index, self.spec.frames, lambda room: 0)

    def exact(self, index: int) -> dict[str, Any]:
        """The beginning of item `index`, and of no other in its place: raises `UserError` where it does not decode."""
        number = in_range(index, len(self))
        item = self.skipped.noting(self._names[number], lambda: self._whole(number))
        return self._cut(number, item, self.spec.frames, lambda room: 0)

    def clip(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A clip that begins anywhere in item `index`."""
        return self._clip(index, self.spec.frames, lambda room: int(rng.integers(room + 1)))

    def frame(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One random frame of item `index` as a clip with T = 1."""
        return self._clip(index, 1, lambda room: int(rng.integers(room + 1)))

    def clip_at(self, index: int, rng: np.random.Generator, fps: float, frames: int) -> dict[str, Any]:
        """`frames` frames from anywhere in item `index`, by the stride that comes nearest to the rate `fps`."""
        return self._clip(index, frames, lambda room: int(rng.integers(room + 1)), fps)

    def captions(self) -> Iterator[str]:
        """The captions there are: the names of the classes, once each, or the text of every item (reads them all)."""
        if self._fields.caption is None:
            yield from self._classes or ()
            return
        for index in range(len(self)):
            yield self._caption(self._first_readable(index, self._whole)[1])

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name not in ("_items", "_builder")}

    # --- TFDS -------------------------------------------------------------------------------------------------------

    @property
    def _tfds_split(self) -> str:
        return self._fields.splits[SPLITS.index(self.split)]

    @functools.cached_property
    def _builder(self):
        return _find_builder(self.spec.name, self.spec.data_dir)

    @functools.cached_property
    def _items(self):
        return _open_items(self._builder, self.spec.name, self._tfds_split)

    @property
    def _names(self) -> Numbered:
        return Numbered(f"{self.spec.name} {self._tfds_split} item", len(self))

    def _first_readable(self, number: int, read: Callable[[int], T]) -> tuple[int, T]:
        """Number and content of the first item from one on that `read` takes."""
        return self.skipped.first_readable(number, self._names, lambda k: (k, read(k)))

    def _stored(self, number: int) -> dict[str, Any]:
        """An item as TFDS decodes it. Raises `UserError` for one that does not decode."""
        try:
            return self._items[number]
        except Exception as error:  # a damaged record can fail in any way
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UserError(f"does not decode ({reason})") from error

    def _whole(self, number: int) -> dict[str, Any]:
        """An item whose frames, caption and label are what clips can be made of. Raises `UserError` for others."""
        item = self._stored(number)
        frames = self._feature(item, self._fields.frames)
        shapes = {np.shape(frame) for frame in frames}
        if any(len(shape) != 3 or not all(shape) or shape[-1] not in (1, 3) for shape in shapes) or any(
                np.asarray(frame).dtype != np.uint8 for frame in frames):
            raise UserError(f"frames of {', '.join(map(str, sorted(shapes)))}; permitted: uint8 [H, W, 3] or [H, W, 1]")
        self._caption(item)
        return item

    def _class_names(self) -> tuple[str, ...]:
        feature = self._builder.info.features
        for level in self._fields.label.split("/"):
            feature = feature[level]
        if getattr(feature, "names", None) is None:
            raise UserError(f"TFDSVideo.label_key={self._fields.label!r} of {self.spec.name!r} is no class label; "
                            "permitted: a ClassLabel feature with names")
        return tuple(in_words(name) for name in feature.names)

    def _feature(self, item: Any, key: str) -> Any:
        """What an item holds under a key whose levels are separated by `/`."""
        for level in key.split("/"):
            if not isinstance(item, dict) or level not in item:
                found = ", ".join(item) if isinstance(item, dict) else "no further level"
                raise UserError(f"TFDSVideo.name={self.spec.name!r}: no feature {level!r} of {key!r}; "
                                f"permitted: {found}")
            item = item[level]
        return item

    # --- clips ------------------------------------------------------------------------------------------------------

    def _clip(self, index: int, frames: int, begin, rate: float | None = None) -> dict[str, Any]:
        number, item = self._first_readable(in_range(index, len(self)), self._whole)
        return self._cut(number, item, frames, begin, rate)

    def _cut(self, number: int, item: Any, frames: int, begin, rate: float | None = None) -> dict[str, Any]:
        """Frames of an item from the one that `begin(room there is)` names, at a stride or the rate nearest to one."""
        from vdm_jax.video.fitting import fit_frame

        spec = self.spec
        stored = self._feature(item, self._fields.frames)
        stride, fps = spec.frame_stride, spec.fps
        if rate is not None:
            if fps is None:
                raise UserError(f"TFDSVideo.fps=None of {spec.name!r}, which is to be read at other rates; permitted: "
                                "the rate of its clips")
            stride = stride_for(f"TFDSVideo.name={spec.name!r}, item {number}", fps * stride, rate, frames, len(stored))
            fps = fps * spec.frame_stride / stride
        span = (frames - 1) * stride + 1
        if len(stored) < span and spec.short_items == "error" or not len(stored):
            raise UserError(f"TFDSVideo.name={spec.name!r}: item {number} of split {self._tfds_split!r} has "
                            f"{len(stored)} frames, a clip needs {span}; permitted: fewer frames, or "
                            "short_items='repeat'")
        start = begin(max(len(stored) - span, 0))
        numbers = np.minimum(start + np.arange(frames) * stride, len(stored) - 1)
        video = np.stack([fit_frame(stored[n], spec.height, spec.width) for n in numbers])
        clip = {"video": video, "caption": self._caption(item)}
        if self._fields.label:
            clip["label"] = int(self._feature(item, self._fields.label))
        if fps is not None:
            clip["fps"] = float(fps)
        return clip

    def _caption(self, item: Any) -> str:
        if self._fields.caption:
            text = self._feature(item, self._fields.caption)
            try:
                return text.decode() if isinstance(text, bytes) else str(text)
            except UnicodeDecodeError as error:
                raise UserError(f"a caption that is not UTF-8 ({error})") from error
        label = int(self._feature(item, self._fields.label)) if self._fields.label else 0
        if self._fields.label and not 0 <= label < len(self._classes):
            raise UserError(f"label {label}; permitted: 0 to {len(self._classes) - 1}")
        return self._classes[label] if self._fields.label else ""


def open_tfds_items(name: str, data_dir: str | None, split: str) -> Sequence[dict[str, Any]]:
    """The items of one split of any prepared set, as TFDS gives them. Raises `UserError` as `TFDSVideoSource` does."""
    builder = _find_builder(name, data_dir)
    check_records(builder, split)
    return _open_items(builder, name, split)


def check_records(builder: Any, split: str) -> None:
    """Raises `UserError` for a record file of a split that is damaged, cut off or has absurd sizes."""
    try:
        parts = builder.info.splits[split].file_instructions
    except (LookupError, ValueError):  # no such split, which `_open_items` says
        return
    for path in sorted({Path(str(part.filename)) for part in parts}):
        if path.exists():
            check_record_file(path, MAX_CHUNK_BYTES)


def _find_builder(name: str, data_dir: str | None) -> Any:
    try:
        tfds = _import_tfds()
        check_descriptions(name, data_dir)
        return tfds.builder(name, data_dir=data_dir)
    except UserError:
        raise
    except Exception as error:  # TFDS goes on to list everything it has; damaged files can fail in any way
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"TFDSVideo.name={name!r} with data_dir={data_dir!r}: {reason}") from error


def _open_items(builder: Any, name: str, split: str) -> Sequence[dict[str, Any]]:
    try:
        return builder.as_data_source(split=split)
    except (NotImplementedError, AssertionError, FileNotFoundError, KeyError) as error:
        call = f"tfds.builder({name!r}, data_dir=...).download_and_prepare(file_format='array_record')"
        raise UserError(f"TFDSVideo.name={name!r}: {builder.data_dir} holds no set prepared as array_record; "
                        "permitted: prepare it with `pip install vdm_jax[prepare-official-sets]` and "
                        f"{call}") from error
    except ValueError as error:
        there = ", ".join(builder.info.splits) or "unknown"
        raise UserError(f"TFDSVideo.name={name!r}: split {split!r} cannot be read; permitted: parts of {there}; set "
                        "TFDSVideo.splits") from error


def in_words(name: str) -> str:
    """A class name as lower-case words: `ApplyEyeMakeup` and `apply_eye_makeup` are 'apply eye makeup'."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_+", " ", name).lower()


@functools.cache
def _import_tfds():
    """TFDS with its video sets registered, able to read the Video feature where TensorFlow is absent.

    The constructor of that feature asks TensorFlow for nothing but the names of two number types.
    """
    import tensorflow_datasets as tfds
    import tensorflow_datasets.core.features.tensor_feature as tensor_feature
    import tensorflow_datasets.core.features.video_feature as video_feature
    import tensorflow_datasets.image_classification.mnist  # noqa: F401  (registers the digits of Moving MNIST)
    import tensorflow_datasets.video  # noqa: F401  (registers the builders)

    if importlib.util.find_spec("tensorflow") is None:
        video_feature.tf = SimpleNamespace(
            dtypes=SimpleNamespace(as_dtype=lambda kind: np.dtype(kind).type), uint8=np.uint8, uint16=np.uint16
        )
    tensor_feature.zlib = SimpleNamespace(compress=zlib.compress, decompress=_unpacked)
    return tfds


def _unpacked(data: bytes) -> bytes:
    """`zlib.decompress`, of no more than a record may have: a small one can hold any amount of zeros."""
    unpacker = zlib.decompressobj()
    found = unpacker.decompress(data, MAX_CHUNK_BYTES)
    if not unpacker.eof:
        raise UserError(f"cut off, or more than {MAX_CHUNK_BYTES} bytes unpacked; permitted: whole records")
    return found
