"""What is kept of an index, and what is asked anew."""

import builtins
import errno
import json
import os
from pathlib import Path

import pytest

from vdm_jax.video import containers, index_cache, reading


@pytest.fixture
def videos(tmp_path, numbered):
    return [numbered.write(tmp_path / f"{name}.mp4", range(5)) for name in "ab"], tmp_path / "cache" / "index.json"


def found(paths, cache):
    return [x if isinstance(x, str) else len(x) for x in index_cache.index_files(paths, cache)]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ENOMEM, errno.ESTALE, errno.EIO])
@pytest.mark.parametrize("when", ["opening", "reading"])
def test_errors_of_the_moment_are_said_and_tried_again(videos, monkeypatch, number, when):
    paths, cache = videos
    whole = builtins.open

    def fails(path, *arguments, **options):
        if Path(path) != paths[0]:
            return whole(path, *arguments, **options)
        if when == "opening":
            raise OSError(number, os.strerror(number))
        return Unreadable(whole(path, *arguments, **options))

    class Unreadable:
        def __init__(self, file):
            self.seek, self.tell, self.close = file.seek, file.tell, file.close

        def read(self, *_):
            raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(containers, "open", fails, raising=False)
        first, second = found(paths, cache)
    assert isinstance(first, str) and os.strerror(number) in first and "\n" not in first and second == 5
    assert list(json.loads(cache.read_text())["files"]) == [str(paths[1])]
    assert found(paths, cache) == [5, 5]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_read_once_it_is_given(videos):
    paths, cache = videos
    paths[0].chmod(0)
    assert "Permission denied" in found(paths, cache)[0]
    paths[0].chmod(0o600)
    assert found(paths, cache) == [5, 5]


def test_what_the_bytes_decide_is_kept(videos, monkeypatch):
    paths, cache = videos
    paths[0].write_bytes(b"no video")
    first = found(paths, cache)
    assert "not a readable video" in first[0] and first[1] == 5
    monkeypatch.setattr(index_cache, "VideoReader", lambda *_: pytest.fail("read again"))
    assert found(paths, cache) == first


@pytest.mark.parametrize("error", [AttributeError("decode"), AssertionError(), RecursionError(), RuntimeError("x"),
                                   SystemError("y"), UnicodeDecodeError("utf-8", b"x", 0, 1, "z"), KeyError("k")])
def test_no_kind_of_error_ends_the_work_on_other_files(videos, monkeypatch, error):
    paths, cache = videos
    whole = reading.build_index

    def fails(media, reopen):
        if media.name == str(paths[0]):
            raise error
        return whole(media, reopen)

    monkeypatch.setattr(reading, "build_index", fails)
    first, second = found(paths, cache)
    assert isinstance(first, str) and type(error).__name__ in first and "\n" not in first and second == 5


def test_without_a_home_indexes_lie_in_a_temporary_folder(monkeypatch, tmp_path, caplog):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setattr(index_cache.tempfile, "gettempdir", lambda: str(tmp_path))
    index_cache._warn_homeless.cache_clear()
    folders = [index_cache.default_cache_folder() for _ in range(2)]
    assert folders[0] == folders[1] and tmp_path in folders[0].parents and str(os.getuid()) in str(folders[0])
    assert caplog.text.count("XDG_CACHE_HOME") == 1
