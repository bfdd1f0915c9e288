"""CLIP's byte-pair encoding of lower-case text (Radford et al. 2021, arXiv 2103.00020, section 2.4) in Python, for what
has the list of merges and nothing else. Whole `tokenizer/` folders are for `tokenizers.open_tokenizer`.

The list is published twice: as `bpe_simple_vocab_16e6.txt.gz` beside the original code (and inside the package
clip-anytorch), and as `merges.txt` in folders of transformers.
"""

from __future__ import annotations

import functools
import gzip
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from vdm_jax.conditioning.tokenizers import Pieces, Tokenizer
from vdm_jax.errors import UserError

MERGES = 48_894  # that the published models use; the longer list has more
LENGTH = 77  # tokens of a text, with the one that begins and the one that ends it
_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
_END_OF_WORD = "</w>"


def read_clip_tokenizer(path: Path, length: int = LENGTH) -> Tokenizer:
    """The tokenizer of a list of merges, padded with the token that ends a text. Raises `UserError` for another file.
    """
    pairs = BytePairs.read(path)
    return Tokenizer(pairs.split, start=pairs.start, end=pairs.end, padding=pairs.end, length=length)


class BytePairs:
    """Texts to the token ids that CLIP was trained with, by the merges in their order."""

    def __init__(self, merges: Sequence[tuple[str, str]]):
        symbols = list(_byte_symbols().values())
        self.words = [*symbols, *(symbol + _END_OF_WORD for symbol in symbols), *map("".join, merges)]
        self.ids = {word: number for number, word in enumerate(self.words)}
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.start, self.end = len(self.words), len(self.words) + 1

    @classmethod
    def read(cls, path: Path) -> BytePairs:
        """Those of a file. Raises `UserError` for another one."""
        try:
            text = (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8")
            with text as file:
                lines = file.read().split("\n")[1 : MERGES + 1]  # the first line says what it is
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read: {error}; permitted: the merges of CLIP") from error
        merges = [tuple(line.split()) for line in lines if line]
        if any(len(pair) != 2 for pair in merges) or not merges:
            raise UserError(f"{path} is not a list of pairs; permitted: the merges of CLIP")
        return cls(merges)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without the ones that begin and end it."""
        text = " ".join(unicodedata.normalize("NFC", text).lower().split())
        return [self.ids[part] for word in _words(text) for part in self._parts(word)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are no text become question marks."""
        bytes_of = {symbol: byte for byte, symbol in _byte_symbols().items()}
        words = "".join(self.words[number] for number in ids).split(_END_OF_WORD)
        return " ".join(bytes(bytes_of[symbol] for symbol in word).decode(errors="replace") for word in words).strip()

    def split(self, text: str) -> Pieces:
        """For `Tokenizer`."""
        ids = self.encode(text)
        return Pieces(ids, lambda place: self.decode(ids[place:]))

    @functools.lru_cache(maxsize=100_000)  # noqa: B019  (a tokenizer lives as long as the program)
    def _parts(self, word: str) -> tuple[str, ...]:
        """Bytes of a word, joined pair by pair in the order of the merges."""
        table = _byte_symbols()
        parts = [table[byte] for byte in word.encode()]
        parts[-1] += _END_OF_WORD
        while len(parts) > 1:
            pairs = list(zip(parts, parts[1:], strict=False))
            first = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if first not in self.ranks:
                break
            joined, place = [], 0
            while place < len(parts):
                together = tuple(parts[place : place + 2]) == first
                joined.append("".join(first) if together else parts[place])
                place += 2 if together else 1
            parts = joined
        return tuple(parts)


def _words(text: str) -> list[str]:
    """Runs of letters, single digits, and runs of other signs; an apostrophe with an ending is a word of its own."""
    words, place = [], 0
    while place < len(text):
        ending = next((x for x in _CONTRACTIONS if text.startswith(x, place)), None)
        stop = place + len(ending) if ending else place + 1
        kind = _kind(text[place])
        if not ending and kind in ("letter", "sign"):
            while stop < len(text) and _kind(text[stop]) == kind:
                stop += 1
        if kind != "space":
            words.append(text[place:stop])
        place = stop
    return words


@functools.cache
def _kind(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] in "LN":
        return "letter" if category[0] == "L" else "number"
    return "space" if character.isspace() else "sign"


@functools.cache
def _byte_symbols() -> dict[int, str]:
    """A visible character for each byte: itself where it is one in Latin-1, else the next beyond the first 256."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(others)}
