"""The table of few steps: what a row measures, that a run is taken up row by row, and what the page says of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.few_steps import report, run
from experiments.readme_tables import insert
from vdm_jax.attention.patterns import Spatial, Temporal
from vdm_jax.diffusion.caching import Cache
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.digits.clips import caption_words
from vdm_jax.errors import UserError
from vdm_jax.generation.generator import Generator
from vdm_jax.networks.config import Level, UNet, WordEncoder
from vdm_jax.networks.transformer.config import VideoTransformer
from vdm_jax.parallel.mesh import MeshSpec
from vdm_jax.runs.directory import WEIGHTS, open_run
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.parameters import initial_params
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax.weights.safetensors import save_params

NETWORK = UNet(levels=(Level(channels=8, blocks=1),), patch=4, embedding_channels=16, groups=2,
               text=WordEncoder(words=caption_words(), length=16, width=8, layers=1, head_dim=4))


@pytest.fixture
def teacher(tmp_path, monkeypatch):
    """A run of random weights, of one stage with guidance."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "set by tests/conftest.py")
    stage = Stage(name="base", video=VideoSpec(frames=2, height=16, width=16), network=NETWORK, process=Process(),
                  training=Training(batch_size=8), sampling=Sampling(steps=2, guidance=1.0, batch_size=8))
    data = CaptionedDigits(size=16, frames=2, train_clips=16, validation_clips=8, test_clips=18, objects=(1, 1))
    open_run(Path("teacher"), Experiment(name="teacher", stages=(stage,), data=data, mesh=MeshSpec(data=8)))
    params = jax.tree.map(lambda leaf: np.random.default_rng(0).normal(0, 0.2, leaf.shape).astype(np.float32),
                          jax.eval_shape(lambda key: initial_params(stage, key), jax.random.key(0)))
    Path("teacher/base").mkdir()
    save_params(Path("teacher/base") / WEIGHTS, params, {})
    return "teacher"


@pytest.mark.full  # compiles four samplers and two trainings
def test_rows_of_a_tiny_run_are_measured_once_and_reported(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "SAMPLERS", {"DDIM": DDIM()})
    options = run.Run(teacher, work=Path("work"), out=tmp_path / "out.json", steps=(1,), seeds=(0,), captions=9,
                      batch=8, student_steps=(1,), students=("guided progressive", "LoRA consistency", "dmd"), alike=2,
                      samples=2, updates=1, consistency_updates=1, dmd_updates=1, cached=(2,),
                      data_dir=tmp_path / "data")
    record = run.run(options)
    assert list(record["rows"]) == [f"{run.TEACHER} | 2 | 0", "DDIM | 1 | 0", "teacher, cached for 2 steps | 2 | 0",
                                    "guided progressive | 1 | 0", "LoRA consistency | 1 | 0", "dmd | 1 | 0"]
    of_teacher, ddim, of_cache, student, lora, matched = record["rows"].values()
    evaluations = [row["evaluations"] for row in (of_teacher, ddim, of_cache, student, lora, matched)]
    assert evaluations == [4, 2, 2, 1, 1, 1] and lora["updates"] == matched["updates"] == 1
    assert (ddim["updates"], student["updates"]) == (0, 2)  # a round of guidance, and one from two steps to one
    assert student["scores"]["whole"]["clips"] == 9 and student["ms_per_video"] > 0 and student["diversity"] >= 0
    # Another seed alone is measured; what is there stays.
    kept = json.dumps(record["rows"])
    monkeypatch.setattr(run, "measured", lambda *_: {"scores": ddim["scores"], "diversity": 0.1, "ms_per_video": 1.0,
                                                     "distance_of_captions": 0.2})
    again = run.run(dataclasses.replace(options, seeds=(0, 1)))
    assert json.dumps({key: row for key, row in again["rows"].items() if row["seed"] == 0}) == kept
    assert len(again["rows"]) == 12
    with pytest.raises(UserError, match="students of another training: updates is 1 there and 2 now"):
        run.run(dataclasses.replace(options, updates=2))
    bodies = report.bodies(json.loads(options.out.read_text()))
    assert "| guided progressive | 1 | 1 |" in bodies["table"] and "seeds 0, 1" in bodies["made"]
    text = report.README.read_text()
    for name, body in bodies.items():
        assert body in insert(text, name, body)
    report.draw(report.grouped(again), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_students_of_several_numbers_of_steps_are_rounds_of_one_training(monkeypatch):
    """Only rounds that all stages have; their steps of training add up."""
    calls = []
    of = {"base": (0, 8, 4, 2, 1), "spatial": (4, 2, 1)}
    stages = [type("Stage", (), {"name": name, "training": type("T", (), {"distillation": type(
        "D", (), {"rounds": rounds})})})() for name, rounds in of.items()]
    experiment = type("E", (), {"stages": stages})()
    monkeypatch.setattr(run, "students", lambda *arguments, every: calls.append(arguments) or ("run", experiment))
    monkeypatch.setattr(run, "load_stage", lambda folder, stage, step: (stage.name, step))
    monkeypatch.setattr(run, "with_steps", lambda experiment, steps: steps)
    monkeypatch.setattr(run, "Generator", lambda experiment, params: params)
    rows = list(run.progressive_rows(run.Run("x", student_steps=(1, 4, 48), updates=10), "progressive"))
    assert [(row.steps, row.generator, row.updates) for row in rows] == [
        (1, {"base": ("base", 50), "spatial": ("spatial", 30)}, 80),
        (4, {"base": ("base", 30), "spatial": ("spatial", 10)}, 40)]
    assert calls[0][2][:6] == ["--method", "progressive", "--steps", "1", "--start", "8"]  # 48 is no power of two


def test_stages_of_fewer_steps_than_others_take_no_more_than_their_own():
    stages = tuple(Stage(name=name, video=VideoSpec(frames=2, height=16, width=16), network=NETWORK, process=Process(),
                         sampling=Sampling(steps=steps, batch_size=8)) for name, steps in (("a", 32), ("b", 8)))
    generator = type("G", (), {"experiment": Experiment(name="x", stages=stages[:1], data=None),
                               "of": lambda self, experiment: experiment})()
    assert [stage.sampling.steps for stage in run.sampled(generator, DDIM(), 48).stages] == [48]
    assert [run.steps_of(stage, stages, 48) for stage in stages] == [48, 8]
    assert [run.steps_of(stage, stages, 4) for stage in stages] == [4, 4]


def test_a_transformer_is_also_cached_but_for_its_first_blocks_and_by_the_noise_level():
    network = VideoTransformer(out_channels=3, width=12, heads=2, hidden=8, layers=4, level_channels=8,
                               patterns=(Spatial(), Temporal()))
    stage = Stage(name="base", video=VideoSpec(frames=2, height=4, width=4), network=network, process=Process(),
                  sampling=Sampling(steps=8))
    experiment = Experiment(name="x", stages=(stage,), data=CaptionedDigits(size=16, frames=2))
    params = jax.tree.map(lambda leaf: np.random.default_rng(0).normal(0, 0.2, leaf.shape).astype(np.float32),
                          jax.eval_shape(lambda key: initial_params(stage, key), jax.random.key(0)))
    plans = run.cache_plans(run.Run("x", cached=(4,), thresholds=(1e9,)), experiment)
    generator = Generator(experiment, {"base": params})
    assert [run.cached(generator, plan).experiment.stages[0].sampling.cache for plan in plans.values()] == [
        Cache(every=4), Cache(every=4, branch=2), Cache(steps=(0, 7))]
    assert [run.Row(name, 8, run.cached(generator, plan)).evaluations for name, plan in plans.items()] == [2, 2, 2]
    unet = dataclasses.replace(experiment, stages=(dataclasses.replace(stage, network=NETWORK, video=VideoSpec(
        frames=2, height=16, width=16)),))
    assert list(run.cache_plans(run.Run("x", cached=(4,)), unet)) == ["teacher, cached for 4 steps"]


def test_diversity_is_the_distance_within_a_group():
    videos = np.zeros((2, 2, 1, 2, 2, 3), np.uint8)
    videos[0, 1] = 255
    assert run.diversity(videos) == pytest.approx(0.5)  # one pair differs everywhere, the other nowhere


def test_intervals_pool_the_clips_of_all_seeds_and_goals_name_the_best():
    def row(method, steps, mean, milliseconds, seed):
        scores = {name: {"mean": mean, "variance": mean * (1 - mean), "clips": 50} for name in ("whole", "digit",
                                                                                              "motion")}
        return {"method": method, "steps": steps, "seed": seed, "updates": 0, "evaluations": steps, "scores": scores,
                "diversity": 0.2, "distance_of_captions": 0.3, "ms_per_video": milliseconds}

    rows = {str(i): r for i, r in enumerate([row(run.TEACHER, 32, 0.8, 100.0, 0), row(run.TEACHER, 32, 0.6, 100.0, 1),
                                             row("DDIM", 4, 0.2, 10.0, 0), row("progressive", 4, 0.63, 10.0, 0)])}
    found = report.grouped({"rows": rows})
    mean, low, high = report.pooled(found[run.TEACHER, 32], "whole")
    # Wilson's interval of 70 of 100, as in tables.
    assert mean == pytest.approx(0.7) and (low, high) == pytest.approx((0.604, 0.781), abs=5e-4)
    assert "| 4 | progressive | 0.90 ± 0.22 | >= 0.95 | 10.0 | >= 8 |" in report.goals(found)
    assert "| DDIM | 4 | 4 | 0.200 (0.11 to 0.33) |" in report.table(found)
    none = [row("DDIM", 1, 0.0, 1.0, 0)]
    assert report.pooled(none, "whole")[2] == pytest.approx(0.071, abs=5e-4)  # none of 50 is no proof of none


def test_seeds_have_captions_of_their_own_and_times_leave_out_the_first_batch(monkeypatch):
    class Fake:
        """A cascade of two stages with batches of given lengths."""

        calls = []

        def __call__(self, captions, *, seed, progress):
            self.calls.append(captions)
            for stage, times in (("a", (0, 50, 51, 53, 54)), ("b", (60, 70, 80))):
                for now in times:
                    monkeypatch.setattr(run.time, "perf_counter", lambda now=now: now)
                    progress(stage, 0, 0)
            return type("Made", (), {"videos": np.full((len(captions), 2, 4, 4, 3), 7, np.uint8)})

        experiment = None

    class Scorer:
        """Clips that are numbered."""

        def examples(self, split, count):
            return [{"caption": str(i), "video": np.full((2, 4, 4, 3), i, np.uint8)} for i in range(count)]

        def score(self, videos, captions):
            assert len(videos) == len(captions)
            return type("Table", (), dict.fromkeys(("whole", "digit", "motion"), np.ones(len(videos))))

    monkeypatch.setattr(run, "scorer_of", lambda experiment: Scorer())
    monkeypatch.setattr(run, "in_batches", lambda generator, size: generator)
    row = run.measured(Fake(), run.Run("x", captions=4, alike=2, samples=3, batch=2), seed=1)
    assert Fake.calls == [["4", "5", "6", "7", "4", "4", "5", "5"]]
    assert row["ms_per_video"] == pytest.approx(1000 * (1.5 + 10) / 2) and row["scores"]["whole"]["clips"] == 4
    assert row["diversity"] == 0


def test_rows_without_training_take_turns_seed_by_seed(monkeypatch):
    monkeypatch.setattr(run, "untrained_rows", lambda options, teacher: iter("AB"))
    monkeypatch.setattr(run, "matching_rows", lambda options, method: iter("C"))
    found = list(run.turns(run.Run("x", students=("dmd",), seeds=(0, 1)), None))
    assert found == [("A", 0), ("B", 0), ("A", 1), ("B", 1), ("C", 0), ("C", 1)]


@pytest.mark.parametrize(("changes", "named"), [
    ({"captions": 8}, "--captions=8 with --batch=8; permitted: more captions"),
    ({"batch": 12}, "--batch=12 with 8 devices"),
    ({"samples": 1}, "--samples=1 of --alike=8"),
    ({"alike": 65}, "--alike=65 with --captions=64"),
])
def test_sizes_that_cannot_be_measured_are_refused(changes, named):
    with pytest.raises(UserError, match=named):
        run.check(run.Run("x", **changes))
