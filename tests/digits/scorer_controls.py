"""The floor and the ceiling of the scorer, measured on clips whose truth, or whose damage, is exact.

What a control must show: damage to time (shuffled, reversed or frozen frames) costs the motion and keeps
the digits; another clip's caption costs everything; noise, blur, fewer pixels and fewer frames, within
reason, cost little. The bounds are in the tests.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from vdm_jax.digits.clips import DigitClips, generate_clip
from vdm_jax.digits.scorer import DigitScorer
from vdm_jax.errors import UserError

# What `control_table` does to true clips. Each takes and returns uint8 [B, T, H, W, 3].
Damage = Callable[[UInt8[np.ndarray, "B T H W 3"]], UInt8[np.ndarray, "B T2 H2 W2 3"]]


def damages(seed: int = 0) -> dict[str, Damage]:
    """The named ways in which the controls damage clips; `seed` draws the noise and the shuffled orders."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)

    def noise(videos, deviation):
        return np.stack([_bytes(v + deviation * rng.standard_normal(v.shape, np.float32)) for v in videos])

    def blur(videos, sigma):
        widths = (0, sigma, sigma, 0)
        return np.stack(
            [_bytes(gaussian_filter(v.astype(np.float32), widths, mode="nearest")) for v in videos]
        )

    def smaller(videos, factor):
        b, t, h, w, c = videos.shape
        blocks = videos.reshape(b, t, h // factor, factor, w // factor, factor, c)
        return _bytes(blocks.mean((3, 5), np.float32))

    def larger(videos, factor):
        return videos.repeat(factor, 2).repeat(factor, 3)

    def spliced(videos):
        half = videos.shape[1] // 2
        return np.concatenate([videos[:, :half], np.roll(videos, -1, 0)[:, half:]], 1)

    return {
        "noise 12/255": lambda videos: noise(videos, 12),
        "noise 25/255": lambda videos: noise(videos, 25),
        "blur 1 px": lambda videos: blur(videos, 1),
        "blur 2 px": lambda videos: blur(videos, 2),
        "blur 1 px, noise 12/255": lambda videos: noise(blur(videos, 1), 12),
        "frames shuffled": lambda videos: np.stack([rng.permutation(video) for video in videos]),
        "frames reversed": lambda videos: videos[:, ::-1],
        "second half of the next clip": spliced,
        "first frame frozen": lambda videos: videos[:, :1].repeat(videos.shape[1], 1),
        "half the frame rate, frames repeated": lambda videos: videos[:, ::2].repeat(2, 1),
        "every other frame": lambda videos: videos[:, ::2],
        "half size": lambda videos: smaller(videos, 2),
        "half size and back": lambda videos: larger(smaller(videos, 2), 2),
        "quarter size and back": lambda videos: larger(smaller(videos, 4), 4),
    }


def control_table(spec: DigitClips, count: int, split: str = "test") -> dict[str, dict[str, float]]:
    """`ScoreTable.summary` of the first `count` clips of `split`: as they are ("true clips"), with the
    caption of the next clip, and damaged in each of the ways of `damages`.

    Raises:
      UserError: if `count` is not 2 or more, or a frame of `spec` is not divisible by 4.
    """
    if count < 2 or spec.size % 4:
        raise UserError(
            f"control_table: count={count}, size={spec.size}; permitted: count from 2, size a multiple of 4"
        )
    clips = [generate_clip(spec, split, index) for index in range(count)]
    videos, captions = np.stack([clip.video for clip in clips]), [clip.caption for clip in clips]
    scorer = DigitScorer(spec)
    table = {
        "true clips": scorer.score(videos, captions).summary(),
        "caption of the next clip": scorer.score(videos, captions[1:] + captions[:1]).summary(),
    }
    return table | {
        name: scorer.score(damage(videos), captions).summary() for name, damage in damages().items()
    }


def _bytes(videos):
    return np.clip(videos + 0.5, 0, 255).astype(np.uint8)
