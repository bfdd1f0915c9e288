"""LoRAs of generators and pipelines: merged from files, weighted, and taken out again bit for bit."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import traverse_util

import vdm_jax
from tests.generation.conftest import base_stage, random_params
from tests.pipelines.folders import write_motion, write_pictures
from tests.refusals import refused
from vdm_jax.commands.arguments import weighted_files
from vdm_jax.commands.main import main
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.loras import with_loras
from vdm_jax.networks.lora import LoRA, initial_factors, trained_adapter, with_adapters
from vdm_jax.stages.stage import Experiment
from vdm_jax.weights.lora_files import plain_target, target_of, write_lora

QUICK = {"num_inference_steps": 2, "seed": 1}


@pytest.fixture(scope="module")
def draw(tmp_path_factory):
    pytest.importorskip("tokenizers", reason="tokenizers come with the extra [pretrained]")
    return vdm_jax.from_pretrained(write_pictures(tmp_path_factory.mktemp("loras") / "pictures"))


def adapter_of(model, *patterns, seed=0):
    """An adapter of a loaded network, with factors that show."""
    specs, rng = (LoRA(rank=2, patterns=patterns),), np.random.default_rng(seed)
    factors = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32),
                           initial_factors(specs, model.params, jax.random.key(0)))
    return trained_adapter(specs, model.params, factors)


@pytest.fixture(scope="module")
def files(draw, tmp_path_factory):
    """Three files: of the network, of the network in another layout, and of both networks."""
    folder, unet, text = tmp_path_factory.mktemp("files"), draw.models["unet"], draw.models["text_encoder"]
    ours = target_of(unet.config)
    write_lora(folder / "a.safetensors", {"unet": (ours, adapter_of(unet, "attention"))}, "diffusers")
    write_lora(folder / "b.safetensors", {"unet": (ours, adapter_of(unet, "residual", seed=1))}, "kohya")
    write_lora(folder / "both.safetensors", {
        "unet": (ours, adapter_of(unet, "stem")),
        "text_encoder": (target_of(text.config), adapter_of(text, "attention"))}, "kohya")
    return folder


def test_a_pipeline_adds_several_and_takes_them_out(draw, files):
    base, plain = dict(draw.models), draw("a red three", **QUICK).videos
    draw.use_loras({files / "a.safetensors": 0.5, files / "b.safetensors": -0.3})
    wanted = with_adapters(base["unet"].params, [(adapter_of(base["unet"], "attention"), 0.5),
                                          (adapter_of(base["unet"], "residual", seed=1), -0.3)])
    jax.tree.map(np.testing.assert_array_equal, draw.models["unet"].params, wanted)
    assert draw.models["unet"].params["stem"] is not None and draw.models["vae"] is base["vae"]
    two = draw("a red three", **QUICK).videos
    draw.use_loras({files / "a.safetensors": 0.0})
    np.testing.assert_array_equal(draw("a red three", **QUICK).videos, plain)
    draw.use_loras({files / "both.safetensors": 1.0})
    words = draw.encoder.texts(["a red three"])["embeddings"]
    draw.use_loras({})
    assert all(draw.models[name] is base[name] for name in base)
    np.testing.assert_array_equal(draw("a red three", **QUICK).videos, plain)
    assert np.abs(two.astype(int) - plain).max() > 2
    assert np.abs(draw.encoder.texts(["a red three"])["embeddings"] - words).max() > 1e-2


def test_a_file_that_does_not_fit_changes_nothing(draw, files, tmp_path):
    model = draw.models["unet"]
    odd = dataclasses.replace(model.config, token_channels=6)
    shapes = traverse_util.unflatten_dict(target_of(odd).shapes, sep="/")
    specs = (LoRA(rank=2, patterns=("cross_attention/key",)),)
    zeros = jax.tree.map(lambda shape: np.zeros(shape, np.float32), shapes, is_leaf=lambda s: isinstance(s, tuple))
    adapter = trained_adapter(specs, zeros, initial_factors(specs, zeros, jax.random.key(0)))
    write_lora(tmp_path / "odd.safetensors", {"unet": (target_of(odd), adapter)}, "diffusers")
    with refused("lora_files.read_lora", "odd.safetensors", "another network", "attn2.to_k is [2, 6]"):
        draw.use_loras({files / "a.safetensors": 1.0, tmp_path / "odd.safetensors": 1.0})
    assert draw.models["unet"] is model


def test_a_file_that_fits_several_stages_and_names_none(tmp_path):
    stages = [dataclasses.replace(base_stage(), name=name) for name in ("low", "high")]
    params = {stage.name: random_params(stage, 0) for stage in stages}
    one = Experiment(name="one", stages=tuple(stages[:1]), data=CaptionedDigits(size=16, frames=2))
    generator = Generator(one, params)
    generator.experiment = SimpleNamespace(stages=stages)
    specs, plain = (LoRA(rank=1, patterns=("attention",)),), plain_target(params["low"])
    adapter = trained_adapter(specs, params["low"], initial_factors(specs, params["low"], jax.random.key(0)))
    write_lora(tmp_path / "a.safetensors", {"unet": (plain, adapter)})
    with refused("loras._for_stage", "a.safetensors", "stages low, high",
                 "'vdm-jax export --lora' wrote, or a run of one stage"):
        with_loras(generator, {tmp_path / "a.safetensors": 1.0})


def test_a_generator_of_a_folder_and_its_command(files, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    folder = write_motion(tmp_path / "motion")
    generator = vdm_jax.load(folder, jax.devices()[:1])
    params = generator.params["video"]
    specs = (LoRA(rank=2, patterns=("_motion/self_attention",)),)  # MotionLoRA
    rng = np.random.default_rng(3)
    factors = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32),
                           initial_factors(specs, params, jax.random.key(0)))
    unet = generator.experiment.stages[0].network.unet
    adapter = trained_adapter(specs, params, factors)
    write_lora("pan.safetensors", {"unet": (target_of(unet), adapter)}, "diffusers")
    write_lora("plain.safetensors", {"unet": (plain_target(params), adapter)}, metadata={"stage": "video"})
    moved = with_loras(generator, {"pan.safetensors": 1.0})
    captions, quick = ["red three"], {"steps": 2, "seed": 1}
    found = moved(captions, **quick).videos
    assert np.abs(found.astype(int) - generator(captions, **quick).videos).max() > 2
    np.testing.assert_array_equal(with_loras(generator, {"plain.safetensors": 1.0})(captions, **quick).videos, found)
    nothing = with_loras(generator, {"pan.safetensors": 0.0})
    jax.tree.map(np.testing.assert_array_equal, nothing.params["video"], params)
    with_text = with_loras(generator, {files / "both.safetensors": 1.0})
    assert with_text.encoder.captions is not generator.encoder.captions
    common = ["--lora", "pan.safetensors=0.5", f"{files / 'a.safetensors'}=0.2", "--out", "a.png"]
    assert main(["sample", "motion", "red three", "--steps", "1", *common]) == 0
    assert main(["generate", "motion", "--prompt", "red", "--num-inference-steps", "1", "--num-frames", "4",
                 *common]) == 0
    capfd.readouterr()
    assert main(["sample", "motion", "red", "--lora", "none.safetensors=2", "--out", "a.png"]) == 2
    assert "--lora=none.safetensors=2: none.safetensors is not a file" in capfd.readouterr().err


def test_files_and_weights_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "b=2.safetensors", "c=0.5"):
        (tmp_path / name).write_bytes(b"")
    found = weighted_files("--lora", ["a.safetensors=-0.5", "b=2.safetensors", "c=0.5"])
    assert {str(path): weight for path, weight in found.items()} == {
        "a.safetensors": -0.5, "b=2.safetensors": 1.0, "c=0.5": 1.0}
    for text, what in (("a.safetensors=much", "weight 'much'"), ("a.safetensors=nan", "weight 'nan'"),
                       ("a.safetensors=", "weight ''"), ("x.safetensors", "not a file")):
        with refused("--lora", f"--lora={text}", what, "permitted: "):
            weighted_files("--lora", [text])
    with refused("--lora", "given twice"):
        weighted_files("--lora", ["a.safetensors=1", "a.safetensors=2"])
