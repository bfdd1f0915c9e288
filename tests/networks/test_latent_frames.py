"""Temporal layers after those within, motion modules and ControlNets: what they begin as, see, refuse and share."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.networks import latent_unet as lu
from vdm_jax.networks import motion_adapter as ma
from vdm_jax.networks.blocks.sinusoids import frame_code
from vdm_jax.networks.blocks.temporal import TemporalConvolutions, TemporalTransformer
from vdm_jax.networks.control_net import ControlNet, ControlNetNetwork
from vdm_jax.networks.latent_frames import Motion, TemporalConv
from vdm_jax.networks.latent_unet_blocks import Control
from vdm_jax.networks.latent_unet_network import LatentUNetNetwork
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.parallel.rules import parameter_axes
from vdm_jax.weights import model_kinds

IMAGE = lu.LatentUNet(widths=(4, 8), blocks=1, attention=(True, False), heads=(2, 2),
                      only_cross_attention=(False, False), token_channels=6, groups=2)
MOTION = Motion(heads=2, frames=4, groups=2)
LAYERS = {"convolutions": TemporalConvolutions(4, groups=2),
          "transformer": TemporalTransformer(2, 3, 2, code=True, kernel="xla")}


@pytest.mark.parametrize("config, parameters", [
    (ma.MOTION_ADAPTER_V1, 417_137_600),
    pytest.param(ma.MOTION_ADAPTER_V2, 453_209_280, marks=pytest.mark.full),  # in the tests of weights too
    pytest.param(ma.MOTION_ADAPTER_V3, 417_137_600, marks=pytest.mark.full),
    pytest.param(lu.LATENT_UNET_ANIMATEDIFF_V1, 1_276_658_564, marks=pytest.mark.full),
    pytest.param(lu.LATENT_UNET_ANIMATEDIFF_V2, 1_312_730_244, marks=pytest.mark.full),
    pytest.param(lu.LATENT_UNET_ANIMATEDIFF_V3, 1_276_658_564, marks=pytest.mark.full),
    pytest.param(lu.LATENT_UNET_MODELSCOPE, 865_910_724 + 266_891_520 + 272_850_880 + 5_580_736,
                 marks=pytest.mark.full),
])
def test_published_sizes(config, parameters):
    assert sum(leaf.size for leaf in model_kinds.shapes(config).values()) == parameters


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_begins_as_the_identity_and_then_lets_frames_see_each_other(name, filled, normal):
    module, x = LAYERS[name], normal(0, 2, 3, 2, 2, 4)
    params = filled(module, x)
    last = "conv_3" if name == "convolutions" else "out"
    apply = jax.jit(lambda params, x: module.apply({"params": params}, x))
    start = jax.jit(module.init)(jax.random.key(0), x)["params"][last]
    np.testing.assert_array_equal(apply({**params, last: start}, x), x)
    changed = np.abs(apply(params, x.at[0, 0].add(normal(1, 2, 2, 4))) - apply(params, x)).max((2, 3, 4))
    assert (changed[0] > 1e-4).all()
    np.testing.assert_allclose(changed[1], 0, atol=1e-6)


def test_dropout_is_of_training_alone(filled, normal):
    module, x = dataclasses.replace(LAYERS["convolutions"], dropout=0.5), normal(0, 1, 3, 2, 2, 4)
    params = {"params": filled(module, x)}
    run = jax.jit(lambda key: module.apply(params, x, train=True, rngs={"dropout": key}))
    first, second = run(jax.random.key(0)), run(jax.random.key(1))
    assert np.abs(first - second).max() > 1e-3
    without = jax.jit(lambda: module.apply(params, x))()  # asks for no key
    np.testing.assert_array_equal(without, jax.jit(lambda: LAYERS["convolutions"].apply(params, x))())


def test_a_motion_module_knows_the_order_of_frames(filled, normal):
    x = normal(0, 1, 3, 2, 2, 4)
    params = filled(LAYERS["transformer"], x)
    for code in (True, False):
        run = jax.jit(dataclasses.replace(LAYERS["transformer"], code=code).apply)
        turned = run({"params": params}, x[:, ::-1])[:, ::-1]
        assert (np.abs(turned - run({"params": params}, x)).max() > 1e-3) == code


def test_attention_over_frames_is_spread_by_a_context(filled, normal):
    x = normal(0, 1, 4, 2, 2, 4)
    params = filled(LAYERS["transformer"], x)
    expected = jax.jit(LAYERS["transformer"].apply)({"params": params}, x)
    sharded_axis = dataclasses.replace(LAYERS["transformer"], context="relayout")
    with jax.set_mesh(make_mesh(MeshSpec(data=4, context=2))):
        found = jax.jit(sharded_axis.apply)({"params": params}, x)
        text = jax.jit(sharded_axis.apply).lower({"params": params}, x).as_text()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert "all_to_all" in text


def test_the_code_of_a_frame_has_sines_in_even_channels():
    np.testing.assert_allclose(frame_code(3, 4)[2], [np.sin(2), np.cos(2), np.sin(0.02), np.cos(0.02)], atol=1e-6)


def test_modules_join_a_network_of_their_sizes_and_come_out_again():
    adapter = ma.MotionAdapter(widths=(4, 8), blocks=1, motion=MOTION)
    shapes = {name: {"norm": 0} for name in adapter.places}
    config, params = ma.join(IMAGE, {"stem": 1}, adapter, shapes)
    assert config == dataclasses.replace(IMAGE, motion=MOTION) and params["stem"] == 1
    assert ma.part(config, params) == (adapter, shapes)
    assert model_kinds.shapes(config).keys() == model_kinds.shapes(IMAGE).keys() | model_kinds.shapes(adapter).keys()
    with refused("motion_adapter.join", "blocks=1", "widths=(4, 8)", "blocks=2"):
        ma.join(dataclasses.replace(IMAGE, blocks=2), {}, adapter, shapes)
    with refused("motion_adapter.join"):
        ma.join(config, params, adapter, shapes)
    with refused("LatentUNet.motion"):
        ma.part(IMAGE, {})


CONTROL = ControlNetNetwork(ControlNet(unet=IMAGE, hint_widths=(2, 4)))


@pytest.fixture(scope="module")
def seen(normal):
    return normal(0, 1, 2, 3, 4, 4), jnp.zeros(1), normal(1, 1, 1, 2, 6), normal(2, 1, 2, 6, 8, 3)


@pytest.mark.full
def test_a_control_net_begins_with_zeros(seen):
    control = jax.jit(lambda: CONTROL.init_with_output(jax.random.key(0), *seen)[0])()
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(control))


def test_a_control_net_is_that_of_a_network_and_of_maps_of_one_size(seen):
    x, level, context, hint = seen
    control, _ = jax.eval_shape(lambda: CONTROL.init_with_output(jax.random.key(0), *seen))
    assert [skip.shape[2:] for skip in control.skips] == [(3, 4, 4), (3, 4, 4), (2, 2, 4), (2, 2, 8)]
    control = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), control)
    with refused("control_net.check_map", "1", "2", "6", "8", "3"):
        CONTROL.init(jax.random.key(0), x, level, context, hint[:, :1])
    with refused("latent_unet.controlled"):
        jax.eval_shape(lambda: LatentUNetNetwork(IMAGE).init(
            jax.random.key(0), x, level, context, control=Control(control.skips[1:], control.middle)))


@pytest.mark.parametrize("make, message", [
    (lambda: dataclasses.replace(IMAGE, motion=MOTION, temporal_conv=TemporalConv()), ("LatentUNet",)),
    (lambda: dataclasses.replace(IMAGE, motion=dataclasses.replace(MOTION, heads=3)), ("LatentUNet.widths",)),
    (lambda: Motion(frames=0), ("Motion.frames", "=0", ">= 1")),
    (lambda: ma.MotionAdapter(widths=(4, 9), motion=MOTION), ("MotionAdapter.widths",)),
    (lambda: ControlNet(unet=dataclasses.replace(IMAGE, temporal=True)), ("ControlNet.unet",)),
    (lambda: ControlNet(hint_widths=()), ("ControlNet.hint_widths",)),
    (lambda: jax.eval_shape(lambda: LatentUNetNetwork(dataclasses.replace(IMAGE, motion=MOTION)).init(
        jax.random.key(0), jnp.zeros((1, 5, 2, 2, 4)), jnp.zeros(1), jnp.zeros((1, 1, 1, 6)))),
     ("latent_unet.check", "Motion.frames=4")),
])
def test_refused(make, message):
    with refused(*message):
        make()


def test_every_kernel_is_split():
    """Layers of attention and feed-forward in pairs."""
    assert parameter_axes("/down_0_0_motion/self_attention_1/out/kernel", 2) == ("heads", "embed")
    assert parameter_axes("/down_0_0_motion/feed_forward/out/kernel", 2) == ("mlp", "embed")
    for config in (dataclasses.replace(IMAGE, temporal_conv=TemporalConv()), ControlNet(unet=IMAGE)):
        for path, leaf in model_kinds.shapes(config).items():
            if path.endswith("kernel"):
                assert any(parameter_axes(f"/{path}", leaf.ndim)), path
