"""What the pipelines of latent models share: noise, steps, decoding, and where it all lives."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Key

from vdm_jax.diffusion.arrays import noise_from_keys
from vdm_jax.diffusion.sampling import Walk
from vdm_jax.errors import NotFinite, UserError
from vdm_jax.generation.generator import Progress
from vdm_jax.generation.one_stage import sample_keys
from vdm_jax.networks.autoencoders.tiling import in_chunks
from vdm_jax.parallel.compiling import compiler_options
from vdm_jax.parallel.rules import batch_parts, batch_sharding
from vdm_jax.pipelines import arguments
from vdm_jax.pipelines.denoising import Guided, jit_step
from vdm_jax.pipelines.parts import Folder, save_folder
from vdm_jax.pipelines.progress import shown
from vdm_jax.pipelines.schedulers import Scheduler, Trajectory
from vdm_jax.weights.pretrained import Pretrained


class LatentPipeline:
    """Networks of a released latent model on a mesh, and its scheduler.

    Programs are compiled on first use, once per size; `scheduler` may be replaced by another one.
    """

    threshold_per: Literal["clip", "frame"] = "clip"  # what dynamic thresholding measures, where the scheduler has it

    def __init__(self, folder: Folder, models: dict[str, Pretrained], scheduler: Scheduler):
        self.folder, self.models, self.scheduler, self.mesh = folder, models, scheduler, folder.mesh
        self._programs: dict[Any, Callable] = {}

    def save_pretrained(self, path: str | os.PathLike) -> None:
        """Writes the pipeline as a folder that diffusers loads: the same tensors where no dtype was asked for.

        Raises `UserError` for a folder that has a pipeline already.
        """
        save_folder(path, self.folder, self.saved(), self.scheduler)

    def __repr__(self) -> str:
        """Folder, parts with their parameters and dtype, scheduler, and the devices where they are not one."""
        lines = [f"{type(self).__name__} of {self.folder.path}"]
        for name, model in self.models.items():
            leaves = jax.tree.leaves(model.params)
            count = sum(leaf.size for leaf in leaves)
            dtypes = " and ".join(sorted({leaf.dtype.name for leaf in leaves}))
            lines.append(f"  {name}: {type(model.config).__name__}, {_counted(count)} parameters, {dtypes}")
        own = self.scheduler.options
        lines.append(f"  scheduler: {self.scheduler.name}, predicts {own['prediction_type']}, "
                     f"{own['num_train_timesteps']} timesteps")
        if self.mesh.size > 1:
            axes = (f"{axis}={size}" for axis, size in self.mesh.shape.items() if size > 1)
            lines.append("  devices: " + ", ".join(axes))
        return "\n".join(lines)

    def saved(self) -> dict[str, Pretrained]:
        """Networks of the folder that `save_pretrained` writes."""
        return self.models

    @property
    def factor(self) -> int:
        """Pixels of a side per latent."""
        return self.models["vae"].config.factor

    def latent_shape(self, count: int, frames: int, height: int, width: int) -> tuple[int, ...]:
        """Shape of the latents of so many videos. Raises `UserError` for sizes that the networks cannot take."""
        for name, size in (("height", height), ("width", width)):
            if size < self.factor or size % self.factor:
                raise UserError(f"{name}={size}; permitted: multiples of {self.factor} for this model")
        arguments.whole("num_frames", frames, 1, arguments.FRAMES)
        return count, frames, height // self.factor, width // self.factor, self.models["vae"].config.latent_channels

    def keys(self, seed: int, count: int, stream: int = 0) -> Key[Array, " B"]:
        """A key per video, which does not depend on the others."""
        return sample_keys(seed, jnp.arange(count), stream)

    def check_noise(self, shape: tuple[int, ...], steps: int, latents: Any) -> None:
        """Raises `UserError` for steps that the scheduler cannot take and noise of another shape, before any work."""
        self.trajectory(steps)
        arguments.noise("latents", latents, shape)

    def trajectory(self, steps: int) -> Trajectory:
        """The scheduler's levels of so many steps. Raises `UserError` for steps that it cannot take."""
        return dataclasses.replace(self.scheduler, threshold_per=self.threshold_per).trajectory(steps)

    def denoise(
        self, given: Guided, shape: tuple[int, ...], steps: int, seed: int,
        latents: Float[np.ndarray, "B T H W C"] | None = None, progress: Progress | bool | None = None,
    ) -> Float[Array, "B T H W C"]:
        """Latents as diffusion sees them, from noise that is drawn or given, step by step. Raises `NotFinite` naming
        the first step whose latents are not."""
        trajectory = self.trajectory(steps)
        keys = self.keys(seed, shape[0])
        latents = arguments.noise("latents", latents, shape)
        noise = noise_from_keys(keys, 0, shape) if latents is None else jnp.asarray(latents, jnp.float32)
        method, unet = trajectory.method, self.models["unet"]
        step = self._program(("step", method), lambda: jit_step(unet.module, method, **self._options()))
        walk = Walk(method.sampler, method.process, shape, steps)
        carry = walk.begin(keys, trajectory.steps.level[0], trajectory.start * noise)
        keys, given = self.place((keys, given), shape[0])
        finite = []  # on the device, so that steps follow each other without a wait
        with shown(progress) as show, jax.set_mesh(self.mesh):
            for i in range(steps):
                one = jax.tree.map(lambda x, i=i: x[i], trajectory.steps)
                carry = self.place(carry, shape[0])  # a result that lives elsewhere would be compiled for anew
                carry = step(unet.params, keys, given, trajectory.told, carry, one)
                finite.append(jnp.isfinite(carry[0]).all())
                if show is not None:
                    jax.block_until_ready(carry[0])
                    show("denoising", i + 1, steps)
        if not all(finite := jax.device_get(finite)):
            first = [bool(x) for x in finite].index(False) + 1
            raise self._not_finite(unet, f"latents are NaN or infinite from step {first} of {steps} on")
        return carry[0]

    def _not_finite(self, model: Pretrained, what: str) -> NotFinite:
        """What to say of a result of a network."""
        weights = jax.tree.leaves(model.params)
        broken = sum(not bool(jnp.isfinite(w).all()) for w in weights)
        reason = (f"{broken} of {len(weights)} of its weights hold NaN or infinity" if broken else
                  "its weights are finite; permitted: a lower guidance, another scheduler, or dtype='float32'")
        return NotFinite(f"{self.folder.path}, {type(model.config).__name__}: {what}; {reason}")

    def decode(
        self, latents: Float[Array, "B T H W C"], frames_at_once: int | None = None
    ) -> Float[Array, "B T H2 W2 3"]:
        """Videos in [-1, 1], not clipped, of latents as diffusion sees them; so many frames at a time, or all.

        A decoder with layers over frames gives slightly other frames at the borders of pieces. Raises `UserError` as
        `check_chunk` does, and `NotFinite`.
        """
        check_chunk(frames_at_once)
        size = min(frames_at_once or latents.shape[1], latents.shape[1])

        def decode(params: Any, latents: Array) -> Array:
            vae = self.models["vae"]

            def function(part: Array) -> Array:
                return vae.module.apply({"params": params}, part, method="decode")

            return in_chunks(function, vae.config.denormalise(latents), size)

        vae = self.models["vae"]
        video = self.run(("decode", size), decode, vae.params, self.place(latents, len(latents)))
        if not bool(jnp.isfinite(video).all()):
            raise self._not_finite(vae, "decoded pixels are NaN or infinite")
        return video

    def run(self, name: Any, function: Callable, *arguments: Any) -> Any:
        """A function jitted under a name, with the mesh in context."""
        with jax.set_mesh(self.mesh):
            return self._program(name, lambda: jax.jit(function, **self._options()))(*arguments)

    def place(self, tree: Any, count: int) -> Any:
        """Arrays of `count` videos on the mesh: split by video where that divides, else everywhere. What has another
        leading dimension is everywhere."""
        split = count % batch_parts(self.mesh) == 0

        def put(x: Any) -> Any:
            rows = split and np.ndim(x) > 0 and x.shape[0] == count
            return jax.device_put(x, batch_sharding(self.mesh) if rows else NamedSharding(self.mesh, P()))

        return jax.tree.map(put, tree)

    def _program(self, name: Any, make: Callable[[], Callable]) -> Callable:
        if name not in self._programs:
            self._programs[name] = make()
        return self._programs[name]

    def _options(self) -> dict[str, Any]:
        return {"compiler_options": compiler_options(self.mesh)}


def _counted(count: int) -> str:
    """A number of parameters in words."""
    for size, unit in ((1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:,}"


def check_chunk(frames: int | None) -> None:
    """Raises `UserError` for fewer than one frame at a time: before anything is computed, not when it is decoded."""
    if frames is not None:
        arguments.whole("decode_chunk_size", frames, 1, arguments.FRAMES)
