"""SparseCtrl: published sizes, what it begins as, sees and carries to other frames, its maps, and what is refused."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from tests.training.latents import AUTOENCODER, random_params
from vdm_jax.conditions.conditioning import CONDITIONS, Conditioning, Request, SampledVideos, TrainingClips
from vdm_jax.conditions.inputs import Input
from vdm_jax.conditions.low_resolution import LowResolution
from vdm_jax.conditions.sparse_control import drawn_frames
from vdm_jax.diffusion.process import Process
from vdm_jax.generation.prompts import requested_conditioning
from vdm_jax.networks import sparse_control as sc
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.latent_frames import Motion
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.planning.inputs import training_batch
from vdm_jax.stages.inputs import training_inputs
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.parameters import example_conditioning, initial_params
from vdm_jax.stages.stage import Stage, VideoSpec
from vdm_jax.training.init_from import planned
from vdm_jax.weights import model_kinds

UNET = LatentUNet(widths=(8,), blocks=1, attention=(False,), heads=(2,), only_cross_attention=(False,),
                  token_channels=6, groups=4, motion=Motion(heads=2, frames=4, groups=4))
SPEC = sc.sparse_control_of(UNET)
NETWORK = LatentNetwork(unet=UNET, conditions=(Input(name="sparse_frames", width=5),), control_nets=(SPEC,))
STAGE = Stage(name="base", video=VideoSpec(frames=4, height=8, width=8), process=Process(), network=NETWORK,
              latent=Latent(autoencoder=AUTOENCODER), sampling=Sampling(threshold=None))
MAPS = sc.sparse_control_of(UNET, channels=3, hint_widths=(4, 8))
OF_MAPS = dataclasses.replace(STAGE, network=dataclasses.replace(
    NETWORK, conditions=(Input(name="sparse_control", width=4),), control_nets=(MAPS,)))


def run(spec, params, x, hint, **options):
    return jax.jit(lambda p, x, hint: sc.SparseControlNetNetwork(spec).apply(
        {"params": p}, x, jnp.zeros(len(x)), jnp.ones((len(x), 1, 1, 6)), hint, **options))(params, x, hint)


@pytest.mark.parametrize("spec, parameters", [
    (sc.SPARSE_CONTROL_SD1, 496_730_880),
    pytest.param(sc.SPARSE_CONTROL_SD1_SCRIBBLE, 497_802_784, marks=pytest.mark.full),
])
def test_published_sizes(spec, parameters):
    assert sum(leaf.size for leaf in model_kinds.shapes(spec).values()) == parameters


def test_it_does_not_see_the_noisy_latents_and_carries_a_map_to_other_frames(normal):
    params, x, hint = random_params(SPEC), normal(0, 1, 4, 4, 4, 4), normal(1, 1, 4, 4, 4, 5)
    plain = run(SPEC, params, x, hint)
    jax.tree.map(np.testing.assert_array_equal, run(SPEC, params, 3 * x, hint), plain)
    changed = run(SPEC, params, x, hint.at[:, 0].set(0))
    assert (np.abs(changed.middle - plain.middle).max((0, 2, 3, 4)) > 1e-4).all()
    half = run(SPEC, params, x, hint, scale=jnp.array([0.5]))
    np.testing.assert_allclose(half.middle, plain.middle / 2, atol=1e-5)


def test_zero_convolutions_learn_and_pass_no_gradient_on_at_first(normal):
    """y = W x + b with W = 0: a gradient of W, none of what is before."""
    x, hint = normal(0, 1, 4, 4, 4, 4), normal(1, 1, 4, 4, 4, 5)
    params = sc.SparseControlNetNetwork(SPEC).init(jax.random.key(0), x, jnp.zeros(1), jnp.ones((1, 1, 1, 6)),
                                                   hint)["params"]
    assert all(not leaf.any() for leaf in jax.tree.leaves(run(SPEC, params, x, hint)))

    def loss(p):
        return sum((part + 1).sum() for part in jax.tree.leaves(run(SPEC, p, x, hint)))

    gradients = jax.grad(loss)(params)
    for name, tree in gradients.items():
        largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))
        assert (largest > 0) == name.startswith("control_"), name


def test_it_begins_as_the_base_and_its_motion_modules_as_the_identity():
    alone = dataclasses.replace(NETWORK, conditions=(), control_nets=())
    stages = [dataclasses.replace(STAGE, network=network) for network in (NETWORK, alone)]
    ours, theirs = (jax.eval_shape(lambda s=s: initial_params(s, jax.random.key(0))) for s in stages)
    base = jax.tree.map(lambda a: jnp.asarray(0.3 * np.random.default_rng(0).normal(size=a.shape), a.dtype), theirs)
    begun = planned(NETWORK, ours, alone, theirs).apply(initial_params(stages[0], jax.random.key(1)), base)
    branch = begun["control_net_sparse_frames"]
    np.testing.assert_array_equal(branch["stem"]["kernel"], base["stem"]["kernel"])
    assert not branch["down_0_0_motion"]["out"]["kernel"].any() and branch["down_0_0_motion"]["in"]["kernel"].any()
    z, inputs = jnp.ones((1, 4, 4, 4, 4)), Conditioning(inputs={"sparse_frames": jnp.ones((1, 4, 4, 4, 5))})
    found = network_module(NETWORK).apply({"params": begun}, z, jnp.zeros(1), inputs)
    np.testing.assert_array_equal(found, network_module(alone).apply({"params": base}, z, jnp.zeros(1)))


@pytest.mark.parametrize("stage", [STAGE, OF_MAPS])
def test_training_shows_some_frames_and_plans_agree(stage, normal):
    shapes, _ = training_batch(stage, None, 2, 1)
    batch = {name: jnp.full(x.shape, 200, x.dtype) for name, x in shapes.items()}
    params = random_params(AUTOENCODER)
    _, conditioning, _ = jax.jit(lambda b: training_inputs(stage, b, jax.random.key(0), params))(batch)
    (name, value), = conditioning.inputs.items()
    assert value.shape == example_conditioning(stage, 2).inputs[name].shape
    mask = np.asarray(value[..., -1])
    shown = mask.max((2, 3)).astype(bool)
    assert (mask == mask[:, :, :1, :1]).all() and set(shown.sum(1)) <= {1, 2}
    assert not value[..., :-1][~shown].any() and value[..., :-1][shown].any((-1, -2, -3)).all()
    if stage is OF_MAPS:
        np.testing.assert_allclose(value[..., :-1][shown], 200 / 255, atol=1e-6)


def test_each_number_of_frames_is_drawn():
    masks = jax.vmap(lambda key: drawn_frames(key, 6))(jax.random.split(jax.random.key(0), 600))
    counts = np.bincount(np.asarray(masks.sum(1)), minlength=7)
    assert (counts[[1, 2, 3]] > 150).all() and counts.sum() == counts[1:4].sum()
    assert (np.asarray(masks.mean(0)) > 0.25).all()


def test_requests(normal):
    maps, mask = np.full((1, 4, 8, 8, 3), 255, np.uint8), np.array([[True, False, False, True]])
    found = requested_conditioning(OF_MAPS, Request(("",), {"sparse_control": maps, "sparse_control_mask": mask,
                                                            "sparse_control_scale": 0.5}))
    assert (found.scalars["sparse_control_scale"] == 0.5).all()
    keys = jax.random.split(jax.random.key(0), 1)
    videos = SampledVideos(OF_MAPS, keys, None, None, False, False, None)
    value = found.adding(CONDITIONS["sparse_control"].in_sampling(found, videos)).inputs["sparse_control"]
    assert value.shape == (1, 4, 8, 8, 4) and (np.asarray(value) == mask[:, :, None, None, None]).all()
    given = {"sparse_frames": maps, "sparse_frames_mask": mask}
    frames = requested_conditioning(STAGE, Request(("",), given))
    encoded = CONDITIONS["sparse_frames"].in_sampling(frames, SampledVideos(
        STAGE, keys, None, None, False, False, lambda x: jnp.full((*x.shape[:2], 4, 4, 4), x.mean())))
    value = encoded["inputs"]["sparse_frames"]
    assert value.shape == (1, 4, 4, 4, 5) and not value[:, 1:3].any() and (value[:, 0, ..., -1] == 1).all()
    for name, change in (("mask", {"sparse_frames_mask": mask[:, :2]}), ("mask", {"sparse_frames_mask": None}),
                         ("shape", {"sparse_frames": maps[:, :3]})):
        with refused(f"sparse_control.{name}", "sparse_frames"):
            requested_conditioning(STAGE, Request(("",), {**given, **change}))


def test_a_window_is_encoded_in_its_own_size(normal):
    """And not stretched to that of the whole video, of which it would be a picture twice as large."""
    stage = SimpleNamespace(video=STAGE.video, latent=STAGE.latent, network=NETWORK, training=Training(crop=(4, 4)),
                            source=LowResolution(frames=4, height=4, width=4))
    keys, maps, seen = jax.random.split(jax.random.key(0), 1), jnp.abs(normal(0, 1, 4, 8, 8, 3)), []
    clips = TrainingClips(stage, jnp.zeros((1, 4, 2, 2, 4)), 0, None, None, jnp.array([[2, 1]]), keys[0], keys,
                          lambda x: seen.append(x) or jnp.ones((1, 4, 2, 2, 4)))
    condition = CONDITIONS["sparse_frames"]
    found = condition.in_training(Conditioning(inputs={"sparse_frames": maps}), clips)["inputs"]["sparse_frames"]
    assert found.shape == (1, 4, 2, 2, 5)
    np.testing.assert_allclose(seen[0], 2 * maps[:, :, 4:8, 2:6] - 1, atol=1e-6)


def test_frames_of_a_stage_in_pixels_are_in_the_range_of_the_video():
    """Maps that need not be resized or encoded too."""
    spec = sc.sparse_control_of(UNET, channels=3)
    network = dataclasses.replace(NETWORK, conditions=(Input(name="sparse_frames", width=4),), control_nets=(spec,))
    stage = SimpleNamespace(video=STAGE.video, latent=None, network=network, shape=(4, 8, 8, 3))
    maps = jnp.concatenate([jnp.full((1, 4, 8, 8, 3), 0.25), jnp.ones((1, 4, 8, 8, 1))], axis=-1)
    videos = SampledVideos(stage, jax.random.split(jax.random.key(0), 1), None, None, False, False, None)
    found = CONDITIONS["sparse_frames"].in_sampling(Conditioning(inputs={"sparse_frames": maps}), videos)
    value = found["inputs"]["sparse_frames"]
    assert (value[..., :3] == -0.5).all() and (value[..., 3] == 1).all()


def test_sharded_it_is_the_same(normal):
    params, x, hint = random_params(SPEC), normal(0, 2, 4, 4, 4, 4), normal(1, 2, 4, 4, 4, 5)
    plain = run(SPEC, params, x, hint)
    with jax.set_mesh(make_mesh(MeshSpec(data=2), jax.devices()[:2])):
        found = run(SPEC, params, x, hint)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, plain)


def test_what_is_refused():
    with refused("SparseControlNet.unet", "middle"):
        sc.SparseControlNet(unet=UNET)
    with refused("LatentNetwork.control_nets", "[5]", "[4]"):
        dataclasses.replace(NETWORK, conditions=(Input(name="sparse_frames", width=4),))
    with refused("control_net.check_map", "(1, 4, 4, 4, 5)"):
        run(SPEC, {}, jnp.zeros((1, 4, 4, 4, 4)), jnp.zeros((1, 4, 8, 8, 5)))
