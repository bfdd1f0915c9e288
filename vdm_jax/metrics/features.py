"""The features that scores are made of, by detector: what it sees, what it gives, and the classes it tells.

A kind of features is measured once for all scores that need it. Its vectors are one a video (I3D, C3D), one a block of
frames, or one a frame (Inception, CLIP).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from vdm_jax.errors import UserError
from vdm_jax.metrics.detectors import c3d, clip, inception, weights
from vdm_jax.metrics.detectors.weights import DetectorFile
from vdm_jax.metrics.extraction import Extractor
from vdm_jax.metrics.fvd import blocks, i3d_features
from vdm_jax.metrics.image_protocols import ImageProtocol
from vdm_jax.metrics.inception_score import softmax
from vdm_jax.metrics.resizing import Resize, resized

Videos = UInt8[np.ndarray, "N T H W 3"]
Vectors = Float[np.ndarray, "N D"] | Float[np.ndarray, "N V D"]
Probabilities = Float[np.ndarray, "N C"] | Float[np.ndarray, "N V C"]


@dataclasses.dataclass(frozen=True)
class FeatureKind:
    """One kind of features."""

    name: str  # of its files
    file: DetectorFile
    layer: str  # of the detector
    resize: str  # filter
    make: Callable[[Videos], Vectors]
    frames: int = 0  # that the detector sees at a time; 0: all of a video's
    classes: Callable[[Vectors], Probabilities] | None = None

    @property
    def needs(self) -> tuple[DetectorFile, ...]:
        """All files of weights."""
        return (self.file, weights.C3D_MEAN) if self.file is weights.C3D and not _one_file() else (self.file,)

    @property
    def place(self) -> str:
        """A name of the kind with these weights, for a folder."""
        return "-".join([self.name, *(weights.found(file).sha256[:8] for file in self.needs)])

    def detector(self) -> DetectorFile:
        """The detector as it is on this machine; a second file is part of its name. Raises `UserError` as `found`."""
        first, *more = (weights.found(file) for file in self.needs)
        named = " and ".join([first.name, *(f"{file.file} {file.sha256[:16]}" for file in more)])
        return dataclasses.replace(first, name=named)


def i3d_kind(resize: Resize, block: int = 0) -> FeatureKind:
    """I3D, of whole videos or of each block of so many frames."""
    name, layer = f"i3d_{resize}", "logits averaged over time"
    if not block:
        return FeatureKind(name, weights.I3D, layer, resize, lambda videos: i3d_features(videos, resize),
                           classes=softmax)

    def make(videos: Videos) -> Vectors:
        return np.stack([i3d_features(part, resize) for part in blocks(videos, block)], axis=1)

    return FeatureKind(f"{name}_blocks{block}", weights.I3D, layer, resize, make, frames=block)


def inception_kind(protocol: ImageProtocol) -> FeatureKind:
    """Inception, frame by frame."""
    variant, resize, pixels = protocol.variant, protocol.resize, protocol.pixels

    def make(videos: Videos) -> Vectors:
        found = _inception(variant, resize, pixels)(videos.reshape(-1, *videos.shape[2:]))
        return found.reshape(*videos.shape[:2], -1)

    def classes(vectors: Vectors) -> Probabilities:
        fc = inception.parameters(variant)["fc"]
        return softmax(vectors @ fc["kernel"] + (fc["bias"] if protocol.bias else 0))

    return FeatureKind(f"{inception.FILES[variant].name}_{resize}_{pixels}", inception.FILES[variant],
                       "last pooling", resize, make, frames=1, classes=classes)


@functools.lru_cache(maxsize=1)
def _inception(variant: inception.Variant, resize: Resize, pixels: str) -> Extractor:
    def apply(params: Any, frames: UInt8[Array, "B H W 3"]) -> Float[Array, "B 2048"]:
        large = resized(frames, inception.SIDE, resize)
        seen = (large - 128) / 128 if pixels == "about_128" else large / 127.5 - 1
        return inception.Inception(variant).apply({"params": params}, seen)[0]

    return Extractor(apply, inception.parameters(variant), 16)


def c3d_kind() -> FeatureKind:
    """C3D, of videos of 16 frames."""
    def make(videos: Videos) -> Vectors:
        if videos.shape[1] != c3d.FRAMES:
            raise UserError(f"C3D of videos of {videos.shape[1]} frames; permitted: {c3d.FRAMES}")
        return _c3d()(videos)

    def classes(vectors: Vectors) -> Probabilities:
        classifier = c3d.parameters()["classifier"]
        return softmax(vectors @ classifier["kernel"] + classifier["bias"])

    return FeatureKind("c3d", weights.C3D, "fc7", "bilinear_corners", make, frames=c3d.FRAMES, classes=classes)


@functools.lru_cache(maxsize=1)
def _c3d() -> Extractor:
    def apply(params: Any, clips: UInt8[Array, "B 16 H W 3"]) -> Float[Array, "B 4096"]:
        return c3d.C3D().apply({"params": params["network"]}, c3d.prepared(clips, params["mean"]))

    params = c3d.parameters()
    return Extractor(jax.jit(apply), {"network": params["network"], "mean": params["mean"]}, 8)


def _one_file() -> bool:
    """Whether the mean of C3D stands in the same file as its weights."""
    try:
        return weights.find(weights.C3D).suffix == ".safetensors"
    except UserError:
        return True  # the weights are missed first


def clip_kind(name: clip.ModelName) -> FeatureKind:
    """CLIP's embeddings, frame by frame."""
    def make(videos: Videos) -> Vectors:
        found = clip.image_embeddings(videos.reshape(-1, *videos.shape[2:]), name)
        return found.reshape(*videos.shape[:2], -1)

    file = clip.find_model(name).file
    return FeatureKind(file.name, file, "projected summary", "bicubic_pillow", make, frames=1)
