"""The generator: captions and a seed in, videos of all stages out, whatever the batches and devices."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.conditions.conditioning import Request
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.errors import UserError
from vdm_jax.generation import generator as generator_module
from vdm_jax.generation.compiled import jit_sampling
from vdm_jax.generation.generator import Generated, Generator
from vdm_jax.generation.prompts import requested_conditioning
from vdm_jax.networks.config import EmbeddedText
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.parallel.rules import parameter_shardings
from vdm_jax.planning.inputs import sampling_inputs
from vdm_jax.stages.options import Sampling
from vdm_jax.video.arrays import to_uint8

CAPTIONS = ("a red three moving left", "a blue two", "a red two moving", "three blue", "a")


@pytest.fixture(scope="module")
def one_device(experiment, params):
    return Generator(experiment, params, jax.devices()[:1])


@pytest.fixture(scope="module")
def floats():
    """Generators in this module give floats rather than bytes, so that tolerances mean something."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator_module, "to_uint8", np.asarray)
        yield


@pytest.fixture(scope="module")
def five(floats, one_device):
    """The five videos in batches of 4 (4 and 1)."""
    return one_device(CAPTIONS, seed=3)


def assert_same_videos(got: Generated, expected: Generated, rows):
    for name, videos in expected.stages.items():
        np.testing.assert_allclose(got.stages[name], videos[rows], atol=1e-4, err_msg=name)


def test_stages_captions_and_rates(five):
    assert five.captions == CAPTIONS and five.fps == {"base": 4, "large": 8}
    assert {name: videos.shape for name, videos in five.stages.items()} == {
        "base": (5, 2, 8, 8, 3), "large": (5, 4, 16, 16, 3)}
    assert five.videos is five.stages["large"]
    flat = five.videos.reshape(5, -1)
    assert np.abs(flat[:, None] - flat[None]).max(-1)[~np.eye(5, dtype=bool)].min() > 0.1  # five different videos


def test_a_video_does_not_depend_on_the_batch_size(five, experiment, params):
    stages = tuple(dataclasses.replace(stage, sampling=dataclasses.replace(stage.sampling, batch_size=2))
                   for stage in experiment.stages)
    pairs = Generator(dataclasses.replace(experiment, stages=stages), params, jax.devices()[:1])
    assert_same_videos(pairs(CAPTIONS, seed=3), five, slice(None))


def test_a_video_does_not_depend_on_the_number_of_devices(five, experiment, params):
    """Eight devices, the batch filled up with repeats."""
    assert_same_videos(Generator(experiment, params)(CAPTIONS, seed=3), five, slice(None))


@pytest.mark.parametrize("devices", [2, 4])
def test_the_estimates_of_a_video_may_live_on_two_halves_of_the_devices(devices, five, experiment, params):
    """Also fewer videos than devices; stages without guidance are as ever."""
    halves = Generator(experiment, params, jax.devices()[:devices])
    assert_same_videos(halves(CAPTIONS[: devices // 2], seed=3, split_guidance=True), five, slice(devices // 2))


def test_split_guidance_halves_the_work_of_a_device(experiment, params):
    stage, flops = experiment.stages[0], {}
    for devices, split in ((1, False), (2, True)):
        mesh = make_mesh(MeshSpec(), jax.devices()[:devices])
        sampling = dataclasses.replace(stage.sampling, split_guidance=split)
        shardings = parameter_shardings(params["base"], mesh)
        shaped = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params["base"],
                              shardings)
        split_stage = dataclasses.replace(stage, sampling=sampling)
        with jax.set_mesh(mesh):
            program = jit_sampling(stage, sampling, mesh, shardings).lower(
                shaped, *sampling_inputs(split_stage, 1, 0, mesh)).compile()
        flops[devices] = program.cost_analysis()["flops"]
    assert 0.45 < flops[2] / flops[1] < 0.65
    with refused("Sampling.split_guidance", "=True"):
        Generator(experiment, params, jax.devices()[:3])(CAPTIONS[:1], split_guidance=True)


def test_a_video_does_not_depend_on_how_parameters_are_split(five, experiment, params):
    mesh = dataclasses.replace(experiment.mesh, data=2, fsdp=2)
    split = Generator(dataclasses.replace(experiment, mesh=mesh), params, jax.devices()[:4])
    assert not all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(split.params))
    assert_same_videos(split(CAPTIONS[:4], seed=3), five, slice(4))


def test_a_video_depends_on_seed_and_index(five, one_device):
    assert_same_videos(one_device(CAPTIONS[2], seed=3, first_index=2), five, [2])
    for other in (one_device(CAPTIONS[2], seed=3), one_device(CAPTIONS[2], seed=4, first_index=2)):
        assert np.abs(other.stages["base"] - five.stages["base"][2]).max() > 0.05


def test_last_stops_early(five, one_device):
    got = one_device(CAPTIONS, seed=3, last="base")
    assert list(got.stages) == ["base"] and list(got.fps) == ["base"]
    np.testing.assert_allclose(got.videos, five.stages["base"], atol=1e-6)


def test_steps_and_guidance_are_overridden(five, one_device):
    """Steps for all stages, guidance for the first (the second reads no text)."""
    fewer = one_device(CAPTIONS, seed=3, steps=1)
    for name in ("base", "large"):
        assert np.abs(fewer.stages[name] - five.stages[name]).max() > 0.05
    unguided = one_device(CAPTIONS, seed=3, guidance=0.0)
    assert_same_videos(one_device(CAPTIONS, seed=3, guidance_scale=1.0), unguided, slice(None))
    with refused("guidance", "=2", "guidance_scale=3"):
        one_device(CAPTIONS, guidance=2, guidance_scale=3)
    assert np.abs(unguided.stages["base"] - five.stages["base"]).max() > 0.01


def test_guidance_changes_nothing_for_the_null_caption(floats, one_device):
    null = [one_device("", seed=3, guidance=w, last="base").videos for w in (0.0, 5.0)]
    np.testing.assert_allclose(null[0], null[1], atol=1e-4)


def test_progress_counts_videos(five, one_device):
    calls = []
    one_device(CAPTIONS, seed=3, progress=lambda *call: calls.append(call))
    assert calls == [("base", 4, 5), ("base", 5, 5), ("large", 4, 5), ("large", 5, 5)]


def test_unknown_words_are_warned_about(five, one_device, caplog):
    one_device(["a purple two"], seed=3, last="base")
    assert [r.getMessage().split(" (")[0] for r in caplog.records if "unknown" in r.getMessage()] == [
        "caption 'a purple two' has unknown words: purple"]


def test_saving(tmp_path):
    videos = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3)).astype(np.uint8)
    generated = Generated(("one", "two"), {"base": videos[:, :2], "large": videos}, {"base": 4.0, "large": 8.0})
    for name in ("v.gif", "v.png", "v.mp4"):
        path = generated.save(tmp_path / name)
        assert path == tmp_path / name and path.stat().st_size > 100


def test_videos_are_bytes(experiment, params, monkeypatch):
    monkeypatch.setattr(generator_module, "to_uint8", to_uint8)
    monkeypatch.setattr(Generator, "run_stage", lambda self, stage, *rest, **options: np.full(
        (1, *stage.video.shape), 0.2, np.float32))
    out = Generator(experiment, params, jax.devices()[:1])("a")
    assert out.videos.dtype == np.uint8 and (out.videos == 153).all()


@pytest.mark.parametrize(("arguments", "message"), [
    (([],), "captions=[] is not valid; permitted: at least one caption"),
    ((["a"], {"last": "huge"}), "stage 'huge' is unknown; permitted: base, large"),
    ((["a"], {"steps": 0}), "Sampling.steps=0 is not valid; permitted: >= 1"),
])
def test_calls_that_cannot_be(one_device, arguments, message):
    captions, options = (*arguments, {})[:2]
    with pytest.raises(UserError) as error:
        one_device(captions, **options)
    assert str(error.value) == message


def test_stages_without_weights_are_named(experiment, params):
    partial = Generator(experiment, {"base": params["base"]}, jax.devices()[:1])
    with refused("generator.Generator.check_trained") as error:
        partial("a")
    assert str(error.value) == "stage 'large' has no trained weights; permitted: train it, or stop after one of base"
    with refused("generator.Generator.check_trained", "'base'"):
        Generator(experiment, {}, jax.devices()[:1])("a")


def test_a_cascade_that_starts_in_the_middle_cannot_generate(experiment, params):
    alone = dataclasses.replace(experiment, stages=experiment.stages[1:])
    with refused("generator.Generator.__call__", "'large'", "2"):
        Generator(alone, {"large": params["large"]}, jax.devices()[:1])("a")


def test_guidance_of_a_network_without_text_is_refused(experiment, params):
    base = experiment.stage("base")
    level = dataclasses.replace(base.network.levels[0], mixers=())
    network = dataclasses.replace(base.network, text=None, levels=(level,))
    silent = dataclasses.replace(experiment, stages=(
        dataclasses.replace(base, network=network, sampling=Sampling()), experiment.stages[1]))
    with refused("Stage.sampling.guidance", "'base'", "=2.0", "'prompt'", "network.text=None"):
        Generator(silent, params, jax.devices()[:1])("a", guidance=2.0)


@pytest.mark.parametrize("embeddings", [None, np.zeros((2, 3, 7)), np.zeros((1, 3, 8)), np.zeros((3, 7))],
                         ids=["none", "another batch", "another width", "no batch"])
def test_embeddings_of_another_shape_are_refused(experiment, params, embeddings):
    base = experiment.stage("base")
    stage = dataclasses.replace(base, network=dataclasses.replace(base.network, text=EmbeddedText(width=7)))
    embedded = dataclasses.replace(experiment, stages=(stage, experiment.stages[1]))
    with refused("text.EmbeddedText.of_request", "'base'", "[1, L, 7]"):
        Generator(embedded, params, jax.devices()[:1])("a", embeddings=embeddings)


def asked(stage, captions, **given):
    return requested_conditioning(stage, Request(captions, given))


def test_the_mask_of_embeddings_is_passed_on_or_refused(experiment, params):
    base = experiment.stage("base")
    stage = dataclasses.replace(base, network=dataclasses.replace(base.network, text=EmbeddedText(width=7)))
    generator = Generator(dataclasses.replace(experiment, stages=(stage,)), params, jax.devices()[:1])
    embeddings, mask = np.zeros((2, 3, 7), np.float16), np.array([[True, True, False], [False] * 3])
    text = asked(stage, ("a", ""), embeddings=embeddings, text_mask=mask)
    np.testing.assert_array_equal(text.text_mask[:, 0], mask)
    assert text.embeddings.dtype == np.float32 and asked(stage, ("a", "b"), embeddings=embeddings).text_mask.all()
    with refused("text.EmbeddedText.of_request", "text_mask", "[2, 4]", "'base'", "[2, 3]"):
        generator(("a", "b"), embeddings=embeddings, text_mask=np.ones((2, 4), bool))


def test_guidance_away_from_the_encoded_empty_text(experiment, params):
    base = experiment.stage("base")
    stage = dataclasses.replace(base, network=dataclasses.replace(base.network, text=EmbeddedText(width=7)))
    embeddings, null = np.zeros((2, 3, 7), np.float16), np.ones((3, 7), np.float16)
    given = asked(stage, ("a", "b"), embeddings=embeddings, null_embeddings=null,
                  null_mask=np.array([True, False, False]))
    told = given.without_text()
    assert told.embeddings.shape == (2, 1, 3, 7) and (told.embeddings == 1).all() and told.text_mask.sum() == 2
    with refused("text.EmbeddedText.of_request", "null_embeddings", "[2, 7]", "'base'"):
        asked(stage, ("a", "b"), embeddings=embeddings, null_embeddings=null[:2])
    data = WithEmbeddings(data=experiment.data, path="texts", empty="encoded")
    generator = Generator(dataclasses.replace(experiment, stages=(stage,), data=data), params, jax.devices()[:1])
    with refused("null_embeddings", "=None"):
        generator(("a", "b"), embeddings=embeddings)
