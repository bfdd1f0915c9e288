"""What XLA on CPU does well and badly: one piece of mathematics in several forms, timed in alternation.

Groups: forms of convolution (3-D or folded), the gradient with respect to a kernel (whole or in pieces), gradients of
convolutions in a loop (scanned or unrolled), and optimisation barriers (kept or expanded). The results decide how
`vdm_jax.networks.layers` executes its convolutions.

Run:  python experiments/baselines/xla_cpu_forms.py            about 2 minutes; writes results/xla_cpu_forms.json
      python experiments/baselines/xla_cpu_forms.py --quick    smoke run with 1 repetition, nothing kept
Then  python experiments/baselines/unet_speed.py --report      writes README.md
"""

from __future__ import annotations

import argparse
import datetime
import os
from collections.abc import Callable
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402  (after the platform)
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax import lax  # noqa: E402
from measuring import RESULTS, device, save, summary, timed, versions  # noqa: E402

from vdm_jax.attention.patterns import Temporal  # noqa: E402
from vdm_jax.networks.config import Level, SelfAttention, UNet  # noqa: E402
from vdm_jax.networks.layers import convolve  # noqa: E402
from vdm_jax.networks.unet import SpaceTimeUNet  # noqa: E402
from vdm_jax.parallel.compiling import compiler_options  # noqa: E402
from vdm_jax.parallel.mesh import MeshSpec, make_mesh  # noqa: E402

Forms = dict[str, Callable[[], Any]]


def array(seed: int, *shape: int, scale: float = 1.0) -> jax.Array:
    """Gaussian noise."""
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape, np.float32))


def compiled(function: Callable, *inputs: Any, options: dict[str, str] | None = None) -> Callable[[], Any]:
    """The jitted function with its inputs bound, waiting for its result."""
    call = jax.jit(function, compiler_options=options)
    return lambda: jax.block_until_ready(call(*inputs))


def alternate(forms: Forms, repetitions: int) -> dict[str, dict[str, Any]]:
    """Time the forms round by round, after one call each that compiles."""
    for form in forms.values():
        form()
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in forms}
    for _ in range(repetitions):
        for name, form in forms.items():
            taken[name].append(timed(form))
    return {name: summary(times) for name, times in taken.items()}


def gradient(function: Callable, x: jax.Array, kernel: jax.Array) -> Callable:
    """Gradients of a quadratic loss with respect to both arguments."""
    return jax.grad(lambda x, kernel: jnp.square(function(x, kernel)).sum(), argnums=(0, 1))


# ---------------------------------------------------------------------------------------------- the groups


def convolution_3d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """'Same' convolution [B T H W C] as XLA's 3-D convolution."""
    return lax.conv_general_dilated(x, kernel, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))


def convolution_forms(repetitions: int) -> dict[str, Any]:
    """3-D against folded, for the three kinds of kernel."""
    x, cases = array(0, 1, 10, 32, 32, 64), {}
    for size in ((1, 3, 3), (3, 1, 1), (3, 3, 3)):
        kernel = array(1, *size, 64, 64, scale=0.02)
        forms = {}
        for name, function in (("3-D", convolution_3d), ("folded", convolve)):
            forms[f"{name}, forward"] = compiled(function, x, kernel)
            forms[f"{name}, gradient"] = compiled(gradient(function, x, kernel), x, kernel)
        case = alternate(forms, repetitions)
        for form, times in case.items():
            times["gflops"] = round(2 * x.size * 64 * np.prod(size) / times["median"] / 1e9, 1)
            if "gradient" in form:
                times["gflops"] = round(3 * times["gflops"], 1)
        cases["x".join(map(str, size))] = case
    return {"title": "Forms of convolution", "cases": cases,
            "about": "10 frames of 32x32, 64 to 64 channels; \"gradient\" is the forward pass and both gradients."}


def convolution_2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """'Same' convolution [N H W C] with a 3 x 3 kernel."""
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def convolution_in_row_pieces(x: jax.Array, kernel: jax.Array, rows: int) -> jax.Array:
    """`convolution_2d`, `rows` rows at a time; its kernel gradient is a sum over the pieces."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    return jnp.concatenate([
        lax.conv_general_dilated(padded[:, r : r + rows + 2], kernel, (1, 1), ((0, 0), (1, 1)),
                                 dimension_numbers=("NHWC", "HWIO", "NHWC"))
        for r in range(0, x.shape[1], rows)], axis=1)


def kernel_gradients(repetitions: int) -> dict[str, Any]:
    """Gradient with respect to a 3 x 3 kernel, whole or in pieces of at most 2560 positions."""
    cases = {}
    for frames, size, channels in ((10, 16, 256), (10, 32, 128), (10, 64, 64)):
        x, kernel = array(0, frames, size, size, channels), array(1, 3, 3, channels, channels, scale=0.02)
        cotangent = array(2, frames, size, size, channels)
        rows = min(size, 2560 // (frames * size))

        def pull(function: Callable) -> Callable:
            return lambda x, kernel, c: jax.vjp(lambda k: function(x, k), kernel)[1](c)[0]  # noqa: B023

        cases[f"{frames} frames of {size}x{size}, {channels} channels"] = alternate({
            "forward": compiled(convolution_2d, x, kernel),
            "whole": compiled(pull(convolution_2d), x, kernel, cotangent),
            "in pieces": compiled(pull(lambda x, k, r=rows: convolution_in_row_pieces(x, k, r)), x, kernel, cotangent),
        }, repetitions)
    return {"title": "Gradient with respect to the kernel", "cases": cases,
            "about": "3x3 convolutions of 3 GFLOP each; the forward pass of as many operations next to it."}


def loops(repetitions: int) -> dict[str, Any]:
    """Four convolutions in a row, scanned or unrolled."""
    x, kernels = array(0, 4, 16, 16, 32), array(1, 4, 3, 3, 32, 32, scale=0.06)

    def chain(unroll: int) -> Callable:
        def body(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, None]:
            return jax.nn.silu(convolution_2d(x, kernel)), None

        return lambda x, kernels: lax.scan(body, x, kernels, unroll=unroll)[0]

    forms = {}
    for name, unroll in (("scanned", 1), ("unrolled", 4)):
        forms[f"{name}, forward"] = compiled(chain(unroll), x, kernels)
        forms[f"{name}, gradient"] = compiled(gradient(chain(unroll), x, kernels), x, kernels)
    return {"title": "Convolutions in a loop", "cases": {"4 convolutions": alternate(forms, repetitions)},
            "about": "4 frames of 16x16, 32 channels; \"gradient\" is the forward pass and both gradients."}


def barriers(repetitions: int) -> dict[str, Any]:
    """Gradient of a small U-Net with and without the pass that expands optimisation barriers."""
    temporal = SelfAttention(pattern=Temporal())
    network = SpaceTimeUNet(UNet(levels=tuple(Level(channels=c, mixers=(temporal,)) for c in (32, 64))))
    z, level = array(0, 1, 8, 32, 32, 3), jnp.zeros(1)
    shapes = jax.eval_shape(network.init, jax.random.key(0), z, level)
    params = jax.tree.map(lambda a: array(1, *a.shape, scale=0.05), shapes)
    grad = jax.grad(lambda params: jnp.square(network.apply(params, z, level)).mean())
    forms = {"barriers expanded": compiled(grad, params),
             "barriers kept": compiled(grad, params, options=compiler_options(make_mesh(MeshSpec())))}
    return {"title": "Optimisation barriers on the residual stream",
            "cases": {"gradient": alternate(forms, repetitions)},
            "about": "U-Net of 2 levels (32, 64 channels), 2 blocks with temporal attention each, 8 frames of 32x32."}


GROUPS = {"forms": convolution_forms, "kernel_gradient": kernel_gradients, "loops": loops, "barriers": barriers}


def main() -> None:
    """Measure every group and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 repetition, nothing kept")
    parser.add_argument("--repetitions", type=int, default=9, help="per form")
    args = parser.parse_args()
    record: dict[str, Any] = {"device": device(os.cpu_count() or 1), "versions": versions("jax", "jaxlib"),
                              "date": datetime.date.today().isoformat(), "repetitions": args.repetitions, "groups": {}}
    for name, group in GROUPS.items():
        record["groups"][name] = group(1 if args.quick else args.repetitions)
        for case, forms in record["groups"][name]["cases"].items():
            shown = ", ".join(f"{form} {1e3 * times['median']:.1f} ms" for form, times in forms.items())
            print(f"{name}: {case}: {shown}", flush=True)
    if not args.quick:
        save(RESULTS / "xla_cpu_forms.json", record)


if __name__ == "__main__":
    main()
