"""One library in one process: builds attention calls when asked to, then times them by name.

Started by `peer_sdpa.py`. Requests and answers are lines of JSON on standard input and output:
    (start)                  -> {"library", "version", "platform", "device", ...}
    {"peak": size, "dtype"}  -> {"flops_per_second", "size"}
    {"move": bytes}          -> {"bytes_per_second", "bytes"}; of vdm_jax alone
    {"build": case, "name"}  -> {"kernel", "compile_seconds", "first_seconds", "sample"}
    {"time": s, "name"}      -> {"seconds": per call, "calls": how many in a row, "others": share of the machine}
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
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from experiments.baselines.measuring import busy_seconds

BLOCK = 1024  # random tokens; longer sequences repeat them, so that making them takes no time
SAMPLE = 64  # output features that the two libraries compare


def block(number: int, tokens: int, heads: int, head_dim: int) -> np.ndarray:
    """Queries (0), keys, values or the cotangent (3): standard normal float32 `[S, K, D]`, equal for both libraries."""
    rng = np.random.default_rng(number)
    part = rng.standard_normal((min(tokens, BLOCK), heads, head_dim), np.float32)
    return np.tile(part, (-(-tokens // len(part)), 1, 1))[:tokens]


def size_of(case: dict[str, Any]) -> tuple[int, int, int]:
    """Frames, height and width of a case in tokens."""
    return case["frames"], case["side"], case["width"] or case["side"]


@contextlib.contextmanager
def chosen_kernels() -> Iterator[list[str]]:
    """The kernels that `attend` computes with meanwhile, once each."""
    from vdm_jax.attention.kernels import KERNELS

    found: list[str] = []

    def noted(name: str, kernel: Callable) -> Callable:
        def call(*arguments, **options):
            if name not in found:
                found.append(name)
            return kernel(*arguments, **options)

        return call

    before = dict(KERNELS)
    KERNELS.update({name: noted(name, kernel) for name, kernel in before.items()})
    try:
        yield found
    finally:
        KERNELS.update(before)


class Ours:
    """`vdm_jax.attention.attend` with kernel `auto`, jitted; tokens are `[1, T, H, W, K, D]`. Several CPU devices share
    the heads."""

    def __init__(self):
        import jax

        from vdm_jax.benchmark.machine import describe, platform_of, versions
        from vdm_jax.parallel.mesh import MeshSpec, make_mesh

        self._device = jax.devices()[0]
        devices = jax.devices() if platform_of(self._device) == "cpu" else [self._device]
        self._mesh = make_mesh(MeshSpec(data=1, tensor=len(devices)), devices)
        self.about = {"library": "vdm_jax", "platform": platform_of(self._device), "versions": versions(),
                      "device": describe(self._device, len(devices))}

    def product(self, size: int, dtype: str) -> tuple[Callable[[], Any], Callable[[], None]]:
        """A product of two square matrices, and what waits for its end."""
        import jax
        import jax.numpy as jnp

        a, b = (jax.device_put(jax.random.normal(jax.random.key(i), (size, size), jnp.dtype(dtype)), self._device)
                for i in range(2))
        multiply, held = jax.jit(jnp.matmul), []

        def call() -> None:
            held[:] = [multiply(a, b)]

        return call, lambda: jax.block_until_ready(held)

    def movement(self, size: int) -> tuple[Callable[[], Any], Callable[[], None]]:
        """A sum that reads an array of so many bytes and writes one, and what waits for its end."""
        import jax
        import jax.numpy as jnp

        array = jax.device_put(jnp.ones(size // 4, jnp.float32), self._device)
        add, held = jax.jit(lambda x: x + 1), []

        def call() -> None:
            held[:] = [add(array)]

        return call, lambda: jax.block_until_ready(held)

    def build(self, case: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[], None], dict[str, Any]]:
        """The call, what waits for its end, and what is known about it."""
        import jax
        import jax.numpy as jnp
        from jax.sharding import NamedSharding, PartitionSpec

        from vdm_jax.attention import ExtraKeys, attend, cross_pattern
        from vdm_jax.benchmark.cases import parse_pattern
        from vdm_jax.parallel.compiling import compiler_options, no_compilation_cache

        size, outside = (1, *size_of(case)), case["extra_keys"]

        def forward(q, k, v):
            if outside:
                return attend(q, pattern=cross_pattern(1), extra_keys=ExtraKeys(k, v))
            return attend(q, k, v, pattern=parse_pattern(case["pattern"]))

        def both(q, k, v, cotangent):
            out, pull = jax.vjp(forward, q, k, v)
            return out, pull(cotangent)

        def array(number: int) -> jax.Array:
            tokens, shape = (outside, (1, 1, outside)) if outside and number in (1, 2) else (math.prod(size), size)
            values = block(number, tokens, case["heads"], case["head_dim"])
            heads = NamedSharding(mesh, PartitionSpec(*[None] * len(shape), "tensor"))
            return jax.device_put(jnp.asarray(values, jnp.dtype(case["dtype"])).reshape(*shape, *values.shape[1:]),
                                  heads)

        backward, mesh = case["mode"] != "forward", self._mesh
        inputs = [array(i) for i in range(4 if backward else 3)]
        with no_compilation_cache(), jax.set_mesh(mesh), chosen_kernels() as kernels:
            start = time.perf_counter()
            compiled = jax.jit(both if backward else forward,
                               compiler_options=compiler_options(mesh)).lower(*inputs).compile()
            seconds = time.perf_counter() - start
        held: list[Any] = []

        def call() -> Any:
            held[:] = [compiled(*inputs)]
            return held[0]

        def sample() -> list[float]:
            out = held[0][0] if backward else held[0]
            return np.asarray(out.reshape(-1)[:SAMPLE], np.float32).tolist()

        about = {"kernel": " ".join(kernels), "compile_seconds": round(seconds, 2)}
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

    def product(self, size: int, dtype: str) -> tuple[Callable[[], Any], Callable[[], None]]:
        """A product of two square matrices, and what waits for its end."""
        import torch

        a, b = (torch.randn(size, size, device=self._device, dtype=getattr(torch, dtype)) for _ in range(2))
        return lambda: torch.matmul(a, b), self._wait

    def build(self, case: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[], None], dict[str, Any]]:
        """The call, what waits for its end, and what is known about it."""
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        size, backend, outside = size_of(case), case["backend"], case["extra_keys"]
        layout = "all" if case["pattern"] == "cross" else LAYOUTS[case["pattern"].split("(")[0].lower()]

        def array(number: int) -> Any:
            """`[sequences, K, S, D]` in one piece."""
            few = outside and number in (1, 2)
            values = torch.from_numpy(block(number, outside if few else math.prod(size), case["heads"],
                                            case["head_dim"]))
            values = values[None] if few else sequences(values, size, layout)
            return values.transpose(1, 2).contiguous().to(self._device, getattr(torch, case["dtype"]))

        backward = case["mode"] != "forward"
        arrays = [array(i) for i in range(4)]
        q, k, v = (a.requires_grad_(backward) for a in arrays[:3])
        attention, held = _attention(case, size, self._device), []

        def call() -> Any:
            named = backend is not None and backend.isupper()
            chosen = sdpa_kernel(SDPBackend[backend]) if named else contextlib.nullcontext()
            with chosen, torch.set_grad_enabled(backward):
                out = attention(q, k, v)
                grads = torch.autograd.grad(out, (q, k, v), arrays[3]) if backward else ()
            held[:] = [out, *grads]
            return held

        def sample() -> list[float]:
            out = held[0].detach().transpose(1, 2)  # in our order: tokens, heads, features
            if layout == "positions":
                out = out.transpose(0, 1)
            return out.reshape(-1)[:SAMPLE].float().cpu().tolist()

        return call, self._wait, {"about": {"kernel": backend or "its own choice"}, "sample": sample}


# How torch gets the tokens of a clip, by pattern: each frame, each position or the whole clip is a sequence.
# Sparse-causal attention is among frames, its keys those of several.
LAYOUTS = {"spatial": "frames", "temporal": "positions", "full": "all", "causal": "all", "sparsecausal": "frames"}


def sequences(x: Any, size: tuple[int, int, int], layout: str) -> Any:
    """Tokens `[T * N, K, D]` as sequences `[sequences, S, K, D]`."""
    frames = x.reshape(size[0], size[1] * size[2], *x.shape[1:])
    return {"frames": frames, "positions": frames.transpose(0, 1), "all": x[None]}[layout]


def _attention(case: dict[str, Any], size: tuple[int, int, int], device: str) -> Callable[[Any, Any, Any], Any]:
    """The pattern by `scaled_dot_product_attention`."""
    import torch

    sdpa, tokens = torch.nn.functional.scaled_dot_product_attention, size[1] * size[2]
    if case["pattern"].startswith("SparseCausal"):
        def sparse(q, k, v):
            """First, previous and own frame; the first two frames, which see fewer, in calls of their own."""
            def keys(x):
                first = x[:1].expand(len(x) - 2, *x.shape[1:])
                return torch.cat([first, x[1:-1], x[2:]], dim=2)

            start = sdpa(q[:1], k[:1], v[:1])
            second = sdpa(q[1:2], *(torch.cat([x[:1], x[1:2]], dim=2) for x in (k, v)))
            return torch.cat([start, second, sdpa(q[2:], keys(k), keys(v))])

        return sparse
    if case["pattern"] == "causal" and case["backend"] == "frames":
        def frames(q, k, v):
            ends = range(tokens, q.shape[2] + 1, tokens)
            return torch.cat([sdpa(q[:, :, end - tokens : end], k[:, :, :end], v[:, :, :end]) for end in ends], dim=2)

        return frames
    if case["pattern"] == "causal":
        frame = torch.arange(size[0] * tokens, device=device) // tokens
        mask = frame[:, None] >= frame[None, :]
        return lambda q, k, v: sdpa(q, k, v, attn_mask=mask)
    return sdpa


class Worker:
    """Answers requests about one library."""

    def __init__(self, library: Ours | Torch, clock: Callable[[], float]):
        self._library, self._clock = library, clock
        self._calls: dict[str, tuple[Callable[[], Any], Callable[[], None], float]] = {}  # with seconds of one

    def _seconds(self, call: Callable[[], Any], wait: Callable[[], None], calls: int) -> float:
        """Seconds of one of several calls in a row."""
        start = self._clock()
        for _ in range(calls):
            call()
        wait()
        return (self._clock() - start) / calls

    def _fastest(self, call: Callable[[], Any], wait: Callable[[], None]) -> tuple[float, int]:
        """Seconds of the fastest of the calls of a second, and their number."""
        taken, start = [self._seconds(call, wait, 1)], time.perf_counter()
        while len(taken) < 4 or (time.perf_counter() - start < 1.0 and len(taken) < 200):
            taken.append(self._seconds(call, wait, 1))
        return min(taken), len(taken)

    def _peak(self, size: int, dtype: str) -> dict[str, Any]:
        """FLOP/s of the fastest of the products of a second."""
        seconds, repetitions = self._fastest(*self._library.product(size, dtype))
        return {"flops_per_second": 2 * size**3 / seconds, "size": size, "repetitions": repetitions}

    def _move(self, size: int) -> dict[str, Any]:
        """Bytes read and written in a second, by the fastest of the sums of a second."""
        seconds, repetitions = self._fastest(*self._library.movement(size))
        return {"bytes_per_second": 2 * size / seconds, "bytes": size, "repetitions": repetitions}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What a request asks for."""
        if "peak" in request:
            return self._peak(request["peak"], request["dtype"])
        if "move" in request:
            return self._move(request["move"])
        if "forget" in request:
            self._calls.clear()
            return {}
        if "build" in request:
            call, wait, known = self._library.build(request["build"])
            first = self._seconds(call, wait, 1)
            # The first call may hold the library's set-up; the second says how many fill a round.
            self._calls[request["name"]] = call, wait, self._seconds(call, wait, 1)
            return {**known["about"], "first_seconds": round(first, 4), "sample": known["sample"]()}
        call, wait, once = self._calls[request["name"]]
        calls = max(1, math.ceil(request["time"] / max(once, 1e-6)))
        busy, own, wall = busy_seconds(), time.process_time(), time.perf_counter()
        seconds = self._seconds(call, wait, calls)
        busy, own, wall = busy_seconds() - busy, time.process_time() - own, time.perf_counter() - wall
        return {"seconds": seconds, "calls": calls, "others": round(max(0.0, busy - own) / (wall * os.cpu_count()), 3)}


def main() -> None:
    """Start the library, then answer until the input ends. Whatever else is printed goes to standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=("vdm_jax", "torch"), required=True)
    parser.add_argument("--platform", choices=("cpu", "gpu"), default="cpu", help="where torch runs")
    parser.add_argument("--one-core", action="store_true",
                        help="one core, and processor seconds in place of wall seconds")
    args = parser.parse_args()
    if args.one_core:  # before a library counts the cores
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    library = Ours() if args.library == "vdm_jax" else Torch(args.platform)
    worker = Worker(library, time.process_time if args.one_core else time.perf_counter)
    print(json.dumps(library.about), file=answers)
    for line in sys.stdin:
        try:
            found = worker.answer(json.loads(line))
        except Exception as error:  # noqa: BLE001  (out of memory, an unsupported backend: the row says so)
            found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        print(json.dumps(found), file=answers)


if __name__ == "__main__":
    main()
