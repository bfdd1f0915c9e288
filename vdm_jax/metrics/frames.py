"""Metrics frame by frame: PSNR, SSIM and LPIPS of videos next to the ones they should be, and how alike the frames of
one video are. Each returns a value per video; `mean_score` makes a score of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from vdm_jax.configuration import check_value
from vdm_jax.errors import NotFinite, UserError, require_package
from vdm_jax.metrics.detectors import lpips as distance
from vdm_jax.metrics.detectors.weights import DetectorFile
from vdm_jax.metrics.frechet import Interval
from vdm_jax.metrics.scores import Score
from vdm_jax.video.arrays import to_float

Videos = UInt8[np.ndarray, "N T H W 3"]
Values = Float[np.ndarray, " N"]
Window = Literal["gaussian", "uniform"]
Pairs = Literal["consecutive", "all"]

HIGHEST_PSNR = 100.0  # of a frame, dB
_LEVELS = 255.0  # range of pixel values
# Side in pixels, and the options of scikit-image, which cuts the Gaussian off at 3.5 sigma: 11 x 11, as the paper.
_WINDOWS = {"gaussian": (11, {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}),
            "uniform": (7, {})}


def psnr(videos: Videos, real: Videos) -> Values:
    """Peak signal-to-noise ratio, dB, frame by frame and averaged over frames. Of a frame at most `HIGHEST_PSNR`, which
    equal frames have: one of them would else decide over all others. It is what `calculate_psnr.py` of
    github.com/JunyaoHu/common_metrics_on_video_quality gives them, and all frames whose mean squared error in [0, 1] is
    below 1e-10; video prediction is often measured with it."""
    videos, real = _pair("psnr", videos, real)
    with np.errstate(divide="ignore"):
        return np.minimum(10 * np.log10(_LEVELS**2 / ((videos - real) ** 2).mean((2, 3, 4))), HIGHEST_PSNR).mean(1)


def ssim(videos: Videos, real: Videos, window: Window = "gaussian") -> Values:
    """Structural similarity (Wang et al. 2004) by scikit-image, averaged over positions that a window fits around,
    channels and frames.

    'gaussian' is the paper's window (sigma 1.5 pixels, 11 x 11, plain covariances), 'uniform' the default of
    scikit-image (7 x 7, sample covariances). Raises `UserError` for frames smaller than the window, and where
    scikit-image is not installed.
    """
    require_scikit_image()
    from skimage.metrics import structural_similarity

    videos, real = _pair("ssim", videos, real)
    check_value(window, Window, "window")
    side, options = _WINDOWS[window]
    if all((part == part[..., :1]).all() for part in (videos, real)):  # grey: one channel is the mean of three
        videos, real = videos[..., :1], real[..., :1]
    if min(videos.shape[2:4]) < side:
        raise UserError(f"ssim of frames of {videos.shape[2]}x{videos.shape[3]} pixels; permitted: from {side} a side, "
                        f"for the {window} window")
    return np.array([np.mean([structural_similarity(a, b, data_range=_LEVELS, channel_axis=-1, **options)
                              for a, b in zip(x, y, strict=True)]) for x, y in zip(videos, real, strict=True)])


def require_scikit_image() -> None:
    """Raises `UserError` naming the extra where scikit-image is not installed."""
    require_package("ssim", "skimage", "metrics")


def lpips(videos: Videos, real: Videos, backbone: distance.Backbone = "alexnet", *, batch_size: int = 64) -> Values:
    """LPIPS, averaged over frames. Raises `UserError` without its weights and for frames that it cannot see."""
    _pair("lpips", videos, real)
    params = distance.parameters(backbone)
    frames = [np.reshape(x, (-1, *x.shape[2:])) for x in (videos, real)]
    found = [_lpips(backbone)(params, *(_filled(x[i : i + batch_size], batch_size) for x in frames))
             for i in range(0, len(frames[0]), batch_size)]
    return np.concatenate(found)[: len(frames[0])].reshape(videos.shape[:2]).mean(1).astype(np.float64)


def frame_lpips(videos: Videos, backbone: distance.Backbone = "alexnet", *, batch_size: int = 64) -> Values:
    """LPIPS of consecutive frames of a video, averaged: how much it changes as people see it. Frozen videos have 0,
    shuffled ones far more than real ones; neither is heard by FVD. Raises `UserError` as `lpips`, and for one frame."""
    if (frames := _checked("frame_lpips", videos).shape[1]) < 2:
        raise UserError(f"frame_lpips of videos of {frames} frame; permitted: 2 or more")
    return lpips(videos[:, 1:], videos[:, :-1], backbone, batch_size=batch_size)


@cache
def _lpips(backbone: distance.Backbone) -> Callable[..., Any]:
    return jax.jit(lambda params, a, b: distance.distance(params, to_float(a), to_float(b), backbone))


def consistency(embeddings: Float[np.ndarray, "N T D"], pairs: Pairs = "consecutive") -> Values:
    """Mean cosine of the embeddings of a video's frames: of consecutive ones (Esser et al. 2023, "Gen-1", arXiv
    2302.03011) or of all pairs. Published values are of CLIP's image embeddings."""
    embeddings = np.asarray(embeddings, np.float64)
    if embeddings.ndim != 3 or embeddings.shape[1] < 2 or 0 in embeddings.shape:
        raise UserError(f"embeddings of shape {list(embeddings.shape)}; permitted: [N, T, D], T from 2 frames")
    check_value(pairs, Pairs, "pairs")
    unit = _unit(embeddings)
    if pairs == "consecutive":
        return (unit[:, 1:] * unit[:, :-1]).sum(-1).mean(1)
    frames = unit.shape[1]
    return ((unit.sum(1) ** 2).sum(-1) - (unit**2).sum((1, 2))) / (frames * (frames - 1))


def similarity(embeddings: Float[np.ndarray, "N T D"], texts: Float[np.ndarray, "N D"]) -> Values:
    """Mean cosine of the embeddings of a video's frames and that of its text (Wu et al. 2021, GODIVA, arXiv 2104.14806:
    CLIPSIM, where both are CLIP's)."""
    embeddings, texts = np.asarray(embeddings, np.float64), np.asarray(texts, np.float64)
    if embeddings.ndim != 3 or 0 in embeddings.shape or texts.shape != embeddings.shape[::2]:
        raise UserError(f"embeddings of shape {list(embeddings.shape)} and of texts {list(texts.shape)}; permitted: "
                        "[N, T, D] and [N, D], none empty")
    unit, text = _unit(embeddings), _unit(texts)
    return np.einsum("ntd,nd->n", unit, text) / embeddings.shape[1]


def _unit(vectors: Float[np.ndarray, "*batch D"]) -> Float[np.ndarray, "*batch D"]:
    """Vectors of length 1. The zero vector has no direction and becomes NaN, so that its video has no value. Raises
    `UserError` for vectors that are not finite."""
    if not np.isfinite(vectors).all():
        raise UserError("embeddings are NaN or infinite; permitted: finite numbers")
    with np.errstate(invalid="ignore"):
        scaled = vectors / np.abs(vectors).max(-1, keepdims=True)  # squares of very small and large ones are numbers
    return scaled / np.linalg.norm(scaled, axis=-1, keepdims=True)


def alexnet_embeddings(videos: Videos, *, batch_size: int = 64) -> Float[np.ndarray, "N T 256"]:
    """What `consistency` can use without CLIP: the last features of LPIPS on AlexNet, averaged over positions."""
    params = distance.parameters("alexnet")["backbone"]
    frames = np.reshape(_checked("alexnet_embeddings", videos), (-1, *videos.shape[2:]))
    found = [_alexnet()(params, _filled(frames[i : i + batch_size], batch_size))
             for i in range(0, len(frames), batch_size)]
    return np.concatenate(found)[: len(frames)].reshape(*videos.shape[:2], -1)


@cache
def _alexnet() -> Callable[..., Any]:
    def last_features(params: Any, frames: jax.Array) -> jax.Array:
        return distance.Features("alexnet").apply({"params": params}, to_float(frames))[-1].mean((1, 2))

    return jax.jit(last_features)


def mean_score(metric: str, values: Values, better: str, conditions: Mapping[str, Any],
               detector: DetectorFile | None = None) -> Score:
    """The mean of a value per video, with a 95 % interval for other videos (none for a single video). Videos that have
    no value (NaN: no pixel is found again in the next frame, say) are left out and counted in the conditions.

    Raises `NotFinite` where no video has a value, and for infinities."""
    values, total = np.asarray(values, np.float64), len(values)
    values = values[~np.isnan(values)]
    if not len(values) or np.isinf(values).any():
        raise NotFinite(f"{metric} of {total} videos is {'infinite' if len(values) else 'not defined'} for "
                        f"{int(np.isinf(values).sum()) or total} of them; permitted: finite values for one or more")
    if len(values) < total:
        conditions = {**conditions, "videos_without_value": total - len(values)}
    mean, interval = float(np.mean(values)), None
    if len(values) > 1:
        margin = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5
        interval = Interval(low=mean - margin, high=mean + margin, level=0.95, resamples=0)
    named = {"detector": detector.name, "detector_sha256": detector.sha256} if detector else {}
    return Score(metric=metric, value=mean, better=better, conditions={"videos": total, **conditions},
                 interval=interval, **named)


def best_score(metric: str, values: Float[np.ndarray, "S N"], better: str, conditions: Mapping[str, Any],
               detector: DetectorFile | None = None) -> Score:
    """`mean_score` of the best of `S` videos of each clip, with the mean of the first ones alone in the details. More
    videos have better best ones: scores of different `S` are not comparable."""
    best = values.max(0) if better == "higher" else values.min(0)
    score = mean_score(metric, best, better, {**conditions, "best_of": len(values)}, detector)
    return dataclasses.replace(score, details={"one video a clip": float(values[0].mean())})


def _filled(frames: np.ndarray, size: int) -> jax.Array:
    """A batch of one size, filled up with repeats of its last frame."""
    return jnp.asarray(np.concatenate([frames, frames[-1:].repeat(size - len(frames), 0)]))


def _checked(name: str, videos: Videos) -> Videos:
    videos = np.asarray(videos)
    if videos.dtype != np.uint8 or videos.ndim != 5 or videos.shape[-1] != 3 or 0 in videos.shape:
        raise UserError(f"{name} of {videos.dtype} {list(videos.shape)}; permitted: uint8 [N, T, H, W, 3], none empty")
    return videos


def _pair(name: str, videos: Videos, real: Videos) -> tuple[np.ndarray, np.ndarray]:
    """Both in double precision. Raises `UserError` unless they are uint8 videos of one shape."""
    if _checked(name, videos).shape != _checked(name, real).shape:
        raise UserError(f"{name} of videos {list(videos.shape)} and {list(real.shape)}; permitted: one shape, each "
                        "video next to the one it should be")
    return videos.astype(np.float64), real.astype(np.float64)
