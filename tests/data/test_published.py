"""Miniature copies of the published sets, laid out as their authors distribute them."""

import gzip
import logging
import pickle

import av
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.configuration import from_json, to_json
from vdm_jax.data.checksum import masked_crc32c
from vdm_jax.data.moving_mnist import moving_digits, read_idx
from vdm_jax.data.opening import open_source
from vdm_jax.data.pipeline import Pipeline
from vdm_jax.data.published import UCF101, BAIRRobotPushing, Kinetics600, MovingMNIST
from vdm_jax.data.tfds_video import _import_tfds
from vdm_jax.data.tfrecord import record_places
from vdm_jax.video.writing import write_png, write_video

SMALL = {"frames": 4, "height": 8, "width": 8}


@pytest.fixture(autouse=True)
def cache_elsewhere(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def grey(levels, size=16):
    """A video whose frame n is grey of level `levels[n]`."""
    return np.broadcast_to(np.array(levels, np.uint8)[:, None, None, None], (len(levels), size, size, 3))


def levels(clip):
    return np.round(clip["video"].mean((1, 2, 3)) / 10).astype(int).tolist()


def same_twice(source):
    """The source, after checking that a worker's copy of it gives the same clips, and that they can be batched."""
    copy = pickle.loads(pickle.dumps(source))
    for index in range(len(source)):
        np.testing.assert_array_equal(source[index]["video"], copy[index]["video"])
    moved = [s.clip(0, np.random.default_rng(5))["video"] for s in (source, copy)]
    np.testing.assert_array_equal(*moved)
    batches = [Pipeline(s, batch_size=1, seed=0, random_starts=True, images_per_clip=int(len(s) > 1)).batch(3)
               for s in (source, copy)]
    np.testing.assert_array_equal(batches[0]["video"], batches[1]["video"])
    assert source.frame(0, np.random.default_rng(1))["video"].shape == (1, *source[0]["video"].shape[1:])
    return source


# --- UCF101 ---------------------------------------------------------------------------------------------------------


def write_avi(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "bgr0"
        for number, frame in enumerate(grey([level + 10 * n for n in range(6)])):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts = number
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


@pytest.fixture
def ucf(tmp_path):
    root = tmp_path / "ucf"
    listed = {}
    for label, name in enumerate(("ApplyEyeMakeup", "HandstandPushups"), 1):
        for group in (1, 2, 3):
            file = f"v_{name}_g0{group}_c01.avi"
            listed[label, group] = f"{name}/{file}"
            write_avi(root / "UCF-101" / name / file, 30 * group)
    lists = root / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 ApplyEyeMakeup\r\n2 HandstandPushups\r\n")
    for division in (1, 2):
        test = [name for (_, group), name in listed.items() if group == division]
        train = [f"{name} {label}" for (label, group), name in listed.items() if group != division]
        # The published lists differ from the files by a capital.
        (lists / f"testlist0{division}.txt").write_text("\r\n".join(test).replace("v_Handstand", "v_HandStand"))
        (lists / f"trainlist0{division}.txt").write_text("\r\n".join(train))
    return root


def test_ucf101_has_the_official_divisions(ucf):
    spec = UCF101(path=str(ucf), **SMALL)
    train, test = (same_twice(open_source(spec, split)) for split in ("train", "test"))
    assert [levels(clip) for clip in test] == [[3, 4, 5, 6]] * 2
    assert [(clip["caption"], clip["label"], clip["fps"]) for clip in test] == [
        ("apply eye makeup", 0, 25.0), ("handstand pushups", 1, 25.0)]
    assert sorted(levels(clip)[0] for clip in train) == [6, 6, 9, 9]
    assert list(train.captions()) == ["apply eye makeup"] * 2 + ["handstand pushups"] * 2
    assert [levels(clip) for clip in open_source(spec, "validation")] == [levels(clip) for clip in test]
    second = open_source(UCF101(path=str(ucf), division=2, **SMALL), "test")
    assert [levels(clip)[0] for clip in second] == [6, 6]
    everything = open_source(UCF101(path=str(ucf), splits=("train+test", "test", "test"), **SMALL), "train")
    assert len(everything) == 6
    starts = {levels(test.clip(0, np.random.default_rng(seed)))[0] for seed in range(20)}
    assert starts == {3, 4, 5}  # six frames have three clips of four
    shown = {levels(test.frame(0, np.random.default_rng(seed)))[0] for seed in range(40)}
    assert shown == {3, 4, 5, 6, 7, 8}


def test_ucf101_that_is_not_there_says_what_to_fetch(ucf, tmp_path):
    spec = UCF101(path=str(ucf), **SMALL)
    with refused("UCF101.path") as error:
        open_source(UCF101(path=f"{tmp_path}/none"), "train")
    text = str(error.value)
    assert f"UCF101.path='{tmp_path}/none': " in text and "https://www.crcv.ucf.edu/data/UCF101.php" in text
    assert f"{tmp_path}/none/UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi" in text and "\n" not in text
    with refused("UCF101.path", "trainlist03.txt"):
        open_source(UCF101(path=str(ucf), division=3), "train")
    (ucf / "UCF-101" / "ApplyEyeMakeup" / "v_ApplyEyeMakeup_g01_c01.avi").unlink()
    with refused("UCF101.path", "v_ApplyEyeMakeup_g01_c01.avi"):
        open_source(spec, "test")
    (ucf / "ucfTrainTestlist" / "testlist01.txt").write_text("Juggling/v_Juggling_g01_c01.avi")
    with refused("published_files.ucf101_files", "testlist01.txt", "classInd.txt"):
        open_source(spec, "test")


# --- BAIR -----------------------------------------------------------------------------------------------------------


def chunk(number, content):
    """A field with a length, as protocol buffers write it."""
    size = bytes([len(content) & 127 | 128, len(content) >> 7 & 127 | 128, len(content) >> 14])
    return bytes([number << 3 | 2]) + size + content


def robot_record(level, frames=6):
    """A record of `frames` frames; the second camera is one level higher."""
    entries = []
    for t in range(frames):
        for offset, camera in enumerate(("image_main", "image_aux1")):
            pixels = np.full((64, 64, 3), level + 10 * (t + offset), np.uint8).tobytes()
            feature = chunk(1, chunk(1, pixels))
            entries.append(chunk(1, chunk(1, f"{t}/{camera}/encoded".encode()) + chunk(2, feature)))
        numbers = chunk(2, chunk(1, np.zeros(4, "<f4").tobytes()))
        entries.append(chunk(1, chunk(1, f"{t}/action".encode()) + chunk(2, numbers)))
    return chunk(1, b"".join(entries))


def write_records(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(part + masked_crc32c(part).to_bytes(4, "little")
                              for r in records for part in (len(r).to_bytes(8, "little"), r)))


@pytest.fixture
def bair(tmp_path):
    records = tmp_path / "bair" / "softmotion30_44k"
    write_records(records / "train" / "traj_10_to_19.tfrecords", [robot_record(50), robot_record(60)])
    write_records(records / "train" / "traj_0_to_9.tfrecords", [robot_record(10)])
    write_records(records / "test" / "traj_0_to_255.tfrecords", [robot_record(30)])
    return tmp_path / "bair"


def test_bair_is_read_as_distributed(bair):
    spec = BAIRRobotPushing(path=str(bair), **SMALL)
    train = same_twice(open_source(spec, "train"))
    assert [levels(clip) for clip in train] == [[1, 2, 3, 4], [5, 6, 7, 8], [6, 7, 8, 9]]
    assert train[0]["video"].shape == (4, 8, 8, 3) and train[0]["caption"] == "" and list(train.captions()) == []
    assert {levels(train.clip(0, np.random.default_rng(s)))[0] for s in range(20)} == {1, 2, 3}
    assert [levels(clip) for clip in open_source(spec, "validation")] == [[3, 4, 5, 6]]
    other = BAIRRobotPushing(path=str(bair), camera="image_aux1", frame_stride=2, **{**SMALL, "frames": 3})
    assert levels(open_source(other, "test")[0]) == [4, 6, 8]
    with refused("folder.SkippedFiles.first_readable", "traj_0_to_255.tfrecords", "12", "16"):
        open_source(BAIRRobotPushing(path=str(bair)), "test")[0]


def test_bair_as_pictures_and_missing(tmp_path):
    spec = BAIRRobotPushing(path=str(tmp_path), **SMALL)
    with refused("BAIRRobotPushing.path", "bair_robot_pushing_dataset_v0.tar", "rail.eecs.berkeley.edu"):
        open_source(spec, "train")
    for video in (0, 1):
        for number, frame in enumerate(grey([10 * (video + n) for n in range(11)])):  # 10.png comes after 9.png
            write_png(tmp_path / "train" / "traj_0" / str(video) / f"{number}.png", frame)
    source = same_twice(open_source(BAIRRobotPushing(path=str(tmp_path), **{**SMALL, "frames": 11}), "train"))
    assert [levels(clip) for clip in source] == [list(range(0, 11)), list(range(1, 12))]
    (tmp_path / "train" / "traj_0" / "1" / "x.png").write_bytes(b"")
    with refused("folder.SkippedFiles.noting", "traj_0", "1", "'x.png'"):
        source.exact(1)
    np.testing.assert_array_equal(source[1]["video"], source[0]["video"])  # the next one takes its place
    (tmp_path / "train" / "traj_0" / "0" / "3.png").write_bytes(b"no picture")
    with refused("folder.SkippedFiles.first_readable", "2", "traj_0", "1"):
        source[0]
    assert list(source.skipped) == ["train/traj_0/1", "train/traj_0/0"]
    assert source.skipped["train/traj_0/0"].startswith("3.png: not a readable image")


def test_a_damaged_record_is_skipped_and_named_once(bair, caplog):
    path = bair / "softmotion30_44k" / "train" / "traj_10_to_19.tfrecords"
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"\xff" + whole[101:])
    source = open_source(BAIRRobotPushing(path=str(bair), **SMALL), "train")
    assert [levels(clip) for clip in source] == [[1, 2, 3, 4], [6, 7, 8, 9], [6, 7, 8, 9]]
    assert levels(source.clip(1, np.random.default_rng(0)))[0] in (6, 7, 8)
    name = "softmotion30_44k/train/traj_10_to_19.tfrecords, byte 12"
    assert list(source.skipped) == [name] and caplog.text.count(f"skipped {name}") == 1 and source.skipped.replaced == 2
    with refused("folder.SkippedFiles.noting", "traj_10_to_19.tfrecords", "12"):
        source.exact(1)


def test_clips_longer_than_the_published_videos_are_refused_at_once(mnist):
    with refused("whole_videos.require_span", "20", "MovingMNIST.frames=11", "frame_stride=2", "21"):
        open_source(MovingMNIST(path=str(mnist), frames=11, frame_stride=2), "test")


def test_damaged_records_are_named(bair):
    path = bair / "softmotion30_44k" / "test" / "traj_0_to_255.tfrecords"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with refused("tfrecord.record_places"):
        record_places(path)
    path.write_bytes(whole[:100] + b"\xff" + whole[101:])
    with refused("folder.SkippedFiles.first_readable", "12"):
        open_source(BAIRRobotPushing(path=str(bair), **SMALL), "test")[0]
    path.write_bytes(whole[:2] + b"\xff" + whole[3:])
    with refused("tfrecord.record_places", "0"):
        record_places(path)
    write_records(path, [b"\xff" * 1000])
    with refused("folder.SkippedFiles.first_readable", "12", "tf.train.Example"):
        open_source(BAIRRobotPushing(path=str(bair), **SMALL), "test")[0]


# --- Kinetics-600 ---------------------------------------------------------------------------------------------------


@pytest.fixture
def kinetics(tmp_path):
    root = tmp_path / "k600"
    rows = {"train": [("abcdefghij0", "archery"), ("-bcdefghij1", "playing kazoo")], "val": [("abcdefghij2", "yoga")],
            "test": [("abcdefghij3", "yoga")]}
    for number, (part, videos) in enumerate(rows.items()):
        for name, label in videos:
            write_video(root / part / label / f"{name}_000004_000014.mp4", grey([10 * (number + n) for n in range(5)]),
                        fps=25, lossless=True)
        table = [f'"{label}",{name},4,14,{part}' for name, label in videos if part != "train" or label == "archery"]
        path = root / "annotations" / ("train.txt" if part == "train" else f"{part}.csv")
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(["label,youtube_id,time_start,time_end,split", *table]))
    return root


def test_kinetics_600_has_its_three_parts_and_labels(kinetics, caplog):
    spec = Kinetics600(path=str(kinetics), **SMALL)
    with caplog.at_level(logging.WARNING):
        train = same_twice(open_source(spec, "train"))
    assert [clip["caption"] for clip in train] == ["archery", ""]
    assert "1 of 2 videos are not in the annotations" in caplog.text
    assert [levels(open_source(spec, split)[0])[0] for split in ("train", "validation", "test")] == [0, 1, 2]
    assert open_source(spec, "validation")[0]["caption"] == "yoga"
    by_folder = open_source(Kinetics600(path=str(kinetics), labels="folders", **SMALL), "train")
    assert list(by_folder.captions()) == ["archery", "playing kazoo"]
    (kinetics / "annotations" / "train.txt").unlink()
    with refused("Kinetics600.path", "train.csv", "labels='none'"):
        open_source(spec, "train")
    assert list(open_source(Kinetics600(path=str(kinetics), labels="none", **SMALL), "train").captions()) == ["", ""]


def test_kinetics_600_that_is_not_there_says_what_to_fetch(tmp_path):
    with refused("Kinetics600.path", "k600_downloader.sh", "github.com"):
        open_source(Kinetics600(path=str(tmp_path)), "train")


# --- Moving MNIST ---------------------------------------------------------------------------------------------------


@pytest.fixture
def mnist(tmp_path):
    videos = np.zeros((20, 3, 64, 64), np.uint8)
    videos[:] = 10 * np.arange(20)[:, None, None, None] + np.arange(3)[:, None, None]
    np.save(tmp_path / "mnist_test_seq.npy", videos)
    digits = np.random.default_rng(0).integers(100, 256, (5, 28, 28)).astype(np.uint8)
    header = b"\0\0\x08\x03" + np.array(digits.shape, ">u4").tobytes()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + digits.tobytes()))
    return tmp_path


def test_moving_mnist_test_videos_are_the_published_ones(mnist):
    test = same_twice(open_source(MovingMNIST(path=str(mnist)), "test"))
    assert len(test) == 3 and test[1]["video"].shape == (20, 64, 64, 3)
    assert test[2]["video"][:, 0, 0, 0].tolist() == [10 * t + 2 for t in range(20)]
    np.save(mnist / "mnist_test_seq.npy", np.zeros((3, 20, 64, 64), np.uint8))
    with refused("moving_mnist.MovingMNISTSource.__init__", "[3, 20, 64, 64]", "[20, videos, 64, 64]"):
        open_source(MovingMNIST(path=str(mnist)), "test")
    (mnist / "mnist_test_seq.npy").write_bytes(pickle.dumps("never read"))
    with refused("moving_mnist.MovingMNISTSource._array"):
        open_source(MovingMNIST(path=str(mnist)), "test")


def test_moving_mnist_training_videos_are_generated(mnist):
    source = same_twice(open_source(MovingMNIST(path=str(mnist), train_videos=7), "train"))
    assert len(source) == 7 and source[0]["video"].shape == (20, 64, 64, 3)
    assert not np.array_equal(source[0]["video"], source[1]["video"])
    fresh = [source.clip(0, np.random.default_rng(seed))["video"] for seed in (1, 2)]
    assert not np.array_equal(*fresh) and not np.array_equal(fresh[0], source[0]["video"])
    for name in ("mnist_test_seq.npy", "train-images-idx3-ubyte.gz"):
        (mnist / name).unlink()
        with refused("MovingMNIST.path", f"{name}"):
            open_source(MovingMNIST(path=str(mnist)), "test" if name.endswith("npy") else "train")


def test_digits_move_straight_and_bounce(mnist):
    digits = np.full((1, 28, 28), 200, np.uint8)
    video = moving_digits(digits, np.random.default_rng(3))[..., 0]
    assert video.shape == (20, 64, 64) and set(np.unique(video)) == {0, 200}
    rows = [np.flatnonzero(frame.any(1)) for frame in video]
    assert all(28 <= len(found) <= 56 for found in rows)  # whole digits, inside the frame
    moved = np.abs(np.diff([found[0] for found in rows]))
    assert 0 < moved.max() <= 5  # at most a tenth of 36, rounded at both ends
    digits = read_idx(mnist / "train-images-idx3-ubyte.gz")
    assert digits.shape == (5, 28, 28) and digits.min() >= 100
    (mnist / "x").write_bytes(b"\0\0\x08\x03" + bytes(20))
    with refused("moving_mnist.read_idx"):
        read_idx(mnist / "x")


# --- all ------------------------------------------------------------------------------------------------------------


def test_the_same_sets_come_through_tfds(tmp_path):
    tfds = _import_tfds()
    with tfds.testing.mock_data(num_examples=3, num_sub_examples=20):
        everything = ("train+test", "test", "test")
        ucf = open_source(UCF101(path=str(tmp_path), via="tfds", splits=everything, **SMALL), "train")
        assert ucf.spec.name == "ucf101/ucf101_1" and ucf.spec.splits == everything and ucf[0]["caption"]
        bair = open_source(BAIRRobotPushing(path=str(tmp_path), via="tfds", camera="image_aux1", **SMALL), "validation")
        assert bair[0]["video"].shape == (4, 8, 8, 3)
        moving = MovingMNIST(path=str(tmp_path), via="tfds")
        assert open_source(moving, "test")[0]["video"].shape == (20, 64, 64, 3)
        generated = open_source(moving, "train")
        assert len(generated) == 10_000 and generated[5]["video"].max() > 0


def test_a_set_that_tfds_has_not_prepared_says_how(tmp_path):
    with refused("TFDSVideo.name", "array_record"):
        open_source(UCF101(path=str(tmp_path), via="tfds"), "train")


@pytest.mark.parametrize(("make", "message"), [
    (lambda: UCF101(path="x", division=4), ("UCF101.division", "=4")),
    (lambda: UCF101(path="x", via="web"), ("UCF101.via", "='web'", "'folder'", "'tfds'")),
    (lambda: UCF101(path="x", splits=("train", "dev", "test")), ("UCF101.splits",)),
    (lambda: BAIRRobotPushing(path="x", camera="left"),
     ("BAIRRobotPushing.camera", "='left'", "'image_main'", "'image_aux1'")),
    (lambda: Kinetics600(path="x", labels="all"),
     ("Kinetics600.labels", "='all'", "'annotations'", "'folders'", "'none'")),
    (lambda: Kinetics600(path="x", frame_stride=0), ("Kinetics600.frame_stride", "=0")),
    (lambda: MovingMNIST(path="x", splits=("train+test", "test", "test")), ("MovingMNIST.splits",)),
    (lambda: open_source(MovingMNIST(path="x"), "dev"), ("split", "='dev'")),
])
def test_bad_values_are_named(make, message):
    with refused(*message):
        make()


@pytest.mark.parametrize("kind", [UCF101, BAIRRobotPushing, Kinetics600, MovingMNIST])
def test_configs_go_through_json(kind):
    spec = kind(path="x", splits=("test", "test", "train"))
    assert from_json(kind, to_json(spec)) == spec
