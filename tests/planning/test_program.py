"""Programs compiled for virtual CPU devices, and for TPU slices where libtpu is installed."""

import dataclasses
import importlib.util
import types

import jax
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.attention.patterns import Full, WithExtraKeys
from vdm_jax.commands.compile_command import with_known_vocabulary
from vdm_jax.commands.configs import load_config
from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.generation.compiled import jit_sampling
from vdm_jax.networks.config import EmbeddedText, Reference, SelfAttention
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.planning import topology
from vdm_jax.planning.advice import judge
from vdm_jax.planning.chips import GIB
from vdm_jax.planning.inputs import clip_shape, device_bytes, sampling_inputs, training_batch
from vdm_jax.planning.program import Plan, compile_plan, counted_from_shapes, far_axes, memory, plan_mesh, state_sizes
from vdm_jax.stages.stage import LowResolution
from vdm_jax.training.state import abstract_state, create_state


def test_bytes_per_device_are_those_of_a_real_state(tiny):
    stage = tiny.stages[0]
    mesh = make_mesh(MeshSpec(data=2, fsdp=4), jax.devices())
    state = create_state(stage, 0, mesh)
    first = sum(shard.data.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state, state.ema))
                for shard in leaf.addressable_shards if shard.device == jax.devices()[0])
    shapes = abstract_state(stage, mesh)
    assert device_bytes((shapes.params, shapes.opt_state, shapes.ema)) == first
    assert device_bytes(shapes.key) == 8  # two words


def test_teacher_and_target_of_a_distillation_are_part_of_the_state(tiny, distilled):
    mesh = make_mesh(MeshSpec(data=2, fsdp=4), jax.devices())
    plan = Plan(experiment="tiny", stage=distilled, data=tiny.data, mesh=tiny.mesh)
    sizes = state_sizes(plan, abstract_state(distilled, mesh))["state"]
    assert sizes["networks"] == 2 * sizes["parameters"] > 0
    assert "networks" not in state_sizes(plan, abstract_state(tiny.stages[0], mesh))["state"]


def test_batches_have_the_shapes_of_the_data(tiny):
    stage = tiny.stages[0]
    batch, notes = training_batch(stage, tiny.data, 8, 128)
    assert {name: (x.shape, x.dtype.name) for name, x in batch.items()} == {
        "video": ((8, 4, 16, 16, 3), "uint8"), "tokens": ((8, 12), "int32")} and notes == []
    assert clip_shape(VideoFolder(path="x", frames=5, height=6, width=7), stage) == ((5, 6, 7), None)
    shape, note = clip_shape(PreparedClips(path="nowhere"), stage)
    assert shape == (4, 16, 16) and "does not exist here" in note
    embedded = dataclasses.replace(stage, network=dataclasses.replace(stage.network, text=EmbeddedText(width=32)))
    batch, notes = training_batch(embedded, tiny.data, 8, 77)
    assert batch["embeddings"].shape == (8, 77, 32) and "77 tokens (--text-tokens)" in notes[0]


def test_a_stage_with_a_source_is_sampled_from_its_low_resolution_video(tiny):
    stage = tiny.stages[0]
    network = dataclasses.replace(stage.network, low_resolution=True)
    stage = dataclasses.replace(stage, network=network, source=LowResolution(frames=2, height=8, width=8))
    keys, text, low, _ = sampling_inputs(stage, 8, 128, make_mesh(MeshSpec(), jax.devices()))
    assert keys.shape == (8,) and low.shape == (8, 2, 8, 8, 3) and text.tokens.shape == (8, 1, 12)


def test_nothing_is_evaluated_while_a_sampler_is_traced(tiny, monkeypatch):
    """For devices that are not there nothing can be."""
    stage, mesh = tiny.stages[0], make_mesh(MeshSpec(), jax.devices())
    state = abstract_state(stage, mesh)
    program = jit_sampling(stage, stage.sampling, mesh, jax.tree.map(lambda a: a.sharding, state.params))
    monkeypatch.delattr(jax, "ensure_compile_time_eval")
    with jax.set_mesh(mesh):
        program.lower(state.params, *sampling_inputs(stage, 8, 128, mesh))


def in_slices(count):
    """Stand-ins for the devices of several slices."""
    return [types.SimpleNamespace(slice_index=i // (8 // count), platform="tpu", id=i) for i in range(8)]


def test_slices_split_the_data_axis_and_nothing_else(monkeypatch):
    from jax.experimental import mesh_utils

    asked = []

    def hybrid(inside, across, devices, **_):
        asked.append((list(inside), list(across)))
        return np.array(jax.devices()).reshape([a * b for a, b in zip(inside, across, strict=True)])

    monkeypatch.setattr(mesh_utils, "create_hybrid_device_mesh", hybrid)
    mesh = plan_mesh(MeshSpec(data=-1, fsdp=2), in_slices(2))
    assert asked == [([2, 2, 1, 1], [2, 1, 1, 1])] and dict(mesh.shape)["data"] == 4
    with refused("program.plan_mesh", "2", "4"):
        plan_mesh(MeshSpec(data=1, fsdp=8), in_slices(2))


def test_axes_between_slices():
    grid = np.array(in_slices(2), object).reshape(2, 4, 1, 1)
    mesh = types.SimpleNamespace(devices=grid, axis_names=("data", "fsdp", "tensor", "context"))
    assert far_axes(mesh) == ("data",)
    assert far_axes(make_mesh(MeshSpec(), jax.devices())) == ()


def test_what_memory_is_needed_depends_on_what_the_peak_holds():
    stats = types.SimpleNamespace(argument_size_in_bytes=100, output_size_in_bytes=90, alias_size_in_bytes=80,
                                  temp_size_in_bytes=50, generated_code_size_in_bytes=7, peak_memory_in_bytes=120)
    compiled = types.SimpleNamespace(memory_analysis=lambda: stats)
    assert memory(compiled, "tpu")["needed"] == 120 + 7 and memory(compiled, "cpu")["needed"] == 160 + 7
    for platform in ("tpu", "cpu"):
        found = memory(compiled, platform)
        assert found["needed"] == found["arguments"] + found["new_outputs"] + found["alive"] + found["code"]


def test_a_network_with_references_is_planned(tiny):
    stage = tiny.stages[0]
    network, mixer = stage.network, SelfAttention(pattern=WithExtraKeys(inner=Full()), head_dim=8, extra_tokens="ref")
    levels = (dataclasses.replace(network.levels[0], mixers=(mixer,)),)
    network = dataclasses.replace(network, levels=levels, references=(Reference(name="ref", width=6),))
    plan = Plan(experiment="tiny", stage=dataclasses.replace(stage, network=network), data=tiny.data, mesh=MeshSpec(),
                text_tokens=5)
    batch, notes = training_batch(plan.stage, tiny.data, 8, 5)
    assert batch["reference_ref"].shape == (8, 1, 5, 6) and "reference 'ref' is assumed to have 5 tokens" in notes[0]
    mesh = make_mesh(MeshSpec(), jax.devices())
    assert counted_from_shapes(plan, mesh)["flops"]["forward"]["attention"] == (
        3 * 8 * 4 * 16 * 8 * (16 + 5) + 8 * 4 * 12 * 12 * 8)  # the second of the word encoder
    params = abstract_state(plan.stage, mesh).params
    program = jit_sampling(plan.stage, plan.stage.sampling, mesh, jax.tree.map(lambda a: a.sharding, params))
    with jax.set_mesh(mesh):
        program.lower(params, *sampling_inputs(plan.stage, 8, 5, mesh))


# ---------------------------------------------------------------------------------------------- with the TPU compiler

tpu = [pytest.mark.full, pytest.mark.skipif(importlib.util.find_spec("libtpu") is None,
                                            reason="needs libtpu (the extra [tpu])")]


def demo(name, spec, **options):
    experiment = with_known_vocabulary(load_config("captioned_digits"))
    plan = Plan(experiment="demo", stage=experiment.stage("base"), data=experiment.data, mesh=spec, topology=name,
                **options)
    return plan, topology.devices(name)


class TestTPU:
    pytestmark = tpu

    def test_the_demos_train_step_on_v5e(self):
        plan, devices = demo("v5e-4", MeshSpec(data=2, fsdp=2))
        report = judge(compile_plan(plan, devices), int(15.75 * GIB))
        assert (report["verdict"], report["chip"], report["devices"]) == ("fits", "v5e", 4)
        assert report["state"]["parameters"] < report["memory"]["arguments"] < 2 * sum(report["state"].values())
        kinds = {(row["kind"], row["axes"]) for row in report["collectives"]}
        assert {("all-gather", "fsdp"), ("reduce-scatter", "fsdp"), ("all-reduce", "data")} <= kinds
        assert report["warnings"] == [] and 0 < report["roofline"]["mfu"] < 1

    def test_the_demos_sampler_on_v5e(self):
        plan, devices = demo("v5e-4", MeshSpec(data=4), what="sample")
        report = judge(compile_plan(plan, devices), int(15.75 * GIB))
        assert (report["verdict"], report["what"], report["warnings"]) == ("fits", "sample", [])
        assert report["flops"]["evaluations"] == plan.stage.sampling.steps and report["roofline"]["mfu"] < 1

    def test_what_does_not_fit_is_a_report(self):
        plan, devices = demo("v5e-4", MeshSpec(data=4))
        report = judge(compile_plan(plan.with_batch(2**16), devices), int(15.75 * GIB))
        assert (report["status"], report["verdict"]) == ("out of memory", "does not fit")
        assert report["capacity"] == int(15.75 * GIB) < report["memory"]["needed"]
        assert any("--base.training.accumulation" in line for line in report["advice"])
