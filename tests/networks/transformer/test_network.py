"""The video transformer: what its fields do, what sees what, and what it refuses."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.attention import Causal, Full, Spatial, Temporal, WithExtraKeys
from vdm_jax.attention.counting import counted
from vdm_jax.attention.positions import RotaryAxes, rotary_pairs
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.inputs import Input
from vdm_jax.configuration import from_json, to_json
from vdm_jax.diffusion.flow_sigmas import FlowSigmas
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.scheduler_steps import SchedulerSteps
from vdm_jax.diffusion.schedules import FlowSchedule
from vdm_jax.generation.one_stage import of_experts
from vdm_jax.networks.config import EmbeddedText, WordEncoder
from vdm_jax.networks.kinds import network_module
from vdm_jax.networks.transformer.config import DIT_XL, LATTE_XL, WAN_1B, WAN_14B, WAN_A14B, VideoTransformer, wan
from vdm_jax.networks.transformer.network import VideoTransformerModule, is_noisy, level_number
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Stage, VideoSpec

WORDS = WordEncoder(words=("a", "b"), length=3, width=8, layers=1, head_dim=4)
SMALL = VideoTransformer(out_channels=2, width=12, heads=2, hidden=16, layers=2, level_channels=8, text=WORDS)
WAN = wan(out_channels=2, width=16, heads=2, hidden=12, layers=3, text=EmbeddedText(width=6), level_channels=8)
CAPTIONS = Conditioning(tokens=jnp.array([[[2, 3, 0]], [[3, 0, 0]]]),
                        text_mask=jnp.array([[[1, 1, 0]], [[1, 0, 0]]], bool))
EMBEDDED = Conditioning(embeddings=jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 4, 6)), jnp.float32),
                        text_mask=jnp.array([[[1, 1, 1, 1]], [[1, 1, 0, 0]]], bool))


@pytest.fixture(scope="module")
def outputs(filled, normal):
    """`(spec, x, conditioning, logsnr, **call) -> prediction` with filled parameters, the same for one shape of them;
    one program for a spec and the shapes of its inputs."""
    @functools.lru_cache
    def program(spec, call):
        return jax.jit(functools.partial(VideoTransformerModule(spec).apply, **dict(call)))

    def run(spec, x=None, conditioning=None, logsnr=None, **call):
        conditioning = (CAPTIONS if spec.text == WORDS else EMBEDDED) if conditioning is None else conditioning
        x = normal(1, 2, 4, 4, 4, 2) if x is None else x
        logsnr = jnp.array([0.5, -1.0]) if logsnr is None else logsnr
        params = filled(VideoTransformerModule(spec), x, logsnr, conditioning, **call)
        return np.asarray(program(spec, tuple(call.items()))({"params": params}, x, logsnr, conditioning))
    return run


def test_configs_are_data():
    for spec in (SMALL, WAN_1B, dataclasses.replace(SMALL, patterns=(Spatial(), Temporal()))):
        assert from_json(VideoTransformer, to_json(spec)) == spec
    assert WAN_14B.rotary.dims == (44, 42, 42) and WAN_14B.reduction == (2, 2) and WAN_14B.frame_reduction == 1
    assert list(WAN_1B.attended(21, 60, 104)) == [32_760] * 30
    assert list(WAN_14B.attended(21, 90, 160)) == [75_600] * 40


def test_an_untrained_network_predicts_nothing_and_its_blocks_add_nothing(normal):
    """What ends a branch starts at zero: gates, the attention to text, which has none, and the output."""
    shapes = (normal(0, 2, 2, 4, 4, 2), jnp.zeros(2), CAPTIONS)
    params = jax.jit(VideoTransformerModule(SMALL).init)(jax.random.key(0), *shapes)["params"]
    block = params["blocks"]["block_0"]
    for zero in (params["out"], params["out_modulated"]["modulation"], block["modulated"]["modulation"],
                 block["cross_attention"]["out"]):
        assert not np.abs(zero["kernel"]).max()
    assert np.abs(block["self_attention"]["out"]["kernel"]).max() > 0
    assert block["feed_forward"]["out"]["kernel"].shape == (2, 16, 12)  # of both blocks


@pytest.mark.parametrize("spec, released, classes", [
    (DIT_XL, 675_129_632 - 256 * 1152, 1001),  # less its fixed table of positions
    (LATTE_XL, 673_799_072, 102)])
def test_sizes_of_dit_and_latte(spec, released, classes):
    """Those of the released networks but for the variances that their outputs have too, and the class of none."""
    width, values = spec.width, 4 * spec.out_channels  # of a patch
    latents, label = jnp.zeros((1, 1, 2, 2, 4)), Conditioning(labels=jnp.zeros(1, int))
    shapes = jax.eval_shape(lambda: VideoTransformerModule(spec).init(jax.random.key(0), latents, jnp.zeros(1), label))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert count == released - values * (width + 1) - (classes - spec.classes) * width


def test_rotary_pairs_turn_neighbours_by_their_own_axis(normal):
    """Against complex numbers; logits depend on differences of places alone."""
    x, axes = normal(0, 1, 3, 2, 4, 1, 14), RotaryAxes(dims=(4, 2, 6), bases=(100.0, 10.0, 50.0))
    y, start = np.asarray(rotary_pairs(x, axes)), 0
    for axis, (dim, base) in enumerate(zip(axes.dims, axes.bases, strict=True), 1):
        part = np.asarray(x[..., start : start + dim], np.float64)
        number = np.arange(x.shape[axis]).reshape([-1 if i == axis else 1 for i in range(5)] + [1])
        turned = (part[..., ::2] + 1j * part[..., 1::2]) * np.exp(1j * number * base ** (-np.arange(0, dim, 2) / dim))
        np.testing.assert_allclose(y[..., start : start + dim : 2], turned.real, atol=1e-5)
        np.testing.assert_allclose(y[..., start + 1 : start + dim : 2], turned.imag, atol=1e-5)
        start += dim
    np.testing.assert_array_equal(y[..., start:], x[..., start:])
    with refused("RotaryAxes.dims", "(3, 2, 2)", "even"):
        RotaryAxes(dims=(3, 2, 2))


def test_blocks_take_the_patterns_in_turn(outputs, normal):
    """With a temporal block in turn with a spatial one a frame reaches the others; causal blocks keep it from those
    before."""
    x = normal(1, 2, 4, 4, 4, 2)
    changed = x.at[:, 3].add(1.0)
    for patterns, apart in (((Spatial(), Temporal()), False), ((Causal(),), True)):
        spec = dataclasses.replace(SMALL, patterns=patterns)
        difference = np.abs(outputs(spec, x) - outputs(spec, changed)).max((0, 2, 3, 4))
        assert difference[3] > 1e-3 and (difference[:3].max() < 1e-6) == apart, patterns


@pytest.mark.parametrize("spec", [SMALL, WAN], ids=["dit", "wan"])
def test_frames_may_have_noise_levels_of_their_own(spec, outputs):
    """Equal levels of frames are the clip's; another level of one frame changes it."""
    levels = jnp.array([0.5, -1.0])
    same = jnp.repeat(levels[:, None], 4, axis=1)
    np.testing.assert_allclose(outputs(spec, logsnr=same), outputs(spec, logsnr=levels), atol=2e-5)
    assert np.abs(outputs(spec, logsnr=same.at[:, 1].set(4.0)) - outputs(spec, logsnr=levels)).max() > 1e-3


def test_tokens_given_in_place_have_no_noise(outputs, normal):
    """A clip of which everything is given is one without noise, whatever its level; noise under it is not seen."""
    spec = dataclasses.replace(WAN, frame_conditioning="in_place")
    x, video = normal(1, 2, 4, 4, 4, 2), normal(2, 2, 4, 4, 4, 2)
    given = EMBEDDED.replace(conditioning_frames=video, conditioning_mask=jnp.ones((2, 4, 4, 4, 1)))
    clean = outputs(WAN, video, logsnr=jnp.full(2, 60.0))
    np.testing.assert_allclose(outputs(spec, x, given), clean, atol=2e-5)
    first = given.replace(conditioning_mask=given.conditioning_mask.at[:, 1:].set(0))
    np.testing.assert_allclose(outputs(spec, x, first), outputs(spec, x.at[:, 0].add(1.0), first), atol=1e-6)
    levels = jnp.array([[60.0, 0.5, 0.5, 0.5], [60.0, -1.0, -1.0, -1.0]])
    shown = x.at[:, 0].set(video[:, 0])
    np.testing.assert_allclose(outputs(spec, x, first), outputs(WAN, shown, logsnr=levels), atol=2e-5)


def test_padding_of_a_text_is_seen_as_zeros_and_hidden_tokens_are_not(outputs):
    hidden = EMBEDDED.replace(embeddings=EMBEDDED.embeddings.at[1, :, 2:].set(9.0))
    np.testing.assert_allclose(outputs(WAN, conditioning=hidden), outputs(WAN), atol=1e-6)
    masked = dataclasses.replace(WAN, text_tokens="masked", text_length=0)
    assert np.abs(outputs(masked) - outputs(WAN)).max() > 1e-3
    with refused("VideoTransformer.text_length", "4 tokens", "up to 3"):
        outputs(dataclasses.replace(WAN, text_length=3))


def test_independent_images_do_not_see_the_clip(outputs, normal):
    """Nor the clip them, nor do they see each other: an image is a clip of one frame."""
    x = normal(1, 2, 4, 4, 4, 2)
    repeated = jax.tree.map(lambda a: jnp.repeat(a, 3, axis=1), EMBEDDED)
    y = outputs(WAN, x, repeated, images=2)
    np.testing.assert_allclose(y[:, :2], outputs(WAN, x[:, :2]), atol=2e-5)
    np.testing.assert_allclose(y[:, 3:], outputs(WAN, x[:, 3:]), atol=2e-5)


def test_columns_in_the_place_of_frames_give_the_same(outputs):
    np.testing.assert_allclose(outputs(dataclasses.replace(WAN, sharded_axis="width")), outputs(WAN), atol=2e-5)


def test_further_conditions_enter(outputs, normal):
    """Each of them changes the prediction."""
    spec = dataclasses.replace(SMALL, classes=3, scalars=("fps",), frame_conditioning="channels", low_resolution=True,
                               conditions=(Input(name="sound", width=5),))
    parts = dict(labels=jnp.array([0, 2]), scalars={"fps": jnp.array([4.0, 8.0])},
                 conditioning_frames=normal(2, 2, 4, 4, 4, 2), conditioning_mask=jnp.ones((2, 4, 4, 4, 1)),
                 low_resolution=normal(4, 2, 4, 4, 4, 2), augmentation=jnp.zeros(2),
                 inputs={"sound": normal(3, 2, 4, 5)})
    whole = CAPTIONS.replace(**parts)
    y = outputs(spec, conditioning=whole)
    for changed in (whole.replace(labels=jnp.array([1, 2])), whole.replace(scalars={"fps": jnp.array([9.0, 8.0])}),
                    whole.replace(conditioning_mask=jnp.zeros((2, 4, 4, 4, 1))), whole.without_text(),
                    whole.replace(augmentation=jnp.ones(2)), whole.replace(inputs={"sound": normal(9, 2, 4, 5)})):
        assert np.abs(outputs(spec, conditioning=changed) - y).max() > 1e-4


def test_attention_of_a_scan_counts_for_every_block(normal):
    x = jax.ShapeDtypeStruct((1, 4, 4, 4, 2), "float32")
    with counted() as calls:
        jax.eval_shape(lambda x: VideoTransformerModule(WAN).init(jax.random.key(0), x, jnp.zeros(1), jax.tree.map(
            lambda a: a[:1], EMBEDDED)), x)
    own = [call for call in calls if call.own]
    assert len(own) == WAN.layers and len(calls) == 2 * WAN.layers
    assert sum(call.flops for call in own) == WAN.layers * 4 * 16**2 * 16


def test_experts_have_their_own_noise_levels(filled, normal):
    """Each sample of a batch is that of its expert; a sample at the boundary is of the noisy one, although its sigma in
    float32 is less."""
    spec = dataclasses.replace(WAN, boundary=0.875)
    x, logsnr = normal(1, 2, 2, 4, 4, 2), jnp.array([-2 * np.log(7.0), 1.0])  # sigma 0.875 and 0.378
    module = network_module(spec)
    params = filled(module, x, logsnr, EMBEDDED)
    one = jax.jit(VideoTransformerModule(WAN).apply)
    high, low = (one({"params": params[name]}, x, logsnr, EMBEDDED) for name in ("high", "low"))
    found = jax.jit(module.apply)({"params": params}, x, logsnr, EMBEDDED)
    np.testing.assert_allclose(found, jnp.stack([high[0], low[1]]), atol=1e-5)
    assert np.abs(high - low).max() > 1e-2
    assert WAN_A14B.expert == WAN_14B


def test_expert_and_weight_of_the_guidance_change_at_one_step():
    """The network embeds whole timesteps, of which one is the boundary's, and the guidance sees what they are of."""
    found = SchedulerSteps(scheduler="UniPCMultistepScheduler", flow=FlowSigmas(grid="unipc", shift=3.0)).discretise(
        FlowSchedule(), 40)
    assert found.timesteps.numbers[12] == 875
    embedded = jnp.interp(found.steps.level, *found.timesteps.log_snrs(FlowSchedule()))
    expert, high = is_noisy(embedded, 0.875), of_experts(0.0, 1.0, 0.875)(found.steps.level)
    np.testing.assert_array_equal(expert, high)
    assert expert.sum() == 13 and expert[:13].all()


def test_experts_may_be_guided_by_weights_of_their_own():
    levels = jnp.array([2 * jnp.log(0.12 / 0.88), 2 * jnp.log(0.13 / 0.87)])  # sigma 0.88 and 0.87
    np.testing.assert_allclose(of_experts(2.0, 3.0, 0.875)(levels), [3.0, 2.0])
    with refused("Sampling.high_noise_guidance", "=3.0", "one expert"):
        Stage(name="base", video=VideoSpec(frames=2, height=4, width=4), network=dataclasses.replace(
            WAN, out_channels=3), process=Process(schedule=FlowSchedule(), prediction="flow"),
            sampling=Sampling(guidance=2.0, high_noise_guidance=3.0, threshold=None))
    with refused("Sampling.high_noise_guidance", "guidance=0.0"):
        Sampling(high_noise_guidance=3.0)


def test_level_numbers():
    np.testing.assert_allclose(level_number(2 * jnp.log(jnp.array([3.0, 1 / 3])), "flow"), [250, 750], rtol=1e-6)


@pytest.mark.parametrize("code, named, changes", [
    ("VideoTransformer.width", ("width=12", "heads=4", "even"), {"heads": 4}),
    ("VideoTransformer.layers", ("layers=2", "multiples of 3"), {"patterns": (Full(),) * 3}),
    ("VideoTransformer.rotary", ("(4, 4, 4)", "up to 6"), {"rotary": RotaryAxes(dims=(4, 4, 4))}),
    ("VideoTransformer.patterns", ("WithExtraKeys",), {"patterns": (WithExtraKeys(inner=Full()),)}),
    ("VideoTransformer.sharded_axis", ("'width'", "Causal", "Full()"), {"sharded_axis": "width",
                                                                                       "patterns": (Causal(),)}),
    ("VideoTransformer.text_tokens", ("'padded'", "WordEncoder", "EmbeddedText"), {"text_tokens": "padded",
                                                                                    "text_length": 4}),
    ("VideoTransformer.text_length", ("text_length=4", "'padded'"), {"text_length": 4}),
    ("VideoTransformer.mask_channels", ("mask_channels=4", "'channels'"), {"mask_channels": 4}),
    ("VideoTransformer.boundary", ("0.9", "'inv_cos'", "'flow'"), {"boundary": 0.9}),
    ("VideoTransformer.image_places", ("image_places=4", "image_tokens"), {"image_places": 4}),
    ("VideoTransformer.conditions", ("image_tokens", "text=None"), {
        "text": None, "conditions": (Input(name="image_tokens", width=4),)}),
])
def test_configs_that_do_not_fit(code, named, changes):
    with refused(code, *named):
        dataclasses.replace(SMALL, **changes)


def test_inputs_that_do_not_fit(outputs, normal):
    tubes = dataclasses.replace(SMALL, patch=(2, 2, 2))
    for spec, named, call in ((SMALL, ("height=3", "patch 2"), {"x": normal(0, 2, 4, 3, 4, 2)}),
                              (tubes, ("(2, 4)", "one per clip"), {"logsnr": jnp.zeros((2, 4))}),
                              (tubes, ("images=1", "patches of 1 frame"), {"images": 1}),
                              (SMALL, ("1 captions", "2, one for the clip"), {"images": 1}),
                              (SMALL, ("text_mask is None",), {"conditioning": Conditioning()})):
        with pytest.raises(Exception) as error:
            outputs(spec, **call)
        assert all(part in str(error.value) for part in named), error.value
