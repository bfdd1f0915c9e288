"""The report: complete, self-contained, and honest about what cannot be compared."""

import base64
import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from vdm_jax.cascade.stage import Experiment, Stage, VideoSpec
from vdm_jax.commands.main import main
from vdm_jax.configuration import to_json
from vdm_jax.data.captioned_digits import CaptionedDigits
from vdm_jax.diffusion.process import Process
from vdm_jax.errors import UserError
from vdm_jax.evaluation.curves import chart
from vdm_jax.evaluation.report import page, read_run
from vdm_jax.evaluation.scores import Score
from vdm_jax.networks.config import Level, UNet
from vdm_jax.video.writing import write_png, write_video

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Reads a page: its text, its elements and what they refer to; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.sources, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "poster", "xlink:href")]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def score(value, **conditions):
    return Score(metric="fvd", value=value, better="lower", protocol="original", detector="i3d", detector_sha256="abc",
                 conditions={"real_clips": 8} | conditions, deviations=("frames 9 instead of 16",))


@pytest.fixture
def make_run(tmp_path):
    """A function that makes a run directory of one stage with everything that a report shows."""

    def make(name, seed=0, value=100.0, **conditions):
        folder = tmp_path / name
        stage = Stage(name="base", video=VideoSpec(frames=4, height=8, width=8), process=Process(),
                      network=UNet(levels=(Level(channels=4),)))
        experiment = Experiment(name="tiny <b>", stages=(stage,), data=CaptionedDigits(), seed=seed)
        (folder / "base" / "samples").mkdir(parents=True)
        (folder / "config.json").write_text(to_json(experiment))
        lines = [{"step": step, "time": 1.0, "loss": 100.0 / step} for step in range(1, 900)]
        lines.append({"step": 900, "time": 2.0, "validation_loss": 0.5, "loss": "nan"})
        (folder / "base" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        video = np.zeros((4, 16, 16, 3), np.uint8)
        for step in (5, 20):
            write_png(folder / "base" / "samples" / f"step_{step:07d}.png", video[0] + step)
        write_video(folder / "base" / "samples" / "step_0000020.mp4", video, 8)
        record = {"scores": [score(value, **conditions).to_dict()], "real": [], "settings": {}}
        (folder / "metrics.json").write_text(json.dumps(record))
        digits = {"generated": {"count": 0.5, "whole": 0.25}}
        (folder / "evaluation.json").write_text(json.dumps({"scores": digits, "protocol": {}}))
        return folder

    return make


def test_one_file_holds_everything_and_refers_to_nothing(make_run, capsys):
    first, second = make_run("one"), make_run("two", seed=7, value=80.0)
    assert main(["report", str(first), str(second)]) == 0
    assert capsys.readouterr().out.strip() == str(first / "report.html")
    text = (first / "report.html").read_text()
    found = Page(text)
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    without_data = re.sub(r"base64,[^\"]*", "", text).replace("http-equiv", "")
    assert "http" not in without_data and "url(" not in without_data
    assert found.sources and all(source.startswith("data:") for source in found.sources)
    newest = (first / "base" / "samples" / "step_0000020.png").read_bytes()
    film = (first / "base" / "samples" / "step_0000020.mp4").read_bytes()
    assert f"data:image/png;base64,{base64.b64encode(newest).decode()}" in found.sources
    assert f"data:video/mp4;base64,{base64.b64encode(film).decode()}" in found.sources and "video" in found.tags
    assert "<b>" not in text and "tiny <b>" in found.text  # names are text
    for part in ("fvd (original), OFF PROTOCOL", "100", "80", "off protocol: frames 9 instead of 16", "SHA-256 abc",
                 "900", "seed", "validation_loss", "0.25", '"kind": "Experiment"'):
        assert part in found.text
    assert "not comparable" not in found.text and found.tags.count("svg") == 2


def test_scores_made_differently_are_marked(make_run):
    folders = [make_run("one"), make_run("two", real_clips=9), make_run("three")]
    found = Page(page([read_run(folder, folder.name) for folder in folders]))
    assert found.text.count("not comparable: real_clips is 8 and 9") == 1
    assert "one and three have one config." in found.text


def test_a_run_with_nothing_but_a_config_has_a_page(make_run, tmp_path):
    full = make_run("one")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text((full / "config.json").read_text())
    found = Page(page([read_run(tmp_path / "bare", "bare")]))
    assert "Configs" in found.text and "Curves" not in found.text and "Scores" not in found.text


def test_large_files_are_named_and_left_out(make_run, monkeypatch):
    monkeypatch.setattr("vdm_jax.evaluation.report_html.LARGEST", 10)
    folder = make_run("one")
    found = Page(page([read_run(folder, "one")]))
    assert "step_0000020.mp4 is left out" in found.text and found.sources == []


def test_curves_leave_out_what_is_not_finite():
    drawn = chart("loss", {"a": ([1, 2, 3], [1.0, np.nan, 3.0]), "b": ([1], [2.0])}, {"a": "#000", "b": "#111"})
    assert drawn.count("<polyline") == 1 and drawn.count("<circle") == 3 and "nan" not in drawn and "(log)" not in drawn
    assert "(log)" in chart("x", {"a": ([1, 2], [0.1, 9.0])}, {"a": "#000"})
    assert chart("x", {"a": ([1], [np.inf])}, {"a": "#000"}) == ""
    aimed = chart("x", {"a": ([1, 2], [5.0, 6.0])}, {"a": "#000"}, {"a": ([2], [9.0])})  # dashed, all along the axis
    dashed = re.search(r'points="62.0,26.0 448.0,26.0" fill="none" stroke="#000"[^/]*stroke-dasharray', aimed)
    assert dashed and "a, real clips" in aimed and aimed.count("<circle") == 2
    constant = chart("x", {"a": ([1, 2], [5.0, 5.0])}, {"a": "#000"})
    assert "nan" not in constant and constant.count("<polyline") == 1


def test_scores_survive_json():
    from vdm_jax.evaluation.frechet import Interval

    whole = dataclasses.replace(score(3.0), interval=Interval(low=1.0, high=5.0, level=0.95, resamples=10))
    assert Score.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole


def test_bad_requests_are_refused(make_run, tmp_path, capsys):
    folder = make_run("one")
    assert main(["report", str(folder), "--out", str(tmp_path / "page.pdf")]) == 2
    assert "permitted: a file that ends in .html" in capsys.readouterr().err
    assert main(["report"]) == 2 and main(["report", str(tmp_path / "gone")]) == 2
    with pytest.raises(UserError, match="permitted: one or more, with names of their own"):
        page([read_run(folder, "one")] * 2)
    (folder / "metrics.json").write_text('{"scores": [{"metric": "fvd"}]}')
    with pytest.raises(UserError, match="is not a record of metrics .*'vdm-jax evaluate --metrics'"):
        read_run(folder, "one")
    (folder / "metrics.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON .*; permitted: delete it, and evaluate again"):
        read_run(folder, "one")
