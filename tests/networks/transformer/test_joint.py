"""Video transformers whose text is part of the sequence, and the positions of CogVideoX and LTX-Video."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.attention import BlockCausal
from vdm_jax.attention.counting import counted
from vdm_jax.attention.positions import RotaryAxes, RotaryCoordinates, rotary_coordinates
from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.conditions.low_resolution import LowResolution
from vdm_jax.conditions.text import EmbeddedText
from vdm_jax.configuration import from_json, to_json
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.schedules import CosineSchedule, FlowSchedule
from vdm_jax.networks.autoencoders.ltx_config import AUTOENCODER_LTX_090
from vdm_jax.networks.blocks.sinusoids import weighted_sinusoids
from vdm_jax.networks.transformer.config import AddedSinusoids, VideoTransformer
from vdm_jax.networks.transformer.members import COGVIDEOX_5B, LTX_2B, cogvideox, ltx
from vdm_jax.networks.transformer.network import VideoTransformerModule
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Stage, VideoSpec

SMALL = cogvideox(out_channels=2, width=16, heads=2, layers=2, text=EmbeddedText(width=6), text_length=5, level_width=8,
                  sinusoids=AddedSinusoids())
TEXT = Conditioning(embeddings=jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 4, 6)), jnp.float32),
                    text_mask=jnp.array([[[1, 1, 1, 1]], [[1, 1, 0, 0]]], bool))


@pytest.fixture(scope="module")
def outputs(filled, normal):
    def run(spec, conditioning=TEXT, logsnr=None, **call):
        x, module = normal(1, 2, 3, 4, 4, 2), VideoTransformerModule(spec)
        logsnr = jnp.array([0.5, -1.0]) if logsnr is None else logsnr
        params = filled(module, x, logsnr, conditioning)
        return np.asarray(jax.jit(lambda p, c: module.apply({"params": p}, x, logsnr, c, **call))(params, conditioning))
    return run


def test_configs_are_data():
    for spec in (SMALL, COGVIDEOX_5B, LTX_2B):
        assert from_json(VideoTransformer, to_json(spec)) == spec


def test_text_attends_to_the_video_and_is_hidden_where_it_is_masked(outputs):
    """What is hidden says nothing, neither to the video nor by way of the other words."""
    masked = dataclasses.replace(SMALL, text_tokens="masked", text_length=0)
    hidden = TEXT.replace(embeddings=TEXT.embeddings.at[1, :, 2:].set(9.0))
    np.testing.assert_allclose(outputs(masked, hidden), outputs(masked), atol=1e-6)
    seen = TEXT.replace(embeddings=TEXT.embeddings.at[1, :, 1].set(9.0))
    assert np.abs(outputs(masked, seen) - outputs(masked))[1].max() > 1e-3
    padded = outputs(SMALL)  # padding is zeros that are seen
    assert np.abs(padded - outputs(masked)).max() > 1e-3


def test_frames_that_do_not_exist_are_not_seen(outputs, normal):
    """Not by the text either."""
    valid = TEXT.replace(frame_valid=jnp.array([[1, 1, 0]] * 2, bool))
    module, x, level = VideoTransformerModule(SMALL), normal(1, 2, 3, 4, 4, 2), jnp.zeros(2)
    params = jax.jit(module.init)(jax.random.key(0), x, level, valid)["params"]
    params = jax.tree.map(lambda a: a + 0.1 * jnp.sin(jnp.arange(a.size, dtype=jnp.float32)).reshape(a.shape), params)
    run = jax.jit(lambda x: module.apply({"params": params}, x, level, valid))
    np.testing.assert_allclose(run(x)[:, :2], run(x.at[:, 2].add(3.0))[:, :2], atol=1e-5)


def test_attention_of_the_text_is_counted():
    module, spec = VideoTransformerModule(SMALL), SMALL
    with counted() as calls:
        jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 3, 4, 4, 2)), jnp.zeros(1), Conditioning(
            embeddings=jnp.zeros((1, 1, 2, 6)), text_mask=jnp.ones((1, 1, 2), bool))))
    pairs = (12 + 5) ** 2  # of tokens of the video and of the text
    assert sum(call.flops for call in calls) == spec.layers * 4 * pairs * spec.width


def test_rows_and_columns_are_fitted_into_the_grid_of_training():
    axes = RotaryAxes(dims=(4, 6, 6), grid=(30, 45))
    for found, wanted in zip(axes.places(30, 45), (np.arange(30), np.arange(45)), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-12)
    rows, columns = axes.places(30, 30)  # taller than the grid: as high, in the middle of its columns
    np.testing.assert_allclose(rows, np.arange(30), atol=1e-12)
    assert columns[0] == 8 and len(columns) == 30  # 7.5 to the nearest even number
    rows, columns = axes.places(15, 45)
    assert (rows[0], columns[0]) == (8, 0) and len(rows) == 15


def test_sinusoids_have_frames_columns_and_rows():
    code = weighted_sinusoids((2, 3, 4), 16, (2, 3, 3), (1.0, 2.0, 2.0))
    assert code.shape == (2, 3, 4, 16)
    np.testing.assert_allclose(code[1, :, :, 0], np.sin(1.0), atol=1e-6)
    np.testing.assert_allclose(code[0, 2, :, 4], np.sin(np.arange(4) / 2), atol=1e-6)  # columns over their scale
    np.testing.assert_allclose(code[0, :, 3, 10], np.sin(np.arange(3) / 2), atol=1e-6)


def test_coordinates_turn_pairs_across_all_heads(normal):
    """Against complex numbers, with what is left over in front."""
    x, axes = normal(0, 1, 2, 3, 2, 2, 10), RotaryCoordinates(base=30.0, lead=0.1)
    wide = np.asarray(x, np.float64).reshape(2, 3, 2, 20)
    place = np.meshgrid(range(2), range(3), range(2), indexing="ij")
    shares = [np.maximum(p * step - lead, 0) / span for p, step, span, lead in zip(
        place, axes.steps, axes.spans, (0.1, 0, 0), strict=True)]
    wanted = wide.copy()
    for j, frequency in enumerate(30.0 ** np.linspace(0, 1, 3) * np.pi / 2):
        for axis in range(3):
            at = 2 + 2 * (3 * j + axis)
            turned = (wide[..., at] + 1j * wide[..., at + 1]) * np.exp(1j * frequency * (2 * shares[axis] - 1))
            wanted[..., at], wanted[..., at + 1] = turned.real, turned.imag
    np.testing.assert_allclose(np.asarray(rotary_coordinates(x, axes)).reshape(2, 3, 2, 20), wanted, atol=2e-5)


@pytest.mark.parametrize("code, named, changes", [
    ("VideoTransformer.text_stream", ("text=None",), {"text": None, "text_tokens": "pooled", "text_length": 0}),
    ("VideoTransformer.text_stream", ("frame_conditioning='in_place'",), {"frame_conditioning": "in_place"}),
    ("VideoTransformer.text_stream", ("BlockCausal",), {"patterns": (BlockCausal(),)}),
    ("VideoTransformer.norm", ("'rms'", "'affine'"), {"norm": "rms"}),
    ("VideoTransformer.norm", ("'affine'", "cross"), {"text_stream": "cross"}),
    ("VideoTransformer.timesteps", ("None", "'timesteps'"), {"timesteps": None}),
    ("VideoTransformer.sinusoids", ("one of them",), {"rotary": RotaryAxes(dims=(4, 2, 2))}),
    ("VideoTransformer.sinusoids", ("AddedSinusoids", "no BlockCausal"), {
        "patterns": (BlockCausal(),), "text": None, "text_tokens": "pooled", "text_length": 0, "text_stream": "cross",
        "norm": "layer"}),
    ("VideoTransformer.text_refiner", ("text_refiner=1", "'padded'", "'masked'"), {"text_refiner": 1}),
    ("VideoTransformer.text_refiner", ("text_perceptron=True", "False"), {
        "text_refiner": 1, "text_tokens": "masked", "text_length": 0, "text_perceptron": True}),
    ("VideoTransformer.level_width", ("level_width=8", "'shared'", "0, or 16"), {"modulation": "shared"})])
def test_configs_that_do_not_fit(code, named, changes):
    with refused(code, *named):
        dataclasses.replace(SMALL, **changes)


def test_texts_have_the_level_of_the_clip(outputs):
    with refused("VideoTransformer.text_stream", "one per clip"):
        outputs(SMALL, logsnr=jnp.zeros((2, 3)))
    with refused("VideoTransformer.text_stream", "frame_levels=True"):
        Stage(name="base", video=VideoSpec(frames=3, height=4, width=4),
              network=dataclasses.replace(SMALL, out_channels=3),
              process=Process(schedule=SMALL.timesteps, prediction="v", frame_levels=True))


def stage_of(network, schedule, **options):
    return Stage(name="base", video=VideoSpec(frames=3, height=8, width=8), network=dataclasses.replace(
        network, out_channels=3), process=Process(schedule=schedule, prediction="v"), **options)


def test_the_noise_is_that_of_the_table():
    with refused("VideoTransformer.timesteps", "CosineSchedule", "the same table"):
        stage_of(SMALL, CosineSchedule())
    with refused("VideoTransformer.timesteps", "snr_shift=1.0", "snr_shift=3.0"):
        stage_of(SMALL, dataclasses.replace(SMALL.timesteps, snr_shift=1.0))


def test_windows_are_not_fitted_into_the_grid_of_training():
    """Their tokens would be where those of whole videos are."""
    fitted = dataclasses.replace(SMALL, sinusoids=None, low_resolution=True, rotary=RotaryAxes(dims=(2, 2, 2), grid=(
        4, 4)))
    options = {"source": LowResolution(frames=3, height=4, width=4), "training": Training(crop=(4, 4))}
    with refused("Stage.training.crop", "training.crop=(4, 4)", "without a grid"):
        stage_of(fitted, SMALL.timesteps, **options)
    stage_of(dataclasses.replace(fitted, rotary=RotaryAxes(dims=(2, 2, 2))), SMALL.timesteps, **options)


def test_coordinates_are_those_of_the_videos():
    network = ltx(width=16, heads=2, layers=1, text=EmbeddedText(width=6), out_channels=3)
    video, process = VideoSpec(frames=9, height=64, width=64, fps=25), Process(schedule=FlowSchedule(),
                                                                               prediction="flow")
    latent = Latent(autoencoder=dataclasses.replace(AUTOENCODER_LTX_090, latent_channels=3), weights="x")
    made = Stage(name="base", video=video, network=network, process=process, latent=latent,
                 sampling=Sampling(threshold=None))
    for changes, named in (({"video": dataclasses.replace(video, fps=8)}, ("(0.32, 32.0, 32.0)", "(1.0, 32, 32)")),
                           ({"latent": None}, ("tokens of 1 frames", "(0.04, 1, 1)"))):
        with refused("RotaryCoordinates.steps", *named):
            dataclasses.replace(made, **changes)
