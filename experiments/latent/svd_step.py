"""One denoising step of the full-size Stable Video Diffusion, compiled ahead of time for TPU slices that are not there.

Run:   python -m experiments.latent.svd_step                 all cases; about ten minutes on two cores
       python -m experiments.latent.svd_step --only 'one'    cases whose name matches
Needs: pip install 'vdm_jax[tpu]' (no TPU)

Writes results/svd_step.json: memory per chip as the compiler reports it, FLOPs, what chips exchange, and seconds of
compilation. Nothing is run; seconds per step on a GPU or a TPU are not measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.benchmark.record import open_record, save
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import Step
from vdm_jax.diffusion.schedules import ScaledLinearBetaSchedule
from vdm_jax.errors import UserError
from vdm_jax.generation.compiled import of_any_steps, step_functions
from vdm_jax.generation.one_stage import sampling_sharding
from vdm_jax.networks.autoencoders.config import AUTOENCODER_SVD
from vdm_jax.networks.config import EmbeddedText
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LATENT_UNET_SVD
from vdm_jax.parallel.collectives import listed
from vdm_jax.parallel.compiling import no_compilation_cache, optimization_level
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.parallel.rules import parameter_shardings
from vdm_jax.planning import topology
from vdm_jax.planning.advice import capacity_of
from vdm_jax.planning.inputs import device_bytes
from vdm_jax.planning.program import memory, refused
from vdm_jax.planning.traffic import traffic
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import FirstFrame, Stage, VideoSpec
from vdm_jax.versions import versions
from vdm_jax.weights import model_kinds

RECORD = Path(__file__).parent / "results" / "svd_step.json"
FRAMES, HEIGHT, WIDTH = 14, 72, 128  # latents of 14 x 576 x 1024 pixels
PROTOCOL = {
    "work": "one Euler step with guidance (both estimates in one call) of 14 x 576 x 1024, compiled ahead of time by "
            "libtpu at little effort; nothing was run",
    "numbers": "parameters and activations bfloat16, noisy latents float32",
    "memory": "bytes per chip; `needed`: arguments, new outputs, temporaries at the compiler's peak, and code",
    "gpu": "seconds per step and peak memory on a GPU: not measured",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One program."""

    name: str
    slice: str  # the smallest that the compiler knows and that has the chips
    chips: int
    mesh: MeshSpec
    videos: int


CASES = (
    Case("one video on one chip", "v5p:2x2x1", 1, MeshSpec(), 1),
    Case("four videos on 8 chips, parameters split over them", "v5p:2x2x2", 8, MeshSpec(data=1, fsdp=8), 4),
)


def stage_of(case: Case) -> Stage:
    """Stable Video Diffusion; where the videos do not divide over the chips, the two estimates of guidance do."""
    network = LatentNetwork(
        unet=dataclasses.replace(LATENT_UNET_SVD, dtype="bfloat16"), timesteps=None, text=EmbeddedText(width=1024),
        scalars=("fps", "motion", "noise"), first_frame=True)
    return Stage(
        name="video", video=VideoSpec(frames=FRAMES, height=8 * HEIGHT, width=8 * WIDTH), source=FirstFrame(),
        latent=Latent(autoencoder=AUTOENCODER_SVD), network=network,
        process=Process(schedule=ScaledLinearBetaSchedule(), prediction="v"),
        sampling=Sampling(guidance=1.0, threshold=None, split_guidance=case.videos % case.chips != 0))


def inputs(stage: Stage, videos: int, mesh: Mesh) -> tuple[Any, ...]:
    """Shapes of what a step takes, on a mesh."""
    params = traverse_util.unflatten_dict(model_kinds.shapes(stage.network.unet), sep="/")
    params = jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=sharding),
                          params, parameter_shardings(params, mesh))
    whole, rows = NamedSharding(mesh, P()), sampling_sharding(stage, stage.sampling, mesh)

    def shape(*sides: int, sharding: Any = rows, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sides, dtype, sharding=sharding)

    conditioning = Conditioning(
        embeddings=shape(videos, 1, 1, stage.network.text.width), text_mask=shape(videos, 1, 1, dtype=jnp.bool_),
        image=shape(videos, 1, HEIGHT, WIDTH, 4), scalars={name: shape(videos) for name in stage.network.scalars})
    number = shape(sharding=whole)
    step = Step(shape(sharding=whole, dtype=jnp.int32), number, number, number,
                shape(sharding=whole, dtype=jnp.bool_), shape(sharding=whole, dtype=jnp.int32))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), videos))
    keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=rows)
    embedded = (shape(25, sharding=whole),) * 2  # of 25 steps; a longer table is a few kilobytes more
    return (params, keys, conditioning, None, (shape(videos, FRAMES, HEIGHT, WIDTH, 4), None), step,
            shape(FRAMES, sharding=whole), shape(1, sharding=whole), embedded)


def compiled(case: Case) -> dict[str, Any]:
    """What the compiler says of a case."""
    devices = topology.devices(case.slice)
    mesh = make_mesh(case.mesh, devices[: case.chips])
    stage = stage_of(case)
    given = inputs(stage, case.videos, mesh)
    row = {"slice": case.slice, "chips": case.chips, "kind": devices[0].device_kind, "mesh": dict(mesh.shape),
           "videos": case.videos, "parameters": sum(leaf.size for leaf in jax.tree.leaves(given[0])),
           "parameter_bytes": device_bytes(given[0]), "capacity": capacity_of(devices[0])}
    began = time.perf_counter()
    with jax.set_mesh(mesh), no_compilation_cache(), optimization_level("O0"):
        shardings = jax.tree.map(lambda leaf: leaf.sharding, given[0])
        lowered = step_functions(*of_any_steps(stage, stage.sampling), mesh, shardings).advance.lower(*given)
        row["trace_seconds"] = round(time.perf_counter() - began, 1)
        began = time.perf_counter()
        try:
            program = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            row |= refused(error)
        else:
            row |= {"status": "compiled", "memory": memory(program, "tpu"),
                    "collectives": traffic(listed(program.as_text()), dict(mesh.shape)),
                    "bytes_accessed": (program.cost_analysis() or {}).get("bytes accessed"),
                    "flops_by_the_compiler": (program.cost_analysis() or {}).get("flops")}
    row["compile_seconds"] = round(time.perf_counter() - began, 1)
    needed = row.get("memory", {}).get("needed")
    row["fits"] = row["status"] == "compiled" and needed is not None and needed <= row["capacity"]
    return row


def main() -> int:
    """Compile and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression; cases whose name it finds")
    parser.add_argument("--fresh", action="store_true", help="compile again what is recorded")
    parser.add_argument("--out", type=Path, default=RECORD)
    args = parser.parse_args()
    about = {"device": {"kind": "none: ahead of time"}, "versions": versions(), "protocol": PROTOCOL}
    try:
        record = open_record(args.out, about, fresh=args.fresh)
        for case in CASES:
            if re.search(args.only, case.name) and case.name not in record["rows"]:
                record["rows"][case.name] = compiled(case)
                save(args.out, record)
                print(f"{case.name}: {record['rows'][case.name]['status']}", flush=True)
    except UserError as error:
        print(f"svd_step: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
