"""One training step as a pure function of state and batch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PRNGKeyArray

from vdm_jax.parallel.compiling import compiler_options
from vdm_jax.parallel.gathers import check_gathers, split_axes
from vdm_jax.parallel.rules import batch_sharding, parameter_shardings, shard
from vdm_jax.stages.latent import weight_shardings
from vdm_jax.stages.parameters import network_params, network_shapes
from vdm_jax.stages.stage import Stage
from vdm_jax.training.distillation import Roles, distillation_loss, in_roles, two_time_scales, with_target
from vdm_jax.training.draws import Batch, auxiliary_loss, bound_network, draw, loss_mask
from vdm_jax.training.perceptual import fixed_shardings
from vdm_jax.training.state import TrainState, abstract_state, advanced, make_optimizer, rate_of_update
from vdm_jax.training.trainable import merged, split

logger = logging.getLogger(__name__)
CompileStep = Callable[[Mesh, Callable[[], jax.stages.Compiled]], jax.stages.Compiled]


def stage_loss(
    stage: Stage, params: Any, batch: Batch, key: PRNGKeyArray, fixed: Any = None, *, train: bool = True,
    roles: Roles | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Mean loss of a batch, and scalars to log. The key decides noise levels, noise, augmentation and dropout;
    `fixed` are weights that are not trained, of a latent stage's autoencoder or of the distance of a
    distillation (`perceptual.py`), `roles` the other networks of a stage that is distilled."""
    batch = {name: shard(x, "batch", *[None] * (x.ndim - 1)) for name, x in batch.items()}
    drawn = draw(stage, batch, key, fixed, train=train)
    if roles is not None:
        return distillation_loss(stage, params, drawn, roles, fixed)
    losses, aux = stage.process.loss(bound_network(stage, params, drawn, train=train), drawn.x, None,
                                     mask=loss_mask(stage, drawn.conditioning), logsnr=drawn.logsnr, noise=drawn.noise)
    loss, logged = losses.mean(), {"x_mse": aux["x_mse"].mean()}
    if stage.network.auxiliary:
        own = auxiliary_loss(stage, params, drawn, train=train).mean()
        loss, logged = loss + own, {**logged, "auxiliary_loss": own}
    return loss, logged


def gradients(
    stage: Stage, params: Any, batch: Batch, key: PRNGKeyArray, fixed: Any = None, *, unroll: bool,
    roles: Roles | None = None,
) -> tuple[Array, dict[str, Array], Any]:
    """Loss, scalars and gradients of a batch (with respect to what is trained), accumulated over the micro-batches the
    stage asks for.

    Micro-batches take every n-th row, so that each keeps its rows spread over the devices. `unroll` is for CPU, where
    XLA runs gradients of convolutions inside a loop 13-40 times slower.
    """
    params, frozen = split(params, stage.training.trained)
    grad = jax.value_and_grad(lambda p, b, k: stage_loss(
        stage, network_params(stage, merged(p, frozen)), b, k, fixed, roles=roles), has_aux=True)
    parts = stage.training.accumulation
    if parts == 1:
        (loss, aux), grads = grad(params, batch, key)
        return loss, aux, grads
    micro = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)

    def body(total: Any, item: tuple[Batch, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, grad(params, *item)), None

    keys = jax.random.split(key, parts)
    first = jax.tree.map(lambda x: x[0], (micro, keys))
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(grad, params, *first))
    total, _ = jax.lax.scan(body, zero, (micro, keys), unroll=parts if unroll else 1)
    (loss, aux), grads = jax.tree.map(lambda x: x / parts, total)
    return loss, aux, grads


def train_step(
    stage: Stage, state: TrainState, batch: Batch, fixed: Any = None, *, unroll: bool = True
) -> tuple[TrainState, dict[str, Array]]:
    """Gradient, clipping, AdamW of what is trained, EMA. A step whose loss or gradient is not finite changes nothing
    but the counter."""
    state, roles = in_roles(stage, state)
    key = jax.random.fold_in(state.key, state.step)
    rate = rate_of_update(stage.training, state.opt_state)
    if getattr(stage.training.distillation, "optimized", ()):
        state, metrics = two_time_scales(stage, state, roles, lambda params, roles, key: gradients(
            stage, params, batch, key, fixed, unroll=unroll, roles=roles), key)
        return state, {**metrics, "learning_rate": rate}
    loss, aux, grads = gradients(stage, state.params, batch, key, fixed, unroll=unroll, roles=roles)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    trained, frozen = split(state.params, stage.training.trained)
    updates, opt_state = make_optimizer(stage.training).update(grads, state.opt_state, trained)
    params = merged(optax.apply_updates(trained, updates), frozen)
    metrics = {"loss": loss, "gradient_norm": norm, "skipped": 1.0 - finite, "learning_rate": rate, **aux}
    return with_target(stage, advanced(state, stage.training, finite, params, opt_state, params), finite), metrics


def jit_train_step(stage: Stage, mesh: Mesh) -> jax.stages.Wrapped:
    """The step `(state, batch) -> (state, metrics)` jitted for a mesh, to be called or lowered with the mesh in
    context; the state is donated. Weights that are not trained are one more argument (`perceptual.abstract_fixed`)."""
    shardings = jax.tree.map(lambda a: a.sharding, abstract_state(stage, mesh))
    unroll = mesh.devices.flat[0].platform == "cpu"
    return jax.jit(lambda *arguments: train_step(stage, *arguments, unroll=unroll), donate_argnums=0,
                   in_shardings=(shardings, batch_sharding(mesh), *fixed_shardings(stage, mesh)),
                   out_shardings=(shardings, NamedSharding(mesh, P())), compiler_options=compiler_options(mesh))


def compile_train_step(
    stage: Stage, mesh: Mesh, fixed: tuple[Any, ...] = (), compile_step: CompileStep | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """`jit_train_step` called with the mesh in context, for batches of one shape; the first call compiles it, and warns
    where the compiler does not gather split parameters as it should. `fixed` are weights that are not trained, of
    a latent stage's autoencoder or of a distance, which are placed here. `compile_step` calls the compiler that it is
    given, and may refuse what comes of it."""
    program = jit_train_step(stage, mesh)
    fixed = jax.device_put(fixed, fixed_shardings(stage, mesh))
    compiled = None

    def call(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        nonlocal compiled
        if compiled is None:
            lowered = program.lower(state, batch, *fixed)
            compiled = lowered.compile() if compile_step is None else compile_step(mesh, lowered.compile)
            for line in check_gathers(compiled.as_text(), mesh) if split_axes(mesh) else ():  # the text is long
                logger.warning(line)
        return compiled(state, batch, *fixed)

    return _under(mesh, call)


def compile_validation(
    stage: Stage, mesh: Mesh, fixed: tuple[Any, ...] = ()
) -> Callable[[Any, Batch, PRNGKeyArray], Array]:
    """Loss of given parameters of the network on a batch, with the given key and without dropout, jitted for a mesh;
    `fixed` as in `compile_train_step`."""
    params = parameter_shardings(network_shapes(stage), mesh)
    whole = NamedSharding(mesh, P())
    weights = weight_shardings(stage.latent, mesh)
    loss = jax.jit(lambda p, batch, key, *fixed: stage_loss(stage, p, batch, key, *fixed, train=False)[0],
                   in_shardings=(params, batch_sharding(mesh), whole, *weights), out_shardings=whole,
                   compiler_options=compiler_options(mesh))
    fixed = jax.device_put(fixed, weights)
    return _under(mesh, lambda *arguments: loss(*arguments, *fixed))


def _under(mesh: Mesh, function: Callable) -> Callable:
    """The function called with the mesh in context, where `shard` looks for it."""

    def call(*arguments: Any) -> Any:
        with jax.set_mesh(mesh):
            return function(*arguments)

    return call
