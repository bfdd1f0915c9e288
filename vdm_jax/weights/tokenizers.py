"""Texts as the tokens that released text encoders read, by the files of a model's `tokenizer/` folder.

CLIP (Radford et al. 2021, arXiv 2103.00020) reads byte pairs of lower-case words between a start and an end token, T5
(Raffel et al. 2020, arXiv 1910.10683) pieces of a unigram model before an end token, Llama 3 (Dubey et al. 2024, arXiv
2407.21783) byte pairs of bytes after a start token, where its `tokenizer.json` says so. The packages `tokenizers` and
`sentencepiece` do it; they come with the extra `[pretrained]`.

CLIP's only data is the list of merges, which is published twice: as `merges.txt` in folders of transformers, and as
`bpe_simple_vocab_16e6.txt.gz` next to the original code (and inside the package clip-anytorch), for which there is
`clip_tokenizer`.
"""

from __future__ import annotations

import gzip
import html
import importlib
import logging
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from vdm_jax.errors import UserError
from vdm_jax.weights.tensor_files import read_json

log = logging.getLogger(__name__)

CLASSES = {"CLIPTokenizer": "clip", "CLIPTokenizerFast": "clip", "LlamaTokenizer": "llama",
           "LlamaTokenizerFast": "llama", "T5Tokenizer": "t5", "T5TokenizerFast": "t5"}
# Contractions, runs of letters, single digits, runs of anything else (the pattern of CLIP's byte pairs).
CLIP_WORDS = (r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
LONGEST = 10**6  # files say 10^30 where there is no limit
CLIP_MERGES = 48_894  # that the published models use; the original list has more
LONGEST_MERGES = 2**24  # characters of their file, unpacked; the authors' has 3 million
CLIP_ENDS = ("<|startoftext|>", "<|endoftext|>")  # around a text
SENTINELS = 100  # `<extra_id_0>` ... of T5, after the pieces of its model, the last first; UMT5 has 300


class Tokens(NamedTuple):
    """Texts as token ids, all of one length."""

    ids: Int[np.ndarray, "B L"]
    mask: Bool[np.ndarray, "B L"]  # False at padding


class Pieces(NamedTuple):
    """A text as token ids, without those that frame it."""

    ids: list[int]
    rest: Callable[[int], str]  # what the text says from one of them on


class Tokenizer:
    """Texts to tokens of a fixed length, cut and padded as the model was trained.

    Args:
      split: a text to its pieces.
      start, end: ids around a text; None: no such token.
      padding: id after it.
      length: tokens of a text at most, those around it included.
    """

    def __init__(
        self, split: Callable[[str], Pieces], *, start: int | None, end: int | None, padding: int, length: int
    ):
        self.split, self.padding, self.length = split, padding, length
        self.start, self.end = ([] if token is None else [token] for token in (start, end))
        self.room = length - len(self.start) - len(self.end)
        if self.room < 1:
            raise UserError(f"length={length} of a tokenizer; permitted: {length - self.room + 1} or more")

    def __call__(self, texts: Sequence[str] | str) -> Tokens:
        """Token ids and mask. A text that is too long is cut before the end token, with a warning that says what."""
        texts = (texts,) if isinstance(texts, str) else texts
        ids = np.full((len(texts), self.length), self.padding, np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, text in enumerate(texts):
            pieces = self.split(text)
            if len(pieces.ids) > self.room:
                log.warning("a text has %d tokens where %d fit; cut off: %r", len(pieces.ids), self.room,
                            pieces.rest(self.room))
            whole = [*self.start, *pieces.ids[: self.room], *self.end]
            ids[row, : len(whole)], mask[row, : len(whole)] = whole, True
        return Tokens(ids, mask)


def open_tokenizer(folder: str | os.PathLike, length: int | None = None, llama: bool = False) -> Tokenizer:
    """The tokenizer of a folder: `tokenizer.json`, or `vocab.json` with `merges.txt` (CLIP), or `spiece.model` (T5).
    Llama's has the tokens around a text that its file says, and no others.

    Args:
      folder: as diffusers and transformers write it.
      length: tokens of a text at most; that of `tokenizer_config.json` by default.
      llama: whether byte pairs of a class that says nothing (`TokenizersBackend`) are Llama's; refused otherwise.

    Raises:
      UserError: a package is missing, a file is missing or damaged, a tokenizer that is none of CLIP, T5 and Llama, or
        no length where the folder has none.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; permitted: the tokenizer/ folder of a model")
    config, special = _json(folder / "tokenizer_config.json"), _json(folder / "special_tokens_map.json")
    kind = _kind(folder, config, llama)
    if kind == "llama" and not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder} has no tokenizer.json; permitted: that file of Llama's tokenizer")
    if config.get("padding_side", "right") != "right":
        raise UserError(f"{folder}: tokenizer_config.json has padding_side={config['padding_side']!r}; permitted: "
                        "'right'")
    if length is None:
        length = config.get("model_max_length")
        if type(length) is not int or length > LONGEST:
            raise UserError(f"{folder}: tokenizer_config.json has model_max_length={length}; permitted: a length, or "
                            "length=... given here")
    defaults = {"clip": (*CLIP_ENDS, CLIP_ENDS[1]), "llama": (None, None, "<pad>"), "t5": (None, "</s>", "<pad>")}[
        kind]
    names = [_token(name, config, special, default)
             for name, default in zip(("bos_token", "eos_token", "pad_token"), defaults, strict=True)]
    names[0] = names[0] if kind == "clip" else None
    names[1] = None if kind == "llama" else names[1]
    if kind == "t5" and not (folder / "tokenizer.json").is_file():
        return _sentencepiece(folder, names, length, _sentinels(folder, config))
    backend = _backend(folder, kind, [name for name in names if name])
    ids = [None if name is None else backend.token_to_id(name) for name in names]
    for name, number in zip(names, ids, strict=True):
        if name is not None and number is None:
            raise UserError(f"{folder}: token {name!r} is not in the vocabulary; permitted: the files of one model")
    return _framed(backend, *ids, length, by_file=kind == "llama")


def clip_tokenizer(path: str | os.PathLike, length: int = 77) -> Tokenizer:
    """CLIP's tokenizer by its list of merges alone, whose order gives the ids; padded with the token that ends a text.

    It reads texts as the original code does: repaired by ftfy (curly quotes, ligatures, full-width letters, broken
    encodings), without HTML entities, spaces and case; a start or end token that a text holds is that token.
    ftfy is asked where a text has something to repair: other characters than visible ASCII.

    Args:
      path: `merges.txt`, or the original list, compressed by gzip.
      length: tokens of a text at most, those around it included.

    Raises:
      UserError: the package `tokenizers` is missing, or, for a text that needs it, `ftfy`; the file is missing, damaged
        or another one.
    """
    path = pathlib.Path(path)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            text = file.read(LONGEST_MERGES + 1)  # a small .gz can hold any amount
            if len(text) > LONGEST_MERGES:
                raise UserError(f"{path} holds more than {LONGEST_MERGES} characters; permitted: the merges of CLIP")
            lines = text.split("\n")[1 : CLIP_MERGES + 1]  # the first line says what it is
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}; permitted: the merges of CLIP") from error
    merges = [tuple(line.split()) for line in lines if line]
    if any(len(pair) != 2 for pair in merges) or not merges:
        raise UserError(f"{path} is not a list of pairs; permitted: the merges of CLIP")
    # Every byte is a visible character: itself where it is one in Latin-1, else the next beyond the first 256.
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    symbols = [*map(chr, visible), *(chr(256 + i) for i in range(256 - len(visible)))]
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *map("".join, merges), *CLIP_ENDS]
    tokenizers = _package("tokenizers", path)
    try:
        backend = _byte_pairs(tokenizers, {word: i for i, word in enumerate(words)}, merges, original=True)
    except Exception as error:  # the package raises no class of its own
        raise UserError(f"{path} has merges of what is not there ({error}); permitted: the merges of CLIP") from error
    ends = {name: backend.token_to_id(name) for name in CLIP_ENDS}

    def split(text: str) -> Pieces:
        text, ids, starts = cleaned(text, path).lower(), [], []
        # The pieces are found first, as in the original: "<<|endoftext|>" begins with the piece "<<|", no token.
        for piece, (place, _) in backend.pre_tokenizer.pre_tokenize_str(text):
            found = [ends[piece]] if piece in ends else [token.id for token in backend.model.tokenize(piece)]
            ids += found
            starts += [place] * len(found)
        return Pieces(ids, lambda place: text[starts[place] :])

    return Tokenizer(split, start=ends[CLIP_ENDS[0]], end=ends[CLIP_ENDS[1]], padding=ends[CLIP_ENDS[1]], length=length)


def cleaned(text: str, path: str | os.PathLike) -> str:
    """The text repaired, without HTML entities and with single spaces, as CLIP and Wan clean theirs.

    Raises `UserError`, which names `path`, where ftfy is needed and missing.
    """
    if not (text.isascii() and text.replace("\n", " ").replace("\t", " ").isprintable()):
        text = _package("ftfy", path, "metrics").fix_text(text)
    return " ".join(html.unescape(html.unescape(text)).split())


def _framed(
    backend: Any, start: int | None, end: int | None, padding: int, length: int, by_file: bool = False
) -> Tokenizer:
    """A tokenizer of the package `tokenizers` between the tokens around a text, or with those that its file adds."""
    def split(text: str) -> Pieces:
        found = backend.encode(text, add_special_tokens=by_file)
        return Pieces(found.ids, lambda place: text[found.offsets[place][0] :])

    return Tokenizer(split, start=start, end=end, padding=padding, length=length)


def _kind(folder: pathlib.Path, config: dict[str, Any], llama: bool) -> str:
    """Whose tokenizer a folder holds; `llama` as in `open_tokenizer`."""
    name = config.get("tokenizer_class")
    if name == "TokenizersBackend":  # of newer versions of transformers, whose file says what it is
        model = _json(folder / "tokenizer.json").get("model")
        classes = {"Unigram": "T5Tokenizer"} | ({"BPE": "LlamaTokenizer"} if llama else {})
        name = classes.get(str(model.get("type")), name) if isinstance(model, dict) else name
    if isinstance(name, str) and name in CLASSES:
        return CLASSES[name]
    if name is not None:
        raise UserError(f"{folder} holds a {name}; permitted: {', '.join(CLASSES)}")
    for file, kind in (("merges.txt", "clip"), ("spiece.model", "t5")):
        if (folder / file).is_file():
            return kind
    raise UserError(f"{folder} does not say which tokenizer it holds; permitted: tokenizer_config.json with one of "
                    f"{', '.join(CLASSES)}")


def _token(name: str, config: dict[str, Any], special: dict[str, Any], default: str | None) -> str | None:
    """A special token's text, which files give bare or as an object."""
    value = config.get(name) or special.get(name) or default
    value = value.get("content", default) if isinstance(value, dict) else value
    if not isinstance(value, str | None):
        raise UserError(f"{name}={value!r} of a tokenizer; permitted: a text")
    return value


def _backend(folder: pathlib.Path, kind: str, special: list[str]) -> Any:
    """A tokenizer of the package `tokenizers`, without padding or truncation of its own."""
    tokenizers = _package("tokenizers", folder)
    try:
        if (folder / "tokenizer.json").is_file():
            backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            backend.no_padding()
            backend.no_truncation()
        else:
            backend = _byte_pairs(tokenizers, *_vocabulary(tokenizers, folder))
        # They stand for themselves where a text has them; what is in the vocabulary keeps its id.
        backend.add_special_tokens([token for token in special if backend.token_to_id(token) is not None])
    except UserError:
        raise
    except Exception as error:  # the package raises no class of its own
        raise UserError(f"{folder} holds no tokenizer that was read: {error}") from error
    return backend


def _vocabulary(tokenizers: Any, folder: pathlib.Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    for file in ("vocab.json", "merges.txt"):
        if not (folder / file).is_file():
            raise UserError(f"{folder} has no {file}; permitted: tokenizer.json, or vocab.json with merges.txt")
    return tokenizers.models.BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))


def _byte_pairs(tokenizers: Any, vocabulary: dict[str, int], merges: Sequence[tuple[str, str]],
                original: bool = False) -> Any:
    """CLIP's byte pairs of lower-case words. The original code does not split what its pattern has found; transformers
    does, by the pattern of GPT-2."""
    unknown = "<|endoftext|>" if "<|endoftext|>" in vocabulary else None
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(
        vocab=vocabulary, merges=merges, continuing_subword_prefix="", end_of_word_suffix="</w>", fuse_unk=False,
        unk_token=unknown))
    normal, before = tokenizers.normalizers, tokenizers.pre_tokenizers
    backend.normalizer = normal.Sequence([normal.NFC(), normal.Replace(tokenizers.Regex(r"\s+"), " "),
                                          normal.Lowercase()])
    backend.pre_tokenizer = before.Sequence([
        before.Split(tokenizers.Regex("(?i)" * original + CLIP_WORDS), behavior="removed", invert=True),
        before.ByteLevel(add_prefix_space=False, use_regex=not original)])
    return backend


def _sentinels(folder: pathlib.Path, config: dict[str, Any]) -> int:
    """How many tokens `<extra_id_0>` ... there are. Raises `UserError` for what is no number."""
    count = config.get("extra_ids", SENTINELS)
    if type(count) is not int or not 0 <= count <= LONGEST:
        raise UserError(f"{folder}: tokenizer_config.json has extra_ids={count!r}; permitted: 0 or more")
    return count


def _sentencepiece(folder: pathlib.Path, names: list[str | None], length: int, sentinels: int) -> Tokenizer:
    """T5's tokenizer by the file that it was trained as."""
    package, path = _package("sentencepiece", folder), folder / "spiece.model"
    if not path.is_file():
        raise UserError(f"{folder} has no spiece.model; permitted: tokenizer.json or spiece.model")
    try:
        model = package.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} was not read: {error}") from error

    _, end, padding = (None if name is None else model.piece_to_id(name) for name in names)
    count = len(model)
    special = {f"<extra_id_{i}>": count + sentinels - 1 - i for i in range(sentinels)}
    special |= {names[1]: end, names[2]: padding, "<unk>": model.unk_id()}
    known = re.compile("(" + "|".join(map(re.escape, special)) + ")")

    def split(text: str) -> Pieces:
        # A control token that a text holds stands for itself; what lies between them is read on its own.
        ids, starts, at = [], [], 0
        for part in known.split(text):
            found = [special[part]] if part in special else model.encode(part)
            ids += found
            starts += [(at, n) for n in range(len(found))]
            at += len(part)

        def rest(place: int) -> str:
            begin, inside = starts[place]
            whole = known.split(text[begin:])
            part = next(part for part in whole if part)
            left = part if part in special else model.decode(model.encode(part)[inside:])
            return left + text[begin + len(part) :]

        return Pieces(ids, rest)

    return Tokenizer(split, start=None, end=end, padding=padding, length=length)


def _package(name: str, folder: str | os.PathLike, extra: str = "pretrained") -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{folder} is read by the package {name}, which is not installed; permitted: pip install "
                        f"'vdm_jax[{extra}]'") from None


def _json(path: pathlib.Path) -> dict[str, Any]:
    """An object of a file; empty where there is no file."""
    return read_json(path) if path.is_file() else {}
