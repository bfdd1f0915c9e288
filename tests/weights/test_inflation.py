"""Video networks that begin as image networks, frame by frame."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.attention.patterns import Spatial, Temporal, TemporalCausal
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.inputs import Input
from vdm_jax.networks.config import CrossAttention, EmbeddedText, Level, SelfAttention, TemporalConvolution, UNet
from vdm_jax.networks.unet import SpaceTimeUNet
from vdm_jax.weights.inflation import plan_inflation

SPATIAL, CROSS = SelfAttention(pattern=Spatial(), head_dim=8), CrossAttention(head_dim=8)
BATCH, FRAMES, SIZE = 2, 4, 8


def network(*, low_resolution=False, causal=None, inner=(), **more) -> UNet:
    """An image network, or with `causal` True or False a video network with pseudo-3D convolutions."""
    video = {} if causal is None else {"temporal_kernel": 3, "temporal_causal": causal}
    return UNet(levels=(Level(channels=8, blocks=1), Level(channels=16, blocks=1, mixers=(SPATIAL, *inner, CROSS))),
                middle=(*inner, SPATIAL), patch=2, embedding_channels=16, groups=4, text=EmbeddedText(width=6),
                low_resolution=low_resolution, position_period=8.0, position_axes=("row", "column"), **video, **more)


IMAGE = network(low_resolution=True)
VIDEOS = {
    "not causal": network(low_resolution=True, causal=False, conditioning_frames=True, scalars=("fps",), inner=(
        SelfAttention(pattern=Temporal(), head_dim=8), TemporalConvolution())),
    "causal": network(low_resolution=True, causal=True, inner=(
        SelfAttention(pattern=TemporalCausal(), head_dim=8), TemporalConvolution(causal=True))),
}


def inputs(normal):
    shape = (BATCH, FRAMES, SIZE, SIZE)
    mask = jnp.zeros((*shape, 1)).at[:, 0].set(1)
    return normal(0, *shape, 3), jnp.array([0.5, -1.0]), Conditioning(
        embeddings=normal(1, BATCH, 1, 3, 6), text_mask=jnp.ones((BATCH, 1, 3), bool),
        low_resolution=normal(2, *shape, 3), augmentation=jnp.array([1.0, 2.0]),
        conditioning_frames=normal(3, *shape, 3) * mask,
        conditioning_mask=mask, scalars={"fps": jnp.array([2.0, 20.0])})


def frame_by_frame(params, z, level, conditioning):
    """The image network on every frame as a clip of one."""
    alone = lambda x: x.reshape(BATCH * FRAMES, 1, *x.shape[2:])  # noqa: E731
    each = lambda x: jnp.repeat(x, FRAMES, axis=0)  # noqa: E731
    out = SpaceTimeUNet(IMAGE).apply({"params": params}, alone(z), each(level), Conditioning(
        embeddings=each(conditioning.embeddings), text_mask=each(conditioning.text_mask),
        low_resolution=alone(conditioning.low_resolution), augmentation=each(conditioning.augmentation)))
    return out.reshape(z.shape)


@pytest.fixture(scope="module")
def image(filled, normal):
    """All parameters of the image network random, also those that begin at zero."""
    z, level, conditioning = inputs(normal)
    return filled(SpaceTimeUNet(IMAGE), z[:, :1], level, conditioning.replace(
        low_resolution=conditioning.low_resolution[:, :1]))


@pytest.mark.parametrize("kind", VIDEOS)
def test_an_inflated_network_gives_every_frame_what_the_image_network_gives_it(kind, image, filled, normal):
    spec, (z, level, conditioning) = VIDEOS[kind], inputs(normal)
    module = SpaceTimeUNet(spec)
    new = jax.jit(lambda key: module.init(key, z, level, conditioning)["params"])(jax.random.key(0, impl="rbg"))
    inflation = plan_inflation(spec, new, IMAGE, image)
    params = inflation.apply(new, image)
    run = jax.jit(lambda params, z: module.apply({"params": params}, z, level, conditioning))
    expected = jax.jit(frame_by_frame)(image, z, level, conditioning)
    assert np.std(expected) > 0.3
    np.testing.assert_allclose(run(params, z), expected, atol=1e-5 * np.abs(expected).max())
    assert "/up_1_0/mixers/cross_attention_3/query/kernel" in inflation.copied  # whatever stands between
    assert all("temporal" in name for name in inflation.new)
    assert bool(inflation.stem) == bool(inflation.zero_initialised) == spec.conditioning_frames
    # With all else random frames see each other, but no later ones where that is asked for.
    random = filled(module, z, level, conditioning)
    change = np.abs(run(random, z.at[:, 2].add(1.0)) - run(random, z)).max((0, 2, 3, 4))
    assert ((change > 1e-3) == ([False, False, True, True] if kind == "causal" else [True] * 4)).all(), change


def shapes(spec, normal):
    return jax.eval_shape(lambda: SpaceTimeUNet(spec).init(jax.random.key(0), *inputs(normal)))["params"]


def test_what_does_not_fit_is_named(image, normal):
    def check(spec, *message, source=IMAGE, params=image):
        with refused(*message):
            plan_inflation(spec, shapes(spec, normal), source, params)

    wide = dataclasses.replace(IMAGE, levels=(Level(channels=12, blocks=1), IMAGE.levels[1]))
    plan = "inflation.plan_inflation"
    check(wide, plan, "/down_0_0/residual/conv_in/kernel [1, 3, 3, 12, 12] from [1, 3, 3, 8, 8]; ")
    deeper = dataclasses.replace(IMAGE, levels=(Level(channels=8, blocks=2), IMAGE.levels[1]))
    check(deeper, plan, "/down_0_1/residual/conv_in/kernel from nothing")
    fewer = dataclasses.replace(IMAGE, middle=())
    check(fewer, plan, "nothing from /middle_in/mixers/spatial_attention_0/norm/bias")
    check(dataclasses.replace(IMAGE, text=EmbeddedText(width=7)), plan, "UNet.text", "permitted: ")
    check(dataclasses.replace(IMAGE, modulation="add"), "UNet.modulation", "='add'", f"'{IMAGE.modulation}'",
          "permitted: ")
    video = VIDEOS["not causal"]
    check(IMAGE, "UNet.conditioning_frames", "=False", "conditioning_frames=True", "permitted: True",
          source=video, params=shapes(video, normal))


def test_input_channels_of_the_other_network_keep_their_meaning(normal):
    """A network that takes known frames becomes one that takes a low-resolution video too, whose channels come in
    between: the first kernel is looked at channel by channel of every pixel of a patch."""
    image, video = (network(low_resolution=low, conditioning_frames=True) for low in (False, True))
    names = ("embeddings", "text_mask", "conditioning_frames", "conditioning_mask")
    z, level, conditioning = inputs(normal)
    trees = {}
    for spec, more in ((image, ()), (video, ("low_resolution", "augmentation"))):
        told = Conditioning(**{name: getattr(conditioning, name) for name in (*names, *more)})
        trees[spec] = jax.eval_shape(
            lambda s=spec, t=told: SpaceTimeUNet(s).init(jax.random.key(0), z, level, t))["params"]
    plan = plan_inflation(video, trees[video], image, trees[image])
    assert trees[video]["stem"]["kernel"].shape[3] == 4 * 10 and trees[image]["stem"]["kernel"].shape[3] == 4 * 7
    source, params = (jax.tree.map(lambda a, value=value: np.full(a.shape, value, np.float32), trees[spec])
                      for spec, value in ((image, 0), (video, 9)))
    source["stem"]["kernel"][:] = np.arange(1, 29)[:, None]  # pixel by pixel: noisy video (3), known (3), mask (1)
    kernel = np.asarray(plan.apply(params, source)["stem"]["kernel"])[0, 0, 0, :, 0].reshape(4, 10)
    for pixel in range(4):
        first = 7 * pixel + 1
        expected = [first, first + 1, first + 2, 0, 0, 0, first + 3, first + 4, first + 5, first + 6]
        np.testing.assert_array_equal(kernel[pixel], expected)


def test_of_an_input_of_several_layers_only_the_last_begins_at_zero(normal):
    """Zeros in all of them would have no gradient, and the network would never hear."""
    sound = Input(name="sound", width=12)
    source, spec = network(), network(conditions=(sound,))
    shape = (BATCH, 2, SIZE, SIZE)
    z, level, text = normal(0, *shape, 3), jnp.array([0.5, -1.0]), Conditioning(
        embeddings=normal(1, BATCH, 1, 3, 6), text_mask=jnp.ones((BATCH, 1, 3), bool))
    heard = text.replace(inputs={"sound": normal(2, BATCH, 2, 12)})
    begun = SpaceTimeUNet(source).init(jax.random.key(0), z, level, text)["params"]
    params = SpaceTimeUNet(spec).init(jax.random.key(1), z, level, heard)["params"]
    inflation = plan_inflation(spec, params, source, begun)
    zero = {name.removeprefix("/embedding/condition_sound/") for name in inflation.zero_initialised}
    assert zero == {"out/kernel", "out/bias"} and len(inflation.new) == 7
    params = inflation.apply(params, jax.tree.map(lambda a: a + 0.1, begun))

    def loss(params):
        return (SpaceTimeUNet(spec).apply({"params": params}, z, level, heard) ** 2).mean()

    found = jax.grad(loss)(params)["embedding"]["condition_sound"]
    assert np.abs(found["out"]["kernel"]).max() > 0
    moved = jax.tree.map(lambda a: a, params)
    moved["embedding"]["condition_sound"]["out"]["kernel"] -= found["out"]["kernel"]
    assert np.abs(jax.grad(loss)(moved)["embedding"]["condition_sound"]["hidden_0"]["kernel"]).max() > 0
