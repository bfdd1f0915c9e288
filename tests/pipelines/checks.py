"""What holds for any pipeline of a video transformer whose noise enters by an embedding."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

import vdm_jax
from vdm_jax.diffusion.caching import ByChange, Cache
from vdm_jax.generation.released.models import load_released, with_size
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


def check_a_video_of_a_text(pipeline: FromText, folder: Path, out: Path, rate: float, changes: Iterable[dict[str, Any]],
                            *, height: int, width: int, num_frames: int) -> None:
    """The callable and the generator of runs make the same one; what is saved in `out` is what was loaded; and each of
    the `changes` of the call changes it."""
    options = {"height": height, "width": width, "num_frames": num_frames, "num_inference_steps": 2, "seed": 3,
               "progress": False}
    found = pipeline(["a red three"], **options)
    assert found.videos.shape == (1, num_frames, height, width, 3)
    assert found.videos.std() > 0 and found.fps == {"video": rate}
    np.testing.assert_array_equal(pipeline(["a red three"], **options).videos, found.videos)
    for other in changes:
        again = pipeline(**{"prompt": ["a red three"], **options, **other}).videos
        assert np.abs(found.videos.astype(int) - again).max() > 0, other
    again = with_size(load_released(folder), num_frames, height, width)(["a red three"], seed=3, steps=2).videos
    assert np.abs(again.astype(int) - found.videos).max() <= 1
    pipeline.save_pretrained(out)
    same = vdm_jax.from_pretrained(out)(["a red three"], **options).videos
    np.testing.assert_array_equal(same, found.videos)
