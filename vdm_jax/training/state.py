"""The training state: everything that a resumed run needs, in one pytree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from vdm_jax.networks.discriminator import PatchDiscriminator
from vdm_jax.parallel.rules import parameter_shardings
from vdm_jax.stages.autoencoding import AnyStage, AutoencoderStage, AutoencoderTraining
from vdm_jax.stages.options import Training
from vdm_jax.stages.parameters import initial_params, network_params, network_shapes, with_factors
from vdm_jax.training.adversarial import with_classifier
from vdm_jax.training.trainable import merged, split
from vdm_jax.weights.inflation import BeginApart, Inflation


@flax.struct.dataclass
class TrainState:
    """Step counter, parameters, optimizer state (of those that are trained), the parameters' exponential moving
    average, and the key of the whole run. Of a LoRA, `params` has its factors next to the network, and the average is
    of the factors alone.

    Of an autoencoder, `params` are `autoencoder`, `logvar` (of its errors) and `discriminators` by number, with two
    optimizer states; the average is of the autoencoder alone.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    ema: Any
    key: PRNGKeyArray


@flax.struct.dataclass
class DistillationState(TrainState):
    """That of a stage that is distilled: also the other networks of its loss, by role (`stages/distillation.py`), and
    as `ROLE_optimizer` the optimizer states of those that are trained. Of a LoRA there are the factors of the target
    alone: the teacher is the network without factors."""

    networks: dict[str, Any]


def optimizer_of(role: str) -> str:
    """Where in `DistillationState.networks` the optimizer state of a network is."""
    return f"{role}_optimizer"


def learning_rate(spec: Training | AutoencoderTraining) -> optax.Schedule:
    """Learning rate of step 1, 2, ...: linear warm-up, then constant or cosine decay to a tenth; of progressive
    distillation, a linear fall to 0 in every round."""
    warmup, rounds = min(spec.warmup_steps, spec.steps), getattr(spec.distillation, "rounds", None)
    if rounds is not None:  # updates are counted anew in each
        return optax.linear_schedule(spec.learning_rate, 0.0, spec.distillation.updates, transition_begin=1)
    if spec.decay:
        return optax.warmup_cosine_decay_schedule(
            0.0, spec.learning_rate, warmup, max(spec.steps, warmup + 1), 0.1 * spec.learning_rate)
    return optax.linear_schedule(0.0, spec.learning_rate, max(warmup, 1))


def rate_of_update(spec: Training | AutoencoderTraining, opt_state: Any) -> Array:
    """Learning rate of the update that comes next. Skipped steps are no updates, so this is not that of the step."""
    count = optax.tree_utils.tree_get_all_with_path(opt_state, "count")[0][1]  # all of them are equal
    return learning_rate(spec)(count + 1)


def make_optimizer(spec: Training | AutoencoderTraining, first: int = 0) -> optax.GradientTransformation:
    """AdamW or Adafactor (Shazeer & Stern 2018, arXiv 1804.04235, optax's defaults) with warm-up and clipping by global
    norm, where that is asked for; biases and norms do not decay. The schedule of the learning rate has gone on for
    `first` steps when the first update comes."""
    def rate(count: Array) -> Array:
        return learning_rate(spec)(count + 1 + first)

    if spec.optimizer == "adafactor":
        rule = optax.adafactor(rate)
    else:
        rule = optax.adamw(rate, b1=spec.b1, b2=spec.b2, weight_decay=spec.weight_decay,
                           mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params))
    return rule if spec.clip_norm is None else optax.chain(optax.clip_by_global_norm(spec.clip_norm), rule)


def advanced(
    state: TrainState, spec: Training | AutoencoderTraining, finite: Bool[Array, ""], params: Any, opt_state: Any,
    averaged: Any,
) -> TrainState:
    """The state after a step to `params` and `opt_state`, with the moving average of `averaged`, what of the parameters
    `state.ema` is of; where loss or gradient is not `finite`, the old state with the counter moved on.

    `optax.apply_if_finite` guards gradients alone, lets bad ones pass after some, and keeps counters in the state.
    """
    decay = jnp.minimum(spec.ema_decay, (1.0 + state.step) / (10.0 + state.step))
    old, frozen = split(state.ema, spec.trained)  # what is not trained is its own average, to the last bit
    ema = merged(optax.incremental_update(split(averaged, spec.trained)[0], old, 1 - decay), frozen)
    params, opt_state, ema = optax.tree.where(
        finite, (params, opt_state, ema), (state.params, state.opt_state, state.ema))
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema=ema)


def initial_state(
    stage: AnyStage, key: PRNGKeyArray, inflation: Inflation | BeginApart | None = None, source: Any = None
) -> TrainState:
    """A fresh state, inflated from the parameters `source` of another network where that is asked for; the EMA, and the
    other networks of a distillation unless they begin apart, start at the parameters."""
    init_key, run_key = jax.random.split(key)
    params = initial_params(stage, init_key)
    apart = inflation.of_others(params, source) if isinstance(inflation, BeginApart) else None
    if inflation is not None:
        params = inflation.apply(params, source)
    if isinstance(stage, AutoencoderStage):
        return _autoencoder_state(stage, params, init_key, run_key)
    params = with_factors(stage, params, jax.random.fold_in(init_key, 1))
    trained = split(params, stage.training.trained)[0]
    opt_state = make_optimizer(stage.training).init(trained)
    ema = jax.tree.map(jnp.array, trained if stage.training.lora else params)  # a copy, since the state is donated
    state = TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=opt_state, ema=ema, key=run_key)
    if stage.training.distillation is None:
        return state
    roles = stage.training.distillation.roles
    if stage.training.lora:  # the teacher is the network that stays as it is
        roles, params = [role for role in roles if role == "target"], trained
    params = params if apart is None else apart
    networks = {role: jax.tree.map(jnp.array, params) for role in roles}
    if "critic" in networks:
        networks["critic"] = with_classifier(stage, networks["critic"], jax.random.fold_in(init_key, 2))
    networks |= {optimizer_of(role): make_optimizer(stage.training).init(networks[role])
                 for role in getattr(stage.training.distillation, "optimized", ())}
    return DistillationState(**vars(state), networks=networks)


def _autoencoder_state(
    stage: AutoencoderStage, params: Any, init_key: PRNGKeyArray, run_key: PRNGKeyArray
) -> TrainState:
    """The state of an autoencoder with fresh discriminators."""
    spec = stage.training
    discriminators = {
        str(i): PatchDiscriminator(d).init(jax.random.fold_in(init_key, i), jnp.zeros((1, 1, 16, 16, 3)))["params"]
        for i, d in enumerate(spec.loss.discriminators)}
    everything = {"autoencoder": params, "logvar": jnp.float32(spec.loss.logvar), "discriminators": discriminators}
    optimizer = make_optimizer(spec)
    opt_state = {"autoencoder": optimizer.init(trained_part(stage, everything)),
                 "discriminators": optimizer.init(discriminators)}
    return TrainState(step=jnp.zeros((), jnp.int32), params=everything, opt_state=opt_state,
                      ema=jax.tree.map(jnp.array, params), key=run_key)


def trained_part(stage: AutoencoderStage, params: Any) -> Any:
    """What of an autoencoder's `TrainState.params` the first optimizer trains."""
    trained = {"autoencoder": split(params["autoencoder"], stage.training.trained)[0]}
    return {**trained, "logvar": params["logvar"]} if stage.training.loss.learned_logvar else trained


def abstract_state(stage: AnyStage, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of a state on a mesh, without allocating it."""
    shapes = jax.eval_shape(lambda key: initial_state(stage, key), jax.random.key(0))
    shardings = parameter_shardings(shapes, mesh).replace(
        step=NamedSharding(mesh, P()), key=NamedSharding(mesh, P()))
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings)


def averaging(stage: AnyStage, mesh: Mesh) -> Callable[[TrainState], Any]:
    """A function from a state to the averaged parameters of its network, of an autoencoder of the autoencoder. Of a
    LoRA they are new arrays, of the network with the averaged factors merged into it, by a program that is compiled
    once."""
    if not getattr(stage.training, "lora", ()):
        return lambda state: state.ema
    shardings = parameter_shardings(network_shapes(stage), mesh)
    program = jax.jit(lambda params: network_params(stage, params), out_shardings=shardings)

    def averaged(state: TrainState) -> Any:
        with jax.set_mesh(mesh):
            return program({**state.params, **state.ema})

    return averaged


def create_state(
    stage: AnyStage, seed: int, mesh: Mesh, inflation: Inflation | BeginApart | None = None, source: Any = None
) -> TrainState:
    """A fresh state, made sharded where it will live; `source` are arrays of the host."""
    shardings = jax.tree.map(lambda a: a.sharding, abstract_state(stage, mesh))
    source = jax.tree.map(jax.device_put, source, parameter_shardings(source, mesh))
    with jax.set_mesh(mesh):
        make = jax.jit(lambda key, source: initial_state(stage, key, inflation, source), out_shardings=shardings)
        return make(jax.random.key(seed), source)
