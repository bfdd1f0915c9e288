"""`vdm-jax edit` on files: their rate, size, length and sound, interruptions and bad input."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from tests.video.test_sound import write_sounding
from vdm_jax.commands.arguments import parse
from vdm_jax.commands.edit_command import Edit, _job, check
from vdm_jax.commands.main import main
from vdm_jax.errors import UserError
from vdm_jax.generation.editing.files import EditedVideo
from vdm_jax.generation.editing.methods import EDIT_METHODS
from vdm_jax.training import stopping
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.sound import read_sound
from vdm_jax.video.writing import write_video

PROMPTS = ["--prompt", "a blue 3 moving left"]
SDEDIT = [*PROMPTS, "--method", "sdedit", "--strength", "0.5", "--steps", "2"]


@pytest.fixture
def video(tmp_path):
    """Ten frames at 12.5 a second, wider than high and of odd sides."""
    frames = np.random.default_rng(0).integers(0, 256, (10, 5, 7, 3)).astype(np.uint8)
    return write_video(tmp_path / "given.mp4", frames.repeat(5, 1).repeat(5, 2), 12.5)


def test_a_video_is_edited_clip_by_clip_at_its_own_rate(trained, video, tmp_path, capfd):
    own = tmp_path / "made.mp4.maps" / "given.mp4"
    own.parent.mkdir()
    own.write_text("the user's")
    assert main(["edit", str(video), "--model", str(trained), *SDEDIT, "--round-trip", "--out", "made.mp4"]) == 0
    assert own.read_text() == "the user's"
    said = capfd.readouterr().out
    assert said.split()[:3] == ["made.mp4", "made_side_by_side.mp4", "made.json"] and "round trip of stage base" in said
    with VideoReader(tmp_path / "made.mp4") as made, VideoReader(tmp_path / "made_side_by_side.mp4") as both:
        assert len(made) == len(both) == 10 and made.fps == pytest.approx(12.5)
        assert made.frames([0]).shape == (1, 16, 16, 3) and both.frames([0]).shape[2] > 32
    record = json.loads((tmp_path / "made.json").read_text())
    assert record["method"] == {"all": {"name": "sdedit", "strength": 0.5}} and record["frames"] == 10
    assert record["caption"] == PROMPTS[1] and set(record["round_trip_psnr"]) == {"base", "spatial"}
    assert 1 < record["psnr_to_source"] < 60 and not record["sound"]
    assert not list(tmp_path.glob("*.frames"))


def refuse(*_, **__):
    raise UserError("no space; permitted: some")


def test_an_interrupted_edit_goes_on_with_the_same_command_alone(trained, video, tmp_path, fails, capfd, monkeypatch):
    command = ["edit", str(video), "--model", str(trained), *SDEDIT, "--round-trip", "--fps", "10", "--out"]
    assert main([*command, "whole.gif"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(stopping.StopRequests, "requested", True)
        assert main([*command, "part.gif"]) == 130
    assert "stopped; 4 of 8 frames are finished; the same command goes on" in capfd.readouterr().err
    assert "has frames of another request" in fails(*command, "part.gif", "--seed", "1")
    with monkeypatch.context() as patch:
        patch.setattr(EditedVideo, "save", refuse)
        assert "no space" in fails(*command, "part.gif")
    assert not (tmp_path / "part.json").exists()  # a record of nothing
    assert main([*command, "part.gif"]) == 0
    assert (tmp_path / "part.gif").read_bytes() == (tmp_path / "whole.gif").read_bytes()
    whole, part = (json.loads((tmp_path / name).read_text())["round_trip_psnr"] for name in ("whole.json", "part.json"))
    assert set(whole) == {"base", "spatial"} and part == pytest.approx(whole)  # of both clips
    assert not list(tmp_path.glob("*.frames"))


def test_no_strength_keeps_the_frames_and_the_sound(trained, tmp_path):
    path, _ = write_sounding(tmp_path / "tone.mp4", "aac")
    assert main(["edit", str(path), "--model", str(trained), *SDEDIT[:4], "--strength", "0", "--frames", "12", "--out",
                 "made.mp4"]) == 0
    with VideoReader(tmp_path / "made.mp4") as made, VideoReader(path) as given:
        assert len(made) == 12  # three clips of 4
        assert np.abs(made.frames([0, 11]).astype(int) - given.frames([0, 11])).max() <= 6  # encoded again
    sound = read_sound(tmp_path / "made.mp4", 8000)
    assert 1.1 < len(sound) / 8000 < 1.4 and np.abs(sound).max() > 0.3


@pytest.mark.parametrize(("method", "given", "expected"), [
    ("ddim", ["--refinements", "0"], {"refinements": 0}), ("ddim", [], {"refinements": 3}),
    ("prompt_to_prompt", ["--cross-replace", "0", "--source-prompt", "a 3"], {"cross_replace": 0.0}),
    ("fatezero", ["--self-replace", "0", "--threshold", "0", "--source-prompt", "a 3", "--blend", "a", "3"],
     {"self_replace": 0.0, "threshold": 0.0, "blend": ("a", "3")}),
    ("rerender", ["--poisson"], {"poisson": True}), ("rerender", [], {"poisson": False}),
    ("controlvideo", ["--smooth"], {"smooth": ()}), ("controlvideo", [], {"smooth": (20, 19), "hierarchical": False}),
    ("controlvideo", ["--smooth", "3", "2", "--hierarchical"], {"smooth": (3, 2), "hierarchical": True}),
])
def test_options_reach_the_method_whatever_their_value(video, method, given, expected):
    options = parse(Edit, [str(video), "--model", "one", "--method", method, *given], "vdm-jax edit")
    check(options)
    one = SimpleNamespace(stages=lambda first, last: [SimpleNamespace(name="video")])
    found = _job(options, one).method
    assert found.name == method and {name: getattr(found, name) for name in expected} == expected


def test_examples_are_lines_that_go_on():
    lines = Edit.__doc__.splitlines()
    going_on = [after for line, after in zip(lines, lines[1:], strict=False) if line.endswith("\\")]
    assert len(going_on) == 5 and all(line.lstrip().startswith("--prompt") for line in going_on)
    assert max(map(len, lines)) <= 120


def test_a_model_that_was_never_tuned_is_named(trained, video, tmp_path, capfd):
    assert main(["edit", str(video), "--model", str(trained), *PROMPTS, "--method", "tune_a_video", "--strength", "0",
                 "--out", "made.mp4"]) == 0
    assert "stage 'base' was never tuned on a video for tune_a_video" in capfd.readouterr().err
    assert len(json.loads((tmp_path / "made.json").read_text())["notes"]) == 2


def test_bad_input(trained, video, tmp_path, fails):
    command = ["edit", video, "--model", trained, *PROMPTS]
    assert "video=nowhere.mp4 is not a file; permitted: a video" in fails("edit", "nowhere.mp4", *command[2:])
    (tmp_path / "text.mp4").write_text("no video")
    assert "text.mp4: not a readable video" in fails("edit", "text.mp4", *command[2:])
    assert "--refinements=2 with --method=sdedit; permitted: --method ddim or null_text or" in fails(
        *command, "--method", "sdedit", "--refinements", "2")
    assert "--refinements=0 with --method=sdedit" in fails(*command, "--method", "sdedit", "--refinements", "0")
    assert "--source-prompt=a 3 with --method=sdedit" in fails(*command, "--method", "sdedit", "--source-prompt", "a 3")
    assert "--source-guidance=1.0 without --source-prompt" in fails(*command, "--source-guidance", "1")
    for method in ("null_text", "prompt_to_prompt", "fatezero"):
        assert f"--method={method} without --source-prompt; permitted: with --source-prompt TEXT" in fails(
            *command, "--method", method)
    assert "--strength has 3 numbers for the stages base, spatial; permitted: one" in fails(
        *command, "--strength", "0.1", "0.2", "0.3")
    assert "--control=pose is no file; permitted: canny, hed, flow, or a video" in fails(*command, "--control", "pose")
    assert "networks that take none" in fails(*command, "--control", video)
    assert "--prompt is missing" in fails(*command[:4])
    assert "--out=given.mp4 is the video itself" in fails(*command, "--out", "given.mp4")
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.mp4").symlink_to("given.mp4")
    for path in ("sub/../given.mp4", "link.mp4"):
        assert f"--out={path} is the video itself; permitted: another file" in fails(*command, "--out", path)
    video.rename(tmp_path / "x_side_by_side.mp4")
    video.symlink_to("x_side_by_side.mp4")
    assert "--out=x.mp4 has x_side_by_side.mp4 written, which is the video itself" in fails(*command, "--out", "x.mp4")
    (tmp_path / "maps.mp4").write_text("maps")
    assert "--out=maps.mp4 is the video of control maps itself" in fails(*command, "--control", "maps.mp4", "--out",
                                                                        "maps.mp4")
    (tmp_path / "y.mp4.maps").mkdir()
    (tmp_path / "y.mp4.maps" / "given.mp4").symlink_to(video)
    assert "has y.mp4.maps/given.mp4 written" in fails(
        *command, "--control", "canny", "--out", "y.mp4")
    assert "permitted: .mp4, .gif, .png" in fails(*command, "--out", "x.avi")
    said = " ".join(fails(*command, "--method", "magic").replace("'", "").replace("│", " ").split())
    assert f"permitted: {', '.join(EDIT_METHODS)}" in said, said
    assert not list(tmp_path.glob("*.frames"))
