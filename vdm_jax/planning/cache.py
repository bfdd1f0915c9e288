"""Reports on disk, one JSON file per plan, so that nothing is compiled twice."""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from vdm_jax.configuration import to_data
from vdm_jax.planning import topology
from vdm_jax.planning.inputs import clip_shape
from vdm_jax.planning.program import Plan, compile_plan, counted_from_shapes, plan_mesh
from vdm_jax.versions import source_digest, versions
from vdm_jax.video.writing import atomic_path

FORMAT = 2  # of a report; older ones are compiled again
# Rooms whose code decides about the programs of a stage and about what is read from them: a changed layer makes reports
# stale, not wrong.
ROOMS = ("attention", "conditions", "diffusion", "networks", "parallel", "planning", "stages", "training", "video",
         "weights")
# What depends on the name alone and not on the program.
NAMES = ("experiment",)
# Flags that the compiler reads in addition to those of the plan.
ENVIRONMENT = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


def default_folder() -> Path:
    """Where reports are kept: `$VDM_JAX_PLANS`, or `~/.cache/vdm_jax/plans`."""
    return Path(os.environ.get("VDM_JAX_PLANS") or Path.home() / ".cache" / "vdm_jax" / "plans")


def content_key(plan: Plan, devices: Sequence[jax.Device] | None = None) -> str:
    """Key of a plan's report: config, size of the clips on disk, devices, effort, flags, versions and code. Slices are
    distinguished by name, so that a report can be found without the compiler; devices at hand by kind and number."""
    data = {name: value for name, value in to_data(plan).items() if name not in NAMES}
    if plan.topology is not None:
        data["topology"] = topology.full_name(plan.topology)
    else:
        devices = jax.devices() if devices is None else devices
        data["topology"] = f"{len(devices)} {devices[0].device_kind}"
    about = {"plan": data, "clips": clip_shape(plan.data, plan.stage), "versions": versions(),
             "code": source_digest(ROOMS), "format": FORMAT,
             "environment": {name: os.environ.get(name, "") for name in ENVIRONMENT}}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:20]


class Reports:
    """The reports in a folder.

    Args:
      folder: made when the first report is written.
      again: compile what is there already, once per plan.
      devices: the devices of a plan; those of its topology, or those at hand, by default.
    """

    def __init__(self, folder: Path, *, again: bool = False,
                 devices: Callable[[Plan], Sequence[jax.Device]] | None = None):
        self.folder, self._again, self._fresh = folder, again, set()
        self._devices = devices or devices_of

    def path(self, plan: Plan) -> Path:
        """Where the report of a plan is or will be."""
        devices = self._devices(plan) if plan.topology is None else None
        return self.folder / f"{plan.experiment}-{plan.stage.name}-{plan.what}-{content_key(plan, devices)}.json"

    def counted(self, plan: Plan) -> dict[str, Any]:
        """What is counted from shapes alone (`counted_from_shapes`), kept as reports are."""
        path = self.path(plan).with_suffix(".shapes.json")
        if (found := _read(path)) is None:
            found = counted_from_shapes(plan, plan_mesh(plan.mesh, self._devices(plan)))
            _write(path, found)
        return found

    def find(self, plan: Plan) -> dict[str, Any] | None:
        """The report of a plan that was compiled before, or None."""
        path = self.path(plan)
        return None if self._again and path not in self._fresh else _read(path)

    def get(self, plan: Plan) -> dict[str, Any]:
        """The report of a plan, compiled where it is not there yet. Raises `UserError` as `compile_plan` does."""
        if (found := self.find(plan)) is not None:
            return found
        about = {"versions": versions(), "code": source_digest(ROOMS), "date": datetime.date.today().isoformat()}
        report = {**compile_plan(plan, self._devices(plan)), **about}
        path = self.path(plan)
        _write(path, report)
        self._fresh.add(path)
        return report


def _read(path: Path) -> dict[str, Any] | None:
    """The object of a JSON file; None where there is none, and where it is damaged, which is as good as none."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, found: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")


def devices_of(plan: Plan) -> list[jax.Device]:
    """The devices that a plan is compiled for."""
    return jax.devices() if plan.topology is None else _slice_devices(plan.topology)


@functools.lru_cache(maxsize=8)
def _slice_devices(name: str) -> list[jax.Device]:
    return topology.devices(name)
