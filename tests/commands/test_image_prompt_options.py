"""Options about image prompts that cannot be, and which states of the encoder a run's vectors were made of."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.refusals import refused
from vdm_jax.commands import export_command
from vdm_jax.commands.image_prompts import image_prompted
from vdm_jax.conditions.inputs import Input
from vdm_jax.generation import image_prompts
from vdm_jax.networks.image_prompt import ImageProjection
from vdm_jax.networks.picture_adapter import PictureAdapter

OPTIONS = SimpleNamespace(image_prompt=(Path("a.png"),), captions=("",), count=1, image_encoder=None,
                          image_prompt_scale=None)
PLUS = ImageProjection(width=5, tokens=2, token_channels=6, layers=1, heads=2, head_dim=4)


def generator_of(folder, projection, hidden, last=False, adapter=None):
    """A run whose data says how its vectors were made, in a folder if there is one."""
    if folder is not None:
        record = {"encoder": "an encoder", "hidden": hidden, "last": last}
        (folder / "image_prompts.json").write_text(json.dumps(record))
    network = SimpleNamespace(conditions=(Input(name="image_prompt", width=5),), image_projection=projection,
                              picture_adapter=adapter)
    return SimpleNamespace(experiment=SimpleNamespace(stages=(SimpleNamespace(network=network),), data=SimpleNamespace(
        image_prompts=None if folder is None else str(folder))))


@pytest.mark.parametrize("projection, hidden, last", [
    (None, True, False), (None, True, True), (None, False, False), (PLUS, True, False), (PLUS, True, True)])
def test_pictures_are_encoded_as_those_of_the_data(projection, hidden, last, tmp_path, monkeypatch):
    monkeypatch.setattr(image_prompts, "open_encoder", lambda *asked: asked)
    monkeypatch.setattr(image_prompts, "picture_arguments",
                        lambda encoder, pictures, scale, hidden, last: (encoder, hidden, last))
    found = image_prompted(OPTIONS, generator_of(tmp_path, projection, hidden, last), None)
    assert found == (("an encoder", 5, hidden), hidden, last)


def test_without_a_record_a_picture_adapter_reads_the_last_states(monkeypatch):
    """Of the encoder that is named; other networks read those of the layer before."""
    monkeypatch.setattr(image_prompts, "open_encoder", lambda *asked: asked)
    monkeypatch.setattr(image_prompts, "picture_arguments",
                        lambda encoder, pictures, scale, hidden, last: (encoder, hidden, last))
    named = SimpleNamespace(**{**vars(OPTIONS), "image_encoder": "another"})
    for adapter, projection, said in ((PictureAdapter(), None, (True, True)), (None, PLUS, (True, False)),
                                      (None, None, (False, False))):
        generator = generator_of(None, projection, None, adapter=adapter)
        assert image_prompted(named, generator, None) == (("another", 5, said[0]), *said)


def test_a_picture_adapter_refuses_summaries(tmp_path):
    generator = generator_of(tmp_path, None, False, adapter=PictureAdapter())
    with refused("image_prompt.record", str(tmp_path), "holds a summary", "picture_adapter reads hidden states",
                 "with --hidden"):
        image_prompted(OPTIONS, generator, None)


@pytest.mark.parametrize("projection, said", [
    (PLUS, ("holds a summary", "reads hidden states", "with --hidden")),
    (ImageProjection(width=5, tokens=2, token_channels=6), ("holds hidden states", "reads a summary", "without"))])
def test_vectors_of_another_kind_are_refused(projection, said, tmp_path):
    with refused("image_prompt.record", str(tmp_path), *said):
        image_prompted(OPTIONS, generator_of(tmp_path, projection, not projection.layers), None)


def test_one_part_of_the_weights_is_exported(tmp_path):
    with refused("Export.parts", "--lora=plain", "one of them"):
        export_command.main(["run", str(tmp_path / "out"), "--lora", "plain", "--image-prompts"])
