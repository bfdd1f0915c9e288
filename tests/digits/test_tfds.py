import dataclasses
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.configuration import SPLITS
from vdm_jax.digits import tfds as captioned_digits_tfds
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.digits.clips import CaptionedDigitsSource, DigitClips

SPEC = CaptionedDigits(frames=4, size=32, train_clips=12, validation_clips=3, test_clips=5, fps=6.0)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared")
    captioned_digits_tfds.prepare_captioned_digits(SPEC, directory)
    return directory


@pytest.mark.parametrize("split", SPLITS)
def test_prepared_clips_equal_generated_ones(data_dir, split):
    generated = CaptionedDigitsSource(SPEC, split)
    prepared = captioned_digits_tfds.PreparedDigitsSource(SPEC, data_dir, split)
    assert len(prepared) == len(generated) == len(list(prepared))
    assert list(prepared.captions()) == [clip["caption"] for clip in prepared]
    for index in range(len(generated)):
        clip, expected = prepared[index], generated[index]
        np.testing.assert_array_equal(clip["video"], expected["video"], strict=True)
        assert clip["caption"] == expected["caption"] and clip["fps"] == expected["fps"]
        assert clip.keys() == expected.keys()
        assert prepared.objects(index) == generated.objects(index)
    for index in (-1, len(generated)):
        with pytest.raises(IndexError):
            prepared[index]


def test_source_can_be_pickled_before_and_after_it_was_read(data_dir):
    source = captioned_digits_tfds.PreparedDigitsSource(SPEC, data_dir, "test")
    unread = pickle.loads(pickle.dumps(source))
    expected = source[2]["video"]
    for copy in (unread, pickle.loads(pickle.dumps(source))):
        np.testing.assert_array_equal(copy[2]["video"], expected)


def test_preparing_again_writes_nothing_and_another_spec_goes_elsewhere(data_dir):
    path = captioned_digits_tfds.prepared_path(SPEC, data_dir)
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    assert captioned_digits_tfds.prepare_captioned_digits(SPEC, data_dir) == path
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before
    for change in ({"seed": 1}, {"fps": 7.0}, {"train_clips": 13}, {"objects": (2, 2)}):
        other = dataclasses.replace(SPEC, **change)
        assert captioned_digits_tfds.prepared_path(other, data_dir) != path
        with refused("data_dir", "4x32", "prepare_captioned_digits"):
            captioned_digits_tfds.PreparedDigitsSource(other, data_dir, "train")


def test_a_preparation_that_failed_leaves_nothing_that_looks_prepared(tmp_path, monkeypatch):
    def broken(spec, split, index):
        raise RuntimeError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(captioned_digits_tfds, "generate_clip", broken)
        with pytest.raises(RuntimeError, match="the disk is full"):
            captioned_digits_tfds.prepare_captioned_digits(SPEC, tmp_path)
    assert not captioned_digits_tfds.prepared_path(SPEC, tmp_path).exists()
    captioned_digits_tfds.prepare_captioned_digits(SPEC, tmp_path)
    assert len(captioned_digits_tfds.PreparedDigitsSource(SPEC, tmp_path, "train")[11]["caption"]) > 0


def test_the_builder_of_the_default_spec_is_registered(tmp_path):
    import tensorflow_datasets as tfds

    builder = tfds.builder("captioned_digits", data_dir=tmp_path)
    assert builder.builder_config.spec == DigitClips()
    assert os.fspath(builder.data_path) == os.fspath(
        captioned_digits_tfds.prepared_path(CaptionedDigits(), tmp_path)
    )


def test_preparing_and_reading_is_silent_and_never_imports_tensorflow(tmp_path):
    program = f"""
import sys
from vdm_jax.digits.captioned_digits import CaptionedDigits
assert "tensorflow_datasets" not in sys.modules and "sklearn" not in sys.modules
from vdm_jax.digits import tfds as captioned_digits_tfds
import tensorflow_datasets as tfds
spec = CaptionedDigits(frames=4, size=32, train_clips=3, validation_clips=1, test_clips=1)
path = captioned_digits_tfds.prepare_captioned_digits(spec, {os.fspath(tmp_path)!r})
source = captioned_digits_tfds.PreparedDigitsSource(spec, {os.fspath(tmp_path)!r}, "train")
assert source[0]["video"].shape == (4, 32, 32, 3)
plain = tfds.builder_from_directory(path).as_data_source("train")
assert (plain[2]["video"] == source[2]["video"]).all() and len(plain) == 3
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")
