"""Released video transformers of other families than Wan's, as configs of the one network: CogVideoX (Yang et al. 2024,
arXiv 2408.06072), LTX-Video (HaCohen et al. 2024, arXiv 2501.00103) and HunyuanVideo (Kong et al. 2024, arXiv
2412.03603)."""

from __future__ import annotations

from typing import Any

from vdm_jax.attention.positions import RotaryAxes, RotaryCoordinates
from vdm_jax.conditions.inputs import Input
from vdm_jax.conditions.pooled_text import POOLED_TEXT
from vdm_jax.conditions.scalars import WEIGHT
from vdm_jax.conditions.text import EmbeddedText
from vdm_jax.diffusion.beta_tables import ShiftedBetaSchedule
from vdm_jax.networks.transformer.config import AddedSinusoids, VideoTransformer


def cogvideox(**sizes: Any) -> VideoTransformer:
    """A transformer of CogVideoX: the texts of T5-v1.1-XXL, 226 tokens with their padding, are part of the sequence."""
    width = sizes["width"]
    return VideoTransformer(**{
        "hidden": 4 * width, "norm": "affine", "qk_norm": "layer", "epsilon": 1e-5, "level_channels": width,
        "level_width": 512, "level_encoding": "timesteps", "timesteps": ShiftedBetaSchedule(),
        "text": EmbeddedText(width=4096), "text_tokens": "padded", "text_length": 226, "text_stream": "joint",
        "patch_order": "channels_first", **sizes})


def cogvideox_rotary(head_dim: int, grid: tuple[int, int] | None) -> RotaryAxes:
    """The share of each axis in CogVideoX: a quarter for frames, as many for rows as for columns."""
    side = head_dim // 8 * 3
    return RotaryAxes(dims=(head_dim // 4, side, side), grid=grid)


def ltx(**sizes: Any) -> VideoTransformer:
    """A transformer of LTX-Video, whose latents are its tokens: texts of T5-v1.1-XXL without their padding."""
    width = sizes["width"]
    return VideoTransformer(**{
        "out_channels": 128, "patch": (1, 1, 1), "hidden": 4 * width, "norm": "rms", "qk_norm": "width",
        "qk_epsilon": 1e-5, "modulation": "shared", "level_encoding": "flow", "rotary": RotaryCoordinates(),
        "text": EmbeddedText(width=4096), "text_tokens": "masked", "text_perceptron": True, "cross_norm": False,
        **sizes})


# Of version 0.9.5 on: the first token, of one frame, is shorter by the seven frames that it lacks
LTX_CAUSAL = RotaryCoordinates(lead=7 / 25)


def hunyuan(**sizes: Any) -> VideoTransformer:
    """A transformer of HunyuanVideo: texts of LLaMA without their padding, the pooled text of CLIP, and the weight of
    the guidance, which it was distilled with."""
    width = sizes["width"]
    return VideoTransformer(**{
        "hidden": 4 * width, "qk_norm": "heads", "level_encoding": "flow", "text": EmbeddedText(width=4096),
        "text_tokens": "masked", "text_stream": "separate", "text_refiner": 2, "scalars": (WEIGHT,),
        "guidance_perceptron": True, "conditions": (Input(name=POOLED_TEXT, width=768),),
        "patch_order": "channels_first", "out_scale_first": True, **sizes})


COGVIDEOX_2B = cogvideox(width=1920, heads=30, layers=30, sinusoids=AddedSinusoids())
COGVIDEOX_5B = cogvideox(width=3072, heads=48, layers=42, rotary=cogvideox_rotary(64, (30, 45)),
                         timesteps=ShiftedBetaSchedule(snr_shift=1.0))
# CogVideoX1.5: a token is of two frames of latents, and positions are counted whatever the size
COGVIDEOX_15_5B = cogvideox(width=3072, heads=48, layers=42, rotary=cogvideox_rotary(64, None), patch=(2, 2, 2),
                            timesteps=ShiftedBetaSchedule(snr_shift=1.0))
LTX_2B = ltx(width=2048, heads=32, layers=28)  # LTX-Video 0.9 and 0.9.1
LTX_2B_095 = ltx(width=2048, heads=32, layers=28, rotary=LTX_CAUSAL)  # 0.9.5 to 0.9.8
HUNYUAN = hunyuan(width=3072, heads=24, layers=20, single_layers=40,
                  rotary=RotaryAxes(dims=(16, 56, 56), bases=(256.0, 256.0, 256.0)))
LTX_13B = ltx(width=4096, heads=32, layers=48, rotary=LTX_CAUSAL)  # LTX-Video 0.9.7 and 0.9.8
