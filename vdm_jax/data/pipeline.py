"""Batches of clips for training, by grain: random access, exact resume, the same on any number of hosts and workers.

Everything in global batch `step` is a function of (seed, step) and of the source. Row r of it has the *position*
`step * batch_size + r`; the order of the clips is reshuffled every epoch, and every random draw for a row is seeded
with its position. So the step is all there is to know about where training stands: nothing about the data is saved.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Int

from vdm_jax.conditions.inputs import map_fields
from vdm_jax.configuration import (
    Count,
    CountOrZero,
    Seed,
    Share,
    Size,
    SizeOrZero,
    Workers,
    check_fields,
    check_value,
    config,
)
from vdm_jax.data.frame_rates import FrameRates
from vdm_jax.data.source import RandomAccessSource, random_frame
from vdm_jax.errors import UserError
from vdm_jax.video.strokes import mirrored

Clip = dict[str, Any]

# Streams of random numbers of one position.
_START, _AUGMENT, _IMAGES, _RATE = range(4)


@config
class FlipAugmentation:
    """Mirrors clips and their maps left to right, but never one whose caption contains a word that would then be wrong,
    or whose control is a pose, whose colours tell left limbs from right ones. Displacements (flow, strokes) are turned
    round too.

    Writing and digits in the picture are mirrored like the rest: not for data that is about them.
    """

    probability: Share = 0.5  # of mirroring a clip that may be mirrored
    # Beginnings of words, in lower case, that forbid it.
    words: tuple[str, ...] = ("left", "right", "clockwise", "counterclockwise", "anticlockwise", "east", "west")

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Clip:
        drawn = rng.random() < self.probability
        said = re.findall(r"[^\W_]+", clip["caption"].lower())
        kind = clip.get("control_kind")
        if not drawn or kind == "pose" or any(word.startswith(self.words) for word in said):
            return clip
        flipped = {name: clip[name][:, :, ::-1] for name in ("video", *map_fields()) if name in clip}
        if kind in ("flow", "strokes"):
            flipped["control"] = mirrored(clip["control"])
        return clip | flipped


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Shuffled batches of a source, as dicts of numpy arrays with this process's rows of the global batch.

    A batch has `video` uint8 [B, T, H, W, 3] and `caption` str [B]; `tokens` int32 [B, L] if `tokenize` is given, and
    `frame_tokens` int32 [B, T, L] where clips have `frame_captions`, one for each frame; and stacked whatever else the
    clips have (`label` int32 [B], `fps` float32 [B], embeddings ...). With `images_per_clip` = n also `images` uint8
    [B, n, H, W, 3], `image_captions` str [B, n] and `image_tokens` int32 [B, n, L], or where clips bring `embeddings`
    [B, L, C] with `text_mask` the same of the stills, `image_embeddings` [B, n, L, C] with `image_text_mask`: stills
    that are trained on together with the clips (joint training: Ho et al. 2022, arXiv 2204.03458, section 3.1). With
    `frame_rates` clips have `frames` frames, at a rate drawn for each, and `frame_rate` float32 [B] next to them.

    Raises:
      UserError: sizes that do not fit together, an image source of another size, `random_starts` or `frame_rates` where
        the source cannot.
    """

    source: RandomAccessSource
    _: dataclasses.KW_ONLY
    batch_size: Count  # clips of the global batch
    seed: Seed  # of the order and of all augmentation
    tokenize: Callable[[str], Int[np.ndarray, " L"]] | None = None  # caption to ids
    augment: Callable[[Clip, np.random.Generator], Clip] | None = None  # such as FlipAugmentation
    random_starts: bool = False  # clips begin at random, where the source can do that
    frame_rates: FrameRates | None = None  # at which clips are read, where the source can do that; None: its own
    frames: Size = 1  # of a clip with a drawn rate
    images_per_clip: SizeOrZero = 0  # independent stills per clip
    images_source: RandomAccessSource | None = None  # of the stills; None: random frames of other clips
    rows: tuple[CountOrZero, ...] | None = None  # of the global batch that this process reads, ascending; None: all
    workers: Workers = 0  # processes that read; 0: threads of this one
    threads: Count = 4  # that read, in each process
    prefetch: Count = 2  # batches read ahead, in each process

    def __post_init__(self):
        check_fields(self)
        clips = len(self.source)
        if self.batch_size > clips:
            raise UserError(f"batch_size={self.batch_size} is larger than the data set; permitted: 1 to {clips}")
        if list(self._rows) != sorted({row for row in self._rows if 0 <= row < self.batch_size}) or not self._rows:
            raise UserError(f"rows={self.rows}; permitted: one or more of 0 to {self.batch_size - 1}, ascending")
        if self.random_starts and not hasattr(self.source, "clip"):
            raise UserError(f"random_starts=True with {type(self.source).__name__}; permitted: a source with "
                            "clip(i, rng)")
        if self.frame_rates is not None and not hasattr(self.source, "clip_at"):
            raise UserError(f"frame_rates with {type(self.source).__name__}, whose clips have a fixed rate; permitted: "
                            "a source that reads at any rate (a folder of videos, prepared clips or a TFDS set that "
                            "say theirs, captioned digits)")
        self._check_images()

    def _check_images(self) -> None:
        if not self.images_per_clip:
            return
        if self.images_source is None:
            if len(self.source) < 2:
                raise UserError("images_per_clip needs other clips to take frames from, and there is one clip; "
                                "permitted: more clips, or an images_source")
            return
        clip, image = self.source[0], self.images_source[0]
        (_, height, width, _), (_, *size, _) = clip["video"].shape, image["video"].shape
        if size != [height, width]:
            raise UserError(f"images_source has pictures of {size[0]}x{size[1]}; permitted: {height}x{width} like the "
                            "clips")
        shapes = [np.shape(item.get("embeddings")) for item in (clip, image)]
        if shapes[0] != shapes[1]:
            raise UserError(f"images_source has embeddings {list(shapes[1])}; permitted: {list(shapes[0])} like the "
                            "clips (WithEmbeddings around both, with the same length)")

    @functools.cached_property
    def _rows(self) -> tuple[int, ...]:
        return tuple(range(self.batch_size)) if self.rows is None else self.rows

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a step, from 0 on."""
        first = _checked_step(step) * self.batch_size
        return _collate([self._example(first + row) for row in self._rows])

    def iterate(self, start_step: int = 0) -> "BatchIterator":
        """The batches from `start_step` on, without end, read ahead. Close it, or use it in a `with` statement."""
        import grain

        examples, rows = self._examples(_checked_step(start_step)), len(self._rows)
        if not self.workers:
            # Threads share the work of one batch, which is there sooner than if each made one of its own.
            ahead = max(self.prefetch * rows, self.threads)
            options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=ahead)
            batches = examples.to_iter_dataset(options).batch(rows, batch_fn=_collate)
        else:
            from absl import flags

            if not flags.FLAGS.is_parsed():  # grain's processes read absl flags, which this program does not use
                flags.FLAGS.mark_as_parsed()
            ahead = max(self.prefetch, self.threads)  # a thread makes a whole batch here
            options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=ahead)
            batches = examples.batch(rows, batch_fn=_collate).to_iter_dataset(options)
            processes = grain.MultiprocessingOptions(num_workers=self.workers, per_worker_buffer_size=self.prefetch)
            batches = batches.mp_prefetch(processes)
        return BatchIterator(iter(batches))

    # --- one example ------------------------------------------------------------------------------------------------

    def _examples(self, start_step: int):
        """Endless grain data set of this process's rows, from `start_step` on."""
        import grain

        rows = self._rows

        def example(number: int, place: int) -> Clip:
            step = start_step + number // len(rows)
            return self._example(step * self.batch_size + rows[place])

        return grain.MapDataset.range(len(rows)).repeat().map_with_index(example)

    def _example(self, position: int) -> Clip:
        """The example at a position of the endless global stream."""
        index = self._order[position]
        if self.frame_rates is not None:
            rate = self.frame_rates.draw(position // self.batch_size, self._rng(position, _RATE))
            clip = self.source.clip_at(index, self._rng(position, _START), rate, self.frames)
            clip = clip | {"frame_rate": clip["fps"]}
        elif self.random_starts:
            clip = self.source.clip(index, self._rng(position, _START))
        else:
            clip = self.source[index]
        if self.augment is not None:
            clip = self.augment(clip, self._rng(position, _AUGMENT))
        if self.tokenize is not None:
            clip = clip | {"tokens": np.asarray(self.tokenize(clip["caption"]), np.int32)}
        if self.tokenize is not None and "frame_captions" in clip:
            clip["frame_tokens"] = np.stack([np.asarray(self.tokenize(c), np.int32) for c in clip["frame_captions"]])
        return clip | self._images(position, index) if self.images_per_clip else clip

    def _images(self, position: int, index: int) -> Clip:
        """The stills that go with clip `index`: frames of other clips, or the next images in their own order."""
        count, rng = self.images_per_clip, self._rng(position, _IMAGES)
        if self.images_source is None:
            drawn = rng.integers(len(self.source) - 1, size=count)
            stills = [random_frame(self.source, int(i + (i >= index)), rng) for i in drawn]
        else:
            places = [self._image_order[position * count + k] for k in range(count)]
            stills = [random_frame(self.images_source, i, rng) for i in places]
        if self.augment is not None:
            stills = [self.augment(still, rng) for still in stills]
        captions = [still["caption"] for still in stills]
        images = {"images": np.concatenate([still["video"] for still in stills]), "image_captions": np.array(captions)}
        if self.tokenize is not None:
            images["image_tokens"] = np.stack([np.asarray(self.tokenize(caption), np.int32) for caption in captions])
        if "embeddings" in stills[0]:
            images["image_embeddings"] = np.stack([still["embeddings"] for still in stills])
            images["image_text_mask"] = np.stack([still["text_mask"] for still in stills])
        return images

    def _rng(self, position: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, position, stream])

    @functools.cached_property
    def _order(self):
        """Position to number of the clip."""
        return _shuffled(len(self.source), self.seed)

    @functools.cached_property
    def _image_order(self):
        """The same for the stills of `images_source`."""
        return _shuffled(len(self.images_source), self.seed + 1)


class BatchIterator:
    """Batches one after the other; holds threads or processes until it is closed."""

    def __init__(self, batches):
        self._batches = batches  # None once closed

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._batches is None:
            raise ValueError("the iterator of batches is closed")
        # Copied, because arrays from worker processes lie in memory that is taken away with the worker.
        return {name: np.array(values) for name, values in next(self._batches).items()}

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads or processes. The iterator gives no more batches. May be called again."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None


def _shuffled(count: int, seed: int):
    """An endless sequence of the numbers below `count`: a new permutation every epoch. Random access."""
    import grain

    return grain.MapDataset.range(count).seed(seed).shuffle().repeat()


def _checked_step(step: int) -> int:
    check_value(step, CountOrZero, "step")
    return int(step)


def _collate(clips: list[Clip]) -> dict[str, np.ndarray]:
    """Stacks what clips hold: numbers as int32 and float32, text as numpy strings."""
    first = clips[0]
    for clip in clips:
        if clip.keys() != first.keys() or clip["video"].shape != first["video"].shape:
            raise UserError(f"clips differ: {_describe(clip)} next to {_describe(first)}; permitted: the same keys and "
                            "shape")
    batch = {name: np.stack([np.asarray(clip[name]) for clip in clips]) for name in first}
    return {name: _narrow(values) for name, values in batch.items()}


def _narrow(values: np.ndarray) -> np.ndarray:
    narrower = {np.dtype(np.int64): np.int32, np.dtype(np.float64): np.float32}
    return values.astype(narrower.get(values.dtype, values.dtype))


def _describe(clip: Clip) -> str:
    return f"{', '.join(clip)} with video {list(clip['video'].shape)}"
