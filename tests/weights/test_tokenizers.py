"""Tokens of texts by the files of a model's folder: a small vocabulary here, transformers' own classes in full."""

from __future__ import annotations

import builtins
import json
import logging

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.weights.tokenizers import cleaned, open_tokenizer

WORDS = ["three", "red", "moving"]
TEXTS = ["a Red  three!", "", "RED three moving red three moving red three moving", "it's 42 ctrl\tö<|endoftext|>z"]


def write_clip(folder, *, pad="<|endoftext|>", length=8):
    """Bytes, bytes that end a word, and the merges that make three words; `!` is id 0, as in the released models."""
    letters = [chr(i) for i in [*range(33, 127), *range(161, 173), *range(174, 256)]]
    letters += [chr(256 + n) for n in range(68)]
    merges, made = [], []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            pair, parts = parts[:2], ["".join(parts[:2]), *parts[2:]]
            if tuple(pair) not in merges:
                merges.append(tuple(pair))
                made.append(parts[0])
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), *made, "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "CLIPTokenizer", "model_max_length": length, "pad_token": pad,
        "bos_token": {"content": "<|startoftext|>", "__type": "AddedToken", "lstrip": False},
        "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}))
    return vocabulary


@pytest.fixture
def package():
    return pytest.importorskip("tokenizers", reason="tokenizers come with the extra [pretrained]")


def test_words_between_start_and_end(package, tmp_path):
    vocabulary = write_clip(tmp_path)
    found = open_tokenizer(tmp_path)(["A red\n three", "moving"])
    words = [[vocabulary[i] for i in row] for row in found.ids]
    end = "<|endoftext|>"
    assert words[0] == ["<|startoftext|>", "a</w>", "red</w>", "three</w>", end, end, end, end]
    assert words[1] == ["<|startoftext|>", "moving</w>", *[end] * 6]
    assert found.ids.dtype == np.int32
    np.testing.assert_array_equal(found.mask.sum(1), [5, 3])


def test_what_is_cut_is_named(package, tmp_path, caplog):
    write_clip(tmp_path, pad="!")
    tokenizer = open_tokenizer(tmp_path)
    with caplog.at_level(logging.WARNING):
        found = tokenizer("Red three moving red three moving Red  THREE")
    assert "has 8 tokens where 6 fit; cut off: 'Red  THREE'" in caplog.text
    assert found.ids[0, -1] == tokenizer.end[0] and found.mask.all()
    assert tokenizer("red").ids[0, 3:].tolist() == [0] * 5  # padding is its own token
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        assert open_tokenizer(tmp_path, 77)(TEXTS).ids.shape == (4, 77)
    assert not caplog.text


def test_the_package_that_is_missing_is_named(tmp_path, monkeypatch):
    write_clip(tmp_path)
    real = builtins.__import__

    def refuse(name, *args):
        if name.partition(".")[0] in ("tokenizers", "sentencepiece"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr("vdm_jax.weights.tokenizers.importlib.import_module", refuse)
    with refused("tokenizers._package", "'vdm_jax[pretrained]'"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("change, message", [
    (lambda folder: (folder / "merges.txt").unlink(), ("tokenizers._vocabulary", "merges.txt")),
    (lambda folder: (folder / "vocab.json").write_text("{"), ("tokenizers._backend",)),
    (lambda folder: (folder / "vocab.json").write_text('{"a": 0}'), ("tokenizers._backend",)),
    (lambda folder: (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}'),
     ("tokenizers._kind", "BertTokenizer")),
    (lambda folder: (folder / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624}'),
     ("tokenizers.open_tokenizer", "model_max_length")),
    (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), ("tensor_files.read_json",)),
    (lambda folder: (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizerFast"}'),
     ("tokenizers.open_tokenizer", "no tokenizer.json", "Llama")),
    (lambda folder: (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "CLIPTokenizer", "padding_side": "left", "model_max_length": 8}'),
     ("tokenizers.open_tokenizer", "padding_side='left'", "'right'")),
])
def test_refusals(change, message, package, tmp_path):
    write_clip(tmp_path)
    change(tmp_path)
    with refused(*message):
        open_tokenizer(tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
@pytest.mark.parametrize("as_json", [False, True])
def test_clip_of_transformers(pad, as_json, tmp_path):
    transformers = pytest.importorskip("transformers")
    write_clip(tmp_path, pad=pad, length=16)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    if as_json:
        theirs.save_pretrained(tmp_path / "saved")
        assert (tmp_path / "saved" / "tokenizer.json").is_file()
    ours = open_tokenizer(tmp_path / "saved" if as_json else tmp_path)
    texts = [*TEXTS, "an exclamation! and l'été, naïve 日本 x1y22", "  spaces   around  "]
    wanted = theirs(texts, padding="max_length", max_length=16, truncation=True, return_tensors="np")
    found = ours(texts)
    np.testing.assert_array_equal(found.ids, wanted["input_ids"])
    np.testing.assert_array_equal(found.mask, wanted["attention_mask"] > 0)


T5_PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), ("\u2581red", -3.0),
             ("\u2581three", -3.0), *((letter, -8.0) for letter in "abcdefghijklmnopqrstuvwxyz!")]


@pytest.mark.full
def test_t5_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.T5Tokenizer(vocab=T5_PIECES, extra_ids=0, model_max_length=12)
    theirs.save_pretrained(tmp_path)
    ours = open_tokenizer(tmp_path)
    texts = ["a red three!", "", "red three red three red three red three red three red three red", " two  spaces"]
    wanted = theirs(texts, padding="max_length", max_length=12, truncation=True, return_tensors="np")
    found = ours(texts)
    np.testing.assert_array_equal(found.ids, wanted["input_ids"])
    np.testing.assert_array_equal(found.mask, wanted["attention_mask"] > 0)


def write_t5(folder):
    """A small spiece.model; returns what the package makes of it."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece comes with the extra [pretrained]")
    (folder / "texts.txt").write_text("a red three moving left\na green seven bouncing\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "texts.txt"), model_prefix=str(folder / "spiece"), vocab_size=24, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, minloglevel=2)
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))


def test_control_tokens_in_a_text_of_t5(tmp_path, caplog):
    """Each is one token; `<extra_id_n>` counts down from the end of 100 beyond the pieces."""
    model = write_t5(tmp_path)
    found = open_tokenizer(tmp_path, length=16)("red</s>left<extra_id_0> <extra_id_99>")
    ids = [*model.encode("red"), 1, *model.encode("left"), 24 + 99, 24, 1]
    assert found.ids[0][found.mask[0]].tolist() == ids
    open_tokenizer(tmp_path, length=3)("</s> red</s><extra_id_7>")
    assert "cut off: 'red</s><extra_id_7>'" in caplog.text


def test_umt5_has_more_control_tokens(tmp_path):
    write_t5(tmp_path)
    config = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 300}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = open_tokenizer(tmp_path)("<extra_id_0><extra_id_299>")
    assert found.ids.shape == (1, 512) and found.ids[0, :4].tolist() == [24 + 299, 24, 1, 0]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "extra_ids": "all"}))
    with refused("tokenizers._sentinels", "'all'"):
        open_tokenizer(tmp_path)


def test_a_class_of_any_tokenizer_is_told_by_its_file(package, tmp_path):
    """Newer versions of transformers write UMT5's so."""
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend", "model_max_length": 6}')
    model = package.models.Unigram([*T5_PIECES], unk_id=2)
    package.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    assert open_tokenizer(tmp_path)("abc").ids.tolist() == [[*range(6, 9), 1, 0, 0]]
    package.Tokenizer(package.models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with refused("tokenizers._kind", "TokenizersBackend"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["LlamaTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"])
def test_llama_has_the_start_token_that_its_file_adds(name, package, tmp_path, caplog):
    """And no end token; what is cut off is named, the start token counted. A class that does not say whose byte pairs
    they are is Llama's where that is asked for."""
    vocabulary = {"<s>": 0, "<pad>": 1, "a": 2, "b": 3, "c": 4, "d": 5}
    made = package.Tokenizer(package.models.BPE(vocab=vocabulary, merges=[]))
    made.post_processor = package.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": name, "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}))
    if name == "PreTrainedTokenizerFast":
        with refused("tokenizers._kind", name, "LlamaTokenizer"):
            open_tokenizer(tmp_path, 4, llama=True)
        return
    tokenizer = open_tokenizer(tmp_path, 4, llama=True)
    found = tokenizer(["ab", "abcd"])
    assert found.ids.tolist() == [[0, 2, 3, 1], [0, 2, 3, 4]] and found.mask.sum(1).tolist() == [3, 4]
    assert "has 5 tokens where 4 fit; cut off: 'd'" in caplog.text


def test_texts_are_cleaned_as_wan_cleans_prompts():
    pytest.importorskip("ftfy")
    assert cleaned(" a\n Red &amp;amp;\t fox\u00a0\u201csays\u201d hi ", "x") == 'a Red & fox "says" hi'


@pytest.mark.full
def test_control_tokens_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    write_t5(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "model_max_length": 32}')
    theirs, ours = transformers.T5Tokenizer.from_pretrained(tmp_path), open_tokenizer(tmp_path)
    for text in ("a red</s>three", "a red </s> three", "fill <extra_id_0> and <extra_id_99>.", "<pad>left<unk> it",
                 "a<extra_id_1>b", "</s>", "<extra_id_0> <extra_id_1>", "</s>a", "a  <extra_id_3>  b"):
        found = ours(text)
        assert found.ids[0][found.mask[0]].tolist() == theirs(text)["input_ids"], text


def test_t5_by_sentencepiece(tmp_path, caplog):
    model = write_t5(tmp_path)
    tokenizer = open_tokenizer(tmp_path, length=6)
    found = tokenizer(["a red", "a green seven bouncing left and right and up"])
    first = model.encode("a red")
    assert found.ids[0].tolist() == [*first, 1, *[0] * (5 - len(first))][:6]
    assert found.ids[1, -1] == 1 and found.mask[1].all()
    assert "where 5 fit; cut off:" in caplog.text
