"""Where the frames of long videos are while they are made: in memory, or in a folder from which sampling goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from vdm_jax.errors import UserError
from vdm_jax.weights.safetensors import load_params, save_params

FRAMES, RECORD, STATE = "frames.rgb", "record.json", "state_{}_{}.safetensors"


class Frames:
    """Frames of videos by number, in memory; frames that nobody wrote are black.

    `done` is how many tasks (a segment of one video) are written, `key` says of what they are, and `notes` is what was
    noted of them, plain data.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], key: str = ""):
        self.shape, self.key, self.done, self.notes = shape, key, 0, []
        self._state: dict[str, Any] | None = None
        self._video = np.zeros(shape, np.uint8)

    def read(self, video: int, frames: Sequence[int]) -> UInt8[np.ndarray, "N H W 3"]:
        """Some frames of one video."""
        return self._video[video, list(frames)]

    def write(self, video: int, frames: Sequence[int], values: UInt8[np.ndarray, "N H W 3"]) -> None:
        """Set some frames of one video."""
        self._video[video, list(frames)] = values

    def finish(self, done: int, note: Any = None, state: dict[str, Any] | None = None) -> None:
        """Record that so many tasks are written, what is noted of the last ones, and trees of arrays by name with
        which the next one goes on."""
        self.done, self._state = done, state
        if note is not None:
            self.notes.append(note)

    def state(self) -> dict[str, Any] | None:
        """What the next task goes on with."""
        return self._state

    def remove(self) -> None:
        """Leave nothing on disk."""


class FramesInFolder(Frames):
    """The same in a file of raw pixels, which is read and written frame by frame, so that memory does not grow with the
    length. A record next to it is replaced when a batch of tasks is on disk: a process that dies loses no more than the
    batch it was at. What the next task goes on with stays in memory too, and is read by another process alone.

    Raises `UserError` for a folder that has frames of something else (another `key`).
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int, int, int], key: str):
        self.folder, self.shape, self.key, self.done, self.notes = Path(folder), shape, key, 0, []
        self._state, self._written = None, {}  # the latter: by name, how many tasks were done when it was written
        record = self.folder / RECORD
        if record.is_file():
            self.done, self.notes, self._written = _read_record(record, {"key": key, "shape": list(shape)})
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = open(self.folder / FRAMES, "r+b" if self.done else "w+b")  # noqa: SIM115 (held; `close`)
        self._file.truncate(int(np.prod(shape, dtype=np.int64)))  # sparse until it is written

    def _place(self, video: int, frame: int) -> int:
        return (video * self.shape[1] + int(frame)) * int(np.prod(self.shape[2:]))

    def read(self, video: int, frames: Sequence[int]) -> UInt8[np.ndarray, "N H W 3"]:
        """Some frames of one video."""
        found = np.empty((len(frames), *self.shape[2:]), np.uint8)
        for i, frame in enumerate(frames):
            self._file.seek(self._place(video, frame))
            found[i] = np.frombuffer(self._file.read(found[i].size), np.uint8).reshape(self.shape[2:])
        return found

    def write(self, video: int, frames: Sequence[int], values: UInt8[np.ndarray, "N H W 3"]) -> None:
        """Set some frames of one video."""
        for frame, value in zip(frames, values, strict=True):
            self._file.seek(self._place(video, frame))
            self._file.write(np.ascontiguousarray(value).tobytes())

    def finish(self, done: int, note: Any = None, state: dict[str, Any] | None = None) -> None:
        """Record that so many tasks are on disk, what is noted of the last ones, and what the next one goes on with."""
        self._file.flush()
        os.fsync(self._file.fileno())
        for name, tree in (state or {}).items():
            if name not in self._written or not _same(tree, (self._state or {}).get(name)):
                save_params(self.folder / STATE.format(name, done), tree)
                self._written = self._written | {name: done}
        self._written = {name: self._written[name] for name in state or {}}
        super().finish(done, note, state)
        record = {"key": self.key, "shape": list(self.shape), "done": done, "notes": self.notes, "state": self._written}
        temporary = self.folder / f"{RECORD}.partial"
        temporary.write_text(json.dumps(record))
        os.replace(temporary, self.folder / RECORD)
        for file in self.folder.glob(STATE.format("*", "*")):  # of tasks before
            if file not in self._state_files().values():
                file.unlink()

    def state(self) -> dict[str, Any] | None:
        """What the next task goes on with; None where a file of it is missing. Raises `UserError` for a damaged one."""
        files = self._state_files()
        if self._state is None and files and all(file.is_file() for file in files.values()):
            self._state = {name: load_params(file)[0] for name, file in files.items()}
        return self._state

    def _state_files(self) -> dict[str, Path]:
        return {name: self.folder / STATE.format(name, done) for name, done in self._written.items()}

    def remove(self) -> None:
        """Delete the folder's files, and the folder where nothing else is in it."""
        self._file.close()
        for file in (self.folder / FRAMES, self.folder / RECORD, *self.folder.glob(STATE.format("*", "*"))):
            file.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def request_key(said: Any, given: Any, weights: Any) -> str:
    """Says of frames in a folder that they are of this request and these weights.

    Args:
      said: what was asked for, of plain values.
      given: arrays that were given, in any tree.
      weights: of networks; a few values of each tell trained weights from others.
    """
    digest = hashlib.sha256(repr(said).encode())
    for tree, most in ((given, None), (weights, 16)):
        leaves, structure = jax.tree.flatten(tree)
        digest.update(str(structure).encode())
        for leaf in leaves:
            part = np.asarray(leaf if most is None else jnp.ravel(leaf)[:most])
            digest.update(f"{part.dtype} {np.shape(leaf)}".encode() + part.tobytes())
    return digest.hexdigest()


def _same(tree: Any, other: Any) -> bool:
    """Whether two trees hold the very same arrays."""
    leaves, others = jax.tree.leaves(tree), jax.tree.leaves(other)
    return len(leaves) == len(others) and all(a is b for a, b in zip(leaves, others, strict=True))


def _read_record(path: Path, expected: dict) -> tuple[int, list[Any], dict[str, int]]:
    """How many tasks are done, what is noted of them, and when what the next one goes on with was written. Raises
    `UserError` for a damaged record, and one of something else."""
    try:
        found = json.loads(path.read_text())
        done, notes = int(found["done"]), list(found.get("notes", []))
        written = {name: int(number) for name, number in found.get("state", {}).items()}
        same = {name: found[name] for name in expected} == expected
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"folder={str(path.parent)!r}: its {RECORD} is damaged ({type(error).__name__}); permitted: "
                        "delete the folder") from error
    file, size = path.with_name(FRAMES), int(np.prod(expected["shape"], dtype=np.int64))
    if same and done and (not file.is_file() or file.stat().st_size != size):
        raise UserError(f"folder={str(path.parent)!r}: its {FRAMES} is missing or of another size than its record "
                        "says; permitted: delete the folder")
    if not same:
        raise UserError(f"folder={str(path.parent)!r} has frames of another request; permitted: the same request, "
                        "which goes on with them, another folder, or delete it")
    return done, notes, written
