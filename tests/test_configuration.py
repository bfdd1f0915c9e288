"""Configs as JSON: whatever a config can hold comes back equal, and what is wrong is named field by field."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
import types
import typing

import pytest

from vdm_jax.commands.configs import config_names, load_config
from vdm_jax.configuration import digest, from_data, from_json, to_data, to_json
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
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec


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
            "VideoFolder": {"path": "videos"}, "ImageFolder": {"path": "images"},
            "ImageShards": {"path": "shards"}, "UCF101": {"path": "ucf"}, "BAIRRobotPushing": {"path": "bair"},
            "Kinetics600": {"path": "k600"},
            "ListedBetaSchedule": {"steps": 2, "listed": (0.1, 0.2)},
            "MovingMNIST": {"path": "mnist"}, "PreparedClips": {"path": "clips"}, "TFDSVideo": {"name": "ucf101"},
            "FramesKnown": {"first": 1}, "SpaceWeighting": {"space": "eps"},
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
    rate: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Other:
    rate: float = 0.5


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


@pytest.mark.parametrize("rate", [1e-300, 0.1, 1 / 3, 2e-4, -0.5, 1e22, float("inf")])
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
    ({"count": "1"}, "config.count='1' is not valid; permitted: int"),
    ({"count": 1.5}, "config.count=1.5 is not valid; permitted: int"),
    ({"count": True}, "config.count=True is not valid; permitted: int"),
    ({"on": 1}, "config.on=1 is not valid; permitted: bool"),
    ({"scale": False}, "config.scale=False is not valid; permitted: float"),
    ({"mode": "c"}, "config.mode='c' is not valid; permitted: 'a', 'b'"),
    ({"pair": [1]}, "config.pair=[1] is not valid; permitted: a list of 2"),
    ({"pair": 3}, "config.pair=3 is not valid; permitted: a list"),
    ({"pair": [1, "x"]}, "config.pair[1]='x' is not valid; permitted: float"),
    ({"names": ["a", 7]}, "config.names[1]=7 is not valid; permitted: str"),
    ({"inner": {"kind": "Strange"}}, "config.inner.kind='Strange' is not valid; permitted: Inner, Other"),
    ({"inner": {"rate": 1.0}}, "config.inner.kind=None is not valid; permitted: Inner, Other"),
    ({"inner": 3}, "config.inner=3 is not valid; permitted: Inner | Other | NoneType"),
    ({"inner": {"kind": "Other", "rate": "fast"}}, "config.inner.rate='fast' is not valid; permitted: float"),
    ({"text_or_number": None}, "config.text_or_number=None is not valid; permitted: str | float"),
    ({"kind": "Inner"}, "config.kind='Inner' is not valid; permitted: Outer"),
    ({"scal": 1.0}, "config.scal is not a field of Outer (did you mean 'scale'?); permitted: count, scale, on, mode, "
                    "pair, names, inner, text_or_number"),
    ({"zzz": 1.0}, "config.zzz is not a field of Outer; permitted: count, scale, on, mode, pair, names, inner, "
                   "text_or_number"),
])
def test_errors_name_the_field_the_value_and_what_is_permitted(changes, message):
    data = {**to_data(Outer()), **changes}
    with pytest.raises(UserError) as error:
        from_json(Outer, json.dumps(data))
    assert str(error.value) == message


def test_long_values_are_cut_in_messages():
    with pytest.raises(UserError) as error:
        from_json(Outer, json.dumps({"count": "x" * 500}))
    assert len(str(error.value)) < 140 and "..." in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "{'kind': 1}"])
def test_what_is_not_json_is_an_error(text):
    with pytest.raises(UserError, match="^runs/a/config.json is not JSON: "):
        from_json(Outer, text, "runs/a/config.json")


@pytest.mark.parametrize("text", ["3", "[]", "null"])
def test_json_of_something_else_is_an_error(text):
    with pytest.raises(UserError, match=r"^config=.* is not valid; permitted: an object of kind Outer$"):
        from_json(Outer, text)


def test_missing_fields_without_a_default_are_an_error():
    data = to_data(small_experiment())
    del data["name"]
    with pytest.raises(UserError, match="config: .*missing 1 required keyword-only argument: 'name'"):
        from_data(Experiment, data)


def test_values_are_validated_on_the_way_in():
    data = to_data(small_experiment())
    data["stages"][0]["training"]["batch_size"] = 0
    with pytest.raises(UserError, match="^Training.batch_size=0 is not valid; permitted: >= 1$"):
        from_data(Experiment, data)


@pytest.mark.parametrize("value", [object(), {1: 2}, {3}, b"bytes"], ids=lambda value: type(value).__name__)
def test_what_is_not_data_cannot_be_written(value):
    with pytest.raises(UserError, match="is not data; permitted: dataclass, tuple, str, int, float, bool, None"):
        to_json(Outer(text_or_number=value))
