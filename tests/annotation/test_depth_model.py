"""`vdm-jax annotate --kind depth --model FOLDER`: frames to depth as by transformers; folders in and out."""

from __future__ import annotations

import dataclasses
import errno
import json

import jax
import numpy as np
import pytest

from tests.refusals import refusals_of_commands, refused
from tests.weights.folders import SMALL, tensors_of, write
from vdm_jax.annotation import depth_model
from vdm_jax.annotation.depth import Depth
from vdm_jax.annotation.depth_model import (
    Preprocessing,
    bicubic,
    load_depth_model,
    read_preprocessing,
    save_depth_model,
)
from vdm_jax.annotation.folder import annotate
from vdm_jax.commands.main import main
from vdm_jax.networks.dpt import DPT
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.writing import write_video
from vdm_jax.weights import model_kinds, pretrained

pytestmark = pytest.mark.usefixtures("elsewhere")
FRAMES, HEIGHT, WIDTH = 6, 40, 48
SPEC = DPT(size=16, patch=8, width=8, layers=3, heads=2, hidden=16, taps=(0, 2), factors=(2.0, 0.5), widths=(4, 6),
           fusion=4)
SEEN = Preprocessing(height=32, width=32, keep_aspect_ratio=True, multiple=8)


@pytest.fixture
def videos(tmp_path):
    """Noise on grey that gets lighter."""
    rng = np.random.default_rng(0)
    for name, frames in (("a", FRAMES), ("deep/b", 3)):
        video = rng.integers(0, 60, (frames, HEIGHT, WIDTH, 3)) + 30 * np.arange(frames)[:, None, None, None]
        write_video(tmp_path / "videos" / f"{name}.mp4", video.astype(np.uint8), fps=10, lossless=True)
    return tmp_path / "videos"


@pytest.fixture
def model(tmp_path):
    """A folder with random weights that see something, written by us."""
    tensors = tensors_of(SPEC)
    for name, tensor in tensors.items():
        if name.endswith("weight") and tensor.ndim > 1:
            tensor /= np.sqrt(np.prod(tensor.shape[1:]))
    tensors["head.head.4.bias"] += 5.0  # before the last ReLU
    network = pretrained.load_pretrained(write(tmp_path / "weights", SPEC, tensors))
    save_depth_model(tmp_path / "dpt", depth_model.DepthModel(network, SEEN, {}))
    return tmp_path / "dpt"


def read(path):
    with VideoReader(path) as video:
        return video.frames(range(len(video)))


def test_the_command_makes_maps_goes_on_and_keeps_its_grey(videos, model, tmp_path, capfd):
    assert main(["annotate", "videos", "--kind", "depth", "--model", "dpt"]) == 0
    assert "videos-depth: 2 written, 0 there before" in capfd.readouterr().out
    maps = read(tmp_path / "videos-depth" / "a.mp4")
    assert maps.shape == (FRAMES, HEIGHT, WIDTH, 3) and np.ptp(maps, axis=-1).max() == 0
    before = (tmp_path / "videos-depth" / "a.mp4").stat().st_mtime_ns
    (tmp_path / "videos-depth" / "deep" / "b.mp4").unlink()  # as after an interrupted run
    assert main(["annotate", "videos", "--kind", "depth", "--model", "dpt"]) == 0
    assert "1 written, 1 there before" in capfd.readouterr().out
    assert (tmp_path / "videos-depth" / "a.mp4").stat().st_mtime_ns == before

    loaded = load_depth_model(model)
    with VideoReader(videos / "a.mp4") as video:
        found = np.stack(list(depth_model.predict(loaded, video)))
        frames = video.frames(range(FRAMES))
    assert found.shape == (FRAMES, 16, 24) and found.std() > 0.01  # 2 x 3 of half the patches of 32 x 40, x 8
    alone = loaded.network.module.apply({"params": loaded.network.params}, loaded.preprocessing(frames[5:]))
    np.testing.assert_allclose(found[5], alone[0], rtol=1e-4)  # the last batch is not full
    low, high = found.min(), found.max()
    wanted = np.stack([bicubic((one - low) / (high - low), HEIGHT, WIDTH) for one in found])
    np.testing.assert_allclose(maps[..., 0], 255 * np.clip(wanted, 0, 1), atol=0.6)  # larger is lighter


def test_white_is_the_extreme_of_the_video_or_of_the_frame(videos, model, tmp_path):
    settings = {"video": Depth(model=str(model)), "frame": Depth(model=str(model), range="frame"),
                "inverted": Depth(model=str(model), invert=True)}
    for name, annotator in settings.items():
        annotate(videos / "a.mp4", tmp_path / name, "depth", annotator)
    video, frame, inverted = (read(tmp_path / name / "a.mp4")[..., 0].astype(int) for name in settings)
    np.testing.assert_allclose(inverted, 255 - video, atol=1)
    assert (frame.max((1, 2)) > 250).all() and (video.max((1, 2)) < 240).any()
    with refused("--out", "video", "another folder"):
        annotate(videos / "a.mp4", tmp_path / "video", "depth", settings["frame"])


def test_maps_of_before_this_setting_are_gone_on_with(videos, tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(FRAMES, 4, 4)))
    annotate(videos / "a.mp4", tmp_path / "maps", "depth", Depth(depth=str(tmp_path)))
    record = tmp_path / "maps" / "annotation.json"
    data = json.loads(record.read_text())
    assert data["settings"].pop("model", 0) is None
    record.write_text(json.dumps(data))
    assert annotate(videos / "a.mp4", tmp_path / "maps", "depth", Depth(depth=str(tmp_path))).there == 1


def test_a_folder_comes_back_as_it_was(model, tmp_path):
    loaded = load_depth_model(model)
    assert loaded.preprocessing == SEEN and loaded.network.config == SPEC
    save_depth_model(tmp_path / "again", loaded)
    again = load_depth_model(tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, again.network.params, loaded.network.params)
    assert (again.preprocessing, again.fields) == (SEEN, loaded.fields)
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (model / name).read_bytes()


def test_wrong_folders_are_refused(videos, model, tmp_path, capfd):
    fails = refusals_of_commands(capfd)
    command = ("annotate", "videos", "--kind", "depth", "--model")
    assert "permitted: one of the two" in fails(*command[:4]) and "one of the two" in fails(
        *command, "dpt", "--depth", "videos")
    assert "--model=none is not a folder; permitted: a model's folder" in fails(*command, "none")
    assert "--model=dpt with --kind canny is not used" in fails(*command[:3], "canny", "--model", "dpt")
    tensors, fields = tensors_of(SPEC), json.loads((model / "preprocessor_config.json").read_text())

    def with_tensors(name, changed, **config):
        folder = write(tmp_path / name, SPEC, changed, fields=config)
        (folder / "preprocessor_config.json").write_text(json.dumps(fields))
        return fails(*command, name)

    name = "neck.fusion_stage.layers.0.residual_layer1.convolution1.weight"
    assert f"1 missing: {name}" in with_tensors("missing", {n: t for n, t in tensors.items() if n != name})
    assert "1 unexpected: head.more" in with_tensors("more", tensors | {"head.more": np.zeros(3, np.float32)})
    assert "[4, 4, 3, 3]" in with_tensors("shape", tensors | {name: np.zeros((4, 4, 1, 1), np.float32)})
    for index, (field, value, permitted) in enumerate((
            ("is_hybrid", True, "the same first 2"), ("is_hybrid", 1, "permitted: a bool"),
            ("backbone_config", {"model_type": "dinov2"}, "permitted: the vision transformer of DPT itself"),
            ("use_batch_norm_in_fusion_residual", True, "permitted: False"),
            ("use_bias_in_fusion_residual", False, "permitted: True, null"),
            ("architectures", ["ViTModel"], "permitted: DPTForDepthEstimation"))):
        assert permitted in with_tensors(f"config{index}", tensors, **{field: value})
    hybrid = SMALL["depth_hybrid"]
    for index, (field, value, permitted) in enumerate((
            ("layer_type", "preactivation", "permitted: 'bottleneck'"), ("layer_type", None, "layer_type' is missing"),
            ("global_padding", None, "permitted: ('same', 'SAME')"), ("depths", [3, 4], "permitted: three"))):
        backbone = model_kinds.kind_of(hybrid).write(hybrid)["backbone_config"] | {field: value}
        folder = write(tmp_path / f"hybrid{index}", hybrid, tensors_of(hybrid), fields={"backbone_config": backbone})
        assert permitted in fails(*command, folder.name)
    for index, (change, named) in enumerate((
            ({"size": {"shortest_edge": 3}}, "permitted: a height and a width"), ({"do_pad": True}, "permitted: False"),
            ({"ensure_multiple_of": 12}, "multiples of the 8 pixels"), ({"image_std": [0, 1, 1]}, "above 0"),
            ({"resample": 9}, "a filter of Pillow"))):
        fields |= {"size": 32, "do_pad": False, "ensure_multiple_of": 8, "image_std": None, "resample": 2} | change
        assert named in with_tensors(f"fields{index}", tensors)
    assert not (tmp_path / "videos-depth").exists()
    assert "NaN" in _with_nan(tmp_path, tensors, fails, command)


def _with_nan(tmp_path, tensors, fails, command):
    folder = write(tmp_path / "nan", SPEC, tensors | {"head.head.2.bias": np.full(32, np.inf, np.float32)})
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 32}))
    return fails(*command, "nan")


def test_a_full_disk_is_one_line(monkeypatch):
    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(depth_model.tempfile, "TemporaryFile", Full)
    with refused("annotation.depth", "No space left", "TMPDIR"):
        depth_model.Spilled(iter([np.zeros((2, 2))]))


def test_sizes_of_pictures():
    """By the rules of MiDaS: the side that changes least is met, the other follows, both rounded."""
    assert Preprocessing().size(480, 640) == (384, 384)
    kept = Preprocessing(keep_aspect_ratio=True, multiple=32)
    assert kept.size(480, 640) == (384, 512) and kept.size(1080, 1920) == (384, 672) and kept.size(400, 1600) == (
        384, 1536)
    assert dataclasses.replace(kept, height=64, width=64).size(2000, 10) == (64, 32)  # never 0


@pytest.mark.full
@pytest.mark.parametrize("options", [
    {}, {"keep_aspect_ratio": True, "ensure_multiple_of": 32, "size": {"height": 64, "width": 96}},
    {"resample": 2, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "size": {"height": 48, "width": 48}}])
@pytest.mark.parametrize("size", [(45, 80), (120, 50)])
def test_pictures_are_prepared_as_by_transformers(options, size):
    pytest.importorskip("torch")
    processing = pytest.importorskip("transformers.models.dpt.image_processing_pil_dpt")
    processor = processing.DPTImageProcessorPil(**options)
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    ours = read_preprocessing(json.loads(processor.to_json_string()), "here")(frames)
    theirs = processor(list(frames), return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("size", [(40, 100), (9, 14), (16, 24)])
def test_depth_is_resized_as_by_transformers(size):
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(values)[None, None], size, mode="bicubic")[0, 0]
    np.testing.assert_allclose(bicubic(values, *size), theirs.numpy(), atol=1e-5)


@pytest.mark.full
def test_a_folder_of_transformers_annotates_as_transformers_does(videos, tmp_path):
    """Their model, processor and post-processing on the frames of a video; squares, as their class wants them."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    processing = pytest.importorskip("transformers.models.dpt.image_processing_pil_dpt")
    torch.manual_seed(0)
    theirs = transformers.DPTForDepthEstimation(transformers.DPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=48, image_size=32, patch_size=8,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 12, 16, 20], fusion_hidden_size=16)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    processor = processing.DPTImageProcessorPil(size={"height": 48, "width": 48})
    theirs.save_pretrained(tmp_path / "theirs")
    processor.save_pretrained(tmp_path / "theirs")
    annotate(videos / "a.mp4", tmp_path / "maps", "depth", Depth(model=str(tmp_path / "theirs")))
    with torch.no_grad():
        out = theirs(**processor(list(read(videos / "a.mp4")), return_tensors="pt"))
    low, high = out.predicted_depth.min(), out.predicted_depth.max()
    assert high > low + 0.1
    sized = processor.post_process_depth_estimation(out, [(HEIGHT, WIDTH)] * FRAMES)
    wanted = np.stack([((one["predicted_depth"] - low) / (high - low)).clip(0, 1).numpy() for one in sized])
    assert wanted.std() > 0.05
    np.testing.assert_allclose(read(tmp_path / "maps" / "a.mp4")[..., 0], 255 * wanted, atol=0.6)
