"""Configs as JSON: whatever a config can hold comes back equal, and what is wrong is named field by field."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import subprocess
import sys
import types
import typing
from pathlib import Path

import pytest

from tests.refusals import refused
from vdm_jax import configuration
from vdm_jax.commands.arguments import override, parse_with_rest
from vdm_jax.commands.configs import config_names, load_config
from vdm_jax.commands.sample_command import Sample
from vdm_jax.configuration import (
    Ascending,
    Length,
    OddSize,
    Range,
    Share,
    Width,
    config,
    digest,
    from_data,
    from_json,
    to_data,
    to_json,
)
from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.data.image_folder import ImageFolder
from vdm_jax.data.published import UCF101
from vdm_jax.data.tfds_video import TFDSVideo
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.errors import UserError
from vdm_jax.networks.config import Level, UNet
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.stages.autoencoding import AnyExperiment
from vdm_jax.stages.distillation import Teacher
from vdm_jax.stages.options import Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec

STORED = Path(__file__).with_name("stored_configs.json")


def small_experiment(**changes) -> Experiment:
    network = UNet(levels=(Level(channels=8),))
    stage = Stage(name="base", video=VideoSpec(frames=4, height=16, width=16), network=network, process=Process())
    return Experiment(name="small", stages=(stage,), data=CaptionedDigits(), **changes)


# ---------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("name", sorted(config_names()))
def test_every_shipped_config_comes_back_equal(name):
    experiment = load_config(name)
    text = to_json(experiment)
    back = from_json(AnyExperiment, text)
    assert back == experiment and to_json(back) == text and digest(back) == digest(experiment)


def fields_of(kind: type):
    """Every (class, field, type hint) that is reachable from a config class."""
    seen, todo = set(), [kind]
    while todo:
        owner = todo.pop()
        if not dataclasses.is_dataclass(owner):
            todo += dataclasses_in(owner)
            continue
        if owner in seen:
            continue
        seen.add(owner)
        hints = typing.get_type_hints(owner)
        for field in dataclasses.fields(owner):
            yield owner, field.name, hints[field.name]
            todo += dataclasses_in(hints[field.name])


def dataclasses_in(hint) -> list[type]:
    if dataclasses.is_dataclass(hint):
        return [hint]
    return [found for argument in typing.get_args(hint) for found in dataclasses_in(argument)]


def unions_in(hint) -> list[tuple]:
    """The members of every union in a hint, also inside tuples."""
    arguments = typing.get_args(hint)
    own = [arguments] if typing.get_origin(hint) in (typing.Union, types.UnionType) else []
    return own + [union for argument in arguments for union in unions_in(argument)]


UNION_MEMBERS = sorted(
    {(f"{owner.__name__}.{field}", member) for owner, field, hint in fields_of(Experiment)
     for members in unions_in(hint) for member in members if dataclasses.is_dataclass(member)},
    key=lambda item: (item[0], item[1].__name__))

# What cannot be left out.
REQUIRED = {"Level": {"channels": 8}, "UNet": {"levels": (Level(channels=8),)},
            "LatentNetwork": {"unet": LatentUNet()},
            "FlowPredictor": {"completion": UNet(levels=(Level(channels=8),), out_channels=2),
                              "unet": UNet(levels=(Level(channels=8),))},
            "ProgressiveDistillation": {"teacher": Teacher(run="teacher", stage="base")},
            "ConsistencyDistillation": {"teacher": Teacher(run="teacher", stage="base")},
            "DistributionMatching": {"teacher": Teacher(run="teacher", stage="base")},
            "SelfForcing": {"teacher": Teacher(run="teacher", stage="base")},
            "RotaryAxes": {"dims": (4, 2, 2)}, "VideoTransformer": {"width": 16, "heads": 2, "hidden": 8, "layers": 2},
            "VideoFolder": {"path": "videos"}, "ImageFolder": {"path": "images"},
            "ImageShards": {"path": "shards"}, "UCF101": {"path": "ucf"}, "BAIRRobotPushing": {"path": "bair"},
            "Kinetics600": {"path": "k600"},
            "ListedBetaSchedule": {"steps": 2, "listed": (0.1, 0.2)},
            "MovingMNIST": {"path": "mnist"}, "PreparedClips": {"path": "clips"}, "TFDSVideo": {"name": "ucf101"},
            "FrameMask": {"first": 1}, "SpaceWeighting": {"space": "eps"},
            "WithEmbeddings": {"data": VideoFolder(path="videos"), "path": "texts"}}


def example(kind: type):
    """An instance of a config class: its defaults, and something for each field without one."""
    given = dict(REQUIRED.get(kind.__name__, {}))
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            hint = typing.get_type_hints(kind)[field.name]
            given.setdefault(field.name, {str: "name", int: 16, float: 1.5}.get(hint))
    return kind(**given)


def test_the_walk_finds_the_unions():
    found = {(field, member.__name__) for field, member in UNION_MEMBERS}
    for expected in (("Experiment.data", "CaptionedDigits"), ("Experiment.data", "VideoFolder"),
                     ("Sampling.sampler", "DDIM"), ("Sampling.threshold", "DynamicThreshold"),
                     ("UNet.text", "EmbeddedText"),
                     ("Level.mixers", "TemporalConvolution"), ("SelfAttention.pattern", "Temporal"),
                     ("Process.schedule", "CosineSchedule"), ("Training.image_data", "ImageFolder")):
        assert expected in found


@pytest.mark.parametrize(("field", "member"), UNION_MEMBERS, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_every_union_member_comes_back_as_itself(field, member):
    owner, name = field.split(".")
    hint = next(h for o, n, h in fields_of(Experiment) if (o.__name__, n) == (owner, name))
    value = example(member)
    whole = (value, value) if typing.get_origin(hint) is tuple else value
    back = from_data(hint, json.loads(json.dumps(to_data(whole))), field)
    assert back == whole and type(back) is type(whole)


@pytest.mark.parametrize("kind", sorted({member for _, member in UNION_MEMBERS}, key=lambda kind: kind.__name__),
                         ids=lambda kind: kind.__name__)
def test_every_field_is_refused_by_its_type_and_by_its_path(kind):
    """No check by hand stands before that of the type."""
    good = example(kind)
    for field in dataclasses.fields(kind):
        with refused(f"{kind.__name__}.{field.name}", f"{kind.__name__}.{field.name}=", "permitted: "):
            dataclasses.replace(good, **{field.name: b"no field holds bytes"})


def test_members_of_a_union_have_different_names():
    """The name is all that tells them apart in a file."""
    for owner, field, hint in fields_of(Experiment):
        for members in unions_in(hint):
            names = [m.__name__ for m in members if dataclasses.is_dataclass(m)]
            assert len(set(names)) == len(names), (owner, field, names)


@pytest.mark.parametrize("data", [
    VideoFolder(path="a"), ImageFolder(path="b"), PreparedClips(path="c"), TFDSVideo(name="ucf101"),
    CaptionedDigits(seed=3), UCF101(path="d", division=2), WithEmbeddings(data=ImageFolder(path="e"), path="f")
], ids=lambda d: type(d).__name__)
def test_an_experiment_on_every_kind_of_data_comes_back(data):
    experiment = dataclasses.replace(small_experiment(), data=data, seed=2**32 - 1)
    assert from_json(Experiment, to_json(experiment)) == experiment


# ---------------------------------------------------------------------------------------------- text and digest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    rate: typing.Annotated[float, Range()] = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Other:
    rate: typing.Annotated[float, Range()] = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    count: int = 1
    scale: float = 2.0
    on: bool = True
    mode: typing.Literal["a", "b"] = "a"
    pair: tuple[int, float] = (1, 2.0)
    names: tuple[str, ...] = ()
    inner: Inner | Other | None = Inner()
    text_or_number: str | float = "x"


def test_text_is_as_expected():
    assert to_data(Outer(names=("u", "v"), inner=Other(rate=1e-5))) == {
        "kind": "Outer", "count": 1, "scale": 2, "on": True, "mode": "a", "pair": [1, 2], "names": ["u", "v"],
        "inner": {"kind": "Other", "rate": 1e-5}, "text_or_number": "x"}


def test_equal_configs_have_equal_texts_and_types_are_restored():
    """Whoever writes 2 for 2.0 has the same config; what comes back from a file has the declared types."""
    assert to_json(Outer(scale=2)) == to_json(Outer(scale=2.0)) and digest(Outer(scale=2)) == digest(Outer(scale=2.0))
    back = from_json(Outer, to_json(Outer(scale=2, pair=(1, 3), text_or_number=4)))
    assert [type(v) for v in (back.scale, *back.pair, back.text_or_number)] == [float, int, float, float]


@pytest.mark.parametrize("rate", [1e-300, 0.1, 1 / 3, 2e-4, -0.5, 1e22])
def test_floats_come_back_to_the_bit(rate):
    assert from_json(Inner, to_json(Inner(rate=rate))).rate == rate


def test_digest_is_that_of_the_sorted_json():
    data = '{"kind": "Inner", "rate": 0.5}'
    assert digest(Inner()) == hashlib.sha256(data.encode()).hexdigest()[:16] == "846ed713ff2727ce"
    assert len({digest(c) for c in (Inner(), Other(), Inner(rate=0.25), Outer(), Outer(inner=None))}) == 5


def test_digest_is_the_same_in_another_process():
    program = ("from vdm_jax.commands.configs import load_config; from vdm_jax.configuration import digest; "
               "print(digest(load_config('captioned_digits')))")
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.split() == [digest(load_config("captioned_digits"))]


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(("changes", "message"), [
    ({"count": "1"}, "Outer.count: config.count='1'"),
    ({"count": 1.5}, "Outer.count: config.count=1.5"),
    ({"count": True}, "Outer.count: config.count=True"),
    ({"on": 1}, "Outer.on: config.on=1"),
    ({"scale": False}, "Outer.scale: config.scale=False"),
    ({"scale": math.inf}, "Outer.scale: config.scale=inf"),
    ({"mode": "c"}, "Outer.mode: config.mode='c' is not valid; permitted: 'a', 'b'"),
    ({"pair": [1]}, "Outer.pair: config.pair=[1] is not valid; permitted: a list of 2"),
    ({"pair": 3}, "Outer.pair: config.pair=3"),
    ({"pair": [1, "x"]}, "Outer.pair: config.pair[1]='x'"),
    ({"names": ["a", 7]}, "Outer.names: config.names[1]=7"),
    ({"inner": {"kind": "Strange"}}, "Outer.inner: config.inner.kind='Strange' is not valid; permitted: Inner, Other"),
    ({"inner": {"rate": 1.0}}, "Outer.inner: config.inner.kind=None is not valid; permitted: Inner, Other"),
    ({"inner": 3}, "Outer.inner: config.inner=3 is not valid; permitted: Inner, or Other, or None"),
    ({"inner": {"kind": "Other", "rate": "fast"}}, "Other.rate: config.inner.rate='fast'"),
    ({"text_or_number": None}, "Outer.text_or_number: config.text_or_number=None"),
    ({"kind": "Inner"}, "config.kind: config.kind='Inner' is not valid; permitted: Outer"),
    ({"scal": 1.0}, "Outer.scal: config.scal is not a field of Outer (did you mean 'scale'?); permitted: count, scale, "
                    "on, mode, pair, names, inner, text_or_number"),
    ({"zzz": 1.0}, "Outer.zzz: config.zzz is not a field of Outer; permitted: count, scale, on, mode, pair, names, "
                   "inner, text_or_number"),
])
def test_errors_name_the_field_the_value_and_what_is_permitted(changes, message):
    data = {**to_data(Outer()), **changes}
    with pytest.raises(UserError) as error:
        from_json(Outer, json.dumps(data))
    assert f"{error.value.code}: {error.value}".startswith(message)
    assert "; permitted: " in str(error.value)


def test_long_values_are_cut_in_messages():
    with refused("Outer.count", "..."):
        from_json(Outer, json.dumps({"count": "x" * 500}))


@pytest.mark.parametrize("text", ["", "{", "{'kind': 1}"])
def test_what_is_not_json_is_an_error(text):
    with refused("configuration.from_json", "runs/a/config.json"):
        from_json(Outer, text, "runs/a/config.json")


@pytest.mark.parametrize("text", ["3", "[]", "null"])
def test_json_of_something_else_is_an_error(text):
    with refused("config", f"config={json.loads(text)}", "Outer"):
        from_json(Outer, text)


def test_missing_fields_without_a_default_are_an_error():
    data = to_data(small_experiment())
    del data["name"]
    with refused("Experiment.name", "config.name"):
        from_data(Experiment, data)


def test_a_value_is_refused_alike_in_python_json_and_on_a_command_line():
    data = to_data(small_experiment())
    data["stages"][0]["training"]["batch_size"] = 0
    for call, name in ((lambda: Training(batch_size=0), "Training.batch_size=0"),
                       (lambda: from_data(Experiment, data), "config.stages[0].training.batch_size=0"),
                       (lambda: override(small_experiment(), ["--base.training.batch-size", "0"], "train"),
                        "Training.batch_size=0")):
        with refused("Training.batch_size", name, "permitted: >= 1"):
            call()
    data["stages"][0]["training"].update(batch_size=16, optimizer="sgd")
    for call in (lambda: Training(optimizer="sgd"), lambda: from_data(Experiment, data),
                 lambda: override(small_experiment(), ["--base.training.optimizer", "sgd"], "train")):
        with refused("Training.optimizer", "'sgd'", "permitted: 'adamw', 'adafactor'"):
            call()
    with refused("Sample.steps", "--steps=0", "permitted: >= 1"):
        parse_with_rest(Sample, ["run", "a red 3", "--steps", "0"], "sample")


@config
class Bounds:
    kernel: OddSize = 3
    widths: typing.Annotated[tuple[Width, ...], Length()] = (8,)
    side: typing.Annotated[tuple[Share, Share], Ascending()] | None = None


@pytest.mark.parametrize(("field", "value", "permitted"), [
    ("kernel", 4, "1, 3, 5, ..."), ("kernel", -1, "1, 3, 5, ..."), ("kernel", 2**17 + 1, ">= 1 and <= 65536"),
    ("widths", (), "a tuple of >= 1, at least 1"), ("widths", (8, 0), "a tuple of >= 1, at least 1"),
    ("widths", 8, "a tuple of >= 1, at least 1"),
    ("side", (0.5, 0.25), "(>= 0 and <= 1, >= 0 and <= 1), ascending, or None"),
    ("side", (0.25, 0.5, 0.75), "(>= 0 and <= 1, >= 0 and <= 1), ascending, or None")])
def test_hints_say_odd_numbers_lengths_and_order(field, value, permitted):
    assert Bounds(kernel=1, widths=(1, 2), side=(0.5, 0.5))
    with refused(f"Bounds.{field}", f"permitted: {permitted}"):
        Bounds(**{field: value})
    with refused(f"Bounds.{field}"):
        from_data(Bounds, json.loads(json.dumps({field: value})))


# ---------------------------------------------------------------------------------------------- names of before


@pytest.fixture
def renames(monkeypatch):
    """As if these had other names once."""
    for name, today in {"Before": "Other", "Outer.factor": "scale", "Outer.off": "not on", "Outer.mode='old'": "b",
                        "UNet.mid": "middle", "Sample.sampling_steps": "steps"}.items():
        monkeypatch.setitem(configuration.RENAMED, name, today)
    monkeypatch.setitem(configuration.REMOVED, "Outer.gone", 0)


def test_a_stored_config_of_names_of_before_is_read_under_those_of_today(renames):
    data = {"kind": "Outer", "factor": 3, "off": True, "mode": "old", "inner": {"kind": "Before", "rate": 2}, "gone": 0}
    assert from_data(Outer, data) == Outer(scale=3.0, on=False, mode="b", inner=Other(rate=2.0))


@pytest.mark.parametrize(("data", "code", "named"), [
    ({"factor": 3, "scale": 2}, "Outer.factor", "Outer.scale"), ({"gone": 1}, "Outer.gone", "config.gone=1"),
    ({"factor": "x"}, "Outer.scale", "config.scale='x'"), ({"mode": "older"}, "Outer.mode", "'a', 'b'"),
    ({"inner": {"kind": "Earlier"}}, "Outer.inner", "Inner, Other")])
def test_what_the_table_of_names_does_not_answer_is_refused(renames, data, code, named):
    with refused(code, named):
        from_data(Outer, data)


@pytest.mark.parametrize(("flags", "today"), [
    (["--base.network.mid", "()"], "--base.network.middle"), (["--base.network.mid=()"], "--base.network.middle")])
def test_a_flag_of_before_is_refused_with_the_name_of_today(renames, flags, today):
    with refused("renamed", flags[0].partition("=")[0], f"permitted: {today}"):
        override(small_experiment(), flags, "train")
    with refused("renamed", "--sampling-steps", "permitted: --steps"):
        parse_with_rest(Sample, ["run", "a red 3", "--sampling-steps=2"], "sample")


@pytest.mark.parametrize(("source", "today"), [
    ("from vdm_jax.networks.config import Before\n", "Other"),
    ("from vdm_jax.networks.config import UNet\n\ndef get_config():\n    return UNet(levels=(), mid=())\n", "middle")])
def test_a_config_file_of_before_is_refused_with_the_name_of_today(renames, tmp_path, source, today):
    (tmp_path / "mine.py").write_text(source)
    with refused("renamed", "mine.py", f"permitted: {today}"):
        load_config(str(tmp_path / "mine.py"))


def test_a_config_stored_before_a_field_was_there_keeps_what_it_had():
    today = small_experiment()
    data = to_data(today)
    assert from_data(Experiment, data) == today and today.data.digit_side == 0.5
    for field in ("digit_side", "track_draws"):
        del data["data"][field]
    assert from_data(Experiment, data).data == dataclasses.replace(today.data, digit_side=20 / 64, track_draws=1)


def test_what_was_added_is_a_field_of_today():
    classes = {owner.__name__: owner for owner, _, _ in fields_of(AnyExperiment)}
    for name, before in configuration.ADDED.items():
        owner, _, field = name.partition(".")
        from_data(configuration._hints(classes[owner])[field], before)  # which it permits


@pytest.mark.parametrize(("name", "before"), [
    ("lvdm/sky_interpolation", ("known_steps", "FramesKnown", "offsets")), ("video_ldm/prediction", ("StartFile",)),
    ("lumiere/conditioned", ("observed", "StillKnown", "spread")),
    ("modelscope/text_to_video", ("Stack", "only_context")), ("make_a_video/cascade", ("observations", "Start"))])
def test_shipped_configs_that_runs_stored_under_names_of_before_load(name, before):
    """`stored_configs.json` holds them as runs stored them; what they mean has not changed."""
    stored = json.loads(STORED.read_text())[name]
    assert all(f'"{word}"' in json.dumps(stored) for word in before)
    loaded = from_data(Experiment, stored)
    today = load_config(name)
    assert [stage.network for stage in loaded.stages] == [stage.network for stage in today.stages]
    assert [stage.training for stage in loaded.stages] == [stage.training for stage in today.stages]
    assert not any(f'"{word}"' in to_json(loaded) for word in before)


def test_names_of_before_are_not_those_of_today():
    """Every entry of the table leads to a class or field that there is."""
    classes = {owner.__name__: owner for owner, _, _ in fields_of(AnyExperiment)}
    for before, today in configuration.RENAMED.items():
        owner, _, field = before.partition(".")
        assert today in classes if not field else owner in classes, before
        if field and "=" not in field:
            assert today.removeprefix("not ") in configuration._hints(classes[owner]), before


@pytest.mark.parametrize("value", [object(), {1: 2}, {3}, b"bytes"], ids=lambda value: type(value).__name__)
def test_what_is_not_data_cannot_be_written(value):
    with refused("configuration.to_data", type(value).__name__):
        to_json(Outer(text_or_number=value))
