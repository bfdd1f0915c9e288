"""SparseCtrl through the commands: trained on captioned clips next to a released AnimateDiff that stays as it is, given
single frames in sampling, and written as the folder that a released pipeline has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import vdm_jax
from tests.pipelines.folders import write_motion
from tests.tiny_systems import write_squares
from tests.weights.folders import tensors_of, write
from vdm_jax.commands.main import main
from vdm_jax.networks.autoencoders.config import Autoencoder
from vdm_jax.parallel.rules import path_name
from vdm_jax.runs.records import read_records
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.writing import write_png
from vdm_jax.weights.pretrained import load_imported

pytestmark = pytest.mark.full
TINY = str(Path(__file__).parent / "tiny_sparse_control.py")
SKETCHES = """
from tests.commands.tiny_sparse_control import experiment

def get_config():
    return experiment("sparse_control", "maps", channels=3, hint_widths=(2, 4))
"""
VAE = Autoencoder(widths=(4, 4), blocks=1, groups=2)
RUNS = {"frames": "sparse_frames", "sketches": "sparse_control"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a released model, videos, maps, embeddings of captions and both trained runs."""
    pytest.importorskip("tokenizers", reason="tokenizers come with the extra [pretrained]")
    home = tmp_path_factory.mktemp("sparse")
    write_motion(home / "motion")
    shutil.rmtree(home / "motion" / "vae")  # whose latents are near zero, so that a frame would hardly show in them
    write(home / "motion" / "vae", VAE, tensors_of(VAE))
    write_squares(home, 8, 1, "maps")
    (home / "sketches.py").write_text(SKETCHES)
    write_png(home / "frame.png", np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(["convert", "motion/vae", "autoencoder.safetensors"]) == 0
        assert main(["embed", TINY, "--encoder", "motion"]) == 0
        for run, config in (("frames", TINY), ("sketches", "sketches.py")):
            assert main(["train", config, "--run", run]) == 0
    return home


def parameters(run, stage):
    params = vdm_jax.load(run, jax.devices()[:1]).params[stage]
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def test_the_base_stays_as_it_is_and_the_branch_learns(home, monkeypatch):
    monkeypatch.chdir(home)
    base = parameters("motion", "video")
    for run, condition in RUNS.items():
        losses = [record["loss"] for record in read_records(home / run / "base") if "loss" in record]
        assert np.mean(losses[-10:]) < np.mean(losses[:10]), run
        inside = parameters(run, "base")
        for name, leaf in base.items():
            np.testing.assert_array_equal(inside.pop(name), leaf)
        assert inside and all(name.startswith(f"/control_net_{condition}/") for name in inside)
        for name in ("control_0", "control_middle", "down_0_0_motion/out", "hint" if run == "frames" else "hint/out"):
            assert np.abs(inside[f"/control_net_{condition}/{name}/kernel"]).max() > 1e-4, name  # began with zeros


def test_the_frames_that_are_given_change_the_video(home, monkeypatch, fails):
    """Which of them, and what they show; the command gives those of `--control-at`, and the first one otherwise."""
    monkeypatch.chdir(home)
    for run, maps in (("frames", "videos"), ("sketches", "maps")):
        generator, condition = vdm_jax.load(run), RUNS[run]
        clips = [VideoReader(f"{maps}/{number}.mp4").frames(range(4))[None] for number in (0, 4)]
        found = {}
        for name, clip, at in (("first", clips[0], [0]), ("at", clips[0], [1, 3]), ("other", clips[1], [1, 3])):
            made = generator(["square 1"], **{condition: clip, f"{condition}_mask": np.isin(np.arange(4), at)[None],
                                              f"{condition}_scale": 20.0})
            found[name] = made.videos.astype(int)
            made.save(f"{name}.gif")
        for one, other in (("first", "at"), ("at", "other")):
            assert np.abs(found[one] - found[other]).max() > 0, (run, one, other)
        for name, more in (("at", ["--control-at", "1", "3"]), *([("first", [])] if run == "frames" else [])):
            assert main(["sample", run, "square 1", "--control", f"{maps}/0.mp4", "--control-scale", "20", *more,
                         "--out", "a.gif"]) == 0
            assert Path("a.gif").read_bytes() == Path(f"{name}.gif").read_bytes(), (run, name)
    said = fails("sample", "frames", "square 1", "--control", "videos/0.mp4", "--control-at", "4", "--out", "b.gif")
    assert "--control-at=4" in said and "0 to 3" in said


def test_the_branch_becomes_that_of_a_released_pipeline(home, monkeypatch, fails, capfd):
    """It samples there, and has the same tensors."""
    monkeypatch.chdir(home)
    for run, condition in RUNS.items():
        assert main(["export", run, f"{run}_out", "--control-nets"]) == 0
        folder, out = Path(f"{run}_model"), Path(f"{run}_out/base/{condition}")
        assert json.loads((out / "config.json").read_text())["_class_name"] == "SparseControlNetModel"
        assert main(["convert", str(out), f"{run}.safetensors"]) == 0
        ours = {name.removeprefix(f"/control_net_{condition}"): leaf for name, leaf in parameters(run, "base").items()
                if name.startswith("/control_net_")}
        model = load_imported(f"{run}.safetensors")
        assert model.config == vdm_jax.load(run).experiment.stages[0].network.control_nets[0]
        stored = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model.params)}
        assert stored.keys() == ours.keys()
        jax.tree.map(np.testing.assert_array_equal, stored, ours)
        shutil.copytree("motion", folder)
        shutil.copytree(out, folder / "controlnet")
        index = json.loads((folder / "model_index.json").read_text())
        index |= {"_class_name": "AnimateDiffSparseControlNetPipeline", "controlnet": [
            "diffusers", "SparseControlNetModel"]}
        (folder / "model_index.json").write_text(json.dumps(index))
        released = parameters(str(folder), "video")
        for name, leaf in ours.items():
            np.testing.assert_array_equal(released[f"/control_net_sparse_control{name}"], leaf)
    common = ["--num-frames", "4", "--out"]
    assert main(["generate", "frames_model", "--prompt", "square 1", "--conditioning-frames", "frame.png", "frame.png",
                 "--controlnet-frame-indices", "0", "3", "--num-inference-steps", "2", *common, "ends.gif"]) == 0
    assert main(["sample", "sketches_model", "square 1", "--steps", "2", "--control", "maps/0.mp4", "--control-at", "0",
                 "2", *common, "at.gif"]) == 0
    assert len(VideoReader("ends.gif")) == len(VideoReader("at.gif")) == 4
    capfd.readouterr()
    assert main(["show", "frames_model", "--filter", "control-nets"]) == 0
    assert "control-nets" in capfd.readouterr().out
    assert "where 0 stages have some" in fails("export", "motion", "no", "--control-nets")
    assert not Path("no").exists()
