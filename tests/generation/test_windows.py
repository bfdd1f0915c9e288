"""A stage that is trained on parts of clips and sampled by windows along time."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conditions.texts import text_conditioning
from tests.generation.conftest import random_params
from tests.refusals import refused
from vdm_jax.attention.patterns import Temporal
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.configuration import from_json, to_json
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.generation.one_stage import stage_denoiser
from vdm_jax.networks.config import CrossAttention, Level, SelfAttention, UNet, WordEncoder
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.parallel.rules import batch_sharding
from vdm_jax.planning.flops import network_forward, sampling_work
from vdm_jax.planning.inputs import training_batch
from vdm_jax.stages.inputs import target_video, training_inputs
from vdm_jax.stages.options import Sampling, Training, Windows
from vdm_jax.stages.parameters import initial_params
from vdm_jax.stages.stage import LowResolution, Stage, VideoSpec
from vdm_jax.training.state import abstract_state

MIXERS = (SelfAttention(pattern=Temporal(), head_dim=8), CrossAttention(head_dim=8))
STAGE = Stage(
    name="large", video=VideoSpec(frames=6, height=8, width=8), source=LowResolution(frames=6, height=4, width=4),
    network=UNet(levels=(Level(channels=8, blocks=1, kernel=1, mixers=MIXERS),), patch=4, embedding_channels=16,
                 low_resolution=True, text=WordEncoder(words=tuple("abc"), length=4, width=8, layers=1, head_dim=8)),
    process=Process(prediction="x"), training=Training(frames=3, batch_size=4),
    sampling=Sampling(windows=Windows(frames=3, overlap=1, chunk=2), guidance=1.0, threshold=None))


def test_windows_are_denoised_with_what_belongs_to_them():
    """The estimate is the mean, frame by frame, of those of the stage for short videos given the window's part."""
    params, rng = random_params(STAGE.trained(), 0), np.random.default_rng(0)
    z, low = (jnp.asarray(rng.normal(size=(2, 6, 8, 8, 3)), jnp.float32) for _ in range(2))
    text = text_conditioning(jnp.array([[[2, 3, 0, 0]], [[4, 2, 2, 0]]]))
    whole, level = text.replace(low_resolution=low, augmentation=jnp.ones(2)), jnp.full(2, -1.0)

    def estimate(stage, conditioning, z):
        levels = np.array([-1.0])
        return jax.jit(lambda z, c: stage_denoiser(stage, params, c, stage.sampling, levels)(z, level))(z, conditioning)

    short = STAGE.trained()
    assert short.video.frames == short.source.frames == 3 and short.sampling.windows is None
    total, count = np.zeros(z.shape), np.zeros((6, 1, 1, 1))
    for part in (slice(0, 3), slice(2, 5), slice(3, 6)):
        total[:, part] += estimate(short, whole.replace(low_resolution=low[:, part]), z[:, part])
        count[part] += 1
    rounding = 1e-5 * np.abs(total).max()  # batches of other sizes are summed in other orders
    np.testing.assert_allclose(estimate(STAGE, whole, z), total / count, atol=rounding)
    mesh = make_mesh(MeshSpec(data=2), jax.devices()[:2])
    with jax.set_mesh(mesh):  # a video and its windows on each device
        sharded_axis = jax.device_put((whole, z), batch_sharding(mesh))
        np.testing.assert_allclose(estimate(STAGE, *sharded_axis), total / count, atol=rounding)


def test_a_part_of_a_conditioning_has_what_belongs_to_its_frames():
    per_frame = np.arange(2 * 4 * 3.0).reshape(2, 4, 3)
    whole = Conditioning(
        embeddings=jnp.asarray(per_frame[..., None]), text_mask=jnp.asarray(per_frame > 0),
        conditioning_frames=jnp.asarray(per_frame[..., None, None]), frame_valid=jnp.asarray(per_frame[..., 0] > 5),
        references={"all": jnp.ones((2, 1, 5, 6)), "each": jnp.asarray(per_frame[..., None])},
        reference_masks={"each": jnp.asarray(per_frame > 2)}, scalars={"fps": jnp.ones(2)})
    part = jax.jit(lambda start: whole.window(start, 2, 4))(1)
    for a, b in zip(jax.tree.leaves(part), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b[:, 1:3] if b.ndim > 1 and b.shape[1] == 4 else b)
    assert part.references["all"].shape == (2, 1, 5, 6) and part.embeddings.shape == (2, 2, 3, 1)


def test_training_sees_parts_of_clips_from_random_frames():
    rng = np.random.default_rng(0)
    batch = {"video": rng.integers(0, 256, (16, 12, 8, 8, 3)).astype(np.uint8), "tokens": np.ones((16, 4), np.int32),
             "frame_valid": np.ones((16, 12), bool)}
    x, conditioning, _ = training_inputs(STAGE, batch, jax.random.key(0))
    whole = np.asarray(target_video(batch["video"], STAGE.video))
    starts = []
    for video, full in zip(np.asarray(x), whole, strict=True):
        starts += [s for s in range(4) if np.allclose(video, full[s : s + 3], atol=1e-5)]
    assert len(starts) == 16 and set(starts) == {0, 1, 2, 3}
    assert conditioning.low_resolution.shape == (16, 3, 8, 8, 3) and conditioning.frame_valid.shape == (16, 3)
    with refused("inputs.take_frames", "8", "6", "12"):
        training_inputs(STAGE, {**batch, "video": batch["video"][:, :8]}, jax.random.key(0))


def test_a_network_may_see_fewer_frames_than_a_video_has():
    """Its tables and its multiples are those of the parts; the video's need not fit."""
    table = SelfAttention(pattern=Temporal(), head_dim=8, position="learned")
    network = dataclasses.replace(STAGE.network, levels=(
        Level(channels=8, blocks=1, temporal_stride=3), Level(channels=8, blocks=1, mixers=(table,))))
    video, source = (dataclasses.replace(part, frames=7) for part in (STAGE.video, STAGE.source))
    stage = dataclasses.replace(STAGE, network=network, video=video, source=source)
    assert from_json(Stage, to_json(stage), "stage") == stage
    params = jax.eval_shape(lambda: initial_params(stage, jax.random.key(0)))
    assert params["down_1_0"]["mixers"]["temporal_attention_0"]["position"]["table_t"].shape == (1, 8)


def test_windows_are_counted_in_the_work_of_sampling():
    mesh = make_mesh(MeshSpec(data=8))
    batch, _ = training_batch(STAGE, CaptionedDigits(frames=6, size=16), 8, 1)
    params = abstract_state(STAGE, mesh).params
    unguided = dataclasses.replace(STAGE.sampling, guidance=0.0, steps=5)
    work = sampling_work(STAGE, unguided, batch, params, mesh)
    short = network_forward(STAGE.trained(), {**batch, "video": jax.ShapeDtypeStruct((8, 3, 16, 16, 3), np.uint8)},
                            params, mesh)
    assert work.evaluations == 5 * 3 and work.model == 15 * short.model


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Windows(frames=2), ("Windows", "frames=2", "overlap=2")),
    (lambda: changed(training=Training(frames=7)),
     ("Stage.training.frames", "=7", "frame_rates=None", "video.frames=6")),
    (lambda: changed(sampling=Sampling(windows=Windows(frames=7))), ("Stage.sampling.windows.frames", "=7")),
    (lambda: changed(source=LowResolution(frames=3, height=4, width=4)),
     ("Stage.source.frames", "=3", "training.frames")),
    (lambda: changed(network=dataclasses.replace(STAGE.network, levels=(
        Level(channels=8, temporal_stride=2), Level(channels=8)))),
     ("Stage.training.frames", "=3")),
])
def test_parts_that_cannot_be(make, message):
    with refused(*message):
        make()


def changed(**values):
    return dataclasses.replace(STAGE, **values)
