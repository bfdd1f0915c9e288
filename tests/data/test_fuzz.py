"""Every reader of files from outside, on files that are damaged at random: what comes is right, skipped or a
`UserError` on one line; never another exception, a hang or code that runs."""

import gzip
import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.data.fuzzing import MUTATIONS, fuzz
from tests.refusals import refused
from vdm_jax.data.array_record import PreparedClips, PreparedClipsSource, prepare_clips
from vdm_jax.data.captions import caption_lines, read_caption_files, read_captions
from vdm_jax.data.embeddings import TextEmbeddings, write_embeddings
from vdm_jax.data.image_folder import ImageFolder, ImageFolderSource
from vdm_jax.data.image_shards import ImageShards, ImageShardsSource
from vdm_jax.data.moving_mnist import read_idx
from vdm_jax.data.tfds_files import _check as check_description
from vdm_jax.data.tfrecord import read_record, record_places
from vdm_jax.metrics.detectors.torch_files import read_torch
from vdm_jax.metrics.detectors.weights import _npz, read_arrays
from vdm_jax.weights.safetensors import load_params, save_params
from vdm_jax.weights.tensor_files import open_file, read_json

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about damaged tags


def picture(kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(np.arange(12 * 9 * 3, dtype=np.uint8).reshape(12, 9, 3)).save(file, kind)
    return file.getvalue()


def shard():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in (("a.png", picture()), ("a.txt", b"a cat"), ("ü" * 120 + ".jpg", picture("JPEG"))):
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return file.getvalue()


def archive():
    file = io.BytesIO()
    np.savez_compressed(file, a=np.ones((3, 4), np.float32), b=np.zeros(2))
    return file.getvalue()


def all_of(source):
    return [source[i] for i in range(len(source))] and list(source.captions())


def of_folder(config, source, tmp_path):
    return all_of(source(config(path=str(tmp_path), height=4, width=4, fractions=(1.0, 0.0, 0.0)), "train"))


def records(path):
    with open(path, "rb") as file:
        return [read_record(file, place) for place in record_places(path)]


def tfrecord():
    from vdm_jax.data.checksum import masked_crc32c

    data = b"\x0a\x0e\x0a\x0c\x0a\x01a\x12\x07\x0a\x05\x0a\x03abc"
    parts = (len(data).to_bytes(8, "little"), data)
    return b"".join(part + masked_crc32c(part).to_bytes(4, "little") for part in parts)


TABLE = b'file,caption\na.mp4,"a cat, on a mat"\nb.mp4,a dog\n'
ARRAYS = pickle.dumps({"a": {"b": np.ones((2, 3), np.float32)}})
DESCRIPTION = json.dumps({"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
                          "featuresDict": {"features": {"a": {"pythonClassName": "tensorflow_datasets.core.features."
                                                              "text_feature.Text", "text": {}}}}}).encode()
READERS = {  # file, its bytes, reader of the path
    "table": ("c.csv", TABLE, lambda path: read_captions("VideoFolder", str(path), ["a.mp4", "b.mp4"])),
    "list": ("c.txt", "a cat\nein grünes\n".encode(), lambda path: caption_lines(path, "source")),
    "texts": ("a.txt", "ein grünes".encode("utf-16"),
              lambda path: read_caption_files(str(path.parent), ["a.png"], ".txt")),
    "png": ("a.png", picture(), lambda path: of_folder(ImageFolder, ImageFolderSource, path.parent)),
    "jpeg": ("a.jpg", picture("JPEG"), lambda path: of_folder(ImageFolder, ImageFolderSource, path.parent)),
    "tiff": ("a.tif", picture("TIFF"), lambda path: of_folder(ImageFolder, ImageFolderSource, path.parent)),
    "webp": ("a.webp", picture("WEBP"), lambda path: of_folder(ImageFolder, ImageFolderSource, path.parent)),
    "tar": ("a.tar", shard(), lambda path: of_folder(ImageShards, ImageShardsSource, path.parent)),
    "tfrecord": ("a.tfrecords", tfrecord(), records),
    "idx": ("a", b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (2, 3, 4)) + bytes(24), read_idx),
    "idx.gz": ("a.gz", gzip.compress(b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (2, 3, 4)) + bytes(24)),
               read_idx),
    "npz": ("a.npz", archive(), lambda path: _npz(path.read_bytes(), str(path))),
    "pickle": ("a.ckpt", ARRAYS, lambda path: read_arrays(path.read_bytes(), str(path))),
    "json": ("config.json", b'{"a": [1, {"b": null}], "c": "d"}', read_json),
    "features.json": ("features.json", DESCRIPTION, check_description),
}


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_skipped_or_refused(name, tmp_path):
    file, data, read = READERS[name]
    (tmp_path / file).write_bytes(data)
    read(tmp_path / file)
    assert fuzz(tmp_path / file, data, read) < MUTATIONS or name in ("texts",)


def test_damaged_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    save_params(path, {"a": {"b": np.ones((2, 3), np.float32)}, "c": np.arange(4)})
    whole = path.read_bytes()
    assert fuzz(path, whole, load_params) < MUTATIONS
    assert fuzz(path, whole, lambda path: [tensor.read() for tensor in open_file(path).values()]) < MUTATIONS


@pytest.mark.parametrize("old", [False, True])
def test_damaged_torch_files(tmp_path, old):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    torch.save({"a": torch.ones(2, 3), "b": {"c": torch.arange(4)}}, path, _use_new_zipfile_serialization=not old)
    whole = path.read_bytes()
    assert read_torch(whole, "x")["b.c"].tolist() == [0, 1, 2, 3]
    assert fuzz(path, whole, lambda path: read_torch(path.read_bytes(), str(path))) < MUTATIONS


def test_damaged_embeddings(tmp_path):
    folder = write_embeddings(tmp_path / "set", ["a", "b"], [np.ones((3, 4)), np.ones((2, 4))])
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        fuzz(path, whole, lambda _: [TextEmbeddings(folder).look_up(text, 3) for text in ("a", "b")])
        path.write_bytes(whole)


@pytest.mark.parametrize("format", ["raw", "jpeg"])
def test_damaged_prepared_clips(tmp_path, format):
    class Clips(list):
        pass

    clips = Clips({"video": np.full((2, 8, 8, 3), n, np.uint8), "caption": f"{n}", "fps": 2.0} for n in range(3))
    folder = prepare_clips(clips, tmp_path, format=format)
    sizes = json.loads((folder / "metadata.json").read_text())
    for name in ("captions.json", "metadata.json", "clips.array_record"):
        whole = (folder / name).read_bytes()

        def read(path, name=name):
            if name == "clips.array_record":  # so that the size gives nothing away
                about = sizes | {"bytes": path.stat().st_size}
                (folder / "metadata.json").write_text(json.dumps(about))
            all_of(PreparedClipsSource(PreparedClips(path=str(tmp_path)), "train"))

        fuzz(folder / name, whole, read)
        (folder / name).write_bytes(whole)


@pytest.mark.parametrize("name", ["zip", "gz", "nested"])
def test_small_files_that_unpack_to_gigabytes_are_refused(name, tmp_path, monkeypatch):
    if name == "zip":
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("a/data.pkl", bytes(2**27))
        for read, code in ((read_torch, "torch_files._read_zip"), (_npz, "weights._npz")):
            with refused(code, "x ", str(2**27), "permitted: "):
                read(file.getvalue(), "x")
    elif name == "gz":
        monkeypatch.setattr("vdm_jax.data.moving_mnist.MAX_IDX_BYTES", 1000)
        (tmp_path / "a.gz").write_bytes(gzip.compress(bytes(10_000)))
        with refused("moving_mnist.read_idx", "1000"):
            read_idx(tmp_path / "a.gz")
    else:
        deep = b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b"."
        with refused("weights._flatten"):
            read_arrays(deep, "x")
        with refused("weights.read_arrays"):
            read_arrays(b"\x80\x02" + b"}q\0" + b"X\1\0\0\0a}" * 5000 + b"s" * 5000 + b".", "x")
