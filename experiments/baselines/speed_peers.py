"""Other libraries' networks: those of released models in diffusers, a forward pass and for Wan a train step too, and a
forward pass of imagen-pytorch's.

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
LEARNING_RATE = 1e-4
# Where the frames, height, width and channels of ours are in a video of theirs.
ORDER = {"svd": (0, 1, 4, 2, 3), "modelscope": (0, 4, 1, 2, 3), "wan": (0, 4, 1, 2, 3)}


def inputs(network: str, batch: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Latents `[B, T, H, W, C]`, text or picture tokens `[B, L, E]`, and the three numbers that SVD is conditioned
    on."""
    options, rng = RELEASED[network][1], np.random.default_rng(1)
    width = options.get("cross_attention_dim") or options["text_dim"]
    return (rng.standard_normal((batch, FRAMES, size, size, options["in_channels"]), np.float32),
            rng.standard_normal((batch, TOKENS[network], width), np.float32),
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


def build_ours(network: str, folder: Path, mode: str, batch: int, size: int, start: Callable[[], float]) -> tuple[
        Work, dict]:
    """Our network of a folder, compiled: a forward pass, or a train step with Adam against the clip itself."""
    import jax
    import jax.numpy as jnp
    import optax
    from speed_networks import over_devices

    from vdm_jax.conditions.conditioning import Conditioning
    from vdm_jax.parallel.compiling import compiler_options
    from vdm_jax.weights.pretrained import load_pretrained

    loaded = load_pretrained(folder)
    x, tokens, scalars = inputs(network, batch, size)
    if network == "wan":  # half noise, at which their time is 500
        given = (np.zeros(batch, np.float32), Conditioning(
            embeddings=tokens[:, None], text_mask=np.ones((batch, 1, tokens.shape[1]), bool)))
    else:
        given = (np.ones(batch, np.float32), tokens[:, None], *([] if scalars is None else [scalars]))
    mesh, whole, by_frames = over_devices()
    params, x, given = jax.device_put((loaded.params, x, given), (whole, by_frames, whole))
    options = compiler_options(mesh)
    optimizer = optax.adam(LEARNING_RATE)

    def network_of(params: Any, x: Any, given: Any) -> Any:
        more = {"scalars": given[2]} if len(given) > 2 else {}
        return loaded.module.apply({"params": params}, x, *given[:2], **more)

    def train_step(state: Any, x: Any, given: Any) -> Any:
        params, moments = state
        grads = jax.grad(lambda p: jnp.mean(jnp.square(network_of(p, x, given) - x)))(params)
        updates, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments

    begin = start()
    with jax.set_mesh(mesh):
        compiled = jax.jit(network_of, compiler_options=options).lower(params, x, given).compile()
    output = np.asarray(compiled(params, x, given)).ravel()[:SHOWN].astype(float).tolist()
    if mode == "train":
        begin = start()
        held = {"state": (params, jax.device_put(optimizer.init(params), whole))}
        step = jax.jit(train_step, donate_argnums=0, compiler_options=options, out_shardings=whole)
        with jax.set_mesh(mesh):
            step = step.lower(held["state"], x, given).compile()

        def work() -> None:
            held["state"] = jax.block_until_ready(step(held["state"], x, given))
    else:
        def work() -> None:
            compiled(params, x, given).block_until_ready()

    return work, {"compile_seconds": round(start() - begin, 1), "output": output,
                  "parameters": sum(a.size for a in jax.tree.leaves(loaded.params))}


def build_theirs(network: str, folder: Path | None, mode: str, batch: int, size: int, threads: int) -> tuple[
        Work, dict]:
    """The network of diffusers or imagen-pytorch: a forward pass without gradients, or a train step as ours."""
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
        time = torch.full((batch,), 500.0 if network == "wan" else 1.0)
        arguments = (torch.from_numpy(x.transpose(ORDER[network]).copy()), time, torch.from_numpy(tokens))
        named = {} if scalars is None else {"added_time_ids": torch.from_numpy(scalars)}

    def forward() -> Any:
        with torch.no_grad():
            return model(*arguments, **named)

    with FlopCounterMode(display=False) as counter:
        output = forward()
    about = {"compile_seconds": 0.0, "parameters": sum(p.numel() for p in model.parameters()),
             "gflop_forward": round(counter.get_total_flops() / 1e9, 2)}
    if network != "imagen":
        back = np.argsort(ORDER[network]).tolist()
        about["output"] = output.sample.permute(back).numpy().ravel()[:SHOWN].astype(float).tolist()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

    def train() -> None:
        optimizer.zero_grad()
        (model(*arguments, **named).sample - arguments[0]).square().mean().backward()
        optimizer.step()

    return train if mode == "train" else forward, about


def imagen_network() -> Any:
    """`Unet3D` of imagen-pytorch. The package imports trainers, tokenizers and text encoders on the way, which are not
    needed for the network: its one module is loaded alone, with a stand-in for the module of the text encoder."""
    folder = Path(importlib.util.find_spec("imagen_pytorch").submodule_search_locations[0])
    package, text = types.ModuleType("imagen_pytorch"), types.ModuleType("imagen_pytorch.t5")
    package.__path__ = [str(folder)]
    text.t5_encode_text, text.get_encoded_dim, text.DEFAULT_T5_NAME = None, lambda name: 512, ""
    sys.modules.update({"imagen_pytorch": package, "imagen_pytorch.t5": text})
    return importlib.import_module("imagen_pytorch.imagen_video").Unet3D(**IMAGEN).eval()
