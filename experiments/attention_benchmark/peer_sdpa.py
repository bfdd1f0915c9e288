"""Our attention with kernel `auto` next to PyTorch's `scaled_dot_product_attention`: the same shapes, in one run.

Full attention among all tokens of a clip, forward and forward with gradients. Each library runs in a process of its
own, so that neither holds the other's memory; they are timed in turns, round by round, and each is also asked for the
fastest bfloat16 matrix product it reaches on the device.

Run:   python -m experiments.attention_benchmark.peer_sdpa            in the root of the repository
       python -m experiments.attention_benchmark.peer_sdpa --report   only write the tables from the records
Needs: torch (`pip install --requirement requirements/peers.txt` has a CPU build's version), in this Python or in the
       one named by --torch-python
The device should be idle. The GPU cases were reckoned at five minutes on an H100, not measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.baselines.measuring import save
from experiments.readme_tables import insert

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ROUNDS = 5
TOLERANCE = {"bfloat16": 0.03, "float16": 0.01, "float32": 1e-3}  # largest difference of two outputs of order 1
# Contender -> library, and the backend that torch is held to (None: its own choice).
CONTENDERS: dict[str, tuple[str, str | None]] = {
    "vdm_jax": ("vdm_jax", None), "torch": ("torch", None),
    "torch_flash": ("torch", "FLASH_ATTENTION"), "torch_cudnn": ("torch", "CUDNN_ATTENTION")}
PLATFORM_CONTENDERS = {"gpu": tuple(CONTENDERS), "cpu": ("vdm_jax", "torch")}
PROTOCOL = {
    "work": "full attention, batch 1; backward: gradients of queries, keys and values for a given cotangent",
    "input": "standard normal, the same for both; ours [1, T, H, W, K, D], torch [1, K, S, D], each as it comes",
    "processes": "one per library, timed in turns within one run, after two warm-up calls each",
    "statistic": "median over rounds of wall seconds per call, calls in a row for about --seconds, range next to it",
    "flops": "4 S^2 K D forward, 3.5 times that with gradients",
    "peak": "fastest product of two square bfloat16 matrices, by each library in its own process",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One attention call on `frames` of `side` x `side` tokens."""

    frames: int
    side: int
    heads: int
    head_dim: int
    dtype: str
    mode: str

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return self.frames * self.side**2

    @property
    def flops(self) -> float:
        """Of the products of attention (2 per multiply-add)."""
        factor = 1.0 if self.mode == "forward" else 3.5
        return factor * 4 * self.tokens**2 * self.heads * self.head_dim


# Defaults per platform: frames, tokens per side, heads, head dims, dtype, rows of the matrices of the peak.
SHAPES = {"gpu": ((16, 32, 64), 32, 16, (64, 128), "bfloat16", 8192), "cpu": ((4, 8), 16, 4, (64,), "float32", 1024)}


class Worker:
    """A process that holds one library."""

    def __init__(self, python: str, *arguments: str):
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
                       "TF_CPP_MIN_LOG_LEVEL": "2"}
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen([python, str(HERE / "sdpa_workers.py"), *arguments], env=environment, cwd=ROOT,
                                         text=True, bufsize=1, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=self._log)
        self.about = self._read()

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request; `error` is in it when it failed."""
        self._process.stdin.write(json.dumps(request) + "\n")
        return self._read()

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._log.seek(0)
        tail = " ".join(self._log.read().split()[-40:])
        raise WorkerStopped(tail)


class WorkerStopped(Exception):
    """A worker ended before its answer; the message is the end of what it printed."""


def measure(case: Case, contenders: tuple[str, ...], workers: dict[str, Worker], seconds: float) -> dict[str, Any]:
    """One case: every contender in turn, round by round."""
    found: dict[str, dict[str, Any]] = {}
    taken: dict[str, list[float]] = {}  # seconds
    for worker in workers.values():
        worker.ask(forget=True)
    for name in contenders:
        library, backend = CONTENDERS[name]
        found[name] = workers[library].ask(name=name, build={**dataclasses.asdict(case), "backend": backend})
        taken[name] = []
    for name in list(contenders) * ROUNDS:
        if "error" in found[name]:
            continue
        answer = workers[CONTENDERS[name][0]].ask(name=name, time=seconds)
        if "error" in answer:
            found[name] = answer
        else:
            taken[name].append(answer["seconds"])
    reference = found["vdm_jax"].get("sample")
    for name, row in found.items():
        sample = row.pop("sample", None)
        if "error" in row:
            continue
        row |= {"median": statistics.median(taken[name]), "low": min(taken[name]), "high": max(taken[name]),
                "flops_per_second": case.flops / statistics.median(taken[name])}
        if reference is not None:
            row["largest_difference"] = max(abs(a - b) for a, b in zip(sample, reference, strict=True))
            row["agrees"] = row["largest_difference"] <= TOLERANCE[case.dtype]
    return {**dataclasses.asdict(case), "tokens": case.tokens, "contenders": found}


def run(args: argparse.Namespace) -> Path:
    """Measure all cases; the record is written after every one. Returns its path."""
    workers: dict[str, Worker] = {}
    try:
        workers["vdm_jax"] = Worker(sys.executable, "--library", "vdm_jax")
        platform = workers["vdm_jax"].about["platform"]
        if platform not in SHAPES:
            fail(f"jax runs on {platform!r}; permitted: {', '.join(SHAPES)} (JAX_PLATFORMS)")
        workers["torch"] = Worker(args.torch_python, "--library", "torch", "--platform", platform)
        frames, side, heads, dims, dtype, size = SHAPES[platform]
        peaks = {name: worker.ask(peak=args.matmul_size or size) for name, worker in workers.items()}
        record = {"protocol": PROTOCOL, "date": datetime.date.today().isoformat(), "peaks": peaks,
                  **{name: worker.about for name, worker in workers.items()}, "rows": []}
        path = args.out / f"peer_sdpa_{platform}.json"
        cases = [Case(t, args.side or side, args.heads or heads, d, args.dtype or dtype, mode) for mode, d, t in
                 itertools.product(("forward", "forward+backward"), args.head_dims or dims, args.frames or frames)]
        for i, case in enumerate(cases):
            row = measure(case, PLATFORM_CONTENDERS[platform], workers, args.seconds)
            record["rows"].append(row)
            save(path, record)
            said = ", ".join(f"{name} {1000 * c['median']:.1f} ms" if "median" in c else f"{name} {c['error'][:60]}"
                             for name, c in row["contenders"].items())
            print(f"[{datetime.datetime.now():%H:%M:%S}] {i + 1}/{len(cases)} {case.mode} {case.tokens} tokens of "
                  f"{case.heads}x{case.head_dim}: {said}", flush=True)
        return path
    finally:
        for worker in workers.values():
            worker.stop()


# ---------------------------------------------------------------------------------------------- report


def table(record: dict[str, Any]) -> str:
    """Markdown: milliseconds and TFLOP/s of every contender, and how many times faster ours is than torch at its
    best."""
    names = list(dict.fromkeys(name for row in record["rows"] for name in row["contenders"]))
    lines = ["| call | tokens | heads | " + " | ".join(f"{name}, ms | TFLOP/s" for name in names)
             + " | our kernel | times faster than the best torch |",
             "|---|---:|---:|" + "---:|---:|" * len(names) + "---|---:|"]
    for row in record["rows"]:
        cells = [row["mode"], f"{row['tokens']:,}", f"{row['heads']}x{row['head_dim']} {row['dtype']}"]
        for name in names:
            found = row["contenders"].get(name, {"error": "not measured"})
            cells += _cells(found, record["peaks"][CONTENDERS[name][0]])
        ours = row["contenders"]["vdm_jax"]
        theirs = [c["median"] for n, c in row["contenders"].items() if n != "vdm_jax" and "median" in c]
        ratio = f"{min(theirs) / ours['median']:.2f}" if theirs and "median" in ours else "-"
        lines.append("| " + " | ".join([*cells, ours.get("kernel", "-"), ratio]) + " |")
    return "\n".join([*lines, "", *_notes(record)])


def _cells(found: dict[str, Any], peak: dict[str, Any]) -> list[str]:
    """Milliseconds with their range, and TFLOP/s with the share of the measured peak."""
    if "median" not in found:
        return [found["error"][:60].replace("|", "/"), "-"]
    median, low, high = (1000 * found[name] for name in ("median", "low", "high"))
    mark = "" if found.get("agrees", True) else " (differs)"
    rate = found["flops_per_second"]
    share = f" ({rate / peak['flops_per_second']:.0%})" if "flops_per_second" in peak else ""
    return [f"{median:.2f} ({low:.2f}-{high:.2f}){mark}", f"{rate / 1e12:.3g}{share}"]


def _notes(record: dict[str, Any]) -> list[str]:
    """Device, versions and protocol under the table."""
    peaks = ", ".join(f"{name} {peak['flops_per_second'] / 1e12:.3g} TFLOP/s ({peak['size']} rows)" for name, peak in
                      record["peaks"].items() if "flops_per_second" in peak)
    versions = {**record["vdm_jax"]["versions"], **record["torch"]["versions"]}
    return [f"Device: {record['vdm_jax']['device']['kind']} (torch: {record['torch']['device']}), {record['date']}. "
            f"bfloat16 matrix product: {peaks}; the share of a library's own in brackets.",
            f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}.",
            f"Protocol: {'; '.join(f'{name}: {text}' for name, text in record['protocol'].items())}."]


def write_report(out: Path, readme: Path | None = None) -> list[Path]:
    """A Markdown table next to every record in `out`; with `readme` also between its markers. Returns what was
    written."""
    written, parts = [], []
    for path in sorted(out.glob("peer_sdpa_*.json")):
        text = table(json.loads(path.read_text()))
        path.with_suffix(".md").write_text(text + "\n")
        parts += [f"### {path.stem.removeprefix('peer_sdpa_').upper()}", "", text, ""]
        written.append(path.with_suffix(".md"))
    if readme is not None and parts:
        readme.write_text(insert(readme.read_text(), "peer_sdpa", "\n".join(parts).rstrip()))
        written.append(readme)
    return written


def fail(message: str) -> None:
    """One line on standard error, exit code 2."""
    print(f"peer_sdpa: {message}", file=sys.stderr)
    raise SystemExit(2)


def main(arguments: list[str] | None = None) -> int:
    """Measure and report; 1 when a contender of ours failed or outputs differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", help="frames of a case; by default by platform, as all sizes")
    parser.add_argument("--side", type=int, help="tokens per side of a frame")
    parser.add_argument("--heads", type=int)
    parser.add_argument("--head-dims", type=int, nargs="+")
    parser.add_argument("--dtype", choices=tuple(TOLERANCE))
    parser.add_argument("--seconds", type=float, default=0.2, help="of one round of one contender")
    parser.add_argument("--matmul-size", type=int, help="rows of the matrices of the peak")
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter that has torch")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the records")
    parser.add_argument("--report", action="store_true", help="only write the tables from the records")
    args = parser.parse_args(arguments)
    for name in ("frames", "side", "heads", "head_dims", "seconds", "matmul_size"):
        values = getattr(args, name)
        if values is not None and min(values if isinstance(values, list) else [values]) <= 0:
            parser.error(f"--{name.replace('_', '-')}={values} is not valid; permitted: > 0")
    readme = HERE / "README.md" if args.out == HERE / "results" else None
    rows: list[dict[str, Any]] = []
    if not args.report:
        try:
            rows = json.loads(run(args).read_text())["rows"]
        except WorkerStopped as stop:
            fail(f"a worker stopped: {stop}; permitted: torch in this Python, or --torch-python")
    for path in write_report(args.out, readme):
        print(path)
    bad = [c for row in rows for n, c in row["contenders"].items()
           if not c.get("agrees", True) or (n in ("vdm_jax", "torch") and "error" in c)]
    if bad:
        print(f"peer_sdpa: {len(bad)} measurements failed or differ, the first: {bad[0]}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
