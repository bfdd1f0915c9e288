"""`vdm-jax report`: one page about runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from vdm_jax.commands.arguments import parse
from vdm_jax.commands.outputs import check_file
from vdm_jax.errors import UserError
from vdm_jax.runs.directory import find_run


@dataclasses.dataclass(frozen=True)
class Report:
    """Write one HTML file about one or several runs: configs and how they differ, curves, sample grids, playable
    videos, scores side by side (those that were made differently are marked). It needs no network and no other file.

    Examples:
      vdm-jax report captioned_digits
      vdm-jax report runs/a runs/b --out comparison.html
    """

    runs: tyro.conf.Positional[tuple[str, ...]]  # run directories or names, or folders of released models
    out: Path | None = None  # .html; report.html in the first run's directory by default


def main(arguments: Sequence[str]) -> int:
    """Entry of the command."""
    options = parse(Report, arguments, "vdm-jax report")
    if not options.runs:
        raise UserError("no run is given; permitted: one or more run directories or names")
    folders = [find_run(name) for name in options.runs]
    out = options.out or folders[0] / "report.html"
    check_file(out, (".html",))
    from vdm_jax.reports.page import page, read_run
    from vdm_jax.video.writing import atomic_path

    plain = [folder.resolve().name for folder in folders]
    names = plain if len(set(plain)) == len(plain) else [str(folder) for folder in folders]
    text = page([read_run(folder, name) for folder, name in zip(folders, names, strict=True)])
    with atomic_path(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(out)
    return 0
