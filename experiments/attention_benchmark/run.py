"""Measure a preset and write it into README.md of this folder.

Run:   python -m experiments.attention_benchmark.run --preset cpu        in the root of the repository
       python -m experiments.attention_benchmark.run --report            only rewrite README.md from the records
Needs: pip install 'vdm_jax[plots]'; for the presets v5p_* also 'vdm_jax[tpu]' (no TPU)
The machine should be idle. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.attention_benchmark.presets import PRESETS
from experiments.attention_benchmark.targets import pod_rows, pod_targets, table, targets
from experiments.exit_codes import exit_code
from experiments.readme_tables import insert
from vdm_jax.benchmark.plots import draw, require_matplotlib
from vdm_jax.benchmark.record import load
from vdm_jax.benchmark.report import markdown
from vdm_jax.benchmark.sweep import compile_ahead, measure
from vdm_jax.commands.progress import sweep_progress

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def record(name: str, *, fresh: bool, results: Path = RESULTS) -> None:
    """Measure what the record of a preset lacks, and draw it."""
    require_matplotlib()
    preset, path = PRESETS[name], results / f"{name}.json"
    with sweep_progress() as progress:
        if preset.topology:
            found = compile_ahead(preset.cases(), path, preset.topology, fresh=fresh, progress=progress)
        else:
            found = measure(preset.cases(), path, seconds=preset.seconds, fresh=fresh, progress=progress)
    draw(found, results / name)


def write_report(results: Path = RESULTS, readme: Path = HERE / "README.md") -> None:
    """Put every record between its markers in README.md."""
    text = readme.read_text()
    for name in PRESETS:
        path = results / f"{name}.json"
        if not path.exists():
            continue
        found = load(path)
        parts = [table(found["rows"], targets()), ""] if name == "cpu" else []
        parts += [f"![{picture.stem.replace('_', ' ')}]({picture.relative_to(readme.parent).as_posix()})\n"
                  for picture in sorted((results / name).glob("*.png"))]
        text = insert(text, name, "\n".join([*parts, markdown(found)]).rstrip())
    slices = {name: results / f"{name}.json" for name, preset in PRESETS.items() if preset.topology}
    rows = {load(path)["device"]["count"]: load(path)["rows"] for path in slices.values() if path.exists()}
    readme.write_text(insert(text, "pod", table(pod_rows(rows), pod_targets())) if rows else text)


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, help="what to measure")
    parser.add_argument("--report", action="store_true", help="only write README.md from the records")
    parser.add_argument("--fresh", action="store_true", help="measure again what is recorded")
    args = parser.parse_args()
    if bool(args.preset) == args.report:
        parser.error("give either --preset or --report")

    def work() -> None:
        if args.preset:
            record(args.preset, fresh=args.fresh)
        write_report()
        print(HERE / "README.md")

    return exit_code("attention_benchmark", work)


if __name__ == "__main__":
    sys.exit(main())
