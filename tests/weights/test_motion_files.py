"""Motion modules in one file, as AnimateDiff's authors name them: read, told from others, wrong ones refused."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.refusals import refused
from tests.weights.folders import SMALL, tensors_of, write
from vdm_jax.commands.main import main
from vdm_jax.weights.motion_files import is_motion_file, load_motion_file
from vdm_jax.weights.pretrained import load_imported, load_pretrained

ADAPTER = SMALL["motion_adapter"]
CODE = "transformer_blocks.0.pos_embed.pe"


def original(tensors):
    """The same by the authors' names, which have the code of the frames' numbers in each attention."""
    renamed = {}
    for name, tensor in tensors.items():
        place, rest = name.split(".transformer_blocks.0.") if ".transformer_blocks.0." in name else (name, "")
        head, module, layer = place.rpartition(".motion_modules.")
        number, _, layer = layer.partition(".")
        within = f"{head}{module}{number}.temporal_transformer."
        if not rest:
            renamed[within + layer] = tensor
        elif rest == "pos_embed.pe":
            renamed |= {f"{within}transformer_blocks.0.attention_blocks.{i}.pos_encoder.pe": tensor for i in range(2)}
        else:
            for ours, theirs in (("attn1.", "attention_blocks.0."), ("attn2.", "attention_blocks.1."),
                                 ("norm1.", "norms.0."), ("norm2.", "norms.1."), ("norm3.", "ff_norm.")):
                rest = rest.replace(ours, theirs)
            renamed[f"{within}transformer_blocks.0.{rest}"] = tensor
    return renamed


@pytest.fixture
def tensors():
    return tensors_of(ADAPTER)


def write_original(path, tensors):
    safetensors.numpy.save_file(original(tensors), path)
    return path


def test_a_file_of_motion_modules_becomes_a_folder_or_a_file_of_ours(tensors, tmp_path):
    path = write_original(tmp_path / "mm.safetensors", tensors)
    expected = load_pretrained(write(tmp_path / "folder", ADAPTER, tensors)).params
    model = load_motion_file(path, heads=2, groups=2)
    assert model.config == ADAPTER and is_motion_file(path)
    jax.tree.map(np.testing.assert_array_equal, model.params, expected)


def test_the_command_tells_files_apart(tmp_path):
    """Heads and groups are those of the released models, which divide wider modules only."""
    wide = dataclasses.replace(ADAPTER, widths=(32, 32), motion=dataclasses.replace(ADAPTER.motion, heads=8, groups=32))
    tensors = tensors_of(wide)
    path = write_original(tmp_path / "mm.safetensors", tensors)
    assert main(["convert", str(path), str(tmp_path / "ours.safetensors")]) == 0
    assert load_imported(tmp_path / "ours.safetensors").config == wide
    for source, folder in ((path, "a"), (tmp_path / "ours.safetensors", "b")):
        assert main(["convert", str(source), str(tmp_path / folder)]) == 0
        written = safetensors.numpy.load_file(tmp_path / folder / "diffusion_pytorch_model.safetensors")
        assert written.keys() == tensors.keys() and all(np.array_equal(written[n], t) for n, t in tensors.items())


@pytest.mark.parametrize("change, message", [
    (lambda t: t.pop("up_blocks.0.motion_modules.0.proj_out.bias"),
     ("pretrained.parameters_of", "1", "up_blocks.0.motion_modules.0.proj_out")),
    (lambda t: t.update({f"up_blocks.0.motion_modules.0.{CODE}": np.zeros((1, 5, 8), np.float32)}),
     ("video_unet_fields.check_frame_codes", "5")),
    (lambda t: t.update({f"up_blocks.0.motion_modules.0.{CODE}": np.zeros((1, 4, 8), np.float32)}),
     ("motion_files.motion_config", "5")),
    (lambda t: [t.pop(name) for name in list(t) if name.startswith("down_blocks.0")],
     ("motion_files.motion_config", "[1]")),
])
def test_refused_files(change, message, tensors, tmp_path):
    change(tensors)
    with refused(*message):
        load_motion_file(write_original(tmp_path / "mm.safetensors", tensors), heads=2, groups=2)


def test_a_folder_with_another_code_is_refused(tensors, tmp_path):
    tensors[f"down_blocks.0.motion_modules.0.{CODE}"] += 0.1
    with refused("video_unet_fields.check_frame_codes"):
        load_pretrained(write(tmp_path / "m", ADAPTER, tensors))
