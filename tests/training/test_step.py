"""One training step: the same on any mesh, accumulated as told, harmless when not finite, averaged by formula."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vdm_jax.diffusion.process import Process
from vdm_jax.networks.config import CrossAttention, Level, TemporalConvolution, UNet, WordEncoder
from vdm_jax.networks.unet import SpaceTimeUNet
from vdm_jax.parallel.arrays import global_batch
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.stages.options import Training
from vdm_jax.stages.parameters import example_conditioning
from vdm_jax.stages.stage import LowResolution, Stage, VideoSpec
from vdm_jax.training.state import TrainState, abstract_state, learning_rate, make_optimizer
from vdm_jax.training.step import compile_train_step, compile_validation, gradients, stage_loss, train_step

RATE, WARMUP, DECAY = 1e-3, 4, 0.9
LEVEL = Level(channels=8, blocks=1, kernel=1, mixers=(TemporalConvolution(), CrossAttention(head_dim=8)))
NETWORK = UNet(levels=(LEVEL,), patch=2, embedding_channels=16, groups=4,
               text=WordEncoder(words=tuple("abcdef"), length=4, width=8, layers=1, head_dim=8))
STAGE = Stage(name="base", video=VideoSpec(frames=2, height=8, width=8), network=NETWORK, process=Process(),
              training=Training(batch_size=8, learning_rate=RATE, warmup_steps=WARMUP, ema_decay=DECAY,
                                text_dropout=0.25))
MESHES = {"single": MeshSpec(data=1), "data": MeshSpec(data=8), "fsdp": MeshSpec(data=1, fsdp=8),
          "both": MeshSpec(data=2, fsdp=4)}


def mesh_of(name):
    return make_mesh(MESHES[name], jax.devices()[:1] if name == "single" else None)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {"video": rng.integers(0, 256, (8, 2, 8, 8, 3)).astype(np.uint8), "tokens": rng.integers(2, 8, (8, 4))}


@pytest.fixture(scope="module")
def state():
    """A state whose parameters are random (nothing starts at zero), on the host."""
    inputs = jnp.zeros((1, *STAGE.video.shape)), jnp.zeros(1), example_conditioning(STAGE)
    shapes = jax.eval_shape(lambda: SpaceTimeUNet(NETWORK).init(jax.random.key(0), *inputs))["params"]
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        name = path[-1].key
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if name == "kernel" else 0.3
        return np.asarray((name == "scale") + scale * rng.normal(size=leaf.shape), leaf.dtype)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    return TrainState(step=np.int32(0), params=params, opt_state=make_optimizer(STAGE.training).init(params),
                      ema=jax.tree.map(np.copy, params), key=jax.random.key(3))


@pytest.fixture(scope="module")
def compiled():
    """The step by mesh name."""
    return {name: compile_train_step(STAGE, mesh_of(name)) for name in MESHES}


@pytest.fixture(scope="module")
def stepped(batch, compiled):
    """(mesh name, state) -> state after one step on the batch, and metrics; everything back on the host."""

    def step(name, state):
        mesh = mesh_of(name)
        return to_host(compiled[name](placed(state, mesh), global_batch(batch, mesh)))

    return step


def placed(state, mesh):
    """A copy of a state on a mesh, which may be donated."""
    def copy(leaf, like):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(jax.random.wrap_key_data(np.array(jax.random.key_data(leaf))), like.sharding)
        return jax.device_put(np.array(leaf), like.sharding)

    return jax.tree.map(copy, state, abstract_state(STAGE, mesh))


def to_host(tree):
    def fetch(leaf):
        return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.array(leaf)

    return jax.tree.map(fetch, tree)


@pytest.fixture(scope="module")
def first(stepped, state):
    """The first step on one device."""
    return stepped("single", state)


def assert_close(a, b, **tolerances):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerances), a, b)


def changed(a, b):
    return [bool((x != y).any()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]


# ---------------------------------------------------------------------------------------------- meshes


# Loss and gradients on every kind of mesh are compared in `tests/parallel/test_equality.py`.
@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.full) for name in ("data", "fsdp")), "both"])
def test_a_sharded_step_is_the_step_of_one_device(name, stepped, state, first):
    after, metrics = stepped(name, state)
    assert_close(metrics, first[1], rtol=1e-5)
    moments, expected = (optax.tree.get(s.opt_state, "mu") for s in (after, first[0]))
    assert_close(moments, expected, rtol=1e-4, atol=1e-7)  # a tenth of the clipped gradient
    # Adam divides by the gradient's size: where that is tiny, rounding shows in the last digits of the update.
    assert_close(after.params, first[0].params, rtol=1e-5, atol=1e-6)
    assert_close(after.ema, first[0].ema, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["single", "both"])
def test_the_state_stays_where_it_lives(name, compiled, state, batch):
    mesh = mesh_of(name)
    abstract = abstract_state(STAGE, mesh)
    before = placed(state, mesh)
    after, metrics = compiled[name](before, global_batch(batch, mesh))
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(abstract), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim) and (a.shape, a.dtype) == (b.shape, b.dtype)
    assert all(m.shape == () and m.sharding.is_fully_replicated for m in metrics.values())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))  # donated


def test_gathers_that_the_compiler_spoilt_are_warned_of_once(monkeypatch, caplog, state, batch):
    seen = []
    monkeypatch.setattr("vdm_jax.training.step.check_gathers",
                        lambda text, mesh: seen.append((text, mesh)) or ["shards are too small"])
    mesh = mesh_of("both")
    step = compile_train_step(STAGE, mesh)
    after, _ = step(placed(state, mesh), global_batch(batch, mesh))
    step(after, global_batch(batch, mesh))
    assert caplog.messages == ["shards are too small"]
    assert [m for _, m in seen] == [mesh] and "all-gather" in seen[0][0]


# ---------------------------------------------------------------------------------------------- what a step does


def test_every_parameter_moves_by_at_most_the_rate(state, first):
    after, metrics = first
    np.testing.assert_allclose(metrics["learning_rate"], RATE / WARMUP, rtol=1e-6)
    moves = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params, state.params))
    assert min(moves) > 0.5 * RATE / WARMUP  # Adam's first update is the rate times a sign
    np.testing.assert_allclose(max(moves), RATE / WARMUP, rtol=1e-2)
    assert after.step == 1 and metrics["skipped"] == 0
    np.testing.assert_array_equal(jax.random.key_data(after.key), jax.random.key_data(state.key))


def test_the_step_is_the_gradient_clipped_and_given_to_the_optimizer(state, first, batch):
    key = jax.random.fold_in(state.key, 0)

    @jax.jit
    def expected(params, opt_state):
        loss, aux, grads = gradients(STAGE, params, batch, key, unroll=True)
        updates, _ = make_optimizer(STAGE.training).update(grads, opt_state, params)
        return loss, aux["x_mse"], optax.tree.norm(grads), optax.apply_updates(params, updates)

    loss, x_mse, norm, params = expected(state.params, state.opt_state)
    np.testing.assert_allclose(first[1]["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(first[1]["x_mse"], x_mse, rtol=1e-5)
    np.testing.assert_allclose(first[1]["gradient_norm"], norm, rtol=1e-4)
    assert_close(first[0].params, params, rtol=1e-5, atol=1e-6)


def test_a_step_is_reproducible_and_each_step_has_its_own_noise(stepped, state, first):
    again = stepped("single", state)
    assert_close(again[1], first[1], rtol=0)
    assert_close(again[0].params, first[0].params, rtol=0)
    later = stepped("single", state.replace(step=np.int32(1)))
    other = stepped("single", state.replace(key=jax.random.key(4)))
    for _, metrics in (later, other):
        assert abs(metrics["loss"] - first[1]["loss"]) > 1e-3


@pytest.mark.parametrize(("step", "decay"), [(0, 1 / 10), (10, 11 / 20), (5000, DECAY)])
def test_the_average_follows_its_formula(step, decay, stepped, state):
    """decay = min(ema_decay, (1 + step) / (10 + step)), of the parameters after the step."""
    ema = jax.tree.map(lambda p: p + 1.0, state.params)
    after, _ = stepped("single", state.replace(step=np.int32(step), ema=ema))
    expected = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, after.params)
    assert_close(after.ema, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_step_that_is_not_finite_changes_only_the_counter(bad, stepped, state, first):
    params = jax.tree.map(np.copy, state.params)
    params["out"]["bias"][0] = bad
    broken = first[0].replace(params=params)  # an optimizer state and an average that are not fresh
    after, metrics = stepped("single", broken)
    assert metrics["skipped"] == 1 and not np.isfinite(metrics["loss"])
    assert after.step == broken.step + 1
    for name in ("params", "opt_state", "ema"):
        assert_close(getattr(after, name), getattr(broken, name), rtol=0)
    # And training goes on from there when the next step is finite.
    again, metrics = stepped("single", after.replace(params=first[0].params))
    assert metrics["skipped"] == 0 and all(changed(again.params, first[0].params))


# ---------------------------------------------------------------------------------------------- gradients, loss


@pytest.fixture(scope="module")
def one_gradient():
    """Loss, scalars and gradients of one batch, compiled once."""
    return jax.jit(lambda params, batch, key: jax.value_and_grad(
        lambda p: stage_loss(STAGE, p, batch, key), has_aux=True)(params))


@pytest.mark.parametrize("unroll", [True, False], ids=["unrolled", "in a loop"])
def test_accumulation_is_the_mean_over_micro_batches(unroll, state, batch, one_gradient):
    """Micro-batch i has rows i, i + n, ... and the i-th of the keys that the step's key splits into."""
    parts, key = 2, jax.random.key(5)
    stage = dataclasses.replace(STAGE, training=dataclasses.replace(STAGE.training, accumulation=parts))
    loss, aux, grads = jax.jit(lambda p: gradients(stage, p, batch, key, unroll=unroll))(state.params)
    singles = [to_host(one_gradient(state.params, {name: x[i::parts] for name, x in batch.items()}, k))
               for i, k in enumerate(jax.random.split(key, parts))]
    assert abs(singles[0][0][0] - singles[1][0][0]) > 1e-3  # two different micro-batches
    mean = jax.tree.map(lambda *x: sum(x) / parts, *singles)
    np.testing.assert_allclose(loss, mean[0][0], rtol=1e-5)
    np.testing.assert_allclose(aux["x_mse"], mean[0][1]["x_mse"], rtol=1e-5)
    assert_close(grads, mean[1], rtol=1e-3, atol=1e-6)


def test_training_drops_captions_and_validation_does_not(state, batch):
    always = dataclasses.replace(STAGE, training=dataclasses.replace(STAGE.training, text_dropout=1 - 1e-9))
    never = dataclasses.replace(STAGE, training=dataclasses.replace(STAGE.training, text_dropout=0.0))
    null = {**batch, "tokens": np.zeros_like(batch["tokens"])}  # padding only: the null caption

    def loss(stage, batch, train):
        return float(jax.jit(lambda p: stage_loss(stage, p, batch, jax.random.key(0), train=train)[0])(state.params))

    with_text, without = loss(never, batch, True), loss(never, null, True)
    assert abs(with_text - without) > 1e-3
    np.testing.assert_allclose(loss(always, batch, True), without, rtol=1e-5)
    np.testing.assert_allclose(loss(always, batch, False), with_text, rtol=1e-5)


def test_validation_loss_is_that_of_the_given_parameters_on_any_mesh(state, batch):
    key, losses = jax.random.key(9), {}
    for name in ("single", "both"):
        mesh = mesh_of(name)
        place = jax.tree.map(lambda a: a.sharding, abstract_state(STAGE, mesh).params)
        validate = compile_validation(STAGE, mesh)
        losses[name] = float(validate(jax.device_put(state.params, place), global_batch(batch, mesh), key))
    expected = jax.jit(lambda p: stage_loss(STAGE, p, batch, key, train=False)[0])(state.params)
    np.testing.assert_allclose([losses["single"], losses["both"]], expected, rtol=1e-5)


def test_a_stage_with_a_source_and_one_with_images_make_a_step(batch):
    """Their inputs go through the whole step (shapes only; their numbers are tested where they are made)."""
    still = {"images": np.zeros((8, 2, 8, 8, 3), np.uint8), "image_tokens": np.zeros((8, 2, 4), np.int32)}
    joint = dataclasses.replace(STAGE, training=dataclasses.replace(STAGE.training, images_per_clip=2))
    upsampling = dataclasses.replace(STAGE, source=LowResolution(frames=1, height=4, width=4),
                                     network=dataclasses.replace(NETWORK, low_resolution=True))
    for stage, rows in ((joint, {**batch, **still}), (upsampling, batch)):
        before = abstract_state(stage, mesh_of("single"))
        after, metrics = jax.eval_shape(lambda s, b, stage=stage: train_step(stage, s, b), before, rows)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), before)
        assert set(metrics) == {"loss", "gradient_norm", "skipped", "learning_rate", "x_mse"}


def test_the_logged_rate_is_the_one_that_the_optimizer_applies(stepped, state):
    """A skipped step is no update: the next one has the rate that it would have had, and the log says so."""
    rates = []
    for count in (0, 2, 7):
        opt_state = optax.tree_utils.tree_set(state.opt_state, count=np.int32(count))
        rates.append(float(stepped("single", state.replace(opt_state=opt_state))[1]["learning_rate"]))
    np.testing.assert_allclose(rates, [float(learning_rate(STAGE.training)(n)) for n in (1, 3, 8)], rtol=1e-6)
    params = jax.tree.map(np.copy, state.params)
    params["out"]["bias"][0] = np.nan
    broken = state.replace(params=params)
    for _ in range(2):
        broken, metrics = stepped("single", broken)
        assert metrics["skipped"] == 1
    after, metrics = stepped("single", broken.replace(params=state.params))
    moves = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params, state.params))
    assert after.step == 3 and metrics["skipped"] == 0
    np.testing.assert_allclose(metrics["learning_rate"], RATE / WARMUP, rtol=1e-6)
    np.testing.assert_allclose(max(moves), metrics["learning_rate"], rtol=1e-2)  # Adam's first update is the rate
