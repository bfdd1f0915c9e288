"""The CPU baseline: networks of equal size, a resumable record, and a report that says what the record says."""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments.baselines import layers

FOLDER = Path(__file__).parents[2] / "experiments" / "baselines"
sys.path.insert(0, str(FOLDER))

import measuring  # noqa: E402  (scripts, found through the path)
import speed_networks  # noqa: E402
import speed_report  # noqa: E402
import unet_speed  # noqa: E402

THEIR_GFLOP = 38.75  # forward pass of Unet3D at 32x32, batch 1, counted by torch


def entry(median: float, *, contended: bool = False) -> dict:
    """One contender's measurements."""
    return {"median": median, "low": median - 0.1, "high": median + 0.2, "cpu": 2 * median, "others_share": 0.0,
            "repetitions": 7, "compile_seconds": 12.0, "parameters": 35_000_000, "gflop_forward": 38.0,
            "peak_mib": 2000.0, "contended": contended}


def record(**changes: object) -> dict:
    """A record with two cases."""
    rows = {
        "vdm-train-32-1": {"network": "vdm", "mode": "train", "size": 32, "batch": 1, "contenders": {
            "vdm_jax": entry(1.0), "torch": entry(3.0), "torch_tuned": entry(2.5)}},
        "imagen-forward-64-2": {"network": "imagen", "mode": "forward", "size": 64, "batch": 2, "contenders": {
            "vdm_jax": entry(2.0), "torch": entry(4.0), "torch_tuned": entry(3.0, contended=True),
            "torch_compiled": entry(1.0)}},
    }
    return {"protocol": unet_speed.PROTOCOL, "device": measuring.device(2), "versions": {"python": "3", "jax": "1"},
            "date": "2026-01-02", "rows": rows, **changes}


class TestNetworks:
    def test_ours_has_as_many_parameters_as_theirs(self):
        params, _, _ = speed_networks.abstract_inputs(1, 32)
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert abs(count / speed_networks.THEIR_PARAMETERS - 1) < 0.05

    def test_ours_takes_as_many_operations_as_theirs(self):
        assert abs(speed_networks.forward_operations(1, 32) / (THEIR_GFLOP * 1e9) - 1) < 0.05

    def test_operations_of_a_batch_add_up(self):
        one, two = (speed_networks.forward_operations(batch, 32) for batch in (1, 2))
        assert two == pytest.approx(2 * one, rel=1e-9)


class TestMeasuring:
    def test_summary_is_median_and_range(self):
        repetitions = [{"wall": w, "cpu": 2 * w, "others": 0.0} for w in (3.0, 1.0, 2.0)]
        found = measuring.summary(repetitions)
        assert (found["median"], found["low"], found["high"], found["cpu"]) == (2.0, 1.0, 3.0, 4.0)
        assert (found["repetitions"], found["others_share"]) == (3, 0.0)

    def test_others_are_what_the_machine_did_besides_this_process(self, monkeypatch):
        monkeypatch.setattr(measuring, "busy_seconds", iter((10.0, 13.0)).__next__)
        monkeypatch.setattr(measuring.time, "process_time", iter((1, 2)).__next__)
        monkeypatch.setattr(measuring.time, "perf_counter", iter((0, 4)).__next__)
        assert measuring.timed(lambda: None) == {"wall": 4, "cpu": 1, "others": 2.0}

    def test_busy_seconds_count_own_work(self):
        busy, cpu = measuring.busy_seconds(), time.process_time()
        while time.process_time() - cpu < 0.1:
            pass
        assert measuring.busy_seconds() - busy > 0.05

    def test_peak_memory_is_that_since_it_was_forgotten(self):
        """In a small process of its own: of a large one the kernel may take back pages meanwhile."""
        program = ("import numpy as np\nimport measuring\n"
                   "np.ones(2**26).sum()\nmeasuring.forget_peak()\nbefore = measuring.peak_mib()\n"
                   "np.ones(2**25).sum()\nprint(before, measuring.peak_mib())")
        done = subprocess.run([sys.executable, "-c", program], cwd=FOLDER, capture_output=True, text=True, check=True)
        before, after = map(float, done.stdout.split())
        assert 0 < before < 400 and 200 < after - before < 400  # MiB; what was freed before does not count

    def test_records_survive(self, tmp_path):
        path = tmp_path / "new" / "record.json"
        assert measuring.load(path) is None
        measuring.save(path, {"a": [1, 2.5]})
        assert measuring.load(path) == {"a": [1, 2.5]}
        assert [p.name for p in path.parent.iterdir()] == ["record.json"]


class TestRun:
    @pytest.fixture
    def args(self):
        return argparse.Namespace(threads=2, repetitions=3, fresh=False, networks=["vdm"], sizes=[32],
                                  batches=[1, 2], contenders=["vdm_jax", "torch", "torch_compiled"])

    @pytest.fixture
    def measured(self, monkeypatch):
        """Replaces the measurement; lists the cases that were measured."""
        cases = []

        def measure(contenders, case, args, folder):
            cases.append((*case, contenders))
            return {**case._asdict(), "contenders": {c: entry(1.0) for c in contenders}}

        monkeypatch.setattr(unet_speed, "measure", measure)
        return cases

    def test_measures_only_what_is_not_recorded(self, args, measured, tmp_path):
        path = tmp_path / "record.json"
        args.batches = [1]
        unet_speed.run(args, path)
        compiled = ("vdm_jax", "torch", "torch_compiled")
        assert measured == [("vdm", "train", 32, 1, compiled[:2]), ("vdm", "forward", 32, 1, compiled)]
        measured.clear()
        args.batches = [1, 2]
        assert set(unet_speed.run(args, path)["rows"]) == {
            f"vdm-{mode}-32-{batch}" for mode in ("train", "forward") for batch in (1, 2)}
        assert [case[3] for case in measured] == [2, 2]

    def test_other_networks_are_only_sampled_and_not_compiled_by_torch(self, args, measured, tmp_path):
        args.networks, args.sizes, args.batches = ["imagen", "svd"], None, [1]
        unet_speed.run(args, tmp_path / "record.json")
        pair = ("vdm_jax", "torch")
        assert measured == [("imagen", "forward", 32, 1, pair), ("imagen", "forward", 64, 1, pair),
                            ("svd", "forward", 16, 1, pair), ("svd", "forward", 32, 1, pair)]

    def test_a_transformer_is_trained_too(self, args, measured, tmp_path):
        args.networks, args.sizes, args.batches = ["wan"], [16], [1]
        unet_speed.run(args, tmp_path / "record.json")
        pair = ("vdm_jax", "torch")
        assert measured == [("wan", "train", 16, 1, pair), ("wan", "forward", 16, 1, pair)]

    def test_outputs_of_the_same_weights_must_agree(self):
        ours, theirs = (argparse.Namespace(contender=name, about={"output": [1.0, 2.0]}) for name in ("a", "b"))
        unet_speed.check_outputs([ours, theirs])
        assert "output" not in ours.about  # not part of the record
        ours.about["output"], theirs.about["output"] = [1.0, 2.0], [1.0, 2.1]
        with pytest.raises(AssertionError):
            unet_speed.check_outputs([ours, theirs])

    def test_every_finished_case_is_on_disk_when_the_next_is_interrupted(self, args, measured, monkeypatch, tmp_path):
        path, measure = tmp_path / "record.json", unet_speed.measure

        def interrupted(contenders, case, *rest):
            if case.mode == "forward":
                raise KeyboardInterrupt
            return measure(contenders, case, *rest)

        monkeypatch.setattr(unet_speed, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            unet_speed.run(args, path)
        assert list(measuring.load(path)["rows"]) == ["vdm-train-32-1"]

    def test_a_record_of_another_machine_is_an_error(self, args, measured, tmp_path, capsys):
        path = tmp_path / "record.json"
        other = copy.deepcopy(unet_speed.run(args, path))
        other["device"]["cpu"] = "another"
        measuring.save(path, other)
        measured.clear()
        with pytest.raises(SystemExit) as stopped:
            unet_speed.run(args, path)
        assert stopped.value.code == 2 and "permitted: --fresh" in capsys.readouterr().err and not measured
        args.fresh = True
        unet_speed.run(args, path)
        assert len(measured) == 4

    def test_a_worker_that_dies_says_why(self):
        with pytest.raises(RuntimeError, match="worker vdm_jax stopped: .*not a multiple of the U-Net's reduction 8"):
            unet_speed.Worker("vdm_jax", unet_speed.Case("vdm", "forward", 12, 1), 1, Path("none"))


class TestReport:
    def test_ratio_is_to_the_fastest_of_torch(self):
        table = speed_report.summary_table(record())
        assert "video-diffusion-pytorch | train step | 32 | 1 | 1.00 | 2.50 | 2.50 |" in table
        # A loss is shown as one, and what layers of another network compute next to it.
        assert "imagen-pytorch | sampling step | 64 | 2 | 2.00 | 1.00 | 0.50 (with 1.00 times our" in table

    def test_every_contender_is_shown_and_interference_is_marked(self):
        table = speed_report.full_table(record())
        assert "3.00 (2.90-3.20) †" in table and "not measured" in table
        assert "took more than a tenth" in table and "vdm_jax, tuned" not in table

    def test_readme_holds_the_markers_that_the_main_readme_copies(self, tmp_path):
        measuring.save(tmp_path / "unet_speed.json", record())
        speed_report.write_report(tmp_path, tmp_path / "README.md")
        text = (tmp_path / "README.md").read_text()
        inside = text.split("<!-- summary:begin -->\n")[1].split("\n<!-- summary:end -->")[0]
        assert inside == speed_report.summary_table(record())
        assert "35,000,000" in text and "38.0 GFLOP" in text

    def test_what_xla_does_badly_is_told_in_the_numbers_of_the_record(self):
        def case(**milliseconds):
            return {name.replace("__", ", "): {"median": ms / 1e3, "gflops": 7.0} for name, ms in milliseconds.items()}

        def group(name, **forms):
            return {"title": "Title", "about": "About.", "cases": {name: case(**forms)}}

        groups = {
            "forms": {"title": "Title", "about": "About.", "cases": {"1x3x3": {
                "3-D, gradient": {"median": 0.09, "gflops": 1.0}, "folded, gradient": {"median": 0.03, "gflops": 3.0},
                "folded, forward": {"median": 0.01, "gflops": 123.0}}}},
            "kernel_gradient": group("small", whole=8, in_pieces=4),
            "loops": group("4 convolutions", scanned__gradient=50, unrolled__gradient=2, scanned__forward=1,
                           unrolled__forward=1),
            "barriers": group("gradient", barriers_expanded=3, barriers_kept=2),
        }
        for name in ("kernel_gradient", "barriers"):
            groups[name]["cases"] = {title: {form.replace("_", " "): times for form, times in forms.items()}
                                     for title, forms in groups[name]["cases"].items()}
        text = speed_report.well_and_badly({"groups": groups})
        for said in ("123 GFLOP/s", "3.0 times for 1x3x3", "2.0 to 2.0 times faster", "25.0 times as", "1.50 times"):
            assert said in text.replace("\n  ", " ")
        assert "| small | 8.0 | 4.0 |" in speed_report.forms_table({"groups": groups})

    @pytest.mark.skipif(not (measuring.RESULTS / "unet_speed.json").exists(), reason="no full measurement recorded yet")
    def test_readme_is_up_to_date_with_the_recorded_measurements(self, tmp_path):
        speed_report.write_report(readme=tmp_path / "README.md")
        assert (tmp_path / "README.md").read_text() == speed_report.README.read_text()
        rows = measuring.load(measuring.RESULTS / "unet_speed.json")["rows"]
        assert {"vdm_jax", "torch", "torch_tuned"} <= set.intersection(*(set(r["contenders"]) for r in rows.values()))
        assert {f"vdm-{mode}-{size}-1" for mode in ("train", "forward") for size in (32, 64)} <= set(rows)
        for row in rows.values():
            counts = [c["parameters"] for c in row["contenders"].values()]
            assert row["network"] == "imagen" or max(counts) / min(counts) < 1.05


class TestLayers:
    def test_time_inside_of_an_event_is_not_counted_twice(self):
        events = [("call", 0.0, 10.0), ("dot", 1.0, 4.0), ("add", 2.0, 1.0), ("dot", 6.0, 3.0), ("late", 10.0, 2.0)]
        assert sorted(layers.own_times(events)) == [("add", 1.0), ("call", 3.0), ("dot", 3.0), ("dot", 3.0),
                                                    ("late", 2.0)]

    @pytest.mark.parametrize(("path", "kind"), [
        ("jit(train_step)/transpose(jvp(SpaceTimeUNet))/up_0_0/residual/residual._convolve/conv_in/conv",
         "convolutions"),
        ("jit(train_step)/jvp(SpaceTimeUNet)/down_0_0/residual/jit(silu)/div", "group norm, SiLU"),
        ("jit(train_step)/jvp(SpaceTimeUNet)/down_0_0/mixers/temporal_attention_0/temporal_attention_0._joint/qkv/dot",
         "attention: projections"),
        ("jit(train_step)/jvp(SpaceTimeUNet)/down_0_0/mixers/temporal_attention_0/while/exp",
         "attention: positions and softmax"),
        ("jit(train_step)/jvp(SpaceTimeUNet)/concatenate", "joining, residual sums, conditioning"),
        ("jit(train_step)/add", "optimizer and loss"), ("", layers.NAMELESS)])
    def test_instructions_belong_to_kinds_of_layers(self, path, kind):
        assert layers.kind_of(path) == kind

    def test_a_traced_program_is_split_by_layer_and_way(self, tmp_path):
        """A product inside a scope named like a layer, forward and backward, by JAX's profiler."""
        def loss(w, x):
            with jax.named_scope("SpaceTimeUNet/stem"):
                return jnp.square(x @ w).sum()

        x = jnp.ones((256, 256))
        step = jax.jit(jax.grad(loss)).lower(x, x).compile()
        with jax.profiler.trace(str(tmp_path)):
            jax.block_until_ready(step(x, x))
        found = layers.by_kind(layers.traced(str(tmp_path)), layers.names(step.as_text()))
        assert found["convolutions"]["forward"] > 0 and found["convolutions"]["backward"] > 0
        assert not any(found["attention: projections"].values())

    def test_the_page_is_that_of_the_record(self):
        assert layers.table(json.loads(layers.RECORD.read_text())) in layers.PAGE.read_text()
