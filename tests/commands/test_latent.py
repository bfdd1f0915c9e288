"""A cascade whose first stage works in latents, through the commands."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import vdm_jax
from tests.training.latents import AUTOENCODER, SCALE, SHIFT, write_model
from vdm_jax.commands.main import main
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.runs.autoencoders import FILE
from vdm_jax.runs.checkpoints import Checkpoints
from vdm_jax.runs.directory import export, read_config
from vdm_jax.runs.records import read_records
from vdm_jax.training.state import abstract_state

TINY = str(Path(__file__).parent / "tiny_latent.py")
STORED = dataclasses.replace(AUTOENCODER, scale=SCALE, shift=SHIFT)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    """The run, and the folder in which its weights lie."""
    home = tmp_path_factory.mktemp("latent")
    write_model(home / FILE, STORED)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(["train", TINY, "--run", "run", "--data-dir", str(data_dir)]) == 0
    return home


def test_a_latent_stage_learns_and_its_run_says_with_which_weights(trained):
    losses = [record["loss"] for record in read_records(trained / "run" / "base") if "loss" in record]
    assert np.mean(losses[-8:]) < 0.85 * np.mean(losses[:4])
    assert any("validation_loss" in record for record in read_records(trained / "run" / "base"))
    latent = read_config(trained / "run").stages[0].latent
    assert (latent.autoencoder.scale, latent.autoencoder.shift) == (SCALE, SHIFT) and len(latent.sha256) == 64
    assert (trained / "run" / "base" / "samples" / "step_0000040.png").stat().st_size > 0


def test_the_autoencoder_is_in_no_checkpoint(trained):
    stage = read_config(trained / "run").stages[0]
    mesh = make_mesh(MeshSpec(data=1), jax.devices()[:1])
    with Checkpoints(trained / "run" / "base" / "checkpoints") as checkpoints:
        state, _ = checkpoints.restore(abstract_state(stage, mesh))  # refuses what has more or less
    assert not {"encoder", "decoder", "quant"} & set(state.params)


def test_videos_of_the_cascade_and_of_its_export_in_another_place(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained)
    generator = vdm_jax.load("run", jax.devices()[:1])
    out = generator(["a red 3 moving left"] * 3, seed=1)
    assert {name: videos.shape for name, videos in out.stages.items()} == {
        "base": (3, 2, 8, 8, 3), "large": (3, 2, 16, 16, 3)}
    assert np.std(out.stages["base"].astype(float), axis=(0, 1)).mean() > 1
    assert main(["sample", "run", "a red 3 moving left", "--last", "base", "--out", str(tmp_path / "three.gif")]) == 0
    export(generator, tmp_path / "exported")
    (trained / FILE).rename(trained / "elsewhere")  # an exported run needs no other file
    try:
        again = vdm_jax.load(tmp_path / "exported", jax.devices()[:1])(["a red 3 moving left"] * 3, seed=1)
    finally:
        (trained / "elsewhere").rename(trained / FILE)
    np.testing.assert_array_equal(again.videos, out.videos)


def test_a_finished_run_is_left_alone_and_weights_may_move(trained, tmp_path, monkeypatch, data_dir):
    monkeypatch.chdir(trained)
    shutil.copytree("run", tmp_path / "run")
    shutil.copy(FILE, tmp_path / "moved.safetensors")
    assert main(["train", TINY, "--run", str(tmp_path / "run"), "--data-dir", str(data_dir), "--base.latent.weights",
                 str(tmp_path / "moved.safetensors")]) == 0


class TestErrors:
    def test_weights_that_are_not_there(self, fails):
        line = fails("train", TINY, "--run", "new")
        assert "Stage 'base': latent.weights='autoencoder.safetensors': autoencoder.safetensors does not exist" in line
        assert "permitted: a .safetensors file that 'vdm-jax convert FOLDER/vae FILE.safetensors' wrote" in line
        assert not Path("new").exists()

    def test_weights_of_other_sizes(self, fails):
        write_model(FILE, dataclasses.replace(AUTOENCODER, blocks=2))
        assert f"latent.autoencoder.blocks=1, but {FILE} has 2" in fails("train", TINY, "--run", "new")

    def test_weights_of_something_else(self, fails):
        write_model(FILE, LatentUNet(widths=(4, 8), blocks=1, attention=(True, False), heads=(1, 2),
                                     only_cross_attention=(False, False), token_channels=6, groups=2))
        assert "holds a LatentUNet; permitted: an Autoencoder" in fails("train", TINY, "--run", "new")

    def test_a_file_that_is_not_the_one_the_run_was_made_with(self, trained, fails):
        write_model(FILE, STORED, seed=1)
        for command in (["train", TINY, "--run", trained / "run"], ["sample", trained / "run", "a red 3 moving left"]):
            line = fails(*command)
            assert "latent.sha256=" in line and "permitted: the file that the run was made with" in line

    def test_a_folder_without_the_file(self, fails):
        Path("folder").mkdir()
        line = fails("train", TINY, "--run", "new", "--base.latent.weights", "folder")
        assert f"is a folder with 0 files {FILE} (none)" in line
