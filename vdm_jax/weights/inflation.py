"""Inflation: a video network that begins as a trained image network.

What both networks have is copied; temporal convolutions begin as the identity and further mixers with a zero output
projection, so that at first every frame of a video gets exactly what the image network gives it (Make-A-Video: Singer
et al. 2022, arXiv 2209.14792, section 3.2); where levels shrink clips in time, every N-th frame does (Lumiere: Bar-Tal
et al. 2024, arXiv 2401.12945). Inputs that only the video network takes (conditioning frames, a frame rate, a
low-resolution video) begin with zero weights; how Make-A-Video begins them is not published. The same makes a network
for interpolation from one that takes no conditioning frames. A ControlNet begins as a copy of the layers that it is a
copy of, and adds zeros at first (Zhang et al. 2023, arXiv 2302.05543).

Of a network with `position_period` the frames begin with codes of their own, and differ by these alone; without "frame"
among its `position_axes` they do not differ.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Set
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.errors import UserError
from vdm_jax.networks.config import UNet
from vdm_jax.parallel.rules import path_name

# Fields that decide what a network computes from tensors of the same shapes.
SAME = ("patch", "temporal_patch", "out_channels", "modulation", "level_encoding", "resample", "resample_order",
        "skip_scale", "groups", "residual", "position_period", "position_axes")
STEM = "/stem/kernel"
_OVER_TIME = r"/temporal/|^/temporal_(down|up)sample_\d+/"  # next to the spatial layers
_BRANCH = re.compile(r"/control_net_\w+?(/.*)")  # a ControlNet, and what it is a copy of
_MAPS = re.compile(r"/hint_(in|out)/|/control_(\d+|middle)/")  # its own layers, which end in zeros
_MIXER = re.compile(r"(.*/mixers)/(\w+)_(\d+)(/.*)")


@dataclasses.dataclass(frozen=True)
class Inflation:
    """What each tensor of a network begins as, by path."""

    copied: dict[str, str]  # as that tensor of the other network
    zero_initialised: tuple[str, ...]  # zero: projections of inputs that the other network does not take
    new: tuple[str, ...]  # as initialised: layers that begin as the identity, or whose output meets zeros
    stem: tuple[int, ...] | None  # places of the other network's channels in its first kernel; None: the same channels
    patch: int

    def __str__(self) -> str:
        wider = f"; {len(self.stem)} input channels are joined by new ones that begin at zero" if self.stem else ""
        return (f"{len(self.copied)} tensors copied, {len(self.new)} of layers that begin as the identity, "
                f"{len(self.zero_initialised)} of new inputs that begin at zero{wider}")

    def apply(self, params: Any, source: Any) -> Any:
        """Initial parameters `params` with what `source`, those of the other network, decides. Jittable."""
        given = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(source)}

        def begin(path: tuple, leaf: Array) -> Array:
            name = path_name(path)
            if name in self.zero_initialised:
                return jnp.zeros_like(leaf)
            if name not in self.copied:
                return leaf
            value = given[self.copied[name]].astype(leaf.dtype)
            return self._widened(value, leaf.shape) if self.copied[name] == STEM and self.stem else value

        return jax.tree_util.tree_map_with_path(begin, params)

    def _widened(
        self, kernel: Float[Array, "1 side side pc O"], shape: tuple[int, ...]
    ) -> Float[Array, "1 side side pc2 O"]:
        """The first kernel with zeros at new input channels, which lie between the pixels of a patch."""
        pixels = self.patch**2
        wide = jnp.zeros((*shape[:3], pixels, shape[3] // pixels, shape[4]), kernel.dtype)
        narrow = kernel.reshape(*shape[:3], pixels, -1, shape[4])
        return wide.at[:, :, :, :, jnp.array(self.stem)].set(narrow).reshape(shape)


@dataclasses.dataclass(frozen=True)
class BeginApart:
    """A student that begins as another network than its teacher and the others that learn next to it. Its `source` has
    the parameters of both, by these names."""

    student: Inflation
    teacher: Inflation

    def __str__(self) -> str:
        return f"{self.student}; its teacher: {self.teacher}"

    def apply(self, params: Any, source: Any) -> Any:
        """What the student begins as; as of `Inflation`."""
        return self.student.apply(params, source["student"])

    def of_others(self, params: Any, source: Any) -> Any:
        """What the others begin as."""
        return self.teacher.apply(params, source["teacher"])


def plan_inflation(network: UNet, shapes: Any, source: UNet, source_shapes: Any) -> Inflation:
    """How `network` begins as `source`, from their configs and their parameters (or shapes of these).

    Raises `UserError` naming every tensor that `source` lacks, that has no place in `network`, or whose shape differs,
    and a field that makes the two compute different things.
    """
    for name in SAME:
        if getattr(network, name) != getattr(source, name):
            raise UserError(f"UNet.{name}={getattr(network, name)!r} of a network that is to begin as one with "
                            f"{getattr(source, name)!r}; permitted: the same")
    if network.text != source.text:
        raise UserError("UNet.text of a network that is to begin as another one is not that one's: they would read "
                        "different words or embeddings; permitted: the same")
    stem = _stem_places(network, source)
    ours, theirs = ({_canonical(name, tree): (name, leaf.shape) for name, leaf in tree.items()}
                    for tree in (_by_path(shapes), _by_path(source_shapes)))
    begins_new = _new_layers(set(theirs))
    copied, zero_initialised, new, wrong = {}, [], [], []
    for own, (name, shape) in ours.items():
        key = own if own in theirs else _copied_from(own)
        if key in theirs:
            expected = theirs[key][1]
            if theirs[key][0] == STEM and stem is not None:
                expected = (*expected[:3], shape[3], expected[4])
            if shape != expected:
                wrong.append(f"{name} {list(shape)} from {list(theirs[key][1])}")
            copied[name] = theirs[key][0]
        elif begins_new(own):
            new.append(name)
        elif name.split("/")[1:3] in [["embedding", new] for new in _new_scalars(network, source)]:
            (zero_initialised if _ends_input(name) else new).append(name)
        else:
            wrong.append(f"{name} from nothing")
    wrong += [f"nothing from {name}" for key, (name, _) in theirs.items() if key not in ours]
    if wrong:
        raise UserError(f"the network cannot begin as the other one: {'; '.join(wrong)}; permitted: networks that "
                        "differ by temporal layers, mixers, scalars, and low-resolution inputs or conditioning frames")
    return Inflation(copied, tuple(zero_initialised), tuple(new), stem, network.patch)


def _copied_from(name: str) -> str:
    """The path in the network whose copy a ControlNet is; others as they are."""
    inside = _BRANCH.fullmatch(name)
    return inside[1] if inside else name


def _new_layers(theirs: Set[str]) -> Callable[[str], bool]:
    """Whether a tensor is of layers that a network with these has not: over time, mixers, what reads maps."""
    mixers = {_mixer(name) for name in theirs}

    def begins_new(name: str) -> bool:
        key = _copied_from(name)
        reads_map = key != name and _MAPS.match(key)
        return bool(reads_map or re.search(_OVER_TIME, key) or (_mixer(key) and _mixer(key) not in mixers))

    return begins_new


def _by_path(tree: Any) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _canonical(name: str, tree: dict[str, Any]) -> str:
    """A path in which mixers of a kind are counted by themselves, whatever stands between them."""
    match = _MIXER.fullmatch(name)
    if match is None:
        return name
    block, kind, number, rest = match.groups()
    found = collections.defaultdict(set)
    for other in filter(None, map(_MIXER.fullmatch, tree)):
        found[other[1], other[2]].add(int(other[3]))
    return f"{block}/{kind}_{sorted(found[block, kind]).index(int(number))}{rest}"


def _mixer(name: str) -> str | None:
    """The mixer that a tensor belongs to."""
    match = _MIXER.fullmatch(name)
    return f"{match[1]}/{match[2]}_{match[3]}" if match else None


def _new_scalars(network: UNet, source: UNet) -> list[str]:
    """Scalar inputs of the first network alone."""
    given = [name for name in network.scalars if name not in source.scalars]
    given += [f"condition_{entry.name}" for way in ("vector", "tokens") for entry in network.entering(way)
              if entry not in source.conditions]
    return given + (["augmentation"] if network.low_resolution and not source.low_resolution else [])


def _ends_input(name: str) -> bool:
    """Whether a tensor of a new input is of its only layer, or of the last of several (`out`). Zeros in all of them
    would have no gradient."""
    layers = name.split("/")[3:-1]
    return not layers or layers[0] == "out"


def _stem_places(network: UNet, source: UNet) -> tuple[int, ...] | None:
    """Where the source's input channels stand among the network's, in the order of `UNet.stacked`; None where both take
    the same. Raises `UserError` for an input that the network no longer takes."""
    for name in source.stacked:
        if name not in network.stacked:
            raise UserError(f"UNet.{name}=False of a network that is to begin as one with {name}=True; permitted: True")
    places, start = [], 0
    for name, channels in network.stacked.items():
        places += range(start, start + channels) if name in source.stacked else ()
        start += channels
    return tuple(places) if len(places) < start else None
