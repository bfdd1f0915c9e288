"""Drawing moving handwritten digits: which digits a split may use, where they go, and how they become pixels.

The digits are the 1,797 real 8x8 scans of scikit-learn (optical recognition of handwritten digits; E.
Alpaydin and C. Kaynak, UCI repository, 1998). A digit's square has a stated share of the frame's side, `digit_side`;
paths scale with the room that it leaves. Time runs over the clip, so a clip of any frame count holds the same
motion: `tau` is 0 in the first frame and 1 in the last.
"""

import functools

import numpy as np
from jaxtyping import Float, Real, UInt8

from vdm_jax.errors import require_package

MOTIONS = ("left", "right", "up", "down", "still", "bounce")
# RGB, chosen far apart in direction, since blur and dimming change a colour's length but not its direction.
COLOURS = {
    "red": (230, 50, 40),
    "green": (50, 200, 70),
    "blue": (60, 90, 240),
    "yellow": (240, 220, 50),
    "cyan": (60, 220, 230),
    "magenta": (220, 70, 220),
    "white": (240, 240, 240),
    "orange": (250, 140, 30),
}

# Path lengths over the clip, in units of the room: the frame's side less the digit's.
STRAIGHT_TRAVEL = (18 / 44, 39 / 44)  # of left, right, up and down
BOUNCE_TRAVEL = (67.5 / 44, 97.5 / 44)  # longer than the room even along a diagonal, so a bounce always meets a wall

DIRECTION = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (y, x)
_INSTANCES = {"train": (0, 1200), "validation": (1200, 1400), "test": (1400, 1797)}  # of the shuffled scans


def require_scikit_learn() -> None:
    """Raises `UserError` where scikit-learn, which carries the scans and the scorer's classifier, is not installed."""
    require_package("the data set of captioned digits", "sklearn", "digits", ", or another data set")


@functools.cache
def digit_scans(split: str) -> tuple[Float[np.ndarray, "N 8 8"], np.ndarray]:
    """The scans that `split` may draw, in [0, 1], and their classes. No scan belongs to two splits."""
    require_scikit_learn()
    from sklearn.datasets import load_digits

    scans = load_digits()
    # Fixed: the division into splits is a property of the data set, not of a run's seed.
    chosen = np.random.default_rng(0).permutation(len(scans.images))[slice(*_INSTANCES[split])]
    return (scans.images[chosen] / 16).astype(np.float32), scans.target[chosen]


def stamp_side(size: int, digit_side: float) -> int:
    """Side of a digit's square in pixels, in a frame of `size` pixels; `digit_side` is in frame sides."""
    return round(digit_side * size)


def upsample(scans: Float[np.ndarray, "N 8 8"], side: int) -> Float[np.ndarray, "N side side"]:
    """Bilinear to `side` pixels, then a steeper edge: the scans are soft, strokes should be nearly solid."""
    position = np.clip((np.arange(side) + 0.5) * 8 / side - 0.5, 0, 7)
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(8))).astype(np.float32)  # [side, 8]
    return np.clip((weights @ scans @ weights.T - 0.25) / 0.4, 0, 1)


@functools.cache
def digit_stamps(split: str, side: int) -> tuple[Float[np.ndarray, "_ side side"], ...]:
    """Opacity of every digit of the split at `side` pixels, one array for each class 0 to 9."""
    scans, classes = digit_scans(split)
    stamps = upsample(scans, side)
    return tuple(stamps[classes == digit] for digit in range(10))


def draw_track(
    rng: np.random.Generator, motion: str, frames: int, size: int, digit_side: float
) -> Float[np.ndarray, "frames 2"]:
    """Top-left corner (y, x) of the digit's square in each frame, in pixels. The square never leaves the
    frame.

    A straight motion starts where its whole path fits, so it never contradicts its caption at a wall.
    """
    room = size - stamp_side(size, digit_side)
    unit = size * (1 - digit_side)
    tau = np.linspace(0, 1, frames)[:, None]
    start = rng.uniform(0, room, 2)
    if motion == "still":
        return np.broadcast_to(start, (frames, 2))
    if motion == "bounce":
        angle = rng.uniform(0, 2 * np.pi)
        path = np.array([np.sin(angle), np.cos(angle)]) * rng.uniform(*BOUNCE_TRAVEL) * unit
        return room - np.abs((start + tau * path) % (2 * room) - room)  # reflected at 0 and at `room`
    path = np.array(DIRECTION[motion]) * rng.uniform(*STRAIGHT_TRAVEL) * unit
    free = room - np.abs(path)  # what is left of the room along each axis
    start = start / room * free + np.maximum(0, -path)
    return start + tau * path


def covered(track: Float[np.ndarray, "T 2"], other: Float[np.ndarray, "T 2"], side: int) -> float:
    """Share of a digit's square, of `side` pixels, that another digit's square lies on, over all frames."""
    return float(np.maximum(0, 1 - np.abs(track - other) / side).prod(-1).mean())


def paint(
    video: UInt8[np.ndarray, "T H W 3"],
    stamp: Float[np.ndarray, "side side"],
    track: Real[np.ndarray, "T 2"],
    colour: tuple[int, int, int],
) -> None:
    """Lay `stamp` in `colour` over what `video` holds, in place, at the sub-pixel positions of `track`."""
    frames, size = video.shape[:2]
    side = len(stamp) + 1  # a shift by a fraction of a pixel spreads the stamp over one more
    corner = np.minimum(track.astype(int), size - side)
    fraction = (track - corner).astype(np.float32)[:, :, None, None]
    padded = np.pad(stamp, 1)
    rows = padded[1:] + fraction[:, 0] * (padded[:-1] - padded[1:])  # [T, side, side + 1]
    opacity = rows[:, :, 1:] + fraction[:, 1] * (rows[:, :, :-1] - rows[:, :, 1:])
    windows = np.lib.stride_tricks.sliding_window_view(video, (side, side), axis=(1, 2), writeable=True)
    place = (np.arange(frames), corner[:, 0], corner[:, 1])
    under = windows[place]  # [T, 3, side, side]
    over = np.array(colour, np.float32)[:, None, None]
    windows[place] = (under + opacity[:, None] * (over - under) + 0.5).astype(np.uint8)
