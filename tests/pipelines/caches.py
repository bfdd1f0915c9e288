"""What is kept from step to step, of any pipeline of a video transformer whose noise enters by an embedding."""

from __future__ import annotations

from typing import Any

import numpy as np

from vdm_jax.diffusion.caching import ByChange, Cache
from vdm_jax.pipelines.base import FromText


def check_steps_reuse_what_the_blocks_have_added(pipeline: FromText, **size: Any) -> None:
    """At steps that are given, or that are chosen by how much the embedding of the noise level changes."""
    options = {**size, "num_inference_steps": 3, "seed": 3, "progress": False}
    plain, whole, reused, least = (
        pipeline("a red three", **options, cache=cache).videos
        for cache in (None, Cache(steps=(0, 1, 2)), Cache(every=3), ByChange(threshold=1e9)))
    np.testing.assert_array_equal(whole, plain)
    # However much the embedding changes: the first step and the last
    np.testing.assert_array_equal(least, pipeline("a red three", **options, cache=Cache(steps=(0, 2))).videos)
    assert np.abs(least.astype(int) - plain).max() > 0
    assert 0 < np.abs(reused.astype(int) - plain).max()
