"""From noise to video: one `lax.scan` over the levels of a grid, whatever the sampler."""

from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key

from vdm_jax.configuration import SamplingSteps, ShareAboveZero, check_value
from vdm_jax.diffusion.arrays import Denoiser, Hook, Video, noise_from_keys
from vdm_jax.diffusion.caching import CachedDenoiser
from vdm_jax.diffusion.frame_schedules import FrameSchedule, steps_of_matrix
from vdm_jax.diffusion.grids import default_grid
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import Sampler, Step, StochasticDDIM
from vdm_jax.diffusion.scheduler_steps import Discretisation
from vdm_jax.diffusion.schedules import Schedule
from vdm_jax.diffusion.steps import Scalar
from vdm_jax.errors import UserError


def sampling_levels(
    sampler: Sampler, schedule: Schedule, steps: int, start: float = 1.0
) -> Float[Array, " steps"]:
    """The log-SNRs at which the sampler's steps begin, increasing; at the last the result is estimated.

    `start` is the time of the first level, in (0, 1]. They are constants, under `jit` too. Raises `UserError`
    for fewer than one step, or a grid whose end is noisier than its start.
    """
    check_value(steps, SamplingSteps, "steps")
    check_value(start, ShareAboveZero, "start")
    grid = sampler.grid or default_grid(schedule)
    with jax.ensure_compile_time_eval():
        levels = grid.levels(schedule, steps, start)
        increasing = bool(jnp.all(jnp.diff(levels) > 0))
    if not increasing:
        raise UserError(
            f"grid {grid} with start={start} and steps={steps} does not go from noisy to clean; "
            "permitted: a later start, or a lower end of the grid"
        )
    return levels


def sample(
    sampler: Sampler,
    denoise: Denoiser | CachedDenoiser,
    keys: Key[Array, " B"],
    shape: tuple[int, ...],
    process: Process,
    steps: int,
    *,
    hook: Hook | None = None,
    initial: Video | None = None,
    start: float = 1.0,
    trajectory: bool = False,
    levels: Float[ArrayLike, " steps"] | None = None,
    shared_noise: bool = False,
    stop: float | None = None,
    frame_lag: int = 0,
    discretisation: Discretisation | None = None,
    noise: Video | None = None,
    frame_schedule: FrameSchedule | None = None,
) -> Video | tuple[Video, Float[Array, "steps B *rest"]]:
    """Videos of `shape` (B, T, H, W, C) from noise; jittable with sampler, process, shape and steps static.

    Args:
      sampler: which step to take and on which grid of levels.
      denoise: `(z, logsnr [B]) -> x_hat`, guidance and thresholding included; one that keeps features is given those
        of the step before.
      keys: one typed threefry key per video. Video b depends on keys[b] and on nothing else in the batch.
      process: its schedule gives levels and family; the denoiser already knows the rest.
      steps: evaluations of the denoiser; `Heun` and `DDPMLangevin` make 2 * steps - 1.
      hook: `hook(x_hat, z, logsnr, index) -> x_hat` sees, and may replace, every estimate. logsnr is [B];
        index is the step, which the two evaluations of a step share.
      initial: z at time `start`, instead of noise: sampling from a diffused video (SDEdit: Meng et al.
        2021, arXiv 2108.01073).
      start: time of the first level, in (0, 1].
      trajectory: also return the estimate of every step, [steps, B, T, H, W, C].
      levels: `sampling_levels` of the other arguments, where nothing can be evaluated while tracing: under a mesh of
        devices that are not there.
      shared_noise: all frames of a video get the same noise, at the start and in every step.
      stop: a log-SNR at which to stop: the result is then z there and no estimate of the clean video. Of the grid's
        steps those from noisier levels are made, the last one to `stop` itself.
      frame_lag: steps by which every frame is behind the one before it, so that the denoiser gets logsnr [B, T] and
        there are `frame_lag (T - 1)` more steps (pyramid schedule of Diffusion Forcing: Chen et al. 2024, arXiv
        2407.01392). 0: all frames have the same level.
      frame_schedule: any other scheduling matrix of the frames' levels, in place of a lag.
      discretisation: the steps of a released scheduler, in place of the sampler's grid.
      noise: standard normal noise to begin with, instead of what the keys draw.

    Raises `UserError` for keys that do not match the shape, for `start` below 1 without `initial`, for a `stop`
    that is noisier than the first level, for a lag with `stop` or a sampler whose frames share their level, and for
    either with a `discretisation`.
    """
    _check(keys, shape, initial, start)
    walk = Walk(sampler, process, shape, steps, hook, shared_noise)
    check_steps(sampler, frame_lag, stop, discretisation is not None, frame_schedule)
    if discretisation is None:
        levels = sampling_levels(sampler, process.schedule, steps, start) if levels is None else levels
        grid_steps, std = steps_between(levels, stop, frame_lag, shape[1], frame_schedule), None
    else:
        grid_steps, std = jax.tree.map(jnp.asarray, discretisation.steps), discretisation.initial_std
    carry = walk.begin(keys, grid_steps.level[0], initial, noise=noise, std=std)
    carry = walk.with_features(denoise, carry, grid_steps.level[0])

    def body(carry: Carry, step: Step) -> tuple[Carry, Video | None]:
        carry, x_hat = walk.advance(denoise, keys, carry, step)
        return carry, (x_hat if trajectory else None)

    (x, *_), estimates = jax.lax.scan(body, carry, grid_steps)
    return (x, estimates) if trajectory else x


Carry = tuple[Video, Any] | tuple[Video, Any, Array]  # z, what the sampler remembers, and features that are kept


class Walk(NamedTuple):
    """The steps of `sample`, for those who go them one by one."""

    sampler: Sampler
    process: Process
    shape: tuple[int, ...]  # of the videos, (B, T, H, W, C)
    count: int  # of steps on the grid
    hook: Hook | None = None
    shared_noise: bool = False

    def begin(
        self, keys: Key[Array, " B"], level: Scalar, initial: Video | None = None, *, noise: Video | None = None,
        std: float | Float[Array, ""] | None = None,
    ) -> Carry:
        """z at the first level: given, or `noise` (drawn where None) of standard deviation `std`."""
        if initial is None:
            family = self.process.schedule.family
            # A variance-preserving z of unit-variance data has unit variance whatever alpha is left at time 1.
            if std is None:
                std = 1.0 if family.name == "vp" else family.alpha_sigma(_of_frames(level))[1]
            initial = std * (noise_from_keys(keys, 0, self.shape, self.shared_noise) if noise is None else noise)
        initial = initial.astype(jnp.float32)
        return initial, self.sampler.memory(initial)

    def with_features(self, denoise: Denoiser | CachedDenoiser, carry: Carry, level: Scalar) -> Carry:
        """A carry at the first level with the features that a denoiser keeps, if it keeps some."""
        if not isinstance(denoise, CachedDenoiser) or len(carry) == 3:
            return carry
        return (*carry, denoise.empty(carry[0], self._log_snr(level)))

    def _log_snr(self, level: Scalar) -> Array:
        """A level as denoisers take it: one of each video, or of each of its frames."""
        return jnp.broadcast_to(level.reshape(-1), self.shape[:2] if level.ndim else self.shape[:1])

    def advance(
        self, denoise: Denoiser | CachedDenoiser, keys: Key[Array, " B"], carry: Carry, step: Step
    ) -> tuple[Carry, Video]:
        """z at the step's next level, or after the last step the estimate there; and the estimate of this step."""
        z, memory, *kept = self.with_features(denoise, carry, step.level)
        if kept:
            denoise = denoise.at(step, *kept)
        lagging = step.level.ndim > 0
        step = jax.tree.map(_of_frames, step._replace(count=None))._replace(count=self.count)

        def estimate(z: Video, level: Scalar) -> Video:
            logsnr = self._log_snr(level)
            x_hat = denoise(z, logsnr)
            return x_hat if self.hook is None else self.hook(x_hat, z, logsnr, step.index)

        # Stream 0 is the initial noise. Samplers without noise leave this unused, and the compiler drops it.
        noises = [noise_from_keys(keys, step.index + 1 + n * self.count, self.shape, self.shared_noise)
                  for n in range(self.sampler.noises)]
        before = z
        z, x_hat, memory = self.sampler.step(estimate, z, memory, step, self.process.schedule.family, *noises)
        z = jnp.where(step.last, x_hat, z)
        z = jnp.where(step.level == step.next, before, z) if lagging else z
        return (z, memory, *([denoise.features] if kept else [])), x_hat


def steps_between(
    levels: Float[ArrayLike, " steps"], stop: float | None = None, frame_lag: int = 0, frames: int = 1,
    frame_schedule: FrameSchedule | None = None,
) -> Step:
    """The steps from level to level, stacked; those to `stop`, where that is given; with a lag or a schedule of frames,
    those of `frames` frames, which wait at the first level and stay at the last."""
    frame_schedule = schedule_of(frame_lag, frame_schedule)
    if stop is not None:
        return _steps_to(np.asarray(levels), stop)
    if not frame_schedule:
        return _steps(jnp.asarray(levels))
    return steps_of_matrix(levels, frame_schedule.matrix(len(levels), frames))


def schedule_of(frame_lag: int, frame_schedule: FrameSchedule | None) -> FrameSchedule | None:
    """The levels of frames: of a lag, the pyramid; None: all frames have the same."""
    return FrameSchedule(order="pyramid", lag=float(frame_lag)) if frame_lag else frame_schedule


def check_steps(
    sampler: Sampler, frame_lag: int, stop: float | None = None, scheduled: bool = False,
    frame_schedule: FrameSchedule | None = None,
) -> None:
    """Raise `UserError` for frames with levels of their own where they cannot have them, for a lag next to a schedule,
    and for steps of a released scheduler (`scheduled`) that are to lag or to stop."""
    own = f"frame_lag={frame_lag}" if frame_schedule is None else f"frame_schedule={frame_schedule.order!r}"
    lags = bool(frame_lag or frame_schedule)
    if frame_lag and frame_schedule:
        raise UserError(f"frame_lag={frame_lag} with frame_schedule={frame_schedule.order!r}; permitted: one of them")
    if lags and (not sampler.frame_levels or stop is not None):
        names = ", ".join(kind.__name__ for kind in get_args(Sampler) if kind.frame_levels)
        raise UserError(f"{own} with {type(sampler).__name__} and stop={stop}; permitted: {names} without stop, or "
                        "frame_lag=0")
    if scheduled and isinstance(sampler, StochasticDDIM):
        raise UserError("sampler=StochasticDDIM() with the steps of a released scheduler, which say nothing of the "
                        "step after the next one; permitted: another sampler, or the sampler's grid")
    if scheduled and (lags or stop is not None):
        raise UserError(f"{own}, stop={stop} with the steps of a released scheduler, which all frames take to their "
                        "end; permitted: frame_lag=0, stop=None")


def _of_frames(value: Array) -> Array:
    """A value, or values of single frames [T], to broadcast against videos."""
    return value.reshape(-1, 1, 1, 1) if value.ndim else value


def _steps(levels: Float[Array, " steps"]) -> Step:
    """The steps between consecutive levels, stacked; the neighbours missing at both ends are made up."""
    index, nothing = jnp.arange(levels.shape[0]), jnp.full(2, jnp.inf)
    return Step(
        index=index,
        previous=jnp.concatenate([levels[:1] - 1, levels[:-1]]),
        level=levels,
        next=jnp.concatenate([levels[1:], levels[-1:] + 1]),
        last=index == levels.shape[0] - 1,
        count=None,
        after=jnp.concatenate([levels[2:], nothing])[: levels.shape[0]],
    )


def _steps_to(levels: Float[np.ndarray, " steps"], stop: float) -> Step:
    """The steps between consecutive levels below `stop`, and one from the last of them to it."""
    noisier = levels[levels < stop]
    if not len(noisier):
        raise UserError(f"stop={stop:g} is noisier than where sampling begins; permitted: log-SNRs above "
                        f"{float(levels[0]):g}")
    steps = _steps(jnp.asarray(noisier))
    return steps._replace(next=steps.next.at[-1].set(stop), last=jnp.zeros(len(noisier), bool),
                          after=steps.after.at[-2:].set(stop))


def _check(keys: Key[Array, " B"], shape: tuple[int, ...], initial: Video | None, start: float) -> None:
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.shape != shape[:1]:
        raise UserError(
            f"keys have shape {keys.shape} and type {keys.dtype}; "
            f"permitted: one jax.random.key per video, [{shape[0]}]"
        )
    if str(jax.random.key_impl(keys)) != "threefry2x32":
        raise UserError(
            f"keys use the generator {jax.random.key_impl(keys)}, which mixes keys within a batch; "
            "permitted: threefry2x32"
        )
    if initial is None and start != 1:
        raise UserError(
            f"start={start} without initial; permitted: 1, or any time with the z of that time as initial"
        )
    if initial is not None and initial.shape != tuple(shape):
        raise UserError(f"initial has shape {initial.shape}; permitted: {tuple(shape)}")
