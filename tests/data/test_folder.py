"""Listing folders: links, names and permissions as they come."""

import logging
import os

from tests.refusals import refused
from vdm_jax.data.folder import MAX_DAMAGED, SkippedFiles, list_files
from vdm_jax.errors import UserError


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def test_linked_folders_are_followed_and_loops_are_not(tmp_path):
    root, elsewhere = tmp_path / "all", tmp_path / "elsewhere"
    for path in (root / "here" / "0.mp4", root / "here" / ".hidden.mp4", elsewhere / "deep" / "1.mp4"):
        touch(path)
    (root / "linked").symlink_to(elsewhere, target_is_directory=True)
    (root / "here" / "up").symlink_to(root, target_is_directory=True)
    (elsewhere / "outside").symlink_to(tmp_path, target_is_directory=True)  # contains the folder itself
    (root / "again").symlink_to(root / "here", target_is_directory=True)  # would put a video into two splits
    (root / "gone").symlink_to(tmp_path / "gone")
    assert list_files("VideoFolder", str(root), (".mp4",)) == ["here/0.mp4", "linked/deep/1.mp4"]
    (tmp_path / "by_link").symlink_to(root, target_is_directory=True)
    assert list_files("VideoFolder", str(tmp_path / "by_link"), (".mp4",)) == ["here/0.mp4", "linked/deep/1.mp4"]


def test_odd_names_are_kept_and_others_named_once(tmp_path, caplog):
    odd = ["a:b.mp4", "[x] *?.mp4", "back\\slash.mp4", "new\nline.mp4", "-dash.mp4", "ü.MP4", " space .mp4"]
    for name in odd:
        touch(tmp_path / name)
    (tmp_path / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):  # of two splits
            skipped = SkippedFiles()
            assert list_files("VideoFolder", str(tmp_path), (".mp4",), skipped) == sorted(odd)
    assert dict(skipped) == {"caf\\xe9.mp4": "its name is not UTF-8; rename it"}
    assert caplog.text.count("skipped caf\\xe9.mp4") == 1


def test_folders_that_cannot_be_listed(tmp_path, monkeypatch):
    for name in ("a/0.mp4", "b/1.mp4"):
        touch(tmp_path / name)
    listing, problem = os.scandir, [PermissionError(13, "Permission denied")]

    def failing(path):
        if str(path).endswith("/b"):
            raise problem[0]
        return listing(path)

    monkeypatch.setattr(os, "scandir", failing)
    skipped = SkippedFiles()
    assert list_files("VideoFolder", str(tmp_path), (".mp4",), skipped) == ["a/0.mp4"]
    assert dict(skipped) == {"b": "cannot be read: Permission denied"}
    problem[0] = OSError(24, "Too many open files")  # passes: half a listing must not be taken for the whole
    with refused("folder._walk"):
        list_files("VideoFolder", str(tmp_path), (".mp4",))


def test_replaced_clips_are_counted_and_limited(caplog):
    names, skipped = [f"{n}.mp4" for n in range(20)], SkippedFiles()

    def read(number):
        if number < damaged:
            raise UserError("does not decode")
        return number

    damaged = 2
    with caplog.at_level(logging.WARNING):
        assert skipped.first_readable(0, names, read) == 2 and skipped.first_readable(5, names, read) == 5
    assert skipped.replaced == 1 and list(skipped) == names[:2]
    assert "skipped 0.mp4: does not decode" in caplog.text and "1 clips so far came from another file" in caplog.text
    damaged = MAX_DAMAGED + 1
    with refused("folder.SkippedFiles.first_readable", "11", "20", "10"):
        skipped.first_readable(0, names, read)
