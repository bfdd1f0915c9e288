"""Stories: one handwritten digit for hundreds or thousands of frames, whose colour and motion change at known times.

A story is a pure function of (seed, split, index). Its path and acts are cheap; only the frames that are asked for are
drawn, so a clip of some frames far apart costs what a short clip does. The handwriting, one scan, stays the same.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Float, UInt8

from vdm_jax.configuration import SPLITS, Count, Positive, Range, Seed, Split, check_value, config
from vdm_jax.digits import drawing
from vdm_jax.digits.clips import HELD_OUT_PAIRS, DigitObject, describe
from vdm_jax.digits.drawing import BOUNCE_TRAVEL, COLOURS, DIRECTION, MOTIONS, STRAIGHT_TRAVEL

_STREAM = 7  # of random numbers, next to those of `clips.generate_clip`


@config
class StorySpec:
    """What stories look like."""

    seed: Seed = 0
    length: Annotated[int, Range(least=2, cap=2**20)] = 226  # frames of a story
    act: Annotated[int, Range(least=2, cap=2**16)] = 32  # frames from one change to the next
    size: Annotated[int, Range(least=16, cap=2**16)] = 64  # pixels, height and width
    digit_side: Annotated[float, Range(least=0.2, most=0.75)] = 0.5  # side of the digit's square, in frame sides
    fps: Positive = 8.0  # frames per second that a story claims
    train_stories: Count = 20_000
    validation_stories: Count = 500
    test_stories: Count = 1_000


@dataclasses.dataclass(frozen=True)
class Act:
    """What holds from one change to the next."""

    start: int  # frame
    shown: DigitObject
    caption: str


@dataclasses.dataclass(frozen=True)
class Story:
    """A story with all that is known about it."""

    spec: StorySpec
    stamp: Float[np.ndarray, "side side"]  # opacity of the digit
    acts: tuple[Act, ...]
    track: Float[np.ndarray, "N 2"]  # corner of the digit in each frame (y, x), pixels

    def act(self, frame: int) -> Act:
        """The act that a frame is in."""
        return self.acts[frame // self.spec.act]

    def captions(self, frames: Sequence[int]) -> tuple[str, ...]:
        """Of each of some frames."""
        return tuple(self.act(frame).caption for frame in frames)

    def script(self) -> tuple[tuple[int, str], ...]:
        """(frame, caption) of every change, the beginning included."""
        return tuple((act.start, act.caption) for act in self.acts)

    def draw(self, frames: Sequence[int]) -> UInt8[np.ndarray, "N H W 3"]:
        """Some frames, in any order."""
        numbers, size = np.asarray(frames), self.spec.size
        video = np.zeros((len(numbers), size, size, 3), np.uint8)
        acts = numbers // self.spec.act
        for number in np.unique(acts):
            part = video[acts == number]
            drawing.paint(part, self.stamp, self.track[numbers[acts == number]],
                          COLOURS[self.acts[number].shown.colour])
            video[acts == number] = part
        return video


def make_story(spec: StorySpec, split: str, index: int) -> Story:
    """Story `index` of `split`: a pure function of its arguments, for any `index` from 0 on. In the training split no
    act shows one of `HELD_OUT_PAIRS`."""
    check_value(split, Split, "split")
    rng = np.random.default_rng([spec.seed, SPLITS.index(split), operator.index(index), _STREAM])
    side = drawing.stamp_side(spec.size, spec.digit_side)
    digit = int(rng.integers(10))
    stamps = drawing.digit_stamps(split, side)[digit]
    stamp, room = stamps[rng.integers(len(stamps))], spec.size - side
    place, colour, acts, track = rng.uniform(0, room, 2), None, [], []
    for start in range(0, spec.length, spec.act):
        motion = rng.choice([m for m in MOTIONS if _fits(m, place, room)
                             and not (split != "test" and (digit, m) in HELD_OUT_PAIRS)])
        colour = rng.choice([name for name in COLOURS if name != colour])
        shown = DigitObject(digit, str(colour), str(motion))
        acts.append(Act(start, shown, describe(shown, rng)))
        path = _path(rng, motion, place, room, spec.act)
        track.append(path[:-1])
        place = path[-1]  # the next act goes on from here
    return Story(spec, stamp, tuple(acts), np.concatenate(track)[: spec.length])


def _free(motion: str, place: Float[np.ndarray, " 2"], room: float) -> float:
    """How far a straight motion can go from a place."""
    step = np.array(DIRECTION[motion])
    return float(np.where(step > 0, room - place, place)[step != 0][0])


def _fits(motion: str, place: Float[np.ndarray, " 2"], room: float) -> bool:
    """Whether a motion has as much room as the shortest one that a caption calls so."""
    return motion not in DIRECTION or _free(motion, place, room) >= STRAIGHT_TRAVEL[0] * room


def _path(
    rng: np.random.Generator, motion: str, place: Float[np.ndarray, " 2"], room: float, frames: int
) -> Float[np.ndarray, "N 2"]:
    """Places of an act's frames, and the one with which the next act begins."""
    tau = np.linspace(0, 1, frames + 1)[:, None]
    if motion == "still":
        return np.repeat(place[None], frames + 1, axis=0)
    if motion == "bounce":
        angle = rng.uniform(0, 2 * np.pi)
        path = np.array([np.sin(angle), np.cos(angle)]) * rng.uniform(*BOUNCE_TRAVEL) * room
        return room - np.abs((place + tau * path) % (2 * room) - room)  # reflected at 0 and at `room`
    least, most = (share * room for share in STRAIGHT_TRAVEL)
    travel = rng.uniform(least, min(most, _free(motion, place, room)))
    return np.clip(place + tau * travel * np.array(DIRECTION[motion]), 0, room)
