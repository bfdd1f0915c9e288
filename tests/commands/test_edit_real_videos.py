"""`vdm-jax edit` of a real shot by every method, with tiny networks of random weights: a video with sound, cut to odd
sides, whose frames last differently."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from tests.pipelines.folders import write_control, write_pictures
from tests.real_videos import frames_of, real_video, write_shot
from vdm_jax.commands.main import main
from vdm_jax.generation.editing import files
from vdm_jax.generation.editing.methods import EDIT_METHODS
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.sound import read_sound

pytestmark = pytest.mark.full
BEGINS = [0, 40, 80, 160, 200, 320, 360, 400, 480]  # milliseconds
SHOWN = [0, 1, 2, 3, 4, 4, 5, 7, 7]  # on screen at the mean rate, 9 frames in 520 milliseconds
RATE = 9 / 0.52
HEIGHT, WIDTH = 32, 48
OWN = ("--source-prompt", "a red three")
MAPS = ("--control", "canny")
# Of each method: its options, and how many frames each call of it edits, nine in clips of four if not otherwise
FOUR = [4, 4, 4]
METHODS = {
    "sdedit": (("--strength", "0.5"), FOUR),
    "ddim": (OWN, FOUR),
    "null_text": ((*OWN, "--iterations", "1"), FOUR),
    "prompt_to_prompt": ((*OWN, "--weight", "moving=2"), FOUR),
    "fatezero": (OWN, FOUR),
    "ddpm": ((*OWN, "--strength", "1"), FOUR),
    "tune_a_video": ((), FOUR),
    "text2video_zero": (MAPS, FOUR),  # each with the first frame of all
    "controlvideo": ((*MAPS, "--smooth", "2", "1", "--hierarchical", "--window", "4"), [9]),
    "rerender": ((*MAPS, "--interval", "4"), [5, 5]),  # from one key frame to the next
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the shot and the two models."""
    home, source = tmp_path_factory.mktemp("videos"), real_video("bigbuckbunny.mp4")
    write_shot(home / "shot.mkv", frames_of(source, range(40, 76, 4), 91, 161), BEGINS, source)
    write_pictures(home / "plain"), write_control(home / "control")
    return home


def test_every_method_is_here():
    assert set(METHODS) == set(EDIT_METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_a_real_shot_is_edited(home, method, tmp_path, monkeypatch):
    (options, clips), seen, edit = METHODS[method], [], files.edit
    monkeypatch.setattr(files, "edit", lambda *a, **k: seen.append((a[1], k.get("control"))) or edit(*a, **k))
    sizes = ("--num-frames", "4") if clips == FOUR else ()
    assert main(["edit", str(home / "shot.mkv"), "--model", str(home / ("control" if MAPS[0] in options else "plain")),
                 "--method", method, *options, *sizes, "--prompt", "a red moving", "--height", str(HEIGHT), "--width",
                 str(WIDTH), "--steps", "2", "--out", "made.mp4"]) == 0
    # No more frames in memory than those of a clip, and maps of these frames in the size that is edited
    assert [videos.shape for videos, _ in seen] == [(1, frames, HEIGHT, WIDTH, 3) for frames in clips]
    for videos, maps in seen if MAPS[0] in options else ():
        edges = [cv2.Canny(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), 100, 200) for frame in videos[0]]
        np.testing.assert_array_equal(maps[0], np.repeat(np.stack(edges)[..., None], 3, axis=-1))
    with VideoReader(home / "shot.mkv") as shot, VideoReader("made.mp4") as made, VideoReader(
            "made_side_by_side.mp4") as both:
        assert shot.fps == pytest.approx(RATE)
        for file in (made, both):
            assert file.index.seconds(np.arange(len(file))) == pytest.approx(np.arange(9) / RATE, abs=1e-3)
        given, result, pair = (file.frames(range(9), *size).mean(-1) for file, size in (
            (shot, (HEIGHT, WIDTH)), (made, (HEIGHT, WIDTH)), (both, (HEIGHT, 2 * WIDTH + 2))))
    left, right = pair[..., :WIDTH], pair[..., -WIDTH:]
    apart = np.abs(left[:, None] - given).mean((2, 3))  # of each frame on the left and each of the shot
    assert apart.argmin(1).tolist() == SHOWN and apart.min(1).max() < 6
    assert np.abs(right - result).mean() < 6 < np.abs(right - left).mean()
    found, expected = read_sound(tmp_path / "made.mp4", 48000), read_sound(home / "shot.mkv", 48000)
    np.testing.assert_array_equal(found[:24000], expected[:24000])  # packet for packet
    assert np.abs(found).max() > 0.01 and len(found) / 48000 == pytest.approx(0.52, abs=0.05)
    record = json.loads((tmp_path / "made.json").read_text())
    assert (record["frames"], record["size"], record["sound"]) == (9, [HEIGHT, WIDTH], True)
    assert record["method"]["all"]["name"] == method and record["psnr_to_source"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.json", "made.mp4", "made_side_by_side.mp4"]


def test_of_the_beginning_of_a_shot_only_its_maps_are_made(home, tmp_path, monkeypatch):
    seen, edit = [], files.edit
    monkeypatch.setattr(files, "edit", lambda *a, **k: seen.append((a[1], k["control"])) or edit(*a, **k))
    assert main(["edit", str(home / "shot.mkv"), "--model", str(home / "control"), "--method", "text2video_zero", *MAPS,
                 "--num-frames", "4", "--frames", "4", "--prompt", "a red moving", "--height", str(HEIGHT), "--width",
                 str(WIDTH), "--steps", "2", "--out", "made.mp4"]) == 0
    (videos, maps), = seen
    edges = [cv2.Canny(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), 100, 200) for frame in videos[0]]
    np.testing.assert_array_equal(maps[0][..., 0], np.stack(edges))
    with VideoReader("made.mp4") as made:
        assert len(made) == 4 == len(maps[0])
    assert json.loads((tmp_path / "made.json").read_text())["frames"] == 4
