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

OPTIONS = SimpleNamespace(image_prompt=(Path("a.png"),), captions=("",), count=1, image_encoder=None,
                          image_prompt_scale=None)
PLUS = ImageProjection(width=5, tokens=2, token_channels=6, layers=1, heads=2, head_dim=4)


def generator_of(folder, projection, hidden):
    """A run whose data says how its vectors were made."""
    (folder / "image_prompts.json").write_text(json.dumps({"encoder": "an encoder", "hidden": hidden}))
    network = SimpleNamespace(conditions=(Input(name="image_prompt", width=5),), image_projection=projection)
    return SimpleNamespace(experiment=SimpleNamespace(
        stages=(SimpleNamespace(network=network),), data=SimpleNamespace(image_prompts=str(folder))))


@pytest.mark.parametrize("projection, hidden", [(None, True), (None, False), (PLUS, True)])
def test_pictures_are_encoded_as_those_of_the_data(projection, hidden, tmp_path, monkeypatch):
    monkeypatch.setattr(image_prompts, "open_encoder", lambda *asked: asked)
    monkeypatch.setattr(image_prompts, "picture_arguments",
                        lambda encoder, pictures, scale, hidden, last: (encoder, hidden))
    found = image_prompted(OPTIONS, generator_of(tmp_path, projection, hidden), None)
    assert found == (("an encoder", 5, hidden), hidden)


@pytest.mark.parametrize("projection, said", [
    (PLUS, ("holds a summary", "reads hidden states", "with --hidden")),
    (ImageProjection(width=5, tokens=2, token_channels=6), ("holds hidden states", "reads a summary", "without"))])
def test_vectors_of_another_kind_are_refused(projection, said, tmp_path):
    with refused("image_prompt.record", str(tmp_path), *said):
        image_prompted(OPTIONS, generator_of(tmp_path, projection, not projection.layers), None)


def test_one_part_of_the_weights_is_exported(tmp_path):
    with refused("Export.image_prompts", "--lora=plain", "one of them"):
        export_command.main(["run", str(tmp_path / "out"), "--lora", "plain", "--image-prompts"])
