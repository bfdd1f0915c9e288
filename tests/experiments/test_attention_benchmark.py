"""The attention experiments: presets that hold the numbers to reach, targets from a record, equal FLOP budgets."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.attention_benchmark import run, targets, which_pattern, which_pattern_report, which_pattern_samples
from experiments.attention_benchmark.presets import PRESETS
from experiments.attention_benchmark.variants import VARIANTS, cost, tokens, with_patterns
from tests.benchmark.record import measured, record, skipped
from tests.refusals import refused
from vdm_jax.attention import Full, Spatial, Temporal
from vdm_jax.attention.patterns import attention_flops
from vdm_jax.benchmark.cases import Case
from vdm_jax.commands.configs import load_config
from vdm_jax.networks.config import SelfAttention

TINY = str(Path(__file__).parent / "tiny_base.py")
README = Path(run.__file__).with_name("README.md")


def filled(**seconds: float) -> dict:
    """A record of the CPU preset in which every case took a second, or what is given by kernel."""
    rows = [measured(case, seconds.get(case.kernel, 1.0), 2**30) for case in PRESETS["cpu"].cases()]
    return record(*rows)


class TestPresets:
    def test_the_cpu_preset_holds_every_number_to_reach(self):
        values = [target.value(filled()["rows"]) for target in targets.targets()]
        assert None not in values and len(values) == 13

    def test_long_cases_stand_last_and_none_twice(self):
        cases = PRESETS["cpu"].cases()
        assert len({case.key for case in cases}) == len(cases)
        assert cases[-1].tokens == 65536 and max(case.tokens for case in cases[:-2]) == 8192

    def test_every_preset_has_its_place_in_the_readme(self):
        text = README.read_text()
        for name in (*PRESETS, "which_pattern"):
            assert f"<!-- {name}:begin -->" in text and f"<!-- {name}:end -->" in text


class TestTargets:
    def test_nothing_recorded(self):
        assert targets.table({}, targets.targets()).count("not recorded") == len(targets.targets())

    def test_met_and_missed(self):
        lines = targets.table(filled(xla=8.0, gather=1.5, chunked=10.0)["rows"], targets.targets()).splitlines()
        chosen = {key: next(line for line in lines if key in line) for key in ("chunked / dense", "dense with a mask")}
        assert chosen["chunked / dense"].endswith("| <= 1.2 | 1.25 | missed |")
        assert chosen["dense with a mask"].endswith("| >= 4 | 5.33 | met |")

    def test_dense_that_does_not_fit(self):
        case = Case(pattern=Full(), kernel="xla", frames=16, height=64, width=64, mode="forward+backward")
        rows = record(skipped(case, "does not fit: needs at least 257.0 GiB"))["rows"]
        assert "| 1 | 1.00 | met |" in targets.table(rows, targets.targets())

    def test_memory_that_falls_with_the_chips_and_memory_that_does_not(self):
        def rows(temporaries: float) -> dict:
            case = next(c for c in PRESETS["v5p_4"].cases() if c.pattern == Full() and c.context == "ring")
            found = {"status": "compiled", "memory": {"temporaries": temporaries, "total": 2**30}, "collectives": {}}
            return {case.key: found}

        lines = targets.table(targets.pod_rows({4: rows(8.0), 16: rows(2.0), 64: rows(1.0)}), targets.pod_targets())
        assert "times 4 | <= 1.3 | 1.00 | met |" in lines and "times 4 | <= 1.3 | 2.00 | missed |" in lines
        assert "| <= 95.7 | 1.00 | met |" in lines and lines.count("not recorded") == 2

    def test_the_dense_row_is_left_out_on_a_machine_of_24_gib(self):
        case = Case(pattern=Full(), kernel="xla", frames=16, height=64, width=64, mode="forward+backward")
        assert case in PRESETS["cpu"].cases()
        assert case.least_bytes("xla", "cpu") > 10 * 24 * 2**30


def test_the_report_replaces_what_stands_between_the_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(README.read_text())
    results = tmp_path / "results"
    (results / "cpu").mkdir(parents=True)
    (results / "cpu.json").write_text(json.dumps(filled()))
    (results / "cpu" / "forward_frames.png").write_bytes(b"")
    for _ in range(2):  # a second time changes nothing
        run.write_report(results, readme)
        text = readme.read_text()
        part = text.split("<!-- cpu:begin -->")[1].split("<!-- cpu:end -->")[0]
        assert part.count("| wanted | recorded |") == 1 and "![forward frames](results/cpu/forward_frames.png)" in part
    assert text.count("Not recorded yet.") == README.read_text().count("Not recorded yet.") - ("Not recorded yet." in
           README.read_text().split("<!-- cpu:begin -->")[1].split("<!-- cpu:end -->")[0])


@pytest.fixture(scope="module")
def base():
    return load_config("pattern_digits").stage("base")


class TestCost:
    def test_attention_is_counted_as_the_mask_has_it(self, base):
        shape = tokens(base)
        assert shape == (8, 4, 4)
        found = {name: cost(base, VARIANTS[name]) for name in ("full", "causal", "spatial")}
        layers = found["full"].attention / attention_flops(Full(), shape, heads=1, head_dim=128)
        assert layers == 5  # one on the way down, two in the middle, two up
        assert found["causal"].attention == found["full"].attention * 36 / 64
        assert found["spatial"].attention == found["full"].attention / 8

    def test_the_rest_is_the_same_for_every_single_pattern(self, base):
        rests = {cost(base, patterns).rest for patterns in VARIANTS.values() if len(patterns) == 1}
        assert len(rests) == 1
        assert cost(base, VARIANTS["spatial + temporal"]).rest > rests.pop()

    @pytest.mark.parametrize("frames", [8, 16])  # from 16 frames on a masked pattern's products are made tile by tile
    def test_the_rest_is_the_same_however_a_kernel_makes_its_products(self, base, frames):
        stage = dataclasses.replace(base, video=dataclasses.replace(base.video, frames=frames))
        assert len({cost(stage, VARIANTS[name]).rest for name in ("full", "causal", "local window 3x3x3")}) == 1

    def test_patterns_stand_where_attention_stood(self, base):
        stage = with_patterns(base, (Spatial(), Temporal()))
        kinds = [[type(m.pattern).__name__ if isinstance(m, SelfAttention) else "other" for m in mixers]
                 for mixers in (stage.network.levels[0].mixers, stage.network.middle)]
        assert kinds == [["Spatial", "Temporal", "other"], 2 * ["Spatial", "Temporal", "other"]]

    def test_networks_of_several_levels_are_refused(self, base):
        levels = base.network.levels * 2
        stage = dataclasses.replace(base, network=dataclasses.replace(base.network, levels=levels, patch=4))
        with pytest.raises(ValueError, match="2 levels; permitted: 1"):
            cost(stage, (Full(),))


def row(variant: str, seed: int, whole: float, frames: int = 8) -> dict:
    """A row of the comparison of patterns."""
    scores = {name: dict.fromkeys(which_pattern_report.ATTRIBUTES, value)
              for name, value in (("generated", whole), ("real clips (ceiling)", 1.0))}
    return {"variant": variant, "frames": frames, "seed": seed, "patterns": ["Full"], "batch": 8,
            "flops_per_step": 2e9, "forward_flops_per_clip": 1e8, "attention_share": 0.125, "parameters": 100,
            "train_seconds": 5.0, "device": "a CPU",
            "curve": [{"step": 5, "validation_loss": 1.0}, {"step": 10, "validation_loss": 0.5}],
            "budgets": {"FLOPs": {"steps": 10, "scores": scores}, "time": {"steps": 5, "scores": scores}}}


def timed(ratio: float) -> dict:
    """Times of a pattern."""
    return {"seconds": ratio / 10, "bytes": 2**21, "rounds": 3, "device": "a CPU", "ratio": ratio}


def compared(*rows: dict) -> dict:
    """A record of the comparison of patterns."""
    times = {name: timed(ratio) for name, ratio in (("full", 1.0), ("spatial", 0.5))}
    named = {f"{r['variant']} | {r['frames']} frames | seed {r['seed']}": r for r in rows}
    return {**record(rows=named), "times": {"8": times}}


class TestWhichPattern:
    PRESET = which_pattern.Preset(config=TINY, variants=("full", "spatial"), seeds=(0, 1), frames=(4,), tokens_of=4,
                                  steps=4, every=2, validation_clips=8, scored_clips=2, sampling_steps=1)

    def test_everybody_gets_the_flops_and_the_time_of_full_attention(self):
        preset = which_pattern.PRESETS["cpu"]
        assert which_pattern.budgets(preset, "full", 8, 1.0) == {"FLOPs": preset.steps, "time": preset.steps}
        found = which_pattern.budgets(preset, "spatial + temporal", 8, 0.5)
        stage = load_config(preset.config).stage("base")
        flops, full = (cost(stage, VARIANTS[name]).training for name in ("spatial + temporal", "full"))
        assert abs(found["FLOPs"] * flops - preset.steps * full) <= preset.every * flops / 2
        assert found["time"] == 2 * preset.steps and not any(steps % preset.every for steps in found.values())

    def test_longer_clips_last_as_long_and_have_as_many_tokens_in_a_batch(self):
        found = [which_pattern.experiment_of(which_pattern.PRESETS["frames"], "full", frames) for frames in (8, 32)]
        (short, long), (base, _) = [e.stage("base") for e in found], [e.data for e in found]
        assert short.training.batch_size == 4 * long.training.batch_size
        assert short.video.frames / short.video.fps == long.video.frames / long.video.fps == base.frames / base.fps
        assert found[1].data.frames == 32 and found[1].data.fps == long.video.fps

    def test_every_seed_is_a_seed_of_the_whole_training(self):
        rows = self.PRESET.rows()
        assert [r.seed for r in rows] == [0, 0, 1, 1] and len({r.key for r in rows}) == 4
        assert which_pattern.experiment_of(self.PRESET, "full", 4, seed=1).seed == 1

    def test_recorded_rows_are_not_trained_again_and_parts_divide_them(self, monkeypatch, tmp_path):
        trained = []

        def measure(preset, one, times, run, data_dir=None, *, quiet=False):
            trained.append((one.variant, one.seed))
            if len(trained) == 2:
                raise KeyboardInterrupt
            return row(one.variant, one.seed, 0.5)

        monkeypatch.setattr(which_pattern, "measure", measure)
        monkeypatch.setattr(which_pattern, "step_times", lambda experiments, *_, **__: {
            name: timed(1.0) for name in experiments})
        path = tmp_path / "record.json"
        which_pattern.record_times(self.PRESET, path)
        with pytest.raises(KeyboardInterrupt):
            which_pattern.record(self.PRESET, path, tmp_path, part=(1, 2), quiet=True)
        assert list(json.loads(path.read_text())["rows"]) == ["full | 4 frames | seed 0"]
        which_pattern.record(self.PRESET, path, tmp_path, part=(2, 2), quiet=True)
        which_pattern.record(self.PRESET, path, tmp_path, quiet=True)
        assert trained == [("full", 0), ("full", 1), ("spatial", 0), ("spatial", 1), ("full", 1)]
        with refused("record.open_record", "steps"):
            which_pattern.record(dataclasses.replace(self.PRESET, steps=8), path, tmp_path, quiet=True)

    def test_only_patterns_without_times_are_timed_next_to_full_attention(self, monkeypatch, tmp_path):
        timings = []
        monkeypatch.setattr(which_pattern, "step_times", lambda experiments, *_, **__: timings.append(
            list(experiments)) or {name: timed(len(timings)) for name in experiments})
        path = tmp_path / "record.json"
        for variants in (("spatial",), ("full", "spatial", "causal"), ("causal",)):
            which_pattern.record_times(dataclasses.replace(self.PRESET, variants=variants), path)
        assert timings == [["full", "spatial"], ["full", "causal"]]
        found = json.loads(path.read_text())["times"]["4"]
        assert {name: one["ratio"] for name, one in found.items()} == {"full": 1, "spatial": 1, "causal": 2}

    def test_parts(self):
        assert which_pattern.a_part("2/3") == (2, 3)
        for wrong in ("3/2", "0/2", "a"):
            with pytest.raises(argparse.ArgumentTypeError, match="permitted: 1/2"):
                which_pattern.a_part(wrong)

    def test_intervals_are_students(self):
        mean, half = which_pattern_report.interval([1.0, 2.0, 3.0])
        assert mean == 2.0 and half == pytest.approx(4.30265 / 3**0.5, rel=1e-5)
        assert which_pattern_report.shown([0.5]) == "0.50"

    def test_tables(self):
        found = compared(row("full", 0, 0.5), row("full", 1, 0.7), row("spatial", 0, 0.2))
        table = which_pattern_report.table(found, 8, "time")
        line = next(line for line in table.splitlines() if line.startswith("| full"))
        assert line.startswith("| full | 5 | 1.00 | 2 | 0.12 | 1.0000 ± 0.0000 | 0.60 ± 1.27")
        assert line.endswith("| 2 |")
        assert "0.5000 |" in which_pattern_report.table(found, 8, "FLOPs") and "| spatial | 5 | 0.50 |" in table
        assert "| spatial | 0.50 |" in which_pattern_report.crossings(found)

    def test_plot_and_readme(self, tmp_path):
        pytest.importorskip("matplotlib")
        path, readme = tmp_path / "which_pattern.json", tmp_path / "README.md"
        path.write_text(json.dumps(compared(row("full", 0, 0.5), row("spatial", 0, 0.2), row("full", 1, 0.6))))
        readme.write_text(README.read_text())
        results = tmp_path / "results.md"
        results.write_text("<!-- patterns:begin -->\n<!-- patterns:end -->\n")
        which_pattern_report.write_report(path, readme, results)
        assert "| spatial | 5 | 0.50 |" in results.read_text()
        assert (tmp_path / "which_pattern_8.png").read_bytes().startswith(b"\x89PNG")
        assert "](which_pattern_8.png)" in readme.read_text() and "whole 1.00" in readme.read_text()

    def test_first_videos_are_drawn_by_pattern(self, tmp_path):
        imread = pytest.importorskip("matplotlib.image").imread
        found = {**compared(row("full", 0, 0.5)), "captions": ["a red 3", "a blue 5", "a green 1"]}
        assert which_pattern_samples.draw_strips(found, 8, tmp_path) is None
        videos = np.zeros((4, 8, 16, 16, 3), np.uint8)
        videos[2, 7] = 255
        which_pattern_samples.keep_strip(tmp_path, "full", videos)
        strip = imread(which_pattern_samples.strip_path(tmp_path, "full", 8))
        assert strip.shape == (16, 3 * 8 * 16, 3) and strip[:, -16:].all() and not strip[:, :-16].any()
        path = which_pattern_samples.draw_strips(found, 8, tmp_path)
        assert path.read_bytes().startswith(b"\x89PNG")

    def test_the_page_of_results_is_that_of_the_record(self):
        found = json.loads((README.parent / "results" / "which_pattern.json").read_text())
        page = (README.parent.parent.parent / "docs" / "results.md").read_text()
        assert which_pattern_report.summary(found) in page

    @pytest.mark.full
    def test_a_tiny_model_is_timed_trained_and_looked_at(self, tmp_path):
        preset = dataclasses.replace(self.PRESET, seeds=(1,))
        path = tmp_path / "record.json"
        which_pattern.record_times(preset, path, tmp_path, rounds=2)
        found = which_pattern.record(preset, path, tmp_path / "runs", data_dir=tmp_path, quiet=True)
        spatial, times = found["rows"]["spatial | 4 frames | seed 1"], found["times"]["4"]
        assert times["full"]["ratio"] == 1.0 and times["spatial"]["seconds"] > 0
        assert spatial["curve"][-1]["step"] == max(b["steps"] for b in spatial["budgets"].values())
        assert all(point["validation_loss"] > 0 for point in spatial["curve"])
        assert times["spatial"]["bytes"] > 4 * 4 * spatial["parameters"]  # parameters, EMA and two moments
        for budget in spatial["budgets"].values():
            assert set(which_pattern_report.ATTRIBUTES) <= set(budget["scores"]["generated"])
        which_pattern.keep_samples(preset, path, tmp_path / "runs")
        assert (tmp_path / "which_pattern" / "spatial_4.png").exists()
        assert len(json.loads(path.read_text())["captions"]) == which_pattern_samples.SHOWN
