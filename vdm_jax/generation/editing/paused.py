"""Editing with pauses: after some steps of a sampler the host changes the video that the step's estimate decodes to.

Compiled functions go from pause to pause, so that what runs on the host (optical flow) is no part of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Key

from vdm_jax.diffusion.arrays import Video
from vdm_jax.diffusion.sampling import Walk
from vdm_jax.generation.editing.one_stage import Edits, EditSampling, edit_parts, encoded_video, sampler_steps
from vdm_jax.generation.editing.parts import EditParts
from vdm_jax.generation.one_stage import finished, sampling_sharding, stage_levels
from vdm_jax.parallel.compiling import compiler_options
from vdm_jax.stages.latent import weight_shardings
from vdm_jax.stages.stage import Stage


def edit_with_pauses(stage: Stage, how: EditSampling, again: bool, mesh: Mesh, shardings: Any) -> Callable[..., Edits]:
    """`jit_edit` for a method with pauses: `(params, keys, captions, low, video, *autoencoder) -> Edits`."""
    edited = _Pieces(stage, how, mesh, shardings)
    own = _Pieces(stage, how, mesh, shardings, source=True) if again else None

    def function(*arguments: Any) -> Edits:
        return Edits(edited(*arguments), None if own is None else own(*arguments))

    return function


class _Pieces:
    """An edit as functions jitted for a mesh, with pauses between them; `source`: with the given video's caption and
    guidance in place of the new ones."""

    def __init__(self, stage: Stage, how: EditSampling, mesh: Mesh, shardings: Any, source: bool = False):
        self.stage, self.how, self.source = stage, how, source
        self.levels = np.asarray(stage_levels(stage, how.target))
        batch, one = sampling_sharding(stage, how.target, mesh), NamedSharding(mesh, P())
        given, weights = (shardings, *(batch,) * 4), weight_shardings(stage.latent, mesh)

        def jit(function: Callable[..., Any], *placed: Any) -> Callable[..., Any]:
            return jax.jit(function, in_shardings=(*placed, *weights), out_shardings=batch,
                           compiler_options=compiler_options(mesh))

        self.begin = jit(self._begin, *given)
        self.advance = jit(self._advance, *given, batch, one, one)
        self.show = jit(self._show, batch, batch)
        self.change = jit(self._change, batch, batch, batch, one)

    def __call__(self, params: Any, keys: Any, captions: Any, low: Any, video: Any, *autoencoder: Any) -> Array:
        """The edited videos in [-1, 1]."""
        given, method, count = (params, keys, captions, low, video), self.how.method, len(self.levels)
        before, pauses = low if low is None else low[not self.source], method.pauses(count)
        z, first = self.begin(*given, *autoencoder), count - method.steps_made(count)
        for start, end in itertools.pairwise(sorted({first, count, *(number + 1 for number in pauses)})):
            z, x_hat = self.advance(*given, z, np.int32(start), np.int32(end), *autoencoder)
            if end - 1 in pauses:
                shown = np.asarray(self.show(x_hat, before, *autoencoder))
                z = self.change(z, x_hat, method.at_pause(end - 1, shown), np.int32(end - 1), *autoencoder)
        return self.show(z, before, *autoencoder)

    def _parts(self, params: Any, keys: Any, captions: Any, low: Any, autoencoder: tuple[Any, ...]) -> EditParts:
        parts = edit_parts(self.stage, self.how, params, keys, captions, low, *(autoencoder or (None,)), self.levels)
        return parts._replace(steps=jax.tree.map(jnp.asarray, parts.steps))

    def _begin(
        self, params: Any, keys: Key[Array, " B"], captions: Any, low: Any, video: Float[Array, "B T H W 3"],
        *autoencoder: Any,
    ) -> Video:
        """z at the first of the steps that are made."""
        parts = self._parts(params, keys, captions, low, autoencoder)
        return self.how.method.begin(encoded_video(self.stage, video, *(autoencoder or (None,))), parts)

    def _advance(
        self, params: Any, keys: Key[Array, " B"], captions: Any, low: Any, video: Float[Array, "B T H W 3"], z: Video,
        first: Int[Array, ""], end: Int[Array, ""], *autoencoder: Any,
    ) -> tuple[Video, Video]:
        """z after the steps from `first` to before `end`, and the estimate of the last of them."""
        parts = self._parts(params, keys, captions, low, autoencoder)
        walk = Walk(parts.sampler, parts.process, z.shape, len(self.levels), shared_noise=parts.shared_noise)
        denoise = parts.source if self.source else parts.target

        def body(number: Int[Array, ""], carry: tuple[Video, Video]) -> tuple[Video, Video]:
            step = jax.tree.map(lambda x: x[number], parts.steps)
            (z, _), x_hat = walk.advance(denoise, keys, (carry[0], None), step)
            return z, x_hat

        return jax.lax.fori_loop(first, end, body, (z, jnp.zeros_like(z)))

    def _show(self, x: Video, low: Float[Array, "B T2 H2 W2 3"] | None, *autoencoder: Any) -> Float[Array, "B T H W 3"]:
        return finished(self.stage, x, low, None, *autoencoder)

    def _change(
        self, z: Video, x_hat: Video, changed: Float[Array, "B T H W 3"], number: Int[Array, ""], *autoencoder: Any
    ) -> Video:
        """z after a step of deterministic DDIM, `alpha x_hat + sigma eps_hat`, with x_hat of the changed video in the
        place of its own; eps_hat stays."""
        steps = jax.tree.map(jnp.asarray, sampler_steps(self.stage, self.how.target, self.levels))
        alpha, _ = self.stage.process.schedule.family.alpha_sigma(steps.next[number])
        alpha = jnp.where(steps.last[number], 1.0, alpha)
        return z + alpha * (encoded_video(self.stage, changed, *(autoencoder or (None,))) - x_hat)
