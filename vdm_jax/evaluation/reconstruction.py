"""What an autoencoder's training comes to: how well it reconstructs held-back clips, and a file that latent stages
take, with the scale and shift of its latents measured on the data.

Every data set has a scale and shift of its own (LVDM: He et al. 2022, arXiv 2211.13221): latents minus their mean, by
their standard deviation.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vdm_jax.data.opening import WITHOUT_VALIDATION, open_source, open_validation
from vdm_jax.data.source import RandomAccessSource
from vdm_jax.errors import NotFinite, UserError
from vdm_jax.metrics.frames import lpips, psnr, ssim
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.rules import batch_parts
from vdm_jax.runs.autoencoders import FILE
from vdm_jax.runs.directory import load_stage
from vdm_jax.runs.manifest import Damaged
from vdm_jax.runs.records import json_number
from vdm_jax.stages.autoencoding import AutoencoderExperiment, AutoencoderStage
from vdm_jax.training.autoencoder_step import compile_reconstruction
from vdm_jax.video.arrays import to_uint8
from vdm_jax.video.writing import atomic_path
from vdm_jax.weights.pretrained import Pretrained, save_imported

RECORD = "reconstruction.json"


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """What was measured of a trained autoencoder."""

    scores: dict[str, float]  # psnr (dB) and, where they can be measured, ssim and lpips; means over clips
    clips: int  # that were reconstructed
    scale: float  # of the latents: one over their standard deviation
    shift: float  # their mean
    latent_clips: int  # on which these two were measured
    left_out: str = ""  # why LPIPS is not among the scores

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        data = dataclasses.asdict(self)
        return {**data, "scores": {name: json_number(value) for name, value in self.scores.items()}}

    def table(self) -> str:
        """As a Markdown table."""
        rows = [*self.scores.items(), ("latent scale", self.scale), ("latent shift", self.shift)]
        lines = ["| | |", "|---|---:|", *(f"| {name} | {value:.4f} |" for name, value in rows),
                 f"| clips reconstructed | {self.clips} |", f"| clips for scale and shift | {self.latent_clips} |"]
        return "\n".join(lines) + "\n" + (f"\n{self.left_out}\n" if self.left_out else "")


def finish_autoencoder(
    run: Path, experiment: AutoencoderExperiment, stage: AutoencoderStage, data_dir: Path | None = None, *,
    out: Path | None = None, dtype: str | None = None, devices: Sequence[jax.Device] | None = None,
    damaged: Damaged = "refuse",
) -> Reconstruction:
    """Measure the averaged weights of a trained stage, and write them with their config, scale and shift as a file that
    `load_imported` reads, and what was measured next to it (process 0 does).

    `out` is the folder of both, that of the stage in the run by default. Raises `UserError` for a stage that is not
    trained, a damaged checkpoint, data that is missing.
    """
    params = load_stage(run, stage, damaged)
    if params is None:
        raise UserError(f"stage {stage.name!r} of {run} is not trained; permitted: train it first")
    params = jax.device_get(params)
    found = measure(experiment, stage, params, data_dir, devices)
    config = stage.network.measured(found.scale, found.shift)
    if jax.process_index() == 0:
        folder = out or run / stage.name
        record = json.dumps(found.to_dict(), indent=1)
        save_imported(folder / FILE, Pretrained(config, params), {
            "experiment": experiment.name, "stage": stage.name, "reconstruction": record}, dtype=dtype)
        with atomic_path(folder / RECORD) as temporary:
            temporary.write_text(record + "\n")
    return found


def measure(
    experiment: AutoencoderExperiment, stage: AutoencoderStage, params: Any, data_dir: Path | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Reconstruction:
    """Reconstruct validation clips and compare, and measure the latents of training clips, spread over the set.

    Latents are those of training, drawn with noise: their variance is that of the means and the mean variance.
    """
    mesh = make_mesh(experiment.mesh, devices)
    # The distance of LPIPS is measured below, with the network that is usual for it.
    plain = dataclasses.replace(stage.training.loss, perceptual_weight=0.0)
    stage = dataclasses.replace(stage, training=dataclasses.replace(stage.training, loss=plain))
    reconstruct = compile_reconstruction(stage, mesh, None)
    source = open_validation(experiment.data, experiment.validation_split, data_dir)
    videos: list[tuple[np.ndarray, np.ndarray]] = []
    for batch in _batches(source, stage, mesh):
        found = reconstruct(params, batch)
        videos.append(tuple(np.asarray(to_uint8(found[name])) for name in ("video", "original")))
    moments = [jax.device_get((found["mean"], found["square"])) for found in (
        reconstruct(params, batch) for batch in _batches(open_source(experiment.data, "train", data_dir), stage, mesh))]
    mean, deviation = latent_moments(stage.name, moments)
    made, real = (np.concatenate(part) for part in zip(*videos, strict=True))
    scores, left_out = _scores(made, real)
    size = len(videos[0][0])
    return Reconstruction(scores, len(made), float(1 / deviation), float(mean), len(moments) * size, left_out)


def latent_moments(stage: str, moments: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean and standard deviation from means and mean squares of batches. Raises `NotFinite` where latents are not
    finite or do not vary, which leaves no scale for them."""
    mean, square = np.mean(np.asarray(moments, np.float64), axis=0)
    variance = square - mean**2
    if not math.isfinite(variance) or variance <= 1e-12 * square:  # a difference of sums in single precision
        raise NotFinite(f"stage {stage!r}: latents of mean {mean:g} and mean square {square:g} have no finite scale: "
                        "they are not finite, or the same for all clips")
    return float(mean), math.sqrt(variance)


def _scores(made: np.ndarray, real: np.ndarray) -> tuple[dict[str, float], str]:
    """Means by metric, and why some are not measured: too small pictures, or something that is not installed."""
    scores, left_out = {}, []
    for name, measure in (("psnr", psnr), ("ssim", ssim), ("lpips_alexnet", lpips)):
        try:
            scores[name] = float(measure(made, real).mean())
        except UserError as error:
            left_out.append(f"{name} is not measured: {error}")
    return scores, "; ".join(left_out)


def _batches(source: RandomAccessSource, stage: AutoencoderStage, mesh: Mesh) -> Iterator[np.ndarray]:
    """Clips spread evenly over a split, uint8 `[B, T, H, W, 3]`, in batches of one size, the same in every process."""
    parts = batch_parts(mesh)
    size = min(stage.training.batch_size, len(source)) // parts * parts
    if not size:
        raise UserError(f"a split of {len(source)} clips for {parts} devices; permitted: at least {parts}"
                        f"{WITHOUT_VALIDATION}")
    count = max(min(stage.training.measured_clips, len(source)) // size, 1) * size
    places = np.arange(count) * len(source) // count
    for first in range(0, count, size):
        yield np.stack([source[int(i)]["video"] for i in places[first : first + size]])
