import logging
import pickle
from collections import Counter

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.configuration import from_json, to_json
from vdm_jax.data.folder import files_of_split
from vdm_jax.data.source import RandomAccessSource, random_frame
from vdm_jax.data.video_folder import VideoFolder, VideoFolderSource
from vdm_jax.video.writing import write_png, write_video

ALL_TRAIN = (1.0, 0.0, 0.0)


def numbered_video(frames, base=0, size=32):
    """Frame n is grey of level base + 4 n."""
    levels = (base + 4 * np.arange(frames)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, size, size, 3))


def numbers(clip, base=0):
    return np.round((clip["video"].mean((1, 2, 3)) - base) / 4).astype(int).tolist()


@pytest.fixture(autouse=True)
def cache_elsewhere(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "videos"
    write_video(root / "a.mp4", numbered_video(21), fps=10, lossless=True)
    write_video(root / "deep" / "er" / "b.mp4", numbered_video(11), fps=10, lossless=True)
    write_video(root / "short.gif", numbered_video(3), fps=10)
    (root / "bad.mp4").write_bytes(b"\0" * 3000)
    (root / "notes.txt").write_text("not a video")
    (root / ".hidden.mp4").write_bytes(b"")
    return root


def spec_of(folder, **fields):
    sizes = {"frames": 5, "height": 16, "width": 16}
    return VideoFolder(**{"path": str(folder), "fractions": ALL_TRAIN, **sizes, **fields})


def test_clips_are_consecutive_windows_of_every_readable_file(folder, caplog):
    before = sorted(folder.rglob("*"))
    with caplog.at_level(logging.WARNING):
        source = VideoFolderSource(spec_of(folder))
    assert isinstance(source, RandomAccessSource)
    assert len(source) == 4 + 2
    clips = [source[i] for i in range(len(source))]
    assert [numbers(clip) for clip in clips] == [list(range(s, s + 5)) for s in (0, 5, 10, 15, 0, 5)]
    assert all(c["video"].shape == (5, 16, 16, 3) and c["video"].dtype == np.uint8 for c in clips)
    assert [c["caption"] for c in clips] == [""] * 6 and clips[0]["fps"] == pytest.approx(10)
    assert set(source.skipped) == {"bad.mp4", "short.gif"}
    assert "not a readable video" in source.skipped["bad.mp4"]
    assert "too short for a clip: 3 frames" in source.skipped["short.gif"]
    assert caplog.text.count("bad.mp4") == 1 and caplog.text.count("short.gif") == 1
    assert sorted(folder.rglob("*")) == before  # the user's folder is only read
    with pytest.raises(IndexError):
        source[6]
    assert len(list(source)) == 6


def test_stride_and_rate(folder):
    strided = VideoFolderSource(spec_of(folder, frame_stride=2))
    assert [numbers(clip) for clip in strided] == [[0, 2, 4, 6, 8], [10, 12, 14, 16, 18], [0, 2, 4, 6, 8]]
    assert strided[0]["fps"] == pytest.approx(5)
    rates = [(5.0, [0, 2, 4, 6, 8]), (10.0, [0, 1, 2, 3, 4]), (20.0, [0, 0, 1, 1, 2]), (4.0, [0, 2, 5, 7, 10])]
    for fps, expected in rates:
        source = VideoFolderSource(spec_of(folder, fps=fps))
        assert numbers(source[0]) == expected and source[0]["fps"] == fps
    assert len(VideoFolderSource(spec_of(folder, fps=4.0))) == 1  # 21 frames at 10 fps last 2.1 s


def test_random_starts_reach_everything_and_stay_inside(folder):
    for fields in ({}, {"fps": 10.0}):
        source = VideoFolderSource(spec_of(folder, **fields))
        starts = Counter()
        for trial in range(150):
            clip = source.clip(3, np.random.default_rng(trial))  # the window from frame 15 of 21
            found = numbers(clip)
            assert found == list(range(found[0], found[0] + 5))
            starts[found[0]] += 1
        assert set(starts) == {15, 16}
        first = {numbers(source.clip(0, np.random.default_rng(t)))[0] for t in range(60)}
        assert first == {0, 1, 2, 3, 4}
    again = [source.clip(1, np.random.default_rng(7))["video"] for _ in range(2)]
    np.testing.assert_array_equal(*again)


def test_single_frames(folder):
    source = VideoFolderSource(spec_of(folder))
    seen = set()
    for trial in range(60):
        clip = random_frame(source, 1, np.random.default_rng(trial))
        assert clip["video"].shape == (1, 16, 16, 3)
        seen.update(numbers(clip))
    assert seen == {5, 6, 7, 8, 9}


def test_captions_come_from_the_table(folder, tmp_path, caplog):
    table = tmp_path / "captions.csv"
    table.write_text('file,caption,author\na.mp4,"grey, rising",me\ngone.mp4,nothing,me\n')
    with caplog.at_level(logging.WARNING):
        source = VideoFolderSource(spec_of(folder, captions=str(table)))
    assert source[0]["caption"] == "grey, rising" and source[4]["caption"] == ""
    assert list(source.captions()) == ["grey, rising"] * 4 + [""] * 2
    assert "1 rows name no file of the folder (the first is gone.mp4)" in caplog.text
    assert "3 files have no caption (the first is bad.mp4)" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, ("VideoFolder.captions", "='", "captions.csv")),
        ("name,caption\na.mp4,x\n", ("VideoFolder.captions",)),
        ("", ("VideoFolder.captions",)),
        ("file,caption\na.mp4,x\na.mp4,y\n", ("VideoFolder.captions", "'a.mp4'")),
        ("file,caption\na.mp4\n", ("VideoFolder.captions",)),
    ],
)
def test_caption_table_errors(folder, tmp_path, text, message):
    table = tmp_path / "captions.csv"
    if text is not None:
        table.write_text(text)
    with refused(*message):
        VideoFolderSource(spec_of(folder, captions=str(table)))


def test_damage_found_while_reading_gives_the_next_file_and_one_warning(folder, caplog):
    source = VideoFolderSource(spec_of(folder))
    (folder / "a.mp4").write_bytes(b"gone")
    with caplog.at_level(logging.WARNING):
        clips = [source[i] for i in (0, 2, 0)]
    for clip in clips:
        np.testing.assert_array_equal(clip["video"], source[4]["video"])
    assert list(source.skipped) == ["bad.mp4", "short.gif", "a.mp4"]
    assert caplog.text.count("skipped a.mp4") == 1
    (folder / "deep" / "er" / "b.mp4").unlink()
    with refused("folder.SkippedFiles.first_readable", "2"):
        source[0]


@pytest.mark.parametrize("empty", [True, False])
def test_missing_and_empty_folders(tmp_path, empty):
    folder = tmp_path / "videos"
    if empty:
        (folder / "below").mkdir(parents=True)
        (folder / "below" / "x.txt").write_text("")
    with refused("VideoFolder.path", f"='{folder}'") as error:
        VideoFolderSource(spec_of(folder))
    assert (".mp4" in str(error.value)) == empty  # suffixes are of no use where there is no such folder


def test_nothing_readable_names_a_file_and_its_reason(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"\0" * 100)
    with refused("VideoFolder.path", "'train'", "a.mp4"):
        VideoFolderSource(spec_of(tmp_path))


def test_splits_share_no_file_and_stay_as_files_are_added():
    names = [f"clip{n}.mp4" for n in range(400)]
    fractions = (0.8, 0.15, 0.05)
    splits = {s: files_of_split("X", names, s, fractions) for s in ("train", "validation", "test")}
    assert sorted(sum(splits.values(), [])) == sorted(names)
    for split, fraction in zip(splits, fractions, strict=True):
        assert abs(len(splits[split]) / 400 - fraction) < 0.06
        more = files_of_split("X", names + [f"new{n}.mp4" for n in range(100)], split, fractions)
        assert [name for name in more if name.startswith("clip")] == splits[split]


def test_small_folders_still_have_every_split():
    names = ["a", "b", "c"]
    splits = [files_of_split("X", names, s, (0.98, 0.01, 0.01)) for s in ("train", "validation", "test")]
    assert sorted(sum(splits, [])) == names and all(len(s) == 1 for s in splits)
    assert all(files_of_split("X", [name], "train", (0.5, 0.3, 0.2)) == [name] for name in "abcdef")
    with refused("folder.files_of_split", "'validation'", "3"):
        files_of_split("X", names, "validation", ALL_TRAIN)
    with refused("split", "='dev'"):
        files_of_split("X", names, "dev", ALL_TRAIN)


def test_source_is_picklable(folder):
    source = VideoFolderSource(spec_of(folder))
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[5]["video"], source[5]["video"])
    assert again.skipped == source.skipped


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frames": 0}, ("VideoFolder.frames", "=0")),
        ({"height": 2.5}, ("VideoFolder.height", "=2.5")),
        ({"clips": "two"}, ("VideoFolder.clips", "='two'", "'consecutive'", "'one'")),
        ({"fps": -1.0}, ("VideoFolder.fps", "=-1.0", "> 0")),
        ({"fps": 8.0, "frame_stride": 2}, ("VideoFolder.frame_stride", "=2", "fps=8.0")),
        ({"fractions": (0.5, 0.1, 0.1)}, ("VideoFolder.fractions",)),
    ],
)
def test_config_errors(fields, message):
    with refused(*message):
        VideoFolder(**{"path": "x", **fields})


def test_config_goes_through_json():
    spec = VideoFolder(path="x", captions="y.csv", fps=8.0)
    assert from_json(VideoFolder, to_json(spec)) == spec


def test_short_files_are_padded_with_their_last_frame_and_say_so(folder):
    source = VideoFolderSource(spec_of(folder, short="pad"))
    assert len(source) == 4 + 2 + 1 and set(source.skipped) == {"bad.mp4"}
    clips = [source[i] for i in range(len(source))]
    assert all(clip["frame_valid"].all() for clip in clips[:6])
    np.testing.assert_array_equal(clips[6]["frame_valid"], [True] * 3 + [False] * 2)
    assert numbers(clips[6]) == [0, 1, 2, 2, 2]
    at_rate = VideoFolderSource(spec_of(folder, short="pad", fps=5.0))
    short = next(at_rate[i] for i in range(len(at_rate)) if not at_rate[i]["frame_valid"].all())
    assert short["frame_valid"].sum() < 5 and len(set(numbers(short)[short["frame_valid"].sum() - 1 :])) == 1
    drawn = {numbers(source.frame(6, np.random.default_rng(seed)))[0] for seed in range(20)}
    assert drawn == {0, 1, 2}
    assert "frame_valid" not in VideoFolderSource(spec_of(folder))[0]


def test_reference_pictures_go_by_the_name_of_the_video(folder, tmp_path):
    pictures = tmp_path / "pictures"
    (pictures / "deep" / "er").mkdir(parents=True)
    write_png(pictures / "a.png", np.full((40, 40, 3), 200, np.uint8))
    write_png(pictures / "deep" / "er" / "b.png", np.full((20, 30, 3), 100, np.uint8))
    source = VideoFolderSource(spec_of(folder, references=str(pictures), short="pad"))
    assert source.skipped["short.gif"].startswith("no picture short.* in")
    assert [int(source[i]["reference_picture"].mean()) for i in range(len(source))] == [200] * 4 + [100] * 2
    assert source[0]["reference_picture"].shape == (1, 16, 16, 3)
    with refused("VideoFolder.references"):
        VideoFolderSource(spec_of(folder, references=str(folder)))
