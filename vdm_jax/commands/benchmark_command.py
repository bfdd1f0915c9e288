"""`vdm-jax benchmark`: measure attention, or compile it ahead of time for a TPU slice."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vdm_jax.benchmark.cases import MODES, Sweep
from vdm_jax.commands.arguments import given, parse, refuse_unused
from vdm_jax.commands.outputs import check_folder
from vdm_jax.configuration import Count, Positive, Size
from vdm_jax.errors import UserError
from vdm_jax.parallel.mesh import MeshSpec
from vdm_jax.training.report import log_console

FAILED = 1  # exit code when a case failed for another reason than the ones rows are made for

OF_REPORT = ("what", "report", "plots", "out")  # options that --report reads


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Measure attention patterns and kernels over frames, resolution and heads: time, memory, achieved FLOP/s.

    Every combination of the values becomes a row. Rows that the capability table does not list, or that do not fit into
    memory, say why. The results are attention.json, attention.md and plots in --out; the same command goes on where an
    interrupted one stopped. With --topology nothing is run: each case is compiled for a TPU slice (needs the extra
    [tpu], no TPU) and its rows say memory per chip and collectives.

    Examples:
      vdm-jax benchmark attention --patterns full causal "SparseCausal(own=True)" --frames 8 16 32 --sides 8 16
      vdm-jax benchmark attention --patterns radial sliding-tiles "Neighbourhood(stride=(1, 2, 2))"
      vdm-jax benchmark attention --kernels xla chunked gather --dtypes bfloat16 --heads 16 --head-dims 128
      vdm-jax benchmark attention --topology v5p-64 --frames 128 --sides 64 --dtypes bfloat16 --out benchmarks/v5p
    """

    what: tyro.conf.Positional[Literal["attention"]]  # what is measured
    patterns: tuple[str, ...] = Sweep.patterns  # with options as in "Causal(window=4)"
    kernels: tuple[str, ...] = Sweep.kernels  # auto, names of the capability table, or linear (attention)
    contexts: tuple[str, ...] = Sweep.contexts  # how tokens are spread over devices
    frames: tuple[Size, ...] = Sweep.frames
    sides: tuple[Size, ...] = Sweep.sides  # tokens per side of a square frame
    heads: tuple[Size, ...] = Sweep.heads
    head_dims: tuple[Size, ...] = Sweep.head_dims
    batch: Count = Sweep.batch  # clips
    dtypes: tuple[str, ...] = Sweep.dtypes  # float32, bfloat16, float16
    modes: tuple[str, ...] = MODES
    seconds: Positive = 3.0  # time budget of one case's repetitions
    memory_gib: Positive | None = None  # per device, above which a case is not run; most of what there is by default
    mesh: MeshSpec = MeshSpec(data=1, context=-1)  # of cases with a context
    topology: str | None = None  # compile for this TPU slice instead: v5p-64 (a product's name) or v5p:2x4x4
    matmul_size: Size | None = None  # rows of the matrices of the measured peak; 2048 on CPU, 8192 elsewhere
    out: Path = Path("benchmarks/attention")  # folder of the results
    plots: bool = True  # draw pictures (needs the extra [plots]; without it a line says so and the rest is done)
    fresh: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False  # measure again what is recorded
    report: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False  # only write table and plots from the record


def main(arguments: Sequence[str]) -> int:
    """Entry of the command."""
    options = parse(Benchmark, arguments, "vdm-jax benchmark")
    path = options.out / "attention.json"
    _check(options)
    plots = options.plots and _can_draw()
    if options.report:
        from vdm_jax.benchmark.record import load

        record = load(path)
    else:
        record = _record(options, path)
    written = write_results(record, options.out, plots=plots)
    print((options.out / "attention.md").read_text())
    for name in (path, *written):
        print(name)
    failed = [key for key, row in record["rows"].items() if row["status"] == "failed"]
    if failed:
        console = log_console()
        console.print(f"{len(failed)} cases failed and are tried again next time, the first: {failed[0]}", markup=False)
    return FAILED if failed else 0


def write_results(record: dict[str, Any], folder: Path, *, plots: bool) -> list[Path]:
    """Table and, if wanted, pictures next to the record; returns the files."""
    from vdm_jax.benchmark.report import markdown
    from vdm_jax.video.writing import atomic_path

    with atomic_path(folder / "attention.md") as temporary:
        temporary.write_text(markdown(record))
    written = [folder / "attention.md"]
    if plots:
        from vdm_jax.benchmark.plots import draw

        written += draw(record, folder)
    return written


def _can_draw() -> bool:
    """Whether matplotlib is there; if not, say before measuring what will be missing and how to get it."""
    from vdm_jax.benchmark.plots import require_matplotlib

    try:
        require_matplotlib()
    except UserError as error:
        console = log_console()
        console.print(f"no plots this time, table and JSON only: {error}; --report draws them later from the record",
                      markup=False)
        return False
    return True


def _record(options: Benchmark, path: Path) -> dict[str, Any]:
    """Measure or compile what the record lacks, with progress."""
    names = [field.name for field in dataclasses.fields(Sweep)]
    cases = Sweep(**{name: getattr(options, name) for name in names}).cases()
    from vdm_jax.benchmark.sweep import compile_ahead, measure
    from vdm_jax.commands.progress import sweep_progress

    limit = None if options.memory_gib is None else int(options.memory_gib * 2**30)
    with sweep_progress() as progress:
        try:
            if options.topology is not None:
                return compile_ahead(cases, path, options.topology, mesh=options.mesh, fresh=options.fresh,
                                     progress=progress)
            return measure(cases, path, seconds=options.seconds, mesh=options.mesh, limit=limit,
                           matmul_size=options.matmul_size, fresh=options.fresh, progress=progress)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped; finished cases are in {path}, the same command goes on") from None


def _check(options: Benchmark) -> None:
    """Refuse what would only show after measuring."""
    if options.report:
        refuse_unused(options, [name for name in given(options) if name not in OF_REPORT], "with --report",
                      "--report with --out and --no-plots alone")
    if options.topology is not None:
        refuse_unused(options, ("seconds", "memory_gib", "matmul_size"), "with --topology, which runs nothing,",
                      "one of the two")
    check_folder(options.out)
