"""The report: complete, self-contained, and honest about what cannot be compared."""

import base64
import dataclasses
import functools
import importlib.util
import json
import re

import numpy as np
import pytest

from tests.refusals import refused
from tests.reports import pages
from tests.reports.pages import SVG, Page, score, write_metrics
from vdm_jax.commands.main import main
from vdm_jax.metrics.measures import COMPANIONS
from vdm_jax.metrics.scores import Score
from vdm_jax.reports.curves import chart
from vdm_jax.reports.page import label, page, read_run
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.writing import write_png


@pytest.fixture
def make_run(tmp_path):
    """A function that makes a run directory with everything that a report shows."""
    return functools.partial(pages.make_run, tmp_path)


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
                 "900", "seed", "validation loss 0.5 (one), 0.5 (two)", "0.25", '"kind": "Experiment"'):
        assert part in found.text
    assert "not comparable" not in found.text and sorted(found.charts) == ["psnr", "training loss"]
    assert text.count("data:image/svg") == 3  # loss, psnr by step and by checkpoint
    for drawn in found.charts.values():  # an image loads nothing
        assert not re.findall(r'(?:href="|url\()(?!#)', drawn)
    assert text.index("<h2>Samples") < text.index("<h2>Curves")
    for part in ("Scores of checkpoints", "Scores while training", "kind: checkpoint", "hardly notices frozen"):
        assert part in found.text
    assert text.index("step_0000020.png") < text.index("step_0000005.png")  # the newest first, others folded away


def test_videos_inside_the_page_decode(make_run, tmp_path):
    text = page([read_run(make_run("one"), "one")])
    films = re.findall(r'<video [^>]*src="data:video/mp4;base64,([^"]*)"></video>', text)
    assert len(films) == 2
    for film, least in zip(films, (20, 5), strict=True):
        (tmp_path / "film.mp4").write_bytes(base64.b64decode(film, validate=True))
        with VideoReader(tmp_path / "film.mp4") as reader:
            frames = reader.frames(range(4))
        assert frames.shape[0] == 4 and abs(float(frames[3, 8, 8].mean()) - 150 - least) < 12


def test_of_many_steps_some_are_shown(make_run):
    folder = make_run("one")
    for step in range(100, 120):
        write_png(folder / "base" / "samples" / f"step_{step:07d}.png", np.zeros((4, 4, 3), np.uint8))
    text = page([read_run(folder, "one")])
    assert text.count("data:image/png") == 12 and "10 steps in between are left out" in text
    assert "step_0000119.png" in text and "step_0000005.png" in text


def test_a_distance_beside_what_it_does_not_hear_is_not_warned_of(make_run):
    folder = make_run("one")
    beside = [dataclasses.replace(score(1.0), metric=name, protocol="") for name in COMPANIONS]
    write_metrics(folder / "metrics.json", score(3.0), beside[0])
    assert "frame_lpips, which do, are missing" in page([read_run(folder, "one")])
    write_metrics(folder / "metrics.json", score(3.0), *beside)
    assert "hardly notices" not in page([read_run(folder, "one")])


def test_scores_made_differently_are_marked(make_run):
    folders = [make_run("one"), make_run("two", real_clips=9), make_run("three")]
    found = Page(page([read_run(folder, folder.name) for folder in folders]))
    assert found.text.count("not comparable: real_clips is 8 and 9") == 1
    assert "one and three have one config." in found.text
    other = Score(metric="psnr", value=9.0, better="higher", conditions={"videos": 5, "kind": "training"})
    write_metrics(folders[2] / "base" / "evaluation" / "training_0000900.json", other)
    found = Page(page([read_run(folder, folder.name) for folder in folders]))
    assert found.text.count("psnr of three and of one are not comparable: videos is 4 and 5.") == 1


def test_a_run_with_nothing_but_a_config_has_a_page(make_run, tmp_path):
    full = make_run("one")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text((full / "config.json").read_text())
    found = Page(page([read_run(tmp_path / "bare", "bare")]))
    assert "Configs" in found.text and "Curves" not in found.text and "Scores" not in found.text


def test_large_files_are_named_and_left_out(make_run, monkeypatch):
    monkeypatch.setattr("vdm_jax.reports.page.LARGEST", 10)
    folder = make_run("one")
    found = Page(page([read_run(folder, "one")]))
    assert "step_0000020.mp4 is left out" in found.text
    assert found.sources and all(source.startswith(SVG) for source in found.sources)  # charts alone


def test_what_autoencoders_give_back_is_shown(make_run):
    folder = make_run("one")
    record = {"scores": {"psnr": 31.25, "ssim": "nan"}, "clips": 12, "scale": 0.182, "shift": 0.5}
    (folder / "base" / "reconstruction.json").write_text(json.dumps(record))
    found = Page(page([read_run(folder, "one")]))
    assert "What autoencoders give back" in found.text and "onebase1231.25nan0.1820.5" in found.text


def lines_of(drawn):
    """The paths of a chart's lines by name, and how many points of each are marked."""
    group = re.compile(r'<g id="([^"]*)">\s*<path d="([^"]*)"(.*?)</g>', re.DOTALL)
    return {name: (np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", path), float), rest.count("<use"), rest)
            for name, path, rest in group.findall(drawn) if not re.fullmatch(r"[a-z]+[\d.]*_\d+", name)}


def test_curves_leave_out_what_is_not_finite():
    drawn = chart("loss", {"a": ([1, 2, 3], [1.0, np.nan, 3.0]), "b": ([1], [2.0])}, {"a": "#000", "b": "#111"})
    assert "nan" not in drawn and "(log)" not in drawn and "loss" in texts(drawn)
    assert len(lines_of(drawn)["a"][0]) == 2 and drawn.count("<use") - len(ticks(drawn)) == 3  # points are marked
    assert "(log)" in chart("x", {"a": ([1, 2], [0.1, 9.0])}, {"a": "#000"})
    assert chart("x", {"a": ([1], [np.inf])}, {"a": "#000"}) == ""
    aimed = chart("x", {"a": ([1, 2], [5.0, 6.0])}, {"a": "#000"}, {"a": ([2], [9.0])})  # dashed, all along the axis
    places, _, style = lines_of(aimed)["a, real clips"]
    line = lines_of(aimed)["a"][0]
    assert places[0, 1] == places[1, 1] < line[:, 1].min() and "stroke-dasharray" in style
    assert places[0, 0] < line[:, 0].min() and places[1, 0] > line[:, 0].max()
    assert "nan" not in chart("x", {"a": ([1, 2], [5.0, 5.0])}, {"a": "#000"})


def texts(drawn):
    return re.findall(r"<text[^>]*>([^<]*)</text>", drawn)


def ticks(drawn):
    return re.findall(r'<g id="[xy]tick_\d+">', drawn)


def test_long_curves_are_averaged_in_groups():
    drawn = chart("loss", {"a": (np.arange(9000), np.sin(np.arange(9000)))}, {"a": "#000"})
    assert len(lines_of(drawn)["a"][0]) <= 300 and len(drawn) < 60_000


def test_values_that_never_change_are_a_line_rather_than_curves(make_run):
    folder = make_run("one")
    lines = [{"step": step, "skipped": 0, "learning_rate": 0.1 / step} for step in (1, 2, 3)]
    (folder / "base" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = Page(page([dataclasses.replace(read_run(folder, "one"), checkpoints={})]))
    assert list(found.charts) == ["learning rate"]
    assert "one value throughout: skipped steps (gradient not finite) 0." in found.text


def test_axes_have_round_labels_and_steps_are_whole_numbers():
    drawn = chart("loss", {"a": ([1, 2, 3], [1.0, 2.0, 3.0])}, {"a": "#000"})
    shown = texts(drawn)
    assert shown[shown.index("step") - 3 : shown.index("step") + 1] == ["1", "2", "3", "step"]
    logarithmic = texts(chart("loss", {"a": ([1, 2], [0.1, 9.0])}, {"a": "#000"}))
    assert {"0.1", "0.2", "0.5", "1", "2", "5"} <= set(logarithmic)
    wide = texts(chart("loss", {"a": ([1, 2], [1e-7, 90.0])}, {"a": "#000"}))
    assert len({"1e-06", "0.0001", "0.01", "1", "1e-05", "0.001", "0.1"} & set(wide)) >= 3


def test_scores_survive_json():
    from vdm_jax.metrics.frechet import Interval

    whole = dataclasses.replace(score(3.0), interval=Interval(low=1.0, high=5.0, level=0.95, resamples=10))
    assert Score.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole


def test_bad_requests_are_refused(make_run, tmp_path, capsys):
    folder = make_run("one")
    assert main(["report", str(folder), "--out", str(tmp_path / "page.pdf")]) == 2
    assert "permitted: .html" in capsys.readouterr().err
    assert main(["report"]) == 2 and main(["report", str(tmp_path / "gone")]) == 2
    with refused("page.page"):
        page([read_run(folder, "one")] * 2)
    (folder / "metrics.json").write_text('{"scores": [{"metric": "fvd"}]}')
    with refused("checkpoints.read_metrics", "'vdm-jax evaluate --metrics'"):
        read_run(folder, "one")
    (folder / "metrics.json").write_text("{")
    with refused("checkpoints.read_record"):
        read_run(folder, "one")


def test_curves_have_titles_in_words():
    assert label("digits/whole") == "whole captions right (share)" and label("digits/digit") == "digits right (share)"
    assert label("loss") == "training loss" and label("validation_loss") == "validation loss"


def test_without_its_packages_the_extra_is_named(make_run, monkeypatch, capsys):
    folder = make_run("one")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jinja2" else find(name))
    assert main(["report", str(folder)]) == 2
    assert "a report needs Jinja2, which is not installed; permitted: pip install 'vdm_jax[plots]'" in (
        capsys.readouterr().err)
