"""Train step and sampling step of our U-Nets against those of other libraries, on the CPU of this machine.

`vdm`: our space-time U-Net against Unet3D of video-diffusion-pytorch. `svd`, `modelscope`: a forward pass of the
networks of Stable Video Diffusion and ModelScope, reduced, against diffusers with the same weights; `wan`: two blocks
of Wan 2.1 1.3B likewise, and a train step. Outputs of the same weights are compared first. `imagen`: the network of
`vdm` against Unet3D of imagen-pytorch, of other layers.

In `vdm` both have the same parameter count and do the same work: zero the gradients, forward, mean squared error,
backward and Adam for a train step; one forward pass for a sampling step; float32, 10 frames. Each library runs in a
process of its own, which stays alive and is asked for one repetition at a time, so that the two alternate in one run.

Run:   python experiments/baselines/unet_speed.py              measure what is not recorded yet, then write README.md
       python experiments/baselines/unet_speed.py --quick      smoke run: smallest case, few repetitions, nothing kept
       python experiments/baselines/unet_speed.py --report     write README.md from the records
Needs: pip install --requirement requirements/peers.txt
       pip install --no-deps --requirement requirements/peers-no-deps.txt
An interrupted run goes on where it stopped. The machine should be idle: repetitions during which other processes took
more than a tenth of it are repeated, a few times, and what remains is marked in the table.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from measuring import RESULTS, device, load, save, summary, versions
from speed_networks import RELEASED, TRAINED

HERE = Path(__file__).parent
RECORD = RESULTS / "unet_speed.json"
SPOILED = 0.1  # share of the machine others may take in a repetition

# Keeps glibc from returning large activations to the system after every step, to be faulted in again by the next, and
# asks for large pages.
TUNED = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8589934592:"
                           "glibc.malloc.top_pad=268435456"}


class Contender(NamedTuple):
    """A library and how it is started."""

    library: str
    allocator: dict[str, str] = {}  # environment  # noqa: RUF012  (a tuple's field, never changed)
    compiled: bool = False  # torch.compile
    devices: bool = False  # ours: a device of one thread each, which share the frames, in place of threads


CONTENDERS = {
    "vdm_jax": Contender("vdm_jax"),
    "vdm_jax_tuned": Contender("vdm_jax", TUNED),
    "vdm_jax_devices": Contender("vdm_jax", TUNED, devices=True),
    "torch": Contender("torch"),
    "torch_tuned": Contender("torch", TUNED),
    "torch_compiled": Contender("torch", TUNED, compiled=True),
}
DEFAULT = ("vdm_jax", "vdm_jax_tuned", "vdm_jax_devices", "torch", "torch_tuned")
NETWORKS = ("vdm", "imagen", *RELEASED)
SIZES = {"vdm": (32, 64), "imagen": (32, 64), "svd": (16, 32), "modelscope": (16, 32),
         "wan": (16, 32)}  # pixels, or latents
NEEDED = {"vdm": "video_diffusion_pytorch", "imagen": "imagen_pytorch", "svd": "diffusers", "modelscope": "diffusers",
          "wan": "diffusers"}
PROTOCOL = {
    "work": "train: zero gradients, forward, mean squared error, backward, Adam; forward: one denoiser call",
    "input": "10 RGB frames, float32, random",
    "processes": "one per library and case, alternating repetition by repetition, after one warm-up each",
    "statistic": "median of wall seconds, range next to it",
    "memory": "peak resident memory during the steps, libraries and weights included, compilation not",
    "devices": "one of one thread for each core, which share the frames of a clip (mesh axis context); tuned",
    "tuned": "glibc allocator keeps freed memory, in large pages: " + " ".join(f"{k}={v}" for k, v in TUNED.items()),
}


class Case(NamedTuple):
    """What is timed."""

    network: str
    mode: str  # train or forward
    size: int  # height and width, pixels or latents
    batch: int

    @property
    def key(self) -> str:
        """Its name in the record."""
        return "-".join(map(str, self))

    def __str__(self) -> str:
        return f"{self.network} {self.mode} {self.size}x{self.size} batch {self.batch}"

    @property
    def options(self) -> list[str]:
        """Of the worker's command line."""
        return [text for name, value in self._asdict().items() for text in (f"--{name}", str(value))]


class Worker:
    """A process that holds one library's network for one case."""

    def __init__(self, contender: str, case: Case, threads: int, folder: Path):
        chosen = CONTENDERS[contender]
        command = [sys.executable, str(HERE / "speed_workers.py"), "--library", chosen.library, *case.options,
                   "--threads", str(threads), "--folder", str(folder)]
        path = os.pathsep.join(filter(None, (str(HERE.parent.parent), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, **chosen.allocator, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads),
                       "JAX_NUM_CPU_DEVICES": str(threads if chosen.devices else 1), "JAX_PLATFORMS": "cpu",
                       "JAX_ENABLE_COMPILATION_CACHE": "false", "TF_CPP_MIN_LOG_LEVEL": "2"}
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(command + ["--compiled"] * chosen.compiled, env=environment, text=True,
                                         bufsize=1, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log)
        self.contender = contender
        self.about = self._read()["ready"]

    def time(self) -> dict[str, float]:
        """One repetition."""
        return self._ask("time")

    def finish(self) -> dict[str, float]:
        """Peak memory; the process ends."""
        answer = self._ask("finish")
        self.stop()
        return answer

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _ask(self, request: str) -> dict[str, float]:
        self._process.stdin.write(request + "\n")
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            tail = " ".join(self._log.read().split()[-60:])
            self.stop()
            raise RuntimeError(f"worker {self.contender} stopped: {tail}")
        return json.loads(line)


def make_weights(case: Case, folder: Path) -> None:
    """The weights of a released network, by a process of its own: this one holds no library's memory."""
    command = [sys.executable, str(HERE / "speed_workers.py"), "--library", "torch", *case.options, "--threads", "1",
               "--folder", str(folder), "--save"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def check_outputs(workers: list[Worker]) -> None:
    """Raise where networks with the same weights do not say the same."""
    outputs = {worker.contender: worker.about.pop("output") for worker in workers if "output" in worker.about}
    for name, output in outputs.items():
        np.testing.assert_allclose(output, next(iter(outputs.values())), rtol=1e-3, atol=1e-4, err_msg=name)


def measure(contenders: tuple[str, ...], case: Case, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One case: all contenders, alternating, until each has its repetitions or the time is up."""
    if case.network in RELEASED and not folder.exists():
        make_weights(case, folder)
    workers: list[Worker] = []
    kept: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    spare = args.repetitions  # further rounds that may replace spoiled repetitions
    try:
        for name in contenders:
            say(f"{case}: starting {name}")
            workers.append(Worker(name, case, args.threads, folder))
        check_outputs(workers)
        start, rounds = time.monotonic(), 0
        while rounds < args.repetitions + spare:
            for worker in workers:
                time.sleep(0.2)  # threads of the one before go to sleep
                kept[worker.contender].append(worker.time())
            rounds += 1
            clean = {name: [r for r in kept[name] if not spoiled(r)] for name in contenders}
            enough = min(len(c) for c in clean.values())
            say(f"{case}: round {rounds}, "
                + ", ".join(f"{name} {kept[name][-1]['wall']:.2f} s" for name in contenders))
            late = time.monotonic() - start > args.seconds_per_case and rounds >= 3
            if enough >= args.repetitions or (late and enough >= 3) or (late and rounds >= 2 * 3):
                break
        found = {}
        for worker in workers:
            name = worker.contender
            used = clean[name] if len(clean[name]) >= min(3, args.repetitions) else kept[name]
            found[name] = {**summary(used), **worker.about, **worker.finish(),
                           "contended": any(spoiled(r) for r in used)}
        return {**case._asdict(), "contenders": found}
    finally:
        for worker in workers:
            worker.stop()


def spoiled(repetition: dict[str, float]) -> bool:
    """Whether others took too much of the machine."""
    return repetition["others"] > SPOILED * (os.cpu_count() or 1) * repetition["wall"]


def say(text: str) -> None:
    """Progress on the terminal."""
    print(f"[{datetime.datetime.now():%H:%M:%S}] {text}", flush=True)


def run(args: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Measure the cases that the record lacks; every finished case is written at once."""
    packages = ("jax", "flax", "optax", "torch", "video-diffusion-pytorch", "diffusers", "imagen-pytorch")
    about = {"protocol": PROTOCOL, "device": device(args.threads), "versions": versions(*packages),
             "repetitions": args.repetitions}
    record = None if args.fresh else load(path)
    if record and any(record[key] != about[key] for key in ("device", "versions", "protocol")):
        fail(f"{path} was measured on another machine, with other versions or another protocol; permitted: --fresh to "
             "measure everything again")
    record = record or {**about, "rows": {}}
    cases = [Case(network, mode, size, batch) for network in args.networks for size in args.sizes or SIZES[network]
             for batch in args.batches for mode in ("train", "forward")[network not in TRAINED :]]
    weights = tempfile.TemporaryDirectory()
    for i, case in enumerate(cases):
        # torch.compile is measured for the sampling step only: compiling the backward pass takes many minutes.
        contenders = tuple(c for c in args.contenders
                           if c != "torch_compiled" or (case.mode == "forward" and case.network == "vdm"))
        if set(contenders) <= set(record["rows"].get(case.key, {}).get("contenders", {})):
            say(f"case {i + 1}/{len(cases)} {case.key}: recorded already")
            continue
        say(f"case {i + 1}/{len(cases)} {case.key}")
        record["rows"][case.key] = measure(contenders, case, args, Path(weights.name) / case.network)
        record["date"] = datetime.date.today().isoformat()
        save(path, record)
    return record


def fail(message: str) -> None:
    """One line on standard error, exit code 2."""
    print(f"unet_speed: {message}", file=sys.stderr)
    raise SystemExit(2)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke run of 32x32, batch 1; the record is not touched")
    parser.add_argument("--report", action="store_true", help="only write README.md from the records")
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="see above")
    parser.add_argument("--sizes", type=int, nargs="+", help="height and width, pixels or latents; 32 and 64, or 16 "
                        "and 32 latents")
    parser.add_argument("--batches", type=int, nargs="+", default=[1], help="clips per step")
    parser.add_argument("--repetitions", type=int, default=7, help="clean repetitions wanted per case and contender")
    parser.add_argument("--seconds-per-case", type=float, default=40.0,
                        help="after this long, 3 clean repetitions are enough")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of each library")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(DEFAULT),
                        help="torch_compiled (sampling step of vdm only) adds about a minute per case")
    return parser.parse_args()


def main() -> None:
    """Measure and report."""
    args = arguments()
    from speed_report import write_report

    if not args.report:
        for name in ("torch", *(NEEDED[network] for network in args.networks)):
            if importlib.util.find_spec(name) is None:
                fail(f"{name} is not installed; permitted: make baselines, or see --help")
        if args.quick:
            args.networks = ["vdm"]
            args.sizes, args.batches, args.repetitions, args.seconds_per_case = [32], [1], 2, 0.0
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / RECORD.name
                run(args, path)
                print(path.read_text())
            return
        run(args, RECORD)
    write_report()
    say(f"wrote {HERE / 'README.md'}")


if __name__ == "__main__":
    main()
