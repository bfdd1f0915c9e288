"""One training step as a pure function of state and batch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PRNGKeyArray

from vdm_jax.conditions.conditioning import Conditioning, conditions_of, drop_named, drop_text
from vdm_jax.diffusion.arrays import Level
from vdm_jax.networks.kinds import network_module
from vdm_jax.parallel.compiling import compiler_options
from vdm_jax.parallel.gathers import check_gathers, split_axes
from vdm_jax.parallel.rules import batch_sharding, shard
from vdm_jax.stages.inputs import training_inputs
from vdm_jax.stages.latent import weight_shardings
from vdm_jax.stages.stage import Stage
from vdm_jax.training.state import TrainState, abstract_state, advanced, make_optimizer, rate_of_update
from vdm_jax.training.trainable import merged, split

logger = logging.getLogger(__name__)
Batch = dict[str, Array]
CompileStep = Callable[[Mesh, Callable[[], jax.stages.Compiled]], jax.stages.Compiled]


class Drawn(NamedTuple):
    """Everything about a batch that does not depend on the network, with all that a step draws except the network's
    dropout."""

    x: Float[Array, "B T H W C"]  # target videos or latents: windows, parts and samples of moments are drawn
    conditioning: Conditioning  # augmentation level and noise, frame mask, noise of the first frame; text dropped
    images: int  # appended to each clip
    logsnr: Level  # training level of each example, or of each of its frames
    noise: Float[Array, "B T H W C"]
    dropout_key: PRNGKeyArray  # of the network's dropout layers


def draw(
    stage: Stage, batch: Batch, key: PRNGKeyArray, autoencoder: Any = None, *, train: bool = True
) -> Drawn:
    """The draws of one step, each from a key of its own: no two of them are correlated, within a batch or over
    steps."""
    input_key, text_key, loss_key, dropout_key = jax.random.split(key, 4)
    x, conditioning, images = training_inputs(stage, batch, input_key, autoencoder)
    if train:
        conditioning = drop_text(text_key, conditioning, stage.training.text_dropout)
        conditioning = drop_named(jax.random.fold_in(text_key, 1), conditioning,
                                  [(entry.names, entry.probability) for entry in stage.training.dropout])
    return Drawn(x, conditioning, images, *stage.process.draw(loss_key, x.shape), dropout_key)


def stage_loss(
    stage: Stage, params: Any, batch: Batch, key: PRNGKeyArray, autoencoder: Any = None, *, train: bool = True
) -> tuple[Array, dict[str, Array]]:
    """Mean loss of a batch, and scalars to log. The key decides noise levels, noise, augmentation and dropout;
    `autoencoder` are the weights of a latent stage's, which are not trained."""
    batch = {name: shard(x, "batch", *[None] * (x.ndim - 1)) for name, x in batch.items()}
    x, conditioning, images, levels, noise, dropout_key = draw(stage, batch, key, autoencoder, train=train)
    module = network_module(stage.network)

    def network(z: Array, logsnr: Array) -> Array:
        return module.apply({"params": params}, z, logsnr, conditioning, train=train, images=images,
                            rngs={"dropout": dropout_key})

    mask = None
    for condition in conditions_of(stage.network):
        if (part := condition.loss_mask(stage.network, conditioning)) is not None:
            mask = part if mask is None else mask * part
    losses, aux = stage.process.loss(network, x, None, mask=mask, logsnr=levels, noise=noise)
    return losses.mean(), {"x_mse": aux["x_mse"].mean()}


def gradients(
    stage: Stage, params: Any, batch: Batch, key: PRNGKeyArray, autoencoder: Any = None, *, unroll: bool
) -> tuple[Array, dict[str, Array], Any]:
    """Loss, scalars and gradients of a batch (with respect to what is trained), accumulated over the micro-batches the
    stage asks for.

    Micro-batches take every n-th row, so that each keeps its rows spread over the devices. `unroll` is for CPU, where
    XLA runs gradients of convolutions inside a loop 13-40 times slower.
    """
    params, frozen = split(params, stage.training.trainable)
    grad = jax.value_and_grad(lambda p, b, k: stage_loss(stage, merged(p, frozen), b, k, autoencoder), has_aux=True)
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
    stage: Stage, state: TrainState, batch: Batch, autoencoder: Any = None, *, unroll: bool = True
) -> tuple[TrainState, dict[str, Array]]:
    """Gradient, clipping, AdamW of what is trained, EMA. A step whose loss or gradient is not finite changes nothing
    but the counter."""
    key = jax.random.fold_in(state.key, state.step)
    loss, aux, grads = gradients(stage, state.params, batch, key, autoencoder, unroll=unroll)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    trained, frozen = split(state.params, stage.training.trainable)
    rate = rate_of_update(stage.training, state.opt_state)
    updates, opt_state = make_optimizer(stage.training).update(grads, state.opt_state, trained)
    params = merged(optax.apply_updates(trained, updates), frozen)
    metrics = {"loss": loss, "gradient_norm": norm, "skipped": 1.0 - finite, "learning_rate": rate, **aux}
    return advanced(state, stage.training, finite, params, opt_state, params), metrics


def jit_train_step(stage: Stage, mesh: Mesh) -> jax.stages.Wrapped:
    """The step `(state, batch) -> (state, metrics)` jitted for a mesh, to be called or lowered with the mesh in
    context; the state is donated. The weights of a latent stage's autoencoder are one more argument."""
    shardings = jax.tree.map(lambda a: a.sharding, abstract_state(stage, mesh))
    unroll = mesh.devices.flat[0].platform == "cpu"
    return jax.jit(lambda *arguments: train_step(stage, *arguments, unroll=unroll), donate_argnums=0,
                   in_shardings=(shardings, batch_sharding(mesh), *weight_shardings(stage.latent, mesh)),
                   out_shardings=(shardings, NamedSharding(mesh, P())), compiler_options=compiler_options(mesh))


def compile_train_step(
    stage: Stage, mesh: Mesh, autoencoder: tuple[Any, ...] = (), compile_step: CompileStep | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """`jit_train_step` called with the mesh in context, for batches of one shape; the first call compiles it, and warns
    where the compiler does not gather split parameters as it should. `autoencoder` are the weights of a latent stage's
    (`autoencoders.load_autoencoder`), which are placed here. `compile_step` calls the compiler that it is given, and
    may refuse what comes of it."""
    program = jit_train_step(stage, mesh)
    autoencoder = jax.device_put(autoencoder, weight_shardings(stage.latent, mesh))
    compiled = None

    def call(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        nonlocal compiled
        if compiled is None:
            lowered = program.lower(state, batch, *autoencoder)
            compiled = lowered.compile() if compile_step is None else compile_step(mesh, lowered.compile)
            for line in check_gathers(compiled.as_text(), mesh) if split_axes(mesh) else ():  # the text is long
                logger.warning(line)
        return compiled(state, batch, *autoencoder)

    return _under(mesh, call)


def compile_validation(
    stage: Stage, mesh: Mesh, autoencoder: tuple[Any, ...] = ()
) -> Callable[[Any, Batch, PRNGKeyArray], Array]:
    """Loss of given parameters on a batch, with the given key and without dropout, jitted for a mesh; `autoencoder` as
    in `compile_train_step`."""
    params = jax.tree.map(lambda a: a.sharding, abstract_state(stage, mesh).params)
    whole = NamedSharding(mesh, P())
    weights = weight_shardings(stage.latent, mesh)
    loss = jax.jit(lambda p, batch, key, *autoencoder: stage_loss(stage, p, batch, key, *autoencoder, train=False)[0],
                   in_shardings=(params, batch_sharding(mesh), whole, *weights), out_shardings=whole,
                   compiler_options=compiler_options(mesh))
    autoencoder = jax.device_put(autoencoder, weights)
    return _under(mesh, lambda *arguments: loss(*arguments, *autoencoder))


def _under(mesh: Mesh, function: Callable) -> Callable:
    """The function called with the mesh in context, where `shard` looks for it."""

    def call(*arguments: Any) -> Any:
        with jax.set_mesh(mesh):
            return function(*arguments)

    return call
