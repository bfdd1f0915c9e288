"""Tables of the record, into README.md.

Run:  python -m experiments.smmnist.report
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.readme_tables import insert
from vdm_jax.benchmark.record import load
from vdm_jax.video.writing import atomic_path

FOLDER = Path(__file__).parent
README, RECORD, MODELS = FOLDER / "README.md", FOLDER / "results" / "cpu.json", FOLDER / "results" / "models.json"
EXTENSION = FOLDER / "results" / "extension.json"
PUBLISHED_RATIO = 3.3  # of FVD by replacement and by guidance; Ho et al. 2022, arXiv 2204.03458
# JunyaoHu/common_metrics_on_video_quality, README.md: by the port that MCVD uses, and with TensorFlow
PUBLISHED_BLACK_WHITE = 151.26, 151.39

# Values of others: FVD, PSNR, SSIM, LPIPS, MSE. Nobody here has seen the papers' tables; where a value was read
# elsewhere, the last column says so.
RECALLED = "as recalled"
OTHERS = (
    ("SVG-LP (via vRNN's paper)", "5 -> 10, trained on 10", 90.81, None, 0.688, 0.153, None, RECALLED),
    ("vRNN, 1 layer", "same", 63.81, None, 0.763, 0.102, None, RECALLED),
    ("Hier-vRNN", "same", 57.17, None, "0.760", 0.103, None, RECALLED),
    ("MCVD concat, 27.9 M", "5 -> 10, trained on 5", 25.63, 17.22, 0.786, 0.117, 0.024, RECALLED),
    ("MCVD concat, past-future-mask", "same", 20.77, 16.33, 0.753, 0.139, 0.028, RECALLED),
    ("MCVD SPATIN, 53.9 M", "same", 23.86, 17.07, 0.785, 0.129, 0.025, RECALLED),
    ("MCVD SPATIN, future-mask", "same", 44.14, 16.31, 0.758, 0.141, 0.027, RECALLED),
    ("MCVD SPATIN, past-future-mask", "same", 36.12, 16.15, 0.748, 0.146, 0.027, RECALLED),
    ("NPVP-S (CVPRW 2023)", "5 -> 10", 95.69, None, 0.817, 0.189, None, RECALLED),
    ("STDiff (AAAI 2024)", "5 -> 10, another FVD (trajectories pooled)", 14.93, None, 0.748, 0.146, None, RECALLED),
    ("ExtDM", "10 -> 10", "about 23", None, None, None, None, "name of the checkpoint in the authors' code"),
    ("SRVP", "5 -> 20, best of 100, other data", None, "16.93 +- 0.07", "0.7799 +- 0.0020", None, None,
     "issue 9 of the authors' repository"),
)


def main() -> None:
    """Rewrite what stands between the markers."""
    record, text = load(RECORD), README.read_text()
    trained = load(MODELS) if MODELS.exists() else None
    if trained is not None:
        draw(trained, record, MODELS.with_suffix(".png"))
    longer = load(EXTENSION) if EXTENSION.exists() else None
    for name, body in bodies(record, trained, longer).items():
        text = insert(text, name, body)
    with atomic_path(README) as temporary:
        temporary.write_text(text)


def bodies(record: dict[str, Any], trained: dict[str, Any] | None, longer: dict[str, Any] | None) -> dict[str, str]:
    """What stands between the markers."""
    return {"floor": floor(record), "others": others(), "models": models(trained), "extension": extension(longer),
            "made": made(record)}


def extension(record: dict[str, Any] | None) -> str:
    """Ways of extending videos."""
    if record is None:
        return "Not measured yet."
    protocol, floor = record["protocol"], record["real"]["fvd"]["value"]
    lines = [f"{protocol['clips']} videos of {protocol['frames']} frames from nothing, by `{protocol['experiment']}` "
             f"of {protocol['trained_steps']} training steps and {protocol['steps']} of sampling, in blocks that take "
             f"over {protocol['overlap']} frames. FVD of {protocol['windows']} windows of {protocol['window']} frames "
             f"across seams to those of real clips; as many of other real clips have {floor:.1f}.", "",
             "| way | FVD | change from frame to frame at seams, over elsewhere | seconds |", "|---|---:|---:|---:|",
             f"| real clips | {floor:.1f} | {record['real']['change']:.2f} | |"]
    lines += [f"| {name} | {row['fvd']['value']:.1f} | {row['change']:.2f} | {row['seconds']:.0f} |"
              for name, row in record["rows"].items()]
    found = {name: row["fvd"]["value"] for name, row in record["rows"].items()}
    ratios = [f"{found['replacement'] / value:.2f} ({name})" for name, value in found.items()
              if name.startswith("reconstruction") and "replacement" in found]
    if ratios:
        lines += ["", f"FVD by replacement over that by guidance: {', '.join(ratios)}; published for other data is "
                      f"{PUBLISHED_RATIO}."]
    return "\n".join([*lines, "", f"Recorded {record['date']}."])


def floor(record: dict[str, Any]) -> str:
    """What each prediction scores."""
    lines = ["| prediction | FVD | trajectories | MSE | PSNR, dB | SSIM | LPIPS |",
             "|---|---:|---:|---:|---:|---:|---:|"]
    for name, row in record["rows"].items():
        if "frames" not in row:
            continue
        frames, distance = row["frames"]["score"], row.get("fvd", {}).get("score")
        perceived = row.get("lpips", {}).get("score", {}).get("mcvd_lpips")
        best = frames["mcvd_mse"]["conditions"]["best_of"]
        title = name if best == 1 else f"{name}, best of {best}"
        lines.append(_row(title, _fvd(distance), len(distance["details"]["trajectories"]) if distance else "-",
                          [frames["mcvd_mse"], frames["psnr_floored"], frames["mcvd_ssim"], perceived], "value"))
        if best > 1:
            lines.append(_row(f"{name}, one sample", "-", "-", [
                frames["mcvd_mse"], frames["psnr_floored"], frames["mcvd_ssim"], perceived], "one video a clip"))
    return "\n".join([*lines, "", conclusion(record)])


def _row(title: str, distance: str, trajectories: Any, scores: list[dict[str, Any] | None], which: str) -> str:
    cells = []
    for score, form in zip(scores, (".4f", ".2f", ".3f", ".3f"), strict=True):
        value = None if score is None else score["value"] if which == "value" else score["details"][which]
        cells.append("-" if value is None else f"{value:{form}}")
    return f"| {title} | {distance} | {trajectories} | {' | '.join(cells)} |"


def _fvd(score: dict[str, Any] | None) -> str:
    if score is None:
        return "-"
    deviation = score["details"].get("deviation")
    return f"{score['value']:.2f}" if deviation is None else f"{score['value']:.2f} +- {deviation:.2f}"


def conclusion(record: dict[str, Any]) -> str:
    """What follows, and the check against a published value."""
    rows, said = record["rows"], []
    oracle, mean = (rows[name]["frames"]["score"] for name in ("oracle", "blurred mean"))
    said.append(f"The blurred mean, in which digits dissolve, has MSE {mean['mcvd_mse']['value']:.4f} and PSNR "
                f"{mean['psnr_floored']['value']:.1f}; the best of 10 perfect predictions has "
                f"{oracle['mcvd_mse']['value']:.4f} and {oracle['psnr_floored']['value']:.1f}. These metrics prefer "
                "blur, so a model is to be read by its FVD and by its scores of one sample.")
    if "fvd" in rows["oracle"]:
        found = rows["oracle"]["fvd"]["score"]
        count = len(found["details"]["trajectories"])
        missing = "" if count == 10 else f" (of {count} trajectories; the protocol has 10)"
        said.append(f"**The floor of FVD is {found['value']:.2f}**{missing}: that of perfect predictions, whose given "
                    "frames and digits are those of the reference.")
    if "fvd" in rows["blurred mean"]:
        said.append(f"That of the blurred mean is {rows['blurred mean']['fvd']['score']['value']:.1f}.")
    if "black against white" in rows:
        value = rows["black against white"]["fvd"]["score"]["value"]
        port, original = PUBLISHED_BLACK_WHITE
        said.append(f"Check: 8 clips of 30 black frames against 8 of white ones give {value:.2f}; published are {port} "
                    f"by the port that MCVD uses and {original} with TensorFlow, whose weights ours are.")
    return " ".join(said)


def others() -> str:
    """Values of others."""
    lines = ["| model | setting | FVD | PSNR | SSIM | LPIPS | MSE | source |", "|---|---|---:|---:|---:|---:|---:|---|"]
    for name, setting, *values, source in OTHERS:
        cells = " | ".join("-" if value is None else str(value) for value in values)
        lines.append(f"| {name} | {setting} | {cells} | {source} |")
    return "\n".join(lines)


def models(record: dict[str, Any] | None) -> str:
    """Trained models, in the order in which they were measured."""
    if record is None:
        return "None is trained yet."
    lines = ["| model | trained steps | TFLOP | sampling steps | trajectories | FVD | MSE | SSIM | LPIPS | one sample: "
             "MSE | SSIM |", "|---|---|---:|---|---:|---:|---:|---:|---:|---:|---:|"]
    for row in record["rows"].values():
        scores, steps = row["scores"], ", ".join(f"{name} {count}" for name, count in row["trained_steps"].items())
        best = [f"{scores[name]['value']:{form}}" for name, form in (("mcvd_mse", ".4f"), ("mcvd_ssim", ".3f"),
                                                                     ("mcvd_lpips", ".3f"))]
        one = [f"{scores[name]['details']['one video a clip']:{form}}" for name, form in (("mcvd_mse", ".4f"),
                                                                                          ("mcvd_ssim", ".3f"))]
        cells = [row["experiment"], steps, f"{row['train_tflop']:.0f}", row["sampling_steps"], str(row["trajectories"]),
                 _fvd(scores["fvd"]), *best, *one]
        lines.append(f"| {' | '.join(cells)} |")
    device, used = record["device"], ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return "\n".join([*lines, "", f"Seed 0, one training each; the protocol has 10 trajectories. {device['kind']}, "
                                  f"{device['cores']} cores; {used}. Recorded {record['date']}."])


def draw(trained: dict[str, Any], record: dict[str, Any], path: Path) -> None:
    """FVD against training FLOPs, and against sampling steps of the longest training, of every model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    by_work, by_steps = figure.subplots(1, 2)
    for name, (longest, rows) in _curves(trained).items():
        usual = [row for row in rows if row["sampling_steps"] == rows[0]["sampling_steps"]]
        by_work.plot([row["train_tflop"] for row in usual], [row["scores"]["fvd"]["value"] for row in usual], "o-",
                     label=f"{name}, {usual[0]['sampling_steps']} sampling steps")
        ends = sorted((row for row in rows if row["train_tflop"] == longest),
                      key=lambda row: sum(map(int, row["sampling_steps"].split("/"))))
        by_steps.plot([row["sampling_steps"] for row in ends], [row["scores"]["fvd"]["value"] for row in ends], "o-",
                      label=f"{name}, {longest:.0f} TFLOP")
    for axes, label in ((by_work, "training TFLOP"), (by_steps, "sampling steps, by stage")):
        if "fvd" in record["rows"]["oracle"]:
            axes.axhline(record["rows"]["oracle"]["fvd"]["score"]["value"], color="#4a5462", linewidth=0.8)
        axes.set_xlabel(label)
        axes.set_ylabel("FVD (line: perfect predictions)")
        axes.set_yscale("log")
        axes.legend()
    by_work.set_xscale("log")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _curves(trained: dict[str, Any]) -> dict[str, tuple[float, list[dict[str, Any]]]]:
    """Longest training and rows of each model, in the order of their training."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in trained["rows"].values():
        found.setdefault(row["experiment"], []).append(row)
    return {name: (max(row["train_tflop"] for row in rows), sorted(rows, key=lambda row: row["train_tflop"]))
            for name, rows in found.items()}


def made(record: dict[str, Any]) -> str:
    """How the record was made."""
    protocol, device = record["protocol"], record["device"]
    used = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    seconds = sum(entry["seconds"] for row in record["rows"].values() for entry in row.values())
    return (f"{protocol['clips']} clips, {protocol['given']} of {protocol['frames']} frames given, seed 0; MNIST "
            f"SHA-256 {protocol['mnist']}; I3D SHA-256 {protocol['i3d']}. PSNR is of the mean squared error plus "
            f"{protocol['error_floor']:g}: that of an exact prediction is infinite. `{record['command']}` on "
            f"{device['kind']}, {device['cores']} cores, {seconds / 60:.0f} minutes on a machine shared with other "
            f"work; {used}. Recorded {record['date']}.")


if __name__ == "__main__":
    main()
