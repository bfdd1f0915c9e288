"""Repeated blocks unrolled or under a scan, with and without rematerialisation: compile time, program, memory, speed.

The stack is what a level of an Efficient U-Net has most of: equal residual blocks with a temporal convolution. It is
compiled for one device of this CPU, where its gradient is also run, and for a TPU slice that is not there.

Run:   python -m experiments.scaling.scan           writes results/scan.json and README.md; minutes, machine idle
Needs: pip install 'vdm_jax[tpu]' (no TPU)
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.scaling.report import PAGE, write_report
from vdm_jax.benchmark.machine import describe
from vdm_jax.benchmark.record import save
from vdm_jax.networks.config import Level, TemporalConvolution, UNet
from vdm_jax.networks.mixers import MixerInputs
from vdm_jax.networks.remat import rematerialised
from vdm_jax.networks.unet import Block
from vdm_jax.parallel.compiling import compiler_options, no_compilation_cache, optimization_level
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.planning import topology
from vdm_jax.planning.program import EFFORTS, memory
from vdm_jax.versions import versions

HERE = Path(__file__).parent
RECORD = HERE / "results" / "scan.json"
SLICE = "v5e-4"
BLOCKS, CALLS = 8, 5
# Channels and the video `[B, T, H, W]` of the stack, per platform: what a 2-core CPU differentiates in a second or two.
SIZES = {"cpu": (64, (1, 8, 16, 16)), "tpu": (512, (4, 16, 24, 40))}
VARIANTS = [(scanned, remat) for remat in ("none", "full") for scanned in (False, True)]


class Body(nn.Module):
    """One block, as a scan takes it."""

    config: UNet
    level: Level

    @nn.compact
    def __call__(self, x: jax.Array, vector: jax.Array) -> tuple[jax.Array, None]:
        block = rematerialised(self, Block, self.config.remat, static_argnums=(4, 5))
        return block(self.config, self.level, self.level.mixers, name="block")(
            x, vector, MixerInputs({}, None), True, 0), None


class Stack(nn.Module):
    """Equal blocks, one after the other."""

    config: UNet
    scanned: bool

    @nn.compact
    def __call__(self, x: jax.Array, vector: jax.Array) -> jax.Array:
        level = self.config.levels[0]
        if self.scanned:
            scan = nn.scan(Body, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast,
                           length=level.blocks)
            return scan(self.config, level, name="blocks")(x, vector)[0]
        for i in range(level.blocks):
            x, _ = Body(self.config, level, name=f"block_{i}")(x, vector)
        return x


def compiled(scanned: bool, remat: str, mesh: Mesh) -> tuple[jax.stages.Compiled, float, Any]:
    """The gradient of the stack, the seconds it took to compile, and its inputs as shapes."""
    platform = mesh.devices.flat[0].platform
    channels, video = SIZES[platform]
    level = Level(channels=channels, blocks=BLOCKS, mixers=(TemporalConvolution(),))
    dtype = "bfloat16" if platform == "tpu" else "float32"
    stack = Stack(UNet(levels=(level,), remat=remat, dtype=dtype, embedding_channels=channels), scanned)
    data, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    inputs = [jax.ShapeDtypeStruct((*video, channels), jnp.dtype(dtype), sharding=data),
              jax.ShapeDtypeStruct((video[0], 1, channels), jnp.float32, sharding=data)]
    shapes = jax.eval_shape(stack.init, jax.random.key(0), *inputs)["params"]
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=whole), shapes)

    def loss(params: Any, x: jax.Array, vector: jax.Array) -> jax.Array:
        return jnp.square(stack.apply({"params": params}, x, vector).astype(jnp.float32)).mean()

    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(loss)).lower(params, *inputs)
    start = time.perf_counter()
    with no_compilation_cache(), optimization_level(EFFORTS["fast" if platform == "tpu" else "full"]):
        program = lowered.compile(compiler_options(mesh))
    return program, time.perf_counter() - start, (params, *inputs)


def measure(scanned: bool, remat: str, mesh: Mesh) -> dict[str, Any]:
    """One row: the program, and on a device that is there the seconds of a call."""
    program, seconds, shapes = compiled(scanned, remat, mesh)
    platform = mesh.devices.flat[0].platform
    found = memory(program, platform)
    row = {"platform": platform, "scanned": scanned, "remat": remat, "compile_seconds": round(seconds, 1),
           "instructions": sum(" = " in line for line in program.as_text().splitlines()), "code": found["code"],
           "temporaries": found["temporaries"], "needed": found["needed"]}
    if platform == "cpu":
        inputs = jax.tree.map(lambda s: jax.device_put(jnp.full(s.shape, 0.02, s.dtype), s.sharding), shapes)
        taken = []
        for _ in range(CALLS + 1):
            begin = time.perf_counter()
            jax.block_until_ready(program(*inputs))
            taken.append(time.perf_counter() - begin)
        row["seconds"] = statistics.median(taken[1:])
    return row


def main() -> int:
    """Both platforms, all variants."""
    meshes = [make_mesh(MeshSpec(), jax.devices("cpu")[:1]), make_mesh(MeshSpec(data=4), topology.devices(SLICE))]
    rows = []
    for mesh in meshes:
        for scanned, remat in VARIANTS:
            rows.append(measure(scanned, remat, mesh))
            print(rows[-1], file=sys.stderr)
    record = {"rows": rows, "blocks": BLOCKS, "sizes": SIZES, "slice": SLICE, "versions": versions(),
              "device": "{kind}, {cores} cores".format(**describe(jax.devices("cpu")[0], 1))}
    RECORD.parent.mkdir(exist_ok=True)
    save(RECORD, record)
    write_report(HERE / "results" / "compiled.json", HERE / "README.md", PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
