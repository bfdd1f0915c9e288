"""Text embeddings made beforehand by any encoder, kept by caption and joined to the clips of any data set.

    data = VideoFolder(path="videos", captions="captions.csv")
    captions = sorted({caption for split in SPLITS for caption in open_source(data, split).captions()})
    write_embeddings("data/bert", captions, (encode(caption) for caption in captions))  # arrays [tokens, width]
    WithEmbeddings(data=data, path="data/bert", length=64)  # what the config says

A set of embeddings is a folder, which appears whole, by renaming, or not at all:

    rows.float16     the vectors of all texts one after the other, little endian [rows, width]
    keys.npy         uint64 [texts], ascending: the first 8 bytes of the SHA-256 of a caption (UTF-8), big endian
    places.npy       int64 [texts, 2]: first row and number of rows (tokens) of each
    metadata.json    version, width, rows, texts, longest, about, encoder

Files are mapped into memory, so a set may be larger than it and is opened at once. The empty caption stands for no
text, for which a network learns a vector of its own; or, where it was trained with what the encoder makes of the empty
text (Stable Diffusion and its kin), for that: `empty` of a set, and `WithEmbeddings(empty="encoded")` to read it.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float16, UInt64

from vdm_jax.configuration import Size, config, from_data, to_data
from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.captions import warn_once
from vdm_jax.data.controlled_digits import ControlledDigits
from vdm_jax.data.digit_beats import DigitBeats
from vdm_jax.data.digit_stories import DigitStories
from vdm_jax.data.image_folder import ImageFolder
from vdm_jax.data.image_shards import ImageShards
from vdm_jax.data.mnist_pictures import MNISTPictures
from vdm_jax.data.published import PublishedVideo
from vdm_jax.data.smmnist import StochasticMovingMNIST
from vdm_jax.data.source import CaptionScorer, RandomAccessSource, random_frame
from vdm_jax.data.tfds_video import TFDSVideo
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.errors import UserError

ROWS, KEYS, PLACES, METADATA = "rows.float16", "keys.npy", "places.npy", "metadata.json"

_VERSION = 1  # of the layout above

# What T5 makes of a text's padding. hidden: it is not seen, and not kept. seen: the text sees it, and it is not kept.
# kept: it is seen, and part of what networks attend to
Padding = Literal["hidden", "seen", "kept"]


@config
class EncoderFolder:
    """A text encoder of CLIP or T5 with its tokenizer, and how it encodes captions."""

    path: str  # folder of a pipeline (text_encoder/ and tokenizer/), or of the encoder with its tokenizer's files
    sha256: str = ""  # of its vectors of weights (`CaptionEncoder.fingerprint`); "": whichever are there
    length: Size | None = None  # tokens of a text at most; None: the model's
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # None: as its weights are stored
    padding: Padding = "hidden"  # of T5; CLIP's own files decide


Clips = (CaptionedDigits | VideoFolder | ImageFolder | ImageShards | PreparedClips | TFDSVideo | PublishedVideo
         | StochasticMovingMNIST | MNISTPictures | DigitStories | ControlledDigits | DigitBeats)


# --- writing --------------------------------------------------------------------------------------------------------


def write_embeddings(
    path: str | Path, captions: Iterable[str], arrays: Iterable[Float[np.ndarray, "L C"]], about: str = "",
    empty: Float[np.ndarray, "M C"] | None = None, encoder: EncoderFolder | None = None,
) -> Path:
    """Writes the embeddings of some captions as a set; returns its folder.

    Args:
      path: a new folder.
      captions: each with an array at the same place of `arrays`. Repeated and empty ones are passed over.
      arrays: `[L, C]`, one vector per token, stored as float16; L as it comes, C always the same.
      about: which encoder made them, for whoever finds the set.
      empty: what that encoder makes of the empty text; None: not known.
      encoder: where it is, so that runs trained on the set can be given captions.

    Raises:
      UserError: the folder exists; there are more captions than arrays, or the other way round; an array is of another
        shape, or has values that float16 cannot hold.
    """
    target = Path(path).expanduser()
    if target.exists():
        raise UserError(f"write_embeddings: {target} exists; permitted: a new folder, or delete this one first")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    partial.mkdir()
    try:
        _write(partial, captions, arrays, about, empty, encoder)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _write(
    folder: Path, captions: Iterable[str], arrays: Iterable[np.ndarray], about: str, empty: np.ndarray | None,
    encoder: EncoderFolder | None,
) -> None:
    places: dict[int, tuple[int, int]] = {}
    width, rows = None, 0
    with open(folder / ROWS, "wb") as file:
        try:
            of_texts = ((caption, array) for caption, array in zip(captions, arrays, strict=True) if caption)
            for caption, array in itertools.chain(of_texts, [] if empty is None else [("", empty)]):
                key = _key(caption)
                if key in places:
                    continue
                vectors = _checked(caption, array, width)
                file.write(vectors.tobytes())
                places[key] = (rows, len(vectors))
                rows, width = rows + len(vectors), vectors.shape[1]
        except ValueError as error:
            if isinstance(error, UserError) or "zip()" not in str(error):
                raise
            raise UserError(f"write_embeddings: {error}; permitted: one array for each caption") from error
    if width is None:
        raise UserError("write_embeddings: no captions; permitted: at least one that is not empty")
    keys = np.array(sorted(places), np.uint64)
    table = np.array([places[int(key)] for key in keys], np.int64)
    np.save(folder / KEYS, keys)
    np.save(folder / PLACES, table)
    metadata = {"version": _VERSION, "width": width, "rows": rows, "texts": len(keys),
                "longest": int(table[:, 1].max()), "about": about,
                "encoder": None if encoder is None else to_data(encoder)}
    (folder / METADATA).write_text(json.dumps(metadata, indent=1, ensure_ascii=False), encoding="utf-8")


def _checked(caption: str, array: np.ndarray, width: int | None) -> Float16[np.ndarray, "L C"]:
    array = np.asarray(array)
    if array.ndim != 2 or not array.size or (width is not None and array.shape[1] != width):
        raise UserError(f"write_embeddings: array {list(array.shape)} for {caption!r}; permitted: "
                        f"[tokens, {width or 'width'}]")
    with np.errstate(over="ignore"):
        vectors = np.ascontiguousarray(array, "<f2")
    if not np.isfinite(vectors).all():
        raise UserError(f"write_embeddings: the array of {caption!r} has values up to {np.abs(array).max()}; "
                        "permitted: finite ones below 65504, as float16 holds")
    return vectors


def _key(caption: str) -> int:
    return int.from_bytes(hashlib.sha256(caption.encode()).digest()[:8], "big")


# --- reading --------------------------------------------------------------------------------------------------------


class TextEmbeddings:
    """A set of embeddings, looked up by caption. Safe to read from threads, and picklable.

    Raises:
      UserError: there is no such set, or it is of another version or damaged.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        try:
            self.metadata = json.loads((self.path / METADATA).read_text(encoding="utf-8"))
            if not isinstance(self.metadata, dict):
                raise ValueError(f"a {type(self.metadata).__name__} instead of an object")
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{self.path} holds no text embeddings ({METADATA}: {error}); permitted: a folder made by "
                            "vdm_jax.data.embeddings.write_embeddings") from error
        if self.metadata.get("version") != _VERSION:
            raise UserError(f"{self.path}: layout version {self.metadata.get('version')}; permitted: {_VERSION}; write "
                            "the set again")
        for name in ("width", "rows", "texts", "longest"):
            value = self.metadata.get(name)
            if type(value) is not int or value < 1:
                raise UserError(f"{self.path / METADATA} is damaged ({name}={value!r}); copy or write the set again")
        self.width, self.longest = self.metadata["width"], self.metadata["longest"]
        rows = self.path / ROWS
        size, expected = rows.stat().st_size if rows.is_file() else 0, 2 * self.metadata["rows"] * self.width
        texts, (keys, places) = self.metadata["texts"], self._table
        right = keys.shape == (texts,) and keys.dtype == np.uint64 and places.shape == (texts, 2) and (
            places.dtype == np.int64)
        if size != expected or not right:
            raise UserError(f"{rows} has {size} bytes instead of {expected}, or its tables are of another set; copy or "
                            "write the set again")

    def __len__(self) -> int:
        return self.metadata["texts"]

    @property
    def encoder(self) -> EncoderFolder | None:
        """The encoder that made them, where the set says it. Raises `UserError` for a damaged entry."""
        data = self.metadata.get("encoder")
        return None if data is None else from_data(EncoderFolder, data, f"{self.path / METADATA}: encoder")

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name not in ("_rows", "_table")}

    def look_up(self, caption: str, length: int) -> tuple[Float16[np.ndarray, "L C"], Bool[np.ndarray, " L"]]:
        """Vectors of a caption, cut or padded with zeros to `length` tokens, and which of them are real: none of the
        empty caption. Raises `UserError` for a caption that the set does not have."""
        if not caption:
            return np.zeros((length, self.width), np.float16), np.zeros(length, bool)
        return self._cut(caption, length)

    def empty(self, length: int) -> tuple[Float16[np.ndarray, "L C"], Bool[np.ndarray, " L"]]:
        """What the encoder makes of the empty text, likewise. Raises `UserError` for a set that does not know it."""
        if (self._find(np.array([_key("")], np.uint64)) < 0).any():
            raise UserError(f"{self.path} does not say what its encoder makes of the empty text; permitted: a set "
                            "written by `vdm-jax embed`, or with empty=... of write_embeddings")
        return self._cut("", length)

    def _cut(self, text: str, length: int) -> tuple[np.ndarray, np.ndarray]:
        vectors, mask = np.zeros((length, self.width), np.float16), np.zeros(length, bool)
        place = self._find(np.array([_key(text)], np.uint64))[0]
        if place < 0:
            raise self._lacks([text])
        start, count = self._table[1][place].tolist()
        if start < 0 or count < 0 or start + count > self.metadata["rows"]:
            raise UserError(f"{self.path / PLACES} is damaged (rows {start} to {start + count} of "
                            f"{self.metadata['rows']}); copy or write the set again")
        count = min(count, length)
        vectors[:count], mask[:count] = self._rows[start : start + count], True
        return vectors, mask

    def batch(
        self, captions: Iterable[str], length: int | None = None
    ) -> tuple[Float16[np.ndarray, "B L C"], Bool[np.ndarray, "B L"]]:
        """`look_up` of several captions; without a length, that of the longest text of the set."""
        found = [self.look_up(caption, self.longest if length is None else length) for caption in captions]
        return np.stack([vectors for vectors, _ in found]), np.stack([mask for _, mask in found])

    def check(self, captions: Iterable[str]) -> None:
        """Raises `UserError` unless the set has all of these captions, empty ones left out."""
        wanted = sorted({caption for caption in captions if caption})
        places = self._find(np.array([_key(caption) for caption in wanted], np.uint64))
        if (places < 0).any():
            raise self._lacks([wanted[i] for i in np.flatnonzero(places < 0)], len(wanted))

    def _lacks(self, captions: list[str], of: int = 1) -> UserError:
        return UserError(f"{self.path} has no embeddings of {len(captions)} of {of} captions, such as {captions[0]!r}; "
                         "permitted: a set written with all captions of the data, character by character")

    def _find(self, keys: UInt64[np.ndarray, " N"]) -> np.ndarray:
        """Places of keys in the table, -1 where there is none."""
        known = self._table[0]
        places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        return np.where(known[places] == keys, places, -1)

    @functools.cached_property
    def _rows(self) -> np.ndarray:
        return np.memmap(self.path / ROWS, "<f2", "r", shape=(self.metadata["rows"], self.width))

    @functools.cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        try:
            return tuple(np.load(self.path / name, mmap_mode="r", allow_pickle=False) for name in (KEYS, PLACES))
        except Exception as error:  # a damaged header can fail in any way
            raise UserError(f"{self.path} is damaged ({error}); copy or write the set again") from error


# --- joined to clips ------------------------------------------------------------------------------------------------


@config
class WithEmbeddings:
    """Any data set whose captions come with embeddings, for networks with `text=EmbeddedText(...)`."""

    data: Clips
    path: str  # folder made by write_embeddings, with all captions of the data
    length: Size = 64  # tokens; shorter texts are padded, longer ones cut, with a warning
    # What a missing or dropped caption is: no vectors, for networks that learn what stands for none; or what the
    # encoder makes of the empty text, with which networks of the Stable Diffusion family were trained
    empty: Literal["none", "encoded"] = "none"

    def open(self, split: str, data_dir: Path) -> RandomAccessSource:
        """The clips of one split with the embeddings of their captions."""
        return WithEmbeddingsSource(self, self.data.open(split, data_dir))

    def clip_shape(self) -> tuple[int, int, int] | None:
        """`(T, H, W)` of the clips of the data set."""
        return self.data.clip_shape()

    @property
    def padded(self) -> bool:
        """As the data set."""
        return self.data.padded

    def prepare(self, data_dir: Path) -> Path | None:
        """Prepares the data set, without embeddings; `vdm-jax embed` writes those."""
        return self.data.prepare(data_dir)

    def stored_bytes(self) -> int:
        """Bytes on disk of what `prepare` writes, at the least."""
        return self.data.stored_bytes()

    def vocabulary(self) -> tuple[str, ...] | None:
        """The closed vocabulary of the data set, if it has one."""
        return self.data.vocabulary()

    def scorer(self) -> CaptionScorer | None:
        """What scores clips of the data set, if anything does."""
        return self.data.scorer()


class WithEmbeddingsSource:
    """The clips of a source with `embeddings` float16 [L, C] and `text_mask` bool [L] of their captions, and, where the
    empty text is encoded, `null_embeddings` and `null_mask` of it.

    Raises:
      UserError: the set of embeddings is missing or damaged, or lacks a caption of the source.
    """

    def __init__(self, spec: WithEmbeddings, source: RandomAccessSource):
        self.spec, self.source, self.texts = spec, source, TextEmbeddings(spec.path)
        self.texts.check(source.captions())
        self._empty = self.texts.empty(spec.length) if spec.empty == "encoded" else None
        if self.texts.longest > spec.length:
            warn_once(f"{spec.path} has texts of up to {self.texts.longest} tokens; only the first {spec.length} are "
                      "read (WithEmbeddings.length)")

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._joined(self.source[index])

    @property
    def clip(self) -> Callable[[int, np.random.Generator], dict[str, Any]]:
        """The source's `clip`; there only where the source has it, which is how the pipeline knows."""
        clip = self.source.clip
        return lambda index, rng: self._joined(clip(index, rng))

    @property
    def clip_at(self) -> Callable[[int, np.random.Generator, float, int], dict[str, Any]]:
        """The source's `clip_at`, likewise."""
        clip_at = self.source.clip_at
        return lambda *arguments: self._joined(clip_at(*arguments))

    def exact(self, index: int) -> dict[str, Any]:
        """Clip `index`, and no other in its place: raises `UserError` where it does not decode."""
        return self._joined(getattr(self.source, "exact", self.source.__getitem__)(index))

    def frame(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One random frame of clip `index` as a clip with T = 1."""
        return self._joined(random_frame(self.source, index, rng))

    def captions(self) -> Iterator[str]:
        """The captions of the source."""
        return self.source.captions()

    @property
    def skipped(self) -> dict[str, str]:
        """Files that the source left out, with the reason."""
        return getattr(self.source, "skipped", {})

    def _joined(self, clip: dict[str, Any]) -> dict[str, Any]:
        caption, empty = clip["caption"], self._empty
        found = self.texts.look_up(caption, self.spec.length) if caption or empty is None else empty
        null = {} if empty is None else {"null_embeddings": empty[0], "null_mask": empty[1]}
        return clip | {"embeddings": found[0], "text_mask": found[1]} | null


def check_embeddings(source: RandomAccessSource, width: int, stage: str) -> None:
    """Raises `UserError` unless the clips have text embeddings as wide as a stage's `EmbeddedText.width`."""
    clip = source[0]
    if "embeddings" not in clip or "text_mask" not in clip:
        raise UserError(f"stage {stage!r} reads texts as embeddings (EmbeddedText.width={width}), and the data set has "
                        "none; permitted: WithEmbeddings(data=..., path=...) around it")
    found = clip["embeddings"].shape[-1]
    if found != width:
        raise UserError(f"stage {stage!r} has EmbeddedText.width={width}, and the embeddings of the data set have "
                        f"width {found}; permitted: EmbeddedText.width={found}, or embeddings of {width}")
