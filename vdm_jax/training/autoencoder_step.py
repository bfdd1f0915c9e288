"""One training step of an autoencoder as a pure function of state and batch: reconstruction, LPIPS, KL, and from some
step on patch discriminators (the losses are written out in `stages/autoencoding.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PRNGKeyArray

from vdm_jax.metrics.detectors import lpips
from vdm_jax.networks.autoencoders.kl import Moments
from vdm_jax.networks.discriminator import PatchDiscriminator, hinge_loss
from vdm_jax.parallel.compiling import compiler_options
from vdm_jax.parallel.rules import batch_sharding, shard
from vdm_jax.stages.autoencoding import AutoencoderLoss, AutoencoderStage
from vdm_jax.stages.inputs import target_video
from vdm_jax.training.state import TrainState, abstract_state, advanced, make_optimizer, rate_of_update, trained_part
from vdm_jax.training.trainable import merged, split
from vdm_jax.weights import model_kinds

Video = Float[Array, "B T H W 3"]
Scalars = dict[str, Array]
LARGEST_WEIGHT = 1e4  # of the adaptive ones


def reconstruction_loss(
    spec: AutoencoderLoss, x: Video, y: Video, logvar: Float[Array, ""], perceptual: Any
) -> tuple[Float[Array, ""], Scalars]:
    """The first line of the losses: negative log-likelihood of `x` given its reconstruction `y`, per frame.

    `perceptual` are the parameters of LPIPS, not read where it has no weight. Also gives scalars to log.
    """
    error = jnp.abs(x - y) if spec.reconstruction == "l1" else jnp.square(x - y)
    scalars = {"reconstruction": error.mean(), "psnr": psnr(x, y).mean(), "lpips": jnp.zeros(())}
    if spec.perceptual_weight:
        frames = (video.reshape(-1, *video.shape[2:]) for video in (x, y))
        distance = lpips.distance(perceptual, *frames, spec.perceptual)
        error = error + spec.perceptual_weight * distance.reshape(*x.shape[:2], 1, 1, 1)
        scalars["lpips"] = distance.mean()
    return (error / jnp.exp(logvar) + logvar).sum((2, 3, 4)).mean(), scalars


def psnr(x: Video, y: Video) -> Float[Array, "B T"]:
    """Peak signal-to-noise ratio of frames in [-1, 1], dB."""
    error = jnp.square(x - jnp.clip(y, -1.0, 1.0)).mean((2, 3, 4))
    return 10 * jnp.log10(4.0 / jnp.maximum(error, 1e-12))


def divergence_per_frame(moments: Moments, frames: int) -> Float[Array, ""]:
    """KL divergence of a clip's latents from the standard normal distribution, nats, by its number of frames."""
    return moments.divergence().sum((1, 2, 3, 4)).mean() / frames


def scores(spec: AutoencoderLoss, discriminators: Any, video: Video) -> list[Array]:
    """What each discriminator says of a video."""
    return [PatchDiscriminator(d).apply({"params": discriminators[str(i)]}, video)
            for i, d in enumerate(spec.discriminators)]


def adversarial_loss(spec: AutoencoderLoss, discriminators: Any, y: Video) -> Float[Array, ""]:
    """What the autoencoder minimises of the scores of its reconstructions."""
    return -sum(score.mean() for score in scores(spec, discriminators, y)) / len(spec.discriminators)


def discriminator_loss(spec: AutoencoderLoss, discriminators: Any, x: Video, y: Video) -> Float[Array, ""]:
    """What the discriminators minimise, each by itself."""
    return sum(hinge_loss(real, fake) for real, fake in
               zip(scores(spec, discriminators, x), scores(spec, discriminators, y), strict=True))


def adaptive_weight(reconstruction: Array, adversarial: Array) -> Float[Array, ""]:
    """Weight by which the second gradient is as long as the first, from both at the last kernel."""
    ratio = jnp.linalg.norm(reconstruction.ravel()) / (jnp.linalg.norm(adversarial.ravel()) + 1e-4)
    return jnp.clip(ratio, 0.0, LARGEST_WEIGHT)


def autoencoder_gradients(
    stage: AutoencoderStage, params: Mapping[str, Any], x: Video, key: PRNGKeyArray, perceptual: Any, *,
    adversarial: bool
) -> tuple[Array, Scalars, Any, Any]:
    """Loss and scalars; gradients of the autoencoder's and of the discriminators' losses, both at the given parameters
    and for the same reconstructions.

    The reverse pass through the autoencoder is linear in what comes from its losses: its last layer alone is gone
    through for the adaptive weight, and the whole once.
    """
    spec, trained = stage.training.loss, trained_part(stage, params)
    frozen = split(params["autoencoder"], stage.training.trainable)[1]
    module = model_kinds.module(stage.network)

    def reconstruct(part: Any) -> tuple[Video, Array]:
        variables = {"params": merged(part, frozen)}
        moments = module.apply(variables, x, method="encode")
        latents = moments.sample(jax.random.normal(key, moments.mean.shape))
        return module.apply(variables, latents, method="decode"), divergence_per_frame(moments, x.shape[1])

    (y, kl), pull = jax.vjp(reconstruct, trained["autoencoder"])
    (nll, scalars), (change, logvar_gradient) = jax.value_and_grad(
        lambda y, logvar: reconstruction_loss(spec, x, y, logvar, perceptual), argnums=(0, 1), has_aux=True)(
            y, params["logvar"])
    none = jnp.zeros(())
    weight = generator = judges = none
    judge_gradients = jax.tree.map(jnp.zeros_like, params["discriminators"])
    if adversarial:
        generator, wanted = jax.value_and_grad(lambda y: adversarial_loss(spec, params["discriminators"], y))(y)
        at_last = (reduce(lambda tree, name: tree[name], stage.network.last_kernel, pull((c, none))[0])
                   for c in (change, wanted))
        weight = spec.discriminator_weight * adaptive_weight(*at_last)
        change = change + weight * wanted
        judges, judge_gradients = jax.value_and_grad(
            lambda d: discriminator_loss(spec, d, x, jax.lax.stop_gradient(y)))(params["discriminators"])
    gradients = {"autoencoder": pull((change, jnp.float32(spec.kl_weight)))[0]}
    if spec.learned_logvar:
        gradients["logvar"] = logvar_gradient
    scalars = {**scalars, "kl": kl, "logvar": params["logvar"], "adaptive_weight": weight, "generator": generator,
               "discriminator": judges}
    return nll + spec.kl_weight * kl + weight * generator, scalars, gradients, judge_gradients


def autoencoder_step(
    stage: AutoencoderStage, state: TrainState, video: Array, perceptual: Any, *, adversarial: bool
) -> tuple[TrainState, Scalars]:
    """Gradients, both optimisers, EMA of the autoencoder. Without `adversarial` the discriminators stay as they are. A
    step whose loss or gradient is not finite changes nothing but the counter.

    Args:
      video: clips, uint8.
      perceptual: parameters of LPIPS, or None where it has no weight.
    """
    spec, params = stage.training, state.params
    x = target_video(shard(video, "batch", *[None] * 4), stage.video)
    loss, scalars, grads, judge_grads = autoencoder_gradients(
        stage, params, x, jax.random.fold_in(state.key, state.step), perceptual, adversarial=adversarial)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(judge_grads))
    optimizer, opt_state = make_optimizer(spec), dict(state.opt_state)
    rate = rate_of_update(spec, opt_state["autoencoder"])
    updates, opt_state["autoencoder"] = optimizer.update(grads, opt_state["autoencoder"], trained_part(stage, params))
    trained = optax.apply_updates(trained_part(stage, params), updates)
    new = {**params, **trained, "autoencoder": merged(
        trained["autoencoder"], split(params["autoencoder"], spec.trainable)[1])}
    if adversarial:
        judges = params["discriminators"]
        second = make_optimizer(spec, first=spec.loss.discriminator_start)  # both learning rates decay together
        updates, opt_state["discriminators"] = second.update(judge_grads, opt_state["discriminators"], judges)
        new["discriminators"] = optax.apply_updates(judges, updates)
    state = advanced(state, spec, finite, new, opt_state, new["autoencoder"])
    return state, {"loss": loss, "gradient_norm": norm, "skipped": 1.0 - finite, "learning_rate": rate, **scalars}


def compile_autoencoder_step(
    stage: AutoencoderStage, mesh: Mesh, perceptual: Any
) -> Callable[[int, TrainState, Array], tuple[TrainState, Scalars]]:
    """The step as a function of its number (from 1), state and clips on a mesh; the state is donated. There are two
    programs, without and with the discriminators; each compiles when it is first needed."""
    shardings = jax.tree.map(lambda a: a.sharding, abstract_state(stage, mesh))
    whole = NamedSharding(mesh, P())
    perceptual = jax.device_put(perceptual, whole)
    programs = {adversarial: jax.jit(
        lambda state, video, perceptual, adversarial=adversarial: autoencoder_step(
            stage, state, video, perceptual, adversarial=adversarial),
        donate_argnums=0, in_shardings=(shardings, batch_sharding(mesh), whole), out_shardings=(shardings, whole),
        compiler_options=compiler_options(mesh)) for adversarial in (False, True)}
    loss = stage.training.loss

    def call(step: int, state: TrainState, video: Array) -> tuple[TrainState, Scalars]:
        adversarial = bool(loss.discriminators) and step > loss.discriminator_start
        with jax.set_mesh(mesh):
            return programs[adversarial](state, video, perceptual)

    return call


def compile_reconstruction(
    stage: AutoencoderStage, mesh: Mesh, perceptual: Any
) -> Callable[[Any, Array], dict[str, Array]]:
    """Of parameters and clips on a mesh: `video` of the mean latents, `loss` (the first line of the losses, at the
    configured log-variance) and scalars, `mean` and `square` of the latents that training draws. All whole on every
    device."""
    params = jax.tree.map(lambda a: a.sharding, abstract_state(stage, mesh).ema)
    whole = NamedSharding(mesh, P())
    perceptual = jax.device_put(perceptual, whole)

    def run(params: Any, video: Array, perceptual: Any) -> dict[str, Array]:
        x, module = target_video(video, stage.video), model_kinds.module(stage.network)
        moments = module.apply({"params": params}, x, method="encode")
        y = module.apply({"params": params}, moments.mean, method="decode")
        spec = stage.training.loss
        loss, scalars = reconstruction_loss(spec, x, y, jnp.float32(spec.logvar), perceptual)
        square = (jnp.square(moments.mean) + jnp.exp(moments.logvar)).mean()
        return {"original": x, "video": y, "loss": loss, **scalars, "mean": moments.mean.mean(), "square": square,
                "kl": divergence_per_frame(moments, x.shape[1])}

    program = jax.jit(run, in_shardings=(params, batch_sharding(mesh), whole), out_shardings=whole,
                      compiler_options=compiler_options(mesh))

    def call(params: Any, video: Array) -> dict[str, Array]:
        with jax.set_mesh(mesh):
            return program(params, video, perceptual)

    return call


def perceptual_parameters(stage: AutoencoderStage) -> Any:
    """The parameters of LPIPS that a stage needs, or None. Raises `UserError` saying how to get them."""
    spec = stage.training.loss
    return lpips.parameters(spec.perceptual) if spec.perceptual_weight else None
