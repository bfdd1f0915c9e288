"""Skeletons of people, drawn from keypoints that another program found: the 18 points and colours of OpenPose (Cao et
al. 2019, arXiv 1812.08008), with which the published ControlNet was trained."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from vdm_jax.annotation.frames import check_count, numbered_files, place_of
from vdm_jax.configuration import Share, Size, check_value, config
from vdm_jax.errors import UserError
from vdm_jax.video.json_files import read_json
from vdm_jax.video.reading import VideoReader

# Nose, neck; right shoulder, elbow, wrist; the left ones; right hip, knee, ankle; the left ones; eyes; ears (right,
# left).
POINTS = 18
LIMBS = ((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
         (0, 14), (14, 16), (0, 15), (15, 17))
COLOURS = tuple(tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue / POINTS, 1, 1)) for hue in range(POINTS))
_DIMMED = 0.6  # brightness of limbs; points lie above them
_WIDTH = 4 / 512  # half the width of a limb and the radius of a point, of the smaller side
# Where each point is among the 25 of OpenPose's later model, and among the 17 of COCO, which has no neck.
_OF_25 = (*range(8), *range(9, 15), 15, 16, 17, 18)
_OF_COCO = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
_FAR = 2**20  # pixels, beyond which no point is one
_SHOULDERS = (5, 6)  # of COCO, between which the neck is

People = Float[np.ndarray, "P 18 3"]  # x and y, pixels, and confidence; 0: not found


@config
class Pose:
    """Keypoints of each video: a folder of its name with a JSON file of OpenPose for each frame, or one NAME.json of
    COCO (an object with `images` and `annotations`, or a list of results)."""

    keypoints: str  # folder of these
    confidence: Share = 0.1  # points below it are not drawn; COCO's visible and hidden points have 1

    def check(self) -> None:
        """Nothing is needed."""

    def frames(self, video: VideoReader, name: str) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """The skeletons of each frame, on black. Keypoints of COCO may be of pictures of another size."""
        height, width = video.frames([0]).shape[1:3]
        place = place_of(self.keypoints, name, suffixes=(".json",))
        if place.is_dir():
            files = numbered_files(place, ".json")
            check_count(place, "files of keypoints", len(files), len(video))
            poses: Iterator[People] = (openpose_people(file, _read(file)) for file in files)
        else:
            poses = iter(coco_people(place, _read(place), len(video), (height, width)))
        for people in poses:
            yield drawn(people, height, width, self.confidence)


def drawn(people: People, height: int, width: int, confidence: float) -> UInt8[np.ndarray, "height width 3"]:
    """Skeletons: limbs as ellipses between their points, then the points as discs."""
    image = Image.new("RGB", (width, height))
    draw, radius = ImageDraw.Draw(image), max(_WIDTH * min(height, width), 0.5)
    for person in people:
        seen = (person[:, 2] > 0) & (person[:, 2] >= confidence)
        for (one, other), colour in zip(LIMBS, COLOURS[: len(LIMBS)], strict=True):
            if seen[one] and seen[other]:
                dimmed = tuple(int(_DIMMED * c) for c in colour)
                draw.polygon(_ellipse(person[one, :2], person[other, :2], radius), fill=dimmed)
        for (x, y, _), colour, there in zip(person, COLOURS, seen, strict=True):
            if there:
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return np.asarray(image)


def _ellipse(one: Sequence[float], other: Sequence[float], radius: float) -> list[tuple[float, float]]:
    """A polygon around the ellipse from one point to another, `radius` the half of its smaller axis."""
    (x, y), (x2, y2) = one, other
    long, turn = math.hypot(x2 - x, y2 - y) / 2, math.atan2(y2 - y, x2 - x)
    points = []
    for angle in np.linspace(0, 2 * math.pi, 36, endpoint=False):
        along, across = long * math.cos(angle), radius * math.sin(angle)
        points.append(((x + x2) / 2 + along * math.cos(turn) - across * math.sin(turn),
                       (y + y2) / 2 + along * math.sin(turn) + across * math.cos(turn)))
    return points


def openpose_people(path: Path, data: Any) -> People:
    """The people of one frame, of a file that OpenPose wrote, by either of its models. Raises `UserError`."""
    people = data.get("people") if isinstance(data, dict) else None
    if not isinstance(people, list):
        raise _wrong(path, "no list 'people'")
    found = [_triples(path, person.get("pose_keypoints_2d") if isinstance(person, dict) else None, (18, 25))
             for person in people]
    return np.stack([p if len(p) == POINTS else p[list(_OF_25)] for p in found]) if found else np.zeros((0, 18, 3))


def coco_people(path: Path, data: Any, frames: int, size: tuple[int, int]) -> list[People]:
    """The people of each frame, of a file of COCO: frames are the images in the order of their ids, or the ids
    themselves, from 0 or 1 on, where only annotations are listed. `size`, height and width, is that of the drawing.
    Raises `UserError`."""
    images = data.get("images") if isinstance(data, dict) else None
    annotations = data.get("annotations") if isinstance(data, dict) else data
    try:
        if images is not None:
            scales = {image["id"]: tuple(_share(path, image, name, whole)
                                         for name, whole in (("width", size[1]), ("height", size[0])))
                      for image in images}
            check_count(path, "images", len(scales), frames)
            order = {number: place for place, number in enumerate(sorted(scales))}
        else:
            ids = {entry["image_id"] for entry in annotations}
            first = 0 if not ids or min(ids) == 0 else 1
            order = {first + place: place for place in range(frames)}
            scales = dict.fromkeys(order, (1.0, 1.0))
        found: list[list[np.ndarray]] = [[] for _ in range(frames)]
        for entry in annotations:
            if entry["image_id"] not in order:
                raise _wrong(path, f"image_id {entry['image_id']!r} of no frame")
            person = from_coco(_triples(path, entry.get("keypoints"), (17,)))
            person = person * [*scales[entry["image_id"]], 1]
            if not np.abs(person).max() < _FAR:
                raise _wrong(path, f"keypoints of image_id {entry['image_id']!r} far outside of the frame")
            found[order[entry["image_id"]]].append(person)
    except (TypeError, KeyError, AttributeError) as error:
        raise _wrong(path, f"{type(error).__name__} {error}") from error
    return [np.stack(people) if people else np.zeros((0, POINTS, 3)) for people in found]


def from_coco(person: Float[np.ndarray, "17 3"]) -> Float[np.ndarray, "18 3"]:
    """The 18 points of a person of COCO: the neck lies between the shoulders, where both are there."""
    one, other = person[list(_SHOULDERS)]
    neck = np.array([*(one[:2] + other[:2]) / 2, min(one[2], other[2])])
    found = np.stack([neck if place is None else person[place] for place in _OF_COCO])
    return np.concatenate([found[:, :2], np.minimum(found[:, 2:], 1)], axis=1)  # 2: visible, 1: hidden


def _share(path: Path, image: Mapping[str, Any], name: str, whole: int) -> float:
    """What keypoints are multiplied with: of a picture of another width or height than the drawing's."""
    try:
        check_value(found := image.get(name, whole), Size, name)
    except UserError as error:
        raise _wrong(path, str(error)) from error
    return whole / found


def _triples(path: Path, values: Any, counts: tuple[int, ...]) -> Float[np.ndarray, "N 3"]:
    try:
        array = np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.zeros(0)
    if array.ndim != 1 or len(array) not in [3 * count for count in counts] or not np.abs(array).max() < _FAR:
        raise _wrong(path, f"keypoints of {array.size} numbers")
    return array.reshape(-1, 3)


def _read(path: Path) -> Mapping[str, Any] | list[Any]:
    try:
        return read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise _wrong(path, f"{error}") from error


def _wrong(path: Path, found: str) -> UserError:
    return UserError(f"{path}: {found}; permitted: JSON of OpenPose, with 18 or 25 points [x, y, confidence] a person, "
                     "or of COCO, with 17", "annotation.poses")
