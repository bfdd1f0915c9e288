"""Checkpoints: save, list, verify and restore training states. The only file that imports orbax.

A checkpoint directory holds one directory per step, named by its number:

    20/state/          arrays (orbax, OCDBT); each process writes its own shards
    20/meta/           JSON: what the caller gave, plus step, library versions, mesh, processes
    20/manifest.json   JSON: the files and arrays that there must be (manifest.py)

A save goes to `20.orbax-checkpoint-tmp` and is renamed when complete, so a killed save is never listed. The
manifest is written last, by process 0, just before that rename, and compared with the files before reading.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import flax
import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from vdm_jax.configuration import Count, check_value
from vdm_jax.errors import UserError
from vdm_jax.parallel.processes import together
from vdm_jax.runs.aliases import plain_name
from vdm_jax.runs.failures import quieten_orbax, write_failure
from vdm_jax.runs.manifest import MANIFEST, examine, write_manifest
from vdm_jax.versions import VERSION
from vdm_jax.weights.signatures import abstract_dict, mismatch, signatures

_TEMPORARY = ".orbax-checkpoint-tmp"  # orbax's suffix of a step that is not complete
_ASIDE = ".damaged"  # suffix of a step that was set aside


class Checkpoints:
    """The checkpoints of one run. Every process of a job makes one and makes the same calls.

    Making one and reading change nothing on disk, so a sampler may read while a trainer saves; only one job
    may save into a directory.

    Args:
      directory: made at the first save; a local or shared file system.
      keep: the newest `keep` steps stay (None: all).
      asynchronous: `save` returns once the arrays are on the host, and writes in the background. A failure is
        then raised by the next `save`, `wait` or `close`.
      owner: whose checkpoints these are: the identifier of the `run` and the name of the `stage`. They are written
        into manifests, and checkpoints that name others are refused as damaged.

    Raises:
      UserError: the directory holds something else; a wrong `keep`.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int | None = 2, asynchronous: bool = True,
                 owner: Mapping[str, str] | None = None):
        check_value(keep, Count | None, "keep")
        name = os.fspath(directory)
        name = name if "://" in name else os.path.abspath(name)
        self.directory = epath.Path(name)
        self._plain = epath.Path(plain_name(name))  # how orbax knows the directory
        self._keep, self._asynchronous = keep, asynchronous
        self._owner = dict(owner or {})
        self._writer: ocp.CheckpointManager | None = None  # made at the first save: making one writes to disk
        self._saving: tuple[int, dict[str, str]] | None = None  # step and arrays of the save under way
        quieten_orbax()
        _refuse_foreign(self.directory)

    # Saving

    def save(self, step: int, state: Any, meta: Mapping[str, Any], force: bool = False) -> None:
        """Saves `state` as `step`; waits for an earlier save first. The arrays may be donated afterwards.

        Args:
          step: number of the checkpoint, newer than every other one.
          state: pytree of arrays, typed PRNG keys included, with any shardings.
          meta: JSON values, such as the digest of the config.
          force: replace the checkpoint of this very step, if there is one.

        Raises:
          UserError: the step exists, or a newer one does; no space left; the disk refuses to write.
        """
        self.wait()
        step = int(step)
        full_meta = _full_meta(step, state, meta)
        self._make_room(step, force)
        self._saving = step, signatures(state)
        with self._failures():
            if self._writer is None:
                self._writer = self._open_writer()
            self._writer.save(step, force=True, args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(full_meta)))
        if not self._asynchronous:
            self.wait()

    def wait(self) -> None:
        """Returns when the save under way is complete; raises UserError if it failed."""
        if self._saving is not None:
            with self._failures():
                self._writer.wait_until_finished()
            self._saving = None

    def close(self) -> None:
        """Waits, then frees threads. Reading and saving remain possible."""
        self.wait()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            self.close()
        except UserError as failure:
            if error is None:
                raise
            error.add_note(str(failure))  # the first error is the one to read

    def set_damaged_aside(self) -> dict[int, str]:
        """Renames the damaged checkpoints that are newer than the newest intact one to `STEP.damaged`, out of the way.

        Nothing is renamed where no checkpoint is intact: going on from nothing is not going on.

        Returns:
          What is wrong with each of them, by step.
        """
        self.close()
        damages = self.newest_damages() if self.newest_intact() is not None else {}
        _synchronise(f"examined {self.directory}")
        if jax.process_index() == 0:
            for step in damages:
                target = self.directory / f"{step}{_ASIDE}"
                target.rmtree(missing_ok=True)
                (self.directory / str(step)).rename(target)
        _synchronise(f"set aside {sorted(damages)}")
        return damages

    # Looking

    def newest_damages(self) -> dict[int, str]:
        """What is wrong with the checkpoints that are newer than the newest intact one, by step, newest first."""
        damages = {}
        for step in reversed(self.steps()):
            damage = self._damage(step)
            if damage is None:
                break
            damages[step] = damage
        return damages

    def newest_intact(self) -> int | None:
        """The newest step whose files are as they were written, or None."""
        damaged = self.newest_damages()
        return max((step for step in self.steps() if step not in damaged), default=None)

    def steps(self) -> list[int]:
        """Complete checkpoints, oldest first; a save under way is not among them until `wait` returned."""
        if not self.directory.exists():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir()
                      if path.name.isdigit() and ocp.utils.is_checkpoint_finalized(path))

    def latest(self) -> int | None:
        """The newest step, or None."""
        return max(self.steps(), default=None)

    def meta(self, step: int | None = None) -> dict[str, Any]:
        """What `save` stored next to the state: the caller's entries, and those of `_full_meta`."""
        step, _ = self._verified(step, part="meta/")
        with self._unreadable(step):
            # The handler itself has no barriers, so one process may read alone.
            return ocp.JsonCheckpointHandler().restore(self._plain / str(step) / "meta")

    # Restoring

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Restores the state of `step` (the latest), bit for bit.

        Args:
          abstract_state: pytree of `jax.ShapeDtypeStruct` (or arrays). Their shardings say where the arrays
            go, on any mesh and number of processes; without one an array goes to the first local device.
          step: one of `steps()`.

        Returns:
          The state in the structure of `abstract_state`, and `meta(step)`.

        Raises:
          UserError: no such checkpoint, a damaged one, or one of another model.
        """
        step, manifest = together(lambda: self._verified(step, shared=True))
        self._check_match(step, manifest["arrays"], abstract_state)
        return self._read(step, ocp.args.StandardRestore(_placed(abstract_state))), self.meta(step)

    def restore_subtree(self, name: str = "ema", abstract: Any = None,
                        step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Restores one top-level part of the state, such as `ema` or `params`, without building the rest.

        Args:
          name: field of the state.
          abstract: like `abstract_state` in `restore`, for this part alone. None: the part is a nested dict,
            restored as saved onto the first local device.
          step: one of `steps()`.
        """
        step, manifest = together(lambda: self._verified(step, shared=True))
        arrays = manifest["arrays"]
        stored = {path: text for path, text in arrays.items() if path.split("/")[0] == name}
        if not stored:
            fields = sorted({path.split("/")[0] for path in arrays})
            raise UserError(f"checkpoint {self.directory / str(step)} has no {name!r}; "
                            f"permitted: {', '.join(fields)}")
        item = _placed(abstract_dict(stored) if abstract is None else {name: abstract})
        self._check_match(step, stored, item)
        arguments = ocp.checkpoint_utils.construct_restore_args(item)
        partial = ocp.args.PyTreeRestore(item, restore_args=arguments, partial_restore=True)
        return self._read(step, partial)[name], self.meta(step)

    # Inside

    def _open_writer(self) -> ocp.CheckpointManager:
        self.directory.mkdir(parents=True, exist_ok=True)
        return _Manager(self._plain, options=ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True, max_to_keep=self._keep,
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal)))

    def _make_room(self, step: int, force: bool) -> None:
        newest = self.latest()
        if newest is not None and newest > step:
            raise UserError(f"checkpoint {step} cannot be saved: {self.directory} already has step {newest}; "
                            f"go on from step {newest}, delete the later ones, or use another directory")
        if newest == step:
            if not force:
                raise UserError(f"checkpoint {self.directory / str(step)} exists already")
            self.close()  # orbax lists the steps once, when opened
            if jax.process_index() == 0:
                (self.directory / str(step)).rmtree()
            _synchronise(f"deleted {step}")

    def _seal(self) -> None:
        """Writes the manifest; orbax calls it on process 0 when all have written, before the rename."""
        step, arrays = self._saving
        root = self.directory / f"{step}{_TEMPORARY}"
        if not root.exists():  # object stores have no rename: orbax writes in place and adds a marker
            root = self.directory / str(step)
        write_manifest(root, step, arrays, self._owner)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Turns a failed write into a UserError, and leaves this object able to read and to save again."""
        try:
            yield
        except Exception as error:
            step = self._saving[0]
            self._abandon(step)
            reason = write_failure(error)
            if reason is None:
                raise
            steps = ", ".join(map(str, self.steps()))
            raise UserError(f"checkpoint {step} was not saved in {self.directory}: {reason}; "
                            + (f"usable steps: {steps}" if steps else "there is no earlier step")) from error

    def _abandon(self, step: int) -> None:
        writer, self._writer, self._saving = self._writer, None, None
        if writer is not None:
            with contextlib.suppress(Exception):  # repeats the failure that is being reported
                writer.close()
        if jax.process_index() == 0:  # the half-written files would keep the disk full
            with contextlib.suppress(OSError):
                (self.directory / f"{step}{_TEMPORARY}").rmtree(missing_ok=True)

    def _verified(self, step: int | None, part: str = "", shared: bool = False) -> tuple[int, dict]:
        """The step to read and its manifest, after comparing the files with it.

        `part` as in `examine`. With `shared` every process is here and hashes its share of the files.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"there is no checkpoint in {self.directory}")
        step = steps[-1] if step is None else int(step)
        if step not in steps:
            raise UserError(f"there is no checkpoint {step} in {self.directory}; "
                            f"permitted: {', '.join(map(str, steps))}")
        share = (jax.process_index(), jax.process_count()) if shared else (0, 1)
        manifest, damage = examine(self.directory / str(step), self._owner, part, share)
        if damage is not None:
            raise UserError(f"checkpoint {self.directory / str(step)} is damaged: {damage}; {self._earlier(step)}")
        return step, manifest

    def _damage(self, step: int) -> str | None:
        return examine(self.directory / str(step), self._owner)[1]

    def _earlier(self, step: int) -> str:
        intact = [str(other) for other in self.steps() if other < step and self._damage(other) is None]
        if not intact:
            return "there is no intact earlier step"
        return f"permitted: --damaged skip, to use the newest of the intact earlier steps: {', '.join(intact)}"

    def _read(self, step: int, arguments: Any) -> Any:
        # A new reader each time: one that restored with StandardRestore refuses PyTreeRestore.
        with self._unreadable(step), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            return reader.restore(self._plain / str(step), args=ocp.args.Composite(state=arguments))["state"]

    @contextlib.contextmanager
    def _unreadable(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Orbax raises plain `Exception` for arrays it cannot decode; other types are not about the files.
            if type(error) is not Exception and not isinstance(error, ValueError | OSError | KeyError):
                raise
            reason = str(error.__cause__ or error).partition("\n")[0][:300]
            raise UserError(f"checkpoint {self.directory / str(step)} cannot be read: {reason}; "
                            f"{self._earlier(step)}") from error

    def _check_match(self, step: int, stored: Mapping[str, str], asked: Any) -> None:
        if listed := mismatch(stored, signatures(asked)):
            raise UserError(f"checkpoint {self.directory / str(step)} is of another model: {listed}")


class _Manager(ocp.CheckpointManager):
    """Leaves the question when to stop to `stopping.py`: two that ask would disturb each other's count of steps."""

    def reached_preemption(self, step: int) -> bool:
        return False


def _refuse_foreign(directory: epath.Path) -> None:
    """Raises unless the directory is absent, empty, ours, or holds nothing but saves that were cut off."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory")
    names = sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
    steps = [name for name in names if name.isdigit()]
    # A step that lost some of its parts is damaged, not foreign: `restore` says so. A kill while an old step is deleted
    # may even leave nothing that shows whose it is; then there is a newer one that does.
    foreign = [name for name in steps
               if not any((directory / name / part).exists() for part in (MANIFEST, "meta"))]
    if len(foreign) < len(steps):
        foreign = []
    if not steps:
        foreign = [name for name in names if not name.endswith(_TEMPORARY)]
    if foreign:
        raise UserError(f"{directory} is not a directory of vdm_jax checkpoints: it holds {foreign[0]!r}; "
                        "use another or an empty directory")


def _synchronise(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _placed(tree: Any) -> Any:
    """Abstract tree with a sharding on every leaf."""
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or default), tree)


def _full_meta(step: int, state: Any, meta: Mapping[str, Any]) -> dict:
    meshes = (getattr(getattr(leaf, "sharding", None), "mesh", None) for leaf in jax.tree.leaves(state))
    mesh = next((mesh for mesh in meshes if mesh is not None), None)
    added = {
        "step": step,
        "versions": {"vdm_jax": VERSION, "jax": jax.__version__, "flax": flax.__version__,
                     "orbax": ocp.__version__},
        "mesh": {} if mesh is None else dict(mesh.shape),  # axis name -> devices
        "processes": jax.process_count(),
    }
    if taken := sorted(set(meta) & set(added)):
        raise ValueError(f"meta[{taken[0]!r}] is filled in by save; permitted: names except {list(added)}")
    json.dumps(dict(meta))  # a TypeError here and now, not in the background
    return {**meta, **added}
