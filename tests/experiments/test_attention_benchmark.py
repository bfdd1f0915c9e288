"""The attention experiments: presets that hold the numbers to reach, targets from a record, equal FLOP budgets."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from experiments.attention_benchmark import run, targets, which_pattern, which_pattern_report
from experiments.attention_benchmark.presets import PRESETS
from experiments.attention_benchmark.variants import VARIANTS, cost, logits, tokens, with_patterns
from tests.benchmark.record import measured, record, skipped
from tests.refusals import refused
from vdm_jax.attention import Full, Spatial, Temporal, attend
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
    return load_config("attention_digits").stage("base")


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

    def test_dense_logits_are_those_of_the_layout(self):
        assert [logits(p, (3, 2, 2)) for p in (Full(), Spatial(), Temporal())] == [144, 48, 36]

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


def row(loss: float, **changes) -> dict:
    """A row of the comparison of patterns."""
    scores = {name: dict.fromkeys(which_pattern_report.ATTRIBUTES, value)
              for name, value in (("generated", 0.25), ("real clips (ceiling)", 1.0))}
    return {"patterns": ["Full"], "steps": 10, "batch": 8, "flops_per_step": 2e9, "forward_flops_per_clip": 1e8,
            "attention_share": 0.125, "parameters": 100, "train_step_bytes": 2**21, "train_seconds": 5.0,
            "curve": [{"step": 5, "flops": 1e10, "validation_loss": 1.0},
                      {"step": 10, "flops": 2e10, "validation_loss": loss}], "scores": scores, **changes}


class TestWhichPattern:
    PRESET = which_pattern.Preset(config=TINY, variants=("full", "spatial"), steps=3, points=2, validation_clips=8,
                                  scored_clips=2, sampling_steps=1)

    def test_everybody_gets_the_budget_of_full_attention(self):
        preset = which_pattern.PRESETS["cpu"]
        budget = None
        for variant in ("full", "causal", "spatial + temporal"):
            experiment, about = which_pattern.experiment_of(preset, variant)
            budget = budget or preset.steps * about["flops_per_step"]
            assert about["steps"] * about["flops_per_step"] <= budget < (about["steps"] + 1) * about["flops_per_step"]
            assert experiment.stages[0].training.steps == about["steps"]
        assert about["patterns"] == ["Spatial", "Temporal"]

    def test_recorded_patterns_are_not_trained_again(self, monkeypatch, tmp_path):
        trained = []

        def measure(preset, variant, run, data_dir=None, *, quiet=False):
            if len(trained) == 1:
                trained.append("stop")
                raise KeyboardInterrupt
            trained.append(variant)
            return row(0.5)

        monkeypatch.setattr(which_pattern, "measure", measure)
        path = tmp_path / "record.json"
        with pytest.raises(KeyboardInterrupt):
            which_pattern.record(self.PRESET, path, tmp_path, quiet=True)
        assert list(json.loads(path.read_text())["rows"]) == ["full"]
        which_pattern.record(self.PRESET, path, tmp_path, quiet=True)
        assert trained == ["full", "stop", "spatial"]
        with refused("record.open_record", "steps"):
            which_pattern.record(dataclasses.replace(self.PRESET, steps=4), path, tmp_path, quiet=True)

    def test_table(self):
        table = which_pattern_report.table(record(rows={"full": row(0.5)}))
        assert "| full | 10 | 2.0 | 0.125 | 2 | 0.5000 | 0.25 | 0.25 | 0.25 | 0.25 | 0.25 | 5 |" in table

    def test_plot_and_readme(self, tmp_path):
        pytest.importorskip("matplotlib")
        path, readme = tmp_path / "which_pattern.json", tmp_path / "README.md"
        path.write_text(json.dumps(record(rows={"full": row(0.5), "spatial": row(0.7)})))
        readme.write_text(README.read_text())
        which_pattern_report.write_report(path, readme)
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        assert "](which_pattern.png)" in readme.read_text() and "real clips (ceiling): count 1.00" in readme.read_text()

    @pytest.mark.full
    def test_a_tiny_model_is_trained_and_looked_at(self, tmp_path):
        found = which_pattern.record(dataclasses.replace(self.PRESET, variants=("spatial",)), tmp_path / "record.json",
                                     tmp_path / "runs", data_dir=tmp_path, quiet=True)
        spatial = found["rows"]["spatial"]
        points = spatial["curve"]
        assert [p["step"] for p in points][-1] == spatial["steps"] >= 3 and len(points) == 2
        assert points[-1]["flops"] == spatial["steps"] * spatial["flops_per_step"]
        assert all(p["validation_loss"] > 0 for p in points)
        assert spatial["train_step_bytes"] > 4 * 4 * spatial["parameters"]  # parameters, EMA and two moments
        assert set(which_pattern_report.ATTRIBUTES) <= set(spatial["scores"]["generated"])


def test_the_operations_of_attention_are_all_that_dense_counts_too_many():
    """The counter of operations sees the two products of dense attention, and nothing else in it."""
    from vdm_jax.planning.flops import count

    x = jax.ShapeDtypeStruct((1, 2, 2, 2, 3, 8), "float32")
    traced = jax.make_jaxpr(lambda q, k, v: attend(q, k, v, pattern=Full(), kernel="xla"))(x, x, x)
    assert sum(count(traced.jaxpr)) == attention_flops(Full(), (2, 2, 2), heads=3, head_dim=8)
