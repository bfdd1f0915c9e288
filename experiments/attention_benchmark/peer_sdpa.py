"""Our attention with kernel `auto` next to PyTorch's `scaled_dot_product_attention`: the same shapes, in one run.

Every pattern on a CPU, full attention on a GPU, forward and forward with gradients. Each library runs in a process of
its own, so that neither holds the other's memory; they are timed in turns, round by round, and each is also asked for
the fastest matrix product it reaches on the device. On a CPU that other work shares, --one-core compares processor
seconds of one core each: they do not depend on who else computes, but say nothing of how well threads are used.

Run:   python -m experiments.attention_benchmark.peer_sdpa            in the root of the repository
       python -m experiments.attention_benchmark.peer_sdpa --report   only write the tables from the records
       python -m experiments.attention_benchmark.peer_sdpa --one-core on a CPU that others use
Needs: torch (`pip install --requirement requirements/peers.txt` has a CPU build's version), in this Python or in the
       one named by --torch-python
Without --one-core the device should be idle: the record says what share of the machine other processes took. The GPU
cases were reckoned at five minutes on an H100, not measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.attention_benchmark.sdpa_goals import goals
from experiments.baselines.measuring import busy_seconds, save
from experiments.readme_tables import insert
from vdm_jax.attention.patterns import attention_flops
from vdm_jax.benchmark.cases import parse_pattern
from vdm_jax.parallel.compiling import processors

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ROUNDS = 5
TUNABLES = "GLIBC_TUNABLES"  # settings of the allocator in the environment, which both libraries get
TOLERANCE = {"bfloat16": 0.03, "float16": 0.01, "float32": 1e-3}  # largest difference of two outputs of order 1
# Contender -> worker, and the backend that torch is held to (None: its own choice).
CONTENDERS: dict[str, tuple[str, str | None]] = {
    "vdm_jax": ("vdm_jax", None), "vdm_jax_devices": ("vdm_jax_devices", None), "torch": ("torch", None),
    "torch_flash": ("torch", "FLASH_ATTENTION"), "torch_cudnn": ("torch", "CUDNN_ATTENTION"),
    "torch_frames": ("torch", "frames")}  # causal attention frame by frame, each over its past, without a mask
PLATFORM_CONTENDERS = {"gpu": ("vdm_jax", "torch", "torch_flash", "torch_cudnn"),
                       "cpu": ("vdm_jax", "vdm_jax_devices", "torch")}
PROTOCOL = {
    "work": "one clip; backward: gradients of queries, keys and values for a given cotangent",
    "input": "standard normal, the same for both; ours [1, T, H, W, K, D], whose sequences it makes within the call; "
             "torch [sequences, K, S, D] in one piece, made before",
    "vdm_jax_devices": "a device for each core in place of threads; they share the heads (mesh axis tensor)",
    "torch": "sparse-causal: keys and values of first, previous and own frame joined within the call; causal: a mask, "
             "and as torch_frames one call per frame without a mask",
    "processes": "one per library, timed in turns within one run, after two warm-up calls each",
    "statistic": "median over rounds of wall seconds per call, calls in a row for about --seconds, range next to it; "
                 "times faster: of each library the contender with the least median, and the median over rounds of "
                 "their ratio",
    "flops": "4 K D per visible pair of tokens forward, 3.5 times that with gradients",
    "peak": "fastest product of two square matrices of the same kind of numbers, by each library in its own process",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One attention call on `frames` of `side` x `width` tokens."""

    frames: int
    side: int
    heads: int
    head_dim: int
    dtype: str
    mode: str
    pattern: str = "full"  # as `vdm_jax.benchmark.cases.parse_pattern` reads it, or cross
    width: int = 0  # tokens; 0: as many as `side`
    extra_keys: int = 0  # outside tokens of cross-attention

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width in tokens."""
        return self.frames, self.side, self.width or self.side

    @property
    def tokens(self) -> int:
        """Tokens of the clip."""
        return math.prod(self.size)

    @property
    def name(self) -> str:
        """The pattern, and the outside tokens it sees."""
        return f"{self.pattern} to {self.extra_keys}" if self.extra_keys else self.pattern

    @property
    def flops(self) -> float:
        """Of the products of attention (2 per multiply-add)."""
        factor = 1.0 if self.mode == "forward" else 3.5
        if self.pattern == "cross":
            return factor * 4 * self.tokens * self.extra_keys * self.heads * self.head_dim
        return factor * attention_flops(parse_pattern(self.pattern), self.size, heads=self.heads,
                                        head_dim=self.head_dim)

    @property
    def contenders(self) -> tuple[str, ...]:
        """Contenders of this case alone."""
        return ("torch_frames",) if self.pattern == "causal" else ()


MOVED = 2**28  # bytes of the array that is read and written: more than any cache holds
# Defaults per platform: frames, tokens per side, heads, head dims, dtype, rows of the matrices of the peak.
SHAPES = {"gpu": ((16, 32, 64), 32, 16, (64, 128), "bfloat16", 8192), "cpu": ((16,), 16, 8, (64,), "float32", 2048)}
# What a CPU computes when neither frames nor sides are given: pattern, frames, height, width, outside tokens.
CPU_CASES = (
    ("spatial", 64, 8, 8, 0), ("spatial", 28, 12, 12, 0), ("spatial", 16, 16, 16, 0), ("spatial", 4, 24, 40, 0),
    ("spatial", 4, 32, 32, 0), ("temporal", 4, 16, 16, 0), ("temporal", 16, 16, 16, 0), ("temporal", 64, 16, 16, 0),
    ("cross", 16, 16, 16, 16), ("cross", 16, 16, 16, 77), ("cross", 16, 16, 16, 256), ("cross", 16, 16, 16, 512),
    ("SparseCausal(own=True)", 16, 16, 16, 0), ("SparseCausal(own=True)", 32, 16, 16, 0), ("causal", 16, 16, 16, 0),
    ("full", 16, 16, 16, 0))


def cases_of(args: argparse.Namespace, platform: str) -> list[Case]:
    """The cases that arguments ask for."""
    frames, side, heads, dims, dtype, _ = SHAPES[platform]
    heads, dims, dtype = args.heads or heads, args.head_dims or dims, args.dtype or dtype
    sizes = [("full", t, args.side or side, 0, 0) for t in args.frames or frames]
    if platform == "cpu" and not (args.frames or args.side):
        sizes = list(CPU_CASES)
    return [Case(t, height, heads, dim, dtype, mode, pattern, width, extra_keys) for mode, dim, (
        pattern, t, height, width, extra_keys) in itertools.product(("forward", "forward+backward"), dims, sizes)]


class Worker:
    """A process that holds one library."""

    def __init__(self, python: str, *arguments: str, devices: int = 1):
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
                       "TF_CPP_MIN_LOG_LEVEL": "2", "JAX_NUM_CPU_DEVICES": str(devices)}
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


def idle(patience: float) -> None:
    """Wait until other processes leave the machine alone, at most so many seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        before = busy_seconds()
        time.sleep(0.1)
        if busy_seconds() - before <= 0.02:
            return


def measure(
    case: Case, contenders: tuple[str, ...], workers: dict[str, Worker], seconds: float, patience: float = 0.0,
) -> dict[str, Any]:
    """One case: every contender in turn, round by round."""
    found: dict[str, dict[str, Any]] = {}
    taken: dict[str, list[float]] = {}  # seconds
    for worker in workers.values():
        worker.ask(forget=True)
    for name in contenders:
        library, backend = CONTENDERS[name]
        found[name] = workers[library].ask(name=name, build={**dataclasses.asdict(case), "backend": backend})
        taken[name] = []
    others: list[float] = []  # share of the machine that others took
    for place, name in enumerate(list(contenders) * ROUNDS):
        if place % len(contenders) == 0:
            idle(patience)
        if "error" in found[name]:
            continue
        answer = workers[CONTENDERS[name][0]].ask(name=name, time=seconds)
        if "error" in answer:
            found[name] = answer
        else:
            taken[name].append(answer["seconds"])
            others.append(answer["others"])
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
    row = {**dataclasses.asdict(case), "tokens": case.tokens, "name": case.name, "contenders": found}
    ours, theirs = ([times for name, times in taken.items() if name.startswith("vdm_jax") == mine
                     and len(times) == ROUNDS] for mine in (True, False))
    if ours and theirs:
        pairs = zip(min(ours, key=statistics.median), min(theirs, key=statistics.median), strict=True)
        row["times_faster"] = statistics.median(their / our for our, their in pairs)
    return row | {"others": statistics.median(others)} if others else row


def run(args: argparse.Namespace) -> Path:
    """Measure all cases; the record is written after every one. Returns its path."""
    workers: dict[str, Worker] = {}
    try:
        options = ["--one-core"] if args.one_core else []
        workers["vdm_jax"] = Worker(sys.executable, "--library", "vdm_jax", *options)
        platform = workers["vdm_jax"].about["platform"]
        if platform not in SHAPES:
            fail(f"jax runs on {platform!r}; permitted: {', '.join(SHAPES)} (JAX_PLATFORMS)")
        contenders = PLATFORM_CONTENDERS[platform]
        if args.one_core or processors() == 1:
            contenders = tuple(name for name in contenders if name != "vdm_jax_devices")
        if "vdm_jax_devices" in contenders:
            workers["vdm_jax_devices"] = Worker(sys.executable, "--library", "vdm_jax", devices=processors())
        workers["torch"] = Worker(args.torch_python, "--library", "torch", "--platform", platform, *options)
        dtype, size = SHAPES[platform][-2:]
        peaks = {name: worker.ask(peak=args.matmul_size or size, dtype=args.dtype or dtype)
                 for name, worker in workers.items() if name != "vdm_jax_devices"}
        more = {"clock": "processor seconds, one core for each library"} if args.one_core else {}
        if TUNABLES in os.environ:
            more["allocator"] = f"{TUNABLES}={os.environ[TUNABLES]} for both"
        record = {"protocol": PROTOCOL | more, "date": datetime.date.today().isoformat(), "peaks": peaks,
                  **{name: worker.about for name, worker in workers.items()}, "rows": []}
        path = args.out / f"peer_sdpa_{platform}{'_one_core' * args.one_core}.json"
        record["moved"] = workers["vdm_jax"].ask(move=MOVED)
        if args.only_moved:
            record = json.loads(path.read_text()) | {"moved": record["moved"]}
            save(path, record)
            return path
        cases = cases_of(args, platform)
        for i, case in enumerate(cases):
            row = measure(case, contenders + case.contenders, workers, args.seconds, args.patience)
            record["rows"].append(row)
            save(path, record)
            said = ", ".join(f"{name} {1000 * c['median']:.1f} ms" if "median" in c else f"{name} {c['error'][:60]}"
                             for name, c in row["contenders"].items())
            print(f"[{datetime.datetime.now():%H:%M:%S}] {i + 1}/{len(cases)} {case.name} {case.mode} "
                  f"{case.tokens} tokens of {case.heads}x{case.head_dim}: {said}", flush=True)
        return path
    finally:
        for worker in workers.values():
            worker.stop()


# ---------------------------------------------------------------------------------------------- report


def table(record: dict[str, Any]) -> str:
    """Markdown: milliseconds and rate of every contender, and how many times faster ours is than torch at its best."""
    names = list(dict.fromkeys(name for row in record["rows"] for name in row["contenders"]))
    lines = ["| pattern | call | size | heads | " + " | ".join(f"{name}, ms | TFLOP/s" for name in names)
             + " | our kernel | times faster than the best torch |",
             "|---|---|---:|---:|" + "---:|---:|" * len(names) + "---|---:|"]
    for row in record["rows"]:
        size = f"{row['frames']} x {row['side']}x{row.get('width') or row['side']}"
        cells = [row.get("name", "full"), row["mode"], size, f"{row['heads']}x{row['head_dim']} {row['dtype']}"]
        for name in names:
            found = row["contenders"].get(name, {"error": "-"})
            cells += _cells(found, record["peaks"][CONTENDERS[name][0].removesuffix("_devices")])
        ours = row["contenders"]["vdm_jax"]
        ratio = f"{row['times_faster']:.2f}" if "times_faster" in row else "-"
        lines.append("| " + " | ".join([*cells, ours.get("kernel", "-"), ratio]) + " |")
    return "\n".join([*lines, "", *goals(record), *_summary(record), *_notes(record)])


def _summary(record: dict[str, Any]) -> list[str]:
    """Least and median of the ratios, by kind of call."""
    said = []
    for mode in dict.fromkeys(row["mode"] for row in record["rows"]):
        ratios = [row["times_faster"] for row in record["rows"] if row["mode"] == mode and "times_faster" in row]
        if ratios:
            said.append(f"{mode} {statistics.median(ratios):.2f} in the median, {min(ratios):.2f} at least")
    others = [row["others"] for row in record["rows"] if "others" in row]
    busy = f" Other processes took {statistics.median(others):.0%} of the machine in the median row." if others else ""
    return [f"Times faster than the best torch: {'; '.join(said)}.{busy}"] if said else []


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
            f"Matrix product: {peaks}; the share of a library's own in brackets.",
            f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}.",
            f"Protocol: {'; '.join(f'{name}: {text}' for name, text in record['protocol'].items())}."]


def write_report(out: Path, *pages: Path) -> list[Path]:
    """A Markdown table next to every record in `out`, and in pages between their markers. Returns what was written."""
    written, parts = [], []
    for path in sorted(out.glob("peer_sdpa_*.json")):
        text = table(json.loads(path.read_text()))
        path.with_suffix(".md").write_text(text + "\n")
        title = path.stem.removeprefix("peer_sdpa_").replace("_", ", ", 1).replace("_", " ")
        parts += [f"### {title.replace('cpu', 'CPU').replace('gpu', 'GPU')}", "", text, ""]
        written.append(path.with_suffix(".md"))
    for page in pages if parts else ():
        page.write_text(insert(page.read_text(), "peer_sdpa", "\n".join(parts).rstrip()))
        written.append(page)
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
    parser.add_argument("--one-core", action="store_true", help="processor seconds of one core for each library")
    parser.add_argument("--patience", type=float, default=3.0,
                        help="seconds to wait before a round until other processes leave the machine alone")
    parser.add_argument("--matmul-size", type=int, help="rows of the matrices of the peak")
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter that has torch")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the records")
    parser.add_argument("--only-moved", action="store_true", help="only measure how fast arrays are read and written, "
                                                                  "into the record that is there")
    parser.add_argument("--report", action="store_true", help="only write the tables from the records")
    args = parser.parse_args(arguments)
    for name in ("frames", "side", "heads", "head_dims", "seconds", "matmul_size"):
        values = getattr(args, name)
        if values is not None and min(values if isinstance(values, list) else [values]) <= 0:
            parser.error(f"--{name.replace('_', '-')}={values} is not valid; permitted: > 0")
    pages = (HERE / "README.md", ROOT / "docs" / "performance.md") if args.out == HERE / "results" else ()
    rows: list[dict[str, Any]] = []
    if not args.report:
        try:
            rows = json.loads(run(args).read_text())["rows"]
        except WorkerStopped as stop:
            fail(f"a worker stopped: {stop}; permitted: torch in this Python, or --torch-python")
    for path in write_report(args.out, *pages):
        print(path)
    bad = [c for row in rows for n, c in row["contenders"].items()
           if not c.get("agrees", True) or (n in ("vdm_jax", "torch") and "error" in c)]
    if bad:
        print(f"peer_sdpa: {len(bad)} measurements failed or differ, the first: {bad[0]}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
