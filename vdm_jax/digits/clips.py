"""The clips of captioned digits: one or two coloured handwritten digits that move as the caption says.

A clip is a pure function of (seed, split, index): nothing is stored, any clip is there at once, and the
same index gives the same clip on every machine. Text-conditional video models can be trained on it without
a download, and `vdm_jax.digits.scorer` can say of any clip whether it shows what its caption asks for.

Three things separate the splits. The handwriting: no scan is in two splits. The random stream. And the test
split alone contains the (digit, motion) pairs of `HELD_OUT_PAIRS`, which ask a model to compose what it saw
apart.
"""

import dataclasses
import itertools
import operator
from collections.abc import Iterator
from typing import Annotated

import numpy as np

from vdm_jax.configuration import SPLITS, Positive, Range, Seed, Share, SizeOrZero, Split, check_value, config
from vdm_jax.digits import drawing as digit_drawing
from vdm_jax.digits.drawing import COLOURS, MOTIONS
from vdm_jax.errors import UserError

# Never in train or validation. Every motion and six of the digits lose one partner; each keeps the others.
HELD_OUT_PAIRS = ((4, "left"), (7, "right"), (2, "up"), (9, "down"), (5, "still"), (0, "bounce"))

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PHRASES = {
    "left": ("moving left", "going to the left", "sliding leftwards"),
    "right": ("moving right", "going to the right", "sliding rightwards"),
    "up": ("moving up", "going upwards", "rising"),
    "down": ("moving down", "going downwards", "falling"),
    "still": ("standing still", "staying in place", "not moving"),
    "bounce": ("bouncing", "bouncing around", "bouncing off the walls"),
}
WORD_SHARE = 0.3  # of the digits, spelled as a word in the caption

_ALL_PAIRS = tuple(itertools.product(range(10), MOTIONS))
_SEEN_PAIRS = tuple(pair for pair in _ALL_PAIRS if pair not in HELD_OUT_PAIRS)
_PAIRS = {"train": _SEEN_PAIRS, "validation": _SEEN_PAIRS, "test": _ALL_PAIRS}
_COLOUR_NAMES = tuple(COLOURS)

Clips = Annotated[int, Range(least=1, cap=10**7)]  # of a split; they are made one by one, some thousands a second


@config
class DigitClips:
    """What the clips look like and how many there are; `captioned_digits.CaptionedDigits` is the data set of them."""

    seed: Seed = 0  # of every split
    frames: Annotated[int, Range(least=2, cap=2**16)] = 16  # frames of a clip
    size: Annotated[int, Range(least=16, cap=2**16)] = 64  # pixels, height and width
    # Side of a digit's square, in frame sides. 32 of 64 pixels as in Moving MNIST; 20 of 64 is too small to be read in
    # frames of 16 or 32 pixels
    digit_side: Annotated[float, Range(least=0.2, most=0.75)] = 0.5
    # Of two digits so many pairs of tracks are drawn, and the pair that covers the first digit least is taken
    track_draws: Annotated[int, Range(least=1, cap=1000)] = 16
    fps: Positive = 8.0  # frames per second that a clip claims; a clip holds the same motion whatever it is
    objects: tuple[SizeOrZero, SizeOrZero] = (1, 2)  # fewest and most digits in a clip
    single_object_fraction: Share = 0.5  # of the clips, where `objects` permits both one and two
    train_clips: Clips = 20_000
    validation_clips: Clips = 500
    test_clips: Clips = 1_000

    def __post_init__(self):
        if tuple(self.objects) not in ((1, 1), (1, 2), (2, 2)):
            raise UserError(
                f"CaptionedDigits.objects={self.objects!r} is not permitted; "
                "permitted: (1, 1), (1, 2), (2, 2)"
            )

    def clips(self, split: str) -> int:
        """How many clips `split` has. Raises `UserError` for an unknown split."""
        check_value(split, Split, "split")
        return getattr(self, f"{split}_clips")


@dataclasses.dataclass(frozen=True)
class DigitObject:
    """What a caption says of one digit."""

    digit: int  # 0 to 9
    colour: str  # a key of COLOURS
    motion: str  # one of MOTIONS

    @property
    def held_out(self) -> bool:
        """Whether this (digit, motion) pair never occurs in the training split."""
        return (self.digit, self.motion) in HELD_OUT_PAIRS


@dataclasses.dataclass(frozen=True)
class DigitClip:
    """One clip with all that is known about it."""

    video: np.ndarray  # uint8 [T, H, W, 3]
    caption: str
    objects: tuple[DigitObject, ...]  # in the order of the caption; later ones are drawn over earlier ones
    stamps: tuple[np.ndarray, ...]  # of each, the opacity of its handwriting in its square [side, side]
    tracks: tuple[np.ndarray, ...]  # of each, the top left corner (y, x) of that square in each frame [T, 2], pixels


def generate_clip(spec: DigitClips, split: str, index: int) -> DigitClip:
    """Clip `index` of `split`: a pure function of its arguments, for any `index` from 0 on."""
    rng, objects, caption = _plan(spec, split, index)
    side = digit_drawing.stamp_side(spec.size, spec.digit_side)
    of_class = digit_drawing.digit_stamps(split, side)

    def draw_track(item):
        return digit_drawing.draw_track(rng, item.motion, spec.frames, spec.size, spec.digit_side)

    stamps, tracks = [], []
    for item in objects:
        stamps.append(of_class[item.digit][rng.integers(len(of_class[item.digit]))])
        tracks.append(draw_track(item))
    if len(objects) == 2:
        others = ([draw_track(item) for item in objects] for _ in range(spec.track_draws - 1))
        tracks = min([tracks, *others], key=lambda pair: digit_drawing.covered(*pair, side))
    video = np.zeros((spec.frames, spec.size, spec.size, 3), np.uint8)
    for item, stamp, track in zip(objects, stamps, tracks, strict=True):
        digit_drawing.paint(video, stamp, track, COLOURS[item.colour])
    return DigitClip(video, caption, objects, tuple(stamps), tuple(tracks))


def _plan(spec, split, index):
    """What the clip is to show: the generator to go on drawing from, its objects and its caption."""
    check_value(split, Split, "split")
    rng = np.random.default_rng([spec.seed, SPLITS.index(split), operator.index(index)])
    fewest, most = spec.objects
    count = fewest if fewest == most or rng.random() < spec.single_object_fraction else most
    pairs = _PAIRS[split]
    chosen = [pairs[k] for k in rng.integers(len(pairs), size=count)]
    colours = rng.choice(len(COLOURS), size=count, replace=False)
    objects = tuple(
        DigitObject(digit, _COLOUR_NAMES[colour], motion)
        for (digit, motion), colour in zip(chosen, colours, strict=True)
    )
    return rng, objects, " and ".join(describe(item, rng) for item in objects)


def describe(item: DigitObject, rng: np.random.Generator) -> str:
    """A caption of one digit, in words that are drawn."""
    phrase = PHRASES[item.motion][rng.integers(len(PHRASES[item.motion]))]
    digit = DIGIT_WORDS[item.digit] if rng.random() < WORD_SHARE else str(item.digit)
    return f"{_article(item.colour)} {item.colour} {digit} {phrase}"


def _article(colour: str) -> str:
    return "an" if colour == "orange" else "a"


def caption_words() -> tuple[str, ...]:
    """Every word a caption can contain, sorted."""
    phrases = " ".join(itertools.chain(*PHRASES.values()))
    return tuple(sorted({"a", "an", "and", *map(str, range(10)), *DIGIT_WORDS, *COLOURS, *phrases.split()}))


def parse_caption(caption: str) -> tuple[DigitObject, ...]:
    """The objects that a caption of this data set asks for, in its order.

    Raises:
      UserError: where the caption is outside the grammar, saying what was expected there.
    """
    objects = tuple(_parse_object(part, caption) for part in caption.strip().lower().split(" and "))
    if len(objects) > 2:
        raise UserError(f"caption {caption!r} names {len(objects)} digits; permitted: 1 or 2")
    if len({item.colour for item in objects}) < len(objects):
        raise UserError(f"caption {caption!r} names two digits of one colour; permitted: different colours")
    return objects


def _parse_object(text: str, caption: str) -> DigitObject:
    article, colour, digit, phrase = (text.split(maxsplit=3) + [""] * 4)[:4]

    def expect(found, permitted):
        if found not in permitted:
            raise UserError(f"caption {caption!r} has {found!r}; expected one of: {', '.join(permitted)}")

    expect(article, ("a", "an"))
    expect(colour, _COLOUR_NAMES)
    expect(article, (_article(colour),))
    digits = (*map(str, range(10)), *DIGIT_WORDS)
    expect(digit, digits)
    motions = {words: motion for motion, phrases in PHRASES.items() for words in phrases}
    expect(phrase, tuple(motions))
    return DigitObject(digits.index(digit) % 10, colour, motions[phrase])


class CaptionedDigitsSource:
    """Random access to one split, drawn on demand. Picklable, and as cheap to make as its spec.

    `source[i]` is a dict of `video` uint8 [T, H, W, 3], `caption` and `fps`; `source.objects(i)` says what
    it shows.
    """

    def __init__(self, spec: DigitClips, split: str):
        self.spec, self.split = spec, split
        self._length = spec.clips(split)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict:
        clip = generate_clip(self.spec, self.split, _within(index, len(self)))
        return {"video": clip.video, "caption": clip.caption, "fps": float(self.spec.fps)}

    def objects(self, index: int) -> tuple[DigitObject, ...]:
        """What clip `index` shows, without drawing it."""
        return _plan(self.spec, self.split, _within(index, len(self)))[1]

    def captions(self) -> Iterator[str]:
        """The caption of every clip, without drawing it."""
        yield from prompts(self.spec, self.split, len(self))


def prompts(
    spec: DigitClips, split: str, count: int, objects: int | None = None, held_out: bool | None = None
) -> tuple[str, ...]:
    """The captions of the first `count` clips of `split` that are as asked: what to sample when evaluating.

    The clips are counted from index 0 and may go beyond the split's length.

    Args:
      objects: only captions that name this many digits.
      held_out: only captions with (True) or without (False) a pair that training never showed.

    Raises:
      UserError: if no clip of this split can be as asked.
    """
    check_value(split, Split, "split")
    fewest, most = spec.objects
    if objects is not None and not (fewest <= objects <= most and _share(spec, objects) > 0):
        raise UserError(
            f"prompts(objects={objects}): no clip has so many digits with objects={spec.objects}, "
            f"single_object_fraction={spec.single_object_fraction}"
        )
    if held_out and split != "test":
        raise UserError(f"prompts(held_out=True): split {split!r} has no held-out pairs; permitted: 'test'")
    plans = (_plan(spec, split, index)[1:] for index in itertools.count())
    fitting = (
        caption
        for shown, caption in plans
        if objects in (None, len(shown)) and held_out in (None, any(item.held_out for item in shown))
    )
    return tuple(itertools.islice(fitting, count))


def _share(spec: DigitClips, objects: int) -> float:
    if spec.objects[0] == spec.objects[1]:
        return 1.0
    return spec.single_object_fraction if objects == 1 else 1 - spec.single_object_fraction


def _within(index: int, length: int) -> int:
    index = operator.index(index)
    if not 0 <= index < length:
        raise IndexError(f"clip {index} of {length}")
    return index
