"""One library in one process: builds attention calls when asked to, then times them by name.

Started by `peer_sdpa.py`. Requests and answers are lines of JSON on standard input and output:
    (start)                  -> {"library", "version", "platform", "device", ...}
    {"peak": size}           -> {"flops_per_second", "size"}
    {"build": case, "name"}  -> {"kernel", "compile_seconds", "first_seconds", "sample"}
    {"time": s, "name"}      -> {"seconds": per call, "calls": how many in a row}
    {"forget": true}         -> {}; frees the calls that were built
A request that fails is answered with {"error": text}; the worker lives on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

BLOCK = 1024  # random tokens; longer sequences repeat them, so that making them takes no time
SAMPLE = 64  # output features that the two libraries compare


def block(number: int, tokens: int, heads: int, head_dim: int) -> np.ndarray:
    """Queries (0), keys, values or the cotangent (3): standard normal float32 `[S, K, D]`, equal for both libraries."""
    rng = np.random.default_rng(number)
    part = rng.standard_normal((min(tokens, BLOCK), heads, head_dim), np.float32)
    return np.tile(part, (-(-tokens // len(part)), 1, 1))[:tokens]


class Ours:
    """`vdm_jax.attention.attend` with kernel `auto`, jitted; tokens are `[1, T, H, W, K, D]`."""

    def __init__(self):
        import jax

        from vdm_jax.benchmark.machine import describe, platform_of, versions

        self._device = jax.devices()[0]
        self.about = {"library": "vdm_jax", "platform": platform_of(self._device), "versions": versions(),
                      "device": describe(self._device, 1)}

    def peak(self, size: int) -> dict[str, Any]:
        from vdm_jax.benchmark.machine import matmul_peak

        return matmul_peak(self._device, "bfloat16", 1.0, size)

    def build(self, case: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[], None], dict[str, Any]]:
        """The call, what waits for its end, and what is known about it."""
        import jax
        import jax.numpy as jnp

        from vdm_jax.attention import Full
        from vdm_jax.benchmark.cases import Case
        from vdm_jax.benchmark.program import build
        from vdm_jax.parallel.compiling import no_compilation_cache
        from vdm_jax.parallel.mesh import MeshSpec, make_mesh

        case = Case(pattern=Full(), frames=case["frames"], height=case["side"], width=case["side"],
                    heads=case["heads"], head_dim=case["head_dim"], dtype=case["dtype"], mode=case["mode"])
        with no_compilation_cache():
            program = build(case, make_mesh(MeshSpec(data=1), [self._device]))
        count = 3 if case.mode == "forward" else 4
        inputs = [jax.device_put(jnp.asarray(block(i, case.tokens, case.heads, case.head_dim), jnp.dtype(case.dtype))
                                 .reshape(case.array_shape), program.sharding) for i in range(count)]
        held: list[Any] = []

        def call() -> Any:
            held[:] = [program.compiled(*inputs)]
            return held[0]

        def sample() -> list[float]:
            out = held[0] if case.mode == "forward" else held[0][0]
            return np.asarray(out.reshape(-1)[:SAMPLE], np.float32).tolist()

        about = {"kernel": program.kernel, "compile_seconds": round(program.compile_seconds, 2)}
        return call, lambda: jax.block_until_ready(held), {"about": about, "sample": sample}


class Torch:
    """`torch.nn.functional.scaled_dot_product_attention` in eager mode; tokens are `[1, K, S, D]`."""

    def __init__(self, platform: str):
        import torch

        if platform == "gpu" and not torch.cuda.is_available():
            raise SystemExit("torch sees no GPU, jax does; permitted: a torch built for the GPU, or JAX_PLATFORMS=cpu")
        self._device = "cuda" if platform == "gpu" else "cpu"
        name = torch.cuda.get_device_name() if self._device == "cuda" else f"{torch.get_num_threads()} threads"
        versions = {"torch": torch.__version__}
        if self._device == "cuda":
            versions |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
        self.about = {"library": "torch", "platform": platform, "versions": versions, "device": name}

    def _wait(self) -> None:
        import torch

        if self._device == "cuda":
            torch.cuda.synchronize()

    def peak(self, size: int) -> dict[str, Any]:
        """As `matmul_peak` measures ours: the fastest product of two square bfloat16 matrices within a second."""
        import torch

        a, b = (torch.randn(size, size, device=self._device, dtype=torch.bfloat16) for _ in range(2))
        torch.matmul(a, b)
        self._wait()
        taken, start = [], time.perf_counter()
        while len(taken) < 3 or (time.perf_counter() - start < 1.0 and len(taken) < 200):
            begin = time.perf_counter()
            torch.matmul(a, b)
            self._wait()
            taken.append(time.perf_counter() - begin)
        return {"flops_per_second": 2 * size**3 / min(taken), "size": size, "repetitions": len(taken)}

    def build(self, case: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[], None], dict[str, Any]]:
        """The call, what waits for its end, and what is known about it."""
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        tokens, backend = case["frames"] * case["side"] ** 2, case["backend"]
        arrays = [torch.from_numpy(block(i, tokens, case["heads"], case["head_dim"]).transpose(1, 0, 2)[None].copy())
                  .to(self._device, getattr(torch, case["dtype"])) for i in range(4)]
        backward = case["mode"] != "forward"
        q, k, v = (a.requires_grad_(backward) for a in arrays[:3])
        held: list[Any] = []

        def call() -> Any:
            chosen = sdpa_kernel(SDPBackend[backend]) if backend else contextlib.nullcontext()
            with chosen, torch.set_grad_enabled(backward):
                out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
                grads = torch.autograd.grad(out, (q, k, v), arrays[3]) if backward else ()
            held[:] = [out, *grads]
            return held

        def sample() -> list[float]:
            out = held[0].detach().transpose(1, 2).reshape(-1)[:SAMPLE]  # in our order: tokens, heads, features
            return out.float().cpu().tolist()

        return call, self._wait, {"about": {"kernel": backend or "its own choice"}, "sample": sample}


def seconds_of(call: Callable[[], Any], wait: Callable[[], None], calls: int) -> float:
    """Wall seconds of one of several calls in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    wait()
    return (time.perf_counter() - start) / calls


class Worker:
    """Answers requests about one library."""

    def __init__(self, library: Ours | Torch):
        self._library = library
        self._calls: dict[str, tuple[Callable[[], Any], Callable[[], None], float]] = {}  # with seconds of one

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What a request asks for."""
        if "peak" in request:
            return self._library.peak(request["peak"])
        if "forget" in request:
            self._calls.clear()
            return {}
        if "build" in request:
            call, wait, known = self._library.build(request["build"])
            first = seconds_of(call, wait, 1)
            # The first call may hold the library's set-up; the second says how many fill a round.
            self._calls[request["name"]] = call, wait, seconds_of(call, wait, 1)
            return {**known["about"], "first_seconds": round(first, 4), "sample": known["sample"]()}
        call, wait, once = self._calls[request["name"]]
        calls = max(1, math.ceil(request["time"] / max(once, 1e-6)))
        return {"seconds": seconds_of(call, wait, calls), "calls": calls}


def main() -> None:
    """Start the library, then answer until the input ends. Whatever else is printed goes to standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=("vdm_jax", "torch"), required=True)
    parser.add_argument("--platform", choices=("cpu", "gpu"), default="cpu", help="where torch runs")
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    library = Ours() if args.library == "vdm_jax" else Torch(args.platform)
    worker = Worker(library)
    print(json.dumps(library.about), file=answers)
    for line in sys.stdin:
        try:
            found = worker.answer(json.loads(line))
        except Exception as error:  # noqa: BLE001  (out of memory, an unsupported backend: the row says so)
            found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        print(json.dumps(found), file=answers)


if __name__ == "__main__":
    main()
