"""Predictions of Stochastic Moving MNIST that no network makes: what scores are to be read against.

The oracle knows the digits, their places and the speeds that the given frames show, and draws what follows from the
true process: no model can predict better. Its blurred mean is one prediction, the average of many of its samples. The
others know nothing.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from vdm_jax.data.smmnist import SMMNISTSource, StochasticMovingMNIST

GIVEN, FRAMES, CLIPS = 5, 15, 256
TRAJECTORIES = 10
AVERAGED = 30  # samples in a blurred mean
_AVERAGED_STREAM = 10**6  # first number of those samples, which are none of the trajectories

Videos = UInt8[np.ndarray, "N T H W 3"]


def test_clips(test_digits: int = 256, seed: int = 0) -> SMMNISTSource:
    """The clips that are predicted."""
    return StochasticMovingMNIST(frames=FRAMES, test_digits=test_digits, seed=seed, test_clips=CLIPS).open("test", None)


def real(source: SMMNISTSource) -> Videos:
    """The clips as they are."""
    return np.stack([source[i]["video"] for i in range(CLIPS)])


def oracle(source: SMMNISTSource, trajectory: int) -> Videos:
    """One trajectory of each clip."""
    return np.stack([_sample(source, i, trajectory) for i in range(CLIPS)])


def blurred_mean(source: SMMNISTSource) -> Videos:
    """The mean of `AVERAGED` trajectories of each clip."""
    def mean(clip: int) -> np.ndarray:
        samples = [_sample(source, clip, _AVERAGED_STREAM + k) for k in range(AVERAGED)]
        return np.round(np.mean(samples, axis=0)).astype(np.uint8)

    return np.stack([mean(i) for i in range(CLIPS)])


def last_frame(source: SMMNISTSource) -> Videos:
    """The last given frame, again and again."""
    videos = real(source)
    videos[:, GIVEN:] = videos[:, GIVEN - 1 : GIVEN]
    return videos


def black(source: SMMNISTSource) -> Videos:
    """Black frames."""
    videos = real(source)
    videos[:, GIVEN:] = 0
    return videos


def _sample(source: SMMNISTSource, clip: int, number: int) -> UInt8[np.ndarray, "T H W 3"]:
    return source.continued(clip, GIVEN, np.random.default_rng([1, clip, number]))
