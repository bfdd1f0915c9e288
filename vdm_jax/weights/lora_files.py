"""LoRAs as safetensors files: in our layout, and in those of diffusers (peft) and kohya for open models.

    adapters = read_lora("style.safetensors", {"unet": target_of(unet), "text_encoder": target_of(text_encoder)})

    layout     names of the factors of a module                                     what the product counts
    plain      down_0_0/residual/conv_in/{down,up}/kernel                           `scales` in the header
    diffusers  unet.down_blocks.0.resnets.0.conv1.lora_{A,B}.weight                 alpha / rank of the header, or 1
    kohya      lora_unet_down_blocks_0_resnets_0_conv1.lora_{down,up}.weight        .alpha / rank, or 1

Older names of diffusers, and those of AnimateDiff's authors for MotionLoRA, are read too. Factors are of kernels alone.
"""

from __future__ import annotations

import collections
import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from vdm_jax.errors import UserError
from vdm_jax.networks.lora import KERNEL, Adapter, factor_shapes, misfits
from vdm_jax.weights import model_kinds, tensor_names
from vdm_jax.weights.model_kinds import Config
from vdm_jax.weights.safetensors import flatten, load_params, save_params
from vdm_jax.weights.tensor_files import Tensor, file_metadata, lazy, open_file, write_file

Layout = Literal["plain", "diffusers", "kohya"]
NETWORK = "unet"  # the network of a stage; what names without a prefix belong to
PREFIXES = {"unet": "unet.", "text_encoder": "text_encoder."}
TRANSFORMER, AUTHORS = "transformer.", "diffusion_model."  # of the network of a stage that is a transformer
KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
BEGINNINGS = {**{prefix: name for name, prefix in (*PREFIXES.items(), *KOHYA.items())}, "lora_te1_": "text_encoder"}
SCALES, STAGE, PEFT = "scales", "stage", "lora_adapter_metadata"  # in headers, the last one by diffusers
_FACTOR = re.compile(r"(.+?)(?:\.lora_([AB])|(?:\.lora_linear_layer|\.lora|_lora)[._](down|up))(?:\.default)?\.weight")
_PARTS = {"A": "down", "B": "up", "down": "down", "up": "up"}
# Older names of diffusers: the end of a module's, and what it is now, by network.
_OLD = {"unet": ((r"\.to_out$", ".to_out.0"),),
        "text_encoder": ((r"\.to_(q|k|v|out)$", r".\1_proj"),)}


class Target(NamedTuple):
    """A network that a LoRA may be for."""

    # Of its parameters, by path, and of the layers of those that a scan stacks, which files have one by one
    shapes: dict[str, tuple[int, ...]]
    modules: dict[str, str]  # names of its modules in the other layouts -> ours; empty for networks that have none
    names: tensor_names.Names | None = None


def target_of(config: Config, params: Any = None) -> Target:
    """A network of an open model; `params` (or their shapes) are those of a stage, which may have more next to it."""
    table, modules = model_kinds.names(config), {}
    own = {path: leaf.shape for path, leaf in model_kinds.shapes(config).items()}
    single = {inner: shape for path, whole in own.items() for inner, shape in tensor_names.layers(path, whole, table)}
    for path in single:
        if path.endswith(f"/{KERNEL}"):
            modules[tensor_names.their_name(path, table).removesuffix(".weight")] = path.removesuffix(f"/{KERNEL}")
    return Target(single | (own if params is None else plain_target(params).shapes), modules, table)


def plain_target(params: Any) -> Target:
    """A network of ours, by its parameters or their shapes."""
    return Target({path: tuple(leaf.shape) for path, leaf in flatten(params).items()}, {})


def read_lora(path: str | os.PathLike, targets: Mapping[str, Target]) -> dict[str, Adapter]:
    """The adapters of a file, by network: "unet" is that of a stage, "text_encoder" the encoder of its captions.

    Raises `UserError` for a pickle or a damaged file, one that holds no LoRA or one of another kind (DoRA, LoHa), and a
    LoRA for another network, naming the modules or shapes that differ.
    """
    tensors, header = open_file(path), file_metadata(path)
    if any(name.endswith(f"/{KERNEL}") for name in tensors):
        return {NETWORK: _read_plain(path, targets[NETWORK])}
    parts = _by_module(path, tensors, targets)
    found = {}
    for network, modules in parts.items():
        factors, scales, wrong = {}, {}, []
        for module, (name, part) in modules.items():
            pair = _pair(part, targets[network].shapes[f"{module}/{KERNEL}"])
            if pair is None:
                wrong.append(f"{name} is {_shape(part.get('down'))} and {_shape(part.get('up'))}")
                continue
            factors |= {f"{module}/{side}/{KERNEL}": array for side, array in pair.items()}
            alpha = float(part["alpha"].read()) if "alpha" in part else None
            scales[module] = _scale(path, header, network, name, pair["down"].shape[-1], alpha)
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise UserError(f"{path}: the LoRA is for another network: {'; '.join(wrong[:3])}{more}; permitted: two "
                            f"factors of each module of this {network}, of the shape of its kernel")
        found[network] = _stacked(Adapter(traverse_util.unflatten_dict(factors, sep="/"), scales), targets[network])
    return found


def _stacked(adapter: Adapter, target: Target) -> Adapter:
    """An adapter of single layers as one of stacked ones: of one rank, with zeros where a layer has a lower one or
    none, and with the scales multiplied into `up`."""
    if target.names is None or not target.names.stacked:
        return adapter
    pairs, flat, scales = adapter.pairs, {}, dict(adapter.scales)
    for path, shape in target.shapes.items():
        layers = [inner.removesuffix(f"/{KERNEL}") for inner, _ in tensor_names.layers(path, shape, target.names)]
        there, module = [layer for layer in layers if layer in pairs], path.removesuffix(f"/{KERNEL}")
        if not path.endswith(f"/{KERNEL}") or layers == [module] or not there:
            continue
        rank, dtype = max(pairs[layer][0].shape[-1] for layer in there), pairs[there[0]][0].dtype
        down, up = (np.zeros(side, dtype) for side in factor_shapes(shape, rank))
        for place, layer in ((place, layer) for place, layer in enumerate(layers) if layer in pairs):
            first, second = pairs.pop(layer)
            down[place, :, : first.shape[-1]] = first
            up[place, : second.shape[0]] = scales.pop(layer) * second.astype(np.float32)
        flat |= {f"{module}/down/{KERNEL}": down, f"{module}/up/{KERNEL}": up}
        scales[module] = 1.0
    flat |= {f"{module}/{side}/{KERNEL}": factor for module, pair in pairs.items()
             for side, factor in zip(("down", "up"), pair, strict=True)}
    return Adapter(traverse_util.unflatten_dict(flat, sep="/"), scales)


def _single(adapter: Adapter, target: Target) -> list[tuple[str, np.ndarray, np.ndarray, float]]:
    """Path, factors and scale of each module, layer by layer where they are stacked."""
    found = []
    for module, pair in adapter.pairs.items():
        path, (down, up) = f"{module}/{KERNEL}", (np.asarray(jax.device_get(x)) for x in pair)
        for place, (inner, _) in enumerate(tensor_names.layers(path, target.shapes[path], target.names)):
            whole = inner == path
            found.append((inner.removesuffix(f"/{KERNEL}"), down if whole else down[place], up if whole else up[place],
                          adapter.scales[module]))
    return found


def networks_in(path: str | os.PathLike) -> set[str]:
    """The networks that the names in a file begin with; what has no prefix belongs to that of a stage. Raises
    `UserError` for a file that is damaged or a pickle."""
    return {_split(name)[0] for name in open_file(path)}


def lora_stage(path: str | os.PathLike) -> str | None:
    """The stage that a file says that it was trained as."""
    return file_metadata(path).get(STAGE)


def write_lora(
    path: str | os.PathLike, adapters: Mapping[str, tuple[Target, Adapter]], layout: Layout = "plain",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write adapters, by network as `read_lora` gives them, as one file.

    In the layout of diffusers, which reads no alpha without a header of its own, a scale other than 1 is multiplied
    into `up`. `metadata` is text of the header.

    Raises `UserError` for a layout that the networks do not have, and as `save_params` does.
    """
    if layout == "plain":
        (_, adapter), = adapters.values()
        scales = {module: float(scale) for module, scale in adapter.scales.items()}
        return save_params(path, jax.device_get(adapter.factors), {**(metadata or {}), SCALES: json.dumps(scales)})
    tensors: dict[str, np.ndarray] = {}
    for network, (target, adapter) in adapters.items():
        if target.names is None:
            raise UserError(f"layout={layout!r} for a network that only this package has; permitted: 'plain'")
        prefix = TRANSFORMER if target.names.stacked and network == NETWORK else PREFIXES[network]
        for module, down, up, scale in _single(adapter, target):
            name = tensor_names.their_name(f"{module}/{KERNEL}", target.names).removesuffix(".weight")
            down, up = (tensor_names.to_theirs(KERNEL, x) for x in (down, up))
            up = up.reshape(*up.shape[:2], *(1 for _ in down.shape[2:]))
            if layout == "diffusers":
                scaled = up if scale == 1 else (scale * up.astype(np.float32)).astype(up.dtype)
                tensors |= {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": scaled}
            else:
                name = KOHYA[network] + name.replace(".", "_")
                tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up,
                            f"{name}.alpha": np.float32(scale * down.shape[0])}
    write_file(path, lazy(tensors.items()), {"format": "pt", **(metadata or {})})


def _read_plain(path: str | os.PathLike, target: Target) -> Adapter:
    """The adapter of a file in our layout."""
    factors, header = load_params(path)
    try:
        scales = {str(module): float(scale) for module, scale in json.loads(header[SCALES]).items()}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
        raise UserError(f"{path} holds parameters and no LoRA; permitted: a file that 'vdm-jax export --lora' "
                        "wrote") from None
    adapter = Adapter(factors, scales)
    try:
        whole = set(adapter.pairs) == set(scales) and not (set(flatten(factors)) - {
            f"{module}/{side}/{KERNEL}" for module in scales for side in ("down", "up")})
        wrong = misfits(adapter, target.shapes) if whole else "its scales are of other modules than its factors"
    except KeyError as error:
        wrong = f"{error} is missing"
    if wrong or not all(map(math.isfinite, scales.values())):
        raise UserError(f"{path}: the LoRA is for another network: {wrong or 'scales are not finite'}; permitted: one "
                        "trained on this network, or one of its sizes")
    return adapter


def _by_module(
    path: str | os.PathLike, tensors: Mapping[str, Tensor], targets: Mapping[str, Target]
) -> dict[str, dict[str, tuple[str, dict[str, Tensor]]]]:
    """Network -> path of a module -> its name in the file, and `down`, `up` and `alpha`. Raises `UserError` for what is
    no factor and for modules that are not there."""
    found: dict[str, dict[str, tuple[str, dict[str, Tensor]]]] = collections.defaultdict(dict)
    strange, unknown = [], []
    for stored, tensor in tensors.items():
        match = _FACTOR.fullmatch(stored)
        name, part = (match[1], _PARTS[match[2] or match[3]]) if match else (stored.removesuffix(".alpha"), "alpha")
        if name == stored or (part == "alpha" and math.prod(tensor.shape) != 1):
            strange.append(stored)
            continue
        network, name = _split(name)
        own = targets.get(NETWORK)
        if network not in targets and own is not None and own.names is not None and own.names.stacked:
            network, name = NETWORK, name.removeprefix(TRANSFORMER).removeprefix(AUTHORS)
        if network not in targets:
            raise UserError(f"{path} has factors of the {network}, such as {stored}; permitted: of "
                            f"{', '.join(targets)} here")
        module = _module(network, name, targets[network])
        if module is None:
            unknown.append(name)
        else:
            found[network].setdefault(module, (name, {}))[1][part] = tensor
    if strange or not (found or unknown):
        what = f"it has {', '.join(strange[:3])}" if strange else "it is empty"
        raise UserError(f"{path} holds no LoRA that is read here: {what}; permitted: one in the layout of diffusers "
                        "(peft), kohya or this package, without magnitudes (DoRA), biases or other products (LoHa, "
                        "LoKr)")
    if unknown:
        shown = sorted(set(unknown))
        more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
        raise UserError(f"{path}: the LoRA is for another network, which has {', '.join(shown[:3])}{more}; permitted: "
                        "modules of this one")
    return found


def _split(name: str) -> tuple[str, str]:
    """The network that a name begins with, and the rest."""
    name = name.removeprefix("base_model.model.")
    for prefix, network in BEGINNINGS.items():
        if name.startswith(prefix):
            return network, name.removeprefix(prefix)
    other = re.match(r"(text_encoder_\w+|transformer|diffusion_model)\.|lora_(te\d+|transformer)_", name)
    return (other[1] or other[2], name) if other else (NETWORK, name)


def _module(network: str, name: str, target: Target) -> str | None:
    """Our path of a module that a file calls so; None where there is none."""
    full = name.replace(".processor.", ".")
    for pattern, replacement in _OLD[network]:
        full = re.sub(pattern, replacement, full)
    for pattern, replacement in target.names.aliases if target.names else ():
        full = re.sub(f"^{pattern}", replacement, f"{full}.").removesuffix(".")
    joined = {theirs.replace(".", "_"): ours for theirs, ours in target.modules.items()} if "." not in name else {}
    return target.modules.get(full, joined.get(name))


def _pair(part: Mapping[str, Tensor], kernel: tuple[int, ...]) -> dict[str, np.ndarray] | None:
    """Both factors in our layout; None where one is missing or they do not fit a kernel. A pointwise convolution may be
    stored as a matrix, and the other way round."""
    if not {"down", "up"} <= set(part) or not part["down"].shape or not part["down"].shape[0]:
        return None
    found, rank = {}, part["down"].shape[0]
    for side, shape in zip(("down", "up"), factor_shapes(kernel, rank), strict=True):
        wanted = tensor_names.their_shape(KERNEL, shape)
        if part[side].shape[:2] != wanted[:2] or math.prod(part[side].shape) != math.prod(wanted):
            return None
        found[side] = tensor_names.to_ours(KERNEL, part[side].read().reshape(wanted), shape)
    return found


def _scale(
    path: str | os.PathLike, header: Mapping[str, str], network: str, name: str, rank: int, alpha: float | None
) -> float:
    """alpha / rank of a module: of its own alpha, or of the config of peft that the header may have. Raises `UserError`
    for a config that is none, one with another rule, and an alpha that is not finite."""
    if alpha is not None:
        return _finite(path, name, alpha) / rank
    try:
        fields = json.loads(header.get(PEFT, "{}"))
        own = {key.removeprefix(PREFIXES[network]): value for key, value in fields.items()
               if key.startswith(PREFIXES[network])}
        alpha = float(own.get("lora_alpha", rank))
        for pattern, value in (own.get("alpha_pattern") or {}).items():
            # Of peft a regular expression; one of a stranger's file can run for ever, so that names alone are read.
            if not re.fullmatch(r"[\w.]+", pattern):
                raise ValueError(f"alpha_pattern has {pattern[:80]!r}, which is no end of a module's name")
            if f".{name}".endswith(f".{pattern}"):
                alpha = float(value)
    except (TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: its header's {PEFT} is not readable ({error}); permitted: the config that peft "
                        "writes, or none") from None
    return _finite(path, name, alpha) / rank ** (0.5 if own.get("use_rslora") else 1.0)


def _finite(path: str | os.PathLike, name: str, alpha: float) -> float:
    if not math.isfinite(alpha):
        raise UserError(f"{path}: alpha={alpha} of {name}; permitted: a finite number")
    return alpha


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(list(tensor.shape))
