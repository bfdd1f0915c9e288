"""Distillations in training: runs that are interrupted, rounds, and what is refused."""

from __future__ import annotations

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rich.console

from tests.refusals import refused
from tests.training import programs
from tests.training.distilling import (
    CAUSAL,
    CONSISTENCY,
    DATA,
    FORCING,
    FREE,
    JUDGED,
    MATCHING,
    MESH,
    NETWORK,
    PROGRESSIVE,
    SILENT,
    TEACHER,
    initial,
    random_params,
    stage_of,
)
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM, Heun
from vdm_jax.networks.lora import FACTORS, LoRA
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.runs.checkpoints import Checkpoints
from vdm_jax.runs.directory import WEIGHTS, checkpoints_path, open_run
from vdm_jax.runs.teachers import params_hash, with_teachers
from vdm_jax.stages.distillation import ConsistencyTraining, ProgressiveDistillation
from vdm_jax.stages.options import Dropout, GuidanceTerm, InitFrom, Oscillation, Sampling
from vdm_jax.stages.stage import Experiment
from vdm_jax.training import loop
from vdm_jax.training.distillation import Roles, in_roles, with_target
from vdm_jax.training.loop import Trainer
from vdm_jax.training.report import Report
from vdm_jax.training.state import DistillationState, abstract_state, learning_rate
from vdm_jax.training.step import gradients, jit_train_step, train_step
from vdm_jax.weights.safetensors import save_params


@pytest.fixture
def teacher(tmp_path, monkeypatch):
    """Makes the run of a teacher with random weights, next to which students are trained."""
    monkeypatch.chdir(tmp_path)
    programs.leave_out_pictures(monkeypatch)

    def make(network):
        stage = stage_of(network=network)
        open_run(tmp_path / "teacher", Experiment(name="teacher", stages=(stage,), data=DATA))
        (tmp_path / "teacher" / "base").mkdir()
        save_params(tmp_path / "teacher" / "base" / WEIGHTS, random_params(stage), {})
        return tmp_path / "teacher" / "base" / WEIGHTS

    return make


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {"video": rng.integers(0, 256, (8, 2, 16, 16, 3)).astype(np.uint8), "tokens": rng.integers(2, 8, (8, 8))}


class _Crash(Exception):
    pass


def train(run, stage, data_dir, crash_at=None):
    """Train a student as the command does, and crash after a step where that is asked for."""
    experiment = with_teachers(Experiment(name="student", stages=(stage,), data=DATA, mesh=MeshSpec(data=1)), None)
    experiment = open_run(run, experiment)

    def stopping(stage, mesh, *_):
        program = programs.train_step(stage, mesh)

        def call(state, batch):
            if crash_at is not None and int(state.step) == crash_at:
                raise _Crash
            return program(state, batch)

        return call

    report = Report(rich.console.Console(file=io.StringIO(), width=200))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compile_train_step", stopping)
        Trainer(experiment, experiment.stages[0], run, report, data_dir, jax.devices()[:1]).train()
    return experiment.stages[0]


def final_state(run, stage):
    state, meta = Checkpoints(checkpoints_path(run, "base")).restore(abstract_state(stage, MESH))
    leaves = {jax.tree_util.keystr(path): np.asarray(
        jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    return meta["step"], leaves


# ------------------------------------------------------------------------------------------------------------ runs


@pytest.mark.parametrize(("distillation", "crash_at", "roles", "lora"), [
    (PROGRESSIVE, 3, {"teacher"}, ()), (CONSISTENCY, 3, {"teacher", "target"}, ()),
    (CONSISTENCY, 3, {"target"}, (LoRA(rank=2, patterns=("/",)),)),
    (JUDGED, 3, {"teacher", "critic"}, ()), (FORCING, 3, {"teacher", "critic"}, ())],
    ids=["progressive", "consistency", "lora", "matching", "self-forcing"])
def test_an_interrupted_distillation_resumes_to_the_same_bits(teacher, data_dir, distillation, crash_at, roles, lora):
    """With teacher, student, target, average, critic and both optimizers; the progressive one in its second round,
    whose teacher no run has."""
    network = {PROGRESSIVE: NETWORK, FORCING: CAUSAL}.get(distillation, SILENT)
    teacher = teacher(network)
    stage = stage_of(distillation, network=network, checkpoint_every=2, lora=lora,
                     **({} if distillation is PROGRESSIVE else {"steps": 4}))
    stage = train(teacher.parents[1] / "whole", stage, data_dir)
    assert stage.training.distillation.teacher.sha256
    with pytest.raises(_Crash):
        train(teacher.parents[1] / "cut", stage, data_dir, crash_at)
    train(teacher.parents[1] / "cut", stage, data_dir)
    (steps, whole), (other_steps, cut) = (final_state(teacher.parents[1] / run, stage) for run in ("whole", "cut"))
    assert steps == other_steps == stage.training.steps
    assert {role for role in ("teacher", "target", "critic") if any(f"'{role}'" in name for name in whole)} == roles
    for name, value in whole.items():
        assert value.tobytes() == cut[name].tobytes(), name
    # A teacher that has been trained since is refused, to begin with and to go on with.
    other = random_params(stage_of(network=network), seed=1)
    save_params(teacher, other, {})
    for run in ("cut", "new"):
        with refused("Stage.training.distillation.teacher.sha256", stage.training.distillation.teacher.sha256,
                     params_hash(other), "permitted: the teacher that the run was made with"):
            train(teacher.parents[1] / run, stage, data_dir)


# ---------------------------------------------------------------------------------------------------------- rounds


def test_each_round_takes_the_student_for_its_teacher_and_begins_anew(batch):
    stage = stage_of(PROGRESSIVE)
    assert stage.training.distillation.rounds == (0, 2, 1) and stage.training.steps == 6
    states = [initial(stage)]
    assert isinstance(states[0], DistillationState)
    step = jax.jit(lambda state: train_step(stage, state, batch))
    metrics = []
    for _ in range(6):
        state, scalars = step(states[-1])
        states.append(state)
        metrics.append(jax.device_get(scalars))
    assert [m["student_steps"] for m in metrics] == [0, 0, 2, 2, 1, 1]
    np.testing.assert_allclose([m["learning_rate"] for m in metrics], [3e-3, 1.5e-3] * 3, rtol=1e-5)
    assert not any(m["skipped"] for m in metrics)

    def same(a, b):
        return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))

    teachers = [state.networks["teacher"] for state in states]
    assert same(teachers[0], teachers[2]) and same(teachers[3], states[2].ema) and same(teachers[4], teachers[3])
    assert same(teachers[5], states[4].ema) and not same(teachers[5], teachers[3])
    assert same(states[2].ema, states[2].params)  # without an average
    counts = [int(leaf) for state in states for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
              if path[-1] == jax.tree_util.GetAttrKey("count")]
    assert set(counts[-2:]) == {2}  # of the last round alone


def test_a_target_follows_the_student_but_not_where_a_step_is_skipped(batch):
    stage = stage_of(CONSISTENCY, network=SILENT, steps=4)
    state = initial(stage)
    moved = state.replace(params=jax.tree.map(lambda p: p + 1, state.params))
    found, stayed = (with_target(stage, moved, jnp.array(finite)).networks["target"] for finite in (True, False))
    for before, after, kept in zip(*map(jax.tree.leaves, (state.params, found, stayed)), strict=True):
        np.testing.assert_allclose(after, before + 0.5, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(kept, before)
    plain = initial(stage_of(network=SILENT))
    silent = stage_of(network=SILENT)
    assert in_roles(silent, plain) == (plain, None) and with_target(silent, plain, jnp.array(True)) is plain


def test_the_factors_of_a_student_learn_from_the_network_that_stays(batch):
    """The first step's loss is that of a whole student, since factors begin as nothing; then they move alone."""
    spec = dataclasses.replace(CONSISTENCY, guidance=(1.0, 1.0))
    whole, factors = (stage_of(spec, lora=lora, network=NETWORK) for lora in ((), (LoRA(rank=2, patterns=("/",)),)))
    params = random_params(whole)
    losses = {}
    for stage in (whole, factors):
        state = initial(stage)
        networks = {role: params if stage is whole else tree for role, tree in state.networks.items()}
        state = state.replace(params={**state.params, **params}, networks=networks)
        after, metrics = jax.jit(lambda state, stage=stage: train_step(stage, state, batch))(state)
        losses[stage] = float(metrics["loss"])
    assert losses[factors] == pytest.approx(losses[whole], rel=1e-4) and losses[whole] > 0
    assert set(after.networks) == {"target"} and set(after.networks["target"]) == {FACTORS} == set(after.ema)
    frozen = {name: tree for name, tree in after.params.items() if name != FACTORS}
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(frozen), jax.tree.leaves(params), strict=True))
    moved = jax.tree.leaves(after.params[FACTORS])
    started = jax.tree.leaves(state.params[FACTORS])
    target = jax.tree.leaves(after.networks["target"][FACTORS])
    for new, old, mean in zip(moved, started, target, strict=True):  # half of the way, by its decay
        np.testing.assert_allclose(mean, (new + old) / 2, rtol=1e-5, atol=1e-7)
    assert any(not np.array_equal(new, old) for new, old in zip(moved, started, strict=True))


def test_the_rate_falls_in_every_round_alone():
    rate = learning_rate(stage_of(dataclasses.replace(PROGRESSIVE, updates=10)).training)
    np.testing.assert_allclose([rate(n) for n in (1, 6, 10)], [3e-3, 1.5e-3, 3e-4], rtol=1e-5)


def test_a_student_learns_at_every_second_step_of_its_critic(batch):
    """The teacher stays, and so does the critic's optimizer count where the student's does not."""
    stage = stage_of(MATCHING, network=SILENT, steps=4, ema_decay=0.5, warmup_steps=0)
    state = initial(stage).replace(params=random_params(stage), ema=random_params(stage))
    state = state.replace(networks={**state.networks, "teacher": random_params(stage, 1),
                                    "critic": random_params(stage, 2)})
    step = jax.jit(lambda state: train_step(stage, state, batch))
    states, metrics = [state], []
    for _ in range(4):
        state, scalars = step(states[-1])
        states.append(state)
        metrics.append(jax.device_get(scalars))

    def moved(part):
        pairs = zip(states, states[1:], strict=False)
        return [any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, map(part, pair)), strict=True))
                for pair in pairs]

    assert moved(lambda state: state.params) == moved(lambda state: state.ema) == [False, True, False, True]
    assert moved(lambda state: state.networks["critic"]) == [True] * 4
    assert moved(lambda state: state.networks["teacher"]) == [False] * 4
    assert [int(state.step) for state in states] == [0, 1, 2, 3, 4] and not any(m["skipped"] for m in metrics)
    assert [m["student_loss"] > 0 for m in metrics] == [False, True, False, True]
    counts = [int(optax.tree_utils.tree_get_all_with_path(tree, "count")[0][1])
              for tree in (state.opt_state, state.networks["critic_optimizer"])]
    assert counts == [2, 4]
    # Half of the student's rate, whatever the gradient: Adam's first step has the length of the rate.
    lengths = [max(float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, pair), strict=True)) for pair in (
        (states[0].networks["critic"], states[1].networks["critic"]), (states[1].params, states[2].params))]
    np.testing.assert_allclose(lengths, [1.5e-3, 3e-3], rtol=1e-2)


@pytest.mark.parametrize("spec", [
    pytest.param(dataclasses.replace(PROGRESSIVE, guidance=None), id="progressive", marks=pytest.mark.full),
    pytest.param(CONSISTENCY, id="consistency"), pytest.param(JUDGED, id="matching", marks=pytest.mark.full)])
def test_micro_batches_and_split_parameters_change_no_gradient(spec, batch):
    """The optimizer's first moment after a step of two micro-batches, on two devices that hold half of the parameters
    each: a tenth of the mean of the gradients of the micro-batches on one device. Of matching, also the critic's."""
    stage = stage_of(spec, network=SILENT, accumulation=2, **({} if hasattr(spec, "rounds") else {"steps": 4}))
    state = initial(stage).replace(params=random_params(stage), step=jnp.int32(1))  # the student of matching learns
    state = state.replace(networks={**state.networks, **{
        role: {**state.networks[role], **random_params(stage, n + 1)} for n, role in enumerate(spec.roles)}})

    @jax.jit
    def means(state):
        alone = dataclasses.replace(stage, training=dataclasses.replace(stage.training, accumulation=1))
        roles, key = in_roles(alone, state)[1], jax.random.fold_in(state.key, state.step)
        asked = [(state.params, roles, key)]
        if spec is JUDGED:
            seen = Roles({**roles.networks, "student": state.params}, roles.step, "critic")
            asked.append((state.networks["critic"], seen, jax.random.fold_in(key, 1)))
        found = [[gradients(alone, params, {name: x[i::2] for name, x in batch.items()}, k, unroll=True, roles=of)[2]
                  for i, k in enumerate(jax.random.split(key, 2))] for params, of, key in asked]
        return [jax.tree.map(lambda a, b: (a + b) / 2, *pair) for pair in found]

    found, mesh = jax.device_get(means(state)), make_mesh(MeshSpec(fsdp=2), jax.devices()[:2])
    with jax.set_mesh(mesh):
        placed = jax.tree.map(lambda leaf, to: jax.device_put(leaf, to.sharding), state, abstract_state(stage, mesh))
        after, metrics = jit_train_step(stage, mesh)(placed, batch)
    assert not metrics["skipped"] and metrics["loss"] > 0
    assert any(leaf.sharding.shard_shape(leaf.shape) != leaf.shape for leaf in jax.tree.leaves(after.networks))
    trees = [after.opt_state, after.networks.get("critic_optimizer")]
    for tree, grads in zip(trees, found, strict=False):
        scale = 0.1 * min(1.0, 1.0 / float(optax.tree.norm(grads)))  # clipped at 1
        moments = optax.tree_utils.tree_get(tree, "mu")
        for one, two in zip(*map(jax.tree.leaves, (moments, grads)), strict=True):
            np.testing.assert_allclose(one, scale * two, rtol=1e-3, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(("make", "code", "named"), [
    (lambda: dataclasses.replace(PROGRESSIVE, start=6), "ProgressiveDistillation.start", ("start=6", "steps=1")),
    (lambda: ProgressiveDistillation(teacher=TEACHER, start=4, steps=4), "ProgressiveDistillation.start",
     ("permitted: steps times 2",)),
    (lambda: dataclasses.replace(CONSISTENCY, solver=DDIM(eta=1.0)), "ConsistencyDistillation.solver", ("eta=1.0",)),
    (lambda: dataclasses.replace(CONSISTENCY, solver=Heun(churn=1.0)), "ConsistencyDistillation.solver", ("churn",)),
    (lambda: dataclasses.replace(MATCHING, times=(0.9, 0.1)), "DistributionMatching.times", ("0.9",)),
    (lambda: stage_of(MATCHING, sampling=FREE), "Stage.sampling.sampler", ("Boundary", "permitted: Consistency")),
    (lambda: stage_of(MATCHING, sampling=Sampling(sampler=DDIM(), steps=2)), "Stage.sampling.sampler", ("DDIM",)),
    (lambda: stage_of(MATCHING, trainable=("out",)), "Stage.training.trainable", ("'out'", "permitted: ()")),
    (lambda: stage_of(MATCHING, lora=(LoRA(rank=2),)), "Training.lora", ("have a critic",)),
    (lambda: ConsistencyTraining(first=9, last=3), "ConsistencyTraining.first", ("last=3",)),
    (lambda: stage_of(PROGRESSIVE, lora=(LoRA(rank=2),)), "Training.lora", ("become teachers",)),
    (lambda: stage_of(ConsistencyTraining(), lora=(LoRA(rank=2),)), "Training", ("init_from=None",)),
    (lambda: stage_of(PROGRESSIVE, steps=5), "Stage.training.steps", ("training.steps=5", "3 rounds", "permitted: 6")),
    (lambda: stage_of(PROGRESSIVE, warmup_steps=3), "Stage.training.warmup_steps", ("permitted: 0 and False",)),
    (lambda: stage_of(CONSISTENCY, sampling=Sampling()), "Stage.sampling.consistency", ("permitted: Consistency",)),
    (lambda: stage_of(CONSISTENCY, validate_every=5), "Stage.training.validate_every", ("permitted: 0",)),
    (lambda: stage_of(CONSISTENCY, init_from=InitFrom(stage="a", run="b")), "Stage.training.init_from",
     ("begins as its teacher",)),
    (lambda: stage_of(network=dataclasses.replace(NETWORK, scalars=("guidance",))), "Stage.network.scalars",
     ("draws none",)),
    (lambda: stage_of(PROGRESSIVE, network=dataclasses.replace(NETWORK, scalars=("fps",))),
     "Stage.training.distillation.guidance", ("permitted: scalars with 'guidance'",)),
    (lambda: stage_of(PROGRESSIVE, text_dropout=0.1), "Stage.training.text_dropout", ("permitted: 0",)),
    (lambda: stage_of(PROGRESSIVE, dropout=(Dropout(names=("text",)),)), "Stage.training.dropout", ("text",)),
    (lambda: stage_of(PROGRESSIVE, sampling=Sampling(terms=(GuidanceTerm(name="text", scale=2.0),))),
     "Sampling.terms", ("['text']", "'guidance'")),
    (lambda: stage_of(PROGRESSIVE, sampling=Sampling(guidance=3.0)), "Sampling.guidance", ("from 0 to 2",)),
    (lambda: stage_of(PROGRESSIVE, sampling=Sampling(guidance=2.0, oscillation=Oscillation(low=-1.0))),
     "Sampling.guidance", ("from 0 to 2",)),
    (lambda: stage_of(dataclasses.replace(PROGRESSIVE, guidance=(2.0, 2.0)), sampling=Sampling(guidance=2.0)),
     "Sampling.guidance", ("hold the weight 2 already",)),
    (lambda: stage_of(dataclasses.replace(PROGRESSIVE, guidance=(2.0, 2.0)), network=dataclasses.replace(
        NETWORK, text=None)), "Stage.training.distillation.guidance", ("takes no such input",)),
    (lambda: stage_of(dataclasses.replace(CONSISTENCY, teacher_guidance="input")),
     "Stage.training.distillation.teacher_guidance", ("scalars with 'guidance'",)),
    (lambda: dataclasses.replace(stage_of(CONSISTENCY), process=Process(frame_levels=True)),
     "Stage.process.frame_levels", ("permitted: False, or a SelfForcing",)),
])
def test_what_does_not_go_together_is_refused_by_its_field(make, code, named):
    with refused(code, *named, "permitted: "):
        make()


def test_a_teacher_that_is_not_trained_is_refused(teacher, data_dir):
    teacher = teacher(SILENT)
    teacher.unlink()
    with refused("Stage.training.distillation.teacher.stage", "'base'", "teacher", "permitted: a trained stage"):
        train(teacher.parents[1] / "new", stage_of(CONSISTENCY, network=SILENT), data_dir)
