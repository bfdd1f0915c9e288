"""ControlNets in guess mode and with weights: what is added, and to which estimate, in which steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from tests.refusals import refused
from vdm_jax.conditions.conditioning import Conditioning, Request
from vdm_jax.conditions.control import at_step, without_guessed
from vdm_jax.conditions.inputs import Input
from vdm_jax.diffusion.process import Process
from vdm_jax.generation.prompts import arguments_of, requested_conditioning
from vdm_jax.networks.control_net import ControlNetNetwork, control_net_of
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Stage, VideoSpec

UNET = LatentUNet(widths=(8, 8), in_channels=3, out_channels=3, blocks=1, attention=(False, False), heads=(2, 2),
                  only_cross_attention=(False, False), token_channels=6, groups=4, use_linear_projection=True)
NET = control_net_of(UNET, hint_widths=(4,))
STAGE = Stage(name="base", video=VideoSpec(frames=2, height=4, width=4), process=Process(), network=LatentNetwork(
    unet=UNET, conditions=(Input(name="control", width=3), Input(name="control_1", width=3)), control_nets=(NET, NET)),
    sampling=Sampling(threshold=None))


def test_weights_and_guess_mode_scale_the_residuals():
    rng = np.random.default_rng(0)
    z, hint = (jnp.asarray(rng.uniform(size=(2, 1, 4, 4, 3)), jnp.float32) for _ in range(2))
    inputs = z, jnp.zeros(2), jnp.zeros((2, 1, 1, 6)), hint
    module = ControlNetNetwork(NET)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
    params = jax.tree.map(lambda a: 0.3 * rng.normal(size=a.shape).astype(np.float32), shapes)
    plain, some = jax.jit(lambda p: (module.apply(p, *inputs), module.apply(
        p, *inputs, scale=jnp.array([0.5, 0.0]), guess=jnp.array([1.0, 0.0]))))(params)
    count = len(plain.skips)
    factors = np.logspace(-1, 0, count + 1)  # as released: the first residual counts a tenth
    for place, (whole, part) in enumerate(zip((*plain.skips, plain.middle), (*some.skips, some.middle), strict=True)):
        np.testing.assert_allclose(part[0], 0.5 * factors[place] * whole[0], rtol=1e-5, atol=1e-6)
        assert not part[1].any() and np.abs(whole).max() > 0.01


def asked(**given):
    maps = np.zeros((1, 2, 4, 4, 3), np.uint8)
    return requested_conditioning(STAGE, Request(("",), {"control": maps, "control_1": maps, **given}))


def test_maps_act_in_their_interval_of_the_steps():
    found = asked(control_start=0.2, control_end=0.6, control_scale=0.5, control_1_end=0.8)
    levels = jnp.array([-4.0, -2.0, 0.0, 2.0, 4.0])
    weights = {name: [float(at_step(found, level[None], levels).scalars[f"{name}_scale"][0]) for level in levels]
               for name in ("control", "control_1")}
    assert weights == {"control": [0, 0.5, 0.5, 0, 0], "control_1": [1, 1, 1, 1, 0]}
    of_frames = at_step(found, jnp.array([[-2.0, 4.0]]), levels)  # frames of levels of their own
    assert float(of_frames.scalars["control_scale"][0]) == 0.5
    assert at_step(asked(control_scale=0.5), levels[:1], levels).scalars.keys() == {"control_scale"}


def test_guess_mode_leaves_the_map_to_the_conditional_estimate():
    found = asked(control_guess=True, control_1_scale=0.7)
    lacking = without_guessed(found.without_text())
    assert jax.tree.structure(lacking) == jax.tree.structure(found)
    assert {name: float(value[0]) for name, value in lacking.scalars.items()} == {
        "control_scale": 0.0, "control_guess": 1.0, "control_1_scale": np.float32(0.7)}
    assert float(found.scalars["control_scale"][0]) == 1.0
    assert without_guessed(Conditioning()) == Conditioning()


def test_what_cannot_be():
    assert {"control_1_scale", "control_1_start", "control_1_end", "control_1_guess"} < set(arguments_of(STAGE))
    with refused("control_start", "control_start=0.8", "control_end=0.5", "permitted: "):
        asked(control_start=0.8, control_end=0.5)
    with refused("control_1_end", "control_1_end=1.5"):
        asked(control_1_end=1.5)
    with refused("control_guess", "control_guess=2"):
        asked(control_guess=2)
    with refused("control.frames", "control of 3 frames", "'base'", "permitted: 2"):
        requested_conditioning(STAGE, Request(("",), {name: np.zeros((1, 3, 4, 4, 3)) for name in (
            "control", "control_1")}))
