"""CLIP (Radford et al. 2021, arXiv 2103.00020) as a judge: how alike frames are to a text and to each other.

Weights are `model.safetensors` of the folder of transformers that OpenAI publishes. Frames are resized and cropped by
Pillow as the published code does. Arithmetic is float32.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flax import traverse_util
from jaxtyping import Float, UInt8
from PIL import Image

from vdm_jax.configuration import check_value
from vdm_jax.errors import UserError
from vdm_jax.metrics.detectors import weights
from vdm_jax.metrics.detectors.weights import DetectorFile
from vdm_jax.metrics.extraction import Extractor
from vdm_jax.networks.encoders.clip_text import CLIPText, CLIPTextEncoder
from vdm_jax.networks.encoders.clip_vision import PIXEL_MEAN, PIXEL_STD, CLIPVision, CLIPVisionEncoder
from vdm_jax.video.fitting import fit_square
from vdm_jax.weights import model_kinds, tensor_names
from vdm_jax.weights.tokenizers import Tokenizer, clip_tokenizer

ModelName = Literal["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336px"]
_MERGES = DetectorFile(
    name="clip_merges", path="clip/bpe_simple_vocab_16e6.txt.gz", package="clip-anytorch", version="2.6.0",
    sha256="924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """Sizes of a published CLIP and where its weights are."""

    text: CLIPText
    vision: CLIPVision
    file: DetectorFile


def _model(name: str, folder: str, text: int, vision: CLIPVision) -> Model:
    sizes = CLIPText(width=text, layers=12, heads=text // 64, hidden=4 * text, project=vision.project)
    return Model(text=sizes, vision=vision, file=DetectorFile(
        name=f"clip_{name}", path=f"{folder}/model.safetensors", sha256="", url=f"https://huggingface.co/openai/{folder}"))


_BASE = CLIPVision(patch=32, width=768, layers=12, heads=12, hidden=3072, project=512)
MODELS = {
    "ViT-B-32": _model("ViT-B-32", "clip-vit-base-patch32", 512, _BASE),
    "ViT-B-16": _model("ViT-B-16", "clip-vit-base-patch16", 512, dataclasses.replace(_BASE, patch=16)),
    "ViT-L-14": _model("ViT-L-14", "clip-vit-large-patch14", 768, CLIPVision()),
    "ViT-L-14-336px": _model("ViT-L-14-336px", "clip-vit-large-patch14-336", 768, CLIPVision(size=336)),
}


# --- embeddings -----------------------------------------------------------------------------------------------------


def image_embeddings(frames: UInt8[np.ndarray, "N H W 3"], name: ModelName, *, batch_size: int = 32,
                     ) -> Float[np.ndarray, "N D"]:
    """Projected summaries of frames, of any length. Raises `UserError` without weights."""
    size = find_model(name).vision.size
    return _images(name, batch_size)(clip_pixels(frame, size) for frame in frames)


def text_embeddings(texts: Sequence[str], name: ModelName, *, batch_size: int = 32) -> Float[np.ndarray, "N D"]:
    """Projected summaries of texts, of any length. Raises `UserError` without weights or the list of merges."""
    return _texts(name, batch_size)(tokenizer(name)(texts).ids)


def clip_pixels(frame: UInt8[np.ndarray, "H W 3"], size: int) -> Float[np.ndarray, "size size 3"]:
    """A frame as CLIP sees it: `fit_square`, less the mean of CLIP's training pictures, over their deviation."""
    square = fit_square(Image.fromarray(frame), size).astype(np.float32)
    return (square / 255 - PIXEL_MEAN) / PIXEL_STD


def find_model(name: str) -> Model:
    """The model of a name. Raises `UserError` listing the names."""
    check_value(name, ModelName, "clip")
    return MODELS[name]


@functools.lru_cache(maxsize=2)
def _images(name: str, batch_size: int) -> Extractor:
    network = CLIPVisionEncoder(MODELS[name].vision)
    return Extractor(lambda params, images: network.apply({"params": params}, images).pooled,
                     parameters(name)["vision"], batch_size)


@functools.lru_cache(maxsize=2)
def _texts(name: str, batch_size: int) -> Extractor:
    network = CLIPTextEncoder(MODELS[name].text)
    return Extractor(lambda params, tokens: network.apply({"params": params}, tokens).pooled,
                     parameters(name)["text"], batch_size)


# --- files ----------------------------------------------------------------------------------------------------------


def parameters(name: ModelName) -> dict[str, Any]:
    """Trained parameters of the two encoders, `text` and `vision`. Raises `UserError` as `weights.load` does."""
    model = find_model(name)
    return from_published(weights.load(model.file), model)


def tokenizer(name: ModelName) -> Tokenizer:
    """The tokenizer: `merges.txt` of the model's folder in `$VDM_JAX_DETECTORS`, or the published list there or inside
    the package clip-anytorch. Raises `UserError` where neither is."""
    return _tokenizer(merges_file(name), find_model(name).text.length)


def merges_file(name: ModelName) -> Path:
    """The file that `tokenizer` reads."""
    folder = os.environ.get(weights.FOLDER_VARIABLE)
    own = Path(folder) / Path(find_model(name).file.path).parent / "merges.txt" if folder else None
    return own if own and own.is_file() else weights.verified(_MERGES)


@functools.cache
def _tokenizer(path: Path, length: int) -> Tokenizer:
    return clip_tokenizer(path, length)


def from_published(arrays: Mapping[str, np.ndarray], model: Model) -> dict[str, Any]:
    """Parameters from tensors by the names of transformers' `CLIPModel`.

    Raises `UserError` listing tensors that are missing, too many, or of another shape.
    """
    found, wrong = {}, []
    for side, config, mine in (("text", model.text, "text_"), ("vision", model.vision, "vis")):
        table = model_kinds.names(config)
        stored = tensor_names.canonical([name for name in arrays if name.startswith(mine)], table)
        flat = {}
        for path, leaf in model_kinds.shapes(config).items():
            name, shape = tensor_names.their_name(path, table), tensor_names.their_shape(path, leaf.shape)
            array = arrays.get(stored.pop(name, ""))
            if array is None or array.shape != shape:
                wrong.append(f"{name} ({'missing' if array is None else list(array.shape)} instead of {list(shape)})")
                continue
            flat[path] = np.asarray(tensor_names.to_ours(path, array, leaf.shape), np.float32)
        found[side] = traverse_util.unflatten_dict(flat, sep="/")
        wrong += [f"{name} (not known)" for name in stored]
    if wrong:
        raise UserError(f"tensors of {model.file.name} do not fit: {'; '.join(wrong[:4])}"
                        f"{f' and {len(wrong) - 4} more' if len(wrong) > 4 else ''}; permitted: those of its model")
    return found
