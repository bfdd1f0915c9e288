"""Vectors of image prompts on disk, so that training does not carry the image encoder: a folder with NAME.npy `[M, C]`
for each picture, as `vdm-jax embed` writes it.

Of a resampler, which reads hidden states, the null value is what the encoder makes of a grey picture; it stands next to
the others. That of summaries is zero.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vdm_jax.errors import UserError
from vdm_jax.video.json_files import read_json

RECORD, NULL = "image_prompts.json", "null_image_prompt.npy"  # in a folder of vectors


@dataclasses.dataclass(frozen=True)
class Made:
    """How the vectors of a folder were made."""

    encoder: str  # folder of the encoder
    hidden: bool
    last: bool = False  # hidden states of the last layer, and not of the one before it


def read_made(folder: Path) -> Made | None:
    """How the vectors of a folder were made; None where it does not say. Raises `UserError` for a damaged record."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        made = Made(**read_json(path))
        if not isinstance(made.encoder, str) or not isinstance(made.hidden, bool) or not isinstance(made.last, bool):
            raise TypeError("encoder, hidden or last")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a readable record of image prompts ({error}); permitted: the file that vdm-jax "
                        "embed writes", "image_prompt.record") from error
    return made


class VectorFolder:
    """The vectors of a folder by the names of videos. Raises `UserError` where it does not exist or its null value is
    damaged."""

    def __init__(self, folder: str):
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise UserError(f"VideoFolder.image_prompts={folder!r} is not a folder; permitted: one that 'vdm-jax "
                            "embed' made of pictures")
        self.null = self._read(NULL) if (self.folder / NULL).is_file() else None

    def problem(self, name: str) -> str | None:
        """Why there are no vectors of a video."""
        try:
            self._read(f"{name}.npy")
        except UserError as error:
            return str(error)
        return None

    def fields(self, name: str) -> dict[str, Any]:
        """Those of a clip: `image_prompt` [M, C] and, where there is one, `null_image_prompt`."""
        null = {} if self.null is None else {"null_image_prompt": self.null}
        return {"image_prompt": self._read(f"{name}.npy"), **null}

    def _read(self, name: str) -> Float[np.ndarray, "M C"]:
        return read_vectors(self.folder / name)


def read_vectors(path: Path) -> Float[np.ndarray, "M C"]:
    """The vectors of a file. Raises `UserError` for a damaged one, and for other arrays."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a damaged file can fail in any way
        raise UserError(f"{path}: not a readable array ({error})", "image_prompt.file") from error
    if array.ndim != 2 or array.dtype.kind != "f" or not array.size:
        raise UserError(f"{path}: {array.dtype} {list(array.shape)}; permitted: floats [M, C]", "image_prompt.file")
    return np.asarray(array, np.float32)
