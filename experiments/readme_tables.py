"""Put recorded results into Markdown pages, between markers, so that no number there is typed by hand; `main` those of
docs/results.md and of the README.

Run:  python experiments/readme_tables.py          (after `make demo` and `make baselines` have written their records)
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from scipy import stats

from vdm_jax.digits.scorer import COLUMNS
from vdm_jax.runs.shipped import SHIPPED, read_manifest, shipped_names

ROOT = Path(__file__).parent.parent
DEMO_STAGES = {"spatial_1": "8x16x16, enlarged", "spatial_2": "16x64x64"}


def demo_table(record: dict) -> str:
    """Scores of the demo, all captions and those of one digit, with the protocol under them."""
    lines = []
    for group, title in (("", "all captions"), ("single/", "captions of one digit")):
        lines += [f"| {title} | " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
        for row, scores in record["scores"].items():
            lines.append(f"| {row} | " + " | ".join(f"{scores[group + name]:.2f}" for name in COLUMNS) + " |")
        lines.append("")
    protocol = ", ".join(f"{name} {value}" for name, value in record["protocol"].items())
    machine = f"{record['machine']}, {record['cores']} cores"
    lines.append("Share of clips or digits right, judged by a rule-based scorer; recorded in "
                 f"`experiments/demo/evaluation.json` on {record['date']} ({machine}). The whole demo, set-up "
                 f"included, took {record['minutes']:.1f} minutes there. Protocol: {protocol}.")
    if record.get("note"):
        lines.append(f"Note: {record['note']}.")
    return "\n".join(lines)


def seeds_table(record: dict) -> str:
    """Means over seeds with 95 % intervals (Student's t), by stage."""
    names = [*COLUMNS, "held_out/whole"]
    lines = [f"| videos of | {' | '.join(COLUMNS)} | whole, held-out pairs |", "|---|" + "---:|" * len(names)]
    for stage, what in DEMO_STAGES.items():
        cells = []
        for name in names:
            values = np.array([seed["scores"][stage][name] for seed in record["seeds"].values()])
            margin = (f" ± {stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values)**0.5:.2f}"
                      if len(values) > 1 else "")
            cells.append(f"{values.mean():.2f}{margin}")
        lines.append(f"| `{stage}`, {what} | {' | '.join(cells)} |")
    of_base, of_all = (np.mean([seed["scores"][stage]["whole"] for seed in record["seeds"].values()])
                       for stage in DEMO_STAGES)
    held_out = next(iter(record["seeds"].values()))["scores"]["spatial_2"]["held_out/clips"]
    return "\n".join([
        *lines, "",
        f"Seeds {', '.join(record['seeds'])}, {record['captions']} test captions of one digit each, {held_out:.0f} of "
        "them of (digit, motion) pairs that training does not show; means with 95 % intervals over seeds (Student's "
        f"t). The last stage keeps {of_all / of_base:.2f} of the whole captions of the stage before. Goals: motion "
        "0.95, colour 0.98, digit 0.75, whole 0.70, whole of held-out pairs 0.60. Recorded by "
        f"`python experiments/demo/seeds.py` on {record['date']} ({record['machine']}, {record['cores']} cores; "
        f"{record['versions']})."])


def attention_table(one: dict, two: dict) -> str:
    """Our attention against PyTorch's on one and on two cores of a CPU: times faster than its best, by pattern over its
    sizes."""
    columns = [attention_ratios(record) for record in (one, two)]
    lines = ["| attention | one core: forward | with gradients | two cores: forward | with gradients |",
             "|---|---:|---:|---:|---:|"]
    lines += [f"| {name} | {' | '.join(cells + columns[1][name])} |" for name, cells in columns[0].items()]
    return "\n".join([*lines, "", f"Times faster than PyTorch {one['torch']['versions']['torch']}'s on a CPU "
                      f"({two['date']}), the sizes of [performance](docs/performance.md)."])


def attention_ratios(record: dict) -> dict[str, list[str]]:
    """Pattern -> how many times faster forward, and with gradients: least to most."""
    ratios: dict[str, dict[str, list[float]]] = {}
    for row in record["rows"]:
        if "times_faster" in row:
            name = re.sub("SparseCausal.*", "sparse-causal", row["pattern"]).replace("cross", "cross-attention")
            for group in (name, "median of all"):
                ratios.setdefault(group, {}).setdefault(row["mode"], []).append(row["times_faster"])
    ratios["median of all"] = ratios.pop("median of all")
    table = {}
    for name, found in ratios.items():
        cells = table[name] = []
        for mode in ("forward", "forward+backward"):
            values = found.get(mode, [])
            ends = [np.median(values)] if name == "median of all" else [min(values), max(values)]
            cells.append("-".join(dict.fromkeys(f"{value:.2f}" for value in ends)))
    return table


def shipped_table(manifests: dict[str, dict]) -> str:
    """Scores of the weights that ship, with what training they had."""
    lines = [f"| weights | captions | {' | '.join(COLUMNS)} |", "|---|---|" + "---:|" * len(COLUMNS)]
    notes = []
    for name, manifest in manifests.items():
        for row, scores in manifest["scores"].items():
            for group, title in (("", "all"), ("single/", "of one digit")):
                cells = " | ".join(f"{scores[group + column]:.2f}" for column in COLUMNS)
                lines.append(f"| `{name}`: {row} | {title} | {cells} |")
        steps = ", ".join(f"`{stage}` {step} of {manifest['planned_steps'][stage]}"
                          for stage, step in manifest["steps"].items())
        protocol = ", ".join(f"{key} {value}" for key, value in manifest["protocol"].items())
        notes.append(f"`{name}`: trained by `{manifest['command']}`; steps: {steps}. Scored on {manifest['date']} "
                     f"({manifest['machine']}, {manifest['cores']} cores). Protocol: {protocol}.")
    return "\n".join([*lines, "", *notes])


def insert(text: str, name: str, body: str) -> str:
    """`text` with what stands between the markers of `name` replaced."""
    pattern = re.compile(f"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the page has no markers for {name!r}")
    return pattern.sub(lambda match: match[1] + body + "\n" + match[2], text)


def tables() -> dict[str, str]:
    """Marker name -> Markdown, for every record that exists."""
    found = {}
    demo = ROOT / "experiments/demo/evaluation.json"
    if demo.exists():
        found["demo"] = demo_table(json.loads(demo.read_text()))
    if shipped_names():
        found["shipped"] = shipped_table({name: read_manifest(SHIPPED / name) for name in shipped_names()})
    seeds = ROOT / "experiments/demo/seeds.json"
    if seeds.exists():
        found["seeds"] = seeds_table(json.loads(seeds.read_text()))
    speed = ROOT / "experiments/baselines/README.md"
    if speed.exists():
        table = re.search(r"<!-- summary:begin -->\n(.*?)<!-- summary:end -->", speed.read_text(), re.DOTALL)
        if table:
            found["speed"] = table[1].rstrip() + "\n\nMore in `experiments/baselines/`."
    results = ROOT / "experiments/attention_benchmark/results"
    records = [results / f"peer_sdpa_{name}.json" for name in ("cpu_one_core", "cpu")]
    if all(record.exists() for record in records):
        found["attention"] = attention_table(*(json.loads(record.read_text()) for record in records))
    return found


def page_of(name: str) -> Path:
    """The page with the markers of a table."""
    return ROOT / ("README.md" if name == "attention" else "docs/results.md")


def main() -> None:
    """Rewrite the tables."""
    for name, body in tables().items():
        path = page_of(name)
        path.write_text(insert(path.read_text(), name, body))


if __name__ == "__main__":
    main()
