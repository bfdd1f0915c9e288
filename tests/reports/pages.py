"""Run directories with everything that a page about runs shows, and a reader of such pages."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from vdm_jax.configuration import to_json
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.evaluation.run_metrics import RunMetrics
from vdm_jax.metrics.scores import Score
from vdm_jax.networks.config import Level, UNet
from vdm_jax.runs.records import json_ready
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax.video.writing import write_png, write_video

VOID = {"meta", "img", "br"}
SVG = "data:image/svg+xml;base64,"


class Page(HTMLParser):
    """Reads a page: its text, its elements, what they refer to, and its charts as SVG by title; fails on tags that do
    not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.sources, self.charts, self.text = [], [], [], {}, ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "poster", "xlink:href")]
        assert not any(name.startswith("on") for name, _ in attributes)
        source = dict(attributes).get("src") or ""
        if source.startswith(SVG):
            self.charts[dict(attributes)["alt"]] = base64.b64decode(source.removeprefix(SVG)).decode()
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def score(value, **conditions):
    return Score(metric="fvd", value=value, better="lower", protocol="original", detector="i3d", detector_sha256="abc",
                 conditions={"real_clips": 8} | conditions, deviations=("frames 9 instead of 16",))


def make_run(parent: Path, name: str, seed: int = 0, value: float = 100.0, **conditions) -> Path:
    """A run of one stage: metrics, grids and videos of two steps, scores of every kind."""
    folder = parent / name
    stage = Stage(name="base", video=VideoSpec(frames=4, height=8, width=8), process=Process(),
                  network=UNet(levels=(Level(channels=4),)))
    experiment = Experiment(name="tiny <b>", stages=(stage,), data=CaptionedDigits(), seed=seed)
    (folder / "base" / "samples").mkdir(parents=True)
    (folder / "config.json").write_text(to_json(experiment))
    lines = [{"step": step, "time": 1.0, "loss": 100.0 / step} for step in range(1, 900)]
    lines.append({"step": 900, "time": 2.0, "validation_loss": 0.5, "loss": "nan"})
    lines += [{"step": step, "time": 3.0, "evaluation/psnr": step / 100, "evaluation/real/psnr": 30.0}
              for step in (450, 900)]
    (folder / "base" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    video = np.zeros((4, 16, 16, 3), np.uint8)
    video[:, 4:12, 4:12] = np.arange(0, 200, 50, dtype=np.uint8)[:, None, None, None]
    for step in (5, 20):
        write_png(folder / "base" / "samples" / f"step_{step:07d}.png", video[0] + np.uint8(step))
        write_video(folder / "base" / "samples" / f"step_{step:07d}.mp4", video + np.uint8(step), 8)
    write_metrics(folder / "metrics.json", score(value, **conditions))
    for kind, steps in (("training", (450, 900)), ("checkpoint", (800, 900))):
        for step in steps:
            found = Score(metric="psnr", value=step / 100, better="higher", conditions={"videos": 4, "kind": kind})
            write_metrics(folder / "base" / "evaluation" / f"{kind}_{step:07d}.json", found)
    digits = {"generated": {"count": 0.5, "whole": 0.25}}
    (folder / "evaluation.json").write_text(json.dumps({"scores": digits, "protocol": {}}))
    return folder


def write_metrics(path: Path, *scores: Score) -> None:
    """A record of scores."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(json_ready(RunMetrics(scores=scores, real=(), settings={}).to_dict())))
