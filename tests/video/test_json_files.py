"""JSON files are read up to a size, by all who read those of strangers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.annotation.poses import Pose
from vdm_jax.data.control_record import RECORD, read_record
from vdm_jax.video import json_files
from vdm_jax.video.json_files import read_json
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.strokes import read_strokes
from vdm_jax.video.writing import write_video


def test_files_are_read_up_to_a_size(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text('{"a": "é"}')
    assert read_json(path) == {"a": "é"}
    monkeypatch.setattr(json_files, "MAX_BYTES", path.stat().st_size)
    assert read_json(path) == {"a": "é"}
    monkeypatch.setattr(json_files, "MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(ValueError, match="more than 10 bytes"):
        read_json(path)


def test_every_reader_names_a_file_that_is_too_large_or_too_deep(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", np.zeros((1, 16, 16, 3), np.uint8), fps=8, lossless=True)
    (tmp_path / RECORD).write_text(json.dumps({"kind": "canny", "settings": {}}))
    assert read_record(tmp_path).kind == "canny"
    with VideoReader(tmp_path / "a.mp4") as video:
        readers = (
            ("strokes", "s.json", lambda: read_strokes(tmp_path / "s.json")),
            ("control_record", RECORD, lambda: read_record(tmp_path)),
            ("annotation.poses", "a.json", lambda: list(Pose(keypoints=str(tmp_path)).frames(video, "a.mp4"))))
        for text, most, named in (("{" + 100 * " " + "}", 9, "more than 9 bytes"), ("[" * 100_000, 2**20, "")):
            monkeypatch.setattr(json_files, "MAX_BYTES", most)
            for code, name, read in readers:
                (tmp_path / name).write_text(text)
                with refused(code, name, named):
                    read()
