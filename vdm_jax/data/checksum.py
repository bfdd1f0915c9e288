"""CRC-32C (Castagnoli; RFC 3720, appendix B.4), the checksum of TFRecord files, by numpy alone."""

import functools

import numpy as np

_LANE = 1024  # bytes; the lanes of a text are summed side by side and then joined


def masked_crc32c(data: bytes | memoryview) -> int:
    """The checksum as TFRecord files store it (tensorflow/core/lib/hash/crc32c.h)."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes | memoryview) -> int:
    """CRC-32C of some bytes.

    It is linear: that of two texts one after the other is that of the first, moved on by as many zero bytes as the
    second has, plus (without carry) that of the second begun at zero.
    """
    table = _table()
    lanes = len(data) // _LANE
    crc = 0xFFFFFFFF
    if lanes:
        states = np.zeros(lanes, np.uint32)
        states[0] = crc
        for column in np.frombuffer(data, np.uint8, lanes * _LANE).reshape(lanes, _LANE).T:
            states = table[(states ^ column) & 255] ^ (states >> 8)
        crc, moved = 0, _moved()
        for state in states.tolist():
            crc = (moved[0][crc & 255] ^ moved[1][crc >> 8 & 255] ^ moved[2][crc >> 16 & 255] ^ moved[3][crc >> 24]
                   ^ state)
    small = _small_table()
    for byte in bytes(data[lanes * _LANE :]):
        crc = small[(crc ^ byte) & 255] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@functools.cache
def _table() -> np.ndarray:
    """What each byte becomes, moved on by one byte."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(0x82F63B78), table >> 1)
    return table


@functools.cache
def _small_table() -> list[int]:
    return _table().tolist()


@functools.cache
def _moved() -> list[list[int]]:
    """What each value of each of the four bytes of a state becomes, moved on by a lane of zero bytes."""
    table, found = _table(), []
    for place in range(4):
        states = np.arange(256, dtype=np.uint32) << np.uint32(8 * place)
        for _ in range(_LANE):
            states = table[states & 255] ^ (states >> 8)
        found.append(states.tolist())
    return found
