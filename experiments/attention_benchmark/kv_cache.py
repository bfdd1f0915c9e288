"""What kept keys and values save a causal video transformer: one estimate of the last block of a video, given what is
kept of all blocks before it, next to the same estimate by the network on all frames so far.

Run:   python -m experiments.attention_benchmark.kv_cache            in the root of the repository
       python -m experiments.attention_benchmark.kv_cache --report   only write the table from the record

The network is that of configs/causal_digits.py with random weights: what it costs does not depend on what it has
learnt. Both estimates are timed in turn. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.exit_codes import exit_code
from experiments.readme_tables import insert
from vdm_jax.benchmark import machine
from vdm_jax.benchmark.record import load, open_record, save
from vdm_jax.benchmark.timing import Watch
from vdm_jax.commands.configs import load_config
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.transformer.levels import CLEAN
from vdm_jax.networks.transformer.past import empty, following
from vdm_jax.stages.parameters import example_conditioning, initial_params
from vdm_jax.stages.stage import Stage
from vdm_jax.versions import versions

HERE = Path(__file__).parent
RECORD = HERE / "results" / "kv_cache.json"
CASES = tuple((frames, side) for side in (32, 64) for frames in (8, 16, 32, 64))  # frames, pixels of a side
ROUNDS = 9


def stage_of(frames: int, side: int) -> Stage:
    """The causal stage with so many frames of so many pixels."""
    stage = load_config("causal_digits").stages[0]
    return dataclasses.replace(stage, video=dataclasses.replace(stage.video, frames=frames, height=side, width=side))


def estimates(stage: Stage) -> dict[str, Callable[[], jax.Array]]:
    """Both ways to the network's estimate of the last block of one video, compiled, on the same frames."""
    network, (frames, *sides) = stage.network, stage.video.shape
    module, block, rng = network_module(network), network.block_frames, np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: initial_params(stage, key), jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(0.05 * rng.normal(size=leaf.shape), leaf.dtype), shapes)
    conditioning = example_conditioning(stage).replace(history=None)
    clean, noisy = (jnp.asarray(rng.normal(size=(1, count, *sides)), jnp.float32) for count in (frames - block, block))
    level = jnp.zeros(1)

    def apply(*arguments: Any, **options: Any) -> Any:
        return module.apply({"params": params}, *arguments, **options)

    def filled() -> Any:
        def body(past: Any, number: jax.Array) -> tuple[Any, None]:
            part = jax.lax.dynamic_slice_in_dim(clean, number * block, block, axis=1)
            own = conditioning.window(0, block, frames)
            _, state = apply(part, jnp.full(1, CLEAN), own, past=past, mutable=["kept"])
            return following(network, past, state), None

        return jax.lax.scan(body, empty(network, 1, (frames, *sides[:2])), jnp.arange(frames // block - 1))[0]

    past = jax.jit(filled)()
    levels = jnp.where(jnp.arange(frames) < frames - block, CLEAN, 0.0)[None]
    kept = jax.jit(lambda past, x: apply(x, level, conditioning.window(0, block, frames), past=past))
    whole = jax.jit(lambda clean, x: apply(jnp.concatenate([clean, x], 1), levels, conditioning)[:, -block:])
    return {"kept": lambda: kept(past, noisy), "recomputed": lambda: whole(clean, noisy)}


def measure(frames: int, side: int, rounds: int = ROUNDS) -> dict[str, Any]:
    """Seconds of both, in turn, and how far their estimates are apart."""
    ways, stage = estimates(stage_of(frames, side)), stage_of(frames, side)
    found = {name: np.asarray(way()) for name, way in ways.items()}  # which compiles
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    watch = Watch()
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            jax.block_until_ready(way())
            seconds[name].append(time.perf_counter() - start)
    tokens = frames * (side // stage.network.patch[1]) * (side // stage.network.patch[2])
    return {"frames": frames, "side": side, "tokens": tokens, "block": stage.network.block_frames,
            "difference": float(np.abs(found["kept"] - found["recomputed"]).max()),
            "seconds": {name: round(statistics.median(times), 6) for name, times in seconds.items()},
            "others_share": watch.share()}


def record(path: Path, cases: tuple[tuple[int, int], ...] = CASES, rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure the cases that the record lacks."""
    found = open_record(path, {
        "device": machine.describe(jax.devices()[0], 1), "versions": versions(),
        "protocol": {"config": "causal_digits", "rounds": rounds, "batch": 1}})
    for frames, side in cases:
        key = f"{frames} frames of {side}x{side}"
        if key not in found["rows"]:
            found["rows"][key] = measure(frames, side, rounds)
            save(path, found)
            print(key, found["rows"][key]["seconds"], file=sys.stderr, flush=True)
    return found


def table(found: dict[str, Any]) -> str:
    """A line per case."""
    lines = ["| video | tokens so far | recomputed, ms a frame | with kept keys, ms a frame | times as fast | largest "
             "difference |", "|---|---:|---:|---:|---:|---:|"]
    for key, row in found["rows"].items():
        kept, whole = (1e3 * row["seconds"][name] / row["block"] for name in ("kept", "recomputed"))
        lines.append(f"| {key} | {row['tokens']} | {whole:.2f} | {kept:.2f} | {whole / kept:.1f} | "
                     f"{row['difference']:.0e} |")
    device = found["device"]
    others = max((row["others_share"] or 0 for row in found["rows"].values()), default=0)
    return "\n".join([*lines, "", f"Medians of {found['protocol']['rounds']} calls of one estimate, of the last block "
                                  "of a video, before which recomputation is the dearest: earlier blocks have fewer "
                                  "frames. Sampling takes one per step, and with kept keys one more call per block, "
                                  f"which keeps its own. {device['kind']}, {device['cores']} cores, of which other "
                                  f"processes had at most {others:.0%}; jax {found['versions']['jax']}. Recorded "
                                  f"{found['date']}."])


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="only write the table from the record")
    args = parser.parse_args()

    def work() -> None:
        found = load(RECORD) if args.report else record(RECORD)
        page = HERE / "README.md"
        page.write_text(insert(page.read_text(), "kv_cache", table(found)))

    return exit_code("kv_cache", work)


if __name__ == "__main__":
    sys.exit(main())
