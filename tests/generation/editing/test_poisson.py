"""Blending of gradients against a dense linear solve, and what it does to seams."""

from __future__ import annotations

import numpy as np
import pytest

from tests.generation.editing.test_rerender_fusion import picture
from vdm_jax.generation.editing.poisson import GRADIENTS, blended_gradients, screened_poisson
from vdm_jax.generation.editing.propagation import Found, between, mixed


def differences(height, width):
    """Matrices of the differences of neighbours, of pixels row by row."""
    numbers = np.arange(height * width).reshape(height, width)
    for one, other in ((numbers[:-1], numbers[1:]), (numbers[:, :-1], numbers[:, 1:])):
        matrix = np.zeros((one.size, height * width))
        matrix[np.arange(one.size), one.ravel()] = -1
        matrix[np.arange(one.size), other.ravel()] = 1
        yield matrix


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.5])
@pytest.mark.parametrize("shape", [(5, 7), (6, 4), (1, 3), (4, 1)])
def test_least_squares(shape, weight):
    rng, (height, width) = np.random.default_rng(0), shape
    values, down, right = (rng.normal(size=size) for size in (shape, (height - 1, width), (height, width - 1)))
    rows, columns = differences(*shape)
    matrix = np.concatenate([np.eye(height * width), weight * rows, weight * columns])
    wanted = np.concatenate([values.ravel(), weight * down.ravel(), weight * right.ravel()])
    expected = np.linalg.lstsq(matrix, wanted, rcond=None)[0].reshape(shape)
    np.testing.assert_allclose(screened_poisson(values, down, right, weight), expected, atol=1e-12)


def test_gradients_are_those_of_the_better_picture():
    """The dense solve of each channel of CIELAB, as OpenCV converts it."""
    import cv2

    rng = np.random.default_rng(0)
    blend, one, other = (rng.uniform(90, 160, (6, 5, 3)) for _ in range(3))
    first = rng.random((6, 5)) < 0.5
    labs = [cv2.cvtColor((a / 255).astype(np.float32), cv2.COLOR_RGB2Lab).astype(float) for a in (blend, one, other)]
    expected = np.zeros((6, 5, 3))
    matrices = list(differences(6, 5))
    for channel, weight in enumerate(GRADIENTS):
        values, *sides = (lab[..., channel].ravel() for lab in labs)
        chosen = [np.where(first[places].ravel(), matrix @ sides[0], matrix @ sides[1])
                  for matrix, places in zip(matrices, (np.s_[:-1], np.s_[:, :-1]), strict=True)]
        normal = np.eye(30) + weight**2 * sum(matrix.T @ matrix for matrix in matrices)
        side = values + weight**2 * sum(matrix.T @ part for matrix, part in zip(matrices, chosen, strict=True))
        expected[..., channel] = np.linalg.solve(normal, side).reshape(6, 5)
    expected = 255 * cv2.cvtColor(expected.astype(np.float32), cv2.COLOR_Lab2RGB)
    np.testing.assert_allclose(blended_gradients(blend, one, other, first), expected, atol=0.01)


def test_a_seam_between_two_key_frames_becomes_soft():
    """Two results whose brightness differs, each right in one half of the frame."""
    drawn = picture(48, 64).astype(float) * 0.5 + 40
    better = np.zeros((48, 64))
    better[:, 32:] = 10.0
    one, other = Found(drawn, better), Found(drawn + 30, better[:, ::-1])
    jumps = [np.abs(np.diff(mixed(one, other, 0.5, poisson).astype(float) - drawn, axis=1))[:, 31].mean()
             for poisson in (False, True)]
    assert jumps[1] < 0.5 * jumps[0]
    same = Found(drawn, np.zeros((48, 64)))
    np.testing.assert_allclose(mixed(same, same, 0.5, True), drawn, atol=1)


def test_frames_between_take_it():
    sources = np.repeat(picture()[None], 4, axis=0)
    first, last = picture(seed=1), picture(seed=2)
    plain, blended = (between(sources, first, last, poisson) for poisson in (False, True))
    assert blended.shape == plain.shape and (blended != plain).any()
    assert np.abs(between(sources, first, first, True).astype(int) - first).max() <= 2
