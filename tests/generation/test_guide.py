"""Guidance by names: which estimates it combines, what a stage permits, and dropout by names."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conditions.texts import text_conditioning
from tests.generation.conftest import base_stage, random_params
from tests.refusals import refused
from vdm_jax.commands.sample_command import guides
from vdm_jax.conditions.conditioning import drop_named
from vdm_jax.conditions.frame_masks import FrameMask, NoMask
from vdm_jax.conditions.inputs import Input
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.one_stage import estimates_of, stage_denoiser
from vdm_jax.generation.overrides import with_guide
from vdm_jax.networks.unet import SpaceTimeUNet
from vdm_jax.stages.options import Dropout, GuidanceTerm, Sampling, Training
from vdm_jax.stages.stage import Experiment

TOKENS = jnp.array([[[2, 6, 5, 4, 0, 0]], [[3, 8, 0, 0, 0, 0]]])
LEVEL = jnp.full(2, -1.0)


def controlled_stage(**training):
    stage = base_stage()
    network = dataclasses.replace(stage.network, conditions=(Input(name="control", width=3, enters="channels"),))
    training = Training(**{"dropout": (Dropout(names=("control",)),), "images_per_clip": 1} | training)
    return dataclasses.replace(stage, network=network, training=training)


@pytest.fixture(scope="module")
def found():
    """A stage with text and control, z, its conditioning, its network, and the estimate of composed sampling."""
    stage, rng = controlled_stage(), np.random.default_rng(0)
    params = random_params(stage, 0)
    z = 3 * jnp.asarray(rng.normal(size=(2, *stage.video.shape)), jnp.float32)
    given = text_conditioning(TOKENS).replace(
        scalars={"fps": jnp.full(2, 4.0)}, inputs={"control": jnp.asarray(rng.random((2, 2, 8, 8, 3)), jnp.float32)})
    module = SpaceTimeUNet(stage.network)

    @jax.jit
    def estimate(z, conditioning):  # prediction 'x': the network's output is the estimate
        return module.apply({"params": params}, z, LEVEL[: len(z)], conditioning)

    def composed(weight=None, **sampling):
        spec = dataclasses.replace(stage.sampling, threshold=None, **sampling)
        levels = np.array([-1.0])
        return jax.jit(lambda z: stage_denoiser(stage, params, given, spec, levels, weight=weight)(z, LEVEL))(z)

    return stage, z, given, estimate, composed, params


def terms(**scales):
    return {"guidance": 0.0, "terms": tuple(GuidanceTerm(name=n, scale=s) for n, s in scales.items())}


def test_one_name_is_guidance_of_two_estimates_bit_for_bit(found):
    composed = found[4]
    np.testing.assert_array_equal(composed(**terms(text=7.5)), composed(guidance=6.5))


def test_names_come_in_in_their_order(found):
    _, z, given, estimate, composed, _ = found
    none = estimate(z, given.without_named(["text", "control"]))
    text, control = (estimate(z, given.without_named([name])) for name in ("control", "text"))
    both = estimate(z, given)
    assert np.abs(text - control).max() > 0.1
    np.testing.assert_allclose(composed(**terms(text=7.5, control=3)), none + 7.5 * (text - none) + 3 * (both - text),
                               atol=2e-3)
    np.testing.assert_allclose(composed(**terms(control=3, text=7.5)),
                               none + 3 * (control - none) + 7.5 * (both - control), atol=2e-3)
    # What a compiled function of any weights does is the same.
    np.testing.assert_allclose(composed(weight=jnp.array([6.5, 2.0]), **terms(text=2, control=2)),
                               composed(**terms(text=7.5, control=3)), atol=1e-4)


def test_the_estimate_without_time_is_made_frame_by_frame(found):
    _, z, given, estimate, composed, _ = found

    def still(conditioning):
        return jnp.concatenate([estimate(z[:, t : t + 1], conditioning.window(t, 1, 2)) for t in (0, 1)], axis=1)

    null = given.without_named(["text"])
    frames, clip, both = still(null), estimate(z, null), estimate(z, given)
    assert np.abs(frames - clip).max() > 0.05
    np.testing.assert_allclose(composed(**terms(time=1.25, text=7.5)),  # Gen-1, with omega_t and omega
                               frames + 1.25 * (clip - frames) + 7.5 * (both - clip), atol=2e-3)


def test_the_generator_takes_names_and_refuses_two_kinds(found):
    stage, *_, params = found
    generator = Generator(Experiment(name="tiny", stages=(stage,), data=None), {"base": params})
    control = np.random.default_rng(1).random((1, 2, 8, 8, 3))
    call = {"control": control, "seed": 3, "steps": 2}
    one = generator(["a red three"], guide={"text": 3.0}, **call).videos
    np.testing.assert_array_equal(one, generator(["a red three"], guidance_scale=3.0, **call).videos)
    seen = []
    both = generator(["a red three"], guide={"text": 3.0, "control": 2.0}, **call).videos
    steps = generator(["a red three"], guide={"text": 3.0, "control": 2.0}, **call,
                      watch=lambda step, z: seen.append(step)).videos
    assert np.abs(both.astype(int) - one).max() > 2 and seen == [1, 2]
    assert np.abs(both.astype(int) - steps).max() <= 1
    with refused("guidance", "guide={'text': 3.0}"):
        generator(["a red three"], guide={"text": 3.0}, guidance=2.0, **call)
    with refused("Stage.sampling.terms", "'pose'", "text, control, time"):
        generator(["a red three"], guide={"pose": 3.0}, **call)
    with refused("GuidanceTerm.scale"):
        generator(["a red three"], guide={"text": "much"}, **call)


def test_what_training_never_leaves_out_does_not_guide():
    stage = controlled_stage(dropout=(), images_per_clip=0)

    def guided(stage, **scales):
        return dataclasses.replace(stage, sampling=with_guide(stage.sampling, scales))

    with refused("Stage.sampling.terms", "'control'", "never leaves out", "text, or"):
        guided(stage, control=3)
    only_apart = dataclasses.replace(stage, sampling=Sampling(), training=Training(
        text_dropout=0.0, dropout=(Dropout(names=("control",)), Dropout(names=("text",)))))
    assert guided(only_apart, control=3).sampling.terms and guided(only_apart, text=3).sampling.terms
    with refused("Stage.sampling.terms", "'text' and 'control'", "never leaves out together",
                 "without control, text, or"):
        guided(only_apart, text=3, control=2)
    with refused("Stage.sampling.terms", "without 'control', which"):  # leaving out both shows neither alone
        guided(controlled_stage(dropout=(Dropout(names=("text", "control")),)), text=3, control=2)
    with refused("Stage.sampling.terms", "'time'", "images_per_clip above 0"):
        guided(stage, time=1.5)
    with refused("Stage.sampling.terms", "'text'"):
        guided(dataclasses.replace(stage, training=Training(text_dropout=0.0), sampling=Sampling()), text=3)
    with refused("Stage.training.dropout", "'fps'"):
        controlled_stage(dropout=(Dropout(names=("fps",)),))
    with refused("Training.dropout", "below 1"):
        Training(dropout=(Dropout(names=("control",), probability=0.6),) * 2)
    with refused("Dropout.names", "()"):
        Dropout(names=())
    with refused("Sampling.terms", "guidance=1.0"):
        Sampling(guidance=1.0, terms=(GuidanceTerm(name="text", scale=3.0),))
    with refused("Sampling.terms", "each name once"):
        Sampling(terms=(GuidanceTerm(name="text", scale=3.0),) * 2)
    network = dataclasses.replace(stage.network, conditioning_frames=True)
    masked = dataclasses.replace(stage, network=network, training=Training(masking=(FrameMask(first=1), NoMask())))
    assert estimates_of(masked, guided(masked, frames=2, text=3).sampling) == 3
    with refused("Stage.sampling.terms", "'frames'"):
        guided(dataclasses.replace(masked, training=Training(masking=(FrameMask(first=1),))), frames=2)


def test_a_sample_loses_the_conditions_of_one_entry_at_most():
    given = text_conditioning(jnp.repeat(TOKENS, 200, 0)).replace(inputs={"control": jnp.ones((400, 1, 1, 1, 3))})
    dropped = drop_named(jax.random.key(0), given, [(("text",), 0.2), (("control",), 0.3), (("text", "control"), 0.1)])
    no_text = ~np.asarray(dropped.text_mask).any((1, 2))
    no_control = np.asarray(dropped.inputs["control"]).sum((1, 2, 3, 4)) == 0
    shares = [(no_text & ~no_control).mean(), (no_control & ~no_text).mean(), (no_text & no_control).mean()]
    np.testing.assert_allclose(shares, [0.2, 0.3, 0.1], atol=0.06)
    assert drop_named(jax.random.key(0), given, []) is given


def test_the_command_line_says_names_and_scales():
    assert guides(["text=7.5", "control=3"]) == {"text": 7.5, "control": 3.0} and guides([]) is None
    for wrong in ("text", "text=", "=3", "text=nan", "text=much"):
        with refused("--guide", wrong):
            guides([wrong])
    with refused("--guide", "text=2"):
        guides(["text=1", "text=2"])
