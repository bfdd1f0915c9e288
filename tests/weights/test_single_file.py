"""Original checkpoints: the authors' names written from the published table, and read back as the parts they are."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import re

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.refusals import refused
from tests.training.latents import random_params
from tests.weights.folders import SMALL, tensors_of, write
from vdm_jax.commands.main import main
from vdm_jax.networks import latent_unet
from vdm_jax.networks.autoencoders.causal_config import AUTOENCODER_WAN21, AUTOENCODER_WAN22
from vdm_jax.networks.autoencoders.config import AUTOENCODER_F8, AUTOENCODER_SVD, Autoencoder
from vdm_jax.networks.encoders.clip_text import CLIPText
from vdm_jax.networks.encoders.clip_vision import CLIPVision
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.weights import causal_autoencoders, model_kinds, tensor_names
from vdm_jax.weights.pretrained import Pretrained, load_pretrained, save_original
from vdm_jax.weights.single_file import open_single_file, split_single_file
from vdm_jax.weights.tensor_files import Tensor
from vdm_jax.weights.unet_fields import VIDEO_EPSILONS

SIZES = {"widths": (32, 64), "blocks": 1}
UNET = LatentUNet(**SIZES, attention=(True, False), heads=(8, 8), only_cross_attention=(False, False),
                  token_channels=32)
LINEAR = dataclasses.replace(UNET, use_linear_projection=True, heads=(1, 1))
VIDEO = dataclasses.replace(LINEAR, in_channels=8, scalars=3, scalar_channels=16, temporal=True,
                            epsilons=VIDEO_EPSILONS)
VAE = Autoencoder(**SIZES)
TEXT = CLIPText(vocabulary=20, length=8, width=32, layers=2, heads=1, hidden=64)
SYSTEMS = {
    "1.x": {"unet": UNET, "vae": VAE, "text_encoder": TEXT},
    "2.x": {"unet": LINEAR, "vae": VAE, "text_encoder": dataclasses.replace(TEXT, activation="gelu")},
    "video": {"unet": VIDEO, "vae": dataclasses.replace(VAE, decoder="temporal", post_quant=False),
              "image_encoder": CLIPVision(size=8, patch=4, width=80, layers=2, heads=1, hidden=160, project=32,
                                          activation="gelu")},
}
RESIDUAL = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
            "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}


def original_unet(name, config):
    """The authors' name of a tensor of a U-Net."""
    each, up = config.blocks + 1, list(reversed(config.attention))

    def down(match):
        return f"input_blocks.{1 + int(match[1]) * each + int(match[3])}.{int(match[2] == 'attentions')}"

    def upsample(match):
        return f"output_blocks.{int(match[1]) * each + config.blocks}.{2 if up[int(match[1])] else 1}.conv"

    def rising(match):
        return f"output_blocks.{int(match[1]) * each + int(match[3])}.{int(match[2] == 'attentions')}"

    for pattern, template in (
        (r"conv_in", "input_blocks.0.0"), (r"conv_norm_out", "out.0"), (r"conv_out", "out.2"),
        (r"time_embedding\.linear_1", "time_embed.0"), (r"time_embedding\.linear_2", "time_embed.2"),
        (r"add_embedding\.linear_1", "label_emb.0.0"), (r"add_embedding\.linear_2", "label_emb.0.2"),
        (r"mid_block\.resnets\.0", "middle_block.0"), (r"mid_block\.resnets\.1", "middle_block.2"),
        (r"mid_block\.attentions\.0", "middle_block.1"),
        (r"down_blocks\.(\d+)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{(int(m[1]) + 1) * each}.0.op"),
        (r"up_blocks\.(\d+)\.upsamplers\.0\.conv", upsample),
        (r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)", down),
        (r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)", rising),
    ):
        if match := re.match(rf"{pattern}(?=\.)", name):
            residual = "resnets" in match[0]
            name = (template(match) if callable(template) else template) + name[match.end() :]
            break
    if residual:
        name = name.replace("temporal_res_block.", "time_stack.").replace("spatial_res_block.", "")
        name = re.sub(rf"\b({'|'.join(RESIDUAL)})\b", lambda m: RESIDUAL[m[1]], name)
    name = name.replace("temporal_transformer_blocks.0", "time_stack.0")
    return "model.diffusion_model." + name.replace("time_pos_embed.linear_1", "time_pos_embed.0").replace(
        "time_pos_embed.linear_2", "time_pos_embed.2")


def original_vae(name, config):
    """The authors' name of a tensor of an autoencoder."""
    last = len(config.widths) - 1
    for a, b in (("temporal_res_block.", "time_stack."), ("spatial_res_block.", ""), ("time_mixer.", ""),
                 ("conv_norm_out", "norm_out"), ("decoder.time_conv_out", "decoder.conv_out.time_mix_conv"),
                 ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2")):
        name = name.replace(a, b)
    if "time_stack" in name:
        name = re.sub(rf"\b({'|'.join(RESIDUAL)})\b", lambda m: RESIDUAL[m[1]], name)
    for a, b in {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}.items():
        name = name.replace(f"mid_block.attentions.0.{a}", f"mid.attn_1.{b}")
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{last - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)
    return "first_stage_model." + name.replace("conv_shortcut", "nin_shortcut")


def open_clip(tensors, root):
    """An encoder's tensors as OpenCLIP has them; a text encoder has one layer more, which nobody uses."""
    layers = {name: tensor for name, tensor in tensors.items() if ".encoder.layers." in name}
    found = {}
    for name, tensor in layers.items():
        number, module = re.match(r".*\.layers\.(\d+)\.(.*)", name).groups()
        for a, b in (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"),
                     ("mlp.fc2", "mlp.c_proj"), ("self_attn.out_proj", "attn.out_proj")):
            module = module.replace(a, b)
        if match := re.match(r"self_attn\.q_proj\.(weight|bias)", module):
            parts = [layers[name.replace("q_proj", f"{head}_proj")] for head in "qkv"]
            module, tensor = f"attn.in_proj_{match[1]}", np.concatenate(parts)
        if not re.match(r"self_attn\.[kv]_proj", module):
            found[f"{root}transformer.resblocks.{number}.{module}"] = tensor
    return found


def original(parts, tensors):
    """All tensors of a checkpoint under its authors' names, and some that belong to no part."""
    found = {original_unet(name, parts["unet"]): tensor for name, tensor in tensors["unet"].items()}
    for name, tensor in tensors["vae"].items():
        matrix = "attentions" in name and tensor.ndim == 2
        found[original_vae(name, parts["vae"])] = tensor[..., None, None] if matrix else tensor
    if "image_encoder" in parts:
        root, image = "conditioner.embedders.0.open_clip.model.visual.", tensors["image_encoder"]
        found |= open_clip(image, root)
        for a, b in (("embeddings.class_embedding", "class_embedding"), ("pre_layrnorm.weight", "ln_pre.weight"),
                     ("embeddings.position_embedding.weight", "positional_embedding"),
                     ("embeddings.patch_embedding.weight", "conv1.weight"), ("pre_layrnorm.bias", "ln_pre.bias"),
                     ("post_layernorm.weight", "ln_post.weight"), ("post_layernorm.bias", "ln_post.bias")):
            found[root + b] = image[f"vision_model.{a}"]
        found[f"{root}proj"] = np.ascontiguousarray(image["visual_projection.weight"].T)
        found["conditioner.embedders.3.encoder.encoder.conv_in.weight"] = np.ones(3, np.float32)
        found["conditioner.embedders.0.open_clip.model.logit_scale"] = np.ones(1, np.float32)
    elif parts["text_encoder"].activation == "gelu":
        root, text = "cond_stage_model.model.", tensors["text_encoder"]
        found |= open_clip(text, root)
        found |= {name.replace("resblocks.1", "resblocks.2"): tensor + 1 for name, tensor in list(found.items())
                  if name.startswith(f"{root}transformer.resblocks.1.")}
        for a, b in (("embeddings.token_embedding.weight", "token_embedding.weight"),
                     ("embeddings.position_embedding.weight", "positional_embedding"),
                     ("final_layer_norm.weight", "ln_final.weight"), ("final_layer_norm.bias", "ln_final.bias")):
            found[root + b] = text[f"text_model.{a}"]
        found |= {f"{root}text_projection": np.ones((2, 2), np.float32), f"{root}logit_scale": np.ones(1, np.float32)}
    else:
        found |= {f"cond_stage_model.transformer.{name}": tensor for name, tensor in tensors["text_encoder"].items()}
        found["cond_stage_model.transformer.text_model.embeddings.position_ids"] = np.arange(8)[None]
    return found | {"alphas_cumprod": np.ones(4, np.float32), "model_ema.decay": np.ones(1, np.float32)}


@pytest.fixture(params=SYSTEMS)
def checkpoint(request, tmp_path):
    """Parts, their tensors as folders have them, and the file."""
    parts = SYSTEMS[request.param]
    tensors = {name: tensors_of(config, seed=i) for i, (name, config) in enumerate(parts.items())}
    safetensors.numpy.save_file(original(parts, tensors), tmp_path / "original.safetensors")
    return parts, tensors, tmp_path / "original.safetensors"


def test_parts_are_those_of_the_folders(checkpoint, tmp_path):
    parts, tensors, path = checkpoint
    assert {name: part.config for name, part in open_single_file(path).items()} == parts
    split_single_file(path, tmp_path / "split")
    for name, config in parts.items():
        wanted = load_pretrained(write(tmp_path / name, config, tensors[name])).params
        found = load_pretrained(tmp_path / "split" / name)
        assert jax.tree.structure(found.params) == jax.tree.structure(wanted)
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found.params, wanted)))


@pytest.mark.parametrize("checkpoint", ["video"], indirect=True)
def test_the_command_makes_folders(checkpoint, tmp_path, capsys):
    parts, tensors, path = checkpoint
    assert main(["convert", str(path), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    for name in parts:
        assert f"out/{name}: " in printed
        (file,) = (tmp_path / "out" / name).glob("*.safetensors")
        found = safetensors.numpy.load_file(file)
        assert found.keys() == tensors[name].keys()
        assert all(np.array_equal(found[key], tensor) for key, tensor in tensors[name].items())
    with refused("tensor_files.write_folder"):
        split_single_file(path, tmp_path / "out")


def save(path, *names):
    safetensors.numpy.save_file({name: np.ones(2, np.float32) for name in names}, path)


@pytest.mark.parametrize("names, message", [
    (("conditioner.embedders.1.model.ln_final.weight", "model.diffusion_model.out.0.weight"), ("single_file.system",)),
    (("control_model.time_embed.0.weight",), ("single_file.system", "ControlNet")),
    (("lora_unet_down_blocks.weight",), ("single_file.system", "LoRA")),
    (("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight",), ("single_file.system", "AnimateDiff")),
    (("encoder.weight",), ("single_file.system", "encoder.weight")),
    (("model.diffusion_model.out.0.weight", "first_stage_model.a"), ("single_file.system", "1")),
])
def test_other_models_are_named(names, message, tmp_path):
    save(tmp_path / "file.safetensors", *names)
    with refused(*message):
        open_single_file(tmp_path / "file.safetensors")


def test_pickles_are_refused(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(pickle.dumps({}))
    with refused("tensor_files._pickle"):
        open_single_file(tmp_path / "model.ckpt")


def test_tensors_that_do_not_fit_are_named(tmp_path):
    parts = SYSTEMS["1.x"]
    tensors = {name: tensors_of(config) for name, config in parts.items()}
    names = original(parts, tensors)
    names["model.diffusion_model.extra.weight"] = names.pop("model.diffusion_model.out.0.bias")
    safetensors.numpy.save_file(names, tmp_path / "file.safetensors")
    with refused("pretrained.parameters_of", "conv_norm_out.bias", "extra.weight"):
        split_single_file(tmp_path / "file.safetensors", tmp_path / "split")
    assert not (tmp_path / "split").exists()  # nothing is written unless everything fits


# Number of tensors and SHA-256 of the sorted lines "name<tab>shape" of the authors' files.
WAN = {"wan21": (AUTOENCODER_WAN21, 194, "435aaa828462f9e154337ddc90316ba6"),
       "wan22": (AUTOENCODER_WAN22, 196, "d5409bb57fafe4858a982c07cc95d512")}


@pytest.mark.parametrize("name", WAN)
def test_tensors_of_wan_by_its_authors_names(name):
    config, count, digest = WAN[name]
    table = model_kinds.original_names(config)
    stored = {tensor_names.their_name(path, table): tensor_names.their_shape(path, leaf.shape, table)
              for path, leaf in model_kinds.shapes(config).items()}
    lines = sorted(f"{tensor}\t{shape}" for tensor, shape in stored.items())
    assert len(lines) == count
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32] == digest
    tensors = {tensor: Tensor(shape, np.dtype("float32"), None) for tensor, shape in sorted(stored.items())}
    assert causal_autoencoders.is_original(tensors)
    assert causal_autoencoders.config_of(tensors, "file") == config  # sizes from shapes, whatever their order


@pytest.mark.parametrize("name", ["causal_vae", "causal_vae_residual"])
def test_wans_autoencoder_in_its_authors_file_and_back(name, tmp_path, capsys):
    config, tensors = SMALL[name], tensors_of(SMALL[name])
    folder, file = write(tmp_path / "vae", config, tensors), tmp_path / "original.safetensors"
    assert main(["convert", str(folder), str(file), "--original"]) == 0
    stored = safetensors.numpy.load_file(file)
    theirs = "decoder.upsamples.0.upsamples.0" if config.shortcuts else "decoder.upsamples.0"
    np.testing.assert_array_equal(stored[f"{theirs}.residual.6.weight"],
                                  tensors["decoder.up_blocks.0.resnets.0.conv2.weight"])
    assert main(["convert", str(file), str(tmp_path / "back")]) == 0
    assert "back/vae: CausalAutoencoder" in capsys.readouterr().out
    again = load_pretrained(tmp_path / "back" / "vae")
    # Means and deviations are not in the file: those of other sizes than the published ones are not known.
    numbers = {"mean": (0.0,) * config.latent_channels, "std": (1.0,) * config.latent_channels}
    assert again.config == dataclasses.replace(config, **numbers)
    (written,) = (tmp_path / "back" / "vae").glob("*.safetensors")
    found = safetensors.numpy.load_file(written)
    assert found.keys() == tensors.keys() and all(np.array_equal(found[key], tensors[key]) for key in tensors)
    del stored["encoder.head.0.gamma"]
    safetensors.numpy.save_file(stored, file)
    with refused("pretrained.parameters_of", "encoder.norm_out.gamma"):
        split_single_file(file, tmp_path / "other")
    less = {key: value for key, value in stored.items() if ".residual.6." not in key}
    safetensors.numpy.save_file(less, file)
    with refused("causal_autoencoders.config_of", "lacks layers"):
        split_single_file(file, tmp_path / "other")


def test_umt5_in_wans_file_and_back(tmp_path):
    config, tensors = SMALL["umt5"], tensors_of(SMALL["umt5"])
    model = load_pretrained(write(tmp_path / "in", config, tensors))
    save_original(tmp_path / "umt5.safetensors", model)
    stored = safetensors.numpy.load_file(tmp_path / "umt5.safetensors")
    assert {name.replace("blocks.1", "blocks.0") for name in stored} == {"token_embedding.weight", "norm.weight", *(
        f"blocks.0.{name}.weight" for name in ("attn.q", "attn.k", "attn.v", "attn.o", "norm1", "norm2", "ffn.gate.0",
                                               "ffn.fc1", "ffn.fc2", "pos_embedding.embedding"))}
    np.testing.assert_array_equal(stored["blocks.1.ffn.gate.0.weight"],
                                  tensors["encoder.block.1.layer.1.DenseReluDense.wi_0.weight"])
    assert split_single_file(tmp_path / "umt5.safetensors", tmp_path / "out") == {"text_encoder": config}
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(tmp_path / "out" / "text_encoder").params, model.params)


def test_names_that_are_not_written(tmp_path):
    with refused("model_kinds.original_names", "Autoencoder", "CausalAutoencoder"):
        save_original(tmp_path / "file.safetensors", Pretrained(VAE, random_params(VAE)))
    assert main(["convert", str(tmp_path), str(tmp_path / "out"), "--original"]) == 2


@pytest.mark.full
@pytest.mark.parametrize("unet, vae", [
    (latent_unet.LATENT_UNET_SD1, AUTOENCODER_F8), (latent_unet.LATENT_UNET_SD2, AUTOENCODER_F8),
    (latent_unet.LATENT_UNET_SD1_INPAINT, AUTOENCODER_F8), (latent_unet.LATENT_UNET_SVD, AUTOENCODER_SVD)])
def test_full_size(unet, vae):
    """Names and shapes of the released models; nothing is allocated."""
    from vdm_jax.weights.single_file import _under, _unet, _vae

    for config, rename, read, prefix in ((unet, original_unet, _unet, "model.diffusion_model."),
                                         (vae, original_vae, _vae, "first_stage_model.")):
        wanted = model_kinds.inventory(config)
        stored = {rename(name, config): Tensor(shape, np.dtype("float32"), None) for name, shape in wanted.items()}
        found = read(_under(stored, prefix))
        assert found.config == config
        assert {name: tensor.shape for name, tensor in found.tensors.items()} == wanted
