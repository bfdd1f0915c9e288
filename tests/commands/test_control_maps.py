"""Control maps of an edited video: made again for another video, and nobody else's files are deleted."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.commands.control_maps import STAMP, make_maps, remove_maps
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.writing import write_video


def write(path, value):
    frames = np.zeros((2, 16, 24, 3), np.uint8)
    frames[:, 4:12, value : value + 8] = 255
    path.parent.mkdir(exist_ok=True)
    return write_video(path, frames, 6)


def edges(path):
    with VideoReader(path) as video:
        return video.frames([0])


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "made.mp4.maps"


def test_maps_are_kept_for_one_video_and_kind_alone(tmp_path, folder):
    video = write(tmp_path / "given.mp4", 2)
    path = make_maps(video, folder, "canny")
    assert path == folder / "given.mp4"
    first, stat = edges(path), path.stat()
    os.utime(path, ns=(0, 0))
    assert make_maps(video, folder, "canny").stat().st_mtime_ns == 0  # as they were
    other = write(tmp_path / "elsewhere" / "given.mp4", 12)
    assert (edges(make_maps(other, folder, "canny")) != first).any()
    write(tmp_path / "given.mp4", 12)
    np.testing.assert_array_equal(edges(make_maps(video, folder, "canny")), edges(path))
    assert path.stat().st_mtime_ns >= stat.st_mtime_ns
    make_maps(write(tmp_path / "second.mp4", 2), folder, "canny")
    assert not path.exists()  # of the video before
    remove_maps(folder)
    assert not folder.exists()


def test_maps_of_the_first_frames_in_another_size(tmp_path, folder):
    """Edges of small frames, which are not the small edges of large ones; another size or number makes them again."""
    video = write(tmp_path / "given.mp4", 2)
    with VideoReader(video) as file, VideoReader(make_maps(video, folder, "canny", 1, (8, 12))) as maps:
        small = cv2.Canny(cv2.cvtColor(file.frames([0], 8, 12)[0], cv2.COLOR_RGB2GRAY), 100, 200)
        np.testing.assert_array_equal(maps.frames([0])[0], np.repeat(small[..., None], 3, axis=-1))
        assert len(maps) == 1 and small.any()
    for frames, size, count in ((9, (8, 12), 2), (9, None, 2), (1, None, 1)):
        with VideoReader(make_maps(video, folder, "canny", frames, size)) as maps:
            assert len(maps) == count and maps.frames([0]).shape[1:3] == (size or (16, 24))


def test_files_of_others_stay(tmp_path, folder):
    video = write(tmp_path / "given.mp4", 2)
    own = write(folder / "given.mp4", 5)
    remove_maps(folder)
    with refused("control_maps.make_maps", "made.mp4.maps has files", "another --out"):
        make_maps(video, folder, "canny")
    assert own.is_file()
    own.rename(tmp_path / "own.mp4")
    folder.rmdir()
    make_maps(video, folder, "canny")
    (folder / "notes.txt").write_text("mine")
    remove_maps(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / STAMP).write_text('{"maps": "../given.mp4"}')
    with refused("control_maps._stamp", "not a readable stamp", "remove the folder"):
        remove_maps(folder)
    assert video.is_file()
