"""The space-time U-Net: what sees what, what it starts as, and that each field of its config does what it says."""

from __future__ import annotations

import dataclasses
import re

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks.counting import count_parameters
from tests.refusals import refused
from vdm_jax.attention.patterns import Full, Spatial, Temporal
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.networks.config import (
    CrossAttention,
    EmbeddedText,
    FeedForward,
    Level,
    SelfAttention,
    TemporalConvolution,
    UNet,
    WordEncoder,
)
from vdm_jax.networks.layers import depth_to_space, space_to_depth
from vdm_jax.networks.unet import PositionEmbedding, SpaceTimeUNet
from vdm_jax.networks.unet_inputs import stack_inputs

LENGTH = 5  # tokens of a caption
TEXT = WordEncoder(words=tuple("abcdef"), length=LENGTH, width=16, layers=1, head_dim=8)
ATTENTION = tuple(SelfAttention(pattern=p, head_dim=8, position=q) for p, q in
                  ((Spatial(), "rotary"), (Temporal(), "relative"), (Full(), "rotary")))
# Every mixer, pattern and kind of position once, on two levels.
EVERYTHING = UNet(
    levels=(Level(channels=8, blocks=1, mixers=(TemporalConvolution(), *ATTENTION[:2], CrossAttention(head_dim=8))),
            Level(channels=16, blocks=1, mixers=(
                ATTENTION[2], FeedForward(expansion=2), TemporalConvolution(kernel=5)))),
    middle=(SelfAttention(pattern=Temporal(), head_dim=8),
            SelfAttention(pattern=Full(), head_dim=8, position="relative"),
            SelfAttention(pattern=Spatial(), head_dim=8, position="none")),
    embedding_channels=32, groups=4, text=TEXT)
PLAIN = UNet(levels=(Level(channels=8, blocks=1),), embedding_channels=16, groups=4)
TEMPORAL_NAMES = r"(temporal|full)_attention_\d+|temporal_convolution_\d+"
BATCH, FRAMES, IMAGES, SIZE = 2, 3, 2, 8


def applied(spec, params, **options):
    """The network as one compiled function of (video, log-SNR, conditioning)."""
    return jax.jit(lambda z, level, conditioning=None: SpaceTimeUNet(spec).apply(
        {"params": params}, z, level, conditioning, **options))


def captions(groups, seed=0, batch=BATCH):
    tokens = jnp.asarray(np.random.default_rng(seed).integers(2, 8, (batch, groups, LENGTH)))
    return Conditioning(tokens=tokens, text_mask=tokens > 0)


def assert_changed(before, after, frames, atol=1e-5):
    """Exactly the given frames differ."""
    difference = np.abs(np.asarray(before) - np.asarray(after)).max((0, 2, 3, 4))
    changed = difference > 1e-3
    assert changed.tolist() == [t in frames for t in range(len(changed))], difference
    np.testing.assert_array_less(difference[~changed], atol)


# ---------------------------------------------------------------------------------------------- joint training


@pytest.fixture(scope="module")
def joint(filled, normal):
    """The network with every mixer, all parameters random, on a clip with two images; and its inputs."""
    spec = dataclasses.replace(EVERYTHING, position_period=25.0, temporal_kernel=3)
    z, level = normal(0, BATCH, FRAMES + IMAGES, SIZE, SIZE, 3), jnp.array([0.5, -1.0])
    conditioning = captions(1 + IMAGES)
    params = filled(SpaceTimeUNet(spec), z, level, conditioning, images=IMAGES)
    return spec, params, applied(spec, params, images=IMAGES), (z, level, conditioning)


@pytest.mark.parametrize("frame", range(FRAMES + IMAGES))
def test_clip_and_appended_images_do_not_see_each_other(joint, frame, normal):
    """A frame of the clip is seen by the whole clip and by no image; an image by itself alone."""
    _, _, network, (z, level, conditioning) = joint
    before = network(z, level, conditioning)
    after = network(z.at[:, frame].set(normal(9, SIZE, SIZE, 3)), level, conditioning)
    assert_changed(before, after, range(FRAMES) if frame < FRAMES else [frame])


@pytest.mark.parametrize("group", range(1 + IMAGES))
def test_clip_and_appended_images_have_captions_of_their_own(joint, group):
    _, _, network, (z, level, conditioning) = joint
    other = conditioning.replace(tokens=conditioning.tokens.at[:, group].set(captions(1, seed=5).tokens[:, 0]))
    after = network(z, level, other)
    assert_changed(network(z, level, conditioning), after, range(FRAMES) if group == 0 else [FRAMES + group - 1])


def test_a_clip_with_images_is_the_clip_without(joint):
    spec, params, network, (z, level, conditioning) = joint
    alone = applied(spec, params)(z[:, :FRAMES], level, jax.tree.map(lambda x: x[:, :1], conditioning))
    np.testing.assert_allclose(network(z, level, conditioning)[:, :FRAMES], alone, atol=2e-5)


def test_samples_of_a_batch_are_independent(joint, normal):
    _, _, network, (z, level, conditioning) = joint
    after = network(z.at[1].set(normal(9, *z.shape[1:])), level.at[1].set(3.0), conditioning.without_text(
        jnp.array([False, True])))
    before = network(z, level, conditioning)
    np.testing.assert_allclose(after[0], before[0], atol=1e-5)
    assert np.abs(after[1] - before[1]).max() > 0.1


# ---------------------------------------------------------------------------------------------- initialisation


@pytest.fixture(scope="module")
def fresh(normal):
    """Initial parameters of the network with every mixer."""
    z = normal(0, BATCH, FRAMES, SIZE, SIZE, 3)
    init = jax.jit(lambda key: SpaceTimeUNet(EVERYTHING).init(key, z, jnp.zeros(BATCH), captions(1))["params"])
    return init(jax.random.key(0, impl="rbg"))  # compiles in a fraction of the time


def with_fresh_temporal_layers(params, fresh):
    """`params` with the temporal layers as they are initialised."""
    flat, initial = (flax.traverse_util.flatten_dict(p) for p in (params, fresh))
    return flax.traverse_util.unflatten_dict({
        path: initial[path] if any(re.fullmatch(TEMPORAL_NAMES, part) for part in path) else leaf
        for path, leaf in flat.items()})


def test_temporal_layers_start_as_the_identity(fresh, filled, normal):
    """An image network with all its parameters random, inflated: each frame comes out as if it were alone."""
    z, level, conditioning = normal(1, BATCH, FRAMES, SIZE, SIZE, 3), jnp.array([0.5, -1.0]), captions(1)
    random = filled(SpaceTimeUNet(EVERYTHING), z, level, conditioning)
    inflated = with_fresh_temporal_layers(random, fresh)
    network = jax.jit(lambda params, z: SpaceTimeUNet(EVERYTHING).apply({"params": params}, z, level, conditioning))
    together = network(inflated, z)
    assert np.std(together) > 0.3  # the other layers are at work
    for t in range(FRAMES):
        np.testing.assert_allclose(together[:, t : t + 1], network(inflated, z[:, t : t + 1]), atol=2e-5)
    # And the temporal layers are there: with random ones, frames see each other.
    assert_changed(network(random, z), network(random, z.at[:, 1].add(1.0)), range(FRAMES))
    np.testing.assert_array_equal(network(fresh, z), jnp.zeros_like(z))  # the whole network starts at zero


# ---------------------------------------------------------------------------------------------- precision, memory


def test_bfloat16_is_close_to_float32(filled, normal):
    z, level, conditioning = normal(1, BATCH, FRAMES, SIZE, SIZE, 3), jnp.array([0.5, -1.0]), captions(1)
    params = filled(SpaceTimeUNet(EVERYTHING), z, level, conditioning)
    low = dataclasses.replace(EVERYTHING, dtype="bfloat16")
    kept = jax.eval_shape(lambda: SpaceTimeUNet(low).init(jax.random.key(0), z, level, conditioning))["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("float32")}
    exact, rough = (applied(spec, params)(z, level, conditioning) for spec in (EVERYTHING, low))
    assert rough.dtype == jnp.float32
    error = np.sqrt(np.mean((rough - exact) ** 2) / np.mean(exact**2))
    assert 1e-4 < error < 0.05, error  # really another precision, and not another function


def test_dropout_is_for_training_only(filled, normal):
    spec = dataclasses.replace(PLAIN, levels=(Level(channels=8, blocks=1, dropout=0.5),))
    z, level = normal(0, 1, 2, 4, 4, 3), jnp.zeros(1)
    params = filled(SpaceTimeUNet(spec), z, level)
    network = jax.jit(lambda key, train: SpaceTimeUNet(spec).apply(
        {"params": params}, z, level, train=train, rngs={"dropout": key}), static_argnums=1)
    outs = [network(jax.random.key(seed), True) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(outs[0], outs[1])
    assert np.abs(outs[0] - outs[2]).max() > 0.01
    np.testing.assert_allclose(network(jax.random.key(0), False), applied(PLAIN, params)(z, level), atol=3e-5)


# ---------------------------------------------------------------------------------------------- fields of the config


def test_patch_is_space_to_depth_around_the_network(filled, normal):
    z, level = normal(0, 1, 2, 8, 8, 3), jnp.zeros(1)
    patched, inner = dataclasses.replace(PLAIN, patch=2), dataclasses.replace(PLAIN, out_channels=12)
    params = filled(SpaceTimeUNet(patched), z, level)
    expected = depth_to_space(applied(inner, params)(space_to_depth(z, 2), level), 2)
    np.testing.assert_allclose(applied(patched, params)(z, level), expected, atol=1e-5)


def test_skip_scale_multiplies_the_long_skips(filled, normal):
    """Group norm undoes a factor on whole groups, so only the shortcut's rows of the skip feel it."""
    spec = dataclasses.replace(PLAIN, skip_scale=0.25)
    z, level = 3 * normal(0, 1, 2, 8, 8, 3), jnp.zeros(1)
    params = filled(SpaceTimeUNet(spec), z, level)
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    up = [name for name in flat if re.fullmatch(r"up_0_\d/residual/shortcut/kernel", name)]
    assert len(up) == 2
    scaled = flax.traverse_util.unflatten_dict(
        {k: v.at[:, :, :, 8:].multiply(0.25) if k in up else v for k, v in flat.items()}, sep="/")
    out = applied(spec, params)(z, level)
    np.testing.assert_allclose(out, applied(PLAIN, scaled)(z, level), atol=2e-3)
    assert np.abs(out - applied(PLAIN, params)(z, level)).max() > 0.05


@pytest.mark.parametrize(("period", "axes"), [(0.0, ("frame", "row", "column")), (25.0, ("frame", "row", "column")),
                                              (25.0, ("row", "column"))])
def test_places_are_told_apart_where_asked(period, axes, filled, normal):
    """Without temporal layers, exchanging frames exchanges outputs, unless the network is told which is which; a video
    of one colour comes out in one colour within the border, unless it is told which row is which."""
    z, level = normal(0, 1, 3, 8, 8, 3), jnp.zeros(1)
    spec = dataclasses.replace(PLAIN, position_period=period, position_axes=axes, stem_kernel=1, out_kernel=1,
                               levels=(Level(channels=8, blocks=1, kernel=1),))
    network = applied(spec, filled(SpaceTimeUNet(spec), z, level))
    frames = np.abs(network(z, level)[:, ::-1] - network(z[:, ::-1], level)).max((0, 2, 3, 4))
    assert (frames[[0, 2]] > 0.01).all() if period and "frame" in axes else (frames < 1e-5).all()
    rows = np.ptp(network(jnp.ones_like(z), level), axis=2).max()
    assert rows > 0.01 if period else rows < 1e-4


def test_kernel_sizes_at_both_ends():
    spec = dataclasses.replace(PLAIN, stem_kernel=5, out_kernel=1, patch=2)
    z = jnp.zeros((1, 2, 4, 4, 3))
    variables = jax.eval_shape(lambda: SpaceTimeUNet(spec).init(jax.random.key(0), z, jnp.zeros(1)))
    assert variables["params"]["stem"]["kernel"].shape == (1, 5, 5, 12, 8)
    assert variables["params"]["out"]["kernel"].shape == (1, 1, 1, 8, 12)


def test_levels_shrink_by_their_strides():
    spec = dataclasses.replace(
        PLAIN, levels=(Level(channels=8, blocks=1, stride=(1, 2)), Level(channels=8, blocks=1, stride=(2, 2)),
                       Level(channels=8, blocks=1)), patch=2)
    assert spec.reduction == (4, 8)
    z = jnp.zeros((1, 1, 8, 16, 3))
    _, seen = jax.eval_shape(lambda: SpaceTimeUNet(spec).init_with_output(
        jax.random.key(0), z, jnp.zeros(1), capture_intermediates=True, mutable=True))
    shapes = {k: seen["intermediates"][k]["__call__"][0].shape for k in ("stem", "middle_in", "down_1_0", "up_1_0")}
    assert shapes["stem"] == (1, 1, 4, 8, 8) and shapes["middle_in"] == (1, 1, 2, 2, 8)
    assert shapes["down_1_0"] == shapes["up_1_0"] == (1, 1, 4, 4, 8)


EFFICIENT = dataclasses.replace(
    PLAIN, levels=(Level(channels=8, blocks=1), Level(channels=16, blocks=2, stride=(1, 2))), resample_order="before",
    skip_scale=2**-0.5)


def test_an_efficient_network_has_no_block_at_full_resolution():
    assert EFFICIENT.reduction == (2, 4)
    z = jnp.zeros((1, 1, 8, 8, 3))
    out, seen = jax.eval_shape(lambda: SpaceTimeUNet(EFFICIENT).init_with_output(
        jax.random.key(0), z, jnp.zeros(1), capture_intermediates=True, mutable=True))
    shapes = {k: v["__call__"][0].shape[2:] for k, v in seen["intermediates"].items()
              if k not in ("__call__", "embedding", "norm", "out")}
    assert out.shape == z.shape
    assert shapes == {
        "stem": (8, 8, 8), "downsample_0": (4, 4, 8), "down_0_0": (4, 4, 8),
        "downsample_1": (4, 2, 16), "down_1_0": (4, 2, 16), "down_1_1": (4, 2, 16),
        "up_1_0": (4, 2, 16), "up_1_1": (4, 2, 16), "upsample_1": (4, 4, 8), "up_0_0": (4, 4, 8),
        "upsample_0": (8, 8, 8)}


def test_an_efficient_network_has_one_long_skip_per_level(filled, normal):
    """With the lower level's way back closed, the upper one still carries the input, by its skip alone."""
    z, level = normal(0, 1, 2, 8, 8, 3), jnp.zeros(1)
    params = filled(SpaceTimeUNet(EFFICIENT), z, level)
    network = jax.jit(lambda params, z: SpaceTimeUNet(EFFICIENT).apply({"params": params}, z, level))

    def closed(params, name):
        return {**params, name: jax.tree.map(jnp.zeros_like, params[name])}

    without_lower = closed(params, "upsample_1")
    assert np.abs(network(without_lower, z) - network(without_lower, z + normal(1, 1, 2, 8, 8, 3))).max() > 0.01
    skip = np.asarray(params["up_0_0"]["residual"]["shortcut"]["kernel"])
    assert skip.shape == (1, 1, 1, 16, 8)  # 8 channels from below, 8 of the skip
    without_both = closed(without_lower, "downsample_0")
    np.testing.assert_array_equal(network(without_both, z), network(without_both, 2 * z))
    with refused("UNet.middle", "resample_order='before'"):
        dataclasses.replace(EFFICIENT, middle=(SelfAttention(pattern=Spatial(), head_dim=8),))


@pytest.mark.parametrize("over", ["frame", "clip"])
def test_norm_over(over, filled, normal):
    """Statistics per clip let frames see each other, statistics per frame do not."""
    spec = dataclasses.replace(PLAIN, norm_over=over)
    z, level = normal(0, 1, 3, 4, 4, 3), jnp.zeros(1)
    network = applied(spec, filled(SpaceTimeUNet(spec), z, level))
    assert_changed(network(z, level), network(z.at[:, 1].multiply(4.0), level), range(3) if over == "clip" else [1])


def test_a_log_snr_per_frame(filled, normal):
    z, params = normal(0, 2, 3, 4, 4, 3), None
    params = filled(SpaceTimeUNet(PLAIN), z, jnp.zeros(2))
    network, level = applied(PLAIN, params), jnp.array([0.5, -1.0])
    sharded_axis = jnp.broadcast_to(level[:, None], (2, 3))
    same = network(z, sharded_axis)
    np.testing.assert_allclose(same, network(z, level), atol=1e-5)
    assert_changed(same, network(z, sharded_axis.at[:, 2].add(2.0)), [2])


@pytest.mark.parametrize("modulation", ["scale_shift", "add"])
def test_the_noise_level_reaches_the_output(modulation, filled, normal):
    spec = dataclasses.replace(PLAIN, modulation=modulation, level_encoding="edm")
    z = normal(0, 1, 1, 4, 4, 3)
    params = filled(SpaceTimeUNet(spec), z, jnp.zeros(1))
    assert params["down_0_0"]["residual"]["modulation"]["kernel"].shape == (16, 16
                                                                            if modulation == "scale_shift" else 8)
    network = applied(spec, params)
    assert np.abs(network(z, jnp.zeros(1)) - network(z, jnp.ones(1))).max() > 0.05


@pytest.fixture(scope="module")
def guided(normal):
    """A network that takes every kind of input, and those inputs."""
    spec = dataclasses.replace(PLAIN, low_resolution=True, conditioning_frames=True, scalars=("fps", "motion"),
                               text=EmbeddedText(width=6))
    known = jnp.zeros((2, 2, 4, 4, 1)).at[:, 0].set(1.0)
    conditioning = Conditioning(
        embeddings=normal(1, 2, 1, 3, 6), text_mask=jnp.ones((2, 1, 3), bool), low_resolution=normal(2, 2, 2, 4, 4, 3),
        augmentation=jnp.zeros(2), conditioning_frames=known * normal(3, 2, 2, 4, 4, 3), conditioning_mask=known,
        scalars={"fps": jnp.full(2, 8.0), "motion": jnp.ones(2)})
    return spec, normal(0, 2, 2, 4, 4, 3), jnp.zeros(2), conditioning


def test_every_input_reaches_the_output_of_its_own_sample(guided, filled, normal):
    spec, z, level, conditioning = guided
    params = filled(SpaceTimeUNet(spec), z, level, conditioning)
    assert params["stem"]["kernel"].shape == (1, 3, 3, 3 + 3 + 3 + 1, 8)
    network = applied(spec, params)
    before = network(z, level, conditioning)
    leaves, structure = jax.tree.flatten(conditioning)
    assert len(leaves) == 8
    for i, leaf in enumerate(leaves):
        change = ~leaf[0] if leaf.dtype == bool else leaf[0] + 2 + normal(9, *leaf.shape[1:])
        after = network(z, level, structure.unflatten([*leaves[:i], leaf.at[0].set(change), *leaves[i + 1 :]]))
        assert np.abs(after[0] - before[0]).max() > 5e-3, i
        np.testing.assert_allclose(after[1], before[1], atol=1e-5)


def test_a_residual_network_changes_the_low_resolution_video(guided, filled):
    spec, z, level, conditioning = guided
    params = filled(SpaceTimeUNet(spec), z, level, conditioning)
    whole = applied(dataclasses.replace(spec, residual=True), params)(z, level, conditioning)
    change = applied(spec, params)(z, level, conditioning)
    np.testing.assert_allclose(whole - conditioning.low_resolution, change, atol=1e-5)


def test_positions_outweigh_a_noisy_stem_and_differ_everywhere(normal):
    """Noise alone must not hide where and when a token is: the reason for the size of the code."""
    embedding = PositionEmbedding(period=25.0)
    x = jnp.zeros((1, 8, 4, 4, 64))
    code = np.asarray(embedding.apply(embedding.init(jax.random.key(0), x, 0), x, 0)).reshape(-1, 64)
    apart = np.square(code[:, None] - code[None]).mean(-1)
    assert apart[~np.eye(len(code), dtype=bool)].min() > 1.0


def test_null_caption_hides_the_words(filled, normal):
    z, level = normal(0, BATCH, 1, 4, 4, 3), jnp.zeros(BATCH)
    cross = Level(channels=8, blocks=1, mixers=(CrossAttention(head_dim=4),))
    spec = dataclasses.replace(PLAIN, levels=(cross,), text=TEXT)
    network = applied(spec, filled(SpaceTimeUNet(spec), z, level, captions(1)))
    one, other = captions(1, seed=1), captions(1, seed=2)
    assert np.abs(network(z, level, one) - network(z, level, other)).max() > 0.01
    null = network(z, level, one.without_text())
    np.testing.assert_array_equal(null, network(z, level, other.without_text()))
    assert np.abs(null - network(z, level, one)).max() > 0.01


# ---------------------------------------------------------------------------------------------- sizes, errors


def test_parameter_count_of_a_small_network_by_hand():
    c, e = 8, 16
    block = (2 * c + 9 * c * c + c) + (e * 2 * c + 2 * c) + (2 * c + 9 * c * c + c)  # norm, conv; film; norm, conv
    wide = (4 * c + 18 * c * c + c) + (e * 2 * c + 2 * c) + (2 * c + 9 * c * c + c) + (2 * c * c + c)  # with shortcut
    vector = (16 * e + e) + (e * e + e)
    stem, head = 9 * 3 * c + c, 2 * c + 9 * c * 3 + 3
    assert count_parameters(PLAIN, (1, 2, 8, 8, 3)) == stem + vector + 3 * block + 2 * wide + head


def test_parameter_counts_stay():
    """Golden numbers: a change of them is a change of what every stored weight means."""
    assert count_parameters(EVERYTHING, (1, FRAMES, SIZE, SIZE, 3), captions(1, batch=1)) == 66_108
    # The layout of Video Diffusion Models (arXiv 2204.03458): 4 levels, spatial and temporal attention at each.
    mixers = (SelfAttention(pattern=Spatial()), SelfAttention(pattern=Temporal(), position="relative"))
    large = UNet(levels=tuple(Level(channels=64 * m, blocks=2, mixers=mixers) for m in (1, 2, 4, 8)), middle=mixers)
    assert count_parameters(large, (1, 10, 32, 32, 3)) == 71_532_073


def trace(spec, z_shape, conditioning=None, **options):
    key, z, level = jax.random.key(0), jnp.zeros(z_shape), jnp.zeros(z_shape[0])
    jax.eval_shape(lambda: SpaceTimeUNet(spec).init(key, z, level, conditioning, **options))


@pytest.mark.parametrize("part", [
    "low_resolution", "augmentation", "conditioning_frames", "conditioning_mask", "text_mask", "embeddings"])
def test_a_missing_input_is_named(guided, part):
    spec, z, _, conditioning = guided
    with refused("conditioning.check_parts", f"Conditioning.{part}"):
        trace(spec, z.shape, conditioning.replace(**{part: None}))


@pytest.mark.parametrize(("spec", "conditioning", "options", "message"), [
    (dataclasses.replace(PLAIN, patch=4), None, {"z_shape": (1, 1, 6, 8, 3)},
     ("unet_inputs.check_inputs", "height=6", "4", "8", "12")),
    (dataclasses.replace(PLAIN, levels=(Level(channels=8, stride=(1, 3)), Level(channels=8))), None,
     {"z_shape": (1, 1, 6, 8, 3)},
     ("unet_inputs.check_inputs", "width=8", "3", "6", "9")),
    (dataclasses.replace(PLAIN, scalars=("fps",)), Conditioning(scalars={"speed": jnp.ones(1)}), {},
     ("conditioning.check_parts", "Conditioning.scalars", "'fps'")),
    (dataclasses.replace(PLAIN, scalars=("fps",)), None, {},
     ("conditioning.check_parts", "Conditioning.scalars", "'fps'")),
    (dataclasses.replace(PLAIN, text=TEXT), captions(3, batch=1), {},
     ("unet_inputs.check_inputs", "3", "1")),
    (dataclasses.replace(PLAIN, text=TEXT), captions(1, batch=1), {"images": 1},
     ("unet_inputs.check_inputs", "1", "2")),
    (dataclasses.replace(PLAIN, norm_over="clip"), None, {"images": 1},
     ("images", "=1", "UNet.norm_over='clip'", "norm_over='frame'")),
])
def test_inputs_that_do_not_fit(spec, conditioning, options, message):
    options = {"z_shape": (1, 2, 4, 4, 3), **options}
    with refused(*message):
        trace(spec, conditioning=conditioning, **options)


def test_fourier_features_are_further_input_channels(normal):
    spec, z = dataclasses.replace(PLAIN, fourier=(0, 3)), normal(1, 2, 2, 4, 4, 3)
    found = stack_inputs(spec, z, Conditioning())
    waves = [wave(scale * np.pi * np.asarray(z)) for scale in (1, 8) for wave in (np.sin, np.cos)]
    np.testing.assert_allclose(found, np.concatenate([z, *waves], axis=-1), atol=1e-5)
    params = jax.eval_shape(lambda: SpaceTimeUNet(spec).init(jax.random.key(0), z, jnp.zeros(2)))["params"]
    assert params["stem"]["kernel"].shape[-2] == sum(spec.stacked.values()) * spec.patch**2 == 15 * spec.patch**2
    assert list(spec.stacked) == ["video", "fourier"] and PLAIN.stacked == {"video": 3}
