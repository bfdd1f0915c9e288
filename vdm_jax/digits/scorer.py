"""Does a clip show what its caption asks for? A rule-based scorer for the `captioned_digits` data set.

Colour finds the objects, the track of each centroid tells its motion, and a support vector machine trained
on the handwriting of the training split reads the digit. No learned judge of video is involved, so scores
compare across runs, and floor and ceiling are known: its tests measure both.

The attributes fail separately: shuffled frames break the motion and keep the digit, blur breaks the digit
and keeps the motion. Times are in clip durations, lengths in frame sides and relative to the side of a digit or to
the room that it leaves, so any frame size, frame count and `DigitClips.digit_side` is scored by the same rules. A
stroke should be a pixel wide at least: frames of 16 are the smallest for digits of half the frame.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from vdm_jax.digits import drawing as digit_drawing
from vdm_jax.digits.clips import COLOURS, CaptionedDigitsSource, DigitClips, DigitObject, parse_caption
from vdm_jax.errors import UserError

_PIXEL = 1 / 64  # a pixel of a 64 px frame, in frame sides
# Thresholds were measured with digits of 20 px in frames of 64, which leave a room of 44 px. Those of a digit are in
# 20ths of its side, those of its path in 44ths of the room (`_Units`).
_FOREGROUND = 0.25  # of full brightness, in the brightest channel
_COLOUR_COSINE = 0.97  # least cosine between a pixel and the nearest palette colour
_WINDOW = 26  # side of the square within which pixels of one colour are one object
_AREA = (18, 340)  # median area of an object over the clip; digits have 50 to 260
_COMPACT = 0.3  # least share of its colour's pixels in an object: below, the colour is a texture and no object
_FRAME_AREA = 12  # least area in a frame for the object to be there
_PRESENCE = 0.6  # least share of frames in which it is there
_WHOLE = 0.75  # of its usual area: below, a frame shows the object partly covered, and its centroid is off
_STILL = 6  # most travel over the clip of an object at rest
_STRAIGHT_RESIDUAL = 1.6 * _PIXEL  # most RMS distance from a straight line, on the worse axis, in frame sides
_STRAIGHT_TRAVEL = 54  # most travel over the clip of a straight motion
_STRAIGHT_DRIFT = 7.5  # most travel over the clip across a straight motion
_BOUNCE_PATH = (36, 140)  # path length over the clip; shuffled frames make a far longer one
_PATH_POINTS = 16  # most points of a track that its path length is measured on, so that jitter does not add up
_CROP = 20  # samples a side of a digit as the classifier sees it

UNCLEAR = "unclear"  # the motion of an object that jumps, or wanders in a way no caption describes
ATTRIBUTES = ("colour", "digit", "motion")  # of each object
COLUMNS = ("count", *ATTRIBUTES, "whole")  # of a clip


@dataclasses.dataclass(frozen=True)
class ScoreTable:
    """What was right in each of B clips."""

    wanted: tuple[tuple[DigitObject, ...], ...]  # by the caption of each clip
    seen: tuple[tuple[DigitObject, ...], ...]  # in each clip
    count: Bool[np.ndarray, " B"]  # whether as many objects are seen as wanted
    # Share of the wanted objects, each compared with the seen object of its colour: 1 when all are right.
    colour: Float[np.ndarray, " B"]
    digit: Float[np.ndarray, " B"]
    motion: Float[np.ndarray, " B"]

    @property
    def objects(self) -> Int[np.ndarray, " B"]:
        """How many objects each caption names."""
        return np.array([len(objects) for objects in self.wanted], int)

    @property
    def held_out(self) -> Bool[np.ndarray, " B"]:
        """Whether the caption has a (digit, motion) pair that training never showed."""
        return np.array([any(item.held_out for item in objects) for objects in self.wanted], bool)

    @property
    def whole(self) -> Bool[np.ndarray, " B"]:
        """Whether everything the caption says is so, and nothing else is there."""
        return self.count & (self.colour == 1) & (self.digit == 1) & (self.motion == 1)

    def where(self, chosen: Bool[np.ndarray, " B"]) -> "ScoreTable":
        """The table of the chosen clips alone."""
        kept = np.flatnonzero(chosen)
        arrays = {name: getattr(self, name)[kept] for name in ("count", *ATTRIBUTES)}
        return ScoreTable(tuple(self.wanted[i] for i in kept), tuple(self.seen[i] for i in kept), **arrays)

    def means(self) -> dict[str, float]:
        """`whole` and `count` averaged over clips, `colour`, `digit` and `motion` over wanted objects."""
        scores = {name: float(np.mean(getattr(self, name))) for name in ("whole", "count")}
        return scores | {
            name: float(np.average(getattr(self, name), weights=self.objects)) for name in ATTRIBUTES
        }

    def summary(self) -> dict[str, float]:
        """`means` and the number of `clips`, of all clips and of groups of them, where a group has any:
        `single/...` have captions of one object, `held_out/...` have a held-out pair and `familiar/...` none.
        """
        groups = {
            "": self.objects > 0,
            "single/": self.objects == 1,
            "held_out/": self.held_out,
            "familiar/": ~self.held_out,
        }
        result = {}
        for prefix, chosen in groups.items():
            if chosen.any():
                means = self.where(chosen).means()
                result |= {f"{prefix}{name}": value for name, value in means.items()}
                result[f"{prefix}clips"] = float(chosen.sum())
        return result


def compare(wanted: Sequence[tuple[DigitObject, ...]], seen: Sequence[tuple[DigitObject, ...]]) -> ScoreTable:
    """Score what was seen in each clip against what its caption wants. Objects are matched by colour."""

    def share(objects, found, attribute):
        matches = {item.colour: getattr(item, attribute) for item in found}
        return np.mean([matches.get(item.colour) == getattr(item, attribute) for item in objects])

    pairs = list(zip(wanted, seen, strict=True))
    count = np.array([len(objects) == len(found) for objects, found in pairs], bool)
    shares = {name: np.array([share(*pair, name) for pair in pairs], float) for name in ATTRIBUTES}
    return ScoreTable(tuple(wanted), tuple(seen), count, **shares)


class DigitScorer:
    """Looks at clips and compares them with their captions. The first look trains the classifier (2 s).

    Args:
      spec: what `examples` are of; its `digit_side` is that of the clips to look at.

    Raises:
      UserError: scikit-learn is not installed.
    """

    name, attributes = "digits", COLUMNS

    def __init__(self, spec: DigitClips | None = None):
        digit_drawing.require_scikit_learn()
        self.spec = DigitClips() if spec is None else spec

    def examples(self, split: str, count: int) -> list[dict]:
        """The first `count` clips of a split (`video`, `caption`, `fps`), drawn here.

        Raises `UserError` for an unknown split, and where it has fewer clips.
        """
        source = CaptionedDigitsSource(self.spec, split)
        if count > len(source):
            raise UserError(f"{count} clips of split {split!r}, which has {len(source)}; permitted: at most those")
        return [source[index] for index in range(count)]

    def score(self, videos: UInt8[np.ndarray, "B T H W 3"], captions: Sequence[str]) -> ScoreTable:
        """Score each clip against its caption.

        Raises:
          UserError: for a caption outside the grammar of the data set, another number of captions than clips,
            or videos that are not uint8 [B, T, H, W, 3] with square frames and T >= 2.
        """
        if len(videos) != len(captions):
            raise UserError(f"{len(captions)} captions for {len(videos)} clips; permitted: one for each")
        return compare([parse_caption(caption) for caption in captions], self.see(videos))

    def see(self, videos: UInt8[np.ndarray, "B T H W 3"]) -> list[tuple[DigitObject, ...]]:
        """The objects in each clip, in the order of the palette. A motion may also be `UNCLEAR`.

        Several objects of one colour are seen as two alike, described by the densest.
        """
        videos = np.asarray(videos)
        _, frames, height, width, channels = videos.shape if videos.ndim == 5 else (0,) * 5
        if videos.dtype != np.uint8 or frames < 2 or height != width or channels != 3:
            raise UserError(
                f"videos are {videos.dtype} {list(videos.shape)}; "
                "permitted: uint8 [B, T, H, W, 3] with H = W and T >= 2"
            )
        units = _Units(self.spec.digit_side)
        found = [_find_objects(video, units) for video in videos]
        crops = [item.crop.ravel() for objects in found for item in objects]
        digits = iter(_classifier(units).predict(np.stack(crops)).tolist() if crops else ())
        return [
            tuple(
                seen
                for item in objects
                for seen in (DigitObject(next(digits), item.colour, item.motion),) * item.copies
            )
            for objects in found
        ]


@dataclasses.dataclass(frozen=True)
class _Units:
    """What the thresholds are multiples of, in frame sides."""

    digit_side: float  # in frame sides

    @property
    def digit(self) -> float:
        """Of lengths of digits."""
        return self.digit_side / 20

    @property
    def path(self) -> float:
        """Of lengths of paths."""
        return (1 - self.digit_side) / 44


@dataclasses.dataclass(frozen=True)
class _Found:
    colour: str
    copies: int  # how many objects of this colour
    motion: str
    crop: np.ndarray  # opacity [_CROP, _CROP]


def _find_objects(video: UInt8[np.ndarray, "T H W 3"], units: _Units) -> list[_Found]:
    pixels = video.astype(np.float32) / 255
    labels = _colour_labels(pixels)
    counts = np.bincount(labels.ravel(), minlength=len(COLOURS) + 1)[1:]
    enough = _FRAME_AREA * units.digit**2 * _PRESENCE * labels.size
    found = [_find_object(pixels, labels, index, units) for index in np.flatnonzero(counts >= enough)]
    return [item for item in found if item is not None]


def _colour_labels(pixels: Float[np.ndarray, "T H W 3"]) -> Int[np.ndarray, "T H W"]:
    """0 for background and for no colour of the palette, else 1 + the index of the palette colour."""
    from scipy.ndimage import gaussian_filter

    sigma = _smoothing(pixels.shape[1])
    smooth = gaussian_filter(pixels, (0, sigma, sigma, 0), mode="nearest", truncate=3)
    labels = np.zeros(pixels.shape[:3], np.int8)
    foreground = smooth.max(-1) > _FOREGROUND
    rgb = smooth[foreground]
    cosine = (rgb / np.linalg.norm(rgb, axis=-1, keepdims=True)) @ _directions().T
    labels[foreground] = np.where(cosine.max(-1) > _COLOUR_COSINE, 1 + cosine.argmax(-1), 0)
    return labels


def _smoothing(size: int) -> float:
    """Standard deviation, in pixels, of the blur before colours are read: noise gives strokes any hue."""
    return max(0.5, 0.7 * _PIXEL * size)


def _find_object(pixels, labels, index, units) -> _Found | None:
    """The object of palette colour `index`, if there is one."""
    from scipy.ndimage import uniform_filter

    size = pixels.shape[1]
    mask = (labels == index + 1).astype(np.float32)
    # The densest window is the object: stray pixels elsewhere neither move its centroid nor hide it.
    side = 2 * round(_WINDOW * units.digit * size / 2) + 1
    density = uniform_filter(mask, (0, side, side), mode="constant")
    peak = density.reshape(len(mask), -1).argmax(-1)
    grid = np.arange(size)
    inside = [np.abs(grid - at[:, None]) <= side // 2 for at in np.unravel_index(peak, (size, size))]
    window = mask * inside[0][:, :, None] * inside[1][:, None, :]
    area, everywhere = window.sum((1, 2)), mask.sum((1, 2))
    there = (area > _FRAME_AREA * (units.digit * size) ** 2) & (area >= _COMPACT * everywhere)
    least, most = np.array(_AREA) * (units.digit * size) ** 2
    if there.mean() < _PRESENCE or not least <= np.median(area) <= most:
        return None
    centroid = _centroids(window)
    clear = area >= _WHOLE * np.quantile(area, 0.8)
    if clear.sum() < max(2, len(area) / 4):
        clear = there
    colour = _palette()[index]
    opacity = np.where(labels[clear] > 0, mask[clear], 1) * (pixels[clear] @ (colour / (colour @ colour)))
    return _Found(
        colour=tuple(COLOURS)[index],
        copies=2 if np.median(everywhere - area) >= least else 1,
        motion=_motion(centroid[clear] / size, np.linspace(0, 1, len(area))[clear], units.path),
        crop=np.median(_crops(opacity, centroid[clear], units), 0),
    )


def _centroids(mask: Float[np.ndarray, "N H W"]) -> Float[np.ndarray, "N 2"]:
    """Mean (y, x) of each mask, in pixels; 0 where it is empty."""
    area = np.maximum(mask.sum((1, 2)), 1)
    grid = np.arange(mask.shape[1])
    return np.stack([mask.sum(2) @ grid, mask.sum(1) @ grid], -1) / area[:, None]


def _motion(track: Float[np.ndarray, "N 2"], tau: Float[np.ndarray, " N"], unit: float) -> str:
    """The motion that a track (y, x), in frame sides, at times `tau`, in clip durations, shows, or `UNCLEAR`. `unit` is
    that of the thresholds.

    A least-squares line, not differences of neighbouring frames: those fail on repeated frames.
    """
    design = np.stack([np.ones_like(tau), tau], -1)
    line = np.linalg.lstsq(design, track, rcond=None)[0]
    residual = np.sqrt(np.mean((track - design @ line) ** 2, 0)).max()
    travel = np.abs(line[1])
    if residual <= _STRAIGHT_RESIDUAL:
        if travel.max() < _STILL * unit:
            return "still"
        if travel.max() <= _STRAIGHT_TRAVEL * unit and travel.min() <= _STRAIGHT_DRIFT * unit:
            axis = int(travel.argmax())
            return (("up", "down"), ("left", "right"))[axis][int(line[1, axis] > 0)]
    corners = track[:: -(-len(track) // _PATH_POINTS)]
    path = np.linalg.norm(np.diff(corners, axis=0), axis=-1).sum() / unit
    return "bounce" if _BOUNCE_PATH[0] <= path <= _BOUNCE_PATH[1] else UNCLEAR


def _crops(opacity: Float[np.ndarray, "N H W"], centre: Float[np.ndarray, "N 2"], units: _Units) -> np.ndarray:
    """`_CROP` x `_CROP` samples around each centre (y, x), bilinear: `[N, _CROP, _CROP]` in [0, 1]."""
    size = opacity.shape[1]
    offsets = (np.arange(_CROP) - (_CROP - 1) / 2) * units.digit * size
    position = centre[:, :, None] + offsets  # [n, 2, crop]
    weights = np.maximum(0, 1 - np.abs(position[..., None] - np.arange(size))).astype(np.float32)
    return np.clip(weights[:, 0] @ opacity @ weights[:, 1].transpose(0, 2, 1), 0, 1)


@functools.cache
def _palette() -> Float[np.ndarray, "8 3"]:
    return np.array(list(COLOURS.values()), np.float32) / 255


@functools.cache
def _directions() -> Float[np.ndarray, "8 3"]:
    return _palette() / np.linalg.norm(_palette(), axis=-1, keepdims=True)


@functools.cache
def _classifier(units: _Units):
    """A support vector machine for centred crops, trained on the digits of the training split.

    It sees coarse, blurred and noisy copies too, because generated strokes are never as clean as drawn ones.
    """
    from scipy.ndimage import gaussian_filter
    from sklearn.svm import SVC

    size, side, sigma = 64, digit_drawing.stamp_side(64, units.digit_side), _smoothing(64)
    scans, classes = digit_drawing.digit_scans("train")
    rng = np.random.default_rng(0)
    clean = np.zeros((len(scans), size, size), np.float32)
    start = (size - side) // 2
    clean[:, start : start + side, start : start + side] = digit_drawing.upsample(scans, side)
    coarse = clean.reshape(-1, size // 2, 2, size // 2, 2).mean((2, 4)).repeat(2, 1).repeat(2, 2)
    soft, softer = (gaussian_filter(clean, (0, blur, blur)) for blur in (1, 2))
    copies = (  # frames, deviation of the noise, largest shift in pixels
        (clean, 0, 0),
        (clean, 0.1, 1),
        (coarse, 0.05, 1),
        (soft, 0.05, 1),
        (softer, 0.05, 1),
    )
    crops = []
    for frames, noise, shift in copies:
        mask = (gaussian_filter(frames, (0, sigma, sigma)) > _FOREGROUND).astype(np.float32)
        centre = _centroids(mask) + rng.uniform(-shift, shift, (len(scans), 2))
        noisy = frames + noise * rng.standard_normal(frames.shape, np.float32)
        crops.append(_crops(noisy, centre, units).reshape(len(scans), -1))
    return SVC(C=10, gamma="scale").fit(np.concatenate(crops), np.tile(classes, len(crops)))
