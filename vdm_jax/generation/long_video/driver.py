"""The driver: samples a plan batch by batch, with the frames that each segment is given read from where frames are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from vdm_jax.conditions.frame_masks import MaskedVideo
from vdm_jax.generation.long_video.frames import Frames
from vdm_jax.generation.long_video.plan import Round, Segment
from vdm_jax.video.arrays import to_float


class Task(NamedTuple):
    """A segment of one of the videos."""

    video: int
    segment: Segment


# Clips of some tasks of one round, uint8 [N, T, H, W, 3], from the tasks and what is given of them
SampleTasks = Callable[[list[Task], MaskedVideo | None], UInt8[np.ndarray, "N T H W 3"]]


def sample_plan(
    rounds: Iterable[Round], frames: Frames, sample: SampleTasks, *, at_once: int,
    tell: Callable[[int], None] = lambda done: None, stop: Callable[[], bool] = lambda: False,
) -> None:
    """Sample all segments of all videos, from where `frames` is on.

    Tasks of a round are sampled `at_once` at a time and written as soon as they are there: every frame that is not
    given. Segments that reach beyond the end are cut.

    Args:
      rounds: of the plan, in order.
      tell: called with the number of tasks that are done.
      stop: asked after each batch; True ends it there, and another call goes on.
    """
    done = 0
    for batch in _batches(rounds, frames.shape[0], at_once):
        if done + len(batch) <= frames.done:
            done += len(batch)
            continue
        clips = sample(batch, given_frames(batch, frames))
        for task, clip in zip(batch, clips, strict=True):
            places = [i for i, number in enumerate(task.segment.frames)
                      if i not in task.segment.given and number < frames.shape[1]]
            frames.write(task.video, [task.segment.frames[i] for i in places], clip[places])
        done += len(batch)
        frames.finish(done)
        tell(done)
        if stop():
            return


def _batches(rounds: Iterable[Round], videos: int, at_once: int) -> Iterator[list[Task]]:
    for round_ in rounds:
        tasks = (Task(video, segment) for segment in round_ for video in range(videos))
        while batch := list(itertools.islice(tasks, at_once)):
            yield batch


def given_frames(tasks: list[Task], frames: Frames) -> MaskedVideo | None:
    """What earlier segments made of the clips of some tasks of one round; None: nothing."""
    if not tasks[0].segment.given:
        return None
    length = tasks[0].segment.length
    video = np.zeros((len(tasks), length, *frames.shape[2:]), np.float32)
    mask = np.zeros((len(tasks), length, 1, 1, 1), np.float32)
    for row, (number, segment) in enumerate(tasks):
        places = list(segment.given)
        video[row, places] = np.asarray(to_float(frames.read(number, [segment.frames[i] for i in places])))
        mask[row, places] = 1
    return MaskedVideo(video, mask)


def finished_frames(rounds: Iterable[Round], frames: Frames) -> int:
    """How many frames from the first on will not change any more, in all videos."""
    there, left = np.zeros(frames.shape[1] + 1, bool), frames.done // frames.shape[0]
    for segment in itertools.islice(itertools.chain.from_iterable(rounds), left):
        there[[number for number in segment.frames if number < frames.shape[1]]] = True
    return int(np.argmin(there))
