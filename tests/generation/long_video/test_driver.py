"""The driver, with a sampler that says what each frame was made from in place of a network."""

from __future__ import annotations

import gc
import json
import tracemalloc

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.generation.long_video.driver import finished_frames, sample_plan
from vdm_jax.generation.long_video.frames import RECORD, Frames, FramesInFolder
from vdm_jax.generation.long_video.plan import Autoregressive, NuwaXL

SIZE = 4


def fake(calls=None):
    """Clips that depend on the video, the segment and what is given."""
    def sample(tasks, given):
        if calls is not None:
            calls.append([(task.video, task.segment.number) for task in tasks])
        clips = []
        for row, task in enumerate(tasks):
            rng = np.random.default_rng([task.video, task.segment.number])
            clip = rng.integers(0, 200, (task.segment.length, 2, 2, 3))
            if given is not None:
                known = np.round(127.5 * (given.video[row] + 1)).astype(int)
                clip = np.where(given.mask[row] > 0, 255, (clip + known[0] + known[-1]) % 256)  # 255: not written
            clips.append(clip.astype(np.uint8))
        return np.stack(clips)

    return sample


def made(method, frames, at_once=3, rounds=None):
    found = Frames((2, frames, 2, 2, 3))
    sample_plan(method.rounds(frames, SIZE) if rounds is None else rounds, found, fake(), at_once=at_once)
    return found


def test_parallel_equals_sequential_and_key_frames_do_not_change():
    method, frames = NuwaXL(), 28
    parallel = made(method, frames, at_once=100)
    one_by_one = [(segment,) for round_ in method.rounds(frames, SIZE) for segment in round_]
    sequential = made(method, frames, at_once=1, rounds=one_by_one)
    for video in range(2):
        np.testing.assert_array_equal(parallel.read(video, range(frames)), sequential.read(video, range(frames)))
    for depth, stride in ((1, 9), (2, 3)):  # a clip of every third frame is the video of two rounds
        rounds = list(method.rounds(frames, SIZE))[:depth]
        early = made(method, frames, rounds=rounds)
        for video in range(2):
            keys = range(0, frames, stride)
            np.testing.assert_array_equal(parallel.read(video, keys), early.read(video, keys))


def test_independent_segments_share_batches():
    calls = []
    sample_plan(NuwaXL().rounds(10, SIZE), Frames((2, 10, 2, 2, 3)), fake(calls), at_once=4)
    assert [len(call) for call in calls] == [2, 4, 2]  # both videos' global clips; 3 local ones of each


@pytest.mark.parametrize("method", [NuwaXL(), Autoregressive(overlap=1)])
def test_sampling_goes_on_where_it_stopped(method, tmp_path):
    frames, shape = 28, (2, 28, 2, 2, 3)
    whole, finished = made(method, frames), []
    for stop_after in (1, 3, 100):
        there = FramesInFolder(tmp_path, shape, "key")
        calls = []
        sample_plan(method.rounds(frames, SIZE), there, fake(calls), at_once=3,
                    stop=lambda calls=calls, most=stop_after: len(calls) >= most)
        finished.append(finished_frames(method.rounds(frames, SIZE), there))
        there._file.close()
    assert finished[0] < frames and finished == sorted(finished) and finished[-1] == frames
    for video in range(2):
        there = FramesInFolder(tmp_path, shape, "key")
        np.testing.assert_array_equal(there.read(video, range(frames)), whole.read(video, range(frames)))
        there._file.close()


def test_what_the_next_task_goes_on_with_is_written_where_it_changed(tmp_path):
    def open_folder():
        return FramesInFolder(tmp_path, (1, 4, 2, 2, 3), "key")

    def finish(frames, first, done):
        frames.finish(done, state={"first": first, "previous": {"x": np.full(2, done)}})
        return sorted(path.name for path in tmp_path.glob("state*"))

    there, first = open_folder(), {"x": np.arange(3), "y": {"z": np.ones(1)}}
    for done in (1, 2):
        assert finish(there, first, done) == ["state_first_1.safetensors", f"state_previous_{done}.safetensors"]
    assert there.state()["first"] is first  # not read again
    again = open_folder()
    for kept in (again.state(), open_folder().state()):
        np.testing.assert_array_equal(kept["first"]["y"]["z"], 1)
        np.testing.assert_array_equal(kept["previous"]["x"], 2)
    assert finish(again, again.state()["first"], 3) == ["state_first_1.safetensors", "state_previous_3.safetensors"]
    assert finish(again, {"x": np.arange(3)}, 4) == ["state_first_4.safetensors", "state_previous_4.safetensors"]
    (tmp_path / "state_first_4.safetensors").unlink()
    assert open_folder().state() is None
    again.finish(5)
    assert again.state() is None and not list(tmp_path.glob("state*"))


def test_frames_up_to_the_first_missing_one_are_finished():
    frames = Frames((1, 28, 2, 2, 3))
    rounds = list(NuwaXL().rounds(28, SIZE))
    for done, finished in ((0, 0), (1, 1), (4, 1), (5, 4), (6, 7), (13, 28)):  # key frames after a gap are not
        frames.finish(done)
        assert finished_frames(rounds, frames) == finished
    both = Frames((2, 28, 2, 2, 3))
    both.finish(3)  # two videos: the second segment is there for one of them
    assert finished_frames(Autoregressive(overlap=1).rounds(28, SIZE), both) == 4


def test_memory_does_not_grow_with_the_length(tmp_path):
    def peak(frames):
        there = FramesInFolder(tmp_path / str(frames), (1, frames, 32, 32, 3), "")
        gc.collect()
        tracemalloc.start()
        sample_plan(Autoregressive(overlap=1).rounds(frames, SIZE), there,
                    lambda tasks, given: np.ones((len(tasks), SIZE, 32, 32, 3), np.uint8), at_once=2)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert there.read(0, [frames - 1]).min() == 1
        there.remove()
        assert not (tmp_path / str(frames)).exists()
        return found

    short, long = (min(peak(frames) for _ in range(2)) for frames in (20, 200))  # whatever else the process does
    assert long < 1.1 * short


def test_frames_of_something_else_are_refused(tmp_path):
    FramesInFolder(tmp_path, (1, 4, 2, 2, 3), "one").finish(1)
    for key, shape in (("two", (1, 4, 2, 2, 3)), ("one", (1, 8, 2, 2, 3))):
        with refused("folder", str(tmp_path), "the same request"):
            FramesInFolder(tmp_path, shape, key)
    (tmp_path / "frames.rgb").write_bytes(b"cut")
    with refused("folder", "frames.rgb is missing or of another size", "delete the folder"):
        FramesInFolder(tmp_path, (1, 4, 2, 2, 3), "one")
    for text in ("{", json.dumps({"key": "one"})):
        (tmp_path / RECORD).write_text(text)
        with refused("folder", "damaged", "delete the folder"):
            FramesInFolder(tmp_path, (1, 4, 2, 2, 3), "one")
