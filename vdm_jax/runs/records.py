"""What a run reports: scalars as JSON lines and TensorBoard events, images, and its speed.

`metrics.jsonl` holds one object per write, `{"step": 100, "time": 1.7e9, "loss": 0.12}`, where `time` is in
seconds since 1970. JSON has no NaN or infinity: such values are stored as the strings "nan", "inf", "-inf",
and read back as floats.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from vdm_jax.errors import UserError

FILENAME = "metrics.jsonl"
EVALUATION = "evaluation/"  # what the names of scores begin with, and those of real clips with "evaluation/real/"
_FLUSH_SECONDS = 60  # between two flushes of TensorBoard's file, which wait for the disk
_NOT_FINITE = ("nan", "inf", "-inf")


class MetricWriter:
    """Writes scalars to `metrics.jsonl` and TensorBoard, images to TensorBoard. Only process 0 writes.

    Args:
      directory: local directory, made if absent.
      first_step: the first step this run will report. What an earlier run reported at or after it is removed,
        so that a resumed run leaves no duplicates. None keeps everything.
      tensorboard: also write event files (needs tensorboardX).

    Raises:
      UserError: `metrics.jsonl` exists and is something else.
    """

    def __init__(self, directory: str | os.PathLike, *, first_step: int | None = None,
                 tensorboard: bool = True):
        self._file = None
        self._events = None
        if jax.process_index() != 0:
            return
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / FILENAME
        _prepare(path, first_step)
        self._file = open(path, "a", encoding="utf-8")
        if tensorboard:
            self._events = _Events(directory, first_step)

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Adds one record. Values are numbers or arrays of shape [], fetched in one transfer."""
        if self._file is None:
            return
        for name in ("step", "time"):
            if name in scalars:
                raise UserError(f"metric {name!r} is filled in by the writer; permitted: names except step, time")
        fetched = jax.device_get(dict(scalars))  # comes back sorted by name; the caller's order is kept
        values = {name: _scalar(name, fetched[name]) for name in scalars}
        now = time.time()
        numbers = {name: json_number(value) for name, value in values.items()}
        record = {"step": int(step), "time": now, **numbers}
        # One write of one whole line: a killed run leaves at most one torn line, the last.
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        if self._events is not None:
            self._events.scalars(int(step), values, now)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds an image, uint8 [H, W, 3], to TensorBoard."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            found = f"{image.dtype}{list(image.shape)}"
            raise UserError(f"image {name!r} is {found}; permitted: uint8 [H, W, 3]")
        if self._events is not None:
            self._events.image(int(step), name, image)

    def flush(self) -> None:
        """Hands everything written so far to the operating system."""
        if self._file is not None:
            self._file.flush()
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Closes the files; later writes do nothing."""
        writers, self._file, self._events = (self._file, self._events), None, None
        with contextlib.ExitStack() as stack:  # one that cannot be written leaves none open
            for writer in writers:
                if writer is not None:
                    stack.callback(writer.close)

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            self.close()
        except OSError:
            if error is None:
                raise  # else the first error is the one to read


class _Events:
    """An event file of TensorBoard, written by the thread that trains.

    tensorboardX's own `SummaryWriter` writes in another one: where the disk is full that one ends with a stack trace,
    and the training then waits for it without end.
    """

    def __init__(self, directory: pathlib.Path, first_step: int | None):
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self._summary, self._proto = summary, event_pb2
        self._writer = event_file_writer.EventsWriter(str(directory / "events"))
        if first_step is not None:  # what was written at or after it is hidden
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(first_step, time.time(), session_log=start)
        self.flush()

    def scalars(self, step: int, values: Mapping[str, float], now: float) -> None:
        for name, value in values.items():
            self._add(step, now, summary=self._summary.scalar(name, value))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self._add(step, time.time(), summary=self._summary.image(name, image, dataformats="HWC"))

    def flush(self) -> None:
        self._writer.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()

    def _add(self, step: int, now: float, **what: Any) -> None:
        self._writer.write_event(self._proto.Event(step=step, wall_time=now, **what))


def read_records(path: str | os.PathLike) -> list[dict[str, float]]:
    """Reads `metrics.jsonl` (or the directory that holds it) as a list of records in the order written.

    A torn last line, left by a killed run, is skipped; any other line that is no record raises UserError.
    """
    path = pathlib.Path(path)
    path = path / FILENAME if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return [{name: value if name == "step" else float(value) for name, value in record.items()}
            for record in _lines(path)]


def read_metrics(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads `metrics.jsonl` as columns, each [records]: `step` int64, others float64, NaN where absent."""
    records = read_records(path)
    names = list(dict.fromkeys(name for record in records for name in record))
    columns = {name: np.array([record.get(name, math.nan) for record in records]) for name in names}
    return {name: column.astype(np.int64) if name == "step" else column for name, column in columns.items()}


def json_number(value: float) -> float | str:
    """The float, or its name ("nan", "inf", "-inf") where JSON has no number for it; `float()` inverts."""
    value = float(value)
    return value if math.isfinite(value) else str(value)


def json_ready(data: Any) -> Any:
    """JSON data in which floats that JSON does not have stand as their names: a PSNR can be infinite."""
    if isinstance(data, Mapping):
        return {name: json_ready(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [json_ready(value) for value in data]
    return json_number(data) if isinstance(data, float) else data


def _scalar(name: str, value: Any) -> float:
    if np.shape(value) != ():
        raise UserError(f"metric {name!r} has shape {list(np.shape(value))}; permitted: a scalar")
    return float(value)


def _lines(path: pathlib.Path) -> Iterator[dict]:
    """The records of the file; a last line that is cut off is left out."""
    # What follows the last newline is nothing, or a line torn by a kill.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line, parse_constant=_refuse_constant)
            usable = (isinstance(record, dict) and isinstance(record.get("step"), int) and abs(record["step"]) < 2**63
                      and all(isinstance(value, int | float) or value in _NOT_FINITE for value in record.values()))
            for value in record.values() if usable else ():
                float(value)
        except (ValueError, OverflowError, RecursionError):  # numbers too long for Python are a ValueError
            usable = False
        if not usable:
            raise UserError(f"{path} line {number} is not a metric record: {line[:60]!r}")
        yield record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _prepare(path: pathlib.Path, first_step: int | None) -> None:
    """Drops a torn last line and, on resume, every record at or after `first_step`."""
    if not path.exists():
        return
    kept = [record for record in _lines(path) if first_step is None or record["step"] < first_step]
    text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in kept)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)  # the old file stays whole until the new one is
