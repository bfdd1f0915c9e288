"""TPU slices that are not there: their names, and their devices for the compiler.

The compiler is libtpu, which comes with the extra `[tpu]` and needs no TPU.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math
import os
import re

import jax

from vdm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Generation:
    """How the slices of a generation are named and shaped."""

    dimensions: int  # of the torus
    counted: int  # what a product's number counts, per chip: TensorCores (2) or chips (1)
    most: int  # chips in a slice


# Cloud TPU's pages of each generation; the numbers of tpu7x products count TensorCores, which are JAX devices there.
GENERATIONS = {"v4": Generation(3, 2, 4096), "v5e": Generation(2, 1, 256), "v5p": Generation(3, 2, 8960),
               "v6e": Generation(2, 1, 256), "tpu7x": Generation(3, 2, 9216)}
ENVIRONMENT = {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
               "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # any that exists: without one libtpu complains
               "TPU_LOG_DIR": "disabled", "TPU_MIN_LOG_LEVEL": "4", "TPU_STDERR_LOG_LEVEL": "4"}
CUBE = 4  # chips per side of the blocks that larger three-dimensional slices are made of


@dataclasses.dataclass(frozen=True)
class Slices:
    """A parsed name: so many slices of one shape."""

    generation: str
    sides: tuple[int, ...]  # chips
    count: int = 1

    @property
    def shape(self) -> str:
        """One slice as the compiler calls it, such as `v5p:4x4x4`."""
        return f"{self.generation}:{'x'.join(map(str, self.sides))}"

    @property
    def chips(self) -> int:
        """Chips of one slice."""
        return math.prod(self.sides)

    def __str__(self) -> str:
        return self.shape if self.count == 1 else f"{self.count}x{self.shape}"


def parse(name: str) -> Slices:
    """What a name means: `v5p-64` (a product, 32 chips) and `v5p:2x4x4` are the same; `2xv5p-64` is two of them.

    Names of v4, v5p and tpu7x products count TensorCores, two per chip; those of v5e and v6e count chips. Raises
    `UserError` for other names, and for numbers and shapes that are no slice.
    """
    whole = re.fullmatch(r"(?:(\d{1,4})x)?(v4|v5e|v5litepod|v5p|v6e|tpu7x)([-:])(\d{1,6}(?:x\d{1,6}){0,2})", name,
                         re.ASCII)
    if not whole:
        raise UserError(f"topology {name!r} is unknown{_suggested(name)}; permitted: products such as v5p-128, v5e-16, "
                        "v6e-256, tpu7x-128, slices such as v5p:4x4x4, v5e:4x4, or several of them such as 2xv5p-128")
    generation, numbers = whole[2].replace("litepod", "e"), tuple(map(int, whole[4].split("x")))
    about, slices = GENERATIONS[generation], int(whole[1] or 1)
    if slices < 1:
        raise UserError(f"topology {name!r} has no slice; permitted: 1 or more, as in 2x{name.split('x', 1)[1]}")
    if len(numbers) == 1 and whole[3] == "-":
        numbers = _product(name, generation, numbers[0])
    if len(numbers) != about.dimensions or min(numbers) < 1:
        raise UserError(f"topology {name!r} has sides {'x'.join(map(str, numbers))}; permitted: {about.dimensions} "
                        f"sides for {generation}, such as {generation}:{'x'.join(['4'] * about.dimensions)}")
    if math.prod(numbers) > about.most:
        raise UserError(f"topology {name!r} has {math.prod(numbers)} chips per slice; permitted: up to {about.most} "
                        f"for {generation}, or several slices, as in 2x{generation}-128")
    return Slices(generation, numbers, slices)


def _suggested(name: str) -> str:
    """A name like a mistyped one: another spelling of the generation, or of what stands between it and its size."""
    plain = name.strip().lower().replace("*", "x")
    found = re.fullmatch(r"(\d+x)?((?:tpu[- ])?[a-z]+\d[a-z]*)[-_: ]*(\d+(?:x\d+)*)", plain)
    if not found:
        return ""
    known = {**{key: key for key in GENERATIONS}, "v5litepod": "v5e", "v5lite": "v5e", "v5-lite": "v5e", "v6": "v6e",
             "v7x": "tpu7x"}
    close = difflib.get_close_matches(re.sub("^tpu[- ]", "", found[2]), known, n=1)
    if not close:
        return ""
    guess = f"{found[1] or ''}{known[close[0]]}{':' if 'x' in found[3] else '-'}{found[3]}"
    if guess == name:
        return ""
    try:
        parse(guess)
    except UserError:
        return ""
    return f" (did you mean {guess!r}?)"


def full_name(name: str) -> str:
    """The compiler's name of a slice, with the number of slices in front where there are several."""
    return str(parse(name))


def _product(name: str, generation: str, number: int) -> tuple[int, ...]:
    """Sides of a product's slice: the most even torus of a power of two of chips, or of whole cubes."""
    about = GENERATIONS[generation]
    chips, rest = divmod(number, about.counted)
    if not rest and 4 <= chips <= about.most:
        if chips & (chips - 1) == 0:
            return _torus(chips, about.dimensions)
        if about.dimensions == 3 and chips % CUBE**3 == 0:
            return tuple(CUBE * side for side in _most_even(chips // CUBE**3))
    first = 4 * about.counted
    cubes = f", or multiples of {CUBE**3 * about.counted}" if about.dimensions == 3 else ""
    raise UserError(f"topology {name!r} is not a slice; permitted: {generation}-N with N = {first}, {2 * first}, "
                    f"{4 * first}, ... (powers of two{cubes}, up to {about.most * about.counted}), or "
                    f"{generation}:AxB{'xC' * (about.dimensions - 2)}")


def _torus(chips: int, dimensions: int) -> tuple[int, ...]:
    """Sides of the most even torus of a power of two of chips."""
    sides = [1] * dimensions
    while chips > 1:
        sides[sides.index(min(sides))] *= 2
        chips //= 2
    return tuple(sorted(sides, key=lambda side: (side == 1, side)))


def _most_even(count: int) -> tuple[int, int, int]:
    """Three factors of `count`, ascending, with the smallest sum."""
    factors = [(a, b, count // (a * b)) for a in range(1, count + 1) if count % a == 0
               for b in range(a, count // a + 1) if (count // a) % b == 0 and count // (a * b) >= b]
    return min(factors, key=sum)


def devices(name: str) -> list[jax.Device]:
    """The devices of a slice, for compiling only. Raises `UserError` when libtpu is missing or knows no such slice."""
    found = parse(name)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology {name} needs libtpu, which is not installed; permitted: pip install "
                        "'vdm_jax[tpu]' (no TPU is needed)")
    from jax.experimental import topologies

    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if not jax.config.jax_platforms:  # constants live on the host; nobody should look for a TPU here
        jax.config.update("jax_platforms", "cpu")
    options = {"chip_config_name": "megacore"} if found.generation == "v4" else {}
    if found.count > 1:
        options["num_slices"] = found.count
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=found.shape, **options).devices)
    except Exception as error:  # libtpu raises several kinds
        raise UserError(f"topology {name!r} ({found}): {' '.join(str(error).split())[:200]}; permitted: a slice that "
                        "libtpu knows, such as v5p:4x4x4") from None
