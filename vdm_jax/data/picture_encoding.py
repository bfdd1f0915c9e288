"""Pictures to vectors by a released image encoder: what image prompts are (`conditions/image_prompt.py`)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from vdm_jax.configuration import Count
from vdm_jax.data.image_folder import opened
from vdm_jax.data.image_prompts import NULL, RECORD, Made, read_made
from vdm_jax.errors import UserError
from vdm_jax.networks.encoders.clip_vision import PIXEL_MEAN, PIXEL_STD, CLIPVision
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.parallel.rules import batch_parts, batch_sharding
from vdm_jax.video.fitting import fit_square
from vdm_jax.video.writing import atomic_path
from vdm_jax.weights.pretrained import load_pretrained

PART = "image_encoder"  # folder of the encoder in that of a pipeline, or next to the file of an adapter


class ImageVectors(NamedTuple):
    """What an encoder makes of pictures."""

    vectors: Float[np.ndarray, "B M C"]
    null: Float[np.ndarray, "M C"]  # where pictures are left out


class PictureEncoder:
    """The image encoder of a local folder in the layout of transformers, or in `image_encoder/` of it. Raises
    `UserError` for another model."""

    def __init__(self, folder: str | Path, *, dtype: str | None = None, mesh: MeshSpec | None = None):
        folder = Path(folder)
        self.folder = folder / PART if (folder / PART).is_dir() else folder
        self.mesh = make_mesh(mesh or MeshSpec())
        model = load_pretrained(self.folder, CLIPVision, dtype=dtype, mesh=self.mesh)
        self.config = model.config if dtype is None else dataclasses.replace(model.config, dtype=dtype)
        self.params, module = model.params, dataclasses.replace(model, config=self.config).module
        self._encode = jax.jit(lambda params, pixels: module.apply({"params": params}, pixels))

    def width(self, hidden: bool) -> int:
        """Channels of the vectors."""
        return self.config.width if hidden else self.config.project or self.config.width

    def __call__(self, pictures: Sequence[Image.Image], hidden: bool = False, rows: Count | None = None,
                 last: bool = False) -> ImageVectors:
        """The projected summary of each RGB picture, `[B, 1, C]`, or its hidden states before the last layer, with
        `last` after it; `rows` fills the batch up, so that one program serves all batches."""
        pixels = np.stack([_pixels(fit_square(picture, self.config.size)) for picture in pictures])
        parts = batch_parts(self.mesh)
        count = -(-max(rows or 0, len(pixels) + hidden) // parts) * parts
        filled = np.zeros((count, *pixels.shape[1:]), np.float32)  # the last one is grey
        filled[: len(pixels)] = pixels
        with jax.set_mesh(self.mesh):
            found = self._encode(self.params, jax.device_put(filled, batch_sharding(self.mesh)))
        states = found.tokens if last else found.penultimate
        vectors = np.asarray(states if hidden else found.pooled[:, None], np.float32)
        return ImageVectors(vectors[: len(pixels)], vectors[-1] if hidden else np.zeros_like(vectors[0]))


def _pixels(square: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W 3"]:
    return (square.astype(np.float32) / 255 - PIXEL_MEAN) / PIXEL_STD


def rgb(path: Path) -> Image.Image:
    """A picture by Pillow, upright. Raises `UserError` for a file that is none."""
    with opened(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def embed_pictures(
    encoder: PictureEncoder, files: Mapping[str, Path], out: str | Path, *, hidden: bool = False, batch_size: int = 32,
    last: bool = False, progress: Callable[[int], None] = lambda done: None,
) -> Path:
    """The vectors of pictures by their names without endings, in a folder. Those that are there are not made again.

    Raises `UserError` for a picture that cannot be read, and a folder with vectors of another kind.
    """
    out, made = Path(out).expanduser(), Made(str(encoder.folder.absolute()), hidden, last)
    if (found := read_made(out)) not in (None, made):
        raise UserError(f"out={out} has vectors by {found}; permitted: a new folder, or the same encoder")
    out.mkdir(parents=True, exist_ok=True)
    _write(out / RECORD, lambda path: path.write_text(json.dumps(dataclasses.asdict(made)) + "\n", encoding="utf-8"))
    missing = [name for name in files if not (out / f"{name}.npy").is_file()]
    null = None if not hidden or (out / NULL).is_file() else True
    for done, names in _parts(missing, batch_size):
        pictures = [rgb(files[name]) for name in names]
        vectors = encoder(pictures, hidden, rows=batch_size + hidden, last=last)
        if null:
            _save(out / NULL, vectors.null)
            null = None
        for name, array in zip(names, vectors.vectors, strict=True):
            _save(out / f"{name}.npy", array)
        progress(len(files) - len(missing) + done)
    return out


def _parts(names: Sequence[str], size: int) -> Iterator[tuple[int, Sequence[str]]]:
    for begin in range(0, len(names), size):
        part = names[begin : begin + size]
        yield begin + len(part), part


def _save(path: Path, array: np.ndarray) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.save(file, array)

    _write(path, write)


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    with atomic_path(path) as temporary:
        write(temporary)
