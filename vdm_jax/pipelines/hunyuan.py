"""Videos of texts by HunyuanVideo (Kong et al. 2024, arXiv 2412.03603)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from vdm_jax.diffusion.caching import ByChange, Cache
from vdm_jax.generation.generator import Generated, Progress
from vdm_jax.pipelines import arguments
from vdm_jax.pipelines.base import FromText


class HunyuanTextToVideo(FromText):
    """Videos of texts, by one transformer whose sequence is the video and the text.

        pipeline = vdm_jax.from_pretrained("HunyuanVideo", dtype="bfloat16")
        pipeline("a cat walks on the grass", height=320, width=512, num_frames=61, seed=3).save("cat.mp4")
    """

    def __call__(
        self, prompt: str | Sequence[str], *, height: int | None = None, width: int | None = None,
        num_frames: int | None = None, num_inference_steps: int | None = None, guidance: float | None = None,
        guidance_scale: float | None = None, num_per_prompt: int = 1, fps: int | None = None,
        decode_tile_size: int | None = None, seed: int = 0, latents: Float[np.ndarray, "B T H W C"] | None = None,
        progress: Progress | bool | None = None, cache: Cache | ByChange | None = None,
    ) -> Generated:
        """Generate videos, one per prompt or `num_per_prompt`.

        Args:
          prompt: what the videos should show; up to 256 tokens of Llama and 77 of CLIP.
          height, width: pixels, multiples of 16; 720x1280 by default.
          num_frames: of a video, 1 + 4n; 129 by default.
          num_inference_steps: of the scheduler; 50 by default.
          guidance: w, on which the network is conditioned: one evaluation a step, whatever it is; 5 by default.
          guidance_scale: the same as s = 1 + w. One of the two.
          num_per_prompt: videos of each prompt.
          fps: frames per second of the file that is written; 24 by default.
          decode_tile_size: pixels of a side of the tiles that are decoded one after the other, of four latents or more,
            and share a quarter of them, in whole latents, over which they are blended; whole frames by default. Tiles
            take less memory, and norms see a tile.
          seed: same seed, same place in the batch, same video.
          latents: `[B, T, h, w, C]`, standard normal noise to begin with; drawn from the seed by default.
          progress: called with ("denoising", steps done, steps); a bar on a terminal by default; False: nothing.
          cache: which steps reuse what the blocks have added in an earlier one.

        The model was distilled with its guidance, and takes no negative prompt. Videos are decoded in pieces of 17
        frames that are blended, as diffusers does.

        Raises `UserError` for sizes that the model cannot take and for numbers of texts that do not fit.
        """
        usual = self.generator.experiment.stages[0]
        fps = int(usual.video.fps) if fps is None else fps
        arguments.video(frames=num_frames, fps=fps, chunk=None)
        return self.sample(
            prompt, None, num_per_prompt, (num_frames or usual.video.frames, height, width), usual.sampling.steps
            if num_inference_steps is None else num_inference_steps, (guidance, guidance_scale), seed, latents,
            progress, fps=fps, tile=decode_tile_size, cache=cache)
