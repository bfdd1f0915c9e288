"""The largest batch, and the cheapest mesh and rematerialisation, that fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from vdm_jax.errors import UserError
from vdm_jax.parallel.mesh import MeshSpec
from vdm_jax.planning.advice import judge
from vdm_jax.planning.cache import Reports
from vdm_jax.planning.flops import remat_choices
from vdm_jax.planning.program import Plan, plan_mesh, unit_of_batches

Tell = Callable[[str, dict[str, Any] | None], None]  # what is compiled next, or what came of it


@dataclasses.dataclass(frozen=True)
class Found:
    """The outcome of one mesh and one setting of rematerialisation."""

    mesh: MeshSpec
    remat: Any
    plan: Plan | None  # with the largest batch that fits; None when none does
    report: dict[str, Any] | None
    reason: str = ""  # why none does

    @property
    def clips_per_second(self) -> float | None:
        """Bound from above of all devices together; None without a roofline."""
        rate = (self.report or {}).get("roofline")
        return self.report["batch"] / rate["step_seconds"] if rate else None


def default_meshes(devices: int) -> list[MeshSpec]:
    """Data parallel alone, then over and over twice as many devices per copy of the parameters, up to all."""
    found, fsdp = [], 1
    while fsdp <= devices:
        if devices % fsdp == 0:
            found.append(MeshSpec(data=devices // fsdp, fsdp=fsdp))
        fsdp *= 2
    return found


def search(
    plan: Plan, reports: Reports, devices: Sequence[jax.Device], capacity: int | None, *,
    meshes: Sequence[MeshSpec] = (), remats: Sequence[Any] = (), batch: int | None = None, most: int = 4096,
    tell: Tell = lambda text, report: None,
) -> list[Found]:
    """The largest batch that fits for every mesh and rematerialisation, the best first.

    Best is the most clips per second by the roofline; where the chip has no figures, the largest batch, then the
    setting that recomputes least. A larger setting of rematerialisation is left alone when the mesh does not fit for
    another reason than memory.

    Args:
      plan: what is compiled; its mesh, batch and rematerialisation are replaced.
      devices: of the plan; `capacity` is in bytes per device.
      meshes, remats: to try; `default_meshes` and `remat_choices` by default.
      batch: only this global batch instead of the largest.
      most: clips per call that are not exceeded.
      tell: told what is compiled next and what came of it.

    Raises `UserError` when the capacity is not known.
    """
    if capacity is None:
        raise UserError("--search does not know the memory of these devices; permitted: --memory-gib, per device")
    # Sampling keeps nothing for a backward pass, so there is nothing to choose.
    settings = (plan.stage.network.remat,) if plan.what == "sample" else tuple(remats) or remat_choices()
    rows = []
    for mesh in meshes or default_meshes(len(devices)):
        for remat in settings:
            trial = dataclasses.replace(plan.with_remat(remat), mesh=mesh)
            try:
                rows.append(_largest(trial, reports, devices, capacity, batch, most, tell))
            except UserError as error:
                rows.append(Found(mesh, remat, None, None, str(error)))
                tell(str(error), None)
                break
    order = {remat: i for i, remat in enumerate(settings)}

    def badness(row: Found) -> tuple:
        size = row.report["batch"] if row.report else 0
        return row.plan is None, -(row.clips_per_second or 0.0), -size, order.get(row.remat, 0)

    return sorted(rows, key=badness)


def _largest(plan: Plan, reports: Reports, devices: Sequence[jax.Device], capacity: int, batch: int | None, most: int,
             tell: Tell) -> Found:
    """Doubling from one clip per device until it no longer fits, then halving the gap."""
    unit = unit_of_batches(plan, plan_mesh(plan.mesh, devices))
    best: tuple[Plan, dict[str, Any]] | None = None

    def fits(size: int) -> bool:
        nonlocal best, last
        trial = plan.with_batch(size)
        tell(f"{label(trial)}, batch {size}", None)
        last = judge(reports.get(trial), capacity)
        tell(f"{label(trial)}, batch {size}", last)
        if last["verdict"] == "fits":
            best = trial, last
        return last["verdict"] == "fits"

    last: dict[str, Any] = {}
    if batch is not None:
        fits(batch)
    else:
        low, high = 0, None  # in units: fits, does not
        while high is None and unit * max(2 * low, 1) <= most:
            size = max(2 * low, 1)
            low, high = (size, None) if fits(unit * size) else (low, size)
        while high is not None and low and high - low > max(low // 8, 1):  # an eighth is as fine as it matters
            middle = (low + high) // 2
            low, high = (middle, high) if fits(unit * middle) else (low, middle)
    if best is None:
        needed = last.get("memory", {}).get("needed")
        reason = (f"needs {needed / 2**30:.2f} of {last['capacity'] / 2**30:.2f} GiB at batch {last['batch']}"
                  if needed else f"one clip per device is more than {most} clips" if not last else last["status"])
        return Found(plan.mesh, plan.stage.network.remat, None, None, reason)
    return Found(plan.mesh, plan.stage.network.remat, *best)


def label(plan: Plan) -> str:
    """A mesh and a rematerialisation, shortly."""
    axes = ", ".join(f"{field.name}={getattr(plan.mesh, field.name)}" for field in dataclasses.fields(plan.mesh)
                     if getattr(plan.mesh, field.name) != 1)
    return f"mesh {axes or 'of one device'}, remat {plan.stage.network.remat}"
