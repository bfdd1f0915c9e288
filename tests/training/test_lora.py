"""A LoRA of a trained stage: its factors learn, are saved and resumed, and the network that it began with stays."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import rich.console

import vdm_jax
from tests.pipelines.folders import write_motion
from tests.refusals import refused
from vdm_jax.commands.main import main
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.loras import with_loras
from vdm_jax.networks.config import Level, SelfAttention, UNet
from vdm_jax.networks.lora import FACTORS, LoRA, with_adapters
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.planning.inputs import device_bytes
from vdm_jax.planning.program import Plan, state_sizes
from vdm_jax.runs.checkpoints import Checkpoints
from vdm_jax.runs.directory import export, load_adapter, load_stage, open_run, read_cascade
from vdm_jax.runs.listing import checkpoints_path
from vdm_jax.runs.records import read_records
from vdm_jax.stages.options import InitFrom, Sampling, Training
from vdm_jax.stages.parameters import initial_params
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax.training import state as state_module
from vdm_jax.training.init_from import starting_weights
from vdm_jax.training.loop import Trainer
from vdm_jax.training.report import Report
from vdm_jax.training.state import abstract_state, averaging, initial_state

NETWORK = UNet(levels=(Level(channels=8, blocks=1, kernel=3, mixers=(SelfAttention(head_dim=8),)),),
               embedding_channels=16, groups=4)
LORA = (LoRA(rank=2, alpha=4.0, patterns=("_attention_",)), LoRA(rank=3, patterns=("^/(stem|out)/", "conv")))
DATA = CaptionedDigits(size=16, frames=2, train_clips=32, validation_clips=8, test_clips=8)
BASE = Experiment(name="base", data=DATA, mesh=MeshSpec(data=1, fsdp=2), stages=(Stage(
    name="base", video=VideoSpec(frames=2, height=8, width=8), network=NETWORK, process=Process(),
    sampling=Sampling(steps=2, batch_size=8)),))


QUIET = Report(rich.console.Console(quiet=True))


def experiment_of(base, lora=LORA, steps=12):
    training = Training(steps=steps, batch_size=8, learning_rate=3e-2, warmup_steps=1, ema_decay=0.5, log_every=1,
                        checkpoint_every=12, sample_every=0, validate_every=12, lora=lora,
                        init_from=InitFrom(stage="base", run=str(base)))
    return dataclasses.replace(BASE, name="lora", stages=(dataclasses.replace(BASE.stages[0], training=training),))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An exported network, and the run of a LoRA that began with it."""
    home = tmp_path_factory.mktemp("lora")
    shapes = jax.eval_shape(lambda: initial_params(BASE.stages[0], jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: 0.2 * rng.normal(size=a.shape).astype(np.float32), shapes)
    export(Generator(BASE, {"base": params}, jax.devices()[:2]), home / "base")
    trained(home, 12)
    return home, params


def trained(home, steps):
    """The run of a LoRA, trained to a step, its parameters split over two devices."""
    experiment = experiment_of(home / "base", steps=steps)
    open_run(home / "run", experiment)
    Trainer(experiment, experiment.stages[0], home / "run", QUIET, home / "data", jax.devices()[:2]).train()


def stored(run, part):
    return Checkpoints(checkpoints_path(run, "base")).restore_subtree(part)[0]


def test_the_factors_learn_and_the_network_stays(runs):
    home, params = runs
    records = read_records(home / "run" / "base")
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == 12 and np.mean(losses[-3:]) < 0.9 * np.mean(losses[:2])
    assert any("validation_loss" in record for record in records)
    now = stored(home / "run", "params")
    factors = now.pop(FACTORS)
    jax.tree.map(np.testing.assert_array_equal, now, params)
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(factors))
    assert set(stored(home / "run", "ema")) == {FACTORS}


def test_what_is_sampled_has_the_factors_merged(runs):
    home, params = runs
    stage = read_cascade(home / "run").stages[0]
    adapter = load_adapter(home / "run", stage)
    assert adapter.scales["stem"] == 1.0 and 2.0 in adapter.scales.values()
    learned = load_stage(home / "run", stage)
    jax.tree.map(np.testing.assert_array_equal, learned, with_adapters(params, [(adapter, 1.0)]))
    two = jax.devices()[:2]
    videos, plain = (vdm_jax.load(home / name, two)([""] * 2, seed=1).videos for name in ("run", "base"))
    assert np.abs(videos.astype(int) - plain).max() > 2
    export(vdm_jax.load(home / "run", two), home / "merged")
    jax.tree.map(np.testing.assert_array_equal, load_stage(home / "merged", stage), jax.device_get(learned))
    with refused("directory.load_adapter", "no checkpoint", "permitted: "):
        load_adapter(home / "merged", stage)
    with refused("directory.load_adapter", "training.lora=()"):
        load_adapter(home / "base", read_cascade(home / "base").stages[0])


def test_averaged_factors_are_merged_by_one_program(tmp_path, monkeypatch):
    stage, traced = experiment_of(tmp_path).stages[0], []
    merge = state_module.network_params
    monkeypatch.setattr(state_module, "network_params", lambda *parts: traced.append(1) or merge(*parts))
    shapes = jax.eval_shape(lambda key: initial_state(stage, key), jax.random.key(0))
    state = shapes.replace(**{part: jax.tree.map(lambda a: np.ones(a.shape, a.dtype), getattr(shapes, part))
                              for part in ("params", "ema")})
    averaged = averaging(stage, make_mesh(MeshSpec(data=1), jax.devices()[:1]))
    for _ in range(2):
        found = averaged(state)
    assert len(traced) == 1 and FACTORS not in found
    assert found["stem"]["kernel"].max() > 1


def test_its_file_changes_the_network_that_it_began_with(runs, capfd):
    home, _ = runs
    assert main(["export", str(home / "run"), str(home / "file"), "--lora", "plain"]) == 0
    path, base = home / "file" / "base" / "lora.safetensors", vdm_jax.load(home / "base", jax.devices()[:2])
    learned = load_stage(home / "run", read_cascade(home / "run").stages[0])
    jax.tree.map(np.testing.assert_array_equal, with_loras(base, {path: 1.0}).params["base"], jax.device_get(learned))
    for run, layout, said in (("run", "kohya", "a network that only this package has"),
                              ("base", "plain", "where 0 stages train a LoRA")):
        capfd.readouterr()
        assert main(["export", str(home / run), str(home / "other"), "--lora", layout]) == 2
        assert said in capfd.readouterr().err


def test_it_goes_on_from_its_checkpoint(runs, capsys):
    home, params = runs
    before = stored(home / "run", "ema")
    trained(home, 13)
    now = stored(home / "run", "params")
    change = jax.tree.map(lambda a, b: np.abs(a - b).max(), stored(home / "run", "ema"), before)
    assert all(0 < leaf < 0.2 for leaf in jax.tree.leaves(change))
    del now[FACTORS]
    jax.tree.map(np.testing.assert_array_equal, now, params)


def test_the_plan_counts_optimizer_and_average_of_the_factors_alone():
    stage, mesh = experiment_of("base").stages[0], make_mesh(MeshSpec(data=8))
    plan = Plan(experiment="lora", stage=stage, data=DATA, mesh=MeshSpec(data=8))
    state = abstract_state(stage, mesh)
    sizes = state_sizes(plan, state)["state"]
    factors = device_bytes(state.params[FACTORS])
    assert sizes["ema"] == factors and 2 * factors <= sizes["optimizer"] < 2 * factors + 64
    assert sizes["parameters"] == factors + device_bytes(abstract_state(BASE.stages[0], mesh).params)


def test_it_begins_with_a_released_folder(tmp_path):
    pytest.importorskip("tokenizers", reason="tokenizers come with the extra [pretrained]")
    folder = write_motion(tmp_path / "motion")
    stage, = read_cascade(folder).stages
    training = Training(init_from=InitFrom(stage="video", run=str(folder)), lora=(LoRA(patterns=("_motion/",)),))
    stage = dataclasses.replace(stage, name="base", training=training,
                                latent=dataclasses.replace(stage.latent, sha256="0" * 64))  # a file of its own
    inflation, params = starting_weights(stage, tmp_path)
    assert not inflation.new and not inflation.zero_initialised
    shapes = jax.eval_shape(lambda params: initial_state(stage, jax.random.key(0), inflation, params), params)
    motion = [name for name, _ in jax.tree_util.tree_leaves_with_path(shapes.ema)]
    assert motion and all("_motion" in str(name) for name in motion)


def test_what_cannot_be(tmp_path):
    with refused("Training", "init_from=None", "permitted: "):
        Training(lora=LORA)
    with refused("Training", "trainable=('out',)", "permitted: "):
        Training(lora=LORA, trainable=("out",), init_from=InitFrom(stage="base", run="x"))
    with refused("options.check_patterns", "LoRA.patterns", "'('"):
        Training(lora=(LoRA(patterns=("(",)),), init_from=InitFrom(stage="base", run="x"))
    open_run(tmp_path / "base", BASE)
    experiment = experiment_of(tmp_path / "base", (LoRA(patterns=("cross_attention",)),))
    with refused("lora.adapted", "'cross_attention'", "permitted: ", "/kernel"):
        Trainer(experiment, experiment.stages[0], tmp_path / "run", QUIET, tmp_path, jax.devices()[:2]).check()
