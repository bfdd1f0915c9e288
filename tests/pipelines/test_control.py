"""Pipelines with several ControlNets, with maps for each frame, and with T2I-Adapters: weights, intervals, refusals."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

import vdm_jax
from tests.pipelines.folders import write_adapters, write_controls, write_pictures
from tests.refusals import refused
from vdm_jax.commands.generate_command import Generate, call_arguments, check
from vdm_jax.pipelines import control
from vdm_jax.video.writing import write_png

RNG = np.random.default_rng(0)
MAPS = [RNG.integers(0, 256, (16, 16, 3)).astype(np.uint8) for _ in range(4)]
QUICK = {"num_inference_steps": 2, "seed": 1}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    pytest.importorskip("tokenizers", reason="tokenizers come with the extra [pretrained]")
    return tmp_path_factory.mktemp("control")


@pytest.fixture(scope="module")
def plain(home):
    """A picture of the U-Net alone, whose weights all folders have."""
    return vdm_jax.from_pretrained(write_pictures(home / "plain"))("a red three", **QUICK).videos


def same_files(one, other):
    for path in one.rglob("*.safetensors"):
        wanted, found = (safetensors.numpy.load_file(p) for p in (path, other / path.relative_to(one)))
        assert wanted.keys() == found.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted), path
    index = [json.loads((folder / "model_index.json").read_text()) for folder in (one, other)]
    assert index[0] == index[1]


def test_two_control_nets(home, plain, tmp_path):
    folder = write_controls(home / "two")
    draw = vdm_jax.from_pretrained(folder)
    found = {scales: draw("a red three", image=MAPS[:2], controlnet_conditioning_scale=list(scales), **QUICK).videos
             for scales in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))}
    np.testing.assert_array_equal(found[0.0, 0.0], plain)  # strength 0 is no control
    others = [videos.astype(int) for scales, videos in found.items() if any(scales)]
    assert all(np.abs(a - b).max() > 2 for i, a in enumerate(others) for b in (*others[:i], plain.astype(int)))
    first = {"control_guidance_end": [0.5, 1.0], "controlnet_conditioning_scale": [1.0, 0.0]}
    half = draw("a red three", image=MAPS[:2], **first, **QUICK).videos.astype(int)
    assert all((half != found[scales]).any() for scales in ((0.0, 0.0), (1.0, 0.0)))
    draw.save_pretrained(tmp_path / "out")
    same_files(folder, tmp_path / "out")
    with refused("image", "image has 1 entries for 2 ControlNets"):
        draw("red", image=MAPS[0])
    with refused("controlnet_conditioning_scale", "3 values for 2 ControlNets"):
        draw("red", image=MAPS[:2], controlnet_conditioning_scale=[1.0, 1.0, 1.0])


@pytest.mark.parametrize(("changes", "code", "said"), [
    ({"scale": -1.0}, "controlnet_conditioning_scale", "=-1.0"), ({"start": 0.6, "end": 0.5},
                                                                  "control_guidance_start", "=0.5"),
    ({"end": 1.5}, "control_guidance_end", "=1.5"), ({"guess": 1}, "guess_mode", "=1"),
    ({"start": [0.1, 0.2]}, "control_guidance_start", "2 values for 1 ControlNets")])
def test_options_that_cannot_be(changes, code, said):
    with refused(code, said, "permitted: "):
        control.options(1, **{"scale": 1.0, "start": 0.0, "end": 1.0, "guess": False, **changes})


def test_maps_of_frames(home):
    animate = vdm_jax.from_pretrained(write_controls(home / "motion", "AnimateDiffControlNetPipeline", nets=1))
    size = {"num_frames": 4, "height": 16, "width": 16, **QUICK}
    found = animate("red", conditioning_frames=MAPS, **size).videos.astype(int)
    assert found.shape == (1, 4, 16, 16, 3)
    array = animate("red", conditioning_frames=np.stack(MAPS), **size).videos
    np.testing.assert_array_equal(array, found)
    assert np.abs(animate("red", conditioning_frames=MAPS[::-1], **size).videos - found).max() > 2
    with refused("conditioning_frames", "3 pictures for a video of 4 frames", "permitted: 4"):
        animate("red", conditioning_frames=MAPS[:3], **size)


def test_adapters(home, plain, tmp_path):
    folder = write_adapters(home / "adapters", nets=2)
    draw = vdm_jax.from_pretrained(folder)
    videos = [draw("a red three", image=MAPS[:2], adapter_conditioning_scale=scales, **QUICK).videos
              for scales in (0.0, [1.0, 0.0], [0.0, 1.0])]
    np.testing.assert_array_equal(videos[0], plain)
    assert np.abs(videos[1].astype(int) - plain).max() > 2 and np.abs(videos[2].astype(int) - videos[1]).max() > 2
    draw.save_pretrained(tmp_path / "out")
    same_files(folder, tmp_path / "out")
    with refused("adapter_conditioning_scale", "3 values for 2 ControlNets"):
        draw("red", image=MAPS[:2], adapter_conditioning_scale=[1.0, 1.0, 1.0])


def test_the_command_hands_over_maps_and_options_of_each(home, tmp_path):
    draw = vdm_jax.from_pretrained(write_controls(home / "command"))
    files = tuple(write_png(tmp_path / f"{i}.png", picture) for i, picture in enumerate(MAPS[:2]))
    options = Generate(folder=draw.folder.path, prompt=("a red three",), image=files, guess_mode=True,
                       controlnet_conditioning_scale=(1.0, 0.5), control_guidance_end=(0.5,))
    check(options)
    assert call_arguments(options, draw) == {
        "prompt": ("a red three",), "image": files, "guess_mode": True, "seed": 0,
        "controlnet_conditioning_scale": (1.0, 0.5), "control_guidance_end": 0.5}
    with refused("generate_command.call_arguments", "--adapter-conditioning-scale", "permitted: "):
        call_arguments(dataclasses.replace(options, adapter_conditioning_scale=(1.0,)), draw)
    with refused("--conditioning-frames", "none.mp4 does not exist"):
        check(dataclasses.replace(options, conditioning_frames=(tmp_path / "none.mp4",)))
