"""Editing videos by a cascade: each stage edits the given video in its own size, conditioned on what the stage before
made of it.

A super-resolution stage inverts the given video conditioned on that video with fewer pixels, and samples conditioned on
the edited one: what changes is what the captions and the low-resolution videos differ in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from vdm_jax.conditions.conditioning import Conditioning
from vdm_jax.errors import UserError
from vdm_jax.generation.editing.methods import EditMethod
from vdm_jax.generation.editing.one_stage import Edits, EditSampling, edit_sampling, jit_edit
from vdm_jax.generation.editing.paused import edit_with_pauses
from vdm_jax.generation.editing.rerender_clips import edit_by_key_frames
from vdm_jax.generation.editing.sdedit import SDEdit
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.jobs import Jobs, Progress
from vdm_jax.generation.one_stage import sampling_parts
from vdm_jax.generation.overrides import one_guidance, with_guide, with_overrides
from vdm_jax.generation.prompts import at_rate, frame_rates, requested_conditioning
from vdm_jax.metrics.frames import psnr
from vdm_jax.stages.stage import Stage, require_rgb
from vdm_jax.video.arrays import check_finite, to_float, to_uint8


@dataclasses.dataclass(frozen=True)
class Edited:
    """Edited videos, and the given ones next to them."""

    captions: tuple[str, ...]
    stages: dict[str, UInt8[np.ndarray, "B T H W 3"]]  # edited, by stage name, in order
    sources: dict[str, UInt8[np.ndarray, "B T H W 3"]]  # the given videos in the size of each stage
    # By stage, PSNR in dB of what the method makes with the given video's own caption and guidance, to the given video;
    # empty unless asked for
    round_trip: dict[str, Float[np.ndarray, " B"]]
    carry: Any = None  # of methods by key frames: what the next clips of the same videos are made with

    @property
    def videos(self) -> UInt8[np.ndarray, "B T H W 3"]:
        """The edited videos of the last stage."""
        return list(self.stages.values())[-1]


def edit(
    generator: Generator, videos: UInt8[np.ndarray, "B T H W 3"], captions: Sequence[str] | str, *,
    source_captions: Sequence[str] | str | None = None, method: EditMethod | Mapping[str, EditMethod] = SDEdit(),  # noqa: B008
    seed: int = 0, first_index: int = 0, steps: int | None = None, guidance: float | None = None,
    guidance_scale: float | None = None, guide: Mapping[str, float] | None = None, source_guidance: float = 0.0,
    last: str | None = None, negative: Sequence[str] | str | None = None, round_trip: bool = False,
    same_noise: bool = False, carry: Any = None, progress: Progress | None = None, **given: Any,
) -> Edited:
    """Edit videos with the stages of a cascade, or with a released model.

    Args:
      videos: in the size of the last stage (`generator.makes(last=last)`), uint8 or in [-1, 1]; of methods by key
        frames any number of frames.
      captions: what they shall show, one for each.
      source_captions: what they show, for methods that invert them; None: the null caption, where a stage has one.
      method: of all stages, or by stage name.
      seed, first_index: as in a call of the generator.
      steps: sampler steps, for all stages; each stage's own by default.
      guidance, guidance_scale, guide, negative: of the first stage, as in a call.
      source_guidance: weight w of the guidance by the given videos' captions while they are inverted, of the first
        stage. 0, the default, is off: guidance leads an inversion to noise that no sample begins with.
      last: name of the stage to stop after.
      round_trip: also measure how well the method leads back to the given videos with their own captions, which takes
        as many steps again.
      same_noise: all videos get the noise of the first one, for parts of one video.
      carry: of methods by key frames, `Edited.carry` of the clips before, whose last frames are the first ones of these
        and come out as they did there; all of them in one batch.
      progress: called with (stage, videos done, videos in all).
      given: values of further conditions, as in a call.

    Raises:
      UserError: videos of another size or number, captions missing, a stage that is not trained or cannot be edited,
        guidance by captions that are not given.
    """
    stages, methods = _prepared(generator.stages(None, last), method, videos, carry)
    guidance = one_guidance(guidance, guidance_scale, guide)
    rates = frame_rates(stages, given.get("fps"))
    generator.check_trained(stages)
    request = generator.request(captions, given, stages, negative)
    # Of the given videos: their captions, or none, which is not what a negative caption says
    own = generator.request(captions if source_captions is None else source_captions, given, stages)
    sources = _in_sizes(videos, stages, len(request.captions))
    _check_captions(request.captions, own.captions, source_captions is not None, source_guidance, methods)
    guided = (guidance, guide, source_guidance)
    hows = [_how(stage, methods[stage.name], steps, *((None, None, 0.0) if place else guided))
            for place, stage in enumerate(stages)]
    hows = [how._replace(words=methods[stage.name].by_words(
        stage, generator, request.captions, None if source_captions is None else own.captions))
        for stage, how in zip(stages, hows, strict=True)]
    indices = first_index + (0 if same_noise else 1) * np.arange(len(request.captions))
    jobs = Jobs(seed, indices, progress)
    edited: dict[str, np.ndarray] = {}
    again: dict[str, np.ndarray] = {}
    low = None
    for place, (stage, how) in enumerate(zip(stages, hows, strict=True)):
        asked = [r if r.get("fps") is None else at_rate(r, rates[stage.name]) for r in (own, request)]
        texts = [requested_conditioning(stage, r) for r in asked]
        if source_captions is None:
            texts[0] = texts[0].without("prompt")
        made, carry = _run(generator, stage, place, how, jobs, tuple(texts), low, sources[stage.name], round_trip,
                           carry)
        low = (sources[stage.name], made[0])
        edited[stage.name] = np.asarray(to_uint8(made[0]))
        if round_trip:
            again[stage.name] = psnr(np.asarray(to_uint8(made[1])), np.asarray(to_uint8(sources[stage.name])))
    given_videos = {name: np.asarray(to_uint8(x)) for name, x in sources.items()}
    return Edited(request.captions, edited, given_videos, again, carry)


def notes_on(generator: Generator, method: EditMethod | Mapping[str, EditMethod], last: str | None = None) -> list[str]:
    """What the user should know of the stages before they edit by a method, such as that a model was never tuned."""
    stages = generator.stages(None, last)
    generator.check_trained(stages)
    return [note for stage in stages
            for note in _of_stage(method, stage, stages).notes(stage, generator.params[stage.name])]


def _prepared(
    stages: tuple[Stage, ...], method: EditMethod | Mapping[str, EditMethod], videos: Any, carry: Any
) -> tuple[tuple[Stage, ...], dict[str, EditMethod]]:
    """The stages as their methods need them, of methods by key frames with as many frames as the given videos, and the
    methods by stage. Raises `UserError` for key frames of a cascade, and a carry with methods that carry nothing over.
    """
    methods = {stage.name: _of_stage(method, stage, stages) for stage in stages}
    stages = tuple(methods[stage.name].stage(stage) for stage in stages)
    if named := [method.name for method in methods.values() if method.by_key_frames]:
        if len(stages) > 1:
            raise UserError(f"method={named[0]!r} of {len(stages)} stages; permitted: a model of one stage, or last="
                            f"{stages[0].name!r}", "edit.stages")
        frames = np.shape(videos)[1] if np.ndim(videos) == 5 else 1  # else refused by `_in_sizes`
        return tuple(with_frames(stage, frames) for stage in stages), methods
    if carry is not None:
        raise UserError("carry is given; permitted: None, or a method that makes key frames", "edit.carry")
    return stages, methods


def _check_captions(
    captions: Sequence[str], own: Sequence[str], given: bool, source_guidance: float, methods: Mapping[str, EditMethod]
) -> None:
    """Raise `UserError` for captions of the given videos that are missing, or too many or few."""
    if len(own) != len(captions):
        raise UserError(f"source_captions has {len(own)} captions for {len(captions)} videos; "
                        "permitted: one for each", "edit.edit")
    if not given and source_guidance:
        raise UserError(f"source_guidance={source_guidance} without source_captions; permitted: 0, or captions of the "
                        "given videos")
    if not given and (needy := [m.name for m in methods.values() if m.needs_source]):
        raise UserError(f"method={needy[0]!r} without source_captions; permitted: captions of the given videos",
                        "edit.source_captions")


def _how(
    stage: Stage, method: EditMethod, steps: int | None, guidance: float | None, guide: Mapping[str, float] | None,
    source_guidance: float,
) -> EditSampling:
    """How a stage is edited, with what the user changed."""
    sampling = with_guide(with_overrides(stage.sampling, steps=steps, guidance=guidance), guide)
    return edit_sampling(stage, sampling, method, source_guidance)


def _run(
    generator: Generator, stage: Stage, place: int, how: EditSampling, jobs: Jobs,
    captions: tuple[Conditioning, Conditioning], low: Any, video: Float[np.ndarray, "B T H W 3"], again: bool,
    carry: Any,
) -> tuple[list[Float[np.ndarray, "B T H W 3"]], Any]:
    """All videos of one stage, in batches of one size; and what is carried over, where one batch has all."""
    stage = with_frames(stage, 1) if how.method.by_key_frames else stage
    total, parts = len(jobs.indices), sampling_parts(stage, how.target, generator.mesh)
    size = -(-min(how.target.batch_size, total) // parts) * parts
    if carry is not None and total > size:
        raise UserError(f"carry for {total} videos in batches of {size}; permitted: one batch", "edit.carry")
    function, over = _function(generator, stage, how, again), {} if carry is None else {"carry": carry}
    autoencoder = () if stage.latent is None else (generator.autoencoders[stage.name],)
    done = []
    for start in range(0, total, size):
        rows = np.minimum(np.arange(start, start + size), total - 1)
        keys = jobs.keys(rows, place)
        batch = jax.tree.map(lambda x, rows=rows: x[rows], (captions, low, video))
        with jax.set_mesh(generator.mesh):
            made = function(generator.params[stage.name], keys, *batch, *autoencoder, **over)
        done.append([np.asarray(x) for x in (made.edited, made.again) if x is not None])
        check_finite(done[-1][0], f"stage {stage.name!r}, edited videos")
        jobs.tell(stage.name, min(start + size, total), total)
    return [np.concatenate(parts)[:total] for parts in zip(*done, strict=True)], made.carry if total <= size else None


def _function(generator: Generator, stage: Stage, how: EditSampling, again: bool) -> Callable[..., Edits]:
    """What edits a batch of videos, compiled once."""
    make = edit_with_pauses if how.method.pauses(how.target.steps) else jit_edit
    make = edit_by_key_frames if how.method.by_key_frames else make
    shardings = jax.tree.map(lambda x: x.sharding, generator.params[stage.name])
    return generator.kept((stage, how, again, "edit"), make, stage, how, again, generator.mesh, shardings)


def with_frames(stage: Stage, frames: int) -> Stage:
    """The stage making videos of so many frames."""
    return dataclasses.replace(stage, video=dataclasses.replace(stage.video, frames=frames))


def _in_sizes(videos: Any, stages: Sequence[Stage], count: int) -> dict[str, Float[np.ndarray, "B T H W 3"]]:
    """The given videos in [-1, 1] in the size of each stage, as its training has them. Raises `UserError` for videos
    of another shape."""
    require_rgb(stages[0], "edited videos")
    shape = (count, *stages[-1].video.shape)
    if np.shape(videos) != shape:
        raise UserError(f"videos of shape {list(np.shape(videos))} for {count} captions and stage "
                        f"{stages[-1].name!r}; permitted: {list(shape)}")
    x = np.asarray(to_float(videos) if videos.dtype == np.uint8 else videos, np.float32)
    found = {stages[-1].name: x}
    for stage, before in zip(reversed(stages), reversed(stages[:-1]), strict=False):
        x = np.asarray(stage.source.degrade(jnp.asarray(x)))
        found[before.name] = x
    return {stage.name: found[stage.name] for stage in stages}


def _of_stage(
    methods: EditMethod | Mapping[str, EditMethod], stage: Stage, stages: Sequence[Stage]
) -> EditMethod:
    """Raises `UserError` where some stages have one and others none."""
    if not isinstance(methods, Mapping):
        return methods
    if methods.keys() != {stage.name for stage in stages}:
        raise UserError(f"method is given for {', '.join(methods) or 'no stage'}; permitted: for each of "
                        f"{', '.join(stage.name for stage in stages)}")
    return methods[stage.name]
