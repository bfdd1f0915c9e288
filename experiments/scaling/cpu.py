"""Measure the train step of a small base on 1, 2, 4 and 8 virtual devices of this CPU, weak and strong.

Run:   python -m experiments.scaling.cpu            writes results/cpu.json and README.md; minutes, machine idle
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
RECORD = HERE / "results" / "cpu.json"
DEVICES, STRONG_BATCH, WEAK_CLIPS, SECONDS = (1, 2, 4, 8), 16, 4, 20.0
# Data parallel, parameters split, and frames split, at the largest number of devices.
MESHES = {1: ("data=1",), 2: ("data=2",), 4: ("data=4",), 8: ("data=8", "data=2,fsdp=4", "data=4,context=2")}
PROTOCOL = ("The base of attention_digits (8 frames of 32x32, float32) in processes of their own, one after another; "
            f"median of the steps of {SECONDS:.0f} s after two that are not counted.")


def measure(mesh: str, batch: int) -> dict:
    """Seconds per train step on this process's devices."""
    import dataclasses

    import jax
    import jax.numpy as jnp
    import numpy as np

    from vdm_jax.benchmark.machine import describe
    from vdm_jax.commands.compile_command import parse_mesh, with_known_vocabulary
    from vdm_jax.commands.configs import load_config
    from vdm_jax.parallel.mesh import make_mesh
    from vdm_jax.planning.inputs import training_batch
    from vdm_jax.training.state import create_state
    from vdm_jax.training.step import compile_train_step
    from vdm_jax.versions import versions

    experiment = with_known_vocabulary(load_config("attention_digits"))
    stage = experiment.stages[0]
    stage = dataclasses.replace(stage, training=dataclasses.replace(stage.training, batch_size=batch))
    devices = make_mesh(parse_mesh(mesh))
    state, step = create_state(stage, 0, devices), compile_train_step(stage, devices)
    shapes, _ = training_batch(stage, experiment.data, batch, 0, devices)
    random = np.random.default_rng(0)
    inputs = {name: jax.device_put(jnp.asarray(random.integers(0, 5, shape.shape), shape.dtype), shape.sharding)
              for name, shape in shapes.items()}
    taken: list[float] = []
    while len(taken) < 5 or sum(taken[2:]) < SECONDS:
        begin = time.perf_counter()
        state, metrics = step(state, inputs)
        jax.block_until_ready((state, metrics))
        taken.append(time.perf_counter() - begin)
    counted = taken[2:]
    return {"seconds": {"median": statistics.median(counted), "lowest": min(counted), "highest": max(counted),
                        "steps": len(counted)},
            "device": "{kind}, {cores} cores".format(**describe(jax.devices()[0], 1)), "versions": versions()}


def main() -> int:
    """All meshes, each in a process of its own, since the number of virtual devices is fixed at its start."""
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
        return 0
    rows, about = [], {}
    for devices in DEVICES:
        for mesh in MESHES[devices]:
            for study, batch in (("strong", STRONG_BATCH), ("weak", WEAK_CLIPS * devices)):
                print(f"{devices} devices, {mesh}, batch {batch}", file=sys.stderr)
                environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
                done = subprocess.run([sys.executable, "-m", "experiments.scaling.cpu", mesh, str(batch)], check=True,
                                      env=environment, stdout=subprocess.PIPE, text=True, cwd=HERE.parent.parent)
                found = json.loads(done.stdout.splitlines()[-1])
                about = {"device": found["device"], "versions": found["versions"]}
                rows.append({"study": study, "devices": devices, "mesh": mesh, "batch": batch,
                             "seconds": found["seconds"]})
    from experiments.scaling.report import write_report
    from vdm_jax.video.writing import atomic_path

    record = {**about, "protocol": PROTOCOL, "date": datetime.date.today().isoformat(), "rows": rows}
    with atomic_path(RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    write_report(RECORD.parent / "compiled.json", HERE / "README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
