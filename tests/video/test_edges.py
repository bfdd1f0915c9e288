"""Edges as scikit-image has them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.video.edges import edges


def test_it_is_the_filter_of_scikit_image():
    filters = pytest.importorskip("skimage.filters", reason="needs the extra [metrics]")
    video = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 3, 9, 7, 3)).astype(np.float32)
    found = np.asarray(jax.jit(edges)(video))
    assert found.shape == (2, 3, 9, 7, 1)
    for clip, one in zip(video.reshape(-1, 9, 7, 3), found.reshape(-1, 9, 7), strict=True):
        theirs = np.sqrt(2) * filters.sobel((clip.mean(-1) + 1) / 2, mode="nearest")  # a step is 1 / sqrt(2) there
        np.testing.assert_allclose(one, np.minimum(theirs, 1), atol=1e-6)


def test_a_step_from_black_to_white_is_one_and_flat_pictures_have_none():
    flat = jnp.full((1, 8, 8, 3), 0.3)
    assert np.abs(edges(flat)).max() < 1e-6
    step = edges(flat.at[:, :, :4].set(-1.0).at[:, :, 4:].set(1.0))[0, :, :, 0]
    np.testing.assert_allclose(step, np.repeat([[0, 0, 0, 1, 1, 0, 0, 0]], 8, 0), atol=1e-6)
