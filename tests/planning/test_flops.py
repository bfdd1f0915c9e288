"""The FLOP counter against counts by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from vdm_jax.attention import Causal, ExtraKeys, Full, SparseCausal, Spatial, Temporal, WithExtraKeys, attend
from vdm_jax.attention.counting import counted
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import Heun
from vdm_jax.diffusion.schedules import FlowSchedule
from vdm_jax.networks.config import Level, SelfAttention, UNet
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.planning.flops import count, network_forward, remat_choices, sampling_work, training_work
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Stage, VideoSpec
from vdm_jax.training.state import abstract_state


def counts(function, *shapes):
    return count(jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).jaxpr)


def convolve(x, kernel, stride=1, groups=1):
    return lax.conv_general_dilated(x, kernel, (stride,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
                                    feature_group_count=groups)


CASES = {
    "dense": (lambda x, w: x @ w, [(5, 7), (7, 11)], (2 * 5 * 7 * 11, 0)),
    "batched": (lambda a, b: jnp.einsum("bqd,bkd->bqk", a, b), [(3, 4, 8), (3, 6, 8)], (2 * 3 * 4 * 6 * 8, 0)),
    "convolution": (convolve, [(2, 8, 8, 5), (3, 3, 5, 7)], (0, 2 * 2 * 8 * 8 * 9 * 5 * 7)),
    "stride": (lambda x, k: convolve(x, k, 2), [(2, 8, 8, 5), (3, 3, 5, 7)], (0, 2 * 2 * 4 * 4 * 9 * 5 * 7)),
    "groups": (lambda x, k: convolve(x, k, groups=2), [(2, 8, 8, 6), (3, 3, 3, 4)], (0, 2 * 2 * 8 * 8 * 9 * 3 * 4)),
    "scan": (lambda x, w: lax.scan(lambda c, _: (c @ w, None), x, None, length=6)[0], [(3, 4), (4, 4)],
             (6 * 2 * 3 * 4 * 4, 0)),
    "cond": (lambda x, w: lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w @ w), [(3, 4), (4, 4)],
             (2 * 2 * 3 * 4 * 4, 0)),
    "jit and remat": (lambda x, w: jax.jit(jax.checkpoint(lambda a: jnp.tanh(a @ w)))(x), [(3, 4), (4, 4)],
                      (2 * 3 * 4 * 4, 0)),
}


@pytest.mark.parametrize("case", CASES)
def test_products_and_convolutions(case):
    function, shapes, expected = CASES[case]
    assert counts(function, *shapes) == expected


def test_what_runs_on_every_device_counts_on_each():
    mesh = Mesh(np.array(jax.devices()), ("x",))
    whole = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(P("x"), P()), out_specs=P("x"))
    assert counts(whole, (16, 4), (4, 4)) == (2 * 16 * 4 * 4, 0)


VISIBLE = {Full(): 12 * 12, Spatial(): 3 * 4 * 4, Temporal(): 4 * 3 * 3, Causal(): (1 + 2 + 3) * 16}


@pytest.mark.parametrize("pattern", VISIBLE, ids=repr)
def test_attention_counts_what_the_pattern_shows(pattern):
    x = jax.ShapeDtypeStruct((2, 3, 2, 2, 5, 8), jnp.float32)
    with counted() as calls:
        out = jax.eval_shape(lambda q: attend(q, q, q, pattern=pattern, kernel="xla"), x)
    assert out.shape == x.shape
    (call,) = calls
    assert call.flops == 2 * 2 * 2 * 5 * 8 * VISIBLE[pattern]
    rows = {Spatial(): 4, Temporal(): 3}.get(pattern, 12)
    assert call.computed == 2 * 2 * 2 * 5 * 8 * 12 * rows  # the dense kernel also computes what it hides


def test_blockwise_kernels_compute_what_is_visible_and_outside_tokens_are_added():
    x = jnp.zeros((1, 4, 2, 2, 1, 8))
    extra = ExtraKeys(jnp.zeros((1, 1, 7, 1, 8)), jnp.zeros((1, 1, 7, 1, 8)))
    with counted() as calls:
        attend(x, x, x, pattern=SparseCausal(), kernel="chunked")
        attend(x, x, x, pattern=WithExtraKeys(inner=Spatial(), mode="append"), kernel="chunked", extra_keys=extra)
        attend(x, x, x, pattern=WithExtraKeys(inner=Spatial(), mode="replace"), kernel="chunked", extra_keys=extra)
    sparse, appended, replaced = calls
    assert sparse.flops == sparse.computed < 4 * 8 * 16 * 16
    assert appended.flops == 4 * 8 * 16 * (4 + 7) and replaced.flops == 4 * 8 * 16 * 7


def test_outside_of_counting_attention_computes():
    x = jnp.ones((1, 2, 1, 1, 1, 4))
    assert float(attend(x, x, x, pattern=Full()).sum()) == pytest.approx(8)


def network(**options):
    level = Level(channels=8, blocks=1, mixers=(SelfAttention(pattern=Full(), head_dim=4, position="none"),))
    unet = UNet(levels=(level,), embedding_channels=16, groups=2, **options)
    return Stage(name="s", video=VideoSpec(frames=2, height=4, width=4), network=unet, process=Process())


def by_hand(batch, frames=2, side=4, channels=8):
    """A network of one level: down, two in the middle, two up with concatenated skips."""
    pixels = batch * frames * side * side
    convolutions = [9 * 3 * channels, 9 * channels * 3]  # stem and output
    for block in ("down", "middle", "middle", "up", "up"):
        wide = 2 * channels if block == "up" else channels
        convolutions += [9 * wide * channels, 9 * channels * channels]
    shortcuts = 2 * 2 * channels * channels  # 1 x 1 x 1, which run as matrix products
    attention = [4 * channels * channels] * 3  # query, key, value and output
    vectors = batch * (16 * 16 + 16 * 16 + 5 * 16 * 2 * channels)  # level, hidden layer, modulations
    tokens = frames * side * side
    return (2 * (pixels * (sum(attention) + shortcuts) + vectors), 2 * pixels * sum(convolutions),
            3 * batch * 4 * tokens**2 * channels)


def test_a_whole_network():
    stage, mesh = network(), make_mesh(MeshSpec(), jax.devices()[:1])
    params = abstract_state(stage, mesh).params
    batch = {"video": jax.ShapeDtypeStruct((3, 2, 4, 4, 3), jnp.uint8)}
    forward = network_forward(stage, batch, params, mesh)
    assert (forward.dense, forward.convolution, forward.attention) == by_hand(3)
    work = training_work(stage, batch, params, mesh)
    assert work.model == 3 * sum(by_hand(3))
    full = "full" if "full" in remat_choices() else True
    again = training_work(dataclasses.replace(stage, network=dataclasses.replace(stage.network, remat=full)), batch,
                          params, mesh)
    assert again.model == work.model
    assert again.computed - work.computed == forward.model - forward.attention + forward.attention_computed


def test_sampling_counts_every_evaluation_and_both_halves_of_guidance(tiny):
    stage, mesh = tiny.stages[0], make_mesh(MeshSpec(), jax.devices()[:1])
    params = abstract_state(stage, mesh).params
    batch = {"video": jax.ShapeDtypeStruct((2, 4, 16, 16, 3), jnp.uint8),
             "tokens": jax.ShapeDtypeStruct((2, 12), jnp.int32)}
    once = network_forward(stage, batch, params, mesh).model
    plain = sampling_work(stage, Sampling(steps=5), batch, params, mesh)
    assert (plain.model, plain.evaluations) == (5 * once, 5)
    guided = sampling_work(stage, Sampling(steps=5, guidance=2.0), batch, params, mesh)
    assert guided.model == 2 * plain.model
    assert sampling_work(stage, Sampling(steps=5, sampler=Heun()), batch, params, mesh).evaluations == 9


def test_both_experts_count_in_training_and_one_in_sampling():
    """A batch of training has noise levels of both, one of sampling has one level."""
    one = VideoTransformer(out_channels=3, width=12, heads=2, hidden=16, layers=1, level_channels=8,
                           level_encoding="flow")
    mesh, batch = make_mesh(MeshSpec(), jax.devices()[:1]), {"video": jax.ShapeDtypeStruct((2, 2, 4, 4, 3), jnp.uint8)}

    def works(spec):
        stage = Stage(name="s", video=VideoSpec(frames=2, height=4, width=4), network=spec,
                      process=Process(schedule=FlowSchedule(), prediction="flow"), sampling=Sampling(steps=5))
        params = abstract_state(stage, mesh).params
        return training_work(stage, batch, params, mesh), sampling_work(stage, stage.sampling, batch, params, mesh)

    (trained, sampled), (both, either) = works(one), works(dataclasses.replace(one, boundary=0.875))
    assert trained.forward.attention > 0
    assert (both.forward.dense, both.forward.attention) == (2 * trained.forward.dense, 2 * trained.forward.attention)
    assert (both.model, both.computed) == (2 * trained.model, 2 * trained.computed)
    assert (either.model, either.computed) == (sampled.model, sampled.computed)
