"""Clips of a digit with a beat: it stands still, and at each beat of its sound it jumps in another direction.

A clip is a pure function of (seed, split, index), like those of `clips.py`, and its handwriting is of the split. The
beats are in no caption: only the sound says when the digit jumps, and how many times.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Annotated

import numpy as np
from jaxtyping import Float, Int, UInt8

from vdm_jax.configuration import SPLITS, Count, Positive, Range, Seed, Split, check_value, config
from vdm_jax.digits import drawing
from vdm_jax.digits.clips import Clips, DigitObject, describe
from vdm_jax.digits.drawing import COLOURS
from vdm_jax.errors import UserError

_STREAM = 11  # of random numbers, next to those of `clips.generate_clip` and of stories
# Frame of the first beat: the optical flow into a frame is a peak only between two others, and that into frame 1 has
# none before it
FIRST = 2
JUMP = (0.35, 0.7)  # shortest and longest, in units of the room: the frame's side less the digit's
TURN = 60.0  # degrees, by which two jumps in a row differ at the least
PITCH = (400.0, 1600.0)  # hertz of a clip's clicks
LOUDNESS, LASTS = 0.5, 0.08  # of a click at its beginning, and the seconds in which it fades to silence


@config
class BeatSpec:
    """What clips with a beat look like, and how many there are."""

    seed: Seed = 0  # of every split
    frames: Annotated[int, Range(least=4, cap=2**16)] = 16  # of a clip
    size: Annotated[int, Range(least=16, cap=2**16)] = 64  # pixels, height and width
    digit_side: Annotated[float, Range(least=0.2, most=0.75)] = 0.5  # side of the digit's square, in frame sides
    fps: Positive = 8.0  # frames per second
    beats: tuple[Count, Count] = (1, 3)  # fewest and most of a clip
    gap: Count = 3  # least frames from beat to beat
    train_clips: Clips = 20_000
    validation_clips: Clips = 500
    test_clips: Clips = 1_000

    def __post_init__(self):
        fewest, most = self.beats
        if not fewest <= most or self._places(most) < most:
            raise UserError(f"{type(self).__name__}.beats={self.beats} with frames={self.frames}, gap={self.gap}; "
                            f"permitted: fewest to most, up to {1 + (self.frames - 1 - FIRST - 1) // self.gap}")

    def clips(self, split: str) -> int:
        """How many clips `split` has. Raises `UserError` for an unknown split."""
        check_value(split, Split, "split")
        return getattr(self, f"{split}_clips")

    def _places(self, beats: int) -> int:
        """Frames that so many beats can be in, less those that gaps take."""
        return self.frames - 1 - FIRST - (beats - 1) * (self.gap - 1)

    def draw_beats(self, rng: np.random.Generator) -> Int[np.ndarray, " N"]:
        """Frames of the beats; all that are permitted for a number of beats are as likely."""
        count = int(rng.integers(self.beats[0], self.beats[1] + 1))
        places = np.sort(rng.choice(self._places(count), size=count, replace=False))
        return FIRST + places + np.arange(count) * (self.gap - 1)


@dataclasses.dataclass(frozen=True)
class BeatClip:
    """One clip and what it was made of."""

    spec: BeatSpec
    video: UInt8[np.ndarray, "T H W 3"]
    caption: str  # which digit in which colour, and that it bounces
    shown: DigitObject
    beats: Int[np.ndarray, " N"]  # frames in which it is at another place than before
    track: Float[np.ndarray, "T 2"]  # top left corner (y, x) of its square, pixels
    pitch: float  # hertz

    @property
    def seconds(self) -> Float[np.ndarray, " N"]:
        """When the beats are: when their frames begin."""
        return self.beats / self.spec.fps

    def sound(self, rate: int) -> Float[np.ndarray, " M"]:
        """The clicks of the clip at `rate` samples a second, as long as its frames, in [-1, 1]."""
        return clicks(self.seconds, self.spec.frames / self.spec.fps, self.pitch, rate)


def clicks(times: Float[np.ndarray, " N"], lasts: float, pitch: float, rate: int) -> Float[np.ndarray, " M"]:
    """Tones that begin at some times and fade, over silence.

    Args:
      times: seconds.
      lasts: seconds in all.
      pitch: hertz.
      rate: samples a second.
    """
    sound = np.zeros(round(lasts * rate))
    for time in times:
        first = math.ceil(time * rate)
        places = np.arange(first, min(first + int(LASTS * rate), len(sound)))
        since = places / rate - time  # seconds
        sound[places] += LOUDNESS * np.sin(2 * np.pi * pitch * since) * (1 - since / LASTS) ** 2
    return np.clip(sound, -1, 1).astype(np.float32)


def make_beat_clip(spec: BeatSpec, split: str, index: int) -> BeatClip:
    """Clip `index` of `split`, for any `index` from 0 on. Raises `UserError` for an unknown split."""
    check_value(split, Split, "split")
    rng = np.random.default_rng([spec.seed, SPLITS.index(split), operator.index(index), _STREAM])
    side = drawing.stamp_side(spec.size, spec.digit_side)
    shown = DigitObject(int(rng.integers(10)), str(rng.choice(list(COLOURS))), "bounce")
    stamps = drawing.digit_stamps(split, side)[shown.digit]
    stamp, beats, room = stamps[rng.integers(len(stamps))], spec.draw_beats(rng), spec.size - side
    places = _places(rng, len(beats) + 1) * room
    track = places[np.searchsorted(beats, np.arange(spec.frames), side="right")]
    video = np.zeros((spec.frames, spec.size, spec.size, 3), np.uint8)
    drawing.paint(video, stamp, track, COLOURS[shown.colour])
    return BeatClip(spec, video, describe(shown, rng), shown, beats, track, float(rng.uniform(*PITCH)))


def _places(rng: np.random.Generator, count: int) -> Float[np.ndarray, "N 2"]:
    """Places one after the other in a room of side 1; each jump turns. One back to where the last one began always
    does, so there is always a place to go."""
    places = [rng.uniform(size=2)]
    while len(places) < count:
        jump = (place := rng.uniform(size=2)) - places[-1]
        before = places[-1] - places[-2] if len(places) > 1 else np.zeros(2)
        lengths = np.linalg.norm(jump), np.linalg.norm(before)
        turned = not lengths[1] or jump @ before <= np.cos(np.radians(TURN)) * lengths[0] * lengths[1]
        if JUMP[0] <= lengths[0] <= JUMP[1] and turned:
            places.append(place)
    return np.stack(places)
