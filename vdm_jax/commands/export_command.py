"""`vdm-jax export`: weights of a run as safetensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from vdm_jax.commands.arguments import parse
from vdm_jax.commands.outputs import check_folder
from vdm_jax.errors import UserError
from vdm_jax.training.manifest import Damaged


@dataclasses.dataclass(frozen=True)
class Export:
    """Write the averaged weights of a run's trained stages, with their config, as a folder that samples like a run.

    Of a run of autoencoders each stage becomes OUT/STAGE/autoencoder.safetensors, which latent stages take; scale and
    shift of its latents are measured anew.

    Examples:
      vdm-jax export captioned_digits weights/my_digits --dtype float16
      vdm-jax export autoencoder_digits weights/my_autoencoder
    """

    run: tyro.conf.Positional[str]  # run directory or name
    out: tyro.conf.Positional[Path]  # folder to make
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"  # type of the stored weights
    damaged: Damaged = "refuse"  # a damaged newest checkpoint: refuse, or skip it and use the newest intact one
    data_dir: Path | None = None  # prepared data sets, for autoencoders; $VDM_JAX_DATA or ~/.cache/vdm_jax/data


def main(arguments: Sequence[str]) -> int:
    """Entry of the command."""
    options = parse(Export, arguments, "vdm-jax export")
    check_folder(options.out, "out")
    if options.out.exists() and any(options.out.iterdir()):
        raise UserError(f"out={options.out} is not empty; permitted: a new or empty folder")
    import vdm_jax
    from vdm_jax.cascade.autoencoding import AutoencoderExperiment
    from vdm_jax.training.runs import export, find_run, read_config

    dtype = None if options.dtype == "float32" else options.dtype
    run = find_run(options.run)
    experiment = read_config(run)
    if isinstance(experiment, AutoencoderExperiment):
        from vdm_jax.evaluation.reconstruction import finish_autoencoder

        for stage in experiment.stages:
            finish_autoencoder(run, experiment, stage, options.data_dir, out=options.out / stage.name, dtype=dtype,
                               damaged=options.damaged)
    else:
        export(vdm_jax.load(run, damaged=options.damaged), options.out, dtype)
    for path in sorted(options.out.rglob("*.safetensors")):
        print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0
