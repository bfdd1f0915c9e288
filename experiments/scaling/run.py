"""Compile the cases of this folder ahead of time and write what the compiler says into results/ and README.md.

Run:   python -m experiments.scaling.run                       everything; hours on two cores, goes on where it stopped
       python -m experiments.scaling.run --only 'full.*v5p'    cases whose name matches
       python -m experiments.scaling.run --minutes 60          stops beginning new ones after an hour
       python -m experiments.scaling.run --shapes              count what is not compiled from shapes, seconds each
       python -m experiments.scaling.run --report              only rewrite README.md and the plots
Needs: pip install 'vdm_jax[tpu]' 'vdm_jax[plots]' (no TPU)
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.exit_codes import exit_code
from experiments.scaling.cases import Case, cases
from experiments.scaling.report import PAGE, write_report
from vdm_jax.benchmark.plots import require_matplotlib
from vdm_jax.benchmark.record import open_record, save
from vdm_jax.commands.progress import sweep_progress
from vdm_jax.errors import UserError
from vdm_jax.planning.advice import capacity_of, judge
from vdm_jax.planning.cache import devices_of
from vdm_jax.planning.chips import chip_of
from vdm_jax.planning.inputs import training_batch
from vdm_jax.planning.moved import least_memory, training_bytes
from vdm_jax.planning.program import compile_plan, counted_from_shapes, far_axes, plan_mesh, state_sizes
from vdm_jax.planning.roofline import METHOD, Load, roofline
from vdm_jax.training.state import abstract_state
from vdm_jax.versions import versions

HERE = Path(__file__).parent
RECORD = HERE / "results" / "compiled.json"
KEPT = ("status", "verdict", "capacity", "parameters", "state", "memory", "flops", "moved", "roofline", "as_compiled",
        "collectives", "mesh", "devices", "chips", "compile_seconds", "trace_seconds", "warnings", "advice", "reason",
        "remat", "dtype")


def protocol() -> dict[str, str]:
    """How the numbers came about; rows of one record share it."""
    return {"work": "compiled ahead of time by libtpu at little effort; nothing was run", "roofline": METHOD,
            "memory": "arguments, new outputs, temporaries at the compiler's peak, and code",
            "text": "128 tokens per caption", "state": "parameters, AdamW moments and average in float32: 16 bytes per "
            "parameter in training, 4 in sampling"}


def compiled(case: Case) -> dict[str, Any]:
    """The report of a case, without what the case itself says; a `UserError` is a row that says why."""
    plan, before = case.plan(), resident()
    try:
        devices = devices_of(plan)
        report = judge(compile_plan(plan, devices), capacity_of(devices[0]))
    except UserError as error:
        return {"status": "refused", "reason": str(error)}
    most = resident()  # of this process until now: of this case where it is more than before
    return {**{name: report[name] for name in KEPT if name in report},
            **({"compiler_gib": round(most, 2)} if most > before else {})}


def resident() -> float:
    """The most memory that this process has held, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def counted(case: Case, rows: dict[str, Any]) -> dict[str, Any]:
    """What shapes alone say of a train step: state, roofline, and the least that it keeps in memory and sends. FLOPs
    and saved activations are, per clip, those of a row with the same network, which is not traced again."""
    plan = case.plan()
    devices = devices_of(plan)
    mesh, chip = plan_mesh(plan.mesh, devices), chip_of(devices[0])
    state = abstract_state(plan.stage, mesh)
    about = {"status": "from shapes", "capacity": capacity_of(devices[0]), **state_sizes(plan, state),
             "mesh": dict(mesh.shape), "chips": case.chips}
    same = (other for other in cases() if (other.config, other.stage, other.what, other.remat) == (
        case.config, case.stage, case.what, case.remat) and rows.get(other.name, {}).get("moved"))
    if (like := next(same, None)) is None:
        found = counted_from_shapes(plan, mesh, state)
    else:
        each, share = rows[like.name], case.batch / like.batch
        batch, _ = training_batch(plan.stage, plan.data, plan.batch, plan.text_tokens, mesh)
        saved = int(each["moved"]["activations"] // 2 * like.chips * share)
        moved = training_bytes(plan.stage, state, batch, mesh, far_axes(mesh), saved)
        work = {name: each["flops"][name] * share for name in ("model", "computed")}
        load = Load(work["model"] / mesh.size, work["computed"] / mesh.size, moved.memory, moved.sent, moved.sent_far)
        found = {"flops": work, "moved": {**dataclasses.asdict(moved), "memory": moved.memory},
                 "roofline": roofline(load, chip)}
    return {**about, **found, "least": least_memory(found["moved"], case.accumulation)}


def record(chosen: Sequence[Case], path: Path = RECORD, *, minutes: float | None = None, fresh: bool = False,
           compile_case: Callable[..., dict[str, Any]] = compiled, rows: str = "rows") -> dict[str, Any]:
    """Compile what the record lacks, saving after every case; `rows` is where it keeps them."""
    about = {"device": {"kind": "none: ahead of time"}, "versions": versions(), "protocol": protocol()}
    found, began = open_record(path, about, fresh=fresh), time.monotonic()
    missing = {case.name: case for case in chosen
               if case.name not in found["rows"] and case.name not in found.get(rows, {})}
    with sweep_progress() as progress:
        for done, (name, case) in enumerate(missing.items()):
            spent = time.monotonic() - began
            if minutes is not None and spent > 60 * minutes:
                break
            progress(done, len(missing), name, spent / done * (len(missing) - done) if done else None)
            row = compile_case(case) if rows == "rows" else compile_case(case, {**found.get(rows, {}), **found["rows"]})
            found = open_record(path, about, fresh=fresh and not done)  # with what others have added meanwhile
            found.setdefault(rows, {})[name] = row
            save(path, found)
    return found


def main() -> int:
    """Compile and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression; cases whose name it finds")
    parser.add_argument("--minutes", type=float, help="begin no new case after so many")
    parser.add_argument("--shapes", action="store_true", help="count train steps that are not compiled, from shapes")
    parser.add_argument("--report", action="store_true", help="only write README.md and plots from the record")
    parser.add_argument("--fresh", action="store_true", help="compile again what is recorded")
    args = parser.parse_args()

    def work() -> None:
        require_matplotlib()
        if not args.report:
            chosen = [case for case in cases() if re.search(args.only, case.name)]
            if not chosen:
                raise UserError(f"--only {args.only!r} matches no case; permitted: a part of "
                                f"{cases()[0].name!r} and the like")
            if args.shapes:
                record([case for case in chosen if case.what == "train"], minutes=args.minutes, compile_case=counted,
                       rows="shapes")
            else:
                record(chosen, minutes=args.minutes, fresh=args.fresh)
        write_report(RECORD, HERE / "README.md", PAGE)
        print(HERE / "README.md")

    return exit_code("scaling", work)


if __name__ == "__main__":
    sys.exit(main())
