"""Which run a directory is, and who trains it now: `run.json` and `train.STAGE.lock` next to `config.json`.

`run.json` has the run's identifier, which every manifest of a checkpoint repeats, and hashes of `config.json`, so that
a flipped bit there is noticed. Runs of older versions, and exported ones, have none and are not compared.

A lock is a POSIX record lock (`fcntl.lockf`) that process 0 holds while it trains a stage. The kernel frees it when the
process ends, however it ends, so that a job that is started again is never kept out by a dead one. The text in the file
only says who held it last. NFS (version 4, or 3 with its lock service) tells other hosts of such locks; a file system
that does not (object stores mounted as folders, Lustre with `localflock`) protects within one host only, and one that
has no locks at all is named in a warning.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from vdm_jax.errors import UserError
from vdm_jax.runs.failures import write_failure

log = logging.getLogger(__name__)

IDENTITY = "run.json"
_WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_held: set[str] = set()  # paths that this process holds: the system would grant them again


def write_identity(run: Path, config: str) -> None:
    """Note the text of `config.json` that is about to be written; the one before stays valid until it is."""
    known = read_identity(run) or {"id": uuid.uuid4().hex, "config": []}
    hashes = [_hash(config.encode()), *known["config"][:1]]
    if known["config"][:1] == hashes[:1]:
        return
    from vdm_jax.video.writing import atomic_path

    with atomic_path(run / IDENTITY) as temporary:
        temporary.write_text(json.dumps({"id": known["id"], "config": hashes}, indent=1) + "\n")


def read_identity(run: Path) -> dict | None:
    """`id` and hashes (`config`) of a run, or None where it has none. Raises `UserError` for a damaged file."""
    path = run / IDENTITY
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found["id"], str) and all(isinstance(text, str) for text in found["config"]):
            return found
        reason = "it has other entries"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = str(error)
    raise UserError(f"{path} is damaged ({reason}); permitted: the file as it was written, or none: then nothing tells "
                    "whether config.json and the checkpoints belong to this run")


def check_config(run: Path, path: Path, content: bytes) -> None:
    """Raises `UserError` when the content of `config.json`, read before this is called, is not what was written."""
    known = read_identity(run)
    if known is not None and _hash(content) not in known["config"]:
        raise UserError(f"{path} has changed since training wrote it; permitted: the file as it was written, or no "
                        f"{path.with_name(IDENTITY)} next to it, where it was changed on purpose")


def owner(run: Path, stage: str) -> dict[str, str]:
    """Whose the checkpoints of a stage are, for `Checkpoints(owner=)`."""
    known = read_identity(run)
    return {"stage": stage} if known is None else {"run": known["id"], "stage": stage}


@contextlib.contextmanager
def run_locks(run: Path, stages: Sequence[str]) -> Iterator[None]:
    """Hold the locks of the stages to train; the directory is made.

    Raises `UserError` that names who trains one of them already, or why the lock cannot be written.
    """
    with contextlib.ExitStack() as stack:
        for stage in stages:
            stack.enter_context(_lock(run, stage))
        yield


def is_lock(path: Path) -> bool:
    """Whether a file of a run directory is a lock."""
    return path.name.startswith("train.") and path.suffix == ".lock"


@contextlib.contextmanager
def _lock(run: Path, stage: str) -> Iterator[None]:
    path = run / f"train.{stage}.lock"
    name = os.path.realpath(path)
    permitted = "permitted: wait for it or stop it, or another directory (--run)"
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = open(path, "r+" if path.exists() else "w+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"run directory {run} cannot be written: {write_failure(error)}; permitted: a directory that "
                        "can be (--run)") from error
    with file:
        if name in _held:
            raise UserError(f"stage {stage!r} of run {run} is being trained by this very process; {permitted}")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                who = file.read(500).strip() or "another process"
                raise UserError(f"stage {stage!r} of run {run} is being trained by {who}; {permitted}") from error
            log.warning("the file system of %s has no locks (%s): nothing keeps a second training out of it", run,
                        error.strerror)
        _held.add(name)
        try:
            file.seek(0)
            file.truncate()
            now = time.strftime("%Y-%m-%d %H:%M:%S %z")
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}\n")
            file.flush()
            yield
        finally:
            _held.discard(name)
            with contextlib.suppress(OSError):
                file.truncate(0)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
