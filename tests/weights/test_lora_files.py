"""LoRAs as files: written and read again in every layout, under older names, and refused where they do not fit."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from tests.refusals import refused
from vdm_jax.conditions.text import EmbeddedText
from vdm_jax.networks.encoders.clip_text import CLIPText
from vdm_jax.networks.latent_frames import Motion, TemporalConv
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.networks.lora import LoRA, initial_factors, trained_adapter
from vdm_jax.networks.transformer.config import wan
from vdm_jax.weights import model_kinds
from vdm_jax.weights.lora_files import plain_target, read_lora, target_of, write_lora

SIZES = {"widths": (8, 8), "blocks": 1, "attention": (False, True), "heads": (2, 2),
         "only_cross_attention": (False, False), "token_channels": 8, "groups": 2}
UNET, TEXT = LatentUNet(**SIZES), CLIPText(vocabulary=9, length=6, width=8, layers=1, heads=2, hidden=16)
VIDEO = LatentUNet(**SIZES, motion=Motion(heads=2, groups=2, frames=4))
WAN = wan(width=8, heads=2, hidden=12, layers=3, text=EmbeddedText(width=6), out_channels=2, level_channels=8)
ATTENTION = (LoRA(rank=2, alpha=6.0, patterns=("attention", "_transformer/in", "residual/conv_in", "level_in")),)


def shapes_of(config):
    return traverse_util.unflatten_dict(model_kinds.shapes(config), sep="/")


def adapter_of(config, specs=ATTENTION, seed=0):
    rng = np.random.default_rng(seed)
    factors = jax.eval_shape(lambda: initial_factors(specs, shapes_of(config), jax.random.key(0)))
    return trained_adapter(specs, shapes_of(config), jax.tree.map(
        lambda a: rng.normal(size=a.shape).astype(np.float32), factors))


def products(adapter):
    return {name: adapter.scales[name] * (down @ up.reshape(up.shape[-2:]))
            for name, (down, up) in adapter.pairs.items()}


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_layers_of_a_scan_are_single_in_files(tmp_path, layout):
    """A LoRA of Wan: what is written has a tensor for each layer; some of them, of other ranks and under the authors'
    names, read as zeros for the others."""
    target = target_of(WAN)
    own = adapter_of(WAN, (LoRA(rank=2, alpha=6.0, patterns=("_attention/(query|out)", "feed_forward", "text_in")),))
    assert own.pairs["blocks/block_0/self_attention/query"][0].shape == (3, 8, 2)
    write_lora(tmp_path / "a.safetensors", {"unet": (target, own)}, layout)
    names = set(load_file(tmp_path / "a.safetensors"))
    wanted = {"diffusers": "transformer.blocks.2.attn1.to_q.lora_A.weight",
              "kohya": "lora_unet_blocks_2_attn1_to_q.lora_down.weight"}
    assert wanted[layout] in names
    found = read_lora(tmp_path / "a.safetensors", {"unet": target})["unet"]
    assert found.pairs.keys() == own.pairs.keys()
    for module, (down, up) in own.pairs.items():
        first, second = found.pairs[module]
        np.testing.assert_allclose(found.scales[module] * first @ second, own.scales[module] * down @ up, atol=1e-4)
    rng = np.random.default_rng(1)
    parts = {f"diffusion_model.blocks.{i}.self_attn.q.lora_{side}.weight": rng.normal(size=shape).astype(np.float32)
             for i, rank in ((0, 1), (2, 3)) for side, shape in (("A", (rank, 8)), ("B", (8, rank)))}
    save_file(parts, tmp_path / "b.safetensors")
    down, up = read_lora(tmp_path / "b.safetensors", {"unet": target})["unet"].pairs[
        "blocks/block_0/self_attention/query"]
    assert down.shape == (3, 8, 3) and not down[1].any()
    for i in (0, 2):
        a, b = (parts[f"diffusion_model.blocks.{i}.self_attn.q.lora_{side}.weight"] for side in "AB")
        np.testing.assert_allclose(down[i] @ up[i], (b @ a).T, atol=1e-5)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
@pytest.mark.parametrize("unet", [UNET, VIDEO, LatentUNet(**SIZES, temporal_conv=TemporalConv())])
def test_a_file_of_every_layout_reads_as_it_was_written(tmp_path, layout, unet):
    targets = {"unet": target_of(unet), "text_encoder": target_of(TEXT)}
    specs = (*ATTENTION, LoRA(rank=3, patterns=("_(motion|frames)/",))) if unet.video else ATTENTION
    own = {"unet": adapter_of(unet, specs), "text_encoder": adapter_of(TEXT, (LoRA(rank=3, patterns=("query",)),))}
    write_lora(tmp_path / "a.safetensors", {name: (targets[name], own[name]) for name in own}, layout)
    found = read_lora(tmp_path / "a.safetensors", targets)
    for name, adapter in own.items():
        wanted, got = products(adapter), products(found[name])
        assert wanted.keys() == got.keys()
        for module in wanted:
            np.testing.assert_allclose(got[module], wanted[module], rtol=1e-5, atol=1e-5)
        if layout == "kohya":
            jax.tree.map(np.testing.assert_array_equal, found[name].factors, adapter.factors)
            assert found[name].scales == pytest.approx(adapter.scales)


def test_names_and_shapes_are_those_of_the_other_libraries(tmp_path):
    adapter = adapter_of(UNET)
    for layout, names in (
            ("diffusers", {"unet.up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0.lora_A.weight": (2, 8),
                           "unet.mid_block.attentions.0.proj_in.lora_A.weight": (2, 8, 1, 1),
                           "unet.down_blocks.0.resnets.0.conv1.lora_A.weight": (2, 8, 3, 3),
                           "unet.down_blocks.0.resnets.0.conv1.lora_B.weight": (8, 2, 1, 1),
                           "unet.time_embedding.linear_1.lora_B.weight": (32, 2)}),
            ("kohya", {"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_q.lora_down.weight": (2, 8),
                       "lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight": (2, 8, 3, 3),
                       "lora_unet_down_blocks_0_resnets_0_conv1.alpha": ()})):
        write_lora(tmp_path / f"{layout}.safetensors", {"unet": (target_of(UNET), adapter)}, layout)
        found = load_file(tmp_path / f"{layout}.safetensors")
        assert {name: found[name].shape for name in names} == names
    assert found["lora_unet_down_blocks_0_resnets_0_conv1.alpha"] == 6


def test_a_plain_file_holds_factors_and_scales_of_any_network(tmp_path):
    params = {"stem": {"kernel": np.ones((3, 3, 3, 4, 6), np.float32)},
              "out": {"kernel": np.ones((6, 5), np.float32)}}
    specs = (LoRA(rank=2, alpha=0.5, patterns=("stem",)), LoRA(rank=4, patterns=("out",)))
    adapter = trained_adapter(specs, params, jax.device_get(initial_factors(specs, params, jax.random.key(0))))
    write_lora(tmp_path / "a.safetensors", {"unet": (plain_target(params), adapter)}, metadata={"stage": "base"})
    found = read_lora(tmp_path / "a.safetensors", {"unet": plain_target(params)})["unet"]
    jax.tree.map(np.testing.assert_array_equal, found.factors, adapter.factors)
    assert found.scales == {"stem": 0.25, "out": 1.0}
    with refused("lora_files._read_plain", "a.safetensors", "out is not there", "permitted: "):
        read_lora(tmp_path / "a.safetensors", {"unet": plain_target({"stem": params["stem"]})})
    with refused("layout", "layout='kohya'", "permitted: 'plain'"):
        write_lora(tmp_path / "b.safetensors", {"unet": (plain_target(params), adapter)}, "kohya")


MOTION = "down_blocks.1.motion_modules.0."
QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1."


@pytest.mark.parametrize(("unet", "names", "module"), [
    (UNET, (QUERY + "to_q.lora_A.weight", QUERY + "to_q.lora_B.weight"),
     "down_1_0_transformer/space/self_attention/query"),
    (UNET, ("unet." + QUERY + "processor.to_q_lora.down.weight", "unet." + QUERY + "processor.to_q_lora.up.weight"),
     "down_1_0_transformer/space/self_attention/query"),
    (UNET, (QUERY + "processor.to_out_lora.down.weight", QUERY + "processor.to_out_lora.up.weight"),
     "down_1_0_transformer/space/self_attention/out"),
    (UNET, ("base_model.model." + QUERY + "to_v.lora.down.weight", "base_model.model." + QUERY + "to_v.lora.up.weight"),
     "down_1_0_transformer/space/self_attention/value"),
    (VIDEO, (MOTION + "temporal_transformer.transformer_blocks.0.attention_blocks.1.processor.to_k_lora.down.weight",
             MOTION + "temporal_transformer.transformer_blocks.0.attention_blocks.1.processor.to_k_lora.up.weight"),
     "down_1_0_motion/self_attention_1/key"),
    (VIDEO, ("unet." + MOTION + "transformer_blocks.0.attn1.processor.to_k_lora.down.weight",
             "unet." + MOTION + "transformer_blocks.0.attn1.processor.to_k_lora.up.weight"),
     "down_1_0_motion/self_attention_0/key"),
])
def test_older_names(tmp_path, unet, names, module):
    rng = np.random.default_rng(0)
    down, up = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 8), (8, 3)))
    save_file(dict(zip(names, (down, up), strict=True)), tmp_path / "a.safetensors")
    found = read_lora(tmp_path / "a.safetensors", {"unet": target_of(unet)})["unet"]
    np.testing.assert_array_equal(products(found)[module], down.T @ up.T)


def test_the_header_of_peft_says_alpha_and_a_matrix_stands_for_a_pointwise_convolution(tmp_path):
    ones = {f"unet.{QUERY}to_{name}.lora_{side}.weight": np.ones(shape, np.float32)
            for name in "qkv" for side, shape in (("A", (2, 8)), ("B", (8, 2)))}
    ones |= {f"unet.mid_block.attentions.0.proj_in.lora_{side}.weight": np.ones(shape, np.float32)
             for side, shape in (("A", (2, 8)), ("B", (8, 2)))}
    header = {"unet.lora_alpha": 4, "unet.r": 2, "unet.alpha_pattern": {"attn1.to_k": 1}}
    save_file(ones, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(header)})
    found = read_lora(tmp_path / "a.safetensors", {"unet": target_of(UNET)})["unet"]
    block = "down_1_0_transformer/space/self_attention"
    assert found.scales == {f"{block}/query": 2.0, f"{block}/key": 0.5, f"{block}/value": 2.0,
                            "middle_transformer/in": 2.0}
    assert found.pairs["middle_transformer/in"][0].shape == (1, 1, 1, 8, 2)
    save_file(ones, tmp_path / "b.safetensors", {"lora_adapter_metadata": "[1"})
    with refused("lora_files._scale", "b.safetensors", "lora_adapter_metadata"):
        read_lora(tmp_path / "b.safetensors", {"unet": target_of(UNET)})


PAIR = {"unet.conv_in.lora_A.weight": (2, 4, 3, 3), "unet.conv_in.lora_B.weight": (8, 2, 1, 1)}
KOHYA = {"lora_unet_conv_in.lora_down.weight": (2, 4, 3, 3), "lora_unet_conv_in.lora_up.weight": (8, 2, 1, 1)}
PLAIN = {"stem/down/kernel": (1, 3, 3, 4, 2), "stem/up/kernel": (1, 1, 1, 2, 8)}
DEEP = "[" * 100_000 + "]" * 100_000


def with_peft(text):
    return PAIR | {"header": {"lora_adapter_metadata": text}}


@pytest.mark.parametrize(("tensors", "code", "named"), [
    ({"unet.conv_in.lora_A.weight": (2, 4, 3, 3)}, "lora_files.read_lora", ("conv_in is [2, 4, 3, 3] and missing",)),
    ({"unet.conv_in.lora_A.weight": (2, 5, 3, 3), "unet.conv_in.lora_B.weight": (8, 2, 1, 1)},
     "lora_files.read_lora", ("another network", "conv_in is [2, 5, 3, 3]", "permitted: ")),
    ({"unet.mid_block.attentions.7.proj_in.lora_A.weight": (2, 8)}, "lora_files._by_module",
     ("another network", "mid_block.attentions.7.proj_in", "permitted: ")),
    ({"text_encoder.text_model.final_layer_norm.lora_A.weight": (2, 8)}, "lora_files.read_lora",
     ("factors of the text_encoder", "permitted: of unet here")),
    ({"text_encoder_2.text_model.x.lora_A.weight": (2, 8)}, "lora_files.read_lora", ("text_encoder_2",)),
    ({"lora_unet_conv_in.hada_w1_a": (2, 8), "lora_unet_conv_in.alpha": ()}, "lora_files._by_module",
     ("holds no LoRA", "hada_w1_a", "permitted: ")),
    ({"unet.conv_in.weight": (8, 4, 3, 3)}, "lora_files._by_module", ("holds no LoRA", "unet.conv_in.weight")),
    ({"stem/kernel": (1, 3, 3, 4, 8)}, "lora_files._read_plain", ("holds parameters and no LoRA",)),
    (with_peft('{"unet.alpha_pattern": {"(\\\\w+)+!": 1}}'), "lora_files._scale",
     ("alpha_pattern has '(", "permitted: ")),
    (with_peft('{"unet.alpha_pattern": {"(((": 1}}'), "lora_files._scale", ("alpha_pattern has '((('",)),
    ({"unet.conv_in.lora_A.weight": (0, 4, 3, 3), "unet.conv_in.lora_B.weight": (8, 0, 1, 1)},
     "lora_files.read_lora", ("conv_in is [0, 4, 3, 3]",)),
    (KOHYA | {"lora_unet_conv_in.alpha": np.full((), np.nan, np.float32)}, "lora_files._finite",
     ("alpha=nan of conv_in",)),
    (with_peft('{"unet.lora_alpha": Infinity}'), "lora_files._finite", ("alpha=inf of conv_in", "permitted: ")),
    (with_peft('{"unet.lora_alpha": 1%s}' % ("0" * 400)), "lora_files._scale", ("not readable",)),
    (with_peft(DEEP), "lora_files._scale", ("lora_adapter_metadata is not readable",)),
    (PLAIN | {"stem/down/kernel": (), "header": {"scales": '{"stem": 1}'}}, "lora_files._read_plain",
     ("another network",)),
    (PLAIN | {"header": {"scales": DEEP}}, "lora_files._read_plain", ("holds parameters and no LoRA",)),
])
def test_files_that_do_not_fit(tmp_path, tensors, code, named):
    header = tensors.get("header")
    arrays = {name: np.ones(what, np.float32) if isinstance(what, tuple) else what
              for name, what in tensors.items() if name != "header"}
    save_file(arrays, tmp_path / "a.safetensors", header)
    code = code if "text_encoder" not in str(tensors) else "lora_files._by_module"
    with refused(code, str(tmp_path / "a.safetensors"), *named):
        read_lora(tmp_path / "a.safetensors", {"unet": target_of(UNET)})


def test_pickles_are_refused(tmp_path):
    (tmp_path / "v2_lora_ZoomIn.ckpt").write_bytes(b"\x80\x04.")
    with refused("tensor_files._pickle", "v2_lora_ZoomIn.ckpt"):
        read_lora(tmp_path / "v2_lora_ZoomIn.ckpt", {"unet": target_of(VIDEO)})
