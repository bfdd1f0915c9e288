"""Tables and plot of the records, into README.md and docs/metrics.md.

Run:  python -m experiments.metrics.report
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.metrics.clips import NOISE, NOTHING
from experiments.readme_tables import ROOT, insert
from vdm_jax.benchmark.record import load
from vdm_jax.video.writing import atomic_path

FOLDER = Path(__file__).parent
README, DOCS = FOLDER / "README.md", ROOT / "docs" / "metrics.md"
BESIDE = {"motion": "motion, pixels a frame", "frame_lpips": "frame-wise LPIPS", "warp_error": "warp error",
          "frame_consistency": "frame consistency"}


def main() -> None:
    """Rewrite what stands between the markers."""
    heard, speed = load(FOLDER / "results" / "cpu.json"), FOLDER / "results" / "speed_cpu.json"
    draw(heard, FOLDER / "results" / "cpu.png")
    parts = {"distortions": f"{distortions(heard)}\n\n{conclusion(heard)}", "sample_count": sample_count(heard),
             "speed": speed_table(load(speed)) if speed.exists() else "Not recorded yet.", "made": made(heard)}
    for path, names in ((README, parts), (DOCS, ("distortions", "sample_count", "speed"))):
        text = path.read_text()
        for name in names:
            text = insert(text, name, parts[name])
        path.write_text(text)


def distortions(record: dict[str, Any]) -> str:
    """What every metric makes of every set of clips."""
    rows, plain = record["rows"], record["rows"][NOTHING]
    lines = [f"| what was done to {record['protocol']['distorted clips']} real clips | FVD to "
             f"{record['protocol']['reference clips']} other ones | FVD to the same clips | "
             + " | ".join(BESIDE.values()) + " |", "|---|" + "---:|" * (2 + len(BESIDE))]
    for name, row in rows.items():
        same = "-" if name == NOTHING else f"{row['fvd_to_the_same_clips']:.0f}"
        cells = [_beside(row[metric], plain[metric], name) for metric in BESIDE]
        lines.append(f"| {name} | {row['fvd']:.0f} | {same} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "Means over clips; in brackets, times that of the clips as they were."])


def conclusion(record: dict[str, Any]) -> str:
    """What the table says of broken motion."""
    rows = record["rows"]
    plain, frozen, shuffled, noise = (rows[name] for name in (
        NOTHING, "first frame frozen", "frames shuffled", f"noise {NOISE[0]:g}"))

    def change(row: dict[str, Any]) -> str:
        return f"{100 * (row['fvd'] / plain['fvd'] - 1):+.0f} %"

    def times(name: str) -> str:
        return f"{shuffled[name]['mean'] / plain[name]['mean']:.1f}"

    return (f"Against other clips a frozen first frame changes FVD by {change(frozen)} and shuffled frames by "
            f"{change(shuffled)}, while noise of {NOISE[0]:g} of 255, which one hardly sees, changes it by "
            f"{change(noise)}. Motion and frame-wise LPIPS are {frozen['motion']['mean']:.2f} and "
            f"{frozen['frame_lpips']['mean']:.2f} for frozen clips and {times('motion')} and {times('frame_lpips')} "
            "times those of real clips for shuffled ones. Few clips leave FVD a high floor, on which neighbouring "
            "levels may change places; against the same clips there is none.")


def _beside(found: dict[str, float], plain: dict[str, float], name: str) -> str:
    mean = found["mean"] if found["mean"] > 1e-9 else 0.0  # LPIPS of equal frames is a rounding error
    times = "" if name == NOTHING else f" ({mean / plain['mean']:.2g})"
    return f"{mean:.3g}{times}"


def sample_count(record: dict[str, Any]) -> str:
    """FVD between real clips by their number."""
    counts = record["sample_count"]
    lines = ["| real clips a side | FVD of real clips from other real clips | deviation over draws |",
             "|---:|---:|---:|"]
    lines += [f"| {size} | {row['mean']:.0f} | {row['deviation']:.0f} |" for size, row in counts.items()]
    draws = next(iter(counts.values()))["draws"]
    return "\n".join([*lines, "", f"Both sides are drawn from the same clips, none twice; {draws} draws. The right "
                                  "answer is 0: all of it is bias of few clips."])


def speed_table(record: dict[str, Any]) -> str:
    """I3D here and in PyTorch."""
    rows, device = record["rows"], record["device"]
    lines = ["| I3D, 16 frames at 224x224, float32 | clips a CPU second | clips a wall second |", "|---|---:|---:|"]
    lines += [f"| {side} | {rows[f'{side}, clips per cpu second']:.2f} | {rows[f'{side}, clips per wall second']:.2f} |"
              for side in ("vdm_jax", "torch")]
    return "\n".join([
        *lines, f"| vdm_jax is faster by | {rows['ratio, cpu']:.2f} | {rows['ratio, wall']:.2f} |", "",
        f"{device['kind']}, {device['cores']} cores; jax {record['versions']['jax']}, torch "
        f"{record['versions']['torch']}; pairs: {record['protocol']['pairs']}; medians. The machine was shared with "
        "other work, so CPU seconds and ratios count and wall rates are low. GPU: not measured. Logits differ by at "
        f"most {rows['largest difference of logits']:.0e}. Recorded {record['date']}."])


def made(record: dict[str, Any]) -> str:
    """How the record was made."""
    protocol, device = record["protocol"], record["device"]
    clips = protocol["clips"]
    films = [f"- `{name}` from {film['from']}; SHA-256 {film['sha256']}" for name, film in clips["films"].items()]
    detectors = [f"- {name}: SHA-256 {sha}" for name, sha in protocol["detectors"].items()]
    used = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return "\n".join([
        f"{clips['clips']} clips of {clips['frames']} frames, stride {clips['stride']}, {clips['size']} pixels; left "
        f"out: {clips['left out']}. FVD: {protocol['fvd']}. {device['kind']}, {device['cores']} cores; {used}. "
        f"Recorded {record['date']}.", "", *films, *detectors])


def draw(record: dict[str, Any], path: Path) -> None:
    """FVD and the metrics next to it of all sets, relative to real clips; FVD by number of clips."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = record["rows"]
    plain = rows[NOTHING]
    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    names = [name for name in rows if name != NOTHING]
    sets = {"FVD": [rows[name]["fvd"] / plain["fvd"] for name in names]}
    sets |= {BESIDE[metric]: [rows[name][metric]["mean"] / plain[metric]["mean"] for name in names]
             for metric in ("motion", "frame_lpips")}
    for place, (label, values) in enumerate(sets.items()):
        left.bar([i + (place - 1) * 0.27 for i in range(len(names))], values, 0.25, label=label)
    left.axhline(1, color="#4a5462", linewidth=0.8)
    left.set_xticks(range(len(names)), names, rotation=30, ha="right")
    left.set_ylabel("times that of real clips")
    left.legend(loc="upper right")
    counts = record["sample_count"]
    right.errorbar([int(size) for size in counts], [row["mean"] for row in counts.values()],
                   [row["deviation"] for row in counts.values()], marker="o")
    right.set_xscale("log", base=2)
    right.set_xlabel("real clips a side")
    right.set_ylabel("FVD of real clips from real clips")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


if __name__ == "__main__":
    main()
