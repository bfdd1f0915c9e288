"""ArrayRecord files checked in Python before the C++ reader gets them, which trusts the sizes that a file says.

A file is a row of blocks of 64 KiB. Each begins with a header of 24 bytes; what is left of them holds chunks one after
the other: a header of 40 bytes, then data. The first chunk is a signature, the last block begins with a postscript that
says where the footer is, the chunk before it (Riegeli's `records_file_format.md`, ArrayRecord's `layout.proto`).
Checksums are left to the reader: here a small file is refused that unpacks to any amount, or is not as long as it says.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vdm_jax.errors import UserError

MAX_CHUNK_BYTES = 2**30  # of the records of a chunk, unpacked
MAX_CHUNK_RECORDS = 2**20

_BLOCK, _BLOCK_HEADER, _HEADER = 2**16, 24, 40
_BEGIN = bytes.fromhex("83af70d10d884a3f00000000000000004000000000000000"  # header of the first block
                       "91bac23c9287e1a90000000000000000e19f13c0e9b1c3727300000000000000" + "00" * 8)
_MAGIC = bytes.fromhex("10dec0ebfe84cec3c971")  # field 2 of the postscript
_FOOTER_BYTES = (1000, 64)  # of the footer at most: for the whole, and for each chunk


class _Chunk(NamedTuple):
    size: int  # of the data as stored
    kind: int
    records: int
    unpacked: int  # size of the data
    end: int  # where the next one begins


def check_record_file(path: Path, most: int) -> None:
    """Raises `UserError` for a file that is cut off, no ArrayRecord file, or has a chunk of more than `most` bytes."""
    try:
        with open(path, "rb", buffering=0) as file:
            _check(file.fileno(), os.fstat(file.fileno()).st_size, most)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is cut off, damaged or no ArrayRecord file ({error}); permitted: the whole file"
                        ) from error


def _check(file: int, size: int, most: int) -> None:
    if size % _BLOCK or size < 2 * _BLOCK:
        raise ValueError(f"{size} bytes are not two or more blocks of {_BLOCK}")
    if os.pread(file, len(_BEGIN), 0) != _BEGIN:
        raise ValueError("it does not begin like one")
    footer, count = _footer(file, size - _BLOCK), 0
    for place, chunk in _chunks(file, len(_BEGIN), footer):
        if chunk.records > MAX_CHUNK_RECORDS or chunk.unpacked > most:
            raise ValueError(f"{chunk.records} records of {chunk.unpacked} bytes at byte {place}; permitted: up to "
                             f"{MAX_CHUNK_RECORDS} of {most}")
        count += 1
    last = _chunk(file, footer)
    longest = _FOOTER_BYTES[0] + _FOOTER_BYTES[1] * count
    if last.end > size - _BLOCK or last.records > count + 1 or last.unpacked > longest:
        raise ValueError(f"a footer of {last.records} records and {last.unpacked} bytes; permitted: up to {count + 1} "
                         f"and {longest}")


def _footer(file: int, place: int) -> int:
    """Where the footer begins, by the postscript in the last block."""
    chunk = _chunk(file, place)
    if chunk.size > 1000 or chunk.unpacked > 1000 or chunk.records > 3:
        raise ValueError(f"a postscript of {chunk.unpacked} bytes")
    text = os.pread(file, chunk.size, place + _BLOCK_HEADER + _HEADER)
    begin, end = text.find(b"\x08"), text.find(_MAGIC)
    if not 0 <= begin < end <= begin + 11:
        raise ValueError("no postscript")
    footer = sum((byte & 127) << 7 * k for k, byte in enumerate(text[begin + 1 : end]))
    if not len(_BEGIN) <= footer < place:
        raise ValueError(f"a footer at byte {footer}")
    return footer


def _chunks(file: int, place: int, end: int) -> Iterator[tuple[int, _Chunk]]:
    """Place and header of all chunks that lie between two places."""
    while place < end:
        chunk = _chunk(file, place)
        if chunk.kind not in b"rtpm" or chunk.end > end:
            raise ValueError(f"the chunk at byte {place} has kind {chunk.kind} and {chunk.size} bytes")
        yield place, chunk
        place = chunk.end


def _chunk(file: int, place: int) -> _Chunk:
    """The header of the chunk at a place, where it may begin with the header of a block, or be cut by one."""
    data = os.pread(file, _BLOCK_HEADER + _HEADER, place)
    before = -place % _BLOCK  # bytes that lie in the block of `place`, where it does not begin one
    if before < _HEADER:
        data = data[:before] + data[before + _BLOCK_HEADER :]
    if len(data) < _HEADER:
        raise ValueError(f"it ends within the chunk at byte {place}")
    size, kind, unpacked = struct.unpack_from("<8xQ8xQQ", data)
    records = kind >> 8
    used = _HEADER + size
    # Headers of blocks among so many bytes from there on; a chunk is no shorter than it has records.
    end = place + used + (used + (place - _BLOCK_HEADER - 1) % _BLOCK) // (_BLOCK - _BLOCK_HEADER) * _BLOCK_HEADER
    return _Chunk(size, kind & 255, records, unpacked, max(end, _begins(place + records)))


def _begins(place: int) -> int:
    """The first place from one on where a chunk may begin: at the edge of a block, but not within its header."""
    inside = place % _BLOCK
    return place + _BLOCK_HEADER - inside if 0 < inside < _BLOCK_HEADER else place
