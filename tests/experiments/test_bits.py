"""Bits per dimension of MNIST: what the record says, and that the page is of it."""

from __future__ import annotations

import json

import pytest

from experiments.metrics import bits
from tests.experiments.test_editing import generator


def test_a_model_is_measured_and_put_into_the_page(tmp_path, monkeypatch, capsys):
    tiny = generator()
    stage, = tiny.experiment.stages
    (tmp_path / "run" / stage.name).mkdir(parents=True)
    (tmp_path / "run" / stage.name / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 7, "validation_loss": 0.5}\n')
    monkeypatch.setattr(bits, "load", lambda run: tiny)
    page, out = tmp_path / "README.md", tmp_path / "bits.json"
    page.write_text("before\n<!-- bits:begin -->\n<!-- bits:end -->\n")
    bits.main(bits.Run(tmp_path / "run", count=2, steps=2, before=4, out=out), page)
    record = json.loads(out.read_text())
    assert record["validation_loss"] == 0.5 and record["score"]["conditions"]["clips"] == 2
    assert record["train_steps"] == [4, 7] and record["batch"] == stage.training.batch_size
    said = f"4 + 7 steps of {record['batch']} | {record['score']['value']:.2f} ("
    assert said in page.read_text() and said in capsys.readouterr().out


def test_the_page_is_of_its_record():
    text, record = ((bits.FOLDER / name).read_text() for name in ("README.md", "results/mnist_bits.json"))
    assert bits.insert(text, "bits", bits.table(json.loads(record))) == text
    assert json.loads(record)["score"]["value"] == pytest.approx(1, abs=1)  # of 8 bits
