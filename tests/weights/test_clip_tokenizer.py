"""CLIP's tokens by the list of merges alone, and agreement with transformers."""

import gzip
import json

import pytest

from tests.parity import FOLDER, peer
from tests.refusals import refused
from vdm_jax.errors import UserError
from vdm_jax.weights.tokenizers import clip_tokenizer

TEXTS = ("a photo of a cat", "It's 23 dogs' houses; we're here!!!", "naïve café — 日本語 🙂🙂 ok", " many \t spaces\n",
         "²³ Ⅷ x₂ 1,000.50$", "I'LL we'd 'tis don't", '"quoted"...(a)[b]', "ΑΒΓ ß İ", "word_with_underscore",
         "é e\u0301", "http://x.y/z?a=1&b=2", "!'s ?'t", "हिन्दी", "")
MERGES = "#version: 0.2\nc a\nca t</w>\nt h\nth e</w>\n"
CA, CAT, TH, THE, START, END = range(512, 518)  # after 256 bytes and 256 that end a word


@pytest.fixture
def package():
    pytest.importorskip("tokenizers", reason="tokenizers come with the extra [pretrained]")


def test_ids_follow_from_the_order_of_the_merges(package, tmp_path, caplog):
    (tmp_path / "merges.txt").write_text(MERGES)
    tokenizer = clip_tokenizer(tmp_path / "merges.txt", 5)
    rows = tokenizer(["The  cat", "cat cat cat the z", "", "cab"])
    assert rows.ids.tolist() == [[START, THE, CAT, END, END], [START, CAT, CAT, CAT, END], [START, END, END, END, END],
                                 [START, CA, 256 + ord("b") - ord("!"), END, END]]
    assert rows.mask.sum(1).tolist() == [4, 5, 2, 4] and "cut off: 'the z'" in caplog.text
    with gzip.open(tmp_path / "merges.txt.gz", "wt") as file:
        file.write(MERGES)
    assert clip_tokenizer(tmp_path / "merges.txt.gz")("cat").ids[0, :3].tolist() == [START, CAT, END]


def test_other_files_are_refused(tmp_path):
    for content in ("", "head\na b c\n"):
        (tmp_path / "merges.txt").write_text(content)
        with refused("tokenizers.clip_tokenizer"):
            clip_tokenizer(tmp_path / "merges.txt")
    (tmp_path / "merges.txt.gz").write_bytes(b"no archive")
    with refused("tokenizers.clip_tokenizer"):
        clip_tokenizer(tmp_path / "merges.txt.gz")


@pytest.mark.full
def test_transformers_agrees(tmp_path):
    transformers = peer("transformers")
    from vdm_jax.metrics.detectors import clip

    try:
        path = clip.merges_file("ViT-B-32")
    except UserError as error:
        pytest.skip(str(error))
    ours = clip_tokenizer(path, 1000)
    lines = gzip.open(path, "rt", encoding="utf-8").read().split("\n")[1:48_895]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n")
    visible = [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 256 + 68)]
    words = [*map(chr, visible), *(f"{chr(i)}</w>" for i in visible), *("".join(line.split()) for line in lines),
             "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    theirs = transformers.CLIPTokenizer(vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt"))
    for text in TEXTS:
        found = ours(text)
        assert found.ids[0, : found.mask.sum()].tolist() == theirs(text)["input_ids"]


def test_texts_are_cleaned_and_control_tokens_stand_for_themselves(package, tmp_path):
    (tmp_path / "merges.txt").write_text(MERGES)
    tokenizer = clip_tokenizer(tmp_path / "merges.txt", 6)

    def ids(text):
        found = tokenizer(text)
        return found.ids[0][found.mask[0]].tolist()

    assert ids("cat<|ENDOFTEXT|>the") == [START, CAT, END, THE, END]
    assert ids("&amp;#99;at &#116;he") == [START, CAT, THE, END]  # entities, twice


@pytest.mark.full
def test_the_original_code_agrees():
    ftfy = peer("ftfy")
    assert ftfy
    import importlib.util

    from vdm_jax.metrics.detectors import clip

    try:
        path = clip.merges_file("ViT-B-32")
    except UserError as error:
        pytest.skip(str(error))
    file = FOLDER / "clip" / "simple_tokenizer.py"
    spec = importlib.util.spec_from_file_location("simple_tokenizer", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    theirs, ours = module.SimpleTokenizer(str(path)), clip_tokenizer(path, 400)
    for text in NASTY:
        found = ours(text)
        assert found.ids[0][found.mask[0]].tolist() == [49406, *theirs.encode(text), 49407], text


NASTY = ["a<|endoftext|>b", "a man\u2019s dog", "rock &amp; roll", "&amp;lt;b&gt;", "<<|endoftext|>>",
         "<|ENDOFTEXT|> x", "\ufb01sh \uff21\uff22", "na\u00c3\u00afve s\u00c3\u00b3",
         "tab\tnl\r\nx\x1b[31mred\x1b[0m", "\u2028sep\u00a0nb\u200bzw", "\u0130stanbul'S '\u017f DON'T",
         "\u65e5\u672c 42 x1y22 \U0001f600!!", "", "   ", "\u201cquote\u201d", "e\u0301 \u00e9",
         "\x00nul\x07bell", "&#x27;s &nbsp; &copy;", "<|startoftext|>hello", "\ufb00 \u00bd \u2122 \u2026",
         "a\x1cb\x85c"]
