"""TPU slices that are not there: their names, and their devices for the compiler.

The compiler is libtpu, which comes with the extra `[tpu]` and needs no TPU.
"""

from __future__ import annotations

import importlib.util
import os
import re

import jax

from vdm_jax.errors import UserError

# Generation -> (dimensions of the torus, TensorCores per chip that the product's name counts).
GENERATIONS = {"v4": (3, 2), "v5e": (2, 1), "v5p": (3, 2), "v6e": (2, 1)}
ENVIRONMENT = {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
               "TPU_LOG_DIR": "disabled", "TPU_MIN_LOG_LEVEL": "4", "TPU_STDERR_LOG_LEVEL": "4"}


def full_name(name: str) -> str:
    """The compiler's name of a slice: `v5p-64` (a product, 32 chips) and `v5p:2x4x4` are the same.

    Names of v4 and v5p products count TensorCores, two per chip; those of v5e and v6e count chips. Raises `UserError`
    for names of neither form.
    """
    product = re.fullmatch(r"(v4|v5e|v5litepod|v5p|v6e)-(\d+)", name)
    if product:
        generation = product[1].replace("litepod", "e")
        dimensions, cores = GENERATIONS[generation]
        count = int(product[2])
        chips = count // cores
        if count % cores or chips < 4 or chips & (chips - 1):
            raise UserError(f"topology {name!r} is not a slice; permitted: {generation}-N with N = {4 * cores}, "
                            f"{8 * cores}, {16 * cores}, ... (powers of two), or {generation}:AxB{'xC' * (cores - 1)}")
        return f"{generation}:{'x'.join(map(str, _torus(chips, dimensions)))}"
    if re.fullmatch(r"(v4|v5e|v5p|v6e|tpu7x):\d+x\d+(x\d+)?", name):
        return name
    raise UserError(f"topology {name!r} is unknown; permitted: products such as v5p-128, v5e-16, v6e-256, or slices "
                    "such as v5p:4x4x4, v5e:4x4")


def _torus(chips: int, dimensions: int) -> list[int]:
    """Sides of the most even torus of a power of two of chips."""
    sides = [1] * dimensions
    while chips > 1:
        sides[sides.index(min(sides))] *= 2
        chips //= 2
    return sorted(sides, key=lambda side: (side == 1, side))


def devices(name: str) -> list[jax.Device]:
    """The devices of a slice, for compiling only. Raises `UserError` when libtpu is missing or knows no such slice."""
    found = full_name(name)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology {name} needs libtpu, which is not installed; permitted: pip install "
                        "'vdm_jax[tpu]' (no TPU is needed)")
    from jax.experimental import topologies

    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if not jax.config.jax_platforms:  # constants live on the host; nobody should look for a TPU here
        jax.config.update("jax_platforms", "cpu")
    options = {"chip_config_name": "megacore"} if found.startswith("v4:") else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=found, **options).devices)
    except Exception as error:  # libtpu raises several kinds
        raise UserError(f"topology {name!r} ({found}): {' '.join(str(error).split())[:200]}; permitted: a slice that "
                        "libtpu knows, such as v5p:4x4x4") from None
