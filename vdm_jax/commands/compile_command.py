"""`vdm-jax compile`: what a stage's train step or sampler needs, from the compiler, before anyone books a machine."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import rich.console
import tyro

from vdm_jax.commands.arguments import override, parse_with_rest, refuse_unused
from vdm_jax.commands.configs import load_cascade
from vdm_jax.configuration import Count, Positive, Size
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.errors import UserError
from vdm_jax.parallel.mesh import MeshSpec
from vdm_jax.stages.stage import Experiment
from vdm_jax.training.report import log_console


@dataclasses.dataclass(frozen=True)
class Compile:
    """Compile the real train step or sampler of a stage, and say what it needs, without running or allocating anything.

    Prints parameters, memory per chip against what the chip has, FLOPs, collectives with the mesh axes that they cross,
    and the least that a step and the whole run take by a roofline (hours, chip-hours, and the cost at --price), and
    writes the same as JSON. With --topology the program is compiled for
    TPU slices that are not there (needs the extra [tpu], and no TPU); without, for the devices at hand. Running out of
    memory is an answer like any other, with advice, and exit code 0. Reports are kept, so the same question is answered
    at once the second time.

    Names of TPU products count what their maker counts: v4, v5p and tpu7x TensorCores (v5p-128 has 64 chips), v5e and
    v6e chips. v5p:4x4x4 names the shape, 2xv5p-128 two slices. Convolutional networks take minutes at --effort full;
    fast gives the same FLOPs and roofline, collectives of the same kinds and nearly the same memory. Any value of the
    config can be overridden as in 'vdm-jax train': --mesh.fsdp 8, --base.network.remat.

    Examples:
      vdm-jax compile captioned_digits                                       # the first stage, on what is there
      vdm-jax compile captioned_digits --stage spatial --what sample --topology v5e-16 --batch 64
      vdm-jax compile captioned_digits_full --topology v5p-128 --mesh.fsdp 8 --batch 512
      vdm-jax compile captioned_digits_full --topology v5e-16 --search     # the largest batch, cheapest mesh and remat
      vdm-jax compile captioned_digits_full --topology v5e-16 --search --meshes data=8,fsdp=2 data=4,fsdp=4
      vdm-jax compile stable-video-diffusion-img2vid --what sample --topology v5p-16 --batch 1  # a released model
    """

    config: tyro.conf.Positional[str]  # name or path of a config, a run, or a released model's folder
    stage: str | None = None  # which stage; the first by default
    what: Literal["train", "sample"] = "train"  # the train step, or sampling one batch
    topology: str | None = None  # TPU slices: v5p-128, v5e-16, 2xv5p-128, v5p:4x4x4; the devices at hand by default
    batch: Count | None = None  # clips per step (or sampled at a time) over all chips; the config's by default
    effort: Literal["fast", "full"] = "fast"  # of the compiler; full is what a run gets
    search: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False  # find the largest batch and cheapest mesh and remat
    meshes: tuple[str, ...] = ()  # of --search, such as data=8,fsdp=2; data x fsdp in all proportions by default
    most: Count = 4096  # clips per step above which --search does not look
    memory_gib: Positive | None = None  # GiB per device, instead of what the chip has
    price: Positive | None = None  # of a chip for an hour, in any currency: adds the cost of the whole run
    text_tokens: Size | None = None  # of texts that arrive as embeddings; what the data says by default, or 128
    xla_flags: str | None = None  # v5e, v5p, v6e, tpu7x (sets with sources), or a file of --flag=value lines
    again: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False  # compile even where a report is kept
    cache: Path | None = None  # folder of reports; $VDM_JAX_PLANS or ~/.cache/vdm_jax/plans by default
    out: Path | None = None  # also write the report (with --search, all of them) to this JSON file


def main(arguments: Sequence[str]) -> int:
    """Entry of the command."""
    program = "vdm-jax compile"
    if any(a in ("-h", "--help") for a in arguments):
        parse_with_rest(Compile, ["--help"], program)
    options, rest = parse_with_rest(Compile, arguments, program)
    _check(options)
    experiment = with_known_vocabulary(override(load_cascade(options.config), rest, f"{program} {options.config}"))
    from vdm_jax.planning.advice import capacity_of
    from vdm_jax.planning.cache import Reports, default_folder, devices_of

    plan = _plan(options, experiment)
    reports = Reports(options.cache or default_folder(), again=options.again)
    devices = devices_of(plan)
    capacity = capacity_of(devices[0]) if options.memory_gib is None else int(options.memory_gib * 2**30)
    console = rich.console.Console(highlight=False)
    if options.search:
        found = _search(options, plan, reports, devices, capacity, console)
    else:
        found = _one(plan, reports, capacity, options.price, console)
    if options.out is not None:
        from vdm_jax.video.writing import atomic_path

        with atomic_path(options.out) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n")
        console.print(str(options.out), markup=False, soft_wrap=True)
    return 0


def with_known_vocabulary(experiment: Experiment) -> Experiment:
    """Fill in vocabularies that are known without reading the data."""
    words = None if experiment.data is None else experiment.data.vocabulary()
    return experiment if words is None else experiment.with_words(words)


def parse_mesh(text: str) -> MeshSpec:
    """`data=8,fsdp=2` as a mesh; an axis that is not named has one device, and -1 takes what is left. Raises
    `UserError` for axes that do not exist."""
    names = [field.name for field in dataclasses.fields(MeshSpec)]
    found = {}
    for part in text.split(","):
        match = re.fullmatch(r"(\w+)=(-?\d+)", part.strip())
        if not match or match[1] not in names:
            raise UserError(f"--meshes {text!r}: {part!r} is not valid; permitted: AXIS=SIZE with an axis of "
                            f"{', '.join(names)}, separated by commas")
        found[match[1]] = int(match[2])
    return MeshSpec(**{"data": 1, **found})


def _plan(options: Compile, experiment: Experiment) -> Any:
    """The plan that the options ask for."""
    from vdm_jax.planning.flags import read_flags
    from vdm_jax.planning.program import Plan

    stage = experiment.stage(options.stage) if options.stage else experiment.stages[0]
    tokens = options.text_tokens
    if tokens is None and experiment.data is None:  # of a released model: its texts, or a picture
        tokens = experiment.encoder.length if experiment.encoder else 1
    elif tokens is None:
        tokens = experiment.data.length if isinstance(experiment.data, WithEmbeddings) else Plan.text_tokens
    plan = Plan(experiment=experiment.name, stage=stage, data=experiment.data, mesh=experiment.mesh, what=options.what,
                topology=options.topology, effort=options.effort, text_tokens=tokens,
                flags=read_flags(options.xla_flags) if options.xla_flags else ())
    return plan if options.batch is None else plan.with_batch(options.batch)


def priced(report: dict[str, Any], price: float | None) -> dict[str, Any]:
    """A report with the price of a chip-hour, where there is one."""
    return report if price is None else {**report, "price": price}


def _one(plan: Any, reports: Any, capacity: int | None, price: float | None,
         console: rich.console.Console) -> dict[str, Any]:
    """Compile one plan and print its report."""
    from vdm_jax.planning.advice import judge
    from vdm_jax.planning.report import show

    kept = reports.find(plan) is not None
    if not kept:
        log_console().print("compiling (seconds to minutes) ...")
    report = priced(judge(reports.get(plan), capacity), price)
    show(report, console)
    console.print(f"{reports.path(plan)}{' (kept from before; --again compiles anew)' if kept else ''}", markup=False,
                  soft_wrap=True)
    return report


def _search(options: Compile, plan: Any, reports: Any, devices: Sequence[Any], capacity: int | None,
            console: rich.console.Console) -> dict[str, Any]:
    """Search, say what is compiled, and print the best report under the table."""
    from vdm_jax.commands.progress import search_progress
    from vdm_jax.planning.report import show, show_search
    from vdm_jax.planning.search import search

    with search_progress() as tell:
        rows = search(plan, reports, devices, capacity, meshes=[parse_mesh(text) for text in options.meshes],
                      batch=options.batch, most=options.most, tell=tell)
    rows = [dataclasses.replace(row, report=row.report and priced(row.report, options.price)) for row in rows]
    show_search(rows, console)
    best = rows[0]
    if best.plan is not None:
        show(best.report, console)
        console.print(str(reports.path(best.plan)), markup=False, soft_wrap=True)
    else:
        console.print("Nothing fits: more devices, --mesh.context or --mesh.tensor, or a smaller network.")
    return {"rows": [{"mesh": dataclasses.asdict(row.mesh), "remat": row.remat, "reason": row.reason,
                      "report": row.report} for row in rows]}


def _check(options: Compile) -> None:
    """Refuse bad options before anything is loaded."""
    if not options.search:
        refuse_unused(options, ["meshes"], "without --search", "--search, or --mesh.fsdp 8 and the like for one mesh")
        refuse_unused(options, ["most"], "without --search", "--search, or --batch")
    elif options.batch is not None:
        refuse_unused(options, ["most"], f"with --batch={options.batch}, which is all that --search looks at,",
                      "one of the two")
    for path in (options.cache, options.out.parent if options.out else None):
        if path is not None and path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file; permitted: a folder, existing or new")
    if options.topology is not None:
        from vdm_jax.planning.topology import parse

        parse(options.topology)
