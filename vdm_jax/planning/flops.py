"""FLOPs of a stage, counted from its traced network: 2 per multiply-add of matrix products, convolutions and attention.

Products and convolutions are read from the jaxpr, with loops as often as they run; attention is counted from what its
pattern shows, whatever kernel computes it (`attention/counting.py`). Additions, norms and activations are left out, as
is usual for model FLOPs: they cost memory traffic, not matrix units.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.sharding import Mesh

from vdm_jax.attention.counting import AttentionCall, counted
from vdm_jax.diffusion.caching import keeping
from vdm_jax.diffusion.windows import window_starts
from vdm_jax.generation.one_stage import estimates_of
from vdm_jax.networks.config import UNet
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.skips import Deep
from vdm_jax.stages.inputs import training_inputs
from vdm_jax.stages.latent import abstract_weights, decode
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Stage
from vdm_jax.training.perceptual import abstract_fixed, perceptual, perceptual_distance

# Backward over forward: matrix products and convolutions give two gradients. Attention recomputes its scores: five
# products against two (Dao 2023, 2307.08691), where the kernel has not kept them.
BACKWARD, ATTENTION_BACKWARD = 2.0, 2.5
METHOD = ("2 per multiply-add of matrix products, convolutions (from the traced network, loops as often as they run) "
          "and attention (visible pairs of the pattern, whatever the kernel); model: forward, three times forward for "
          "training; computed: with recomputation, and with the pairs that a dense kernel computes and masks")


@dataclasses.dataclass(frozen=True)
class Forward:
    """FLOPs of one evaluation of the network for a whole batch, on all devices."""

    dense: int
    convolution: int
    attention: int  # visible pairs
    attention_computed: int  # pairs that the kernels compute
    attention_recomputed: int  # of those, in kernels that recompute their scores in the backward pass

    @property
    def model(self) -> int:
        """What the definition of the network asks for."""
        return self.dense + self.convolution + self.attention


@dataclasses.dataclass(frozen=True)
class Work:
    """FLOPs of one call of a program, on all devices."""

    forward: Forward  # one evaluation
    evaluations: int  # of the network
    model: float  # utilisation is measured against this
    computed: float  # what the devices do
    least: float  # what they do in any case: less than computed where only a part is trained
    autoencoder: int = 0  # of these, by that of a latent stage: encoding in training, decoding in sampling

    def to_data(self) -> dict[str, Any]:
        """Plain data for a report."""
        return {"method": METHOD, "model": self.model, "computed": self.computed, "evaluations": self.evaluations,
                "autoencoder": self.autoencoder, "forward": dataclasses.asdict(self.forward)}


def training_work(stage: Stage, batch: dict[str, Any], params: Any, mesh: Mesh) -> Work:
    """Work of one train step on a global `batch` (shapes). Of two experts both count, as a batch has noise levels of
    each."""
    forward = network_forward(stage, batch, params, mesh)
    products = forward.dense + forward.convolution
    again = {"none": (0, 0), "dots": (0, 1)}.get(stage.network.remat, (1, 1))  # products with weights, attention
    computed = (1 + again[0]) * products + (1 + again[1]) * forward.attention_computed + BACKWARD * (
        products + forward.attention_computed - forward.attention_recomputed
    ) + ATTENTION_BACKWARD * forward.attention_recomputed
    least = products + forward.attention_computed if stage.training.trained else computed
    coder = 0
    if stage.latent is not None:
        coder = _flops(lambda b, *weights: training_inputs(stage, b, jax.random.key(0), *weights)[0], mesh, batch,
                       *abstract_weights(stage.latent))
    evaluations = 0 if stage.training.distillation is None else stage.training.distillation.evaluations
    distance = _distance_flops(stage, batch, mesh)
    others = evaluations * (products + forward.attention_computed) + coder + distance  # without gradient
    model = (3 + evaluations) * forward.model + coder + distance
    return Work(forward, 1, model, computed + others, least + others, coder)


def _distance_flops(stage: Stage, batch: dict[str, Any], mesh: Mesh) -> int:
    """Of LPIPS as the distance of a distillation: of both videos, and backwards to one of them."""
    spec = perceptual(stage)
    if spec is None:
        return 0

    def compared(batch: Any, weights: Any) -> Any:
        x = training_inputs(stage, batch, jax.random.key(0))[0]
        return perceptual_distance(spec, weights, x, x)

    return 3 * _flops(compared, mesh, batch, *abstract_fixed(stage, mesh)) // 2


def sampling_work(stage: Stage, sampling: Sampling, batch: dict[str, Any], params: Any, mesh: Mesh) -> Work:
    """Work of sampling a whole batch: every evaluation of the network, both halves of guidance, every window; decoding
    of latents. Of two experts one counts, as all videos are at one noise level. With a cache the steps that reuse
    features count as what they compute; a sampler's further evaluations of a step as those of all steps alike."""
    coder = 0
    if stage.latent is not None:
        z = jax.ShapeDtypeStruct((batch["video"].shape[0], *stage.shape), "float32")
        coder = _flops(lambda z, weights: decode(stage.latent, weights, z), mesh, z, *abstract_weights(stage.latent))
    if (count := estimates_of(stage, sampling)) > 1:  # all in one batch
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count * x.shape[0], *x.shape[1:]), x.dtype), batch)
    evaluations, frames = sampling.evaluations(stage.shape[0]), None
    if (windows := sampling.windows) is not None:
        evaluations *= len(window_starts(stage.shape[0], windows.frames, windows.overlap))
        frames = windows.frames
    network = stage.network
    if network.teacher_forcing:  # there is no clean clip
        network = dataclasses.replace(network, teacher_forcing=False)
    if getattr(network, "boundary", None) is not None:
        network, params = network.expert, params["low"]
    seen = dataclasses.replace(
        stage, training=dataclasses.replace(stage.training, frames=frames, frame_rates=None), network=network,
        sampling=dataclasses.replace(sampling, by_blocks=False, high_noise_guidance=None))
    forward = network_forward(seen, batch, params, mesh)
    parts, steps = [(1.0, forward)], sampling.sampler_steps(stage.shape[0])
    if sampling.cache is not None:
        share = sampling.cache.count(steps) / steps
        reusing = network_forward(seen, batch, params, mesh, branch=sampling.cache.branch)
        parts = [(share, forward), (1 - share, reusing)]
    model = evaluations * sum(share * part.model for share, part in parts) + coder
    computed = evaluations * sum(share * (part.dense + part.convolution + part.attention_computed)
                                 for share, part in parts) + coder
    return Work(forward, evaluations, model, computed, computed, coder)


def recomputes(remat: Any) -> bool:
    """Whether a remat setting recomputes anything: a flag, or a policy's name."""
    return remat not in (False, None, "none", "nothing", "off")


def remat_choices() -> tuple[Any, ...]:
    """Settings of rematerialisation in the order of the config's type, without recomputation first."""
    hint = typing.get_type_hints(UNet)["remat"]
    return (False, True) if hint is bool else typing.get_args(hint)


def network_forward(
    stage: Stage, batch: dict[str, Any], params: Any, mesh: Mesh, *, branch: int | None = None
) -> Forward:
    """One evaluation of the network for a batch of the data pipeline (shapes), traced for the devices of a mesh; with a
    `branch` one that has the features inside that skip connection already."""
    images = batch["images"].shape[1] if "images" in batch else 0
    x, conditioning = jax.eval_shape(lambda b, key, *autoencoder: training_inputs(stage, b, key, *autoencoder)[:2],
                                     batch, jax.eval_shape(lambda: jax.random.key(0)), *abstract_weights(stage.latent))
    level = jax.ShapeDtypeStruct(x.shape[:1], "float32")
    module = network_module(stage.network)

    def network(params: Any, z: Any, logsnr: Any, conditioning: Any, through: Any = None) -> Any:
        deep = {} if through is None else {"deep": Deep(branch, through)}
        return module.apply({"params": params}, z, logsnr, conditioning, images=images, **deep)

    def reusing(features: Any, *inputs: Any) -> Any:
        return network(*inputs, through=lambda make: features)

    function, inputs = network, (params, x, level, conditioning)
    if branch is not None:
        with jax.set_mesh(mesh):
            features = jax.eval_shape(lambda *inputs: keeping(lambda through: network(*inputs, through))[1], *inputs)
        function, inputs = reusing, (features, *inputs)
    with jax.set_mesh(mesh), counted() as calls:
        traced = jax.make_jaxpr(function)(*inputs)
    dense, convolution = count(traced.jaxpr)
    return Forward(dense, convolution, *_attention(calls))


def _flops(function: Callable[..., Any], mesh: Mesh, *inputs: Any) -> int:
    """FLOPs of a function without gradients, with visible pairs of attention."""
    with jax.set_mesh(mesh), counted() as calls:
        traced = jax.make_jaxpr(function)(*inputs)
    return sum(count(traced.jaxpr)) + sum(call.flops for call in calls)


def _attention(calls: list[AttentionCall]) -> tuple[int, int, int]:
    recomputed = sum(call.computed for call in calls if call.kernel != "xla")
    return sum(call.flops for call in calls), sum(call.computed for call in calls), recomputed


def count(jaxpr: core.Jaxpr) -> tuple[int, int]:
    """FLOPs `(matrix products, convolutions)` of a jaxpr. A scan counts as often as it runs, a branch as its costliest
    one, a loop of unknown length once, and what runs on every device of a `shard_map` on each of them."""
    dense = convolution = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            dense += _dot(equation)
        elif name == "conv_general_dilated":
            convolution += _convolution(equation)
        else:
            inner = [count(j) for value in equation.params.values() for j in _jaxprs(value)]
            if name == "cond":
                inner = [max(inner, key=sum)] if inner else []
            times = {"scan": equation.params.get("length", 1), "shard_map": _parts(equation)}.get(name, 1)
            dense += times * sum(d for d, _ in inner)
            convolution += times * sum(c for _, c in inner)
    return dense, convolution


def _dot(equation: Any) -> int:
    left, right = (v.aval.shape for v in equation.invars)
    (contracted, _), (batch, _) = equation.params["dimension_numbers"]
    summed = math.prod(left[i] for i in contracted)
    shared = math.prod(left[i] for i in batch)
    return 2 * math.prod(left) * math.prod(right) // (summed * shared) if summed and shared else 0


def _convolution(equation: Any) -> int:
    kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(out) * math.prod(kernel) // outputs // equation.params["batch_group_count"]


def _parts(equation: Any) -> int:
    if equation.primitive.name != "shard_map":
        return 1
    mesh, manual = equation.params["mesh"], equation.params.get("manual_axes")
    return math.prod(size for axis, size in mesh.shape.items() if manual is None or axis in manual)


def _jaxprs(value: Any) -> list[core.Jaxpr]:
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    return [j for item in value for j in _jaxprs(item)] if isinstance(value, tuple | list) else []
