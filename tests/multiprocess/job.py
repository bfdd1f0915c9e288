"""`vdm-jax` as several processes on this machine, over the loopback interface, with CPU collectives."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import jax
import rich.console

from vdm_jax.commands.configs import load_config
from vdm_jax.commands.train_command import resolve
from vdm_jax.parallel.mesh import MeshSpec
from vdm_jax.runs.directory import open_run
from vdm_jax.training.loop import Trainer
from vdm_jax.training.report import Report

ROOT = pathlib.Path(__file__).parents[2]
TINY = ROOT / "tests" / "commands" / "tiny.py"
PATIENCE = 900  # seconds; the machine may be busy with something else


class Job:
    """Processes of one command, each with its own output file; killed at the end of the `with` statement."""

    def __init__(self, folder: pathlib.Path, *commands: list[str], devices: int):
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
        folder.mkdir(parents=True, exist_ok=True)
        self.outputs = [folder / f"output_{index}.txt" for index in range(len(commands))]
        self.processes = []
        for output, command in zip(self.outputs, commands, strict=True):
            with open(output, "w") as file:
                self.processes.append(subprocess.Popen(
                    [sys.executable, "-m", "vdm_jax.commands.main", *map(str, command)], env=environment, stdout=file,
                    stderr=subprocess.STDOUT))

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *exception) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def wait(self) -> list[int]:
        """Exit codes, when all have ended."""
        deadline = time.monotonic() + PATIENCE
        return [process.wait(max(deadline - time.monotonic(), 1)) for process in self.processes]

    def text(self, index: int = 0) -> str:
        """What a process has printed, without the notes of the collectives' library."""
        lines = self.outputs[index].read_text().splitlines()
        return "\n".join(line for line in lines if not line.startswith("[Gloo]"))

    def until_step(self, step: int) -> None:
        """Wait until the first process has reported a step (the tiny config reports all)."""
        for _ in seconds(PATIENCE):
            if f"step {step}/" in self.text():
                return
            codes = [process.poll() for process in self.processes]
            assert codes == [None] * len(codes), f"ended before step {step}: {codes}\n{self.text()}"
        raise AssertionError(f"step {step} was not reached in {PATIENCE} s\n{self.text()}")


def train(folder: pathlib.Path, run: pathlib.Path, data: pathlib.Path, *flags, processes: int, devices: int,
          different: list[str] | None = None) -> Job:
    """Start `vdm-jax train` of the tiny config's base stage; the last process gets `different` flags too."""
    common = ["train", TINY, "--stage", "base", "--run", run, "--data-dir", data, *flags, "--processes", processes,
              "--coordinator", f"127.0.0.1:{free_port()}", "--heartbeat", 4 * PATIENCE]
    commands = [[*common, "--process-id", index] for index in range(processes)]
    commands[-1] += different or []
    return Job(folder, *commands, devices=devices)


def train_here(run: pathlib.Path, data: pathlib.Path, *, steps: int = 4, mesh: MeshSpec | None = None, devices: int = 4,
               damaged: str = "refuse", **training) -> str:
    """Train the same stage in this process, on some of its devices; returns what was reported."""
    experiment = resolve(load_config(str(TINY)), run, data)
    stage = experiment.stage("base")
    stage = dataclasses.replace(stage, training=dataclasses.replace(stage.training, steps=steps, **training))
    experiment = dataclasses.replace(experiment, stages=(stage, *experiment.stages[1:]), mesh=mesh or MeshSpec())
    report = Report(rich.console.Console(file=io.StringIO(), width=200))
    Trainer(open_run(run, experiment), stage, run, report, data, jax.devices()[:devices], damaged).train()
    return report.console.file.getvalue()


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def seconds(limit: float, pause: float = 0.1) -> Iterator[float]:
    """Seconds passed, again after every pause, up to the limit."""
    start = time.monotonic()
    while (passed := time.monotonic() - start) < limit:
        yield passed
        time.sleep(pause)
