"""The generator: captions and a seed in, videos out, through every stage of a cascade."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from vdm_jax.cascade.inputs import text_conditioning
from vdm_jax.cascade.sampling import sample_keys, sample_stage, sampling_parts, sampling_sharding, with_overrides
from vdm_jax.cascade.stage import Experiment, Sampling, Stage
from vdm_jax.conditioning.conditioning import Conditioning
from vdm_jax.conditioning.vocabulary import Vocabulary
from vdm_jax.diffusion.sampling import sampling_levels
from vdm_jax.errors import UserError
from vdm_jax.networks.config import EmbeddedText, WordEncoder
from vdm_jax.parallel.compiling import compiler_options
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.rules import parameter_shardings
from vdm_jax.video.arrays import to_uint8

Progress = Callable[[str, int, int], None]  # stage name, videos done, videos in all


@dataclasses.dataclass(frozen=True)
class Generated:
    """Generated videos and what they were made from."""

    captions: tuple[str, ...]
    stages: dict[str, UInt8[np.ndarray, "b t h w 3"]]  # by stage name, in order
    fps: dict[str, float]  # frames per second, by stage name

    @property
    def videos(self) -> UInt8[np.ndarray, "b t h w 3"]:
        """The videos of the last stage."""
        return list(self.stages.values())[-1]

    def save(self, path: str | os.PathLike) -> Path:
        """Write the videos to one .mp4 or .gif (side by side), or to a .png sheet of frames with captions."""
        from vdm_jax.video.sheets import sheet, tile_videos
        from vdm_jax.video.writing import write_png, write_video

        fps = list(self.fps.values())[-1]
        if Path(path).suffix == ".png":
            return write_png(path, sheet(self.videos, self.captions))
        return write_video(path, tile_videos(self.videos), fps)


def jit_sampling(stage: Stage, sampling: Sampling, mesh: Mesh, shardings: Any) -> jax.stages.Wrapped:
    """Sampling `(params, keys, text, low) -> videos` of a stage jitted for a mesh, to be called or lowered with the
    mesh in context; `shardings` are those of the parameters."""
    levels = np.asarray(sampling_levels(sampling.sampler, stage.process.schedule, sampling.steps))

    def function(params: Any, keys: Any, text: Conditioning, low: Any) -> Any:
        return sample_stage(stage, sampling, params, keys, text, low, levels=levels)

    batch = sampling_sharding(stage, sampling, mesh)
    return jax.jit(function, in_shardings=(shardings, batch, batch, batch), out_shardings=batch,
                   compiler_options=compiler_options(mesh))


class Generator:
    """A trained cascade, ready to be called with captions.

    Args:
      experiment: the resolved config (vocabularies filled in).
      params: parameters per stage name.
      devices: to spread the batch over; all devices by default.
    """

    def __init__(self, experiment: Experiment, params: Mapping[str, Any], devices: Sequence[jax.Device] | None = None):
        self.experiment = experiment
        self.mesh = make_mesh(experiment.mesh, devices)
        self.params = {name: jax.device_put(tree, parameter_shardings(tree, self.mesh))
                       for name, tree in params.items()}
        self._compiled: dict[tuple[str, Sampling], Callable] = {}

    def __call__(
        self, captions: Sequence[str] | str, *, seed: int = 0, first_index: int = 0, steps: int | None = None,
        guidance: float | None = None, split_guidance: bool | None = None, last: str | None = None,
        progress: Progress | None = None, embeddings: Float[np.ndarray, "b l c"] | None = None,
    ) -> Generated:
        """Generate one video per caption.

        Args:
          captions: what the videos should show; repeat a caption for several videos of it.
          seed: same seed, same index, same video, whatever else is generated with it.
          first_index: index of the first video, to go on with a series.
          steps: sampler steps, for all stages; each stage's own by default.
          guidance: weight w in (1 + w) form for the first stage; its own by default.
          split_guidance: the two estimates of a guided video on two halves of the devices; each stage's own by default.
          last: name of the stage to stop after.
          progress: called with (stage, videos done, videos in all).
          embeddings: `[B, L, C]`, for stages that read text embeddings instead of words.

        Raises:
          UserError: no captions, an unknown stage, a stage that is not trained, missing embeddings.
        """
        captions = (captions,) if isinstance(captions, str) else tuple(captions)
        if not captions:
            raise UserError("captions=[] is not valid; permitted: at least one caption")
        stages = self.experiment.stages
        if last is not None:
            stages = stages[: stages.index(self.experiment.stage(last)) + 1]
        absent = [stage.name for stage in stages if stage.name not in self.params]
        if absent:
            raise UserError(f"stage {absent[0]!r} has no trained weights; permitted: train it, or stop after one of "
                            f"{', '.join(self.params) or 'none'}")
        if stages[0].source is not None:
            raise UserError(f"stage {stages[0].name!r} starts from {stages[0].source.frames} frames that no stage "
                            "makes; permitted: a cascade whose first stage has source=None")
        indices = first_index + np.arange(len(captions))
        outputs: dict[str, np.ndarray] = {}
        low = None
        for place, stage in enumerate(stages):
            sampling = with_overrides(stage.sampling, steps=steps, guidance=guidance if place == 0 else None,
                                      split_guidance=split_guidance)
            dataclasses.replace(stage, sampling=sampling)  # raises where the stage cannot do it
            text = self._text(stage, captions, embeddings)
            low = self._run(stage, place, sampling, seed, indices, text, low, progress)
            outputs[stage.name] = np.asarray(to_uint8(low))
        return Generated(captions, outputs, {stage.name: stage.video.fps for stage in stages})

    def vocabulary(self, stage: Stage) -> Vocabulary:
        """The words a stage's encoder knows."""
        return Vocabulary(stage.network.text.words, stage.network.text.length)

    def _text(self, stage: Stage, captions: Sequence[str], embeddings: np.ndarray | None) -> Conditioning:
        text = stage.network.text
        if isinstance(text, WordEncoder):
            return text_conditioning(jnp.asarray(self.vocabulary(stage).encode_prompts(captions))[:, None])
        if isinstance(text, EmbeddedText):
            shape = np.shape(embeddings)
            if len(shape) != 3 or (shape[0], shape[2]) != (len(captions), text.width):
                raise UserError(f"embeddings of shape {list(shape)} given for stage {stage.name!r}; permitted: "
                                f"[{len(captions)}, L, {text.width}]")
            mask = jnp.ones((len(captions), 1, embeddings.shape[1]), bool)
            return Conditioning(embeddings=jnp.asarray(embeddings)[:, None], text_mask=mask)
        return Conditioning()

    def _run(self, stage: Stage, place: int, sampling: Sampling, seed: int, indices: np.ndarray, text: Conditioning,
             low: np.ndarray | None, progress: Progress | None) -> np.ndarray:
        """All videos of one stage, in batches of one size; the last batch is filled up with repeats."""
        total, parts = len(indices), sampling_parts(stage, sampling, self.mesh)
        size = min(sampling.batch_size, total)
        size = -(-size // parts) * parts  # up to a multiple of the devices
        function = self._compile(stage, sampling)
        done = []
        for start in range(0, total, size):
            rows = np.minimum(np.arange(start, start + size), total - 1)
            keys = sample_keys(seed, jnp.asarray(indices[rows]), place)
            batch = jax.tree.map(lambda x, rows=rows: x[rows], (text, low))
            done.append(np.asarray(function(self.params[stage.name], keys, *batch)))
            if progress is not None:
                progress(stage.name, min(start + size, total), total)
        return np.concatenate(done)[:total]

    def _compile(self, stage: Stage, sampling: Sampling) -> Callable:
        key = (stage.name, sampling)
        if key not in self._compiled:
            shardings = jax.tree.map(lambda x: x.sharding, self.params[stage.name])
            self._compiled[key] = jit_sampling(stage, sampling, self.mesh, shardings)

        def call(*arguments: Any) -> Any:
            with jax.set_mesh(self.mesh):
                return self._compiled[key](*arguments)

        return call
