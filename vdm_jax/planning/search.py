"""The largest batch, and the cheapest mesh and rematerialisation, that fit."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from vdm_jax.errors import UserError
from vdm_jax.parallel.gathers import check_shards
from vdm_jax.parallel.mesh import MeshSpec
from vdm_jax.planning.advice import judge
from vdm_jax.planning.cache import Reports
from vdm_jax.planning.chips import GIB
from vdm_jax.planning.flops import remat_choices
from vdm_jax.planning.moved import least_memory
from vdm_jax.planning.program import Plan, plan_mesh, unit_of_batches
from vdm_jax.training.state import abstract_state

TRIES = 6  # programs compiled for one mesh and one setting of rematerialisation, at most


@dataclasses.dataclass(frozen=True)
class SearchStep:
    """A program that is compiled next (`report` is None), or what came of it."""

    text: str
    report: dict[str, Any] | None
    done: int  # programs
    most: int  # programs in all, at most
    left: float | None  # seconds, at most, at the pace so far


Tell = Callable[[SearchStep], None]


class Pace:
    """How many programs were compiled, how many there may be, and how long that may take."""

    def __init__(self, settings: int, tries: int, tell: Tell):
        self.settings, self.tries, self.done, self.tried, self._spent, self._tell = settings, tries, 0, 0, 0.0, tell

    @property
    def most(self) -> int:
        """Programs in all, at most."""
        return self.done + self.settings * self.tries - self.tried

    def compiled(self, text: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do the work of one program, telling of it before and after."""
        self.say(text, None)
        began = time.monotonic()
        report = work()
        self._spent += time.monotonic() - began
        self.done, self.tried = self.done + 1, self.tried + 1
        self.say(text, report)
        return report

    def say(self, text: str, report: dict[str, Any] | None) -> None:
        """Tell of something that has no program of its own."""
        left = self._spent / self.done * (self.most - self.done) if self.done else None
        self._tell(SearchStep(text, report, self.done, self.most, left))

    def finish(self, settings: int = 1) -> None:
        """So many settings need no further programs."""
        self.settings, self.tried = self.settings - settings, 0


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
        """Bound from above of all devices together, with what the program sends; None without a roofline."""
        rate = (self.report or {}).get("as_compiled")
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
    tell: Tell = lambda step: None,
) -> list[Found]:
    """The largest batch that fits for every mesh and rematerialisation, the best first.

    Best is the most clips per second by the roofline; where the chip has no figures, the largest batch, then the
    setting that recomputes least. A mesh needs no setting that recomputes more once a lighter one fits with the batch
    that is wanted, or when the heavier one cannot reach the rate of the lighter one at the peak of the chip. What
    cannot fit by its shapes alone is not compiled. Of the default meshes, those whose weights or gradients the compiler
    would sum (`gathers.check_shards`) are left out once another one fits.

    Args:
      plan: what is compiled; its mesh, batch and rematerialisation are replaced.
      devices: of the plan; `capacity` is in bytes per device.
      meshes, remats: to try; `default_meshes` and `remat_choices` by default, the lightest first.
      batch: only this global batch instead of the largest.
      most: clips per call that are not exceeded.
      tell: called with what is compiled next and what came of it.

    Raises `UserError` when the capacity is not known.
    """
    if capacity is None:
        raise UserError("--search does not know the memory of these devices; permitted: --memory-gib, per device")
    # Sampling keeps nothing for a backward pass, so there is nothing to choose.
    settings = (plan.stage.network.remat,) if plan.what == "sample" else tuple(remats) or remat_choices()
    chosen = meshes or default_meshes(len(devices))
    pace = Pace(len(chosen) * len(settings), 1 if batch is not None else TRIES, tell)
    limits = _Limits(plan.batch if batch is None else batch, batch, most, capacity)
    rows = []
    for mesh in chosen:
        sums = _sums(plan, mesh, devices) if not meshes and any(row.plan for row in rows) else None
        if sums is None:
            rows += _one_mesh(plan, mesh, settings, reports, devices, limits, pace)
        else:  # a mesh that nobody named, after one that fits
            rows.append(Found(mesh, settings[0], None, None, f"not compiled: {sums}"))
            pace.finish(len(settings))
    order = {remat: i for i, remat in enumerate(settings)}

    def badness(row: Found) -> tuple:
        size = row.report["batch"] if row.report else 0
        return row.plan is None, -(row.clips_per_second or 0.0), -size, order.get(row.remat, 0)

    return sorted(rows, key=badness)


def _sums(plan: Plan, mesh: MeshSpec, devices: Sequence[jax.Device]) -> str | None:
    """Why the weights of a train step should not be split over a mesh, if they should not."""
    grid = plan_mesh(mesh, devices)
    return check_shards(abstract_state(plan.stage, grid).params, grid) if plan.what == "train" else None


class _Limits(NamedTuple):
    wanted: int  # clips; what fits these needs no more recomputation
    batch: int | None  # the only batch to try
    most: int  # clips
    capacity: int  # bytes per device


def _one_mesh(plan: Plan, mesh: MeshSpec, settings: Sequence[Any], reports: Reports, devices: Sequence[jax.Device],
              limits: _Limits, pace: Pace) -> list[Found]:
    """Every setting of rematerialisation, the lightest first, as long as a heavier one can be better."""
    rows: list[Found] = []
    for i, remat in enumerate(settings):
        trial = dataclasses.replace(plan.with_remat(remat), mesh=mesh)
        try:
            lighter = _good_enough(rows, trial, reports, devices, limits)
            if lighter is None:
                rows.append(_largest(trial, reports, devices, limits, pace))
            else:
                rows.append(Found(mesh, remat, None, None, f"no faster than {lighter.remat}, which fits: not compiled"))
            pace.finish()
        except UserError as error:  # of the mesh, whatever is recomputed
            rows.append(Found(mesh, remat, None, None, str(error)))
            pace.finish(len(settings) - i)
            pace.say(str(error), None)
            break
    return rows


def _good_enough(rows: Sequence[Found], heavier: Plan, reports: Reports, devices: Sequence[jax.Device],
                 limits: _Limits) -> Found | None:
    """A lighter setting on the same mesh that a heavier one cannot beat."""
    fitting = [row for row in rows if row.plan is not None]
    for row in fitting:
        if row.plan.batch >= min(limits.wanted, limits.most):
            return row
    if not fitting or fitting[0].clips_per_second is None:
        return None
    trial = heavier.with_batch(unit_of_batches(heavier, plan_mesh(heavier.mesh, devices)))
    peak = trial.batch / reports.counted(trial)["roofline"]["seconds"]["compute"]  # the same at every batch
    best = max(fitting, key=lambda row: row.clips_per_second)
    return best if best.clips_per_second >= peak else None


def _largest(plan: Plan, reports: Reports, devices: Sequence[jax.Device], limits: _Limits, pace: Pace) -> Found:
    """From a closed-form estimate of the memory to what the compiler says, correcting the estimate each time."""
    unit = unit_of_batches(plan, plan_mesh(plan.mesh, devices))
    low, high = 0, limits.most // unit + 1  # in units: fits, does not
    best: tuple[Plan, dict[str, Any]] | None = None
    last: dict[str, Any] = {}
    size = limits.batch or min(estimated_units(plan, unit, limits.capacity, reports), high - 1) * unit
    least = _least(plan, limits.batch or unit, unit, reports)
    if least > limits.capacity:
        return Found(plan.mesh, plan.stage.network.remat, None, None, f"needs at least {least / GIB:.2f} of "
                     f"{limits.capacity / GIB:.2f} GiB per device by its shapes: not compiled")
    while size and (limits.batch is None or not last):
        trial = plan.with_batch(size)
        last = pace.compiled(f"{label(trial)}, batch {size}",
                             lambda trial=trial: judge(reports.get(trial), limits.capacity))
        count = size // unit
        if last["verdict"] == "fits":
            low, best = count, (trial, last)
        else:
            high = count
        size = 0 if pace.tried >= TRIES else unit * _next(low, high, count, last, limits.capacity, pace.tried)
    if best is None:
        return Found(plan.mesh, plan.stage.network.remat, None, None, _why_not(last, limits.most))
    return Found(plan.mesh, plan.stage.network.remat, *best)


def _least(plan: Plan, batch: int, unit: int, reports: Reports) -> int:
    """Bytes per device that a train step keeps at the least, from its shapes; 0 for a sampler. What is offloaded lies
    in the memory of the host."""
    if plan.what == "sample":
        return 0
    moved = reports.counted(plan.with_batch(unit))["moved"]
    more = {name: moved[name] * batch // unit for name in ("activations", "inputs")}
    if plan.stage.network.remat == "offload":
        more["activations"] = 0
    return least_memory({**moved, **more}, plan.stage.training.accumulation)


def _next(low: int, high: int, count: int, last: dict[str, Any], capacity: int, tried: int) -> int:
    """Units to try next, 0 when the answer is within an eighth, which is as fine as it matters."""
    step = max(low // 8, 1)
    if high - low <= step:
        return 0
    if not low and tried >= TRIES - 1:
        return 1  # whether anything fits at all
    needed, fixed = last.get("memory", {}).get("needed"), sum(last["state"].values())
    guess = (low + high) // 2
    if needed and needed > fixed and capacity > fixed:  # memory grows with the batch
        guess = int((capacity - fixed) / (needed - fixed) * count)
    return min(max(guess, low + step), max(high - 1, low + 1))


def estimated_units(plan: Plan, unit: int, capacity: int, reports: Reports) -> int:
    """How many `unit`s of clips should fit: what the state and the gradients leave, over what the backward pass keeps
    of a unit. Sampling keeps nothing: as many as its config says."""
    if plan.what == "sample":
        return max(plan.batch // unit, 1)
    moved, parts = reports.counted(plan.with_batch(unit))["moved"], plan.stage.training.accumulation
    each = (moved["activations"] // 2 + moved["inputs"]) // parts  # one micro-batch at a time
    state = moved["state"] // 2 + moved["gradients"] // 2 // parts
    return max(int((capacity - state) / max(each, 1)), 1)


def _why_not(last: dict[str, Any], most: int) -> str:
    needed = last.get("memory", {}).get("needed")
    if needed:
        return f"needs {needed / 2**30:.2f} of {last['capacity'] / 2**30:.2f} GiB per device at batch {last['batch']}"
    return last["status"] if last else f"one clip per device is more than {most} clips"


def label(plan: Plan) -> str:
    """A mesh and a rematerialisation, shortly."""
    axes = ", ".join(f"{field.name}={getattr(plan.mesh, field.name)}" for field in dataclasses.fields(plan.mesh)
                     if getattr(plan.mesh, field.name) != 1)
    return f"mesh {axes or 'of one device'}, remat {plan.stage.network.remat}"
