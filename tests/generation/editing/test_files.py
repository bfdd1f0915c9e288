"""Editing files: what a folder of finished frames goes on with."""

from __future__ import annotations

import dataclasses
import os
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tests.pipelines.folders import write_control
from tests.refusals import refused
from tests.training.latents import AUTOENCODER
from vdm_jax.commands.configs import config_folder, load_module
from vdm_jax.generation.editing import files
from vdm_jax.generation.editing.control_video import ControlVideo
from vdm_jax.generation.editing.files import VideoJob, edit_video
from vdm_jax.generation.editing.rerender import Rerender
from vdm_jax.generation.editing.sdedit import SDEdit
from vdm_jax.generation.editing.text2video_zero import Text2VideoZero
from vdm_jax.generation.released.models import load_released, with_size
from vdm_jax.video.writing import write_video


@pytest.fixture
def job(tmp_path):
    video, maps = (write_video(tmp_path / name, np.zeros((4, 16, 16, 3), np.uint8), 4)
                   for name in ("given.mp4", "maps.mp4"))
    return VideoJob(video, "a three", maps=maps)


@pytest.mark.parametrize("changed", ["path", "maps"])
def test_frames_go_on_with_the_files_they_are_of(job, changed, tmp_path, monkeypatch):
    """Without the network: clips are recorded alone."""
    monkeypatch.setattr(files, "_edit_clips", lambda *given: given[-2].finish(given[-3][-1] + 1, {"video": [40.0]}))
    generator = with_size(load_released(write_control(tmp_path / "control"), jax.devices()[:1]), frames=2)
    folder, stops = tmp_path / "frames", {"stop": lambda: True}
    assert edit_video(generator, job, folder=folder, **stops).finished == 2
    os.utime(getattr(job, changed), ns=(0, 0))
    with refused("folder", "another request"):
        edit_video(generator, job, folder=folder, **stops)
    first, second = (edit_video(generator, job, folder=tmp_path / "others", **stops) for _ in range(2))
    assert (first.finished, second.finished) == (2, 2)


def test_every_frame_that_is_edited_has_a_map(job, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_edit_clips", lambda *given: given[-2].finish(given[-3][-1] + 1, {"video": [40.0]}))
    generator = with_size(load_released(write_control(tmp_path / "control"), jax.devices()[:1]), frames=2)

    def edited(maps, frames, made):
        path = write_video(tmp_path / f"{maps}.mp4", np.zeros((maps, 16, 16, 3), np.uint8), 4)
        return edit_video(generator, dataclasses.replace(job, maps=path, frames=frames, maps_end=made))

    for maps, frames, made in ((4, None, True), (4, 2, True), (3, 3, True), (4, None, False), (4, 2, False)):
        assert edited(maps, frames, made).complete
    for maps, frames, made in ((3, None, True), (2, 3, True), (5, 3, True), (3, 3, False), (5, 3, False)):
        permitted = f"at least for the first {frames or 4}" if made else "permitted: a map for each frame"
        with refused("edit.maps", f"{maps}.mp4 has {maps} frames for 4", permitted):
            edited(maps, frames, made)


def test_pieces_of_a_file_are_the_whole(tmp_path):
    """Where the method is exact: clips that carry the first frame, and clips that are edited together or one by one."""
    video = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
    path = write_video(tmp_path / "given.mp4", video, 4, lossless=True)
    generator = load_released(write_control(tmp_path / "control"), jax.devices()[:1])

    def made(method, frames, at_once=1):
        job = VideoJob(path, "a three", method=method, maps=path, at_once=at_once,
                       options={"steps": 2, "guidance": 1.0})
        done = edit_video(with_size(generator, frames=frames), job)
        assert done.complete
        return done.frames.read(files.EDITED, range(8)).astype(int)

    whole = made(Text2VideoZero(), 8)
    for at_once in (1, 2):  # frames 0 to 2, and 0 with 3 and 4, 5 and 6, 7 and what fills the clip up
        assert np.abs(made(Text2VideoZero(), 3, at_once) - whole).max() <= 1
    assert np.abs(made(SDEdit(), 3) - made(SDEdit(), 3, 2)).max() <= 1


def test_round_trips_of_earlier_calls_are_kept(job, tmp_path, monkeypatch):
    values = iter([40.0, 50.0])
    monkeypatch.setattr(files, "_edit_clips",
                        lambda *given: given[-2].finish(given[-3][-1] + 1, {"video": [next(values)]}))
    generator = with_size(load_released(write_control(tmp_path / "control"), jax.devices()[:1]), frames=2)
    folder = tmp_path / "frames"
    assert not edit_video(generator, job, folder=folder, stop=lambda: True).complete
    made = edit_video(generator, job, folder=folder)
    assert made.complete and made.round_trip == {"video": [40.0, 50.0]}
    assert made.record()["round_trip_psnr"] == {"video": 45.0}


def test_networks_that_see_the_maps_around_each_frame_edit_one_clip_alone(job, tmp_path, monkeypatch):
    """At a cut they would see the frame itself in place of its neighbours, which is not what they were trained on."""
    stage, = load_module(config_folder() / "dream_pose" / "_tiny.py").frames(AUTOENCODER).stages
    entry = next(entry for entry in stage.network.conditions if entry.name == "control")
    assert entry.window == 5
    monkeypatch.setattr(files, "_map_name", lambda stages, job: "control")
    monkeypatch.setattr(files, "_frames", lambda *given: pytest.fail("it goes on"))

    def begun(frames, **changes):
        made = dataclasses.replace(stage, video=dataclasses.replace(stage.video, frames=frames))
        edit_video(SimpleNamespace(stages=lambda first, last: (made,)), dataclasses.replace(job, **changes))

    for changes, cut in (({}, "2 clips of 3"), ({"method": Rerender(interval=2)}, "2 clips of 3")):
        with refused("Input.window", f"4 frames in {cut} with Input.window=5 of 'control'", "videos made at once"):
            begun(3, **changes)
    with pytest.raises(pytest.fail.Exception, match="it goes on"):
        begun(4)
    for method, said in ((Rerender(), "single frames of method='rerender'"),
                         (ControlVideo(smooth=(), hierarchical=True), "ControlVideo.hierarchical=True")):
        with refused("Input.window", said, "Input.window=5 of 'control'"):
            method.check(stage, stage.sampling)
