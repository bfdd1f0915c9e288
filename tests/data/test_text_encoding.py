"""Captions encoded once by a released text encoder's folder."""

from __future__ import annotations

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from tests.commands import tiny
from tests.refusals import refused
from tests.weights.folders import SMALL, tensors_of, write
from tests.weights.test_tokenizers import write_clip, write_t5
from vdm_jax.commands.main import main
from vdm_jax.data import text_encoding
from vdm_jax.data.embeddings import EncoderFolder, TextEmbeddings
from vdm_jax.data.text_encoding import CaptionEncoder, embed_captions
from vdm_jax.generation.encoding import RunEncoder
from vdm_jax.video.writing import write_png
from vdm_jax.weights.pretrained import load_pretrained

CONFIG = """
import dataclasses
from tests.commands import tiny
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.data.image_folder import ImageFolder

def get_config():
    images = ImageFolder(path="images", captions="images.csv", height=8, width=8, fractions=(1.0, 0.0, 0.0))
    return dataclasses.replace(tiny.get_config(), data=WithEmbeddings(data=images, path="texts"))
"""
CAPTIONS = ["a red three", "moving", "red", "three moving", "a red three moving red three moving"]


def write_model(folder, config):
    return write(folder, config, tensors_of(config))


@pytest.fixture
def folder(tmp_path):
    """A pipeline's text encoder and tokenizer."""
    pytest.importorskip("tokenizers", reason="tokenizers come with the extra [pretrained]")
    words = write_clip(tmp_path / "model" / "tokenizer")
    write_model(tmp_path / "model" / "text_encoder",
                dataclasses.replace(SMALL["text"], vocabulary=len(words), end_token=len(words) - 1))
    return tmp_path / "model"


def test_the_command_writes_what_the_encoder_gives(folder, tmp_path, capsys):
    (tmp_path / "captions.txt").write_text("\n".join([*CAPTIONS, "", " moving "]))
    arguments = [str(tmp_path / "captions.txt"), "--encoder", str(folder), "--out", str(tmp_path / "set"),
                 "--batch-size", "3", "--mesh.data", "4", "--mesh.fsdp", "2"]
    assert main(["embed", *arguments]) == 0
    assert "5 captions, CLIPText of width 8, 8 tokens" in capsys.readouterr().out
    found = TextEmbeddings(tmp_path / "set")
    assert len(found) == 6 and found.longest == 8 and not (tmp_path / "set.parts").exists()
    model, encoder = load_pretrained(folder / "text_encoder"), CaptionEncoder(folder)
    for caption in CAPTIONS:  # with padding, which these models were trained to see
        expected = model.module.apply({"params": model.params}, encoder.tokenizer(caption).ids).tokens[0]
        vectors, mask = found.look_up(caption, 8)
        assert mask.all()
        np.testing.assert_allclose(vectors, expected, atol=2e-3 * np.abs(expected).max())
    np.testing.assert_allclose(found.empty(8)[0], encoder([""])[0], atol=2e-3)
    assert main(["embed", *arguments]) == 2 and "exists; permitted: a new folder" in capsys.readouterr().err


def test_captions_of_a_config_go_where_it_reads_them(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        write_png(tmp_path / "images" / f"{i}.png", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "images.csv").write_text("file,caption\n0.png,red\n1.png,three\n2.png,red\n")
    (tmp_path / "mine.py").write_text(CONFIG)
    assert main(["embed", "mine.py", "--encoder", str(folder)]) == 0
    found = TextEmbeddings(tmp_path / "texts")
    found.check(["red", "three"])
    assert len(found) == 3 and found.empty(8)[1].all()


def test_an_interrupted_run_goes_on(folder, tmp_path, monkeypatch):
    encoder, encoded = CaptionEncoder(folder), []
    run = CaptionEncoder._run

    def failing(self, ids, mask):
        encoded.append(len(ids))
        if len(encoded) == 3:
            raise KeyboardInterrupt
        return run(self, ids, mask)

    monkeypatch.setattr(CaptionEncoder, "_run", failing)
    with pytest.raises(KeyboardInterrupt):
        embed_captions(encoder, CAPTIONS, tmp_path / "set", batch_size=1, part=2)
    assert not (tmp_path / "set").exists() and len(list((tmp_path / "set.parts").iterdir())) == 1
    path = embed_captions(encoder, [*CAPTIONS, *CAPTIONS, ""], tmp_path / "set", batch_size=1, part=2)
    assert len(encoded) == 7  # two before the failure were kept; three more were left, and the empty text
    config = load_pretrained(folder / "text_encoder").config
    write(tmp_path / "other" / "text_encoder", config, tensors_of(config, seed=1))
    shutil.copytree(folder / "tokenizer", tmp_path / "other" / "tokenizer")
    other = CaptionEncoder(tmp_path / "other")  # parts by another encoder of the same sizes would not be gone on with
    assert other.about == encoder.about and other.fingerprint() != encoder.fingerprint()
    whole = embed_captions(encoder, CAPTIONS, tmp_path / "whole")
    for name in ("rows.float16", "keys.npy", "places.npy"):
        if name == "rows.float16":
            rows = [np.fromfile(folder / name, "<f2").astype(np.float32) for folder in (path, whole)]
            np.testing.assert_allclose(*rows, atol=2e-3)
        else:
            assert (path / name).read_bytes() == (whole / name).read_bytes()


def test_what_is_no_text_encoder_is_refused(tmp_path):
    write_model(tmp_path / "vae", SMALL["vae"])
    with refused("text_encoding.CaptionEncoder.__init__"):
        CaptionEncoder(tmp_path / "vae")


def test_padding_of_t5_is_not_kept(tmp_path, monkeypatch):
    """Its encoder does not see padding, so a text gives the same vectors whatever length it is padded to."""
    write_model(tmp_path / "t5", SMALL["t5"])

    class Words:
        def __init__(self, length):
            self.length = length

        def __call__(self, texts):
            ids, mask = np.zeros((len(texts), self.length), np.int32), np.zeros((len(texts), self.length), bool)
            for i, text in enumerate(texts):
                numbers = [*map(ord, text.replace(" ", ""))][: self.length]
                ids[i, : len(numbers)], mask[i, : len(numbers)] = np.array(numbers, int) % 20, True
            return ids, mask

    monkeypatch.setattr(text_encoding, "open_tokenizer", lambda folder, length: Words(length))
    write_model(tmp_path / "umt5", SMALL["umt5"])
    encoder = CaptionEncoder(tmp_path / "umt5", length=8)
    plain, messy = encoder(["three & me", "  three &amp;amp;\n me "])  # UMT5 reads what is left after cleaning
    assert len(plain) == 8
    np.testing.assert_array_equal(plain, messy)
    short, long = (CaptionEncoder(tmp_path / "t5", length=length)(["red", "three"]) for length in (5, 9))
    assert [len(vectors) for vectors in short] == [3, 5]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), short, long)


def test_an_encoder_that_treats_padding_otherwise_is_refused(tmp_path):
    """The same weights, outside of the pipeline's folder and in it; sets from before say nothing and hid padding."""
    write_model(tmp_path / "whole" / "text_encoder", dataclasses.replace(SMALL["t5"], vocabulary=128))
    (tmp_path / "whole" / "tokenizer").mkdir()
    write_t5(tmp_path / "whole" / "tokenizer")
    (tmp_path / "whole" / "tokenizer" / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    alone = shutil.copytree(tmp_path / "whole" / "text_encoder", tmp_path / "alone")
    shutil.copytree(tmp_path / "whole" / "tokenizer", alone, dirs_exist_ok=True)
    (tmp_path / "whole" / "model_index.json").write_text('{"_class_name": "CogVideoXPipeline"}')
    found = CaptionEncoder(tmp_path / "whole", length=8)
    assert found.folder.padding == "kept" and EncoderFolder(path="x").padding == "hidden"
    experiment = tiny.get_config()
    for spec, path, named in ((found.folder, alone, ("'hidden'", "'kept'")),
                              (dataclasses.replace(found.folder, padding="hidden"), tmp_path / "whole", ("'kept'",))):
        with refused("RunEncoder.padding", "padding=", *named):
            _ = RunEncoder(dataclasses.replace(spec, path=str(path)), experiment).captions
    assert RunEncoder(found.folder, experiment).captions.keeps
