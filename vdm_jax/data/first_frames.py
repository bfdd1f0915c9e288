"""What an image encoder makes of the first frame of every prepared clip, kept by number: the clips' `image_tokens`.

A folder has one file per split, `SPLIT.npy` float16 `[clips, tokens, channels]`, and next to it `SPLIT.json`, which
says who made them and how many there are. Files are mapped into memory, so they may be larger than it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from vdm_jax.data.source import RandomAccessSource
from vdm_jax.errors import UserError
from vdm_jax.video.json_files import read_json
from vdm_jax.video.writing import atomic_path

if TYPE_CHECKING:
    from vdm_jax.data.picture_encoding import PictureEncoder

FIELD = "image_tokens"  # of a clip


@dataclasses.dataclass(frozen=True)
class Made:
    """How the tokens of a split were made."""

    encoder: str  # folder of the encoder
    clips: int
    bytes: int  # of the file of clips, which another preparation changes
    done: int  # clips whose tokens are there


class FirstFrameTokens:
    """The tokens of the clips of one split, so many in a file of so many bytes. Raises `UserError` where they are
    missing, damaged, unfinished or of other clips."""

    def __init__(self, folder: str, split: str, clips: int, size: int):
        self.path = Path(folder).expanduser() / f"{split}.npy"
        made = _read_made(self.path)
        if made is None:
            raise UserError(f"PreparedClips.image_tokens={folder!r} has no tokens of the split {split!r}; permitted: a "
                            "folder that vdm-jax embed CONFIG --first-frames made")
        if (made.clips, made.done, made.bytes) != (clips, clips, size):
            raise UserError(f"{self.path} has tokens of {made.done} of {made.clips} clips of {made.bytes} bytes for a "
                            f"split of {clips} clips of {size} bytes; permitted: those of all clips as they were "
                            "prepared, by vdm-jax embed CONFIG --first-frames", FIELD)
        if len(self._rows()) != clips:
            raise UserError(f"{self.path} has {len(self._rows())} rows for {clips} clips; make it again", FIELD)

    def fields(self, number: int) -> dict[str, Any]:
        """`image_tokens` float32 [M, C] of a clip."""
        return {FIELD: np.asarray(self._rows()[number], np.float32)}

    def _rows(self) -> Float[np.ndarray, "N M C"]:
        try:
            rows = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # a damaged header can fail in any way
            raise UserError(f"{self.path} is damaged ({error}); make it again", FIELD) from error
        if rows.ndim != 3 or rows.dtype != np.float16:
            raise UserError(f"{self.path}: {rows.dtype} {list(rows.shape)}; permitted: float16 [clips, M, C]", FIELD)
        return rows


def embed_first_frames(
    encoder: PictureEncoder, source: RandomAccessSource, folder: str | Path, split: str, *, size: int,
    batch_size: int = 32, progress: Callable[[int], None] = lambda done: None,
) -> Path:
    """Hidden states before the last layer of the first frame of each clip, in the file of a split, which is returned.
    An interrupted call goes on where it stopped. `size` are the bytes of the file of clips.

    Raises `UserError` for a clip that does not decode, and a file by another encoder or of another number of clips.
    """
    path = Path(folder).expanduser() / f"{split}.npy"
    made = Made(str(encoder.folder.absolute()), len(source), size, 0)
    found = _read_made(path)
    if found is not None:
        if dataclasses.replace(found, done=0) != made:
            raise UserError(f"{path} has tokens of {found.clips} clips of {found.bytes} bytes by {found.encoder}; "
                            f"permitted: a new folder, or {made.clips} clips of {made.bytes} bytes and the same "
                            "encoder", FIELD)
        made = found
    path.parent.mkdir(parents=True, exist_ok=True)
    clip = getattr(source, "exact", source.__getitem__)  # no other in its place: tokens are kept by number
    rows = None
    for start in range(made.done, made.clips, batch_size):
        numbers = range(start, min(start + batch_size, made.clips))
        pictures = [Image.fromarray(clip(number)["video"][0]) for number in numbers]
        tokens = encoder(pictures, hidden=True, rows=batch_size + 1).vectors
        if rows is None:
            shape = (made.clips, *tokens.shape[1:])
            rows = np.lib.format.open_memmap(path, mode="r+" if made.done else "w+", dtype=np.float16, shape=shape)
        rows[numbers.start : numbers.stop] = tokens
        rows.flush()
        made = dataclasses.replace(made, done=numbers.stop)
        with atomic_path(path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(made)) + "\n", encoding="utf-8")
        progress(made.done)
    return path


def encoder_of(folder: str) -> Path | None:
    """The folder of the encoder that made the tokens of training; None where that is not known."""
    made = _read_made(Path(folder).expanduser() / "train.npy") if folder else None
    return None if made is None else Path(made.encoder)


def _read_made(path: Path) -> Made | None:
    """How a file was made; None where there is none. Raises `UserError` for a damaged record."""
    record = path.with_suffix(".json")
    if not record.is_file():
        return None
    try:
        made = Made(**read_json(record))
        if not isinstance(made.encoder, str) or not all(
                type(number) is int for number in (made.clips, made.bytes, made.done)):
            raise TypeError("encoder, clips, bytes or done")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{record} is damaged ({error}); make the tokens again", FIELD) from error
    return made
