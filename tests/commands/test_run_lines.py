"""The commands that configs recommend in their headers."""

import dataclasses
import re
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

import vdm_jax
from vdm_jax.commands.arguments import override, parse_with_rest
from vdm_jax.commands.compile_command import Compile
from vdm_jax.commands.configs import config_names, load_config
from vdm_jax.commands.train_command import Train
from vdm_jax.parallel.gathers import check_shards
from vdm_jax.parallel.mesh import AXES
from vdm_jax.parallel.rules import parameter_shardings
from vdm_jax.planning import topology
from vdm_jax.stages.parameters import initial_params

ROOT = Path(vdm_jax.__file__).parent.parent
LINE = re.compile(r"vdm-jax (train|compile) (\S+)((?: --\S+(?: [^\s(#-]\S*)*)*)")


def commands(text):
    """`(kind, config, arguments)` of the commands in a text."""
    return [(kind, name, rest.split()) for kind, name, rest in LINE.findall(text)]


def header(name):
    """The commands of a config's header, below Run."""
    text = (ROOT / "configs" / f"{name}.py").read_text().split('"""')[1]
    return commands(text.split("Run:", 1)[1])


README = re.findall(r"^vdm-jax .*", (ROOT / "README.md").read_text(), re.MULTILINE)
RECOMMENDED = [(kind, name, arguments) for kind, name, arguments in (
    *(command for name in config_names() for command in header(name)), *commands("\n".join(README)))
    if re.fullmatch(r"[a-z0-9_/]+", name)]


def test_every_config_recommends_a_command():
    assert all(header(name) for name in config_names()) and len(RECOMMENDED) > 40


def test_commands_are_understood_and_name_what_exists():
    for kind, name, arguments in RECOMMENDED:
        if name not in config_names():
            continue
        options, rest = parse_with_rest(Compile if kind == "compile" else Train, [name, *arguments], "test")
        experiment = override(load_config(name), rest, "test")
        for stage in (options.stage or ()) if kind == "train" else filter(None, [options.stage]):
            experiment.stage(stage)


SPLIT = sorted({(name, *arguments) for kind, name, arguments in RECOMMENDED
                if kind == "compile" and any(a.startswith("--mesh.") for a in arguments)})


@pytest.mark.parametrize("command", SPLIT, ids=" ".join)
def test_meshes_fill_their_slices_and_gather_their_weights(command):
    """From shapes, without a compiler."""
    options, rest = parse_with_rest(Compile, command, "test")
    experiment = override(load_config(options.config), rest, "test")
    stage = experiment.stage(options.stage) if options.stage else experiment.stages[0]
    slices, sizes = topology.parse(options.topology), dataclasses.asdict(experiment.mesh)
    chips = slices.count * slices.chips
    rest = sizes["fsdp"] * sizes["tensor"] * sizes["context"]
    assert chips % rest == 0
    sizes["data"] = chips // rest
    assert stage.training.batch_size % (sizes["data"] * sizes["fsdp"] * stage.training.accumulation) == 0
    assert stage.video.frames % sizes["context"] == 0

    shapes = jax.eval_shape(lambda key: initial_params(stage, key), jax.random.key(0))

    def advice(fsdp):
        axes = {**sizes, "data": sizes["data"] * sizes["fsdp"] // fsdp, "fsdp": fsdp}
        mesh = AbstractMesh(tuple(axes[axis] for axis in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES))
        return check_shards(jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes,
                                        parameter_shardings(shapes, mesh)), mesh)

    assert advice(sizes["fsdp"]) is None
    if slices.chips >= 64 and slices.count == 1:  # so it can be otherwise
        assert "of a slice" in advice(chips // (sizes["tensor"] * sizes["context"]))
