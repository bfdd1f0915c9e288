"""Scores of edited videos: what a list must say, what is missing, and numbers against NumPy, with CLIP's place taken by
the colours of frames and the lengths of words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.commands.main import main
from vdm_jax.errors import UserError
from vdm_jax.evaluation.edits import (
    EDIT_METRICS,
    EDIT_PROTOCOLS,
    EditList,
    EditSettings,
    GivenVideo,
    evaluate_edits,
    frame_accuracy,
    read_edit_list,
)
from vdm_jax.metrics.detectors import clip, weights
from vdm_jax.metrics.flow import warp_error
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.writing import write_video

LIST = {"videos": [{"file": "bear.mp4", "source_prompt": "a bear", "prompts": ["a red bear", "a fox"]},
                   {"file": "car.mp4", "source_prompt": "a car", "prompts": ["a toy"]}]}
FRAMES = {"bear.mp4": 5, "car.mp4": 4, "bear_0.mp4": 5, "bear_1.mp4": 4, "car_0.mp4": 4}


def moving(name):
    rng = np.random.default_rng(len(name) + ord(name[-5]))
    picture = rng.integers(0, 256, (12, 20, 3)).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    return np.stack([picture[:, i:i + 64] for i in range(FRAMES[name])])


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Given videos with a list, and edits."""
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path))
    (tmp_path / "clip_ViT-L-14.safetensors").write_text("")
    monkeypatch.setattr(clip, "merges_file", lambda name: None)
    monkeypatch.setattr(clip, "image_embeddings", lambda video, name: video.mean((1, 2)))
    monkeypatch.setattr(clip, "text_embeddings", lambda texts, name: np.array([embedded(text) for text in texts]))
    given, edited = tmp_path / "given", tmp_path / "edited"
    for folder, names in ((given, ("bear.mp4", "car.mp4")), (edited, ("bear_0.mp4", "bear_1.mp4", "car_0.mp4"))):
        folder.mkdir()
        for name in names:
            write_video(folder / name, moving(name), 4, lossless=True)
    (given / "edits.json").write_text(json.dumps(LIST))
    return given, edited


def embedded(text):
    return [float(len(text)), text.count("r") + 1, 3]


def read(path):
    with VideoReader(path) as file:
        return np.asarray(file.frames(range(len(file))))


def cosine(a, b):
    return a @ b / np.linalg.norm(a, axis=-1) / np.linalg.norm(b)


def test_every_edit_counts_once(folders):
    given, edited = folders
    found = {score.metric: score for score in evaluate_edits(edited, given / "edits.json", EditSettings()).scores}
    assert set(found) == set(EDIT_METRICS) and all(score.conditions["videos"] == 3 for score in found.values())
    expected = {name: [] for name in EDIT_METRICS}
    for source, name, prompt, own in (("bear", "bear_0", "a red bear", "a bear"), ("bear", "bear_1", "a fox", "a bear"),
                                      ("car", "car_0", "a toy", "a car")):
        video = read(edited / f"{name}.mp4")
        x = video.mean((1, 2))
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        pairs = [unit[i] @ unit[j] for i in range(len(x)) for j in range(len(x)) if i != j]
        expected["clip_frame_consistency"].append(np.mean([unit[i] @ unit[i + 1] for i in range(len(x) - 1)]))
        expected["clip_frame_consistency_all"].append(np.mean(pairs))
        expected["prompt_consistency"].append(cosine(x, np.array(embedded(prompt))).mean())
        nearer = cosine(x, np.array(embedded(prompt))) > cosine(x, np.array(embedded(own)))
        expected["frame_accuracy"].append(nearer.mean())
        guide = read(given / f"{source}.mp4")[:len(video)]
        expected["warp_error"].append(warp_error(video[None], guide[None])[0])
    for name, values in expected.items():
        assert found[name].value == pytest.approx(np.mean(values), rel=1e-6), name
    assert found["warp_error"].conditions["flow"] == "DIS" and not found["warp_error"].detector
    assert found["prompt_consistency"].detector_sha256 == clip.find_model("ViT-L-14").file.sha256


def test_an_edit_at_half_the_rate_moves_as_every_second_frame_does(folders):
    """Frame i of the edit is frame 2 i of the given video, which is on screen then."""
    given, edited = folders
    every_second = read(given / "bear.mp4")[::2]
    write_video(edited / "bear_0.mp4", every_second, 2, lossless=True)
    (given / "one.json").write_text(json.dumps({"videos": [{"file": "bear.mp4", "prompts": ["a red bear"]}]}))
    score, = evaluate_edits(edited, given / "one.json", EditSettings(metrics=("warp_error",))).scores
    video, wrong = read(edited / "bear_0.mp4"), read(given / "bear.mp4")[:3]
    assert score.value == pytest.approx(warp_error(video[None], every_second[None])[0], rel=1e-6)
    assert score.value != pytest.approx(warp_error(video[None], wrong[None])[0], rel=1e-3)


def test_frames_nearer_to_the_new_prompt():
    frames = np.array([[1, 0.1], [0.1, 1], [0.4, 1]])
    assert frame_accuracy(frames, np.array([0.0, 2.0]), np.array([3.0, 0.0])) == pytest.approx(2 / 3)


def test_protocols_count_videos_and_prompts(folders):
    """A list that departs from a paper's numbers says so in every score; the papers' flow is a learned one."""
    given, edited = folders
    settings = EditSettings(metrics=("prompt_consistency", "warp_error"), protocol="controlvideo_davis")
    prompts, warps = evaluate_edits(edited, given / "edits.json", settings).scores
    assert prompts.deviations == ("2 videos, not 25", "3 prompts, not 125", "1 to 2 prompts of a video, not 5")
    assert warps.deviations[-1] == "flow by DIS, not by a learned network" and "OFF PROTOCOL" in prompts.label
    whole = EditList(videos=tuple(GivenVideo(file=f"{n}.mp4", prompts=tuple("abcde")) for n in range(25)))
    assert EDIT_PROTOCOLS["controlvideo_davis"].deviations(whole) == ()
    other = EDIT_PROTOCOLS["tune_a_video_davis"]
    assert other.deviations(whole) == ("25 videos, not 42", "125 prompts, not 140")
    uneven = EditList(videos=tuple(GivenVideo(file=f"{n}.mp4", prompts=("a",) * (3 + (n < 14))) for n in range(42)))
    assert other.deviations(uneven) == ()


def test_what_is_missing_is_said_before_anything_is_measured(folders):
    given, edited = folders
    (edited / "bear_1.mp4").unlink()
    (given / "car.mp4").unlink()
    with refused("edits.missing", "2 of 5 files are missing", "car.mp4", "bear_1.mp4"):
        evaluate_edits(edited, given / "edits.json", EditSettings())
    many = {"videos": [{"file": "bear.mp4", "prompts": ["a"] * 9}]}
    (given / "many.json").write_text(json.dumps(many))
    with refused("edits.missing", "8 of 10 files", "and 3 more"):
        evaluate_edits(edited, given / "many.json", EditSettings())


def test_the_command_lists_what_is_expected_and_what_is_missing(folders, capfd, monkeypatch):
    given, edited = folders
    command = ["measure", str(edited), "--edits", str(given / "edits.json"), "--expected"]
    assert main(command) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[:2] == [f"there    {given / 'bear.mp4'}  given video", f"there    {given / 'car.mp4'}  given video"]
    assert f"there    {edited / 'bear_1.mp4'}  'a fox'" in lines and lines[-1] == "0 of 5 files are missing"
    (edited / "bear_1.mp4").unlink()
    (given / "car.mp4").unlink()
    (given.parent / "clip_ViT-L-14.safetensors").unlink()
    assert main([*command, "--edit-protocol", "controlvideo_davis"]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert f"missing  {edited / 'bear_1.mp4'}  'a fox'" in lines
    assert f"missing  {given / 'car.mp4'}  given video" in lines
    assert lines[5:9] == ["2 of 5 files are missing", "off protocol: 2 videos, not 25",
                          "off protocol: 3 prompts, not 125", "off protocol: 1 to 2 prompts of a video, not 5"]
    assert len(lines) == 10 and lines[-1].startswith("missing: detector") and "ViT-L-14" in lines[-1]
    assert main(["measure", str(edited), "--expected"]) == 2
    assert "--expected without --edits" in capfd.readouterr().err
    assert main([*command, "--out", "x.json"]) == 2
    assert "--out=x.json with --expected is not used" in capfd.readouterr().err


@pytest.mark.parametrize(("text", "named"), [
    ("{", "is not JSON"), ('{"videos": []}', "videos"), ('{"videos": [{"file": "a.mp4", "prompts": []}]}', "prompts"),
    ('{"videos": [{"file": "a.mp4", "prompts": ["b"]}, {"file": "a.mov", "prompts": ["b"]}]}', "'a' twice")])
def test_lists_that_are_none(tmp_path, text, named):
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(UserError, match=named):
        read_edit_list(tmp_path / "list.json")


def test_refusals(folders):
    given, edited = folders
    with refused("edits.list", "none.json"):
        read_edit_list(Path("none.json"))
    unsaid = {"videos": [{"file": "bear.mp4", "prompts": ["a red bear"]}]}
    (given / "unsaid.json").write_text(json.dumps(unsaid))
    with refused("edits.source_prompt", "without source_prompt of bear.mp4"):
        evaluate_edits(edited, given / "unsaid.json", EditSettings())
    write_video(edited / "car_0.mp4", np.repeat(moving("car_0.mp4"), 2, axis=0), 4, lossless=True)
    with refused("edits.frames", "8 frames at 4 a second, for 4 that"):
        evaluate_edits(edited, given / "edits.json", EditSettings(metrics=("warp_error",)))


def test_the_command(folders, capfd):
    given, edited = folders
    command = ["measure", str(edited), "--edits", str(given / "edits.json")]
    assert main([*command, "--edit-protocol", "tune_a_video_davis", "--out", str(given / "scores.json")]) == 0
    assert "off protocol: 2 videos, not 42" in capfd.readouterr().out
    scores = json.loads((given / "scores.json").read_text())["scores"]
    assert [score["metric"] for score in scores] == list(EDIT_METRICS)
    for arguments, said in ((["--metrics", "fvd"], "--metrics=fvd with --edits; permitted: clip_frame"),
                            (["--split", "test"], "--split=test with --edits is not used")):
        assert main([*command, *arguments]) == 2
        assert said in capfd.readouterr().err
    assert main(["measure", str(edited), "--metrics", "motion", "--edit-protocol", "tune_a_video_davis"]) == 2
    assert "--edit-protocol=tune_a_video_davis without --edits" in capfd.readouterr().err
