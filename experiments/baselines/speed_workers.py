"""One library in one process: builds a network, then times one repetition whenever it is asked to.

Started by `unet_speed.py`. Requests and answers are lines of JSON on standard input and output:
    (start)      -> {"ready": {parameters, gflop_forward, compile_seconds, ...}}
    "time"       -> {"wall": s, "cpu": s, "others": s}
    "finish"     -> {"peak_mib": MiB}
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import speed_peers
from measuring import forget_peak, peak_mib, timed
from speed_networks import RELEASED

LEARNING_RATE = 1e-4
FRAMES, CHANNELS = 10, 3

Work = Callable[[], Any]


def random_video(batch: int, size: int, seed: int) -> np.ndarray:
    """Gaussian noise [B, T, H, W, C]."""
    return np.random.default_rng(seed).standard_normal((batch, FRAMES, size, size, CHANNELS), np.float32)


def build_ours(mode: str, size: int, batch: int) -> tuple[Work, dict[str, Any]]:
    """Our U-Net under jit: one train step (state donated), or one forward pass."""
    import jax
    from speed_networks import abstract_inputs, forward_operations

    compiled, held, inputs, seconds = compiled_ours(mode, size, batch)

    def train() -> None:
        held[0], loss = compiled(held[0], *inputs)
        jax.block_until_ready((held[0], loss))

    params, _, _ = abstract_inputs(batch, size)
    return train if mode == "train" else lambda: compiled(held[0], *inputs).block_until_ready(), {
        "compile_seconds": round(seconds, 1),
        "parameters": sum(a.size for a in jax.tree.leaves(params)),
        "gflop_forward": round(forward_operations(batch, size) / 1e9, 2),
    }


def compiled_ours(mode: str, size: int, batch: int) -> tuple[Any, list[Any], tuple[Any, ...], float]:
    """The program of a train step of our U-Net, in a list the state that it takes first and gives back (of a forward
    pass the parameters), what else it takes, and the seconds of tracing and compiling it."""
    import jax
    import jax.numpy as jnp
    import optax
    from speed_networks import abstract_inputs, our_network, over_devices

    from vdm_jax.networks.unet import SpaceTimeUNet
    from vdm_jax.parallel.compiling import compiler_options

    network = SpaceTimeUNet(our_network())
    abstract, _, _ = abstract_inputs(batch, size)
    rng = np.random.default_rng(0)
    mesh, whole, by_frames = over_devices()
    params = jax.device_put(
        jax.tree.map(lambda a: 0.02 * rng.standard_normal(a.shape, np.float32), abstract), whole)
    z, target = (jax.device_put(random_video(batch, size, seed), by_frames) for seed in (1, 2))
    logsnr = jax.device_put(jnp.zeros(batch), whole)
    options = compiler_options(mesh)
    optimizer = optax.adam(LEARNING_RATE)

    def train_step(state: Any, z: Any, logsnr: Any, target: Any) -> tuple[Any, Any]:
        params, moments = state
        loss, grads = jax.value_and_grad(
            lambda p: jnp.mean(jnp.square(network.apply({"params": p}, z, logsnr) - target)))(params)
        updates, moments = optimizer.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    if mode == "train":
        held, inputs = (params, jax.device_put(optimizer.init(params), whole)), (z, logsnr, target)
        step = jax.jit(train_step, donate_argnums=0, compiler_options=options, out_shardings=(whole, whole))
    else:
        held, inputs = params, (z, logsnr)
        step = jax.jit(lambda p, z, logsnr: network.apply({"params": p}, z, logsnr), compiler_options=options)
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        compiled = step.lower(held, *inputs).compile()
    return compiled, [held], inputs, time.perf_counter() - start


def build_theirs(mode: str, size: int, batch: int, threads: int, compiled: bool) -> tuple[Work, dict[str, Any]]:
    """Unet3D of video-diffusion-pytorch: one train step, or one forward pass without gradients."""
    stand_in_for_torchvision()
    import torch
    from speed_networks import THEIRS
    from torch.utils.flop_counter import FlopCounterMode
    from video_diffusion_pytorch import Unet3D

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = Unet3D(**THEIRS)
    x, target = (torch.from_numpy(random_video(batch, size, seed)).permute(0, 4, 1, 2, 3).contiguous()
                 for seed in (1, 2))
    level = torch.zeros(batch)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x, level)
    about = {"compile_seconds": 0.0, "parameters": sum(p.numel() for p in network.parameters()),
             "gflop_forward": round(counter.get_total_flops() / 1e9, 2)}
    called = torch.compile(network) if compiled else network
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)

    def train() -> None:
        optimizer.zero_grad()
        loss = (called(x, level) - target).square().mean()
        loss.backward()
        optimizer.step()

    def forward() -> None:
        with torch.no_grad():
            called(x, level)

    work = train if mode == "train" else forward
    if compiled:
        start = time.perf_counter()
        work()
        about["compile_seconds"] = round(time.perf_counter() - start, 1)
    return work, about


def stand_in_for_torchvision() -> None:
    """Register empty torchvision modules: the package imports it for reading and writing gifs, never for the network.

    The torchvision on the package index is built for CUDA and does not load next to a CPU build of torch.
    """

    class Empty(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda *args, **kwargs: None

    names = ("torchvision", "torchvision.transforms", "torchvision.utils")
    for name in names:
        sys.modules[name] = Empty(name)
        sys.modules[name].__spec__ = ModuleSpec(name, None)
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
    sys.modules["torchvision"].utils = sys.modules["torchvision.utils"]


def main() -> None:
    """Build, warm up, then answer requests. Whatever else is printed goes to standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=("vdm_jax", "torch"), required=True)
    parser.add_argument("--mode", choices=("train", "forward"), required=True)
    parser.add_argument("--size", type=int, required=True, help="height and width, pixels")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--compiled", action="store_true", help="torch.compile (torch only)")
    parser.add_argument("--network", choices=("vdm", "imagen", *RELEASED), default="vdm", help="what is timed")
    parser.add_argument("--folder", type=Path, help="weights of a released network")
    parser.add_argument("--save", action="store_true", help="only make the weights of a released network")
    args = parser.parse_args()
    if args.save:
        return speed_peers.save_folder(args.network, args.folder)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    if hasattr(os, "sched_setaffinity"):  # XLA takes as many threads as it may use cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    ours, released = args.library == "vdm_jax", args.network in RELEASED
    if ours and released:
        work, about = speed_peers.build_ours(
            args.network, args.folder, args.mode, args.batch, args.size, time.perf_counter)
    elif ours:
        work, about = build_ours(args.mode, args.size, args.batch)
    elif args.network == "vdm":
        work, about = build_theirs(args.mode, args.size, args.batch, args.threads, args.compiled)
    else:
        work, about = speed_peers.build_theirs(
            args.network, args.folder, args.mode, args.batch, args.size, args.threads)
    forget_peak()
    work()  # warm-up
    print(json.dumps({"ready": about}), file=answers)
    for line in sys.stdin:
        if line.strip() == "finish":
            print(json.dumps({"peak_mib": peak_mib()}), file=answers)
            return
        print(json.dumps(timed(work)), file=answers)


if __name__ == "__main__":
    main()
