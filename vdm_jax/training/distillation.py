"""The losses of few-step students: functions of a batch's draws and of networks with roles.

The student is trained; the `teacher` and the `target` lie in the training state and get no gradient. The trainer knows
none of this: a step asks for the roles before its loss (`in_roles`), and hands the new state over after it
(`with_target`). Adding a distillation is a config of `stages/distillation.py` and a function here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from vdm_jax.conditions.scalars import WEIGHT
from vdm_jax.diffusion.arrays import Denoiser, Level, Video, expand
from vdm_jax.diffusion.consistency import consistent_estimate
from vdm_jax.diffusion.distillation import (
    Perceptual,
    growing_intervals,
    halving_target,
    interval_level,
    matching_error,
    solved,
    target_decay,
)
from vdm_jax.diffusion.grids import TimeGrid, default_grid
from vdm_jax.diffusion.guidance import batched, combine
from vdm_jax.diffusion.process import masked_mean
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.sampling import Walk
from vdm_jax.generation.one_stage import with_threshold
from vdm_jax.networks.kinds import Network, network_module
from vdm_jax.stages.distillation import (
    ConsistencyDistillation,
    ConsistencyTraining,
    DistributionMatching,
    ProgressiveDistillation,
    SelfForcing,
)
from vdm_jax.stages.parameters import network_params
from vdm_jax.stages.stage import Stage
from vdm_jax.training.adversarial import classifier_loss, student_loss
from vdm_jax.training.draws import Drawn, bound_network, loss_mask
from vdm_jax.training.perceptual import perceptual_distance
from vdm_jax.training.rollout import rolled_out
from vdm_jax.training.state import DistillationState, TrainState, advanced, make_optimizer, optimizer_of
from vdm_jax.training.trainable import split

Loss = tuple[Array, dict[str, Array]]  # and scalars to log
# Of a draw's dropout key, which networks split further.
_WEIGHT_STREAM, _INTERVAL_STREAM, _NOISE_STREAM, _LEVEL_STREAM, _CLIP_STREAM, _CLASS_STREAM = (
    2**31 - n for n in range(11, 17))
# Gradient of given parameters: (parameters, roles, key) -> loss, scalars, gradients
Gradients = Callable[[Any, "Roles", PRNGKeyArray], tuple[Array, dict[str, Array], Any]]


class Roles(NamedTuple):
    """What a distillation's loss sees next to the student."""

    networks: dict[str, Any]  # parameters by role
    step: Int[Array, ""]  # of the training, from 0
    trained: str = "student"  # whose loss it is; of another one `networks` has the student


def in_roles(stage: Stage, state: TrainState) -> tuple[TrainState, Roles | None]:
    """The state at the beginning of a step, and the other networks of its loss. Where a round of a progressive
    distillation begins, the averaged student is the teacher, and goes on from there with a new optimizer."""
    spec = stage.training.distillation
    if spec is None:
        return state, None
    if isinstance(spec, ProgressiveDistillation):
        begins = (state.step > 0) & (state.step % spec.updates == 0)
        trained = split(state.ema, stage.training.trained)[0]
        fresh = (state.ema, make_optimizer(stage.training).init(trained), {**state.networks, "teacher": state.ema})
        params, opt_state, networks = optax.tree.where(
            begins, fresh, (state.params, state.opt_state, state.networks))
        state = state.replace(params=params, opt_state=opt_state, networks=networks)
    return state, Roles(_whole_networks(stage, state), state.step)


def _whole_networks(stage: Stage, state: DistillationState) -> dict[str, Any]:
    """The other networks of the loss; where a LoRA is trained, of the network that stays and the target's factors."""
    if not stage.training.lora:
        return state.networks
    base = split(state.params, stage.training.trained)[1]
    merged = {role: network_params(stage, {**base, **factors}) for role, factors in state.networks.items()}
    return {"teacher": base, **merged}


def with_target(stage: Stage, state: TrainState, finite: Bool[Array, ""]) -> TrainState:
    """The state after a step, with the target moved towards the student; not where the step was skipped."""
    spec = stage.training.distillation
    if not isinstance(state, DistillationState) or "target" not in spec.roles:
        return state
    decay = spec.target_decay
    if isinstance(spec, ConsistencyTraining):
        decay = target_decay(_intervals(spec, stage, state.step - 1), spec.first, decay)
    student = split(state.params, stage.training.trained)[0] if stage.training.lora else state.params
    moved = optax.incremental_update(student, state.networks["target"], jnp.where(finite, 1.0 - decay, 0.0))
    return state.replace(networks={**state.networks, "target": moved})


def distillation_loss(stage: Stage, params: Any, drawn: Drawn, roles: Roles, weights: Any = None) -> Loss:
    """Mean loss of the student on what was drawn; `weights` are those of a distance that has some."""
    spec = stage.training.distillation
    weight = None
    if spec.guidance is not None:
        key = jax.random.fold_in(drawn.dropout_key, _WEIGHT_STREAM)
        weight = jax.random.uniform(key, drawn.x.shape[:1], minval=spec.guidance[0], maxval=spec.guidance[1])
        if spec.guidance[0] == spec.guidance[1]:
            weight = jnp.full_like(weight, spec.guidance[0])
    if stage.takes_weight:
        conditioning = drawn.conditioning.adding({"scalars": {WEIGHT: weight}})
        drawn = drawn._replace(conditioning=conditioning)
    if roles.trained == "critic":
        return critic_loss(stage, params, drawn, roles)
    loss = {ProgressiveDistillation: progressive_loss, DistributionMatching: matching_loss,
            SelfForcing: matching_loss}.get(type(spec), partial(consistency_loss, weights=weights))
    return loss(stage, params, drawn, weight, roles)


def teacher_denoiser(
    stage: Stage, params: Any, drawn: Drawn, weight: Float[Array, " B"] | None = None, *, threshold: bool = True,
    network: Network | None = None,
) -> Denoiser:
    """The teacher's estimate with the threshold that it is sampled with, if it is to have one; with a weight, guided by
    two estimates; where `network` is given, by that one in place of the student's."""
    module = network_module(network or stage.network)

    def denoise_with(z: Video, logsnr: Level, conditioning: Any) -> Video:
        def network(x: Array, level: Array) -> Array:
            return module.apply({"params": params}, x, level, conditioning, images=drawn.images)

        return stage.process.denoiser(network)(z, logsnr)

    if weight is None:
        def denoise(z: Video, logsnr: Level) -> Video:
            return denoise_with(z, logsnr, drawn.conditioning)
    else:
        lacking = drawn.conditioning.without(stage.sampling.guided_by)
        denoise = combine(batched(denoise_with, [drawn.conditioning, lacking]), [(0, 1, weight[:, None])])
    return with_threshold(denoise, stage.sampling) if threshold else denoise


def progressive_loss(
    stage: Stage, params: Any, drawn: Drawn, weight: Float[Array, " B"] | None, roles: Roles
) -> Loss:
    """The stage's own loss with targets of the teacher in place of video and noise: at all levels its guided estimate
    in the first round of guidance, then at the student's steps the estimate that halves them."""
    spec, process, teacher = stage.training.distillation, stage.process, roles.networks["teacher"]
    rounds = jnp.array(spec.rounds)
    number = jnp.minimum(roles.step // spec.updates, len(rounds) - 1)

    def halved() -> tuple[Level, Video, Video]:
        steps = rounds[number]
        key = jax.random.fold_in(drawn.dropout_key, _INTERVAL_STREAM)
        interval = jax.random.randint(key, drawn.x.shape[:1], 0, jnp.maximum(steps, 1))
        times = [(interval + share) / steps for share in (1.0, 0.5, 0.0)]
        levels = tuple(process.schedule.logsnr(time) for time in times)
        z = process.diffuse(drawn.x, drawn.noise, levels[0])
        denoise = teacher_denoiser(stage, teacher, drawn)
        return levels[0], z, halving_target(denoise, z, levels, interval == 0, process.schedule.family)

    def guided() -> tuple[Level, Video, Video]:
        z = process.diffuse(drawn.x, drawn.noise, drawn.logsnr)
        return drawn.logsnr, z, teacher_denoiser(stage, teacher, drawn, weight)(z, drawn.logsnr)

    level, z, target = jax.lax.cond(rounds[number] == 0, guided, halved) if spec.rounds[0] == 0 else halved()
    alpha, sigma = process.schedule.alpha_sigma(level)
    noise = (z - expand(alpha, z) * target) / expand(sigma, z)
    process = dataclasses.replace(process, weighting=spec.weighting)
    losses, aux = process.loss(bound_network(stage, params, drawn, train=spec.dropout), target, None,
                               mask=loss_mask(stage, drawn.conditioning), logsnr=level, noise=noise)
    return losses.mean(), {"x_mse": aux["x_mse"].mean(), "student_steps": rounds[number].astype(jnp.float32)}


def consistency_loss(
    stage: Stage, params: Any, drawn: Drawn, weight: Float[Array, " B"] | None, roles: Roles, weights: Any = None
) -> Loss:
    """Distance of the student's estimate to the target's at the cleaner end of an interval, which the teacher's solver
    reaches, or the same noise where there is no teacher; `weights` are those of the distance."""
    spec, process = stage.training.distillation, stage.process
    count = _intervals(spec, stage, roles.step)
    interval = jax.random.randint(jax.random.fold_in(drawn.dropout_key, _INTERVAL_STREAM), drawn.x.shape[:1], 0, count)
    noisy, cleaner = (interval_level(process.schedule, interval + more, count) for more in (1, 0))
    z = process.diffuse(drawn.x, drawn.noise, noisy)
    if isinstance(spec, ConsistencyDistillation):
        two = weight if spec.teacher_guidance == "two_estimates" else None
        denoise = teacher_denoiser(stage, roles.networks["teacher"], drawn, two)
        end = solved(spec.solver, denoise, z, noisy, cleaner, process.schedule.family)
    else:
        end = process.diffuse(drawn.x, drawn.noise, cleaner)

    def estimate(params: Any, z: Video, level: Level) -> Video:  # with the same dropout for both
        denoise = process.denoiser(bound_network(stage, params, drawn, train=spec.dropout))
        return consistent_estimate(denoise, process.schedule, stage.sampling.consistency)(z, level)

    x_hat = estimate(params, z, noisy)
    target = jax.lax.stop_gradient(estimate(_target(spec, params, roles), jax.lax.stop_gradient(end), cleaner))
    mask = loss_mask(stage, drawn.conditioning)
    if isinstance(spec.distance, Perceptual):
        losses = perceptual_distance(spec.distance, weights, x_hat, target, mask)
    else:
        losses = spec.distance(x_hat - target, mask)
    return losses.mean(), {"x_mse": jnp.square(x_hat - drawn.x).mean(), "intervals": count.astype(jnp.float32)}


def matching_loss(
    stage: Stage, params: Any, drawn: Drawn, weight: Float[Array, " B"] | None, roles: Roles
) -> Loss:
    """What makes the student's videos likelier under the teacher than under the critic; where that is asked for, their
    distance to the teacher's from the same noise, and what distinguishes them from clips. Scores are of estimates
    without thresholds."""
    spec, process = stage.training.distillation, stage.process
    x = simulated(stage, params, drawn)
    network, seen = judging(stage, drawn, x)
    level_key, noise_key = jax.random.split(jax.random.fold_in(drawn.dropout_key, _LEVEL_STREAM))
    earliest, latest = spec.times
    level = process.schedule.logsnr(jax.random.uniform(level_key, x.shape[:1], minval=earliest, maxval=latest))
    z = process.diffuse(jax.lax.stop_gradient(x), jax.random.normal(noise_key, x.shape), level)
    two = weight if spec.teacher_guidance == "two_estimates" else None
    teach = teacher_denoiser(stage, roles.networks["teacher"], seen, two, threshold=False, network=network)
    critic = bound_network(stage, roles.networks["critic"], seen, train=False, network=network)
    fake = process.denoiser(critic)(z, level)
    mask = loss_mask(stage, drawn.conditioning)
    losses = matching_error(x, teach(z, level), fake, mask)
    if spec.regression:
        losses = losses + spec.regression * _regression(stage, params, drawn, teach, mask)
    found = {"x_mse": jnp.square(x - drawn.x).mean()}
    if not spec.adversarial:
        return losses.mean(), found
    key = jax.random.fold_in(drawn.dropout_key, _CLASS_STREAM)
    return losses.mean() + spec.adversarial * student_loss(stage, roles.networks["critic"], drawn, x, key), found


def judging(stage: Stage, drawn: Drawn, x: Video) -> tuple[Network, Drawn]:
    """The network of teacher and critic, and what they see with the student's videos x: a causal network their clean
    blocks, one of all frames a noise level of the clip."""
    spec, process = stage.training.distillation, stage.process
    if not isinstance(spec, SelfForcing):
        return stage.network, drawn
    causal = spec.scores == "causal"
    history = jax.lax.stop_gradient(x) if causal else None
    drawn = drawn._replace(conditioning=drawn.conditioning.replace(history=history))
    if process.frame_levels and not causal:
        process = dataclasses.replace(process, frame_levels=False, frame_block=1)
        key = jax.random.fold_in(drawn.dropout_key, _CLIP_STREAM)
        drawn = drawn._replace(logsnr=process.draw(key, x.shape)[0])
    return spec.judging(stage.network), drawn


def _regression(
    stage: Stage, params: Any, drawn: Drawn, teach: Denoiser, mask: Array | None
) -> Float[Array, " B"]:
    """Squared distance of the student's first estimate to where the teacher's DDIM ends from the same noise."""
    spec, process, batch = stage.training.distillation, stage.process, drawn.x.shape[:1]
    levels = TimeGrid().levels(process.schedule, spec.regression_steps, 1.0)
    student = process.denoiser(bound_network(stage, params, drawn, train=spec.dropout))
    first, z = _first(stage, drawn)
    teach = with_threshold(teach, stage.sampling)

    def step(z: Video, ends: tuple[Array, Array]) -> tuple[Video, None]:
        level, following = (jnp.broadcast_to(end, batch) for end in ends)
        return solved(DDIM(), teach, z, level, following, process.schedule.family), None

    end, _ = jax.lax.scan(step, z, (levels[:-1], levels[1:]))
    end = teach(end, jnp.broadcast_to(levels[-1], batch))
    return masked_mean(jnp.square(student(z, jnp.broadcast_to(first, batch)) - jax.lax.stop_gradient(end)), mask)


def critic_loss(stage: Stage, params: Any, drawn: Drawn, roles: Roles) -> Loss:
    """The stage's own loss on the student's videos in place of clips, and that of a classifier that distinguishes them
    from clips."""
    x = jax.lax.stop_gradient(simulated(stage, roles.networks["student"], drawn))
    network, seen = judging(stage, drawn, x)
    noise = jax.random.normal(jax.random.fold_in(drawn.dropout_key, _NOISE_STREAM), x.shape)
    losses, aux = stage.process.loss(bound_network(stage, params, seen, train=True, network=network), x, None,
                                     noise=noise, mask=loss_mask(stage, drawn.conditioning), logsnr=seen.logsnr)
    loss, found, spec = losses.mean(), {"x_mse": aux["x_mse"].mean()}, stage.training.distillation
    if not spec.adversarial:
        return loss, found
    judged = classifier_loss(stage, params, drawn, x, jax.random.fold_in(drawn.dropout_key, _CLASS_STREAM))
    return loss + spec.classifier * judged, {**found, "classifier_loss": judged}


def simulated(stage: Stage, params: Any, drawn: Drawn) -> Video:
    """The student's estimate at a random one of its steps, the same for all videos, to which it has come by its own
    sampler from noise, without gradient; of a causal student, a rollout block by block."""
    if isinstance(stage.training.distillation, SelfForcing):
        return rolled_out(stage, params, drawn, _levels(stage))
    process, batch = stage.process, drawn.x.shape[:1]
    levels = _levels(stage)
    key = jax.random.fold_in(drawn.dropout_key, _INTERVAL_STREAM)
    number = jax.random.randint(key, (), 0, len(levels))
    fixed = jax.lax.stop_gradient(params)
    own = with_threshold(process.denoiser(bound_network(stage, fixed, drawn, train=False)), stage.sampling)

    def renoised(step: Int[Array, ""], z: Video) -> Video:
        x_hat = own(z, jnp.broadcast_to(levels[step], batch))
        noise = jax.random.normal(jax.random.fold_in(key, step), z.shape)
        return process.diffuse(x_hat, noise, jnp.broadcast_to(levels[step + 1], batch))

    z = _first(stage, drawn)[1]
    if len(levels) > 1:
        z = jax.lax.stop_gradient(jax.lax.fori_loop(0, number, renoised, z))
    denoise = process.denoiser(bound_network(stage, params, drawn, train=stage.training.distillation.dropout))
    return denoise(z, jnp.broadcast_to(levels[number], batch))


def _levels(stage: Stage) -> Float[Array, " steps"]:
    """Log-SNRs of the student's steps."""
    grid = stage.sampling.sampler.grid or default_grid(stage.process.schedule)
    return jnp.asarray(grid.levels(stage.process.schedule, stage.training.distillation.steps, 1.0))


def _first(stage: Stage, drawn: Drawn) -> tuple[Float[Array, ""], Video]:
    """The level at which sampling begins, and noise there."""
    level, walk = _levels(stage)[0], Walk(stage.sampling.sampler, stage.process, drawn.x.shape, 1)
    return level, walk.begin(jax.random.split(drawn.dropout_key, len(drawn.x)), level, noise=drawn.noise)[0]


def two_time_scales(
    stage: Stage, state: DistillationState, roles: Roles, gradients: Gradients, key: PRNGKeyArray
) -> tuple[DistillationState, dict[str, Array]]:
    """A step of the critic, and at every `critic_updates`-th one of the student. Scalars are the critic's;
    `student_loss` counts as many times as it is left out, so that its mean over steps is the student's."""
    spec, optimizer, place = stage.training.distillation, make_optimizer(stage.training), optimizer_of("critic")
    critic, critic_state = roles.networks["critic"], roles.networks[place]

    def step(params: Any, opt_state: Any, roles: Roles, key: PRNGKeyArray, rate: float) -> Any:
        loss, aux, grads = gradients(params, roles, key)
        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, optax.tree.scale(rate, updates))
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        return (params, opt_state), finite, {"loss": loss, "gradient_norm": norm, **aux}

    def student() -> tuple[TrainState, Array, Array]:
        (params, opt_state), finite, found = step(state.params, state.opt_state, roles, key, 1.0)
        return advanced(state, stage.training, finite, params, opt_state, params), finite, found["loss"]

    def waiting() -> tuple[TrainState, Array, Array]:
        return state.replace(step=state.step + 1), jnp.array(True), jnp.float32(0)

    seen = Roles({**roles.networks, "student": state.params}, roles.step, "critic")
    after, finite, metrics = step(critic, critic_state, seen, jax.random.fold_in(key, 1), spec.critic_rate)
    critic, critic_state = optax.tree.where(finite, after, (critic, critic_state))
    due = (state.step + 1) % spec.critic_updates == 0
    state, good, loss = jax.lax.cond(due, student, waiting)
    state = state.replace(networks={**state.networks, "critic": critic, place: critic_state})
    return state, {**metrics, "skipped": 1.0 - (finite & good), "student_loss": spec.critic_updates * loss}


def _target(spec: ConsistencyDistillation | ConsistencyTraining, params: Any, roles: Roles) -> Any:
    """Parameters of the target; without a moving average those of the student itself, trained or not."""
    return roles.networks["target"] if spec.target_decay else params


def _intervals(
    spec: ConsistencyDistillation | ConsistencyTraining, stage: Stage, step: Int[Array, ""]
) -> Int[Array, ""]:
    """Intervals of the schedule's time at a step."""
    if isinstance(spec, ConsistencyDistillation):
        return jnp.int32(spec.intervals)
    return growing_intervals(step, stage.training.steps, spec.first, spec.last, spec.growth)
