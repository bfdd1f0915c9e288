"""Train steps of several patterns timed in turn, so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax

from experiments.attention_benchmark.variants import FULL
from vdm_jax.benchmark import machine
from vdm_jax.conditions.vocabulary import Vocabulary
from vdm_jax.data.opening import open_source
from vdm_jax.data.pipeline import Pipeline
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.stages.stage import Experiment
from vdm_jax.training.loop import device_batch
from vdm_jax.training.state import create_state
from vdm_jax.training.step import jit_train_step


def step_times(experiments: dict[str, Experiment], stage: str, data_dir: Path | None, *, rounds: int) -> dict[str, Any]:
    """Median seconds of a train step of each experiment, their median ratio to full attention's step of the same round,
    and the memory of the compiled step (arguments, outputs that are not donated, temporaries)."""
    programs, memory = {}, {}
    for name, experiment in experiments.items():
        print(f"compiling the train step: {name}", file=sys.stderr, flush=True)
        programs[name], memory[name] = program(experiment, stage, data_dir)
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, step in programs.items():
            seconds[name].append(step())
    device = machine.describe(jax.devices()[0], len(jax.devices()))
    return {name: {"seconds": statistics.median(taken), "bytes": memory[name], "rounds": rounds,
                   "device": device["kind"],
                   "ratio": statistics.median(a / b for a, b in zip(taken, seconds[FULL], strict=True))}
            for name, taken in seconds.items()}


def program(experiment: Experiment, name: str, data_dir: Path | None) -> tuple[Any, int]:
    """A function that makes one train step and returns its seconds, and the bytes of the compiled step."""
    mesh, stage = make_mesh(experiment.mesh), experiment.with_words(experiment.data.vocabulary()).stage(name)
    text = stage.network.text
    batch = device_batch(Pipeline(open_source(experiment.data, "train", data_dir), batch_size=stage.training.batch_size,
                                  seed=0, tokenize=Vocabulary(text.words, text.length).encode).batch(0), mesh)
    state = create_state(stage, 0, mesh)
    with jax.set_mesh(mesh):
        step = jit_train_step(stage, mesh).lower(state, batch).compile()
    stats = step.memory_analysis()

    def once() -> float:
        nonlocal state
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        return time.perf_counter() - start

    once()
    return once, int(stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
                     - stats.alias_size_in_bytes)
