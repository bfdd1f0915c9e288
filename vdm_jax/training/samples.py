"""What a stage makes while it is trained: videos of fixed validation clips' captions with fixed noise."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import UInt8

from vdm_jax.conditions.conditioning import Conditioning, claimed
from vdm_jax.data.opening import open_validation
from vdm_jax.generation.one_stage import sample_keys, sample_stage
from vdm_jax.parallel.compiling import compiler_options
from vdm_jax.parallel.rules import batch_parts
from vdm_jax.stages.inputs import given_conditioning, target_video
from vdm_jax.stages.latent import weight_shardings
from vdm_jax.stages.stage import Experiment, Stage
from vdm_jax.video.arrays import check_finite, to_uint8


class StageSamples:
    """Samples of the first validation clips (see `Experiment.validation_split`), again from the start where there are
    fewer, so that those of different steps compare. A stage with a source starts from the degraded real clip.

    Every process makes one and makes the same calls; each gets all the videos. `autoencoder` are the weights of a
    latent stage's.
    """

    def __init__(self, experiment: Experiment, stage: Stage, count: int, mesh: Mesh, data_dir: Path | None,
                 autoencoder: tuple[Any, ...] = ()):
        self.stage, self.count = stage.trained(), count
        self._autoencoder = jax.device_put(autoencoder, weight_shardings(stage.latent, mesh))
        self._experiment, self._mesh = experiment, mesh
        # Now, so that data without a validation split, or without labels, fails before training.
        self._clips = self._read(data_dir)
        self.captions: tuple[str, ...] = tuple(clip["caption"] for clip in self._clips)
        self._inputs = self._prepared()

    def _read(self, data_dir: Path | None) -> list[dict[str, Any]]:
        source = open_validation(self._experiment.data, self._experiment.validation_split, data_dir)
        return [source[i % len(source)] for i in range(self.count)]

    @functools.cached_property
    def real(self) -> UInt8[np.ndarray, "N T H W 3"]:
        """The clips at the frames and pixels of the stage."""
        return np.asarray(to_uint8(self._target()))

    @functools.cached_property
    def given(self) -> UInt8[np.ndarray, "N T2 H2 W2 3"] | None:
        """The degraded real clips that a stage with a source starts from; None for other stages."""
        low = self._inputs[1]
        return None if low is None else np.asarray(to_uint8(low))

    @property
    def seed(self) -> int:
        """Seed of the noise that videos are made from."""
        return self._experiment.seed

    @property
    def source_frames(self) -> int:
        """Frames of a clip of the data set."""
        return len(self._clips[0]["video"])

    def videos(self, params: Any, progress: Callable[[int], None] = lambda done: None,
               ) -> UInt8[np.ndarray, "N T H W 3"]:
        """What the stage makes of them with these parameters, on the mesh."""
        done: list[np.ndarray] = []
        for start in range(0, self.count, self._size):
            rows = np.minimum(np.arange(start, start + self._size), self.count - 1)  # the last batch is filled up
            keys = sample_keys(self._experiment.seed, jnp.asarray(rows), 0)
            inputs = jax.tree.map(lambda x, rows=rows: x[rows], self._inputs)
            with jax.set_mesh(self._mesh):
                made = self._sample(params, keys, *inputs, *self._autoencoder)
            made = np.asarray(jax.device_get(made))
            check_finite(made, f"samples of stage {self.stage.name!r}")
            done.append(to_uint8(made))
            progress(min(start + self._size, self.count))
        return np.concatenate(done)[: self.count]

    @property
    def _size(self) -> int:
        """Videos at a time: a multiple of the devices."""
        parts = batch_parts(self._mesh)
        return -(-min(self.count, self.stage.sampling.batch_size) // parts) * parts

    @functools.cached_property
    def _sample(self) -> Callable[..., jax.Array]:
        stage = self.stage
        return jax.jit(
            lambda params, keys, text, low, *autoencoder: sample_stage(stage, stage.sampling, params, keys, text, low,
                                                                       *autoencoder),
            out_shardings=NamedSharding(self._mesh, P()), compiler_options=compiler_options(self._mesh))

    def _prepared(self) -> tuple[Conditioning, np.ndarray | None]:
        stage, text = self.stage, self.stage.network.text
        names = [name for name in self._clips[0] if claimed(name, "fields")]
        batch = {name: jnp.asarray(np.stack([clip[name] for clip in self._clips])) for name in ("video", *names)}
        if text is not None and text.tokenize is not None:
            batch["tokens"] = jnp.asarray(np.stack([text.tokenize(caption) for caption in self.captions]))
        if stage.training.frame_rates is not None:
            batch["frame_rate"] = jnp.full((self.count,), stage.video.fps, jnp.float32)
        conditioning = given_conditioning(stage, batch)
        low = None if stage.source is None else stage.source.degrade(self._target())
        # As numpy: every process passes the same values to a program over the devices of all.
        return jax.tree.map(np.asarray, (conditioning, low))

    def _target(self) -> jax.Array:
        stacked = jnp.stack([jnp.asarray(clip["video"]) for clip in self._clips])
        return target_video(stacked, self.stage.video, self.stage.training.key_frames)
