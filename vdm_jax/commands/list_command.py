"""`vdm-jax list`: configs and trained runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import rich.console
import rich.table
import rich.text

from vdm_jax.commands.arguments import parse
from vdm_jax.commands.configs import config_names, read_header
from vdm_jax.commands.sizes import stage_sizes
from vdm_jax.runs.listing import described_runs

WIDE = 150  # columns of a terminal from which on the configs are shown as a table


@dataclasses.dataclass(frozen=True)
class List:
    """Show the configs and the runs under a folder.

    Each config has its stages, the video that a stage makes (frames x height x width), its parameters, the published
    result to compare with and whether we have trained it. Each run has its stages with the steps they were trained for.

    Examples:
      vdm-jax list
      vdm-jax list --runs /mnt/shared/runs
    """

    runs: Path = Path("runs")  # folder whose runs are shown


def main(arguments: Sequence[str]) -> int:
    """Entry of the command."""
    options = parse(List, arguments, "vdm-jax list")
    console = rich.console.Console(highlight=False)
    for line in listing(WIDE <= console.width):
        console.print(line, soft_wrap=console.width < WIDE)
    table = rich.table.Table(rich.table.Column("run", overflow="fold"), "stages (trained steps)",
                             title="\nruns", box=None)
    for path, shown in described_runs(options.runs).items():
        # Names may hold brackets, which are no markup, and bytes that no terminal shows.
        table.add_row(*(rich.text.Text(text.encode(errors="replace").decode()) for text in (str(path), shown)))
    console.print(table if table.row_count else "\nno runs yet: 'vdm-jax train captioned_digits' makes one")
    return 0


def listing(wide: bool) -> Iterator[rich.console.RenderableType]:
    """The configs as one table, or where that would break its words as a paragraph for each."""
    table = rich.table.Table("config", "system", "stages", "parameters", "published result", "status", box=None,
                             title="configs", padding=(0, 1, 1, 0))
    for column in (0, 2, 3):
        table.columns[column].no_wrap = True
    for name, path in config_names().items():
        header, stages = read_header(path), stage_sizes(name)
        videos = [f"{stage.name} {stage.video}" for stage in stages]
        counts = [shown_count(stage.parameters) for stage in stages]
        if wide:
            table.add_row(name, header.title, "\n".join(videos), "\n".join(counts), header.published, header.status)
            continue
        yield f"{name}  ({header.status})\n  {header.title}"
        yield from (f"  {video:32}{count}" for video, count in zip(videos, counts, strict=True))
        yield f"  published: {header.published}\n"
    if wide:
        yield table


def shown_count(count: int) -> str:
    """A number of parameters with three digits: 1.24 B, 340 M."""
    unit, divisor = ("B", 1e9) if count >= 1e9 else ("M", 1e6)
    return f"{count / divisor:#.3g} {unit}".replace(". ", " ")
