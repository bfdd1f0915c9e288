"""Sampling that keeps deep features of the network from step to step."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conditions.texts import text_conditioning
from tests.refusals import refused
from vdm_jax.commands.arguments import cache_plan
from vdm_jax.conditions.frame_masks import MaskedVideo
from vdm_jax.diffusion.caching import ByChange, Cache
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.generation.compiled import StepFunctions, of_any_steps, step_functions, stepwise_sampling
from vdm_jax.generation.one_stage import sample_keys, sample_stage
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.parallel.rules import parameter_shardings
from vdm_jax.planning.flops import count, network_forward, sampling_work
from vdm_jax.stages.options import Inpainting, Windows

TOKENS = jnp.array([[[2, 6, 5, 4, 0, 0]], [[3, 8, 0, 0, 0, 0]]])
KEYS = sample_keys(0, jnp.arange(2), 0)


@pytest.fixture(scope="module")
def guided(experiment, params):
    """The guided stage sampled by DDIM, its text, and a function from a plan to its videos."""
    stage = experiment.stage("base")
    sampling = dataclasses.replace(stage.sampling, sampler=DDIM(), steps=8, guidance=1.0)
    text = text_conditioning(TOKENS).replace(scalars={"fps": jnp.full(2, stage.video.fps)})

    def function(cache):
        spec = dataclasses.replace(sampling, cache=cache)
        return lambda: sample_stage(stage, spec, params["base"], KEYS, text)

    made = {}

    def videos(cache):
        if cache not in made:
            made[cache] = np.asarray(jax.jit(function(cache))())
        return made[cache]

    return dataclasses.replace(stage, sampling=sampling), text, function, videos


def test_the_error_grows_with_the_steps_that_reuse_features(guided):
    *_, videos = guided
    plain = videos(None)
    assert np.array_equal(videos(Cache(every=1)), plain)
    errors = [np.sqrt(np.mean((videos(Cache(every=n)) - plain) ** 2)) for n in (2, 8)]
    assert 1e-4 < errors[0] < errors[1]


def test_steps_that_reuse_features_are_compiled_without_the_deep_layers(guided, params):
    """The scan over steps has a branch with the FLOPs of the whole network (of both estimates), and one with those of
    its outermost blocks."""
    stage, _, function, _ = guided
    scan = next(e for e in jax.make_jaxpr(function(Cache(every=2)))().jaxpr.eqns if e.primitive.name == "scan")
    conds = [e for e in scan.params["jaxpr"].jaxpr.eqns if e.primitive.name == "cond"]
    cheap, whole = sorted(sum(count(branch.jaxpr)) for branch in max(
        (e.params["branches"] for e in conds), key=lambda branches: sum(sum(count(b.jaxpr)) for b in branches)))
    mesh = make_mesh(MeshSpec(data=1), jax.devices()[:1])
    batch = {"video": jax.ShapeDtypeStruct((2, *stage.video.shape), "uint8"),
             "tokens": jax.ShapeDtypeStruct((2, 6), "int32")}
    doubled = jax.tree.map(lambda x: jax.ShapeDtypeStruct((4, *x.shape[1:]), x.dtype), batch)
    full = network_forward(stage, doubled, params["base"], mesh)
    outer = network_forward(stage, doubled, params["base"], mesh, branch=0)
    assert outer.attention < full.attention and outer.dense < full.dense
    assert cheap < 0.8 * whole and whole >= full.dense + full.convolution
    assert whole - cheap >= full.dense + full.convolution - outer.dense - outer.convolution  # and products of attention
    cached = dataclasses.replace(stage.sampling, cache=Cache(steps=(0, 5)))
    plain, found = (sampling_work(stage, spec, batch, params["base"], mesh) for spec in (stage.sampling, cached))
    assert plain.model == 8 * full.model and found.model == pytest.approx(2 * full.model + 6 * outer.model)


def test_devices_share_the_features_as_they_share_the_videos(guided, params):
    """Step by step on two devices: the same videos, and features of both estimates that stay where they are made."""
    stage, text, _, videos = guided
    sampling = dataclasses.replace(stage.sampling, cache=Cache(steps=(0, 2, 4, 6)))  # every second one
    mesh = make_mesh(MeshSpec(data=2), jax.devices()[:2])
    shardings, seen = parameter_shardings(params["base"], mesh), []
    with jax.set_mesh(mesh):
        functions = step_functions(*of_any_steps(stage, sampling), mesh, shardings)
        whole = functions.advance

        class Watched:
            eval_shape = whole.eval_shape

            def __call__(self, *arguments):
                carry = whole(*arguments)
                seen.append(carry[2])
                return carry

        functions = StepFunctions(functions.prepare, functions.begin, Watched(), functions.precompute)
        function = stepwise_sampling(stage, sampling, mesh, shardings, functions=functions)
        made = function(jax.device_put(params["base"], shardings), KEYS, text, None, None)
    np.testing.assert_allclose(made, videos(Cache(every=2)), atol=1e-4)
    assert {(x.shape[0], x.sharding.shard_shape(x.shape)[0]) for x in seen} == {(4, 2)}
    assert whole._cache_size() == 1


@pytest.mark.parametrize(("change", "code", "named"), [
    ({"cache": Cache(branch=2)}, "Cache.branch", ("branch=2", "2 skip connections", "0 to 1")),
    ({"cache": Cache(steps=(0, 8))}, "Cache.steps", ("(0, 8)", "8 steps", "0 to 7")),
    ({"cache": Cache(), "windows": Windows(frames=1, overlap=0)}, "Sampling.cache", ("windows", "permitted: None"))])
def test_plans_that_do_not_fit_are_refused(guided, change, code, named):
    stage, *_ = guided
    with refused(code, *named):
        dataclasses.replace(stage, sampling=dataclasses.replace(stage.sampling, **change))


def test_networks_and_inpainting_without_features_to_keep_are_refused(guided, params):
    stage, text, function, _ = guided
    flat = dataclasses.replace(stage.network, resample_order="before")
    with refused("Sampling.cache", "UNet without skip connections", "permitted: None"):
        dataclasses.replace(stage, network=flat, sampling=dataclasses.replace(stage.sampling, cache=Cache()))
    masked = MaskedVideo(jnp.zeros((2, *stage.video.shape)), jnp.ones((2, 2, 1, 1, 1)))
    sampling = dataclasses.replace(stage.sampling, cache=Cache(), inpainting=Inpainting(method="reconstruction"))
    with refused("Sampling.cache", "reconstruction guidance", "permitted: None"):
        jax.eval_shape(lambda: sample_stage(stage, sampling, params["base"], KEYS, text, masked_video=masked))


def test_the_command_takes_one_number_the_steps_or_a_threshold():
    assert cache_plan(()) is None and cache_plan((3,)) == Cache(every=3) and cache_plan((0, 2)) == Cache(steps=(0, 2))
    assert cache_plan((), 0.2) == ByChange(threshold=0.2)
    with refused("--cache", "--cache=3", "--cache-threshold=0.2", "one of them"):
        cache_plan((3,), 0.2)
    for numbers, code in (((0,), "0"), ((1, 2), "(1, 2)")):
        with refused("--cache", f"--cache={' '.join(map(str, numbers))}", code, "permitted"):
            cache_plan(numbers)
