"""AADiff: words whose cross-attention follows how loud a sound is, frame by frame (Lee et al. 2023, arXiv 2305.04001).

An image model makes all frames of a caption, or a video model a clip, without training. The loudness of the sound
while a frame is shown, smoothed over neighbouring frames, scales the attention to some words there. The authors take
the words from an audio tagger; here the user names them. How wide their sliding window is and how loudness becomes a
factor is not known to us: here the factor is 1 in silence and what is asked for where the sound is loudest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from vdm_jax.data.sound import check_length
from vdm_jax.errors import UserError
from vdm_jax.generation.editing.prompt_to_prompt import WordWeight, token_factors
from vdm_jax.generation.editing.words import words_of
from vdm_jax.generation.generator import Generator
from vdm_jax.stages.stage import Stage

RATE = 16_000  # samples a second of a sound whose loudness is measured
WINDOW = 5  # frames over which it is smoothed


def frame_amplitudes(
    sound: Float[np.ndarray, " N"], rate: int, frames: int, fps: float, window: int = WINDOW, name: str = "sound"
) -> Float[np.ndarray, " frames"]:
    """How loud a sound is in each frame, 1 where it is loudest: the root mean square of its samples there, a mean over
    `window` frames around each, fewer at both ends. Zeros of silence. Raises `UserError` for a sound that is shorter
    than the frames."""
    check_length(name, len(sound) / rate, frames / fps)
    edges = np.minimum(np.rint(np.arange(frames + 1) * rate / fps).astype(int), len(sound))
    squares = np.concatenate([[0], np.cumsum(np.square(np.asarray(sound, np.float64)))])
    loud = np.sqrt(np.diff(squares[edges]) / np.maximum(np.diff(edges), 1))
    near, ones = np.ones(window), np.ones(frames)
    start = window // 2
    smooth = (np.convolve(loud, near) / np.convolve(ones, near))[start : start + frames]
    return smooth / smooth.max() if smooth.max() > 0 else smooth


def amplified(
    generator: Generator, captions: Sequence[str], weights: Sequence[WordWeight],
    amplitudes: Float[np.ndarray, "B T"], stages: Sequence[Stage],
) -> dict[str, Float[np.ndarray, "B G L"]]:
    """The argument of a generator by which attention to words follows amplitudes: `token_weights`, with the factor
    `1 + a_t (weight - 1)` on the tokens of each word in frame t of each caption's video; one for the clip, as in
    Prompt-to-Prompt, where all frames are as loud, and nothing where all factors are 1. Raises `UserError` for a word
    that a caption has not, stages that read no captions, and such as read them as different tokens."""
    reading = [stage for stage in stages if stage.network.text is not None]
    if not reading:
        raise UserError(f"words to amplify for the stages {', '.join(stage.name for stage in stages)}, which read no "
                        "captions; permitted: a stage that does", "amplitude.stages")
    of_stages = [[token_factors(words_of(generator, stage, caption), caption, weights) for caption in captions]
                 for stage in reading]
    for stage, others in zip(reading[1:], of_stages[1:], strict=True):
        if not all(np.array_equal(one, other) for one, other in zip(of_stages[0], others, strict=True)):
            raise UserError(f"stages {reading[0].name!r} and {stage.name!r} read captions as different tokens; "
                            f"permitted: words to amplify of one of them, by last={reading[0].name!r}",
                            "amplitude.stages")
    factors = np.ones((len(captions), max(map(len, of_stages[0]))))
    for row, found in zip(factors, of_stages[0], strict=True):
        row[: len(found)] = found
    found = 1 + amplitudes[..., None] * (factors[:, None] - 1)
    found = found[:, :1] if (found == found[:, :1]).all() else found
    return {"token_weights": found.astype(np.float32)} if (found != 1).any() else {}
