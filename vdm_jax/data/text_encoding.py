"""Captions to embeddings by a released text encoder, once and for all, so that training does not carry the encoder."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from vdm_jax.data.embeddings import EncoderFolder, Padding, TextEmbeddings, write_embeddings
from vdm_jax.errors import UserError
from vdm_jax.networks.encoders.clip_text import CLIPText
from vdm_jax.networks.encoders.t5 import T5Encoder
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.parallel.rules import batch_parts, batch_sharding
from vdm_jax.weights.pretrained import Pretrained, describe, load_pretrained
from vdm_jax.weights.tensor_files import read_json
from vdm_jax.weights.tokenizers import Tokenizer, cleaned, open_tokenizer

log = logging.getLogger(__name__)

PART = 4096  # captions that are encoded before they are safe on disk
INDEX = "model_index.json"  # of a pipeline's folder
# Class of a pipeline whose network was trained otherwise -> how
PADDING: dict[str, Padding] = {
    "CogVideoXPipeline": "kept", "LTXImageToVideoPipeline": "seen", "LTXPipeline": "seen"}


def padding_of(folder: Path) -> Padding:
    """Of the pipeline in a folder; that of T5 where there is none."""
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    return PADDING.get(str(index.get("_class_name")), "hidden")


class CaptionEncoder:
    """The text encoder of a local folder, with its tokenizer, over all devices. Texts of UMT5 are cleaned first, as Wan
    cleans its prompts; T5 sees padding, and keeps it, where the folder is of a pipeline that was trained so
    (`PADDING`).

    Args:
      folder: a pipeline in the layout of diffusers (`text_encoder/` and `tokenizer/`), or a text encoder in that of
        transformers, with the tokenizer's files next to it.
      length: tokens of a text at most; None: those of the model (CLIP) or of its tokenizer's files (T5).
      dtype: of weights and activations, such as "bfloat16"; None: as the weights are stored, computed in float32.
      mesh: over which weights and texts are split; None: texts over all devices.

    Raises:
      UserError: what is there is not a text encoder of CLIP, T5 or UMT5 with its tokenizer; with the call, ftfy is
        missing, by which UMT5 reads texts with more than visible ASCII.
    """

    def __init__(self, folder: str | Path, *, length: int | None = None, dtype: str | None = None,
                 mesh: MeshSpec | None = None):
        folder = Path(folder)
        whole = (folder / "text_encoder").is_dir()
        weights, words = (folder / "text_encoder", folder / "tokenizer") if whole else (folder, folder)
        _, config, _ = describe(weights)
        if not isinstance(config, CLIPText | T5Encoder):
            raise UserError(f"{folder} holds a {type(config).__name__}; permitted: a text encoder of CLIP or T5")
        is_clip = isinstance(config, CLIPText)
        # Before the weights, which take long: what is missing here is known at once.
        tokenizer, mesh = open_tokenizer(words, length or (config.length if is_clip else None)), make_mesh(
            mesh or MeshSpec())
        model = load_pretrained(weights, dtype=dtype, mesh=mesh)
        if dtype is not None:
            model = dataclasses.replace(model, config=dataclasses.replace(model.config, dtype=dtype))
        padding = padding_of(folder)
        self._set(model, tokenizer, mesh, padding)
        self.folder = EncoderFolder(path=str(folder.absolute()), sha256=self.fingerprint().hex(), length=length,
                                    dtype=dtype, padding=padding)

    @classmethod
    def of(
        cls, model: Pretrained, tokenizer: Tokenizer, mesh: Mesh, padding: Padding = "hidden"
    ) -> CaptionEncoder:
        """An encoder that is loaded; `padding` of T5."""
        found = cls.__new__(cls)
        found._set(model, tokenizer, mesh, padding)
        return found

    def with_params(self, params: Any) -> CaptionEncoder:
        """The same encoder with other weights, which shares what is compiled."""
        found = copy.copy(self)
        found.params = params
        return found

    def _set(self, model: Pretrained, tokenizer: Tokenizer, mesh: Mesh, padding: Padding) -> None:
        self.tokenizer, self.mesh, self.is_clip = tokenizer, mesh, isinstance(model.config, CLIPText)
        self.config, self.width, self.params = model.config, model.config.width, model.params
        # The models of CLIP were trained, and are used, with padding in sight (unless their files say otherwise): it is
        # part of a network's conditioning. T5's padding is hidden, and not kept, unless `padding` says otherwise.
        self.cleans = getattr(model.config, "offsets_per_layer", False)
        self.masked = bool(model.fields.get("use_attention_mask")) if self.is_clip else padding == "hidden"
        self.keeps = self.is_clip or padding == "kept"
        self.about = f"{type(model.config).__name__} of width {self.width}, {self.tokenizer.length} tokens"
        self.about += "" if self.is_clip or padding == "hidden" else f", padding {padding}"
        self._encode = jax.jit(lambda params, ids, mask: getattr(
            found := model.module.apply({"params": params}, ids, mask), "tokens", found))

    def __call__(self, texts: Sequence[str], rows: int | None = None) -> list[Float[np.ndarray, "L C"]]:
        """What networks attend to, text by text; `rows` fills the batch up, so that one program serves all batches."""
        parts = batch_parts(self.mesh)
        rows = -(-max(rows or 0, len(texts)) // parts) * parts
        texts = [cleaned(text, "UMT5's tokenizer") for text in texts] if self.cleans else texts
        ids, mask = self.tokenizer([*texts, *[""] * (rows - len(texts))])
        found = np.asarray(self._run(ids, mask if self.masked else None), np.float32)
        return [vectors if self.keeps else vectors[seen] for vectors, seen in zip(found, mask, strict=True)
                ][: len(texts)]

    def fingerprint(self) -> bytes:
        """What tells its weights from those of another encoder of the same sizes: all vectors among them."""
        found = hashlib.sha256()
        for leaf in jax.tree.leaves(self.params):
            if leaf.ndim == 1:
                found.update(np.asarray(leaf, np.float32).tobytes())
        return found.digest()

    def _run(self, ids: Int[np.ndarray, "B L"], mask: Bool[np.ndarray, "B L"] | None) -> Any:
        with jax.set_mesh(self.mesh):
            return self._encode(self.params, *jax.device_put((ids, mask), batch_sharding(self.mesh)))


def embed_captions(
    encoder: CaptionEncoder, captions: Sequence[str], out: str | Path, *, batch_size: int = 32, part: int = PART,
    progress: Callable[[int], None] = lambda done: None,
) -> Path:
    """A set of embeddings (`data/embeddings.py`) of all captions, in a new folder.

    Parts are written to `OUT.parts` first: the same call after an interruption goes on behind the last of them, and a
    call with other captions or another encoder begins anew.

    Raises `UserError` where `out` exists or there is no caption that is not empty.
    """
    out = Path(out).expanduser()
    if out.exists():
        raise UserError(f"out={out} exists; permitted: a new folder, or delete this one first")
    captions = sorted({caption for caption in captions if caption})
    if not captions:
        raise UserError("there are no captions that are not empty; permitted: at least one")
    asked = "\0".join([encoder.about, str(part), *captions]).encode()
    what = hashlib.sha256(asked + encoder.fingerprint()).hexdigest()[:16]
    parts = out.with_name(f"{out.name}.parts")
    for old in parts.iterdir() if parts.is_dir() else ():
        if not old.name.startswith(what):
            shutil.rmtree(old)
    sets = []
    for begin in range(0, len(captions), part):
        texts, path = captions[begin : begin + part], parts / f"{what}_{begin:012}"
        if not path.exists():
            write_embeddings(path, texts, _in_batches(encoder, texts, batch_size, begin, progress))
        sets.append((path, texts))
        progress(begin + len(texts))
    write_embeddings(out, captions, _read(sets), encoder.about, encoder([""])[0], encoder.folder)
    shutil.rmtree(parts)
    return out


def _in_batches(
    encoder: CaptionEncoder, texts: Sequence[str], size: int, before: int, progress: Callable[[int], None]
) -> Iterator[np.ndarray]:
    for begin in range(0, len(texts), size):
        yield from encoder(texts[begin : begin + size], size)
        progress(before + min(begin + size, len(texts)))


def _read(sets: list[tuple[Path, Sequence[str]]]) -> Iterator[np.ndarray]:
    for path, texts in sets:
        found = TextEmbeddings(path)
        for text in texts:
            vectors, mask = found.look_up(text, found.longest)
            yield vectors[mask]
