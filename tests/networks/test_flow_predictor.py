"""The network that completes strokes to optical flow and predicts the next frame."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from tests.training.latents import AUTOENCODER
from vdm_jax.commands.configs import config_folder, load_module
from vdm_jax.conditions.frame_masks import FrameMask, NoMask
from vdm_jax.networks.flow_predictor import FlowPredictorModule, flow_loss
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.stages.parameters import example_conditioning, initial_params

TINY = load_module(config_folder() / "mcdiff" / "_tiny.py")
STAGE = TINY.apart(AUTOENCODER).stages[0]
NETWORK = STAGE.network
JOINED = dataclasses.replace(NETWORK, joined=True)


def test_the_loss_of_the_flow_is_that_of_the_paper():
    """Pixel by pixel, where the flow is known."""
    rng = np.random.default_rng(0)
    found = rng.normal(size=(2, 1, 4, 5, 2)).astype(np.float32)
    wanted = np.concatenate([rng.normal(size=(2, 1, 4, 5, 2)), rng.random((2, 1, 4, 5, 1)) < 0.7], -1).astype(
        np.float32)
    expected = []
    for f, w in zip(found, wanted, strict=True):
        pixels = [(f[0, i, j], w[0, i, j, :2]) for i in range(4) for j in range(5) if w[0, i, j, 2]]
        longest = max(np.linalg.norm(d) for _, d in pixels)
        expected.append(np.mean([(0.3 + np.linalg.norm(d) / longest) * np.linalg.norm(d - p) for p, d in pixels]))
    np.testing.assert_allclose(flow_loss(jnp.asarray(found), jnp.asarray(wanted), 0.3), expected, rtol=1e-5)
    still = jnp.zeros((1, 1, 2, 2, 3)).at[..., 2].set(1)
    slope = jax.grad(lambda f: flow_loss(f, still, 0.3).sum())(jnp.zeros((1, 1, 2, 2, 2)))
    assert np.isfinite(slope).all() and flow_loss(jnp.zeros((1, 1, 2, 2, 2)), still, 0.3)[0] < 1e-5
    assert flow_loss(jnp.ones((1, 1, 2, 2, 2)), 0 * still, 0.3)[0] == 0  # nothing is known


@pytest.fixture(scope="module")
def given():
    """Parameters none of which is zero, noisy latents, and all that training shows."""
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: jnp.asarray(0.2 * rng.normal(size=a.shape), a.dtype),
                          jax.eval_shape(lambda: initial_params(STAGE, jax.random.key(0))))
    conditioning = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype),
                                example_conditioning(STAGE, 2))
    flow = jnp.asarray(rng.normal(size=(2, 2, 16, 16, 3)), jnp.float32)
    return params, jnp.asarray(rng.normal(size=(2, 2, 8, 8, 4)), jnp.float32), conditioning, flow


def run(network, params, z, conditioning):
    return FlowPredictorModule(network).apply({"params": params}, z, jnp.zeros(2), conditioning)


def test_the_prediction_sees_the_frame_and_the_flow_and_not_the_first_noise(given):
    params, z, conditioning, flow = given
    found = run(NETWORK, params, z, conditioning)
    assert not found[:, 0].any() and found.shape == z.shape
    np.testing.assert_array_equal(run(NETWORK, params, z.at[:, 0].set(3.0), conditioning), found)
    for change in ({"conditioning_frames": conditioning.conditioning_frames.at[:, 0].add(1)},
                   {"inputs": {**conditioning.inputs, "strokes": conditioning.inputs["strokes"].at[:, 0].add(1)}},
                   {"inputs": {**conditioning.inputs, "current_frame": 1 + conditioning.inputs["current_frame"]}}):
        assert np.abs(run(NETWORK, params, z, conditioning.replace(**change)) - found)[:, 1].max() > 1e-3
    later = {**conditioning.inputs, "strokes": conditioning.inputs["strokes"].at[:, 1].add(1)}  # of the next pair
    np.testing.assert_array_equal(run(NETWORK, params, z, conditioning.replace(inputs=later)), found)


def test_apart_each_is_trained_by_itself_and_joined_as_one(given):
    params, z, conditioning, flow = given
    trained = conditioning.adding({"inputs": {"flow": flow}})
    completed = FlowPredictorModule(NETWORK).apply({"params": params}, conditioning, method="completed")
    np.testing.assert_array_equal(run(JOINED, params, z, trained), run(JOINED, params, z, conditioning))
    truth = flow.at[:, :1, ..., :2].set(completed)
    np.testing.assert_allclose(run(NETWORK, params, z, conditioning.adding({"inputs": {"flow": truth}})),
                               run(NETWORK, params, z, conditioning), atol=1e-5)
    for network, joined in ((NETWORK, False), (JOINED, True)):
        module = FlowPredictorModule(network)
        slopes = jax.grad(lambda p, network=network: jnp.square(run(network, p, z, trained)).sum())(params)
        assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slopes["completion"])) == joined
        slopes = jax.grad(lambda p, module=module: module.apply({"params": p}, trained, method="auxiliary_loss").sum())(
            params)
        assert not any(leaf.any() for leaf in jax.tree.leaves(slopes["unet"]))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes["completion"]))


def test_the_flow_is_completed_once_per_video(given):
    params, z, conditioning, _ = given
    once = FlowPredictorModule(NETWORK).apply({"params": params}, conditioning, method="precompute")
    assert once.features["strokes"][0].shape == (2, 1, 16, 16, 2)
    np.testing.assert_allclose(run(NETWORK, params, z, once), run(NETWORK, params, z, conditioning), atol=1e-6)
    other = jax.tree.map(lambda a: 2 * a, params["completion"])
    np.testing.assert_allclose(run(NETWORK, {**params, "completion": other}, z, once),
                               run(NETWORK, params, z, once), atol=1e-6)


def test_on_several_devices_it_is_the_same(given):
    params, z, conditioning, _ = given
    wanted = run(NETWORK, params, z, conditioning)
    with jax.set_mesh(make_mesh(MeshSpec(data=2), jax.devices()[:2])):
        found = jax.jit(lambda *a: run(NETWORK, *a))(params, z, conditioning)
    np.testing.assert_allclose(found, wanted, atol=2e-4)


def test_what_cannot_be(given):
    params, z, conditioning, _ = given
    with refused("FlowPredictor.completion.out_channels", "out_channels=4", "permitted: 2"):
        dataclasses.replace(NETWORK, completion=NETWORK.unet)
    with refused("FlowPredictor.unet.conditioning_frames", "True", "permitted: False"):
        dataclasses.replace(NETWORK, unet=dataclasses.replace(NETWORK.unet, conditioning_frames=True))
    with refused("flow_predictor.FlowPredictorModule.__call__", "3 frames"):
        run(NETWORK, params, jnp.concatenate([z, z[:, :1]], axis=1), conditioning)
    with refused("conditioning.check_parts", "no 'strokes'"):
        run(NETWORK, params, z, conditioning.replace(inputs={}))
    training = STAGE.training
    for name, change in (
            ("video.frames=3", {"video": dataclasses.replace(STAGE.video, frames=3)}),
            ("video.height=17", {"video": dataclasses.replace(STAGE.video, height=17)}),
            ("training.masking", {"training": dataclasses.replace(training, masking=(FrameMask(first=1), NoMask()))}),
            ("training.masking", {"training": dataclasses.replace(training, masking=(FrameMask(last=1),))}),
            ("source=None", {"source": None})):
        with pytest.raises(Exception, match=name.replace("(", r"\(")) as error:
            dataclasses.replace(STAGE, **change)
        assert "permitted: " in str(error.value)
    assert NETWORK.rematerialised("full").remat == "full" == NETWORK.rematerialised("full").completion.remat
