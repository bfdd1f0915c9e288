"""One forward pass of other libraries' U-Nets: networks of released models in diffusers, and imagen-pytorch's.

Of the networks of diffusers ours has the same weights: `save_folder` makes them, both sides read the folder, and the
first numbers of both outputs are compared before anything is timed. imagen-pytorch's has no counterpart of the same
layers; ours is that of `speed_networks.our_network`, and both numbers of operations are recorded.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from speed_networks import CHANNELS, FRAMES, IMAGEN, RELEASED, TOKENS

Work = Callable[[], Any]
SHOWN = 8  # numbers of an output that are compared


def inputs(network: str, batch: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Latents `[B, T, H, W, C]`, text or picture tokens `[B, L, E]`, and the three numbers that SVD is conditioned
    on."""
    options, rng = RELEASED[network][1], np.random.default_rng(1)
    tokens = 1 if network == "svd" else TOKENS
    return (rng.standard_normal((batch, FRAMES, size, size, options["in_channels"]), np.float32),
            rng.standard_normal((batch, tokens, options["cross_attention_dim"]), np.float32),
            np.array([[6.0, 127.0, 0.02]] * batch, np.float32) if network == "svd" else None)


def save_folder(network: str, folder: Path) -> None:
    """A network of diffusers with random weights, as a folder of config and safetensors."""
    import diffusers
    import torch

    name, options = RELEASED[network]
    torch.manual_seed(0)
    model = getattr(diffusers, name)(**options)
    with torch.no_grad():  # what begins as zero, such as the last layer of a temporal block, would hide differences
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(folder)


def build_ours(network: str, folder: Path, batch: int, size: int, start: Callable[[], float]) -> tuple[Work, dict]:
    """Our network of a folder, compiled."""
    import jax

    from vdm_jax.parallel.compiling import compiler_options
    from vdm_jax.parallel.mesh import MeshSpec, make_mesh
    from vdm_jax.weights.pretrained import load_pretrained

    loaded = load_pretrained(folder)
    x, tokens, scalars = inputs(network, batch, size)
    more = {} if scalars is None else {"scalars": scalars}
    arguments = jax.device_put((loaded.params, x, np.ones(batch, np.float32), tokens[:, None], more))
    forward = jax.jit(lambda p, x, level, tokens, more: loaded.module.apply({"params": p}, x, level, tokens, **more),
                      compiler_options=compiler_options(make_mesh(MeshSpec())))
    begin = start()
    compiled = forward.lower(*arguments).compile()
    about = {"compile_seconds": round(start() - begin, 1),
             "parameters": sum(a.size for a in jax.tree.leaves(loaded.params)),
             "output": np.asarray(compiled(*arguments)).ravel()[:SHOWN].astype(float).tolist()}
    return lambda: compiled(*arguments).block_until_ready(), about


def build_theirs(network: str, folder: Path | None, batch: int, size: int, threads: int) -> tuple[Work, dict]:
    """The network of diffusers or imagen-pytorch, without gradients."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if network == "imagen":
        model = imagen_network()
        video = np.random.default_rng(1).standard_normal((batch, CHANNELS, FRAMES, size, size)).astype(np.float32)
        arguments, named = (torch.from_numpy(video), torch.zeros(batch)), {}
    else:
        import diffusers

        model = getattr(diffusers, RELEASED[network][0]).from_pretrained(folder).eval()
        x, tokens, scalars = inputs(network, batch, size)
        order = (0, 1, 4, 2, 3) if network == "svd" else (0, 4, 1, 2, 3)  # SVD has frames first
        arguments = (torch.from_numpy(x.transpose(order).copy()), torch.ones(batch), torch.from_numpy(tokens))
        named = {} if scalars is None else {"added_time_ids": torch.from_numpy(scalars)}

    def forward() -> Any:
        with torch.no_grad():
            return model(*arguments, **named)

    with FlopCounterMode(display=False) as counter:
        output = forward()
    about = {"compile_seconds": 0.0, "parameters": sum(p.numel() for p in model.parameters()),
             "gflop_forward": round(counter.get_total_flops() / 1e9, 2)}
    if network != "imagen":
        back = (0, 1, 3, 4, 2) if network == "svd" else (0, 2, 3, 4, 1)
        about["output"] = output.sample.permute(back).numpy().ravel()[:SHOWN].astype(float).tolist()
    return forward, about


def imagen_network() -> Any:
    """`Unet3D` of imagen-pytorch. The package imports trainers, tokenizers and text encoders on the way, which are not
    needed for the network: its one module is loaded alone, with a stand-in for the module of the text encoder."""
    folder = Path(importlib.util.find_spec("imagen_pytorch").submodule_search_locations[0])
    package, text = types.ModuleType("imagen_pytorch"), types.ModuleType("imagen_pytorch.t5")
    package.__path__ = [str(folder)]
    text.t5_encode_text, text.get_encoded_dim, text.DEFAULT_T5_NAME = None, lambda name: 512, ""
    sys.modules.update({"imagen_pytorch": package, "imagen_pytorch.t5": text})
    return importlib.import_module("imagen_pytorch.imagen_video").Unet3D(**IMAGEN).eval()
