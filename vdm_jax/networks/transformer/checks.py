"""What the fields of a video transformer refuse, and the stages that it cannot serve."""

from __future__ import annotations

import math
from typing import Any

from vdm_jax.attention import BlockCausal, Full, WithExtraKeys
from vdm_jax.attention.capability import require
from vdm_jax.attention.positions import RotaryCoordinates
from vdm_jax.conditions.text import EmbeddedText
from vdm_jax.errors import UserError

Spec = Any  # a `config.VideoTransformer`, whose file imports this one


def check_patterns(spec: Spec) -> None:
    """Raise `UserError` for patterns that the kernel and context cannot compute, or that the split cannot serve."""
    for pattern in spec.patterns:
        if isinstance(pattern, WithExtraKeys):
            raise UserError("VideoTransformer.patterns has WithExtraKeys(...); permitted: patterns of the video "
                            "alone, whose blocks attend to text apart", "VideoTransformer.patterns")
        if spec.sharded_axis == "width" and not isinstance(pattern, Full):
            raise UserError(f"VideoTransformer.sharded_axis='width' with pattern {pattern}, which tells frames "
                            "from columns; permitted: Full(), or 'frames', 'height'",
                            "VideoTransformer.sharded_axis")
        if spec.text_in_sequence:
            pattern = WithExtraKeys(inner=pattern)
        require(pattern, spec.attention_kernel, spec.context_of(pattern), extra_keys=spec.text_in_sequence)
    if spec.teacher_forcing and not spec.block_frames:
        raise UserError(f"VideoTransformer.teacher_forcing=True with patterns={spec.patterns}; permitted: "
                        "BlockCausal(...) of one kind, and Spatial()", "VideoTransformer.teacher_forcing")


def check_text(spec: Spec) -> None:
    """Raise `UserError` where texts do not become tokens in the way that is asked for."""
    released = spec.text_tokens != "pooled"
    if released and spec.text is not None and not isinstance(spec.text, EmbeddedText):
        raise UserError(f"VideoTransformer.text_tokens={spec.text_tokens!r} with text="
                        f"{type(spec.text).__name__}; permitted: 'pooled', or text=EmbeddedText(...)")
    if spec.image_tokens is not None and spec.text is None:
        raise UserError("VideoTransformer.conditions has 'image_tokens' with text=None, next to whose tokens they "
                        "are seen; permitted: a text", "VideoTransformer.conditions")
    if spec.image_places and spec.image_tokens is None:
        raise UserError(f"VideoTransformer.image_places={spec.image_places} without image tokens; permitted: 0, or "
                        "conditions with Input(name='image_tokens')")
    if spec.text_in_sequence:
        _check_joint(spec)
    elif spec.single_layers or spec.text_refiner:
        raise UserError(f"VideoTransformer.text_stream='cross' with single_layers={spec.single_layers}, text_refiner="
                        f"{spec.text_refiner}; permitted: 0, or texts in the sequence", "VideoTransformer.text_stream")
    if spec.text_refiner and (spec.text_tokens == "padded" or spec.text_perceptron):
        raise UserError(f"VideoTransformer.text_refiner={spec.text_refiner} with text_tokens={spec.text_tokens!r}, "
                        f"text_perceptron={spec.text_perceptron}; permitted: 0, or 'masked' and False: it hides their "
                        "padding, and brings texts to the width of the blocks itself", "VideoTransformer.text_refiner")
    if (spec.text_tokens == "padded") != bool(spec.text_length):
        raise UserError(f"VideoTransformer.text_length={spec.text_length} with text_tokens={spec.text_tokens!r}; "
                        "permitted: above 0 exactly with 'padded'")


def _check_joint(spec: Spec) -> None:
    """Raise `UserError` for text in the sequence where there is none, and for what gives frames noise levels of
    their own, of which texts would have none."""
    wrong = {"text": spec.text is None, "text_tokens": spec.text_tokens == "pooled",
             "conditions": bool(spec.entering("tokens")), "frame_conditioning": spec.in_place,
             "patterns": any(isinstance(pattern, BlockCausal) for pattern in spec.patterns),
             "modulation": spec.modulation != "block"}
    for name in (name for name, found in wrong.items() if found):
        raise UserError(f"VideoTransformer.text_stream={spec.text_stream!r} with {name}={getattr(spec, name)!r}; "
                        "permitted: text=EmbeddedText(...) with text_tokens 'padded' or 'masked', no conditions as "
                        "tokens, no conditioning frames in place, no BlockCausal, and modulation='block'",
                        "VideoTransformer.text_stream")
    if spec.norm == "rms":
        raise UserError(f"VideoTransformer.norm='rms' with text_stream={spec.text_stream!r}; permitted: 'layer', "
                        "'affine'", "VideoTransformer.norm")


def check_positions(spec: Spec) -> None:
    """Raise `UserError` for sinusoids next to rotary positions, sinusoids of shares and coordinates of blocks of
    frames, and norms that cross-attention blocks have not."""
    if spec.rotary is not None and spec.sinusoids is not None:
        raise UserError(f"VideoTransformer.sinusoids={spec.sinusoids} with rotary={spec.rotary}; permitted: one of "
                        "them")
    blocks = any(isinstance(pattern, BlockCausal) for pattern in spec.patterns)
    if spec.sinusoids is not None and blocks:
        raise UserError(f"VideoTransformer.sinusoids={spec.sinusoids} with patterns={spec.patterns}, whose blocks "
                        "count frames; permitted: None, rotary=RotaryAxes(...), or no BlockCausal",
                        "VideoTransformer.sinusoids")
    if isinstance(spec.rotary, RotaryCoordinates) and blocks:
        raise UserError(f"VideoTransformer.rotary={spec.rotary} with patterns={spec.patterns}, whose blocks count "
                        "frames; permitted: RotaryAxes(...), or no BlockCausal", "VideoTransformer.rotary")
    if spec.norm == "affine" and spec.text_stream != "joint":
        raise UserError(f"VideoTransformer.norm='affine' with text_stream={spec.text_stream!r}; permitted: another "
                        "norm, or 'joint'", "VideoTransformer.norm")


def check_stage(spec: Spec, stage: Any) -> None:
    """Raise `UserError` for levels of frames that share a token, images that would be mixed with the clip, crops
    whose place in the video is added to the tokens, a low-resolution video in pixels next to latents, and a mask of
    other frames than those of a latent one."""
    where, training, patch = f"Stage {stage.name!r}", stage.training, spec.patch[0]
    if spec.masks_frames:
        _check_mask(spec, stage, where)
    if spec.boundary is not None and stage.process.frame_levels:
        raise UserError(f"{where}: process.frame_levels=True with network.boundary={spec.boundary}, by which one "
                        "expert sees all frames; permitted: frame_levels=False, or boundary=None")
    _check_cache(spec, stage, where)
    if patch > 1 and stage.process.frame_levels:
        raise UserError(f"{where}: process.frame_levels=True with network.patch={spec.patch}, whose frames share "
                        "tokens; permitted: patches of 1 frame")
    if patch > 1 and training.images_per_clip:
        raise UserError(f"{where}: training.images_per_clip={training.images_per_clip} with network.patch="
                        f"{spec.patch}, which mixes the images with the clip; permitted: 0, or patches of 1 frame")
    if training.images_per_clip and spec.sharded_axis == "width":
        raise UserError(f"{where}: training.images_per_clip={training.images_per_clip} with network.sharded_axis="
                        "'width', whose attention tells no frames apart; permitted: 0, or another axis")
    if training.crop is not None and (spec.rotary is None or getattr(spec.rotary, "grid", None) is not None):
        raise UserError(f"{where}: training.crop={training.crop} with network.rotary={spec.rotary}, by which tokens "
                        "say where in the window they are and not where in the video; permitted: "
                        "rotary=RotaryAxes(...) without a grid, or no crop")
    if spec.low_resolution and stage.latent is not None and stage.latent.low_resolution == "pixels":
        raise UserError(f"{where}: latent.low_resolution='pixels' for a VideoTransformer; permitted: 'latents'")
    if spec.teacher_forcing and (training.images_per_clip or spec.conditioning_frames):
        raise UserError(f"{where}: network.teacher_forcing=True with training.images_per_clip="
                        f"{training.images_per_clip}, network.frame_conditioning={spec.frame_conditioning!r}; "
                        "permitted: 0 and 'none': the clean clip is what conditions it")
    if spec.text_in_sequence and (stage.process.frame_levels or training.images_per_clip):
        raise UserError(f"{where}: process.frame_levels={stage.process.frame_levels}, training.images_per_clip="
                        f"{training.images_per_clip} with network.text_stream={spec.text_stream!r}, whose texts have "
                        "the clip's noise level; permitted: False and 0", "VideoTransformer.text_stream")
    if isinstance(spec.rotary, RotaryCoordinates) and training.images_per_clip:
        raise UserError(f"{where}: training.images_per_clip={training.images_per_clip} with network.rotary="
                        f"{spec.rotary}, by which images are later than the clip; permitted: 0",
                        "VideoTransformer.rotary")
    if isinstance(spec.rotary, RotaryCoordinates):
        _check_steps(spec, stage, where)
    if spec.timesteps is not None and stage.process.schedule != spec.timesteps:
        raise UserError(f"{where}: process.schedule={stage.process.schedule} with network.timesteps={spec.timesteps}; "
                        "permitted: the same table, whose timesteps the network was made for",
                        "VideoTransformer.timesteps")
    if spec.level_encoding == "flow" and stage.process.schedule.family.name != "flow":
        raise UserError(f"{where}: network.level_encoding='flow' with a schedule of family "
                        f"{stage.process.schedule.family.name!r}; permitted: 'flow', or level_encoding='inv_cos'")


def _check_steps(spec: Spec, stage: Any, where: str) -> None:
    """Raise `UserError` for coordinates of other seconds and pixels than those from token to token of the videos."""
    frames, side = (1, 1) if stage.latent is None else (stage.latent.frame_factor, stage.latent.autoencoder.factor)
    wanted = tuple(patch * size for patch, size in zip(spec.patch, (frames / stage.video.fps, side, side), strict=True))
    if not all(math.isclose(*pair, rel_tol=1e-6) for pair in zip(spec.rotary.steps, wanted, strict=True)):
        raise UserError(f"{where}: network.rotary.steps={spec.rotary.steps} with videos of {stage.video.fps} frames "
                        f"per second and tokens of {spec.patch[0] * frames} frames; permitted: {wanted}, seconds and "
                        "pixels from token to token", "RotaryCoordinates.steps")


def _check_mask(spec: Spec, stage: Any, where: str) -> None:
    """Raise `UserError` for a mask of the frames of latents in a stage without such, and for what needs the given
    frames apart from the grey ones."""
    frames = stage.latent.frame_factor if stage.latent is not None else 1
    if spec.mask_channels != frames:
        raise UserError(f"{where}: network.mask_channels={spec.mask_channels}, the frames of a latent one, with "
                        f"{'latents' if stage.latent else 'pixels'} of {frames}; permitted: {frames}",
                        "VideoTransformer.mask_channels")
    method, guided = stage.sampling.inpainting.method, stage.sampling.guided_by
    if method not in (None, "network"):
        raise UserError(f"{where}: sampling.inpainting.method={method!r} with network.mask_channels="
                        f"{spec.mask_channels}, of a network that makes all frames itself; permitted: None, "
                        "'network'", "VideoTransformer.mask_channels")
    names = [*(term.name for term in stage.sampling.terms), *(n for d in stage.training.dropout for n in d.names)]
    if guided == "frames" or "frames" in names:
        raise UserError(f"{where}: guidance or dropout of 'frames' with network.mask_channels="
                        f"{spec.mask_channels}, which sees a grey clip where nothing is given; permitted: guidance "
                        "by the prompt or by other names", "VideoTransformer.mask_channels")


def _check_cache(spec: Spec, stage: Any, where: str) -> None:
    """Raise `UserError` for a cache between blocks that are computed together, of two experts, which change with the
    step, and next to keys that are kept."""
    cache, turn = stage.sampling.cache, len(spec.patterns)
    if cache is None:
        return
    if spec.boundary is not None or stage.sampling.by_blocks:
        raise UserError(f"{where}: sampling.cache={cache} with network.boundary={spec.boundary}, sampling.by_blocks="
                        f"{stage.sampling.by_blocks}, where the network changes with the step or keeps keys and "
                        "values; permitted: None, or one expert that makes the whole video", "Sampling.cache")
    if cache.branch % turn:
        raise UserError(f"{where}: sampling.cache.branch={cache.branch} of a VideoTransformer whose blocks take turns "
                        f"of {turn} patterns; permitted: multiples of {turn}", "Cache.branch")
