"""Memory and time of long videos: what is measured, once, and what the page says."""

from __future__ import annotations

import itertools

from experiments.editing.run import read
from experiments.long_video import cost

PAGE = "<!-- cost:begin -->\n<!-- cost:end -->\n"


def test_rows_are_measured_once_and_compared(tmp_path, monkeypatch):
    commands = []

    def measured(command, **environment):
        commands.append((command, environment))
        if "train" in command:
            (tmp_path / command[command.index("--run") + 1]).mkdir()
            return {}
        frames, devices = int(command[command.index("--frames") + 1]), int(environment["JAX_NUM_CPU_DEVICES"])
        return {"wall": frames / devices, "cpu": 1.0, "peak_mib": 1000 + frames}

    monkeypatch.setattr(cost, "measured", measured)
    page, options = tmp_path / "page.md", cost.Run(out=tmp_path / "cost.json", methods=("nuwa_xl",))
    page.write_text(PAGE)
    cost.main(options, page)
    rows = read(options.out)
    assert [(row["frames"], row["devices"], row["segments"], row["rounds"]) for row in rows] == [
        (226, 1, 16, 2), (226, 8, 16, 2), (3376, 1, 241, 3), (3376, 8, 241, 3)]
    assert [("train" in command) for command, _ in commands] == [True, False, False, False, False]
    shown = page.read_text()
    assert "`nuwa_xl`: 3.57 times the memory at 3376 frames of that at 226." in shown
    assert "`nuwa_xl`: 8.00 times as fast on 8 virtual devices" in shown
    cost.main(options, page)
    assert len(commands) == 5 and page.read_text() == shown


def test_extension_has_one_segment_at_a_time():
    found = cost.planned({"method": "autoregressive", "frames": 226})
    assert found["segments"] == found["rounds"] == 28


def test_the_page_has_the_record():
    rows = read(cost.Run().out)
    assert {(row["method"], row["frames"], row["devices"]) for row in rows} == set(itertools.product(
        cost.Run().methods, cost.Run().frames, cost.Run().devices))
    text = (cost.FOLDER / "README.md").read_text()
    assert cost.insert(text, "cost", cost.table(rows)) == text
