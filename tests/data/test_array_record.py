import json
import pickle

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.data.array_record import PreparedClips, PreparedClipsSource, prepare_clips
from vdm_jax.errors import UserError


class Clips:
    """Smooth clips with odd sizes."""

    skipped = {"lost.mp4": "was unreadable"}

    def __init__(self, count=7, label=True):
        self.count, self.label = count, label

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        y, x = np.mgrid[:23, :31]
        frames = [np.stack([127 + 100 * np.sin(x / 8 + t / 3 + index), 127 + 100 * np.cos(y / 8), 0 * x + 20 * t], -1)
                  for t in range(4)]
        clip = {"video": np.stack(frames).astype(np.uint8), "caption": f"clip № {index}", "fps": 12.5}
        return clip | ({"label": np.int64(index)} if self.label else {})


@pytest.mark.parametrize(("format", "worst"), [("raw", 0), ("jpeg", 20), ("mp4", 20)])
def test_what_is_read_is_what_was_written(tmp_path, format, worst):
    seen = []
    folder = prepare_clips(Clips(), tmp_path / "set", "validation", format, lambda *counts: seen.append(counts))
    assert folder == tmp_path / "set" / "validation" and seen == [(n, 7) for n in range(1, 8)]
    source = PreparedClipsSource(PreparedClips(path=str(tmp_path / "set")), "validation")
    assert len(source) == 7
    for copy in (source, pickle.loads(pickle.dumps(source))):
        for index in (6, 0, 3):
            clip, original = copy[index], Clips()[index]
            assert clip["video"].shape == original["video"].shape and clip["video"].dtype == np.uint8
            assert np.abs(clip["video"].astype(int) - original["video"]).max() <= worst
            assert clip.keys() == original.keys()
            assert all(clip[name] == original[name] for name in ("caption", "fps", "label"))
    assert list(source.captions()) == [f"clip № {n}" for n in range(7)]
    expected = {"clips": 7, "frames": 4, "height": 23, "width": 31, "fps": 12.5, "format": format,
                "skipped": {"lost.mp4": "was unreadable"}}
    assert expected.items() <= source.metadata.items()
    clip["video"][:] = 0  # the caller's own copy
    with pytest.raises(IndexError):
        source[7]


def test_formats_differ_in_size(tmp_path):
    sizes = {f: (prepare_clips(Clips(100), tmp_path / f, format=f) / "clips.array_record").stat().st_size
             for f in ("raw", "mp4")}
    assert sizes["mp4"] < sizes["raw"]


class Stops(Clips):
    def __getitem__(self, index):
        if index == 4:
            raise KeyboardInterrupt
        return super().__getitem__(index)


def test_an_interrupted_preparation_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        prepare_clips(Stops(), tmp_path / "set")
    assert not list((tmp_path / "set").iterdir())
    (tmp_path / "set" / ".train.partial").mkdir()  # what a killed one leaves is cleared away
    (tmp_path / "set" / ".train.partial" / "clips.array_record").write_bytes(b"half")
    prepare_clips(Clips(), tmp_path / "set")
    assert len(PreparedClipsSource(PreparedClips(path=str(tmp_path / "set")))) == 7
    assert [p.name for p in (tmp_path / "set").iterdir()] == ["train"]


class Uneven(Clips):
    def __getitem__(self, index):
        clip = super().__getitem__(index)
        return clip | {"video": clip["video"][: 4 - index]}


class Embedded(Clips):
    def __getitem__(self, index):
        return super().__getitem__(index) | {"embeddings": np.zeros(3)}


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (Clips(), {"format": "zip"}, ("format", "='zip'")),
        (Clips(0), {}, ("array_record.prepare_clips",)),
        (Uneven(), {}, ("array_record._write", "[3, 23, 31, 3]", "[4, 23, 31, 3]")),
        (Embedded(), {}, ("array_record._encode", "0", "'embeddings'")),
    ],
)
def test_what_cannot_be_prepared(tmp_path, source, options, message):
    with refused(*message):
        prepare_clips(source, tmp_path / "set", **options)
    assert not (tmp_path / "set" / "train").exists()


def test_existing_sets_are_not_overwritten(tmp_path):
    prepare_clips(Clips(2), tmp_path)
    with refused("array_record.prepare_clips"):
        prepare_clips(Clips(3), tmp_path)
    assert len(PreparedClipsSource(PreparedClips(path=str(tmp_path)))) == 2


def open_set(path, split="train"):
    return PreparedClipsSource(PreparedClips(path=str(path)), split)


def test_missing_truncated_and_foreign_sets(tmp_path):
    with refused("array_record.PreparedClipsSource._load", "metadata.json"):
        open_set(tmp_path)
    folder = prepare_clips(Clips(3), tmp_path, format="jpeg")  # which ArrayRecord does not compress
    with refused("array_record.PreparedClipsSource._load"):
        open_set(tmp_path, "test")
    records = folder / "clips.array_record"
    whole = records.read_bytes()
    records.write_bytes(whole[:-10])
    with refused("array_record.PreparedClipsSource.__init__", f"{len(whole) - 10}", f"{len(whole)}"):
        open_set(tmp_path)
    records.unlink()
    with refused("array_record.PreparedClipsSource.__init__", "0"):
        open_set(tmp_path)
    records.write_bytes(b"\x55" * len(whole))
    with refused("record_files.check_record_file", "clips.array_record", "ArrayRecord"):
        open_set(tmp_path)
    place = whole.index(b'{"clip"', whole.index(b'{"clip"') + 1)  # of the second clip
    records.write_bytes(whole[:place] + b"[" + whole[place + 1 :])
    source = open_set(tmp_path)
    np.testing.assert_array_equal(source[1]["video"], source[2]["video"])  # the next one takes its place
    assert list(source.skipped) == [f"{records}, clip 1"] and "unreadable" in source.skipped[f"{records}, clip 1"]
    with refused("folder.SkippedFiles.noting", "clips.array_record", "1"):
        source.exact(1)
    metadata = folder / "metadata.json"
    text = metadata.read_text()
    metadata.write_text(json.dumps(json.loads(text) | {"version": 99}))
    with refused("array_record.PreparedClipsSource.__init__", "99", "1"):
        open_set(tmp_path)
    metadata.write_text(text[:20])
    with refused("array_record.PreparedClipsSource._load", "metadata.json"):
        open_set(tmp_path)


class Damaged(Clips):
    """Clips of which every third does not decode; as a source of files, it would give another in its place."""

    skipped = {"2.mp4": "does not decode"}

    def __getitem__(self, index):
        return super().__getitem__(0 if index % 3 == 2 else index)

    def exact(self, index):
        if index % 3 == 2:
            raise UserError("does not decode")
        return self[index]


def test_clips_that_do_not_decode_are_left_out_and_counted(tmp_path):
    folder = prepare_clips(Damaged(8), tmp_path)
    source = open_set(tmp_path)
    assert len(source) == 6 and source.metadata["skipped_clips"] == 2
    assert source.metadata["skipped"] == {"2.mp4": "does not decode"}
    right = [Clips(8)[i] for i in range(8) if i % 3 != 2]
    for found, wanted in zip(source, right, strict=True):
        np.testing.assert_array_equal(found["video"], wanted["video"])
    assert list(source.captions()) == [clip["caption"] for clip in right]
    again = prepare_clips(Damaged(8), tmp_path / "again", workers=3)  # the same bytes by any number of threads
    assert (again / "clips.array_record").read_bytes() == (folder / "clips.array_record").read_bytes()
