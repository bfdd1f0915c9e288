"""Null-text inversion with a tiny released model: guided sampling leads back to the video, and another caption away."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.pipelines.folders import write_pictures
from tests.refusals import refused
from vdm_jax.generation.editing import one_stage
from vdm_jax.generation.editing.ddim_inversion import DDIMInversion
from vdm_jax.generation.editing.edit import edit
from vdm_jax.generation.editing.null_text import NullText
from vdm_jax.generation.jobs import Jobs
from vdm_jax.generation.overrides import with_overrides
from vdm_jax.generation.prompts import requested_conditioning
from vdm_jax.generation.released.models import load_released
from vdm_jax.metrics.frames import psnr
from vdm_jax.video.arrays import to_float

OWN, WEIGHT = ["a red three"], 6.0


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """With cross-attention that counts: its random weights, eight times as large."""
    found = load_released(write_pictures(tmp_path_factory.mktemp("plain") / "folder"), jax.devices()[:1])

    def larger(path, x):
        name = jax.tree_util.keystr(path)
        return 8 * x if "norm_context" in name or ("cross_attention" in name and "kernel" in name) else x

    return found.of(found.experiment, jax.tree_util.tree_map_with_path(larger, found.params))


VIDEO = np.random.default_rng(0).integers(0, 256, (1, 1, 16, 16, 3)).astype(np.uint8)


@pytest.mark.full  # gradients of a network inside loops, which a CPU computes slowly
def test_guidance_leads_back_to_the_video(generator):
    """Within a decibel of the way there and back without guidance, and nearer to what the autoencoder keeps of it
    than plain inversion with guidance."""

    def made(method, captions=OWN, **options):
        return edit(generator, VIDEO, captions, source_captions=OWN, method=method, guidance=WEIGHT, steps=2, **options)

    kept = made(DDIMInversion(strength=0.0)).videos.astype(int)
    found = made(NullText(iterations=10, learning_rate=0.2), round_trip=True)
    plain = made(DDIMInversion(refinements=0), round_trip=True)  # whose way back has no guidance
    np.testing.assert_allclose(psnr(found.videos, VIDEO), plain.round_trip["image"], atol=1)
    np.testing.assert_allclose(psnr(found.videos, VIDEO), found.round_trip["image"], atol=1)
    assert np.abs(found.videos - kept).mean() < np.abs(plain.videos - kept).mean()


def test_no_strength_leaves_what_the_autoencoder_keeps(generator):
    options = {"source_captions": OWN, "guidance": WEIGHT, "steps": 2}
    made, plain = (edit(generator, VIDEO, ["a two"], method=kind(strength=0.0), **options).videos
                   for kind in (NullText, DDIMInversion))
    np.testing.assert_array_equal(made, plain)


def test_loops_condition_nothing_and_gradients_compute_the_network_again(generator, monkeypatch):
    """The conditioning is made once for the inversion, the edit, and each caption with other null embeddings."""
    calls, conditioning, method = [], one_stage.stage_conditioning, NullText(iterations=2)
    monkeypatch.setattr(one_stage, "stage_conditioning", lambda *a: calls.append(a) or conditioning(*a))
    stage = method.stage(generator.stages()[0])
    how = one_stage.edit_sampling(stage, with_overrides(stage.sampling, steps=2, guidance=WEIGHT), method, 0.0)
    text = requested_conditioning(stage, generator.request(OWN, {}, (stage,)))
    made = jax.make_jaxpr(functools.partial(one_stage.edit_stage, stage, how))(
        generator.params[stage.name], Jobs(0, np.arange(1)).keys(np.arange(1), 0), (text, text), None,
        jnp.asarray(to_float(VIDEO)), generator.autoencoders[stage.name])
    assert len(calls) == 4
    assert "differentiated=True" in str(made)  # of what is computed again in a backward pass


def test_what_cannot_be(generator):
    with refused("edit.source_captions", "method='null_text' without source_captions"):
        edit(generator, VIDEO, OWN, method=NullText())
    with refused("NullText.check", "sampling.guidance=0.0", "a weight above 0"):
        edit(generator, VIDEO, OWN, source_captions=OWN, method=NullText(), guidance=0.0)
