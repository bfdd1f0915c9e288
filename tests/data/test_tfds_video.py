import io
import json
import pickle
import shutil
import subprocess
import sys
import textwrap
import zlib
from unittest import mock

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from PIL import Image

from tests.refusals import refused
from vdm_jax.configuration import from_json, to_json
from vdm_jax.data.tfds_video import KNOWN_SETS, TFDSVideo, TFDSVideoSource, _import_tfds, in_words

tfds = _import_tfds()


@pytest.mark.parametrize("name", KNOWN_SETS)
def test_known_sets_give_clips(name, tmp_path):
    with tfds.testing.mock_data(num_examples=3, num_sub_examples=20):
        spec = TFDSVideo(name=name, data_dir=str(tmp_path), frames=4, height=16, width=24, frame_stride=2, fps=5.0)
        source = TFDSVideoSource(spec, "train")
        assert len(source) == 3
        clip = source[2]
        assert clip["video"].shape == (4, 16, 24, 3) and clip["video"].dtype == np.uint8 and clip["fps"] == 5.0
        np.testing.assert_array_equal(clip["video"], source[2]["video"])
        assert source.frame(1, np.random.default_rng(0))["video"].shape == (1, 16, 24, 3)
        moved = [source.clip(0, np.random.default_rng(seed))["video"] for seed in (0, 0, 1, 2, 3)]
        np.testing.assert_array_equal(moved[0], moved[1])
        assert any(not np.array_equal(moved[0], other) for other in moved[2:])
        words = list(source.captions())
        if name == "ucf101":
            assert len(words) == 101 and words[0] == "apply eye makeup"
            assert clip["caption"] == words[clip["label"]]
        elif name == "webvid":
            assert clip["caption"] == words[2] and words[2]
        else:
            assert clip["caption"] == "" and "label" not in clip and words in ([], [""] * 3)


def test_grey_frames_become_rgb(tmp_path):
    with tfds.testing.mock_data(num_examples=1):
        spec = TFDSVideo(name="moving_mnist", data_dir=str(tmp_path), frames=20, height=64, width=64)
        source = TFDSVideoSource(spec, "test")
        stored = source._items[0]["image_sequence"]
        np.testing.assert_array_equal(source[0]["video"], np.repeat(stored, 3, axis=-1))


def png(level, size=24):
    file = io.BytesIO()
    Image.fromarray(np.full((size, size + 8, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


class Flickers(tfds.core.GeneratorBasedBuilder):
    """Item i has 3 + i frames of grey 10 i + t."""

    name = "flickers"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "clip": {"pictures": tfds.features.Video(shape=(None, None, None, 3), encoding_format="png")},
            "kind": tfds.features.ClassLabel(names=["SlowFade", "quick_fade"]),
            "text": tfds.features.Text(),
        }
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(8):
            pictures = [png(10 * i + t) for t in range(3 + i)]
            yield i, {"clip": {"pictures": pictures}, "kind": i % 2, "text": f"number {i}"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    tfds.display_progress_bar(False)
    # Preparing a Video feature asks TensorFlow for the name of its number type; reading one does not.
    with mock.patch.object(tfds.features.Video, "dtype", np.uint8):
        Flickers(data_dir=folder).download_and_prepare(file_format="array_record")
    return str(folder)


def flickers(data_dir, **fields):
    keys = {"frames_key": "clip/pictures", "splits": ("train[:75%]", "train[75%:]", "train[75%:]")}
    sizes = {"frames": 3, "height": 8, "width": 8}
    return TFDSVideo(**{"name": "flickers", "data_dir": data_dir, **sizes, **keys, **fields})


def test_prepared_records_are_read_by_feature_and_split(data_dir):
    source = TFDSVideoSource(flickers(data_dir, label_key="kind"), "train")
    assert len(source) == 6 and len(TFDSVideoSource(flickers(data_dir), "validation")) == 2
    for copy in (source, pickle.loads(pickle.dumps(source))):
        clip = copy[4]
        assert clip["video"][:, 0, 0, 0].tolist() == [40, 41, 42]
        assert clip["caption"] == "slow fade" and clip["label"] == 0
    assert list(source.captions()) == ["slow fade", "quick fade"]
    texts = TFDSVideoSource(flickers(data_dir, caption_key="text"), "validation")
    assert texts[1]["caption"] == "number 7" and list(texts.captions()) == ["number 6", "number 7"]
    starts = {int(source.clip(5, np.random.default_rng(s))["video"][0, 0, 0, 0]) - 50 for s in range(60)}
    assert starts == {0, 1, 2, 3, 4, 5}
    with pytest.raises(IndexError):
        source[6]


def test_short_items_are_refused_or_held(data_dir):
    source = TFDSVideoSource(flickers(data_dir, frames=5))
    assert source[2]["video"][:, 0, 0, 0].tolist() == [20, 21, 22, 23, 24]
    with refused("TFDSVideo.name", "'train[:75%]'"):
        source[1]
    held = TFDSVideoSource(flickers(data_dir, frames=5, short_items="repeat"))
    assert held[1]["video"][:, 0, 0, 0].tolist() == [10, 11, 12, 13, 13]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frames_key": "clip/films"}, ("TFDSVideo.name", "'films'", "'clip/films'")),
        ({"frames_key": "film"}, ("TFDSVideo.name", "'film'")),
        ({"label_key": "text"}, ("TFDSVideo.label_key", "='text'", "'flickers'")),
        ({"splits": ("dev", "dev", "dev")}, ("TFDSVideo.name", "'dev'")),
        ({"name": "no_such_set"}, ("TFDSVideo.name", "='no_such_set'", "data_dir")),
    ],
)
def test_what_is_not_there_is_named(data_dir, fields, message):
    with refused(*message) as error:
        TFDSVideoSource(flickers(data_dir, **fields))
    assert "\n" not in str(error.value)


def test_sets_that_are_not_prepared_say_where_and_how(tmp_path):
    with refused("TFDSVideo.name", "array_record") as error:
        TFDSVideoSource(TFDSVideo(name="ucf101", data_dir=str(tmp_path)))
    text = str(error.value)
    assert f"{tmp_path}/ucf101" in text and "vdm_jax[prepare-official-sets]" in text
    assert "download_and_prepare(file_format='array_record')" in text and "\n" not in text


def test_config_errors_and_json():
    with refused("TFDSVideo.name", "='kinetics'", "frames_key"):
        TFDSVideo(name="kinetics")
    with refused("TFDSVideo.frames", "=0"):
        TFDSVideo(name="ucf101", frames=0)
    with refused("split", "='dev'"):
        TFDSVideoSource(TFDSVideo(name="ucf101"), "dev")
    spec = TFDSVideo(name="ucf101/ucf101_1:2.0.0", splits=("train", "test", "test"))
    assert from_json(TFDSVideo, to_json(spec)) == spec and spec.fields().frames == "video"


@pytest.mark.parametrize(
    ("name", "words"),
    [("ApplyEyeMakeup", "apply eye makeup"), ("brush_teeth", "brush teeth"), ("TVShow", "tv show"), ("YoYo", "yo yo")],
)
def test_class_names_as_words(name, words):
    assert in_words(name) == words


def test_tensorflow_is_never_imported(tmp_path):
    script = f"""
        import sys
        import tensorflow_datasets as tfds
        from vdm_jax.data.tfds_video import TFDSVideo, TFDSVideoSource
        with tfds.testing.mock_data(num_examples=1):
            TFDSVideoSource(TFDSVideo(name="robonet", data_dir={str(tmp_path)!r}, frames=2))[0]
        assert "tensorflow" not in sys.modules and "jax" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("file, change, message", [
    ("features.json", lambda d: d | {"pythonClassName": "vdm_evil.Feature"},
     ("tfds_files._visit", "'vdm_evil.Feature'")),
    ("features.json", lambda d: {"type": "vdm_evil.Feature", "content": {}},
     ("tfds_files._visit", "'vdm_evil.Feature'")),
    ("features.json", lambda d: {"type": "tensorflow_datasets.core.features.feature.Tensor.x", "content": "{}"},
     ("tfds_files._visit", "tensorflow_datasets.core.features.audio_feature.Audio")),
    ("features.json", lambda d: json.loads('{"featuresDict":{"features":{"../x":{}}}}'),
     ("tfds_files._visit", "'../x'")),
    ("features.json", lambda d: "[" * 100_000, ("tfds_files._check",)),
    ("dataset_info.json", lambda d: json.loads('{"splits":[{"filepathTemplate":"../../{SPLIT}"}]}'),
     ("tfds_files._visit", "filepathTemplate='../../{SPLIT}'")),
])
def test_descriptions_run_no_code_and_leave_no_folder(data_dir, tmp_path, monkeypatch, file, change, message):
    copy = tmp_path / "sets"
    shutil.copytree(data_dir, copy)
    evil = tmp_path / "evil" / "vdm_evil.py"
    evil.parent.mkdir()
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(evil.parent))
    (path,) = copy.rglob(file)
    changed = change(json.loads(path.read_text()))
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with refused(*message):
        TFDSVideoSource(flickers(str(copy)))
    assert not (tmp_path / "ran").exists()
    with refused("TFDSVideo.name", "='vdm_evil:flickers'"):
        TFDSVideoSource(flickers(str(copy), name="vdm_evil:flickers"))


def rewritten(data_dir, folder, change):
    """A copy of the set whose records are changed by `change(number, record)`; the path of its record file."""
    shutil.copytree(data_dir, folder)
    (path,) = folder.rglob("*.array_record*")
    reader = ArrayRecordReader(str(path))
    records = [change(number, record) for number, record in enumerate(reader.read_all())]
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return path


def test_a_damaged_item_is_skipped_and_named_once(data_dir, tmp_path, caplog):
    def change(number, record):
        return {2: b"\xff" * 50, 3: record.replace(b"\x89PNG", b"none")}.get(number, record)

    rewritten(data_dir, tmp_path / "sets", change)
    source = TFDSVideoSource(flickers(str(tmp_path / "sets"), caption_key="text"))
    assert [clip["caption"] for clip in source] == [f"number {n}" for n in (0, 1, 4, 4, 4, 5)]
    assert list(source.captions()) == [f"number {n}" for n in (0, 1, 4, 4, 4, 5)]
    names = [f"flickers train[:75%] item {n}" for n in (2, 3)]
    assert list(source.skipped) == names and all(caplog.text.count(f"skipped {name}") == 1 for name in names)
    with refused("folder.SkippedFiles.noting", "2"):
        source.exact(2)
    assert source.exact(1)["caption"] == "number 1"


def test_record_files_that_are_cut_off_or_unpack_to_too_much_are_refused(data_dir, tmp_path, monkeypatch):
    path = rewritten(data_dir, tmp_path / "sets", lambda number, record: record if number else bytes(10**6))
    monkeypatch.setattr("vdm_jax.data.tfds_video.MAX_CHUNK_BYTES", 99_999)
    with refused("record_files.check_record_file", "1000000", "64", "99999"):
        TFDSVideoSource(flickers(str(tmp_path / "sets")))
    path.write_bytes(path.read_bytes()[:-2**16])
    with refused("record_files.check_record_file", "ArrayRecord"):
        TFDSVideoSource(flickers(str(tmp_path / "sets")))


def test_numbers_packed_by_zlib_have_a_limit(monkeypatch):
    monkeypatch.setattr("vdm_jax.data.tfds_video.MAX_CHUNK_BYTES", 1000)
    feature = tfds.features.Tensor(shape=(None,), dtype=np.uint8, encoding="zlib")
    assert feature.decode_example_np(zlib.compress(bytes(999))).shape == (999,)
    with refused("tfds_video._unpacked", "1000"):
        feature.decode_example_np(zlib.compress(bytes(2000)))
