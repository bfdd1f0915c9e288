"""The memory of long edits: each row is a command in a process of its own, and what the page says."""

from __future__ import annotations

from experiments.editing import long_edits, run
from tests.generation.editing.given import write_square
from tests.pipelines.folders import write_control
from tests.refusals import refused


def test_long_edits_are_measured_once_in_a_process_of_their_own(tmp_path):
    write_square(tmp_path / "given.mp4", 9)
    model = write_control(tmp_path / "control")
    page, out = tmp_path / "page.md", tmp_path / "rows.json"
    page.write_text("<!-- long_edits:begin -->\n<!-- long_edits:end -->\n")
    options = long_edits.Run(tmp_path / "given.mp4", model, frames=(9,), together=(), size=(32, 32), steps=1, out=out)
    long_edits.main(options, page)
    row, = run.read(out)
    assert (row["frames"], row["seen"], row["sampler"]) == (9, 5, long_edits.HIERARCHICAL)  # key frames 0, 2, 4, 6, 8
    assert row["cpu"] > 0 and (row["peak_mib"] is None or row["peak_mib"] > 100)  # None: no more than this process has
    long_edits.main(options, page)  # which goes on with nothing
    assert run.read(out) == [row] and "| from key frames | 9 | 5 |" in page.read_text()


def test_a_video_has_as_many_frames_as_are_asked_for(tmp_path):
    write_square(tmp_path / "given.mp4", 9)
    with refused("long_edits.video", "has 9 frames; permitted: from 16"):
        long_edits.rows(long_edits.Run(tmp_path / "given.mp4", tmp_path, frames=(9,), together=(16,)))


def test_the_page_has_the_record_of_long_edits():
    rows, text = run.read(run.FOLDER / "results" / "long_edits.json"), (run.FOLDER / "README.md").read_text()
    assert long_edits.insert(text, "long_edits", long_edits.table(rows)) == text
    assert {row["frames"] for row in rows if row["sampler"] == long_edits.HIERARCHICAL} == {16, 50, 100}
