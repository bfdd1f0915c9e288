"""Opening media files as data from outside: by their bytes alone, whatever their name, and within limits.

FFmpeg reads names as more than names: "12:30.mp4" is the protocol "12", "%d.png" a series of pictures, and a playlist
may name any other file or address. So Python opens the file, FFmpeg sees a nameless stream of bytes, and no protocol is
permitted to it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vdm_jax.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer

# Pixels of one frame (16,384 x 8,192) and frames of one file (46 hours at 60 frames per second) that are read at most.
MAX_PIXELS = 2**27
MAX_FRAMES = 10**7


class MomentaryError(UserError):
    """A file that could not be read for a reason outside its bytes: permission, descriptors, a share that is away."""


class Media:
    """An open media file; `container` is PyAV's. Use as a context manager or `close`.

    Args:
      file: a path, or a seekable binary file, which is read from its start and stays open.

    Raises:
      MomentaryError: the file cannot be opened or read now.
      UserError: the file is missing or its bytes are no media file that FFmpeg reads.
    """

    def __init__(self, file: str | os.PathLike | BinaryIO):
        import av

        self.name = display_name(file)
        self._own: BinaryIO | None = None
        self.container: InputContainer | None = None
        try:
            source = self._own = _opened(file, self.name) if isinstance(file, str | os.PathLike) else None
            source = source or file
            source.seek(0)
            # Before release 19 PyAV refuses files whose tags are not UTF-8 unless configured otherwise.
            tags = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
            options = {"protocol_whitelist": "none"}
            self.container = av.open(_Nameless(source), "r", container_options=options, **tags)
        except BaseException as error:
            self.close()
            if isinstance(error, readable_errors()) and not isinstance(error, UserError):
                raise failure(f"{self.name}: not a readable media file", error) from error
            raise

    def __enter__(self) -> Media:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        if self.container is not None:
            self.container.close()
        if self._own is not None:
            self._own.close()
        self.container = self._own = None

    def video_stream(self):
        """The first stream of video that is no cover picture, bounded to `MAX_PIXELS`. Raises `UserError`."""
        streams = self.container.streams.video
        if not streams:
            raise UserError(f"{self.name}: holds no video stream")
        stream = next((s for s in streams if not _is_cover(s)), streams[0])
        context = stream.codec_context
        if context is None:
            raise UserError(f"{self.name}: no decoder for its video; permitted: codecs that FFmpeg decodes")
        if context.width * context.height > MAX_PIXELS:
            raise UserError(f"{self.name}: {context.width} x {context.height} pixels; permitted: {MAX_PIXELS} pixels")
        context.options = {**context.options, "max_pixels": str(MAX_PIXELS)}
        return stream


class _Nameless:
    """A binary file without its name, since FFmpeg would act on the name."""

    def __init__(self, file: BinaryIO):
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def readable_errors() -> tuple[type[Exception], ...]:
    """What FFmpeg and PyAV raise for files that they do not read."""
    import av

    # PyAV has no stream for one that turns up late (IndexError), and odd headers give it numbers it cannot divide by.
    return (av.FFmpegError, OSError, ValueError, EOFError, MemoryError, ArithmeticError, NotImplementedError,
            LookupError)


def failure(message: str, error: Exception) -> UserError:
    """The error of a file as a `UserError`: a `MomentaryError` where the system and not the bytes decided."""
    if isinstance(error, UserError):
        return error
    # FFmpeg's word for damaged data is a ValueError; an OSError comes from the system.
    momentary = isinstance(error, OSError | MemoryError) and not isinstance(error, EOFError)
    reason = getattr(error, "strerror", None) or type(error).__name__
    return (MomentaryError if momentary else UserError)(f"{message} ({reason})")


def display_name(file: str | os.PathLike | BinaryIO) -> str:
    """A path as one line that every terminal prints: bytes that are not UTF-8 and control characters are escaped."""
    if not isinstance(file, str | os.PathLike):
        return "video bytes"
    text = os.fsencode(file).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def bounded(items: Iterator, name: str) -> Iterator:
    """The items of a file, `MAX_FRAMES` at most. Raises `UserError` beyond."""
    for number, item in enumerate(items):
        if number >= MAX_FRAMES:
            raise UserError(f"{name}: more than {MAX_FRAMES} frames; permitted: {MAX_FRAMES} (cut the file)")
        yield item


def _opened(path: str | os.PathLike, name: str) -> BinaryIO:
    try:
        if not Path(path).is_file():
            raise UserError(f"{name}: no such file")
        return open(path, "rb")
    except OSError as error:
        raise failure(f"{name}: cannot be opened", error) from error
    except ValueError as error:  # a null character in the name
        raise UserError(f"{name}: no such file") from error


def _is_cover(stream) -> bool:
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)
