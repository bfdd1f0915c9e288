"""Sample sheets during training: a few captions, the stage's own videos of them, as one picture and one film."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.cascade.inputs import degrade, target_video, text_conditioning
from vdm_jax.cascade.latent import weight_shardings
from vdm_jax.cascade.sampling import sample_keys, sample_stage
from vdm_jax.cascade.stage import Experiment, Stage
from vdm_jax.conditioning.conditioning import Conditioning
from vdm_jax.conditioning.vocabulary import Vocabulary
from vdm_jax.data.opening import open_validation
from vdm_jax.networks.config import EmbeddedText, WordEncoder
from vdm_jax.parallel.compiling import compiler_options
from vdm_jax.parallel.rules import batch_parts
from vdm_jax.video.arrays import to_uint8
from vdm_jax.video.sheets import sheet, tile_videos
from vdm_jax.video.writing import write_png, write_video

COUNT = 4  # videos per sheet


class SampleSheets:
    """Samples of fixed validation captions (see `Experiment.validation_split`) with fixed noise, so that sheets of
    different steps compare.

    A stage with a source starts from the degraded real clip, which is also shown. `autoencoder` are the weights of a
    latent stage's.
    """

    def __init__(self, experiment: Experiment, stage: Stage, folder: Path, mesh: Mesh, data_dir: Path | None,
                 autoencoder: tuple[Any, ...] = ()):
        self._autoencoder = jax.device_put(autoencoder, weight_shardings(stage.latent, mesh))
        self._experiment, self._stage, self._folder, self._mesh = experiment, stage.trained(), folder, mesh
        self._count = -(-COUNT // batch_parts(mesh)) * batch_parts(mesh)
        self._inputs = self._read(data_dir)  # now, so that data without a validation split fails before training

    def _read(self, data_dir: Path | None) -> tuple[tuple[str, ...], Conditioning, Any]:
        experiment, stage = self._experiment, self._stage
        source = open_validation(experiment.data, experiment.validation_split, data_dir)
        clips = [source[i % len(source)] for i in range(self._count)]
        captions = tuple(clip["caption"] for clip in clips)
        text, conditioning = stage.network.text, Conditioning()
        if isinstance(text, WordEncoder):
            tokens = np.stack([Vocabulary(text.words, text.length).encode(c) for c in captions])
            conditioning = text_conditioning(jnp.asarray(tokens)[:, None])
        elif isinstance(text, EmbeddedText):
            embeddings = np.stack([clip["embeddings"] for clip in clips])[:, None]
            mask = np.stack([clip["text_mask"] for clip in clips])[:, None]
            conditioning = Conditioning(embeddings=embeddings.astype(np.float32), text_mask=mask)
        if stage.network.classes:
            conditioning = conditioning.replace(labels=jnp.asarray([clip["label"] for clip in clips]))
        references = {name: jnp.stack([jnp.asarray(clip[f"reference_{name}"]) for clip in clips])
                      for name in (r.name for r in stage.network.references) if f"reference_{name}" in clips[0]}
        conditioning = conditioning.replace(references=references)
        low = None
        if stage.source is not None:
            stacked = jnp.stack([jnp.asarray(clip["video"]) for clip in clips])
            low = degrade(target_video(stacked, stage.video, stage.training.key_frames), stage.source)
        # As numpy: every process passes the same values to a program over the devices of all.
        return captions, *jax.tree.map(np.asarray, (conditioning, low))

    @functools.cached_property
    def _sample(self) -> Any:
        stage = self._stage
        keys = sample_keys(self._experiment.seed, jnp.arange(self._count), 0)
        return jax.jit(lambda params, text, low, *autoencoder: sample_stage(stage, stage.sampling, params, keys, text,
                                                                           low, *autoencoder),
                       out_shardings=NamedSharding(self._mesh, P()), compiler_options=compiler_options(self._mesh))

    def write(self, params: Any, step: int) -> np.ndarray:
        """Write the sheet and film of a step (process 0 does); returns the picture, uint8 `[H, W, 3]`."""
        captions, conditioning, low = self._inputs
        with jax.set_mesh(self._mesh):
            videos = self._sample(params, conditioning, low, *self._autoencoder)
        videos = np.asarray(to_uint8(jax.device_get(videos)))[:COUNT]
        picture = sheet(videos, captions[:COUNT])
        if jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_png(self._folder / f"step_{step:07d}.png", picture)
            write_video(self._folder / f"step_{step:07d}.mp4", tile_videos(videos), self._stage.video.fps)
        return picture
