"""Captions from tables, lists and texts next to files: every encoding and mistake is right or named, never guessed."""

import logging

import pytest

from tests.refusals import refused
from vdm_jax.commands.embed_command import Embed
from vdm_jax.commands.embed_command import read_captions as embedded_captions
from vdm_jax.data.captions import MAX_CAPTION_BYTES, read_caption_files, read_captions

NAMES = ["a.mp4", "b.mp4", "é/c.mp4"]
RIGHT = {"a.mp4": "a cat, on a mat", "b.mp4": "two\nlines", "é/c.mp4": ""}


@pytest.mark.parametrize("text", [
    'file,caption\na.mp4,"a cat, on a mat"\nb.mp4,"two\nlines"\n',
    'file,caption\na.mp4,a cat, on a mat\nb.mp4,"two\nlines"\n',  # the comma is in the last column
    'caption,file\n"a cat, on a mat",a.mp4\n"two\nlines",b.mp4\n\n',
    'file,caption\r\n./a.mp4,"a cat, on a mat"\r\n.//b.mp4,"two\nlines"\r\n',
    'file, caption ,year\na.mp4,"a cat, on a mat",1\nb.mp4,"two\nlines",2\n.\\e\u0301\\c.mp4,,3\n',
])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_in_many_forms(tmp_path, text, encoding):
    (tmp_path / "c.csv").write_bytes(text.encode(encoding))
    assert read_captions("VideoFolder", str(tmp_path / "c.csv"), NAMES) == RIGHT


@pytest.mark.parametrize("data, message", [
    ('file,caption\na.mp4,"a cat\nb.mp4,a dog\n', ("VideoFolder.captions",)),
    ('file,caption\na.mp4,x\nb.mp4,"a dog\na.mp4,a "cat"\n', ("VideoFolder.captions",)),
    ('file,caption\na.mp4,"a cat\nb.mp4,a dog"\n', ("VideoFolder.captions", "'b.mp4'")),
    ("file,caption,caption\na.mp4,one,two\n", ("VideoFolder.captions",)),
    ("file,caption,year\na.mp4,a cat, on a mat,1\n", ("VideoFolder.captions",)),
    ("file,caption\na.mp4,x\n./a.mp4,y\n", ("VideoFolder.captions", "'./a.mp4'")),
    ("file,caption\na.mp4\n", ("VideoFolder.captions",)),
    ("file;caption\na.mp4;x\n", ("VideoFolder.captions",)),
    ("file,caption\na.mp4,café\n".encode("latin-1"), ("VideoFolder.captions",)),
    ("file,caption\na.mp4,x\n".encode("utf-16-le"), ("VideoFolder.captions",)),
])
def test_mistakes_in_tables_are_refused_with_their_line(tmp_path, data, message):
    (tmp_path / "c.csv").write_bytes(data if isinstance(data, bytes) else data.encode())
    with refused(*message):
        read_captions("VideoFolder", str(tmp_path / "c.csv"), NAMES)


def test_lists_for_embedding_are_read_by_the_same_rules(tmp_path):
    def read(data):
        (tmp_path / "captions.txt").write_bytes(data)
        return embedded_captions(Embed(source=str(tmp_path / "captions.txt"), encoder=tmp_path, out=tmp_path / "x"))[0]

    for data in (b"red\n\nthree\n", b"\xef\xbb\xbfred\r\nthree\r\n", "three\nred".encode("utf-16")):
        assert read(data) == ["red", "three"]
    with refused("source", "captions.txt"):
        read(b"red\ncaf\xe9\n")


def test_texts_beside_files_that_cannot_be_read_are_named(tmp_path, caplog):
    names = [f"{name}.png" for name in "abcd"]
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa cat\n")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    (tmp_path / "c.txt").write_bytes(b"x" * (MAX_CAPTION_BYTES + 1))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):  # each split reads them; it is said once
            found = read_caption_files(str(tmp_path), names, ".txt")
    assert found == {"a.png": "a cat", "b.png": "", "c.png": "", "d.png": ""}
    assert caplog.text.count("2 files have a caption that is not readable UTF-8 (the first is b.png)") == 1
    assert caplog.text.count("1 files have no caption (the first is d.png)") == 1
