"""`vdm-jax list`: configs, trained runs and shipped weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import rich.console
import rich.table

import vdm_jax
from vdm_jax.cascade.autoencoding import AnyStage
from vdm_jax.commands.arguments import parse
from vdm_jax.commands.configs import config_names, load_config, read_header
from vdm_jax.commands.sizes import parameter_count
from vdm_jax.training.checkpoints import Checkpoints
from vdm_jax.training.runs import CONFIG, WEIGHTS, checkpoints_path, read_config

WIDE = 150  # columns of a terminal from which on the configs are shown as a table


@dataclasses.dataclass(frozen=True)
class List:
    """Show the configs (stages with their videos, frames x height x width, and parameters; the published result to
    compare with; whether we have trained it), the runs under a folder, and the weights shipped with the package."""

    runs: Path = Path("runs")  # folder whose runs are shown


def main(arguments: Sequence[str]) -> int:
    """Entry of the command."""
    options = parse(List, arguments, "vdm-jax list")
    console = rich.console.Console(highlight=False)
    for line in listing(WIDE <= console.width):
        console.print(line)
    table = rich.table.Table("run", "stages (trained steps)", title="\nruns and weights", box=None)
    shipped = Path(vdm_jax.__file__).parent / "weights"
    for folder in (options.runs, shipped):
        for path in sorted(folder.glob(f"*/{CONFIG}")):
            table.add_row(path.parent.name if folder == shipped else str(path.parent), described(path.parent))
    console.print(table if table.row_count else "\nno runs yet: 'vdm-jax train captioned_digits' makes one")
    return 0


def listing(wide: bool) -> Iterator[rich.console.RenderableType]:
    """The configs as one table, or where that would break its words as a paragraph for each."""
    table = rich.table.Table("config", "system", "stages", "parameters", "published result", "status", box=None,
                             title="configs", padding=(0, 1, 1, 0))
    for column in (0, 2, 3):
        table.columns[column].no_wrap = True
    for name, path in config_names().items():
        header, stages = read_header(path), load_config(name).stages
        videos, counts = [f"{stage.name} {stage.video}" for stage in stages], [shown_count(stage) for stage in stages]
        if wide:
            table.add_row(name, header.title, "\n".join(videos), "\n".join(counts), header.published, header.status)
            continue
        yield f"{name}  ({header.status})\n  {header.title}"
        yield from (f"  {video:32}{count}" for video, count in zip(videos, counts, strict=True))
        yield f"  published: {header.published}\n"
    if wide:
        yield table


def shown_count(stage: AnyStage) -> str:
    """Parameters of a stage with three digits: 1.24 B, 340 M."""
    count = parameter_count(stage)
    unit, divisor = ("B", 1e9) if count >= 1e9 else ("M", 1e6)
    return f"{count / divisor:#.3g} {unit}".replace(". ", " ")


def described(run: Path) -> str:
    """The stages of a run, or what is wrong with it: one damaged run hides no other."""
    try:
        return trained(run)
    except (OSError, ValueError) as error:
        return f"damaged: {' '.join(str(error).split())}"


def trained(run: Path) -> str:
    """The stages of a run with the steps they were trained for."""
    parts = []
    for stage in read_config(run).stages:
        if (run / stage.name / WEIGHTS).exists():
            parts.append(f"{stage.name} (weights)")
            continue
        step = Checkpoints(checkpoints_path(run, stage.name)).latest()
        parts.append(f"{stage.name} ({'not yet' if step is None else f'{step}/{stage.training.steps}'})")
    return " > ".join(parts)
