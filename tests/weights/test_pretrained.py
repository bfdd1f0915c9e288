"""Open weights in and out: names and shapes of the released models, bit-exact round trips, every wrong folder named."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pickle
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tests.refusals import refused
from tests.weights.folders import SMALL, recorded, tensors_of, write
from vdm_jax.commands.main import main
from vdm_jax.networks import control_net, latent_unet, motion_adapter
from vdm_jax.networks.autoencoders import config as autoencoder_config
from vdm_jax.networks.autoencoders.causal_config import AUTOENCODER_WAN21, AUTOENCODER_WAN22
from vdm_jax.networks.autoencoders.hunyuan import AUTOENCODER_HUNYUAN
from vdm_jax.networks.autoencoders.ltx_config import (
    AUTOENCODER_LTX_090,
    AUTOENCODER_LTX_091,
    AUTOENCODER_LTX_095,
)
from vdm_jax.networks.autoencoders.piecewise import AUTOENCODER_COGVIDEOX
from vdm_jax.networks.encoders import clip_text, clip_vision
from vdm_jax.networks.encoders import t5 as t5_encoder
from vdm_jax.networks.encoders.clip_text import CLIPText
from vdm_jax.networks.transformer import config as transformer
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.weights import model_kinds, pretrained
from vdm_jax.weights.pretrained import load_imported, load_pretrained, save_pretrained


@pytest.mark.parametrize("name, config, parameters", [
    ("sd_vae", autoencoder_config.AUTOENCODER_F8, 83_653_863),
    ("svd_vae", autoencoder_config.AUTOENCODER_SVD, 97_742_847),
    ("clip_text_l", dataclasses.replace(clip_text.CLIP_TEXT_L, project=768), 123_060_480 + 768**2),
    ("clip_text_h", dataclasses.replace(clip_text.CLIP_TEXT_H, project=1024), 354_032_640),
    ("clip_vision_h", clip_vision.CLIP_VISION_H, 632_076_800),
    ("clip_vision_l", clip_vision.CLIP_VISION_L, 303_966_208),
    ("t5_xxl", t5_encoder.T5_XXL, 4_762_310_656),
    ("wan_1b", transformer.WAN_1B, 1_418_996_800),
    ("wan_14b", transformer.WAN_14B, 14_288_491_584),
    ("wan_14b_image", transformer.WAN_14B_IMAGE, 16_394_878_784),
    ("wan_14b_first_last", transformer.WAN_14B_FIRST_LAST, 16_395_536_704),
    ("wan_14b_i2v", transformer.WAN_14B_I2V, 14_288_901_184),
    ("wan_5b", transformer.WAN_5B, 4_999_787_712),
])
def test_tensors_of_the_released_models(name, config, parameters):
    expected = recorded(name)
    assert model_kinds.inventory(config) == expected
    assert sum(map(math.prod, expected.values())) == parameters


# Number of tensors and SHA-256 of the sorted lines "name<tab>shape" of models whose lists are long.
LONG = {
    "sd1": (latent_unet.LATENT_UNET_SD1, 686, "af6e32dd049bb54e579f1a52cb4ed5ab"),
    "sd2": (latent_unet.LATENT_UNET_SD2, 686, "9d4b5eb0a4a9dd7516d2d1ff16899bb4"),
    "svd": (latent_unet.LATENT_UNET_SVD, 1428, "fc687257f1e6d3891057969a8caff8b7"),
    "modelscope": (latent_unet.LATENT_UNET_MODELSCOPE, 1480, "96489e9168dcdacf71a2ebd2b2ad7109"),
    "animatediff_v2": (motion_adapter.MOTION_ADAPTER_V2, 567, "9de2f5efd6ccb9bd6beec9b1f2f23f41"),
    "wan21_vae": (AUTOENCODER_WAN21, 194, "187107cba26c0f6b0a8e62ee22307109"),
    "wan22_vae": (AUTOENCODER_WAN22, 196, "8a38755bbcacdecab4f79ad0cbfebf07"),
    "cogvideox_vae": (AUTOENCODER_COGVIDEOX, 436, "f813f1ceadbb83fc0c0ef016b9116506"),
    "hunyuan_vae": (AUTOENCODER_HUNYUAN, 248, "c94be8cb4cffc2f55e2e7b2559b43f9d"),
    "ltx_vae_090": (AUTOENCODER_LTX_090, 190, "973af82d5bb59ff26834aa9e5cef064b"),
    "ltx_vae_091": (AUTOENCODER_LTX_091, 294, "d657ba146a60c4a25b511d27c8fd39e8"),
    "ltx_vae_095": (AUTOENCODER_LTX_095, 226, "74412564c998e107940eafba765effb1"),
    "umt5_xxl": (t5_encoder.UMT5_XXL, 242, "952a171016715f4f94cab74d54dfae8b"),
    "control_net": (control_net.CONTROL_NET_SD1, 340, "efc17bc123f3f5e29d87b4939e5720f8"),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.full) if name == "modelscope" else name
                                  for name in LONG])
def test_tensors_of_released_models_of_many_tensors(name):
    config, count, digest = LONG[name]
    lines = sorted(f"{tensor}\t{shape}" for tensor, shape in model_kinds.inventory(config).items())
    assert len(lines) == count
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32] == digest


@pytest.mark.parametrize("name", SMALL)
def test_round_trip_is_bit_exact(name, tmp_path):
    config, tensors = SMALL[name], tensors_of(SMALL[name])
    model = load_pretrained(write(tmp_path / "in", config, tensors))
    assert model.config == config
    save_pretrained(tmp_path / "out", model)
    again = load_pretrained(tmp_path / "out", type(config))
    assert again.config == config
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    (file,) = (tmp_path / "out").glob("*.safetensors")
    written = safetensors.numpy.load_file(file)  # by a reader that is not ours
    assert written.keys() == tensors.keys() and all(np.array_equal(written[n], t) for n, t in tensors.items())


def test_kernels_are_turned(tmp_path):
    tensors = tensors_of(SMALL["video_vae"])
    params = load_pretrained(write(tmp_path / "m", SMALL["video_vae"], tensors)).params
    theirs = tensors["encoder.conv_in.weight"]
    np.testing.assert_array_equal(params["encoder"]["stem"]["kernel"][0, 1, 2, 0, 5], theirs[5, 0, 1, 2])
    theirs = tensors["decoder.up_blocks.0.resnets.1.temporal_res_block.conv2.weight"]
    ours = params["decoder"]["up_0_1"]["temporal_residual"]["conv_out"]["kernel"]
    np.testing.assert_array_equal(ours[:, 0, 0], theirs[..., 0, 0].transpose(2, 1, 0))
    theirs = tensors["decoder.mid_block.attentions.0.to_q.weight"]
    np.testing.assert_array_equal(params["decoder"]["middle"]["frame_attention"]["query"]["kernel"], theirs.T)


def test_dtypes_stay_or_are_asked_for(tmp_path):
    tensors = tensors_of(SMALL["t5"], ml_dtypes.bfloat16)
    folder = write(tmp_path / "m", SMALL["t5"], tensors, variant=".bf16")
    params = load_pretrained(folder, variant="bf16").params
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    wide = load_pretrained(folder, variant="bf16", dtype="float32").params
    np.testing.assert_array_equal(wide["words"], tensors["shared.weight"].astype(np.float32))
    with refused("tensor_files._files", "variant=None"):
        load_pretrained(folder)


def test_several_files_with_an_index(tmp_path):
    tensors = tensors_of(SMALL["vae"])
    model = load_pretrained(write(tmp_path / "in", SMALL["vae"], tensors, shards=3))
    save_pretrained(tmp_path / "out", model, shard_bytes=4000)
    index = json.loads((tmp_path / "out" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2 and {path.name for path in (tmp_path / "out").glob("*.safetensors")} == files
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(tmp_path / "out").params, model.params)
    (tmp_path / "out" / sorted(files)[1]).unlink()
    with refused("tensor_files._indexed", "diffusion_pytorch_model"):
        load_pretrained(tmp_path / "out")
    index["weight_map"] = {"a": "../elsewhere.safetensors"}
    (tmp_path / "out" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with refused("tensor_files._indexed"):
        load_pretrained(tmp_path / "out")


def test_parameters_are_split_over_a_mesh(tmp_path):
    tensors = tensors_of(SMALL["video_vae"])
    mesh = make_mesh(MeshSpec(fsdp=2, tensor=4))
    params = load_pretrained(write(tmp_path / "m", SMALL["video_vae"], tensors), mesh=mesh).params
    kernel = params["decoder"]["up_0_0"]["residual"]["conv_in"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (1, 3, 3, 32, 16)
    np.testing.assert_array_equal(kernel[0, 1, 2].T, tensors[
        "decoder.up_blocks.0.resnets.0.spatial_res_block.conv1.weight"][..., 1, 2])


def test_a_folder_passes_through_memory_tensor_by_tensor(tmp_path):
    config = dataclasses.replace(SMALL["text"], width=64, hidden=256, layers=12)
    tensors = tensors_of(config)
    total, largest = (f(t.nbytes for t in tensors.values()) for f in (sum, max))
    folder = write(tmp_path / "m", config, tensors)
    # Shapes are kept, which takes memory once; in a process of its own, since checks of shapes take memory too.
    code = f"""
import pathlib, tracemalloc
from vdm_jax.weights import pretrained
folder = pathlib.Path({str(folder)!r})
pretrained.import_folder(folder, folder.parent / "warm.safetensors")
tracemalloc.start()
pretrained.import_folder(folder, folder.parent / "m.safetensors")
print(tracemalloc.get_traced_memory()[1])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 4 * largest + 300_000 < total / 2


OLDER = {
    # Names of attention in the first autoencoders.
    "vae": lambda name: (name.replace("to_q", "query").replace("to_k", "key").replace("to_v", "value")
                         .replace("to_out.0", "proj_attn")),
    # A model that is one encoder, as newer versions write it.
    "text": lambda name: name.removeprefix("text_model."),
    # T5 whose table of words is stored under the encoder's name.
    "t5": lambda name: name.replace("shared.weight", "encoder.embed_tokens.weight"),
}


@pytest.mark.parametrize("name", OLDER)
def test_other_names_in_files(name, tmp_path):
    tensors = tensors_of(SMALL[name])
    renamed = {OLDER[name](n): tensor for n, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    expected = load_pretrained(write(tmp_path / "new", SMALL[name], tensors)).params
    found = load_pretrained(write(tmp_path / "old", SMALL[name], renamed)).params
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_tensors_that_are_no_parameters_are_dropped(tmp_path):
    text = tensors_of(SMALL["text"]) | {"text_model.embeddings.position_ids": np.arange(8)[None]}
    assert load_pretrained(write(tmp_path / "text", SMALL["text"], text)).config == SMALL["text"]
    t5 = tensors_of(SMALL["t5"])
    t5 |= {"encoder.embed_tokens.weight": t5["shared.weight"], "lm_head.weight": np.zeros((20, 8)),
           "decoder.block.0.layer.0.layer_norm.weight": np.zeros(8)}
    fields = {"architectures": ["T5ForConditionalGeneration"]}
    model = load_pretrained(write(tmp_path / "t5", SMALL["t5"], t5, fields=fields))
    np.testing.assert_array_equal(model.params["words"], t5["shared.weight"])
    both = tensors_of(SMALL["text"])
    both["final_layer_norm.bias"] = both["text_model.final_layer_norm.bias"]
    with refused("tensor_names.canonical", "'text_model.final_layer_norm.bias'"):
        load_pretrained(write(tmp_path / "both", SMALL["text"], both))


def test_every_difference_is_reported_and_refused(tmp_path):
    tensors = tensors_of(SMALL["vae"])
    del tensors["encoder.conv_in.bias"], tensors["quant_conv.bias"]
    tensors["decoder.conv_in.bias"] = np.zeros(3, np.float32)
    tensors["loss.weight"] = np.zeros(1, np.float32)
    folder = write(tmp_path / "m", SMALL["vae"], tensors)
    with refused("pretrained.parameters_of") as error:
        load_pretrained(folder)
    for part in ("2 missing: encoder.conv_in.bias, quant_conv.bias", "1 unexpected: loss.weight",
                 "1 different: decoder.conv_in.bias ([3] instead of [8])"):
        assert part in str(error.value)
    report = pretrained.report(SMALL["vae"], pretrained.open_folder(folder))
    assert report.missing == ("encoder.conv_in.bias", "quant_conv.bias") and report.unexpected == ("loss.weight",)
    assert report.misshapen == ("decoder.conv_in.bias ([3] instead of [8])",)
    params = load_pretrained(write(tmp_path / "n", SMALL["vae"], tensors_of(SMALL["vae"]))).params
    del params["quant"]["bias"]
    with refused("pretrained._checked", "1"):
        save_pretrained(tmp_path / "out", pretrained.Pretrained(SMALL["vae"], params))


def test_the_wrong_model_is_named(tmp_path):
    folder = write(tmp_path / "vae", SMALL["vae"], tensors_of(SMALL["vae"]))
    with refused("model_kinds.kind_named", "AutoencoderKL", "CLIPTextModelWithProjection"):
        load_pretrained(folder, CLIPText)
    other = write(tmp_path / "other", SMALL["t5"], {}, fields={"architectures": ["MT5EncoderModel"]})
    with refused("model_kinds.kind_named", "MT5EncoderModel", "AutoencoderKL"):
        load_pretrained(other)
    (tmp_path / "model_index.json").write_text("{}")
    with refused("pretrained.describe"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("fields, message", [
    ({"act_fn": "relu"}, ("fields.Fields.require", "act_fn='relu'", "'silu'")),
    ({"down_block_types": ["AttnDownEncoderBlock2D"] * 2},
     ("fields.Fields.require", "down_block_types")),
    ({"out_channels": 4},
     ("fields.Fields.require", "out_channels=4")), ({"latents_mean": [0.0]},
      ("fields.Fields.require", "latents_mean")),
    ({"layers_per_block": "2"}, ("fields.Fields.get", "layers_per_block='2'")),
    ({"block_out_channels": None}, ("fields.Fields.get", "'block_out_channels'")),
])
def test_settings_that_we_do_not_have(fields, message, tmp_path):
    folder = write(tmp_path / "m", SMALL["vae"], {}, fields=fields)
    with refused(*message):
        load_pretrained(folder)


@pytest.mark.parametrize("name, fields, message", [
    ("unet", {"attention_head_dim": [1, 2, 3]}, ("unet_fields.read_each", "2", "3")),
    ("unet", {"down_block_types": ["SimpleCrossAttnDownBlock2D", "DownBlock2D"]},
     ("unet_fields.read_levels", "down_block_types")),
    ("unet", {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]},
     ("fields.Fields.require", "up_block_types")),
    ("unet", {"only_cross_attention": True}, ("unet_fields.read_image_unet", "only_cross_attention")),
    ("unet", {"addition_embed_type": "text_time"}, ("fields.Fields.require", "addition_embed_type='text_time'")),
    ("video_unet", {"transformer_layers_per_block": 2}, ("fields.Fields.require", "transformer_layers_per_block=2")),
    ("video_unet", {"projection_class_embeddings_input_dim": 25},
     ("unet_fields.read_video_unet", "addition_time_embed_dim=8")),
])
def test_unets_that_we_do_not_have(name, fields, message, tmp_path):
    folder = write(tmp_path / "m", SMALL[name], {}, fields=fields)
    with refused(*message):
        load_pretrained(folder)


@pytest.mark.parametrize("file", ["diffusion_pytorch_model.bin", "model.ckpt", "pytorch_model.pt"])
def test_pickles_are_never_read(file, tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was read",))

    folder = write(tmp_path / "m", SMALL["vae"], {})
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    (folder / file).write_bytes(pickle.dumps(Trap()))
    with refused("tensor_files._pickle", "safe_serialization"):
        load_pretrained(folder)


def test_damaged_folders(tmp_path):
    folder = write(tmp_path / "m", SMALL["vae"], tensors_of(SMALL["vae"]))
    path = folder / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with refused("tensor_files._header"):
        load_pretrained(folder)
    path.unlink()
    with refused("tensor_files._files"):
        load_pretrained(folder)
    (folder / "config.json").write_text("[]")
    with refused("tensor_files.read_json"):
        load_pretrained(folder)
    with refused("tensor_files.read_json", "config.json"):
        load_pretrained(tmp_path / "nowhere")


def test_command_converts_both_ways(tmp_path, capsys):
    tensors = tensors_of(SMALL["video_vae"], np.float16)
    source = write(tmp_path / "in", SMALL["video_vae"], tensors, fields={"sample_size": 768})
    ours = tmp_path / "weights" / "vae.safetensors"
    assert main(["convert", str(source), str(ours)]) == 0
    assert "Autoencoder" in capsys.readouterr().out
    model = load_imported(ours)
    assert model.config == SMALL["video_vae"]
    jax.tree.map(np.testing.assert_array_equal, model.params, load_pretrained(source).params)
    assert main(["convert", str(ours), str(tmp_path / "out")]) == 0
    written = safetensors.numpy.load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    assert written.keys() == tensors.keys() and all(np.array_equal(written[n], t) for n, t in tensors.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["sample_size"] == 768
    assert main(["convert", str(source), str(tmp_path / "out2")]) == 2
    assert main(["convert", str(ours), str(tmp_path / "out")]) == 2
    assert "already; permitted: a new or empty folder" in capsys.readouterr().err
