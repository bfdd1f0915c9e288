import dataclasses

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.data.pipeline import FlipAugmentation, Pipeline
from vdm_jax.errors import UserError


class Clips:
    """Clip i is all i; with `starts`, `clip` adds a random draw in the second channel."""

    def __init__(self, count=10, frames=2, size=4):
        self.count, self.frames, self.size = count, frames, size

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        video = np.full((self.frames, self.size, self.size, 3), index, np.uint8)
        video[..., 2] = np.arange(self.size)  # so that a flip shows
        return {"video": video, "caption": f"clip {index}", "label": int(index), "fps": 8.0}


class Movable(Clips):
    def clip(self, index, rng):
        clip = self[index]
        clip["video"][..., 1] = rng.integers(256)
        return clip


def tokenize(caption):
    return np.array([ord(c) for c in caption.ljust(8)[:8]])


def make(source=None, **options):
    return Pipeline(source or Clips(), **{"batch_size": 4, "seed": 3, **options})


def equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        assert a[name].dtype == b[name].dtype
    return True


def test_a_batch_holds_what_its_clips_hold():
    batch = make(tokenize=tokenize).batch(0)
    assert batch["video"].shape == (4, 2, 4, 4, 3) and batch["video"].dtype == np.uint8
    assert batch["tokens"].shape == (4, 8) and batch["tokens"].dtype == np.int32
    assert batch["label"].dtype == np.int32 and batch["fps"].dtype == np.float32
    for row, label in enumerate(batch["label"]):
        assert batch["video"][row, 0, 0, 0, 0] == label and batch["caption"][row] == f"clip {label}"
        np.testing.assert_array_equal(batch["tokens"][row], tokenize(f"clip {label}"))


def test_every_epoch_is_a_new_order_of_all_clips():
    pipeline = make(batch_size=5)
    epochs = [np.concatenate([pipeline.batch(2 * e + k)["label"] for k in range(2)]) for e in range(4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    # Batches that do not divide the set run on from one epoch into the next.
    stream = np.concatenate([make(batch_size=4).batch(k)["label"] for k in range(5)])
    np.testing.assert_array_equal(stream, np.concatenate(epochs[:2]))
    assert not np.array_equal(make(seed=4).batch(0)["label"], make().batch(0)["label"])


def full_options():
    return {"source": Movable(), "tokenize": tokenize, "augment": FlipAugmentation(), "random_starts": True,
            "images_per_clip": 2}


def test_iterating_gives_the_batches_and_resumes_anywhere():
    pipeline = make(**full_options())
    expected = [pipeline.batch(step) for step in range(7)]
    for start in (0, 4):
        with pipeline.iterate(start) as batches:
            for step in range(start, 7):
                assert equal(next(batches), expected[step])
    with make(**full_options(), threads=1, prefetch=1).iterate(5) as batches:
        assert equal(next(batches), expected[5])


def test_worker_processes_change_nothing():
    pipeline = make(**full_options())
    expected = [pipeline.batch(step) for step in range(5, 10)]
    with dataclasses.replace(pipeline, workers=2).iterate(5) as batches:
        for batch in expected:
            assert equal(next(batches), batch)


def test_a_process_may_read_any_rows():
    """Devices of a host need not hold rows that follow each other, and hosts may hold the same rows."""
    whole, part = make(**full_options()).batch(6), make(**full_options(), rows=(0, 3))
    assert equal(part.batch(6), {name: values[[0, 3]] for name, values in whole.items()})
    with part.iterate(5) as batches:
        next(batches)
        assert equal(next(batches), part.batch(6))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_have_the_batch_of_one(processes):
    whole = make(**full_options())
    count = 4 // processes
    parts = [make(**full_options(), rows=tuple(range(i * count, (i + 1) * count))) for i in range(processes)]
    for step in (0, 6):
        shares = [part.batch(step) for part in parts]
        assert all(len(share["video"]) == count for share in shares)
        joined = {name: np.concatenate([share[name] for share in shares]) for name in shares[0]}
        assert equal(joined, whole.batch(step))
    with parts[1].iterate(6) as batches:
        assert equal(next(batches), shares[1])


def test_random_draws_belong_to_the_position():
    pipeline = make(source=Movable(), random_starts=True)
    draws = np.concatenate([pipeline.batch(step)["video"][:, 0, 0, 0, 1] for step in range(10)])
    assert len(set(draws.tolist())) > 25  # 40 draws of 256
    wider = make(source=Movable(), random_starts=True, batch_size=8)
    np.testing.assert_array_equal(wider.batch(2)["video"], np.concatenate([pipeline.batch(k)["video"] for k in (4, 5)]))


def test_images_are_frames_of_other_clips():
    pipeline = make(images_per_clip=3, tokenize=tokenize)
    seen = set()
    for step in range(20):
        batch = pipeline.batch(step)
        assert batch["images"].shape == (4, 3, 4, 4, 3) and batch["images"].dtype == np.uint8
        assert batch["image_tokens"].shape == (4, 3, 8) and batch["image_tokens"].dtype == np.int32
        for row in range(4):
            for k in range(3):
                number = batch["images"][row, k, 0, 0, 0]
                assert number != batch["label"][row] and batch["image_captions"][row, k] == f"clip {number}"
                np.testing.assert_array_equal(batch["image_tokens"][row, k], tokenize(f"clip {number}"))
                seen.add(int(number))
    assert seen == set(range(10))


def test_images_of_their_own_source_come_in_their_own_order():
    pipeline = make(images_per_clip=2, images_source=Clips(count=16, frames=1))
    stills = np.concatenate([pipeline.batch(k)["images"][..., 0, 0, 0].ravel() for k in range(4)]).tolist()
    assert sorted(stills[:16]) == sorted(stills[16:]) == list(range(16)) and stills[:16] != stills[16:]


def test_image_sets_alone_are_batched_too():
    with make(source=Clips(frames=1)).iterate() as batches:
        assert next(batches)["video"].shape == (4, 1, 4, 4, 3)


def test_other_arrays_are_stacked():
    class Embedded(Clips):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"embeddings": np.full((5, 2), index, np.float32)}

    batch = make(source=Embedded()).batch(0)
    np.testing.assert_array_equal(batch["embeddings"][:, 0, 0], batch["label"])
    assert batch["embeddings"].shape == (4, 5, 2)


@pytest.mark.parametrize(
    ("caption", "flips"),
    [("a red seven", True), ("moving left", False), ("turning Clockwise.", False), ("bright light", True),
     ("sliding rightwards", False), ("", True), ("a copyright", True)],
)
def test_flips_only_where_the_caption_stays_true(caption, flips):
    clip = {"video": np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3), "caption": caption}
    flipped = FlipAugmentation(probability=1.0)(clip, np.random.default_rng(0))["video"]
    expected = clip["video"][:, :, ::-1] if flips else clip["video"]
    np.testing.assert_array_equal(flipped, expected)


def test_flips_happen_as_often_as_asked():
    pipeline = make(augment=FlipAugmentation(probability=0.25), batch_size=10)
    flipped = np.concatenate([pipeline.batch(k)["video"][:, 0, 0, 0, 2] == 3 for k in range(40)])
    assert 0.17 < flipped.mean() < 0.33
    with refused("FlipAugmentation.probability", "=1.5", ">= 0", "<= 1"):
        FlipAugmentation(probability=1.5)


def test_closing():
    batches = make().iterate()
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


class Failing(Clips):
    def __getitem__(self, index):
        if index == 3:
            raise UserError("clip 3 is bad")
        return super().__getitem__(index)


class Uneven(Clips):
    def __getitem__(self, index):
        clip = super().__getitem__(index)
        return clip if index else clip | {"video": clip["video"][:1]}


@pytest.mark.parametrize(("source", "message"), [(Failing(), ("test_pipeline.Failing.__getitem__", "3")), (Uneven(),
("pipeline._collate",))])
@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_the_source_arrive(source, message, workers):
    with refused(*message), make(source=source, workers=workers).iterate() as batches:
        for _ in range(3):
            next(batches)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 11}, ("batch_size", "=11", "10")),
        ({"batch_size": 0}, ("Pipeline.batch_size", "=0")),
        ({"rows": (2, 4)}, ("rows", "=(2, 4)")),
        ({"rows": (2, 1)}, ("rows", "=(2, 1)")),
        ({"rows": ()}, ("rows", "=()")),
        ({"random_starts": True}, ("random_starts", "=True")),
        ({"images_per_clip": 1, "source": Clips(1), "batch_size": 1},
         ("pipeline.Pipeline._check_images", "images_per_clip")),
        ({"images_per_clip": 1, "images_source": Clips(size=8)}, ("pipeline.Pipeline._check_images", "8x8", "4x4")),
    ],
)
def test_options_that_do_not_fit(options, message):
    with refused(*message):
        make(**options)


def test_steps_are_not_negative():
    with refused("step", "=-1"):
        make().batch(-1)
    with refused("step", "=-2"):
        make().iterate(-2)
