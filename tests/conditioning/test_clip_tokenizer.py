"""CLIP's tokens: merges by rank, words by kind of sign, and agreement with transformers."""

import gzip
import json

import pytest

from tests.parity import peer
from vdm_jax.conditioning.clip_tokenizer import BytePairs, _words, read_clip_tokenizer
from vdm_jax.errors import UserError

TEXTS = ("a photo of a cat", "It's 23 dogs' houses; we're here!!!", "naïve café — 日本語 🙂🙂 ok", " many \t spaces\n",
         "²³ Ⅷ x₂ 1,000.50$", "I'LL we'd 'tis don't", '"quoted"...(a)[b]', "ΑΒΓ ß İ", "word_with_underscore",
         "é e\u0301", "http://x.y/z?a=1&b=2", "!'s ?'t", "हिन्दी", "")


@pytest.fixture
def tokenizer():
    return BytePairs([("c", "a"), ("ca", "t</w>"), ("t", "h"), ("th", "e</w>")])


def test_pairs_are_joined_in_the_order_of_the_merges(tokenizer):
    cat, the = tokenizer.ids["cat</w>"], tokenizer.ids["the</w>"]
    assert tokenizer.encode("The  cat") == [the, cat]
    assert tokenizer.encode("cab") == [tokenizer.ids["ca"], tokenizer.ids["b</w>"]]
    assert tokenizer.encode("é") == [tokenizer.ids["Ã"], tokenizer.ids["©</w>"]]  # its two bytes
    assert (tokenizer.start, tokenizer.end) == (516, 517)


def test_texts_become_rows(tmp_path, tokenizer, caplog):
    (tmp_path / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\nt h\nth e</w>\n")
    cat = tokenizer.ids["cat</w>"]
    rows = read_clip_tokenizer(tmp_path / "merges.txt", 5)(["cat", "cat cat cat the é", ""])
    assert rows.ids.tolist() == [[516, cat, 517, 517, 517], [516, cat, cat, cat, 517], [516, 517, 517, 517, 517]]
    assert rows.mask.sum(1).tolist() == [3, 5, 2] and "cut off: 'the é'" in caplog.text


def test_words_are_runs_of_one_kind():
    assert _words("it's 23, don't!? 🙂x_1") == ["it", "'s", "2", "3", ",", "don", "'t", "!?", "🙂", "x", "_", "1"]


def test_files_of_merges(tmp_path):
    text = "#version: 0.2\nc a\nca t</w>\n"
    (tmp_path / "merges.txt").write_text(text)
    with gzip.open(tmp_path / "merges.txt.gz", "wt") as file:
        file.write(text)
    one, other = (BytePairs.read(tmp_path / name) for name in ("merges.txt", "merges.txt.gz"))
    assert one.encode("cat") == other.encode("cat") == [512 + 1]
    for content in ("", "head\na b c\n"):
        (tmp_path / "merges.txt").write_text(content)
        with pytest.raises(UserError, match="is not a list of pairs; permitted: the merges of CLIP"):
            BytePairs.read(tmp_path / "merges.txt")
    (tmp_path / "merges.txt.gz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="cannot be read: .*permitted: the merges of CLIP"):
        BytePairs.read(tmp_path / "merges.txt.gz")


@pytest.mark.full
def test_transformers_agrees(tmp_path):
    transformers = peer("transformers")
    from vdm_jax.evaluation.detectors import clip

    try:
        path = clip.merges_file("ViT-B-32")
    except UserError as error:
        pytest.skip(str(error))
    ours = BytePairs.read(path)
    lines = gzip.open(path, "rt", encoding="utf-8").read().split("\n")[1:48_895]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n")
    special = {"<|startoftext|>": ours.start, "<|endoftext|>": ours.end}
    (tmp_path / "vocab.json").write_text(json.dumps(ours.ids | special))
    theirs = transformers.CLIPTokenizer(vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt"))
    assert [ours.encode(text) for text in TEXTS] == [theirs(text)["input_ids"][1:-1] for text in TEXTS]
    assert len(ours.ids) == 49_406
