"""The generator: captions and a seed in, videos out, through every stage of a cascade."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped, UInt8

from vdm_jax.conditions.conditioning import Conditioning, Request
from vdm_jax.conditions.frame_masks import MaskedVideo
from vdm_jax.conditions.vocabulary import Vocabulary
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.diffusion.caching import ByChange, Cache
from vdm_jax.errors import NotFinite, UserError
from vdm_jax.generation.cache_plans import cache_of
from vdm_jax.generation.compiled import (
    DRAWN,
    WHOLE,
    Noise,
    Truncation,
    Watch,
    goes_by_steps,
    jit_finish,
    jit_sampling,
    of_any_steps,
    step_functions,
    stepwise_sampling,
    truncation,
)
from vdm_jax.generation.given_frames import frames_by_stage
from vdm_jax.generation.jobs import Jobs, Progress
from vdm_jax.generation.long_video.plan import Autoregressive, Method
from vdm_jax.generation.long_video.sampling import LongJob, LongVideos
from vdm_jax.generation.long_video.script import Script, long_requests, scripts_of
from vdm_jax.generation.one_stage import sampling_parts
from vdm_jax.generation.overrides import one_guidance, with_guide, with_overrides
from vdm_jax.generation.prompts import (
    Encoder,
    at_rate,
    checked_request,
    encoded,
    frame_rates,
    requested_conditioning,
)
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.rules import parameter_shardings
from vdm_jax.stages.options import Inpainting, Sampling
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec, augmentation_of
from vdm_jax.video.arrays import check_finite, to_uint8

BLOCK_BY_BLOCK = Autoregressive()


@dataclasses.dataclass(frozen=True)
class Generated:
    """Generated videos and what they were made from."""

    captions: tuple[str, ...]
    # By stage name, in order. Of a stage that stops early for the next one (`TruncatedConditioningAugmentation`), the
    # noisy videos
    stages: dict[str, UInt8[np.ndarray, "B T H W 3"]]
    fps: dict[str, float]  # frames per second, by stage name

    @property
    def videos(self) -> Shaped[np.ndarray, "B T H W 3"]:
        """The videos of the last stage, uint8."""
        return list(self.stages.values())[-1]

    def save(self, path: str | os.PathLike) -> Path:
        """Write the videos to one .mp4 or .gif (side by side), or to a .png grid of frames with captions."""
        from vdm_jax.video.grids import sample_grid, tile_videos
        from vdm_jax.video.writing import write_png, write_video

        fps = list(self.fps.values())[-1]
        if Path(path).suffix.lower() == ".png":
            return write_png(path, sample_grid(self.videos, self.captions))
        return write_video(path, tile_videos(self.videos), fps)


class Generator:
    """A trained cascade, ready to be called with captions.

    Args:
      experiment: the resolved config (vocabularies filled in).
      params: parameters per stage name.
      devices: to spread the batch over; all devices by default.
      autoencoders: weights per name of a stage that works in latents; stages may share them.
      encoder: of captions (or pictures), where stages read embeddings and a call brings none.
      keep: `(jitted sampling, what it depends on, mesh) -> function`, which may spare it being traced.
    """

    def __init__(
        self, experiment: Experiment, params: Mapping[str, Any], devices: Sequence[jax.Device] | None = None,
        autoencoders: Mapping[str, Any] | None = None, encoder: Encoder | None = None, keep: Callable | None = None,
    ):
        self.experiment, self.encoder, self.keep = experiment, encoder, keep or (lambda function, about, mesh: function)
        self.mesh = make_mesh(experiment.mesh, devices)

        def placed(trees: Mapping[str, Any]) -> dict[str, Any]:
            kept = {id(tree): jax.device_put(tree, parameter_shardings(tree, self.mesh)) for tree in trees.values()}
            return {name: kept[id(tree)] for name, tree in trees.items()}  # what stages share is there once

        self.params, self.autoencoders = placed(params), placed(autoencoders or {})
        lacking = [stage.name for stage in experiment.stages
                   if stage.latent is not None and stage.name in params and stage.name not in self.autoencoders]
        if lacking:
            raise UserError(f"stage {lacking[0]!r} works in latents and its autoencoder has no weights; permitted: "
                            "autoencoders={name: weights}, or vdm_jax.load")
        self._compiled: dict[Any, Any] = {}

    def of(self, experiment: Experiment, params: Mapping[str, Any] | None = None,
           autoencoders: Mapping[str, Any] | None = None) -> Generator:
        """A generator of another experiment on the same devices, which shares what is compiled, and weights that are
        not given."""
        other = copy.copy(self)
        other.experiment = experiment
        other.params = self.params if params is None else params
        other.autoencoders = self.autoencoders if autoencoders is None else autoencoders
        return other

    def __call__(
        self, captions: Sequence[str] | str, *, seed: int = 0, first_index: int = 0, steps: int | None = None,
        guidance: float | None = None, split_guidance: bool | None = None, last: str | None = None,
        progress: Progress | None = None, masked_video: MaskedVideo | None = None, first: str | None = None,
        guidance_scale: float | None = None, guide: Mapping[str, float] | None = None,
        negative: Sequence[str] | str | None = None, noise: Noise = DRAWN, watch: Watch | None = None,
        cache: Cache | ByChange | None = None, **given: Any,
    ) -> Generated:
        """Generate one video per caption.

        Args:
          captions: what the videos should show; repeat a caption for several videos of it.
          seed: same seed, same index, same video, whatever else is generated with it.
          first_index: index of the first video, to go on with a series.
          steps: sampler steps, for all stages; each stage's own by default.
          guidance: weight w in cond + w (cond - uncond) of the first stage; 0 is off; its own by default.
          guidance_scale: the same as s = 1 + w; 1 is off. One of the two.
          guide: instead, scales s by the names of conditions, which come in one after the other: `{"text": 7.5,
            "control": 3}`, and "time", whose estimate without it is made frame by frame. Which names a stage permits
            follows from its conditions and what its training left out.
          split_guidance: the two estimates of a guided video on two halves of the devices; each stage's own by default.
          last: name of the stage to stop after.
          progress: called with (stage, videos done, videos in all).
          masked_video: a part of the first stage's videos that is given; `frame_masks.masked_first_frame` for their
            first frames. How it is taken over is the stage's `sampling.inpainting`. Or of the videos of a later stage
            that takes conditioning frames (`frames_stage`): it sees them as they are, and the stages before it
            degraded.
          first: name of the stage to begin with: the cascade's first, or one that fills in frames or begins with a
            picture and now goes by `masked_video` instead (animates a picture, goes on with a clip).
          negative: captions of what the videos should not show, one or one for each, for guidance of stages whose
            encoder is known; by default the null caption.
          noise: of the first stage's videos, given instead of drawn from the seed.
          watch: called with the number and the z of each step of the first stage, which lives until the next step; the
            stage is then sampled step by step.
          cache: which steps of all stages reuse deep features of the network, by number, or by how much the noise level
            changes; each stage's own by default.
          given: values of the stages' conditions, each `[B, ...]`, one per caption, unless it says otherwise:
            `embeddings` `[B, L, C]` with `text_mask` `[B, L]` (all by default) for stages that read text embeddings,
            and `null_embeddings` `[L, C]` with `null_mask` `[L]`, what the encoder makes of the empty text, for those
            trained with it (`WithEmbeddings.empty`); `token_weights` `[B, 1 or frames, L]`, factors on the attention to
            tokens of captions; `labels`, -1 is none; `references`, features by name; `fps`, one
            number, frames per second of the first stage, others in proportion; `motion`, one number; `picture_noise`,
            the standard deviation of the noise on the picture that videos begin with; and further conditions
            (`UNet.conditions`) by their names.

        Raises:
          UserError: no captions, an unknown stage, a stage that is not trained, a value that no stage takes, one that
            is missing or does not fit, a masked video of another size.
        """
        stages, guidance = self.stages(first, last), one_guidance(guidance, guidance_scale, guide)
        rates = frame_rates(stages, given.get("fps"))
        request = self.request(captions, given, stages, negative, masked_video)
        captions = request.captions
        self.check_trained(stages)
        source = stages[0].source
        if source is not None and not (source.single_frames and masked_video is not None):
            raise UserError(f"stage {stages[0].name!r} starts from {source.frames} frames that no stage makes; "
                            "permitted: a cascade whose first stage has source=None, or given parts of a stage that "
                            "fills in frames or begins with a picture")
        jobs = Jobs(seed, first_index + np.arange(len(captions)), progress, noise=noise, watch=watch)
        outputs: dict[str, np.ndarray] = {}
        given_frames, low = frames_by_stage(masked_video, stages, len(captions)), None
        for stage in stages:
            at_first, place = stage is stages[0], self.experiment.stages.index(stage)
            sampling = with_overrides(stage.sampling, steps=steps, guidance=guidance if at_first else None,
                                      split_guidance=split_guidance)
            sampling = with_guide(self._cached(stage, sampling, cache), guide if at_first else None)
            dataclasses.replace(stage, sampling=sampling)  # raises where the stage cannot do it
            asked = request if request.get("fps") is None else at_rate(request, rates[stage.name])
            text = requested_conditioning(stage, asked)
            frames = given_frames.get(stage.name)
            if at_first and frames is not None and source is not None:
                low, frames = source.given(frames, stage)
            ends = truncation(stages, stages.index(stage))
            low = self.run_stage(stage, place, sampling, jobs, text, low, frames, ends)
            outputs[stage.name] = np.asarray(to_uint8(low))
            jobs = dataclasses.replace(jobs, noise=DRAWN, watch=None)
        return Generated(captions, outputs, rates)

    def long(
        self, captions: Sequence[str | Script] | str | Script, *, frames: int, method: Method = BLOCK_BY_BLOCK,
        folder: str | os.PathLike | None = None, inpainting: Inpainting | None = None, seed: int = 0,
        first_index: int = 0, steps: int | None = None, guidance: float | None = None,
        split_guidance: bool | None = None, at_once: int | None = None, progress: Progress | None = None,
        stop: Callable[[], bool] = lambda: False, masked_video: MaskedVideo | None = None,
        low: Float[np.ndarray, "B N H2 W2 3"] | None = None, every: int = 1, guidance_scale: float | None = None,
        guide: Mapping[str, float] | None = None, cache: Cache | ByChange | None = None, **given: Any,
    ) -> LongVideos:
        """Generate longer videos of the first stage, segment by segment (`long_video/plan.py`).

        Args:
          captions: one per video: a caption, or a `Script` of captions by time. `embeddings`, where they are given,
            are of all prompts, one script after another.
          frames: of the videos.
          method: `Autoregressive`, `KeyFramesFirst`, which needs further stages, `NuwaXL`, `Windowed`, `Rolling` or
            `Blocks`.
          folder: where finished frames are kept, so that memory does not grow with the length and the same call goes
            on after an interruption; memory by default.
          inpainting: how segments take over frames of others; the stage's own by default.
          at_once: segments that are sampled together, over all devices; by default as many as are independent, up to
            the stage's batch size.
          progress: called with (stage, segments done, segments in all).
          stop: asked after each batch of segments; True ends the call there, with the videos unfinished.
          masked_video: of the first segment, as in a call.
          low: `[B, N, H2, W2, 3]` in [-1, 1], the whole videos with fewer pixels, for reconstruction guidance: they are
            enlarged and extended at once.
          every: of how many frames of the videos `low` has one.
          seed, first_index, steps, guidance, guidance_scale, guide, split_guidance, cache, given: as in a call; maps
            have `frames` frames.

        Raises `UserError` as a call does, for lengths that the method cannot make, a stage that was not trained for it,
        and a folder with frames of something else.
        """
        if given.get("token_weights") is not None:
            raise UserError("token_weights are given for longer videos; permitted: a clip", "Generator.long")
        method = method.of_cascade(self.experiment.stages)
        stages, guidance = self.experiment.stages[: method.stages], one_guidance(guidance, guidance_scale, guide)
        self.check_trained(stages)
        stages = tuple(dataclasses.replace(stage, sampling=with_guide(self._cached(stage, with_overrides(
            stage.sampling, steps=steps, guidance=None if place else guidance, split_guidance=split_guidance,
            inpainting=None if place else inpainting), cache), None if place else guide))  # raises what it cannot do
            for place, stage in enumerate(stages))
        method = method.of_stage(stages[0], stages[0].sampling)
        method.check(stages[0], stages[0].sampling, frames)
        scripts, rates = scripts_of(captions, frames), frame_rates(stages, given.get("fps"))
        requests = long_requests(stages, method, scripts, given, frames, rates,
                                 functools.partial(self.request, masked_video=masked_video))
        job = LongJob(stages, method, frames, rates[stages[-1].name], scripts, requests, seed, first_index,
                      masked_video, low, every)
        return job.sample(self, None if folder is None else Path(folder), at_once, progress, stop)

    def extend(self, captions: Sequence[str] | str, *, frames: int, overlap: int | None = None, **options: Any
               ) -> Generated:
        """`long` block by block, each block given the last `overlap` frames of the one before (by default what the
        network saw in training, or half a clip), with all frames in memory."""
        made = self.long(captions, frames=frames, method=Autoregressive(overlap=overlap), **options)
        return Generated(made.captions, {made.stage: made.videos}, {made.stage: made.fps})

    def _cached(self, stage: Stage, sampling: Sampling, cache: Cache | ByChange | None) -> Sampling:
        """The sampling with the plan that was asked for."""
        return with_overrides(sampling, cache=cache_of(stage, sampling, self.params[stage.name], cache, self.mesh))

    def check_trained(self, stages: Sequence[Stage]) -> None:
        """Raise `UserError` for a stage without weights."""
        absent = [stage.name for stage in stages if stage.name not in self.params]
        if absent:
            raise UserError(f"stage {absent[0]!r} has no trained weights; permitted: train it, or stop after one of "
                            f"{', '.join(self.params) or 'none'}")

    def with_augmentation_level(self, logsnr: float) -> Generator:
        """The same cascade, with the low-resolution inputs of all its stages augmented at another level, which is
        searched after training (Ho et al. 2021, arXiv 2106.15282). Raises `UserError` when no stage's
        augmentation has a level."""
        def at_level(stage: Stage) -> Stage:
            augmentation = augmentation_of(stage)
            if augmentation is None or not augmentation.while_sampling:
                return stage
            augmentation = dataclasses.replace(augmentation, sampling_logsnr=logsnr)
            return dataclasses.replace(stage, source=dataclasses.replace(stage.source, augmentation=augmentation))

        stages = tuple(at_level(stage) for stage in self.experiment.stages)
        if not any((found := augmentation_of(stage)) and found.while_sampling for stage in stages):
            raise UserError(f"experiment {self.experiment.name!r} has no stage with a level of augmentation; "
                            "permitted: a cascade with NoiseAugmentation or TruncatedConditioningAugmentation")
        return self.of(dataclasses.replace(self.experiment, stages=stages))

    def vocabulary(self, stage: Stage) -> Vocabulary:
        """The words a stage's encoder knows."""
        return Vocabulary(stage.network.text.words, stage.network.text.length)

    def makes(self, first: str | None = None, last: str | None = None, fps: float | None = None) -> VideoSpec:
        """Size and rate of the videos that a call with these arguments makes. Raises `UserError` for bad ones."""
        stages = self.stages(first, last)
        return dataclasses.replace(stages[-1].video, fps=frame_rates(stages, fps)[stages[-1].name])

    def stages(self, first: str | None = None, last: str | None = None) -> tuple[Stage, ...]:
        """The stages from one to another. Raises `UserError` for unknown names and for none."""
        stages = self.experiment.stages
        start = 0 if first is None else stages.index(self.experiment.stage(first))
        end = len(stages) if last is None else stages.index(self.experiment.stage(last)) + 1
        if start >= end:
            raise UserError(f"first={first!r} comes after last={last!r}; permitted: "
                            f"{', '.join(stage.name for stage in stages[:end])}")
        return stages[start:end]

    def request(
        self, captions: Sequence[str] | str, given: Mapping[str, Any], stages: Sequence[Stage],
        negative: Sequence[str] | str | None = None, masked_video: MaskedVideo | None = None,
    ) -> Request:
        """What is asked of some stages; captions (or pictures) are encoded where no embeddings are given. Raises
        `UserError` as `checked_request`, and for embeddings without those of the empty text of stages that were trained
        with them."""
        captions = (captions,) if isinstance(captions, str) else tuple(captions)
        if given.get("embeddings") is not None and negative is not None:
            raise UserError("negative is given with embeddings, which nothing encodes; permitted: one of them, with "
                            "null_embeddings for what the videos should not show")
        if given.get("embeddings") is None:
            given = {**given, **encoded(self.encoder, stages, captions, negative, masked_video, given)}
        request, data = checked_request(captions, given, stages), self.experiment.data
        if isinstance(data, WithEmbeddings) and data.empty == "encoded" and (request.get("embeddings") is None) != (
                request.get("null_embeddings") is None):
            raise UserError("null_embeddings=None for stages that were trained with those of the empty text; "
                            "permitted: with embeddings, TextEmbeddings(...).empty(length)")
        return request

    def run_stage(
        self, stage: Stage, place: int, sampling: Sampling, jobs: Jobs, text: Conditioning, low: np.ndarray | None,
        masked_video: MaskedVideo | None = None, ends: Truncation = WHOLE, *, at_once: int | None = None,
    ) -> Float[np.ndarray, "B T H W C"]:
        """All videos of one stage, in batches of one size (`at_once`, or what fits); the last batch is filled up with
        repeats. `jobs` has one entry per video, like all arrays."""
        total, parts = len(jobs.indices), sampling_parts(stage, sampling, self.mesh)
        size = min(sampling.batch_size, total) if at_once is None else at_once
        size = -(-size // parts) * parts  # up to a multiple of the devices
        watch = jobs.watch or (lambda step, z: None)
        given = jobs.watch is not None or any(part is not None for part in jobs.noise)
        stepwise = given or goes_by_steps(stage, sampling, self.mesh, masked_video)
        if given and sampling.by_blocks:
            raise UserError(f"stage {stage.name!r}: sampling.by_blocks=True with noise that is given, or with steps "
                            "that are watched; permitted: neither", "Sampling.by_blocks")
        function = self._compile(stage, sampling, ends, watch if stepwise else None)
        autoencoder = () if stage.latent is None else (self.autoencoders[stage.name],)
        done = []
        for start in range(0, total, size):
            rows = np.minimum(np.arange(start, start + size), total - 1)
            keys = jobs.keys(rows, place)
            *batch, noise = jax.tree.map(lambda x, rows=rows: x[rows], (text, low, masked_video, jobs.noise))
            arguments = (self.params[stage.name], keys, *batch, *autoencoder)
            done.append(np.asarray(function(*arguments, **({"noise": noise} if stepwise else {}))))
            if not np.isfinite(done[-1]).all():
                raise self._not_finite(stage, sampling, ends, done[-1], arguments, noise)
            jobs.tell(stage.name, min(start + size, total), total)
        return np.concatenate(done)[:total]

    def _not_finite(self, stage: Stage, sampling: Sampling, ends: Truncation, videos: np.ndarray,
                    arguments: tuple[Any, ...], noise: Noise) -> NotFinite:
        """What to say of videos that are not finite: of which stage, and from which step of its sampler on, which a
        second run step by step finds; where all steps are finite, the autoencoder."""
        name, wrong = f"stage {stage.name!r}", int((~np.isfinite(videos)).sum())
        network = arguments[0]

        def watch(step: int, z: jax.Array) -> None:
            check_finite(z, f"from step {step} of {sampling.steps} of the sampler on")

        where = "after the last step of the sampler"
        try:
            self._compile(stage, sampling, ends, watch)(*arguments, noise=noise)
            if stage.latent is not None:
                where, network = "decoded by the autoencoder", arguments[-1]
        except NotFinite as error:
            where = str(error).partition(":")[0]
        weights = jax.tree.leaves(network)
        broken = sum(not bool(jnp.isfinite(w).all()) for w in weights)
        reason = (f"{broken} of {len(weights)} of its weights hold NaN or infinity" if broken else
                  "its weights are finite; permitted: a lower guidance, another sampler, or network.dtype='float32'")
        return NotFinite(f"{name}: {wrong} of {videos.size} values of the videos are NaN or infinite, {where}; "
                         f"{reason}")

    def kept(self, key: Any, make: Callable, *arguments: Any) -> Any:
        """`make(*arguments)`, a compiled function, made once for a key."""
        if key not in self._compiled:
            self._compiled[key] = make(*arguments)
        return self._compiled[key]

    def _compile(self, stage: Stage, sampling: Sampling, ends: Truncation, watch: Watch | None) -> Callable:
        """The stage's sampling: by one compiled function for all steps, or where steps are watched by one for each."""
        shardings, kept = jax.tree.map(lambda x: x.sharding, self.params[stage.name]), self.kept
        if watch is None:
            def sampling_function() -> Callable:
                function = jit_sampling(stage, sampling, self.mesh, shardings, ends)
                return self.keep(function, (stage, sampling, ends), self.mesh)

            function = kept((stage, sampling, ends), sampling_function)
        else:
            of = of_any_steps(stage, sampling)
            functions = kept((*of, ends, "step"), step_functions, *of, self.mesh, shardings, ends)
            finish = kept((of, stage.latent), jit_finish, stage, sampling, self.mesh)
            function = stepwise_sampling(stage, sampling, self.mesh, shardings, ends, watch, functions=functions,
                                         finish=finish)

        def call(*arguments: Any, **given: Any) -> Any:
            with jax.set_mesh(self.mesh):
                return function(*arguments, **given)

        return call
