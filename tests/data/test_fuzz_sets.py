"""Whole sets and folders of models with one file damaged at random; see `fuzzing`."""

import gzip
import importlib
import json
import logging
import shutil

import numpy as np
import pytest

from tests.data.fuzzing import fuzz
from tests.data.test_published import bair, cache_elsewhere, kinetics, mnist, ucf  # noqa: F401  (fixtures)
from tests.data.test_tfds_video import data_dir, flickers  # noqa: F401  (a fixture)
from tests.pipelines.folders import DDIM, VIDEO
from tests.weights.test_clip_tokenizer import MERGES
from tests.weights.test_tokenizers import write_clip
from vdm_jax.data.array_record import PreparedClips, PreparedClipsSource, prepare_clips
from vdm_jax.data.opening import open_source
from vdm_jax.data.published import UCF101, BAIRRobotPushing, Kinetics600, MovingMNIST
from vdm_jax.data.tfds_video import TFDSVideoSource
from vdm_jax.generation.released.folder import open_folder
from vdm_jax.generation.released.schedulers import read_scheduler
from vdm_jax.video.writing import write_png
from vdm_jax.weights.pretrained import describe
from vdm_jax.weights.tokenizers import clip_tokenizer, open_tokenizer

SMALL = {"frames": 2, "height": 8, "width": 8}


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.CRITICAL)


def all_of(spec, split="train"):
    source = open_source(spec, split)
    return [source[i] for i in range(min(len(source), 3))] and list(source.captions())


@pytest.mark.parametrize("file", ["*.array_record*", "features.json", "dataset_info.json"])
def test_tfds(data_dir, tmp_path, file):  # noqa: F811
    shutil.copytree(data_dir, tmp_path / "sets")
    (path,) = (tmp_path / "sets").rglob(file)

    def read(_):
        source = TFDSVideoSource(flickers(str(tmp_path / "sets"), label_key="kind", short_items="repeat"))
        assert [source[i]["video"].shape for i in (0, 3, 5)] and list(source.captions())

    read(path)
    assert fuzz(path, path.read_bytes(), read) < 200


def test_robot_records(bair):  # noqa: F811
    path = bair / "softmotion30_44k" / "test" / "traj_0_to_255.tfrecords"
    fuzz(path, path.read_bytes(), lambda _: all_of(BAIRRobotPushing(path=str(bair), **SMALL), "test"))


def test_robot_pictures(tmp_path):
    for number in range(2):
        write_png(tmp_path / "train" / "0" / f"{number}.png", np.zeros((9, 7, 3), np.uint8))
    path = tmp_path / "train" / "0" / "1.png"
    fuzz(path, path.read_bytes(), lambda _: all_of(BAIRRobotPushing(path=str(tmp_path), **SMALL)))


@pytest.mark.parametrize("file", ["classInd.txt", "trainlist01.txt"])
def test_lists_of_ucf101(ucf, file):  # noqa: F811
    path = ucf / "ucfTrainTestlist" / file
    fuzz(path, path.read_bytes(), lambda _: list(open_source(UCF101(path=str(ucf), **SMALL), "train").captions()))


def test_annotations_of_kinetics(kinetics):  # noqa: F811
    path = kinetics / "annotations" / "train.txt"
    spec = Kinetics600(path=str(kinetics), **SMALL)
    fuzz(path, path.read_bytes(), lambda _: list(open_source(spec, "train").captions()))


@pytest.mark.parametrize("file, split", [("mnist_test_seq.npy", "test"), ("train-images-idx3-ubyte.gz", "train")])
def test_moving_mnist(mnist, file, split):  # noqa: F811
    path = mnist / file
    fuzz(path, path.read_bytes(), lambda _: all_of(MovingMNIST(path=str(mnist), **SMALL), split))


def test_prepared_mp4(tmp_path):
    clips = [{"video": np.full((2, 16, 16, 3), n, np.uint8), "caption": f"{n}", "fps": 2.0} for n in range(2)]
    prepare_clips(clips, tmp_path, format="mp4")
    source = PreparedClipsSource(PreparedClips(path=str(tmp_path)))
    header, (part,) = source._parts(0)

    def read(path):  # past the checksums of the record
        source._parts = lambda index: (header, [memoryview(path.read_bytes())])
        source._read(0)

    assert fuzz(tmp_path / "a.mp4", bytes(part), read) < 200


@pytest.mark.parametrize("file", ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
                                  "tokenizer.json"])
def test_files_of_a_tokenizer(tmp_path, file):
    pytest.importorskip("tokenizers")
    write_clip(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "!"}}))
    if file == "tokenizer.json":
        from vdm_jax.weights.tokenizers import _byte_pairs, _vocabulary

        package = importlib.import_module("tokenizers")
        _byte_pairs(package, *_vocabulary(package, tmp_path)).save(str(tmp_path / file))
    fuzz(tmp_path / file, (tmp_path / file).read_bytes(), lambda _: open_tokenizer(tmp_path)(["a red moving!", ""]))


def test_merges_of_clip(tmp_path):
    pytest.importorskip("tokenizers")
    for name, data in (("merges.txt", MERGES.encode()), ("bpe.txt.gz", gzip.compress(MERGES.encode()))):
        fuzz(tmp_path / name, data, lambda path: clip_tokenizer(path, 5)(["the cat"]))


def test_pieces_of_t5(tmp_path):
    package = pytest.importorskip("sentencepiece")
    texts = iter(["a cat sat on a mat", "the red dog moves left", "three moving cats"] * 10)
    with open(tmp_path / "spiece.model", "wb") as file:
        package.SentencePieceTrainer.train(sentence_iterator=texts, model_writer=file, vocab_size=26, pad_id=0,
                                           eos_id=1, unk_id=2, bos_id=-1, minloglevel=2)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "model_max_length": 8}')
    path = tmp_path / "spiece.model"
    fuzz(path, path.read_bytes(), lambda _: open_tokenizer(tmp_path)(["a cat</s>", ""]))


CONFIG = {"_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [4, 4], "down_block_types":
          ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2, "in_channels": 3, "out_channels": 3,
          "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2, "sample_size": 16, "scaling_factor": 0.2}
INDEX = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
         "scheduler": ["diffusers", "DDIMScheduler"], "safety_checker": [None, None]}


@pytest.mark.parametrize("name, fields, read", [
    ("scheduler_config.json", DDIM, lambda path: read_scheduler(path.parent)),
    ("scheduler_config.json", VIDEO, lambda path: read_scheduler(path.parent, "DPM++ 2M")),
    ("config.json", CONFIG, lambda path: describe(path.parent)),
    ("model_index.json", INDEX, lambda path: open_folder(path.parent).scheduler()),
])
def test_descriptions_of_models(tmp_path, name, fields, read):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(DDIM))
    fuzz(tmp_path / name, json.dumps(fields).encode(), read)
