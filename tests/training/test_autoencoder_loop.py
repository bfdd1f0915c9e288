"""Autoencoders trained by the command: they learn, resume exactly, and end as files that others load."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from tests.training import tiny_autoencoder
from tests.training.tiny_autoencoder import NETWORK, get_config, stage, without_discriminators
from vdm_jax.commands import evaluate_command, export_command, train_command
from vdm_jax.diffusion.process import Process
from vdm_jax.metrics.detectors import weights
from vdm_jax.networks.autoencoders.config import Autoencoder
from vdm_jax.networks.autoencoders.kl import AutoencoderKL
from vdm_jax.networks.config import Level, UNet
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.runs.autoencoders import FILE, load_autoencoder, resolved
from vdm_jax.runs.checkpoints import Checkpoints
from vdm_jax.runs.directory import checkpoints_path, load, load_stage, read_config
from vdm_jax.runs.records import read_records
from vdm_jax.stages.autoencoding import AutoencoderExperiment
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.parameters import initial_params
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax.training import autoencoder_step
from vdm_jax.training.init_from import starting_autoencoder
from vdm_jax.training.state import abstract_state
from vdm_jax.weights.pretrained import load_imported, save_pretrained

CONFIG = tiny_autoencoder.__file__


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def train(data_dir, tmp_path_factory):
    """Train the tiny autoencoder by the command; returns the run."""
    runs = tmp_path_factory.mktemp("runs")

    def train(name, *arguments):
        train_command.main([CONFIG, "--run", str(runs / name), "--data-dir", str(data_dir), "--quiet", *arguments])
        return runs / name

    return train


@pytest.fixture(scope="module")
def run(train):
    """A run of 8 steps, the last four with a discriminator."""
    return train("whole")


def state_of(run):
    abstract = abstract_state(get_config().stages[0], make_mesh(get_config().mesh))
    state, meta = Checkpoints(checkpoints_path(run, "autoencoder")).restore(abstract)
    return meta["step"], jax.device_get(state.replace(key=jax.random.key_data(state.key)))


def test_reconstruction_gets_better_and_is_recorded(run):
    records = read_records(run / "autoencoder")
    error = [r["reconstruction"] for r in records if "reconstruction" in r]
    assert len(error) == 8 and error[-1] < 0.8 * error[0]
    assert [r["discriminator"] > 0 for r in records if "loss" in r] == [False] * 4 + [True] * 4
    psnr = [r["validation_psnr"] for r in records if "validation_psnr" in r]
    assert len(psnr) == 2 and psnr[1] > psnr[0]
    assert {path.suffix for path in (run / "autoencoder" / "samples").iterdir()} == {".png", ".mp4"}
    found = json.loads((run / "autoencoder" / "reconstruction.json").read_text())
    assert found["clips"] == 8 and found["latent_clips"] == 16 and 3 < found["scores"]["psnr"] < 60
    assert -1 < found["scores"]["ssim"] < 1
    assert isinstance(read_config(run), AutoencoderExperiment) and read_config(run) == get_config()


def test_the_file_holds_averaged_weights_and_normalises_latents(run, data_dir):
    """What diffusion sees has mean 0 and variance 1 over the training clips."""
    model = load_imported(run / "autoencoder" / FILE)
    config = dataclasses.replace(model.config, scale=NETWORK.scale, shift=NETWORK.shift)
    assert config == NETWORK and model.config.scale != NETWORK.scale and model.config.shift != 0
    ours = load_stage(run, get_config().stages[0])
    jax.tree.map(np.testing.assert_array_equal, model.params, jax.device_get(ours))
    from vdm_jax.data.opening import open_source
    from vdm_jax.stages.inputs import target_video

    source = open_source(get_config().data, "train", data_dir)
    video = target_video(jnp.stack([source[i]["video"] for i in range(16)]), get_config().stages[0].video)
    moments = jax.jit(lambda x: model.module.apply({"params": model.params}, x, method="encode"))(video)
    z = model.config.normalise(moments.sample(jax.random.normal(jax.random.key(0), moments.mean.shape)))
    assert abs(float(z.mean())) < 0.1 and abs(float(z.std()) - 1) < 0.1
    np.testing.assert_allclose(float(model.config.normalise(moments.mean).mean()), 0, atol=1e-4)


def test_a_latent_stage_takes_the_run(run):
    """With the measured scale and shift, whatever its config says of them."""
    stage = Stage(name="base", video=VideoSpec(frames=2, height=16, width=16), process=Process(prediction="v"),
                  latent=Latent(autoencoder=NETWORK, weights=str(run)), sampling=Sampling(threshold=None),
                  network=UNet(levels=(Level(channels=8),), out_channels=NETWORK.latent_channels))
    found = resolved(Experiment(name="latent", stages=(stage,), data=tiny_autoencoder.DATA)).stages[0]
    model = load_imported(run / "autoencoder" / FILE)
    assert found.latent.autoencoder == model.config and found.latent.sha256
    (weights,) = load_autoencoder(found)
    jax.tree.map(np.testing.assert_array_equal, weights, model.params)


@pytest.mark.full
def test_resuming_leaves_no_trace(run, train):
    """Stopped before the discriminator joins and taken up again, it ends in the same state to the bit."""
    train("parts", "--autoencoder.training.steps", "4")
    parts = train("parts")
    (step, state), (other, whole) = state_of(parts), state_of(run)
    assert step == other == 8
    jax.tree.map(np.testing.assert_array_equal, state, whole)
    fields = ("step", "loss", "adaptive_weight", "validation_loss")
    logged, expected = ([{k: r[k] for k in fields if k in r} for r in read_records(r / "autoencoder")]
                        for r in (parts, run))
    assert logged == expected


def test_commands_know_autoencoders(run, data_dir, tmp_path, capsys):
    evaluate_command.main([str(run), "--data-dir", str(data_dir)])
    assert "| psnr |" in capsys.readouterr().out
    export_command.main([str(run), str(tmp_path / "out"), "--data-dir", str(data_dir), "--dtype", "float16"])
    model = load_imported(tmp_path / "out" / "autoencoder" / FILE)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {np.dtype(np.float16)}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| 8 of 8 |" in card and "| psnr |" in card and "--STAGE.latent.weights" in card and "Not stated." in card
    with refused("directory.read_cascade", "autoencoder.safetensors"):
        load(run)
    with refused("--metrics"):
        evaluate_command.main([str(run), "--metrics", "psnr"])


def test_a_t_klvae_begins_as_a_file_says(run):
    """As the image autoencoder of the file, with layers over time of its own; what does not fit is named."""
    path = str(run / "autoencoder" / FILE)
    network = dataclasses.replace(NETWORK, temporal_kernel=3)
    video = stage(network, init_from=path)
    inflation, source = starting_autoencoder(video)
    params = jax.jit(lambda key: inflation.apply(initial_params(video, key), source))(jax.random.key(1))
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 3, 4, 4, 3)), jnp.float32)
    np.testing.assert_allclose(jax.jit(AutoencoderKL(network).apply)({"params": params}, x),
                               jax.jit(AutoencoderKL(NETWORK).apply)({"params": source}, x), atol=1e-5)
    with refused("AutoencoderStage.training.init_from"):
        starting_autoencoder(stage(dataclasses.replace(NETWORK, blocks=2), init_from=path))
    with refused("AutoencoderStage.training.init_from", "groups=2", "network.groups=4"):
        starting_autoencoder(stage(dataclasses.replace(NETWORK, groups=4), init_from=path))
    with refused("model_kinds.kind_of"):
        save_pretrained(run / "folder", dataclasses.replace(load_imported(path), config=network, params=params))


def test_lpips_without_its_weights_says_how_to_get_them(tmp_path, data_dir, monkeypatch):
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv(weights.FOLDER_VARIABLE, raising=False)
    autoencoder_step.lpips.parameters.cache_clear()
    weights.load.cache_clear()
    with refused("weights.find", "lpips_vgg16"):
        train_command.main([CONFIG, "--run", str(tmp_path / "run"), "--data-dir", str(data_dir), "--quiet",
                            "--autoencoder.training.loss.perceptual-weight", "1"])


def test_lpips_is_added_to_every_number_of_a_frame(monkeypatch):
    """A stand-in for the distance: the loss grows by its weight times the numbers of a frame."""
    monkeypatch.setattr(autoencoder_step.lpips, "distance", lambda params, a, b, backbone: jnp.full(len(a), 0.25))
    spec = dataclasses.replace(without_discriminators(), perceptual_weight=2.0)
    x = jnp.zeros((2, 3, 4, 4, 3))
    loss, scalars = autoencoder_step.reconstruction_loss(spec, x, x, jnp.float32(0), {})
    np.testing.assert_allclose(loss, 2.0 * 0.25 * 48)
    assert float(scalars["lpips"]) == 0.25


@pytest.mark.parametrize(("make", "message"), [
    (lambda: stage(dataclasses.replace(NETWORK, widths=(4, 8, 8, 8, 8, 8))), ("AutoencoderStage.video.height", "=16")),
    (lambda: stage(trainable=("/encoder/",)), ("AutoencoderStage.training.trainable",)),
    (lambda: stage(learning_rate=0), ("AutoencoderTraining.learning_rate", "=0")),
    (lambda: stage(b1=1.0), ("AutoencoderTraining.b1", "=1.0")),
    (lambda: stage(loss=dataclasses.replace(tiny_autoencoder.LOSS, kl_weight=-1)),
     ("AutoencoderLoss.kl_weight", "=-1")),
    (lambda: AutoencoderExperiment(name="x", stages=(), data=tiny_autoencoder.DATA), ("AutoencoderExperiment.stages",)),
    (lambda: stage(Autoencoder(channels=1, widths=(4, 8), groups=2)), ("AutoencoderStage.network.channels", "=1"))])
def test_refusals(make, message):
    with refused(*message):
        make()
