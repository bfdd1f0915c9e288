"""README.md of this folder, made from the records: nothing in it is typed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from measuring import RESULTS, load

README = Path(__file__).parent / "README.md"
TITLES = {"vdm_jax": "vdm_jax", "vdm_jax_tuned": "vdm_jax, tuned allocator",
          "vdm_jax_devices": "vdm_jax, frames over two devices", "torch": "torch, eager",
          "torch_tuned": "torch, eager, tuned allocator", "torch_compiled": "torch, compiled, tuned allocator"}
MODES = {"train": "train step", "forward": "sampling step"}
PEERS = {"vdm": "Unet3D, video-diffusion-pytorch", "imagen": "Unet3D, imagen-pytorch",
         "svd": "UNetSpatioTemporalConditionModel, diffusers", "modelscope": "UNet3DConditionModel, diffusers",
         "wan": "WanTransformer3DModel of two blocks, diffusers"}

HEADER = """# Speed of our U-Net on a CPU

Written by `python experiments/baselines/unet_speed.py --report` from the records in `results/`.

Train step and sampling step (one denoiser call) of our space-time U-Net in the manner of VDM (Ho et al. 2022,
arXiv 2204.03458) and of `Unet3D` in video-diffusion-pytorch and in imagen-pytorch, and of reduced networks of Stable
Video Diffusion and ModelScope and theirs in diffusers, with the same weights; 10 frames, float32.
"""

NETWORKS = """## What is compared

| | ours | Unet3D(dim=64, dim_mults=(1, 2, 4, 8)) |
|---|---|---|
| parameters | {ours[parameters]:,} | {theirs[parameters]:,} |
| forward pass, 32x32, batch 1 | {ours[gflop_forward]:.1f} GFLOP | {theirs[gflop_forward]:.1f} GFLOP |
| convolutions | 1x3x3, stem 1x3x3 | 1x3x3, stem 1x7x7 |
| channels per level | 64, 128, 256, 384 | 64, 128, 256, 512 |
| residual blocks per level | 1 down, 2 up, each up with a skip of its own | 2 down, 2 up, one skip per level |
| temporal attention | after every block, all channels, relative positions | \
once per level and side and after the stem, 256 channels, relative positions and rotary |
| spatial attention | full, at the two lowest resolutions and in the middle | \
linear at every level, full in the middle |
| downsampling | 3x3, stride 2 | 4x4, stride 2 |
| upsampling | nearest and 3x3 | transposed 4x4, stride 2 |
| norm in residual blocks | group norm per frame, before the convolution | RMS norm over channels, after it |

Both have the same number of parameters within 5 % and nearly the same number of operations; layer by layer they are
not the same network.
"""


def seconds(entry: dict[str, Any] | None) -> str:
    """Median with its range; a dagger where other processes interfered."""
    if entry is None:
        return "not measured"
    mark = " †" if entry["contended"] else ""
    return f"{entry['median']:.2f} ({entry['low']:.2f}-{entry['high']:.2f}){mark}"


def best(row: dict[str, Any], library: str) -> float:
    """The fastest median that a library reached in a case, with either allocator."""
    return min(entry["median"] for name, entry in row["contenders"].items() if name.startswith(library))


def speed_up(row: dict[str, Any]) -> float:
    """How many times faster ours at its best is than torch at its best."""
    return best(row, "torch") / best(row, "vdm_jax")


def other_work(row: dict[str, Any]) -> str:
    """How many times the operations of ours theirs has, where layers differ."""
    if row["network"] != "imagen":
        return ""
    ours, theirs = (row["contenders"][name]["gflop_forward"] for name in ("vdm_jax", "torch"))
    return f" (with {theirs / ours:.2f} times our operations)"


def summary_table(record: dict[str, Any]) -> str:
    """The table that the main README shows too."""
    lines = ["| against | | size | batch | ours at its best, s | torch at its best, s | ratio |",
             "|---|---|---:|---:|---:|---:|---:|"]
    for row in record["rows"].values():
        ours, theirs = best(row, "vdm_jax"), best(row, "torch")
        lines.append(f"| {PEERS[row['network']]} | {MODES[row['mode']]} | {row['size']} | {row['batch']} | "
                     f"{ours:.2f} | {theirs:.2f} | {speed_up(row):.2f}{other_work(row)} |")
    machine = record["device"]
    used = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return "\n".join([*lines, "", f"Medians of wall seconds on {machine['cpu']}, {machine['threads']} threads of "
                      f"{machine['cores']} cores, {record['date']}; {used}."])


def full_table(record: dict[str, Any]) -> str:
    """Every contender of every case: seconds, memory, compile seconds."""
    present = [name for name in TITLES if any(name in row["contenders"] for row in record["rows"].values())]
    lines = ["| case | " + " | ".join(TITLES[name] for name in present) + " |", "|---|" + "---:|" * len(present)]
    for row in record["rows"].values():
        case = f"{row['network']}, {MODES[row['mode']]}, {row['size']}x{row['size']}, batch {row['batch']}"
        entries = [row["contenders"].get(name) for name in present]
        lines.append(f"| {case}: seconds | " + " | ".join(seconds(e) for e in entries) + " |")
        lines.append("| peak memory, MiB | " + " | ".join(f"{e['peak_mib']:.0f}" if e else "" for e in entries) + " |")
        lines.append("| compilation, s | " + " | ".join(f"{e['compile_seconds']:.0f}" if e else "" for e in entries)
                     + " |")
    if any("†" in line for line in lines):
        lines += ["", "† other processes took more than a tenth of the machine in some of these repetitions."]
    return "\n".join(lines)


def protocol_list(record: dict[str, Any]) -> str:
    """The protocol as a list."""
    return "\n".join(f"- {name}: {text}." for name, text in record["protocol"].items())


# ---------------------------------------------------------------------------------------------- XLA on CPU


def forms_table(record: dict[str, Any]) -> str:
    """Milliseconds of every form, group by group."""
    lines = []
    for group in record["groups"].values():
        cases = list(group["cases"].values())
        columns = list(cases[0])
        lines += [f"### {group['title']}", "", group["about"], "",
                  "| ms | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
        for name, case in group["cases"].items():
            lines.append(f"| {name} | " + " | ".join(f"{1e3 * case[c]['median']:.1f}" for c in columns) + " |")
        lines.append("")
    return "\n".join(lines)


def well_and_badly(record: dict[str, Any]) -> str:
    """What XLA on CPU does well and badly, in the numbers of the record."""

    def ratio(group: str, case: str, slow: str, fast: str) -> float:
        columns = record["groups"][group]["cases"][case]
        return columns[slow]["median"] / columns[fast]["median"]

    forms, kernel = record["groups"]["forms"]["cases"], record["groups"]["kernel_gradient"]["cases"]
    forward = max(case["folded, forward"]["gflops"] for case in forms.values())
    whole = [ratio("kernel_gradient", name, "whole", "in pieces") for name in kernel]
    loops = ratio("loops", "4 convolutions", "scanned, gradient", "unrolled, gradient")
    loops_forward = ratio("loops", "4 convolutions", "scanned, forward", "unrolled, forward")
    barriers = ratio("barriers", "gradient", "barriers expanded", "barriers kept")
    folded = [f"{ratio('forms', name, '3-D, gradient', 'folded, gradient'):.1f} times for {name}" for name in forms]
    return f"""## What XLA on CPU does well and badly

Well: folded convolutions forward and their gradients with respect to the input (up to {forward:.0f} GFLOP/s here),
matrix products, and compiling the whole step, optimizer included, into one program without calls from Python.

Badly, and what we do about it:

- **3-D convolutions.** Run as they are instead of folded, value and gradient take {', '.join(folded)} as long. Kernels
  keep their canonical 3-D shape and run folded: time into the batch, space into the batch, or neighbouring frames into
  channels.
- **Gradients with respect to the kernel.** They are convolutions with a window as large as the frame. Summed over
  pieces of about 2560 positions instead they are {min(whole):.1f} to {max(whole):.1f} times faster (cases below):
  `networks/layers.py: convolve_frames` does so on CPU.
- **Gradients of convolutions inside loops.** Scanned instead of unrolled they take {loops:.1f} times as long (forward:
  {loops_forward:.1f} times). Blocks, and micro-batches on CPU, are unrolled.
- **Residual streams.** XLA on CPU removes optimisation barriers before it fuses, and then recomputes chains of residual
  additions in every consumer. With the pass `cse_barrier_expander` disabled the barriers stay: the gradient of a small
  U-Net takes {barriers:.2f} times as long without this as with it.
"""


def write_report(folder: Path = RESULTS, readme: Path = README) -> None:
    """Write the README from whatever records there are."""
    speed, forms = load(folder / "unet_speed.json"), load(folder / "xla_cpu_forms.json")
    parts = [HEADER]
    if speed:
        first = next(iter(speed["rows"].values()))["contenders"]
        parts += ["<!-- summary:begin -->\n" + summary_table(speed) + "\n<!-- summary:end -->\n",
                  "\"At its best\" is the fastest of a library's columns below: both are measured with the default and "
                  "with a tuned allocator, ours also with a device for each core. A ratio above 1 means that ours is "
                  "faster.\n",
                  "## All contenders\n\n" + full_table(speed) + "\n",
                  *[f"{note}\n" for note in [speed.get("note")] if note],
                  "## Protocol\n\n" + protocol_list(speed) + "\n",
                  NETWORKS.format(ours=first["vdm_jax"], theirs=first["torch"])]
    if forms:
        machine = forms["device"]
        parts += [well_and_badly(forms), forms_table(forms),
                  f"Medians of wall milliseconds, forms alternating; {machine['cpu']}, {machine['cores']} cores, jax "
                  f"{forms['versions']['jax']}, {forms['date']}. Made by "
                  "`python experiments/baselines/xla_cpu_forms.py`.\n"]
    readme.write_text("\n".join(parts))
