"""How key frames of Rerender-A-Video are fused, against NumPy written from the equations."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.generation.editing.parts import each_row
from vdm_jax.generation.editing.rerender import Rerender
from vdm_jax.generation.editing.rerender_fusion import (
    Motion,
    blended,
    coloured,
    faithful,
    latent_places,
    motion_to,
    moved,
    pixel_fused,
    shape_fused,
    shown,
    soft,
    steps_of,
)
from vdm_jax.generation.editing.rerender_keys import tapped
from vdm_jax.networks.blocks.attention import Attention

RNG = np.random.default_rng(0)


def picture(height=64, width=96, seed=0):
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(height // 4, width // 4, 3)).cumsum(0).cumsum(1)
    return np.uint8(255 * (found - found.min()) / np.ptp(found)).repeat(4, 0).repeat(4, 1)


def test_softly_hidden_pixels_are_those_around():
    """Maximum of the window, mean of the Gaussian of a mirrored picture, and what is hidden on top, no more than 1."""
    hidden = np.zeros((20, 24), bool)
    hidden[9, 3] = hidden[10:13, 15] = True
    grown = np.array([[hidden[max(y - 4, 0):y + 5, max(x - 4, 0):x + 5].any() for x in range(24)] for y in range(20)])
    bell = np.exp(-np.arange(-4, 5) ** 2 / (2 * 18.0**2))
    kernel = np.outer(bell, bell) / np.outer(bell, bell).sum()
    padded = np.pad(grown.astype(float), 4, mode="reflect")
    blurred = np.array([[(padded[y:y + 9, x:x + 9] * kernel).sum() for x in range(24)] for y in range(20)])
    np.testing.assert_allclose(soft(hidden), np.clip(blurred + hidden, 0, 1), atol=1e-5)


def test_latents_are_shown_where_all_their_pixels_are():
    mask = RNG.random((8, 12)).astype(np.float32)
    expected = [[1 - mask[4 * y:4 * y + 4, 4 * x:4 * x + 4].max() for x in range(3)] for y in range(2)]
    np.testing.assert_allclose(shown(mask, 4), expected, rtol=1e-6)


def test_latents_move_along_the_flow():
    along = RNG.normal(size=(16, 24, 2)).astype(np.float32) * 9
    x = RNG.normal(size=(1, 1, 4, 6, 3)).astype(np.float32)
    expected = np.zeros((4, 6, 3))
    for row in range(4):
        for column in range(6):
            dx, dy = along[4 * row:4 * row + 4, 4 * column:4 * column + 4].mean((0, 1)) / 4
            expected[row, column] = x[0, 0, np.clip(round(float(row + dy)), 0, 3),
                                      np.clip(round(float(column + dx)), 0, 5)]
    places = latent_places(along, 4)
    np.testing.assert_array_equal(moved(jnp.asarray(x), jnp.asarray(places[None]))[0, 0], expected)
    mask = RNG.random((1, 1, 4, 6, 1)).astype(np.float32)
    own = RNG.normal(size=x.shape).astype(np.float32)
    np.testing.assert_allclose(shape_fused(own, jnp.asarray(x), jnp.asarray(places[None]), mask)[0, 0],
                               mask[0, 0] * expected + (1 - mask[0, 0]) * own[0, 0], rtol=1e-5, atol=1e-6)


def test_colours_are_those_of_the_first(atol=1e-4):
    x, first = (RNG.normal(size=(2, 1, 8, 8, 4)) * scale + shift for scale, shift in ((3, 1), (0.5, -2)))
    found = np.asarray(coloured(jnp.asarray(x), jnp.asarray(first)))
    np.testing.assert_allclose(found.mean((2, 3)), first.mean((2, 3)), atol=atol)
    np.testing.assert_allclose(found.std((2, 3)), first.std((2, 3)), atol=atol)
    normal = (x - x.mean((2, 3), keepdims=True)) / x.std((2, 3), keepdims=True)
    expected = normal * first.std((2, 3), keepdims=True) + first.mean((2, 3), keepdims=True)
    np.testing.assert_allclose(found, expected, atol=atol)


def test_pixels_are_fused_with_as_much_noise_as_there_was():
    """A weight of nothing changes nothing, one of 1 is the target diffused, and with `inner` 1 noise keeps its
    variance wherever both are mixed."""
    z, direction, target, noise = (RNG.normal(size=(1, 1, 40, 40, 4)) for _ in range(4))
    alpha, sigma = 0.6, 0.8
    weight = RNG.random((1, 1, 40, 40, 1))
    kept = np.maximum(1 - weight, 0.9 * np.sqrt(1 - weight**2))
    expected = weight * (alpha * target + sigma * noise) + (1 - weight) * (z - direction) + kept * direction
    arrays = [jnp.asarray(a) for a in (z, direction, target, noise)]
    np.testing.assert_allclose(pixel_fused(*arrays, jnp.asarray(weight), 0.9, (alpha, sigma)), expected, atol=1e-5)
    ones = jnp.ones(weight.shape)
    np.testing.assert_allclose(pixel_fused(*arrays, 0 * ones, 0.9, (alpha, sigma)), z, atol=1e-6)
    np.testing.assert_allclose(pixel_fused(*arrays, ones, 0.9, (alpha, sigma)), alpha * target + sigma * noise,
                               atol=1e-6)
    clean = jnp.zeros(z.shape)
    mixed = pixel_fused(sigma * arrays[3], sigma * arrays[3], clean, arrays[1], 0.5 * ones, 1.0, (alpha, sigma))
    assert np.std(mixed) == pytest.approx(sigma, rel=0.02)


def test_the_first_result_lies_over_the_previous_one_and_both_over_the_rough_one():
    rough, first, previous = (np.full((32, 40, 3), value, np.float32) for value in (0.0, 0.5, -0.5))
    still, hidden = np.zeros((32, 40, 2), np.float32), [np.zeros((32, 40), bool) for _ in range(2)]
    hidden[0][:, :20] = True  # of the first
    hidden[1][:16] = True  # of the previous
    found, neither = blended(rough, (first, Motion(still, hidden[0])), (previous, Motion(still, hidden[1])))
    corners = found[0, 0, 0], found[31, 0, 0], found[0, 39, 0], found[31, 39, 0]
    np.testing.assert_allclose(corners, [0, -0.5, 0.5, 0.5], atol=1e-6)
    masks = [soft(mask)[..., None] for mask in hidden]
    inner = (1 - masks[1]) * previous + masks[1] * rough
    np.testing.assert_allclose(found, (1 - masks[0]) * first + masks[0] * inner, atol=1e-5)
    np.testing.assert_allclose(neither, soft(hidden[0] & hidden[1]))


def test_motion_of_a_moved_picture():
    whole = picture(64, 120)
    motion = motion_to(whole[:, 3:99], whole[:, :96])  # what is at x was at x + 3
    assert np.abs(motion.along[8:-8, 8:-8] - [3, 0]).mean() < 0.2 and motion.hidden[8:-8, 8:-8].mean() < 0.02
    assert motion.hidden[:, -2:].mean() > 0.5


@pytest.mark.parametrize("loss", [0.1, 0.9])
def test_faithful_latents_make_up_for_what_a_round_trip_loses(loss):
    """An autoencoder that loses a share of each pixel loses the square of it, unless that brings pixels too far."""
    factor = 4

    def encode(video):
        return video.reshape(1, 1, 4, factor, 4, factor, 3).mean((3, 5))

    def decode(z):
        return (1 - loss) * z.repeat(factor, 2).repeat(factor, 3)

    video = np.full((1, 1, 16, 16, 3), 0.9, np.float32)
    video[..., 8:, :, :] = 0.01
    z = np.asarray(encode(video))
    change = z - (1 - loss) * z
    trial = (1 - loss) * (z + change)
    far = np.abs(trial.repeat(factor, 2).repeat(factor, 3) - video).mean(-1) > 0.25
    m = np.zeros((4, 4), bool)
    for row in range(4):
        for column in range(4):
            around = far[0, 0, max(4 * row - 4, 0):4 * row + 8, max(4 * column - 4, 0):4 * column + 8]
            m[row, column] = around.any()
    expected = z + ~m[..., None] * change
    np.testing.assert_allclose(faithful(encode, decode, jnp.asarray(video)), expected, rtol=1e-5)
    assert m.any() == (loss == 0.9)


def test_phases_of_the_steps():
    """Of the published 20: shapes in the first three, pixels between 10 and 16, colours from 16 on."""
    method = Rerender()
    assert method.steps_by_shape(20) == (0, 1, 2) and method.steps_by_colour(20) == (16, 17, 18, 19)
    assert method.steps_by_pixels(20) == (11, 12, 13, 14, 15)
    assert Rerender(strength=0.4).steps_by_pixels(20) == (12, 13, 14, 15)
    assert Rerender(pixel_strength=0.0).steps_by_pixels(20) == () == Rerender(pixel=()).steps_by_pixels(20)
    assert steps_of((1.0, 1.0), 20, ends=True) == () and steps_of((), 20, ends=True) == ()
    assert steps_of((0.0, 0.29), 100, ends=True)[-1] == 29
    assert method.key_frames(25, 20) == (0, 10, 20, 24) and method.key_frames(21, 20) == (0, 10, 20)
    assert method.key_frames(1, 20) == (0,) and Rerender(interval=1).key_frames(3, 20) == (0, 1, 2)
    assert Rerender(strength=0.0).key_frames(4, 20) == (0, 1, 2, 3)
    with refused("Rerender.shape", "Rerender.shape=(0.1,)", "two shares of the steps, or ()"):
        Rerender(shape=(0.1,))
    with refused("Rerender.colour", "colour"):
        Rerender(colour=(0.9, 0.1))


def test_self_attention_sees_other_tokens_in_place_of_its_own():
    """The softmax over keys of the other tokens, of the video's own queries."""
    x, others = RNG.normal(size=(2, 1, 3, 4, 8)), RNG.normal(size=(2, 24, 8))

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            below = Attention(heads=2, joint=False, name="down_0_0")(x)  # which sees its own
            return Attention(heads=2, joint=False, name="up_0_0")(x) + 0 * below

    module = Network()
    params = module.init(jax.random.key(0), jnp.asarray(x, jnp.float32))["params"]

    def denoise(z, logsnr):
        return module.apply({"params": params}, z)

    own, tokens = tapped(denoise, jnp.asarray(x, jnp.float32), jnp.zeros(2), None)
    (name, found), = tokens.items()
    np.testing.assert_allclose(found, x.reshape(2, 12, 8), rtol=1e-6)
    again, _ = tapped(denoise, jnp.asarray(x, jnp.float32), jnp.zeros(2), {name: found})
    np.testing.assert_allclose(again, own, atol=1e-6)
    seen, _ = tapped(denoise, jnp.asarray(x, jnp.float32), jnp.zeros(2), {name: jnp.asarray(others, jnp.float32)})
    weights = {key: np.asarray(leaf["kernel"], np.float64) for key, leaf in params["up_0_0"].items()}
    q = (x.reshape(2, 12, 8) @ weights["query"]).reshape(2, 12, 2, 4)
    k, v = ((others @ weights[key]).reshape(2, 24, 2, 4) for key in ("key", "value"))
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) / 2
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    y = np.einsum("bhqk,bkhd->bqhd", shares, v).reshape(2, 12, 8) @ weights["out"] + params["up_0_0"]["out"]["bias"]
    np.testing.assert_allclose(seen.reshape(2, 12, 8), y, atol=1e-5)


def test_a_row_that_equals_the_one_before_is_not_computed_again():
    asked, rows = [], np.array([[1.0], [2.0], [2.0], [1.0]])
    others = np.array([[0.0], [0.0], [0.0], [5.0]])
    assert each_row(lambda *row: asked.append(row) or float(sum(row)[0]), rows, others) == [1, 2, 2, 6]
    assert len(asked) == 3
