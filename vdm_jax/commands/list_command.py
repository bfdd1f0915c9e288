"""`vdm-jax list`: configs, trained runs and shipped weights."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import rich.console
import rich.table

import vdm_jax
from vdm_jax.cascade.stage import Experiment
from vdm_jax.commands.arguments import parse
from vdm_jax.commands.configs import config_names, load_config
from vdm_jax.training.checkpoints import Checkpoints
from vdm_jax.training.runs import CONFIG, WEIGHTS, checkpoints_path, read_config


@dataclasses.dataclass(frozen=True)
class List:
    """Show the configs that can be trained, the runs under a folder, and the weights shipped with the package."""

    runs: Path = Path("runs")  # folder whose runs are shown


def main(arguments: Sequence[str]) -> int:
    """Entry of the command."""
    options = parse(List, arguments, "vdm-jax list")
    console = rich.console.Console(highlight=False)
    table = rich.table.Table("config", "stages (frames x height x width)", "about", title="configs", box=None)
    for name, path in config_names().items():
        table.add_row(name, stages(load_config(name)), first_line(path))
    console.print(table)
    table = rich.table.Table("run", "stages (trained steps)", title="\nruns and weights", box=None)
    shipped = Path(vdm_jax.__file__).parent / "weights"
    for folder in (options.runs, shipped):
        for path in sorted(folder.glob(f"*/{CONFIG}")):
            table.add_row(path.parent.name if folder == shipped else str(path.parent), trained(path.parent))
    console.print(table if table.row_count else "\nno runs yet: 'vdm-jax train captioned_digits' makes one")
    return 0


def stages(experiment: Experiment) -> str:
    """The stages of an experiment and the videos they make, on one line."""
    return " > ".join(f"{stage.name} {stage.video}" for stage in experiment.stages)


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


def first_line(path: Path) -> str:
    """First line of a config's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
