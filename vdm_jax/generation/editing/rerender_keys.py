"""Key frames of Rerender-A-Video, one after another: compiled functions from step to step, and optical flow between
them on the host.

Of the first and the previous key frame the tokens of every step that self-attention on the way up projects are kept,
and their estimates. A key frame is made twice from the first step at which pixels are fused on: roughly, and then drawn
towards what the other two and the rough one show together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, UInt8

from vdm_jax.diffusion.arrays import Denoiser, Video, noise_from_keys
from vdm_jax.diffusion.steps import Step
from vdm_jax.errors import UserError
from vdm_jax.generation.editing.one_stage import EditSampling, edit_parts, encoded_video
from vdm_jax.generation.editing.parts import EditParts, each_row
from vdm_jax.generation.editing.rerender_fusion import (
    blended,
    coloured,
    faithful,
    latent_places,
    motion_to,
    pixel_fused,
    shape_fused,
    shown,
    soft,
)
from vdm_jax.generation.one_stage import finished, sampling_sharding, stage_levels
from vdm_jax.networks.blocks.attention import Attention
from vdm_jax.parallel.compiling import compiler_options
from vdm_jax.stages.latent import decode, weight_shardings
from vdm_jax.stages.stage import Stage
from vdm_jax.video.arrays import to_float

Tokens = dict[str, Float[Array, "N _ _"]]  # by layer, of all estimates of all videos


class Trajectory(NamedTuple):
    """What is kept of the steps of a key frame."""

    tokens: dict[str, Float[Array, "N steps _ _"]]  # that self-attention on the way up projects, by layer
    x_hat: Float[Array, "B steps H W C"]  # the network's estimates


class KeyFrame(NamedTuple):
    """A key frame that is made."""

    source: UInt8[np.ndarray, "B H W 3"]  # the given one
    made: Float[np.ndarray, "B H W 3"]  # in [-1, 1]
    trajectory: Trajectory


class Carry(NamedTuple):
    """What the next key frames are made with."""

    first: KeyFrame
    previous: KeyFrame


class State(NamedTuple):
    """Between two steps."""

    z: Float[Array, "B 1 H W C"]
    direction: Float[Array, "B 1 H W C"]  # the noise in z that the step before has put in; 0 before the first
    trajectory: Trajectory


class Others(NamedTuple):
    """What a key frame is held to."""

    first: Trajectory
    previous: Trajectory
    places: Int[Array, "B H W 2"]  # of its latents in the key frame that its shapes are from
    seen: Float[Array, "B 1 H W 1"]  # where they are seen there
    target: Float[Array, "B 1 H W C"]  # latents that it is drawn towards
    weight: Float[Array, "B 1 H W 1"]  # by how much


class KeyFrames:
    """Key frames of a stage that makes single frames, by functions jitted for a mesh."""

    def __init__(self, stage: Stage, how: EditSampling, mesh: Mesh, shardings: Any):
        self.stage, self.how, self.method = stage, how, how.method
        self.levels = np.asarray(stage_levels(stage, how.target))
        batch, one = sampling_sharding(stage, how.target, mesh), NamedSharding(mesh, P())
        given, weights = (shardings, *(batch,) * 3), weight_shardings(stage.latent, mesh)

        def jit(function: Callable[..., Any], *placed: Any) -> Callable[..., Any]:
            return jax.jit(function, in_shardings=(*placed, *weights), out_shardings=batch,
                           compiler_options=compiler_options(mesh))

        self.begin = jit(self._begin, *given)
        self.advance = jit(self._advance, shardings, *(batch,) * 4, one, one)
        self.show = jit(self._show, batch)
        self.faithful = jit(self._faithful, batch)

    def make(
        self, params: Any, keys: Any, captions: Any, video: UInt8[np.ndarray, "B H W 3"], others: Carry | None,
        *autoencoder: Any,
    ) -> KeyFrame:
        """The key frame of a given frame; the first one without `others`."""
        given, count = (params, keys, captions), len(self.levels)
        state, first = self.begin(*given, to_float(video)[:, None], *autoencoder), self.method.first_step(count)

        def advance(state: State, others: Others | None, start: int, end: int) -> State:
            return self.advance(*given, state, others, np.int32(start), np.int32(end), *autoencoder)

        if others is None or first == count:
            state = advance(state, None, first, count)
            return KeyFrame(video, self._shown(state, autoencoder), state.trajectory)
        held, motions = self._held(video, others, state)
        pixels = self.method.steps_by_pixels(count)
        middle = pixels[0] if pixels else count
        before = advance(state, held, first, middle)
        state = advance(before, held, middle, count)
        made = self._shown(state, autoencoder)
        if pixels:
            del state  # its tokens take as much memory as those of a key frame
            held = self._drawn(made, others, motions, held, autoencoder)
            state = advance(before, held, middle, count)
            made = self._shown(state, autoencoder)
        return KeyFrame(video, made, state.trajectory)

    def _shown(self, state: State, autoencoder: tuple[Any, ...]) -> Float[np.ndarray, "B H W 3"]:
        return np.asarray(self.show(state.z, *autoencoder))[:, 0]

    def _held(self, video: np.ndarray, others: Carry, state: State) -> tuple[Others, list[Any]]:
        """What a key frame is held to without pixels, and how each video's frame is found in the others."""
        flows = self.method.flows()
        several = others[: 1 if others.first is others.previous else 2]
        motions = each_row(lambda frame, *sources: tuple(motion_to(frame, source, flows) for source in sources),
                           video, *(other.source for other in several))
        motions = [(motion[0], motion[-1]) for motion in motions]
        place, factor = int(self.method.shape_from == "previous"), self._factor(video)
        chosen = [motion[place] for motion in motions]
        places = np.stack([latent_places(motion.along, factor) for motion in chosen])
        seen = np.stack([shown(soft(motion.hidden), factor) for motion in chosen])[:, None, ..., None]
        nothing = np.zeros_like(seen, np.float32)
        return Others(others.first.trajectory, others.previous.trajectory, places, seen.astype(np.float32),
                      np.zeros(state.z.shape, np.float32), nothing), motions

    def _drawn(
        self, rough: np.ndarray, others: Carry, motions: list[Any], held: Others, autoencoder: tuple[Any, ...]
    ) -> Others:
        """The same with the pixels of both other key frames, over the rough one."""
        factor, pictures, masks = self._factor(rough), [], []
        for row, pair in enumerate(motions):
            moved = [(other.made[row], motion) for other, motion in zip(others, pair, strict=True)]
            picture, hidden = blended(rough[row], *moved)
            pictures.append(picture)
            masks.append(shown(hidden, factor))
        target = self.faithful(np.stack(pictures)[:, None].astype(np.float32), *autoencoder)
        weight = self.method.pixel_strength * np.stack(masks)[:, None, ..., None]
        return held._replace(target=target, weight=weight.astype(np.float32))

    def _factor(self, frames: np.ndarray) -> int:
        """Pixels of a side of a latent."""
        return frames.shape[1] // self.stage.shape[1]

    def _parts(self, params: Any, keys: Any, captions: Any, autoencoder: tuple[Any, ...]) -> EditParts:
        parts = edit_parts(self.stage, self.how, params, keys, captions, None, *(autoencoder or (None,)), self.levels)
        return parts._replace(steps=jax.tree.map(jnp.asarray, parts.steps))

    def _begin(
        self, params: Any, keys: Any, captions: Any, video: Float[Array, "B 1 H W 3"], *autoencoder: Any
    ) -> State:
        """z at the first of the steps that are made, and nothing kept yet."""
        parts, count = self._parts(params, keys, captions, autoencoder), len(self.levels)
        z = self.method.begin(encoded_video(self.stage, video, *(autoencoder or (None,))), parts)
        shapes = jax.eval_shape(lambda z: tapped(parts.target, z, jnp.full(len(z), self.levels[0]), None)[1], z)
        if not self.method.cross_frame:
            shapes = {}
        elif not shapes:
            raise UserError(f"Stage {self.stage.name!r}: a network without self-attention on the way up with "
                            "Rerender.cross_frame=True; permitted: False", "Rerender.cross_frame")
        tokens = {name: jnp.zeros((len(a), count, *a.shape[1:]), a.dtype) for name, a in shapes.items()}
        x_hat = jnp.zeros((len(z), count, *z.shape[2:]), z.dtype)
        return State(z, jnp.zeros_like(z), Trajectory(tokens, x_hat))

    def _advance(
        self, params: Any, keys: Any, captions: Any, state: State, others: Others | None, start: Int[Array, ""],
        end: Int[Array, ""], *autoencoder: Any,
    ) -> State:
        """The state after the steps from `start` to before `end`."""
        parts = self._parts(params, keys, captions, autoencoder)

        def body(number: Int[Array, ""], state: State) -> State:
            step = jax.tree.map(lambda x: x[number], parts.steps._replace(count=None))
            return self._step(parts, keys, state, others, number, step._replace(count=len(self.levels)))

        return jax.lax.fori_loop(start, end, body, state)

    def _step(
        self, parts: EditParts, keys: Any, state: State, others: Others | None, number: Int[Array, ""], step: Step
    ) -> State:
        """The state after a step."""
        family, count, z = parts.process.schedule.family, len(self.levels), state.z
        if others is not None and self.method.steps_by_pixels(count):
            fused = pixel_fused(z, state.direction, others.target, noise_from_keys(keys, number + 1, z.shape, True),
                                others.weight, self.method.inner_strength, family.alpha_sigma(step.level))
            z = jnp.where(_among(number, self.method.steps_by_pixels(count)), fused, z)
        given = None if others is None or not self.method.cross_frame else {
            name: jnp.concatenate([other.tokens[name][:, number] for other in (others.first, others.previous)], 1)
            for name in state.trajectory.tokens}
        tokens: Tokens = {}

        def estimate(z: Video, level: Array) -> Video:
            x_hat, found = tapped(parts.target, z, jnp.broadcast_to(level, len(z)), given)
            tokens.update(found)
            return x_hat

        after, x_hat, _ = parts.sampler.step(estimate, z, None, step, family, jnp.zeros_like(z))
        alpha = family.alpha_sigma(step.next)[0]
        changed = x_hat if others is None else self._fused(x_hat, others, number)
        kept = Trajectory({name: a.at[:, number].set(tokens[name]) for name, a in state.trajectory.tokens.items()},
                          state.trajectory.x_hat.at[:, number].set(x_hat[:, 0]))
        # x_hat changes and eps_hat stays
        return State(jnp.where(step.last, changed, after + alpha * (changed - x_hat)), after - alpha * x_hat, kept)

    def _fused(self, x_hat: Video, others: Others, number: Int[Array, ""]) -> Video:
        """An estimate with the colours of the first key frame's and shapes of another's, in the steps for that."""
        count, method = len(self.levels), self.method
        shape = others.first if method.shape_from == "first" else others.previous
        adapted = coloured(x_hat, others.first.x_hat[:, number][:, None])
        x_hat = jnp.where(_among(number, method.steps_by_colour(count)), adapted, x_hat)
        fused = shape_fused(x_hat, shape.x_hat[:, number][:, None], others.places, others.seen)
        return jnp.where(_among(number, method.steps_by_shape(count)), fused, x_hat)

    def _show(self, x: Video, *autoencoder: Any) -> Float[Array, "B 1 H W 3"]:
        return finished(self.stage, x, None, None, *autoencoder)

    def _faithful(self, video: Float[Array, "B 1 H W 3"], *autoencoder: Any) -> Video:
        if self.stage.latent is None:
            return video
        return faithful(lambda x: encoded_video(self.stage, x, *autoencoder),
                        lambda z: decode(self.stage.latent, *autoencoder, z), video)


def tapped(denoise: Denoiser, z: Video, logsnr: Array, given: Tokens | None) -> tuple[Video, Tokens]:
    """An estimate, and the tokens that each spatial self-attention on the way up projects; with `given` ones it sees
    these in place of its own."""
    found: Tokens = {}

    def intercept(call: Callable, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        path = context.module.path
        if not (context.method_name == "seen" and isinstance(context.module, Attention)
                and any(part.startswith("up_") for part in path)):
            return call(*arguments, **options)
        (x,), name = arguments, ".".join(path)
        found[name] = x.reshape(len(x), -1, x.shape[-1])
        return None if given is None else given[name][:, None]

    with nn.intercept_methods(intercept):
        return denoise(z, logsnr), found


def _among(number: Int[Array, ""], steps: tuple[int, ...]) -> Array:
    """Whether a step is one of these."""
    return jnp.any(number == jnp.array(steps, jnp.int32))
