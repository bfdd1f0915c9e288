"""The commands that configs recommend in their headers, and the README, docs and help in their examples."""

import dataclasses
import re
import shlex
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

import vdm_jax
from vdm_jax.commands import edit_command
from vdm_jax.commands.arguments import override, parse, parse_with_rest
from vdm_jax.commands.compile_command import Compile
from vdm_jax.commands.configs import config_names, load_config
from vdm_jax.commands.distil_command import Distil
from vdm_jax.commands.edit_command import Edit
from vdm_jax.commands.embed_command import Embed
from vdm_jax.commands.train_command import Train
from vdm_jax.generation.editing.methods import EDIT_METHODS
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


OTHERS = {"edit": Edit, "embed": Embed, "distil": Distil}  # commands that read runs, weights or files


def examples(text):
    """`(kind, arguments)` of these commands in a text: lines of a shell, or in the brackets of a header."""
    text = text.replace("\\\n", " ")
    lines = re.findall(r"^ *vdm-jax (edit|embed|distil) (.+)$|vdm-jax (edit|embed|distil) (\S+ --[^()\n`]+)\)", text,
                       re.MULTILINE)
    return [(line[0] or line[2], shlex.split(line[1] or line[3], comments=True)) for line in lines]


HEADERS = {name: examples((ROOT / "configs" / f"{name}.py").read_text().split('"""')[1]) for name in config_names()}
GUIDES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
EXAMPLES = [(kind, tuple(arguments)) for found in (
    *HEADERS.values(), *(examples(path.read_text()) for path in GUIDES),
    *(examples(kind.__doc__) for kind in OTHERS.values())) for kind, arguments in found]


def test_examples_of_editing_embedding_and_distilling_are_understood(tmp_path, monkeypatch):
    """Without the models, by files that are empty; runs have the names that training gives them."""
    monkeypatch.chdir(tmp_path)
    for method in EDIT_METHODS.values():  # whose weights are not there either
        monkeypatch.setattr(method, "check_files", lambda self: None)
    found = {kind: sum(one == kind for one, _ in EXAMPLES) for kind in OTHERS}
    assert found["edit"] >= 7 and found["embed"] >= 3 and found["distil"] >= 7  # all of them
    for kind, arguments in EXAMPLES:
        options = parse(OTHERS[kind], arguments, "test")
        if kind == "edit":
            options.video.touch()
            edit_command.check(options)
    (kind, (video, *_, prompt)), = HEADERS["tune_a_video/one_shot"]
    assert (kind, video, prompt) == ("edit", "VIDEO", "TEXT")
    runs = {name.replace("/", "_") for name in config_names()}
    for found in HEADERS.values():
        assert all(parse(Edit, arguments, "test").model in runs for kind, arguments in found if kind == "edit")


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
