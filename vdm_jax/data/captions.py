"""Captions from files: a table for the files of a folder, a text next to each file, or a list with a caption per line.

All of them are UTF-8, with or without a byte order mark, or UTF-16 with one. Another encoding is refused: guessed text
would be learned as it is.
"""

from __future__ import annotations

import codecs
import csv
import functools
import io
import logging
import posixpath
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from vdm_jax.data.names import printable
from vdm_jax.errors import UserError

MAX_TABLE_BYTES = 2**30  # of a table or list of captions
MAX_CAPTION_BYTES = 2**20  # of the text of one picture or video

log = logging.getLogger(__name__)


def decode_text(data: bytes) -> str:
    """Text of a file's bytes. Raises `ValueError`, saying why, where the encoding is neither UTF-8 nor UTF-16 with a
    byte order mark."""
    try:
        text = data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not {error.encoding.removesuffix('-sig').upper()} (byte {error.start}: "
                         f"{error.reason})") from error
    if "\0" in text:
        raise ValueError(f"line {text.count(chr(10), 0, text.index(chr(0))) + 1} has a zero byte, as UTF-16 without a "
                         "byte order mark has them")
    return text


def read_text(path: Path, what: str) -> str:
    """The text of a table or list of captions. Raises `UserError` for a missing file, one of more than
    `MAX_TABLE_BYTES`, or one in another encoding; `what` names the field in the message."""
    try:
        if not path.is_file():
            raise UserError(f"{what} is unreadable: no such file; permitted: a file of captions")
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise UserError(f"{what} has {path.stat().st_size} bytes; permitted: at most {MAX_TABLE_BYTES}")
        return decode_text(path.read_bytes())
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{what} is unreadable: {reason}; permitted: text in UTF-8, or in UTF-16 with a byte order "
                        "mark") from error


def caption_lines(path: Path, what: str) -> list[str]:
    """The captions of a list, one a line, without empty ones. Raises `UserError` as `read_text` does."""
    return [line.strip() for line in io.StringIO(read_text(path, what), newline=None) if line.strip()]


def read_captions(kind: str, path: str | None, names: Collection[str]) -> dict[str, str]:
    """Captions by file name from a CSV with the columns `file` (relative to the folder) and `caption`.

    Where `caption` is the last column, it may have commas without quotes. Files without a row get '' and rows without a
    file are left out; the number of each is logged once.

    Raises:
      UserError: a missing file or column, another encoding, an incomplete row, one with too many cells, a quote that is
        not closed, or a file named twice; the message names the line.
    """
    if path is None:
        return dict.fromkeys(names, "")
    what = f"{kind}.captions={path!r}"
    place = {_key(name): name for name in names}
    captions: dict[str, str] = {}
    unknown: list[str] = []
    for line, file, caption in _rows(what, read_text(Path(path).expanduser(), what), place):
        name = place.get(_key(file))
        if name is None:
            unknown.append(file)
        elif name in captions:
            raise UserError(f"{what} line {line}: file {file!r} for the second time; permitted: once")
        else:
            captions[name] = caption
    note(path, "rows name no file of the folder", unknown)
    note(path, "files have no caption", [name for name in names if name not in captions])
    return {name: captions.get(name, "") for name in names}


def read_caption_files(path: str, names: Collection[str], suffix: str) -> dict[str, str]:
    """Captions by file name from text files of the same name with another suffix; '' where there is none or it is
    unreadable, which is logged once."""
    folder = Path(path).expanduser()
    captions, unreadable = {}, []
    for name in names:
        file = (folder / name).with_suffix(suffix)
        try:
            if file.is_file():
                with open(file, "rb") as opened:
                    captions[name] = decode_caption(opened.read(MAX_CAPTION_BYTES + 1))
        except (OSError, ValueError):
            unreadable.append(name)
    note(path, "files have a caption that is not readable UTF-8", unreadable)
    note(path, "files have no caption", [name for name in names if name not in captions and name not in unreadable])
    return {name: captions.get(name, "") for name in names}


def decode_caption(data: bytes) -> str:
    """The text of one picture or video. Raises `ValueError` for another encoding, or more than `MAX_CAPTION_BYTES`."""
    if len(data) > MAX_CAPTION_BYTES:
        raise ValueError(f"a caption of more than {MAX_CAPTION_BYTES} bytes")
    return decode_text(data).strip()


def note(path: str, what: str, names: Iterable[str]) -> None:
    """Logs how many names something is true of, and the first. The same is not said again, though every split and the
    validation read the same table."""
    names = sorted(names)
    if names:
        warn_once(f"{path}: {len(names)} {what} (the first is {printable(names[0])})")


@functools.lru_cache(maxsize=1000)
def warn_once(message: str) -> None:
    """Logs a warning, unless this process has logged the same before."""
    log.warning("%s", message)


def _rows(what: str, text: str, names: Collection[str]) -> Iterator[tuple[int, str, str]]:
    """(line, file, caption) of each row. Raises `UserError` as `read_captions` does."""
    table = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        header = [cell.strip() for cell in next(table, [])]
        if header.count("file") != 1 or header.count("caption") != 1:
            raise UserError(f"{what}: columns {', '.join(header) or 'none'}; permitted: file, caption, each once")
        of_file, of_caption, last = header.index("file"), header.index("caption"), len(header) - 1
        line = table.line_num + 1
        for cells in table:
            if len(cells) > len(header) and of_caption == last:  # commas of the caption
                cells = [*cells[:last], ",".join(cells[last:])]
            if len(cells) > len(header):
                raise UserError(f"{what} line {line}: {len(cells)} cells for {len(header)} columns; permitted: text "
                                'with commas in quotes, "like, this"')
            if cells and (len(cells) <= max(of_file, of_caption) or not cells[of_file].strip()):
                raise UserError(f"{what} line {line}: incomplete row; permitted: a file and a caption")
            if cells:
                _check_quotes(f"{what} line {line}", cells, names)
                yield line, cells[of_file].strip(), cells[of_caption].strip()
            line = table.line_num + 1
    except csv.Error as error:
        raise UserError(f"{what} line {line}: {error}; permitted: quotes that are closed, and doubled within "
                        "a text in quotes") from error


def _check_quotes(where: str, cells: list[str], names: Collection[str]) -> None:
    """Refuses a cell that holds whole rows, because its quote is not closed until one of a later row."""
    for cell in cells:
        for line in cell.splitlines()[1:]:
            if _key(line.split(",")[0].strip('"')) in names:
                raise UserError(f"{where}: a quote is not closed, and the row of {line.split(',')[0]!r} is within it; "
                                "permitted: quotes that are closed")


def _key(name: str) -> str:
    """How a file is found whichever way its name is written: `./a/b.mp4`, `a//b.mp4`, `a\\b.mp4`, accents apart."""
    return unicodedata.normalize("NFC", posixpath.normpath(name.replace("\\", "/")))
