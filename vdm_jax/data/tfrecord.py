"""TFRecord files of `tf.train.Example` or `SequenceExample` records, read without TensorFlow.

A file is a row of records: length (8 bytes, little endian), checksum of the length (4), data, checksum of the data (4).
The data is a protocol buffer; its field 1 maps names to features, each a list of byte strings, floats or integers, of
which only byte strings are read here. Both checksums (CRC-32C) are verified: that of lengths when the file is opened,
that of data when it is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vdm_jax.data.checksum import masked_crc32c
from vdm_jax.errors import UserError

MAX_RECORD_BYTES = 2**30

_BEFORE, _AFTER = 12, 4  # bytes around the data of a record


def record_places(path: Path) -> list[tuple[int, int]]:
    """Offset and length of the data of every record, by hopping from header to header. Raises `UserError` for a file
    that is cut off or no TFRecord file."""
    places, end = [], 0
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            while end < size:
                file.seek(end)
                header = file.read(_BEFORE)
                length = int.from_bytes(header[:8], "little")
                if masked_crc32c(header[:8]) != int.from_bytes(header[8:], "little"):
                    raise UserError(f"{path}: the record at byte {end} does not have the length it says (CRC-32C): it "
                                    "is damaged, cut off or no TFRecord file; permitted: the whole file")
                if length > MAX_RECORD_BYTES:
                    raise UserError(f"{path}: a record of {length} bytes; permitted: at most {MAX_RECORD_BYTES}")
                places.append((end + _BEFORE, length))
                end += _BEFORE + length + _AFTER
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if end != size:
        raise UserError(f"{path} has {size} bytes, but its records end at {end}: it is cut off or no TFRecord file; "
                        "permitted: the whole file")
    return places


def read_record(file: BinaryIO, place: tuple[int, int]) -> dict[str, bytes]:
    """The byte strings of the record at a place, by name; of a list the first. Other features are left out.

    Raises `UserError` for what is no such record.
    """
    file.seek(place[0])
    data = memoryview(file.read(place[1] + _AFTER))
    data, checksum = data[: place[1]], int.from_bytes(data[place[1] :], "little")
    if masked_crc32c(data) != checksum:
        raise UserError(f"the record at byte {place[0]} is damaged (CRC-32C); permitted: a whole file")
    try:
        return dict(_byte_features(data))
    except (LookupError, ValueError) as error:
        raise UserError(f"the record at byte {place[0]} is no tf.train.Example ({error}); permitted: a whole "
                        "file") from error


def _byte_features(record: memoryview) -> Iterator[tuple[str, bytes]]:
    for number, features in _fields(record):
        if number != 1:  # lists of features per step, which the sets read here do not use
            continue
        for _, entry in _fields(features):
            parts = dict(_fields(entry))  # 1: name, 2: feature
            for kind, values in _fields(parts.get(2, memoryview(b""))):
                strings = [value for _, value in _fields(values)] if kind == 1 else []
                if strings:
                    yield bytes(parts[1]).decode(), bytes(strings[0])


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Numbers and contents of the fields that have a length; numbers of other types are passed over."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        match tag & 7:
            case 2:
                length, place = _varint(message, place)
                if place + length > len(message):
                    raise ValueError("a field is longer than the message")
                yield tag >> 3, message[place : place + length]
                place += length
            case 0:
                _, place = _varint(message, place)
            case 1:
                place += 8
            case 5:
                place += 4
            case other:
                raise ValueError(f"wire type {other}")


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):  # seven bits a byte, at most ten bytes
        byte = message[place]
        value, place = value | (byte & 127) << shift, place + 1
        if byte < 128:
            return value, place
    raise ValueError("a number of more than ten bytes")
