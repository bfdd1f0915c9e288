"""Plans: a long video as rounds of segments, each a clip of the stage with some frames given by earlier segments.

A method is a small config. `rounds` is a pure function of the numbers of frames; segments of one round do not depend on
each other, so they are sampled together. A method also says which stage samples its segments, and what that stage must
have been trained for.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from jaxtyping import Int

from vdm_jax.conditions.frame_masks import FrameMask, NoMask
from vdm_jax.conditions.inputs import check_uncut
from vdm_jax.configuration import Size, SizeOrZero, config
from vdm_jax.diffusion.frame_schedules import FrameSchedule
from vdm_jax.diffusion.sampling import check_steps
from vdm_jax.errors import UserError
from vdm_jax.generation.one_stage import inpainting_method
from vdm_jax.stages.options import Sampling, Windows
from vdm_jax.stages.stage import Stage, require_rgb


@dataclasses.dataclass(frozen=True)
class Segment:
    """A clip of a long video: its frames `start`, `start + stride`, ..."""

    number: int  # in the order of the plan, from 0
    start: int
    stride: int
    length: int  # frames of the clip
    given: tuple[int, ...] = ()  # places in the clip of the frames that earlier segments made
    stage: int = 0  # place in the cascade of the stage that samples it

    @property
    def frames(self) -> range:
        """Numbers of its frames in the long video; a last clip may reach beyond the end of that."""
        return range(self.start, self.start + self.stride * self.length, self.stride)


Round = tuple[Segment, ...]


@config
class Method:
    """A way to make a long video."""

    name: ClassVar[str]

    @property
    def stages(self) -> int:
        """How many stages of a cascade sample its segments, from the first on."""
        return 1

    def of_cascade(self, stages: Sequence[Stage]) -> Self:
        """The same with what a cascade decides. Raises `UserError` for one that lacks a stage."""
        return self

    def of_stage(self, stage: Stage, sampling: Sampling) -> Self:
        """The same with what the first stage's training decides where it was left open."""
        return self

    def check(self, stage: Stage, sampling: Sampling, frames: int) -> None:
        """Raise `UserError` for numbers of frames that it cannot make, and stages that were not trained for it."""
        require_rgb(stage, "longer videos")
        size = stage.video.frames
        if frames < size:
            raise UserError(f"frames={frames} is not valid; permitted: >= {size}, what stage {stage.name!r} makes at "
                            "once")
        if stage.starts_from("first_frame"):
            raise UserError(f"stage {stage.name!r} begins with a picture and cannot be extended; permitted: a stage "
                            "that takes conditioning frames", "stage")
        if frames > size:
            check_uncut(stage.network.conditions, f"stage {stage.name!r}: frames={frames} in segments of {size}")

    def sampled_by(self, stage: Stage, frames: int) -> Stage:
        """The first stage as it samples its segments."""
        return stage

    def rounds(self, frames: int, size: int) -> Iterator[Round]:
        """The segments of a video of `frames` frames, by a stage whose clips have `size`."""
        raise NotImplementedError

    def noise_order(self, frames: int, size: int, seed: int) -> Int[np.ndarray, " frames"] | None:
        """Which of the first `size` frames' initial noise each frame begins with; None: all have their own."""
        return None

    def segments(self, frames: int, size: int) -> int:
        """How many there are."""
        return sum(map(len, self.rounds(frames, size)))


@config
class Autoregressive(Method):
    """Block by block: each block after the first is sampled given the last frames of the one before (Ho et al. 2022,
    arXiv 2204.03458, section 3.1; by a network trained with conditioning frames: Blattmann et al. 2023, arXiv
    2304.08818, section 3.2). The last block is cut. Any length from one clip on."""

    name = "autoregressive"

    # Frames that a block takes over; by default half of a clip, or as many as the network saw in training
    overlap: SizeOrZero | None = None

    def _overlap(self, size: int) -> int:
        return size // 2 if self.overlap is None else self.overlap

    def of_stage(self, stage: Stage, sampling: Sampling) -> Self:
        """With the largest overlap that the network saw, where it takes given frames itself."""
        shown = _first_frames_seen(stage)
        if self.overlap is not None or inpainting_method(stage, sampling) != "network" or not shown:
            return self
        return dataclasses.replace(self, overlap=max(shown))

    def check(self, stage: Stage, sampling: Sampling, frames: int) -> None:
        """As for all, and for overlaps that leave nothing given or nothing to sample."""
        super().check(stage, sampling, frames)
        size = stage.video.frames
        overlap = self._overlap(size)
        if not 0 < overlap < size:
            raise UserError(f"overlap={overlap} is not valid; permitted: 1 to {size - 1}, for blocks of {size} frames")
        if frames > size:
            shown = _first_frames_seen(stage)
            _check_trained(stage, sampling, overlap in shown, f"overlap={overlap}",
                           f"overlap of {', '.join(map(str, sorted(shown)))}" if shown else None)

    def rounds(self, frames: int, size: int) -> Iterator[Round]:
        """One segment after the other."""
        overlap = self._overlap(size)
        for number, start in enumerate(range(0, max(frames - overlap, 1), size - overlap)):
            yield (Segment(number, start, 1, size, tuple(range(overlap)) if number else ()),)


@config
class KeyFramesFirst(Autoregressive):
    """Key frames block by block, far apart, then the frames between them by the stages of the cascade that fill in
    frames, one round each (`conditions.frames.KeyFrames`): the prediction and interpolation networks of LVDM (He et al.
    2022, arXiv 2211.13221) and Video LDM (Blattmann et al. 2023, arXiv 2304.08818). Clips of a round are independent.
    """

    name = "key_frames"

    # Of each stage that fills in frames: key frames in a clip, and frames from one to the next; the cascade's
    fills: tuple[tuple[Size, Size], ...] = ()

    @property
    def stages(self) -> int:
        """The first and those that fill in frames."""
        return 1 + len(self.fills)

    def of_cascade(self, stages: Sequence[Stage]) -> Self:
        """With the stages after the first that start from key frames."""
        sources = [stage.source for stage in itertools.takewhile(lambda s: s.starts_from("frames"), stages[1:])]
        if not sources:
            raise UserError(f"key_frames for a cascade of {', '.join(stage.name for stage in stages)}, whose second "
                            "stage does not fill in frames; permitted: one with source=KeyFrames", "long_video.stages")
        return dataclasses.replace(self, fills=tuple((source.frames, source.every) for source in sources))

    @property
    def _stride(self) -> int:
        return math.prod(every for _, every in self.fills)

    def _unit(self) -> int:
        """What the number of strides between key frames must be a multiple of, for clips to end at key frames."""
        unit, factor = 1, 1
        for count, every in self.fills:
            unit, factor = math.lcm(unit, (count - 1) // math.gcd(count - 1, factor)), factor * every
        return unit

    def check(self, stage: Stage, sampling: Sampling, frames: int) -> None:
        """As block by block of the key frames, and for lengths at which the last clip of a round would not end."""
        stride, unit = self._stride, self._unit()
        least = -(-(stage.video.frames - 1) // unit) * unit
        below = max((frames - 1) // stride // unit * unit, least)
        if frames != below * stride + 1:
            near = [n * stride + 1 for n in (below, below + unit)]
            raise UserError(f"frames={frames} is not valid with key_frames, {stride} frames apart; permitted: "
                            f"{', '.join(map(str, near))}, ...")
        super().check(stage, sampling, below + 1)

    def rounds(self, frames: int, size: int) -> Iterator[Round]:
        """Blocks of key frames one after the other, then a round for each stage that fills in frames."""
        stride, number = self._stride, 0
        for (segment,) in super().rounds((frames - 1) // stride + 1, size):
            number = segment.number + 1
            yield (dataclasses.replace(segment, start=segment.start * stride, stride=stride),)
        for place, (count, every) in enumerate(self.fills, 1):
            length, starts = (count - 1) * every + 1, range(0, frames - 1, (count - 1) * stride)
            stride //= every
            yield tuple(Segment(number + i, start, stride, length, tuple(range(0, length, every)), place)
                        for i, start in enumerate(starts))
            number += len(starts)


@config
class NuwaXL(Method):
    """Diffusion over diffusion: a clip of key frames over the whole length, then clips between neighbouring key frames,
    of which the first and the last frame are given, and so on (Yin et al. 2023, arXiv 2303.12346, section 3.3). Clips
    of L frames and m rounds make `(L - 1)^m + 1` frames. All clips of a round are independent."""

    name = "nuwa_xl"

    def check(self, stage: Stage, sampling: Sampling, frames: int) -> None:
        """As for all, and for lengths other than `(L - 1)^m + 1`."""
        super().check(stage, sampling, frames)
        size = stage.video.frames
        if size < 3:
            raise UserError(f"Stage {stage.name!r}: video.frames={size} with nuwa_xl, which fills in frames between "
                            "the first and the last; permitted: 3 or more")
        depth = nuwa_xl_depth(frames, size)
        least, most = (nuwa_xl_frames(depth + more, size) for more in (0, 1))
        if frames != least:
            raise UserError(f"frames={frames} is not valid with nuwa_xl and clips of {size} frames; permitted: "
                            f"{least}, {most}, ... ((L - 1)^m + 1)")
        masks, network = _frame_masks(stage), stage.training.masking
        local = any((mask.first, mask.last, mask.every) == (1, 1, 0) for mask in masks)
        whole = any(isinstance(mask, NoMask) for mask in network)
        lacking = [name for name, there in (("NoMask", whole), ("FrameMask(first=1, last=1)", local or depth < 2))
                   if not there]
        _check_trained(stage, sampling, not lacking, f"frames={frames} with nuwa_xl", " and ".join(lacking))

    def rounds(self, frames: int, size: int) -> Iterator[Round]:
        """The global clip, then `L - 1`, `(L - 1)^2`, ... local ones."""
        number, stride = 0, (frames - 1) // (size - 1)
        while stride:
            starts = range(0, frames - 1, stride * (size - 1))
            given = (0, size - 1) if number else ()
            yield tuple(Segment(number + i, start, stride, size, given) for i, start in enumerate(starts))
            number, stride = number + len(starts), stride // (size - 1)


@config
class Windowed(Method):
    """The whole video at once, denoised by windows of one clip that overlap in time (`diffusion/windows.py`). Memory
    grows with the length. With `rescheduled`, frames beyond the first clip begin with the noise of frames of the first
    in another order, a unit of `size - overlap` frames at a time (FreeNoise: Qiu et al. 2024, arXiv 2310.15169,
    section 3.2)."""

    name = "windows"

    overlap: SizeOrZero | None = None  # frames that neighbouring windows share at the least; half of a clip by default
    rescheduled: bool = False

    def _overlap(self, size: int) -> int:
        return size // 2 if self.overlap is None else self.overlap

    def check(self, stage: Stage, sampling: Sampling, frames: int) -> None:
        """As for all, and for overlaps as large as a clip."""
        super().check(stage, sampling, frames)
        size = stage.video.frames
        if self._overlap(size) >= size:
            raise UserError(f"overlap={self.overlap} is not valid; permitted: 0 to {size - 1}, for windows of {size} "
                            "frames")
        if sampling.last_frame_guidance is not None:
            raise UserError(f"Stage {stage.name!r}: sampling.last_frame_guidance={sampling.last_frame_guidance} with "
                            "windows; permitted: None")

    def sampled_by(self, stage: Stage, frames: int) -> Stage:
        """One of videos of all frames."""
        return stage_of_windows(stage, frames, self._overlap(stage.video.frames))

    def rounds(self, frames: int, size: int) -> Iterator[Round]:
        """One segment."""
        yield (Segment(0, 0, 1, frames),)

    def noise_order(self, frames: int, size: int, seed: int) -> Int[np.ndarray, " frames"] | None:
        """That of FreeNoise, where it is asked for."""
        return rescheduled_noise(frames, size, size - self._overlap(size), seed) if self.rescheduled else None


@config
class Rolling(Method):
    """A queue of frames of rising noise, for networks whose frames have noise levels of their own: each frame begins
    some steps after the one before it, and the network sees the clip around those being denoised, with the last
    finished ones (Rolling Diffusion: Ruhe et al. 2024, arXiv 2402.09470; FIFO-Diffusion: Kim et al. 2024, arXiv
    2405.11473). Memory grows with the length, a call of the network does not."""

    name = "rolling"

    overlap: Size | None = None  # finished frames that the network sees; half of a clip by default

    def _overlap(self, size: int) -> int:
        return max(size // 2, 1) if self.overlap is None else self.overlap

    def check(self, stage: Stage, sampling: Sampling, frames: int) -> None:
        """As for all, and for networks whose frames share a noise level, samplers likewise, and no frames to
        denoise."""
        super().check(stage, sampling, frames)
        size = stage.video.frames
        if self._overlap(size) >= size:
            raise UserError(f"overlap={self.overlap} is not valid; permitted: 1 to {size - 1}, for clips of {size} "
                            "frames")
        if not stage.process.frame_levels:
            raise UserError(f"Stage {stage.name!r}: process.frame_levels=False with rolling; permitted: a stage "
                            "trained with noise levels of single frames")
        check_steps(sampling.sampler, 0, scheduled=sampling.scheduler is not None, frame_schedule=FrameSchedule())

    def sampled_by(self, stage: Stage, frames: int) -> Stage:
        """One of videos of all frames, each so many steps behind the one before that a clip holds all that are
        begun."""
        size = stage.video.frames
        lag = math.ceil(stage.sampling.steps / (size - self._overlap(size)))
        long = stage_of_windows(stage, frames, self._overlap(size))
        windows = dataclasses.replace(long.sampling.windows, follows=True)
        return dataclasses.replace(long, sampling=dataclasses.replace(
            long.sampling, windows=windows, frame_lag=0, frame_schedule=FrameSchedule(lag=float(lag))))

    def rounds(self, frames: int, size: int) -> Iterator[Round]:
        """One segment."""
        yield (Segment(0, 0, 1, frames),)


@config
class Blocks(Method):
    """The whole video block by block, by a causal network that keeps keys and values of finished blocks
    (`generation/block_sampling.py`). With a window in its pattern, time and memory of a block do not grow."""

    name = "blocks"

    def check(self, stage: Stage, sampling: Sampling, frames: int) -> None:
        """As for all, and for networks without blocks."""
        super().check(stage, sampling, frames)
        if not stage.network.block_frames:
            raise UserError(f"stage {stage.name!r} has a network whose frames all see each other; permitted with "
                            "blocks: a VideoTransformer with BlockCausal patterns", "long_video.blocks")

    def sampled_by(self, stage: Stage, frames: int) -> Stage:
        """One of videos of all frames."""
        training = dataclasses.replace(stage.training, frames=stage.training.frames or stage.video.frames)
        return dataclasses.replace(stage, video=dataclasses.replace(stage.video, frames=frames), training=training,
                                   sampling=dataclasses.replace(stage.sampling, by_blocks=True))

    def rounds(self, frames: int, size: int) -> Iterator[Round]:
        """One segment."""
        yield (Segment(0, 0, 1, frames),)


METHODS: dict[str, type[Method]] = {kind.name: kind for kind in (
    Autoregressive, KeyFramesFirst, NuwaXL, Windowed, Rolling, Blocks)}


def nuwa_xl_frames(depth: int, size: int) -> int:
    """Frames of `depth` rounds of clips of `size`: 16, 226, 3376 for 16."""
    return (size - 1) ** depth + 1


def nuwa_xl_depth(frames: int, size: int) -> int:
    """Rounds of the longest video of at most `frames` frames."""
    depth = 1
    while nuwa_xl_frames(depth + 1, size) <= frames:
        depth += 1
    return depth


def stage_of_windows(stage: Stage, frames: int, overlap: int) -> Stage:
    """A stage of videos of `frames` frames, which its network sees by windows as long as its clips now."""
    size = stage.video.frames
    windows = Windows(frames=size, overlap=overlap)
    training = dataclasses.replace(stage.training, frames=stage.training.frames or size)
    return dataclasses.replace(stage, video=dataclasses.replace(stage.video, frames=frames), training=training,
                               sampling=dataclasses.replace(stage.sampling, windows=windows))


def rescheduled_noise(frames: int, size: int, unit: int, seed: int) -> Int[np.ndarray, " frames"]:
    """Which of `size` frames' noise each of `frames` frames takes: after the first clip, each unit takes in another
    order that of the unit `size` frames before it."""
    rng = np.random.default_rng([seed, size, unit])
    order = np.arange(frames) % size  # the first clip in its own order
    for start in range(size, frames, unit):
        before = order[start - size : start - size + unit]
        order[start : start + unit] = rng.permutation(before)[: frames - start]
    return order


def _first_frames_seen(stage: Stage) -> set[int]:
    """How many first frames of clips the network saw as given, and nothing else."""
    return {mask.first for mask in _frame_masks(stage) if mask.first and not (mask.last or mask.every)}


def _frame_masks(stage: Stage) -> list[FrameMask]:
    return [mask for mask in stage.training.masking if isinstance(mask, FrameMask)]


def _check_trained(stage: Stage, sampling: Sampling, shown: bool, what: str, permitted: Any) -> None:
    """Raise `UserError` where the network takes given frames itself and its training never showed it such ones."""
    if inpainting_method(stage, sampling) == "network" and not shown:
        raise UserError(f"{what} for stage {stage.name!r}, whose network never saw such given frames in training; "
                        f"permitted: {permitted or 'training.masking with FrameMask'}, or another inpainting.method",
                        "long_video.masking")
