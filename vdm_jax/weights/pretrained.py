"""Weights from and to folders in the layout of diffusers and transformers, tensor by tensor.

    model = load_pretrained("stable-video-diffusion/vae")
    video = model.module.apply({"params": model.params}, latents, method="decode")
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding

from vdm_jax.configuration import from_json, to_json
from vdm_jax.errors import UserError
from vdm_jax.parallel.rules import parameter_partition
from vdm_jax.weights import model_kinds, tensor_names
from vdm_jax.weights.fields import Fields
from vdm_jax.weights.model_kinds import Config, Kind
from vdm_jax.weights.safetensors import flatten, load_params, save_params
from vdm_jax.weights.signatures import mismatch
from vdm_jax.weights.tensor_files import (
    SHARD_BYTES,
    Tensor,
    lazy,
    open_folder,
    read_json,
    write_file,
    write_folder,
)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with weights."""

    config: Config
    params: dict[str, Any]
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)  # of its `config.json`, where it came from one

    @property
    def module(self) -> nn.Module:
        """The network."""
        return model_kinds.module(self.config)


@dataclasses.dataclass(frozen=True)
class Report:
    """How the tensors of a folder differ from those that its config asks for; all names as they are stored."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]  # name (shape instead of shape)
    text: str  # on one line, with some of each kind; empty where nothing differs


def describe(
    folder: str | os.PathLike, wanted: type | None = None
) -> tuple[Kind, Config, dict[str, Any]]:
    """What a folder's `config.json` says it holds: the model, our config of it, and the fields.

    Args:
      folder: with `config.json`.
      wanted: the class of config that it must be, such as `Autoencoder`; None: any.

    Raises:
      UserError: no such file, a model or a setting that we do not have, another model than the `wanted` one.
    """
    folder = pathlib.Path(folder)
    if not (folder / "config.json").is_file() and (folder / "model_index.json").is_file():
        parts = sorted(path.parent.name for path in folder.glob("*/config.json"))
        raise UserError(f"{folder} is a pipeline of several models; permitted: one of its folders: {', '.join(parts)}")
    fields = read_json(folder / "config.json")
    try:
        name = fields.get("_class_name") or (fields.get("architectures") or ["model of unknown class"])[0]
        kind = model_kinds.kind_named(str(name), str(folder), wanted)
        return kind, kind.read(Fields(fields, str(folder / "config.json"))), fields
    except UserError:
        raise
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:  # of one field or several
        raise UserError(f"{folder / 'config.json'} has a field of a wrong type or length ({error}); permitted: the "
                        "file as diffusers or transformers write it") from error


def report(config: Config, tensors: Mapping[str, Tensor]) -> Report:
    """How tensors of a folder differ from those of a config."""
    found = tensor_names.canonical(tensors, model_kinds.names(config))
    wanted = {name: str(list(shape)) for name, shape in model_kinds.parameters(config).items()}
    there = {name: str(list(tensors[stored].shape)) for name, stored in found.items()}
    different = (f"{name} ({there[name]} instead of {shape})" for name, shape in sorted(wanted.items())
                 if there.get(name, shape) != shape)
    return Report(tuple(sorted(set(wanted) - set(there))), tuple(sorted(set(there) - set(wanted))), tuple(different),
                  mismatch(there, wanted))


def open_pretrained(
    folder: str | os.PathLike, wanted: type | None = None, variant: str | None = None
) -> tuple[Config, dict[str, Tensor], dict[str, Any]]:
    """Config, our parameters by path (not read yet, in our layout), and the fields of `config.json`.

    Raises `UserError` as `load_pretrained` does.
    """
    _, config, fields = describe(folder, wanted)
    tensors = open_folder(folder, variant)
    return config, parameters_of(config, tensors, f"{folder} does not match its config.json"), fields


def parameters_of(config: Config, tensors: Mapping[str, Tensor], failure: str) -> dict[str, Tensor]:
    """Our parameters by path among tensors in the other layout, not read yet.

    Raises `UserError`, which begins with `failure`, for tensors that are missing, unexpected or misshapen.
    """
    if text := report(config, tensors).text:
        raise UserError(f"{failure}: {text}")
    model_kinds.check_constants(config, tensors, failure)
    table = model_kinds.names(config)
    stored = tensor_names.canonical(tensors, table)
    params = {}
    for path, leaf in model_kinds.shapes(config).items():
        parts = [(inner, shape, tensors[stored[tensor_names.their_name(inner, table)]])
                 for inner, shape in tensor_names.layers(path, leaf.shape, table)]
        params[path] = Tensor(leaf.shape, parts[0][2].dtype, functools.partial(_read, parts, leaf.shape, table))
    return params


def _read(
    parts: list[tuple[str, tuple[int, ...], Tensor]], shape: tuple[int, ...], table: tensor_names.Names
) -> np.ndarray:
    """A parameter of its tensor, or of those of its layers."""
    found = [tensor_names.to_ours(path, tensor.read(), inner, table) for path, inner, tensor in parts]
    return found[0] if found[0].shape == shape else np.stack(found)


def load_pretrained(
    folder: str | os.PathLike, wanted: type | None = None, *, variant: str | None = None, dtype: str | None = None,
    mesh: Mesh | None = None,
) -> Pretrained:
    """The model of a local folder in the layout of diffusers or transformers.

    Tensors are read, turned and placed one by one: at no time is there more than the model and its largest tensor.

    Args:
      folder: with `config.json` and safetensors files, one or several with an index.
      wanted: class of config that it must be; None: any that we have.
      variant: part of the file names, such as `fp16`.
      dtype: of all parameters; None: as they are stored.
      mesh: over which parameters are split by the rules of `vdm_jax/parallel`; None: on the default device.

    Raises:
      UserError: what is there is no model that we have, or another than `wanted`; settings that we do not have;
        tensors that are missing, unexpected or of another shape, by name; pickles; damaged files.
    """
    config, tensors, fields = open_pretrained(folder, wanted, variant)
    return Pretrained(config, loaded(tensors, dtype, mesh), fields)


def loaded(tensors: Mapping[str, Tensor], dtype: str | None = None, mesh: Mesh | None = None) -> dict[str, Any]:
    """Our parameters of `parameters_of` as nested dicts of arrays; `dtype` and `mesh` as in `load_pretrained`."""
    params = {}
    for path, tensor in tensors.items():
        array = tensor.read()
        array = array if dtype is None else array.astype(jnp.dtype(dtype))
        params[path] = _place(f"/{path}", array, mesh)
    return traverse_util.unflatten_dict(params, sep="/")


def _place(name: str, array: np.ndarray, mesh: Mesh | None) -> jax.Array:
    if mesh is None:
        return jnp.asarray(array)
    sharding = NamedSharding(mesh, parameter_partition(name, array.shape, mesh))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def save_pretrained(folder: str | os.PathLike, model: Pretrained, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes a model as a folder that diffusers or transformers load; dtypes stay as they are.

    Raises:
      UserError: parameters that do not match the config, by name; a folder that has tensors already; no space left.
    """
    tensors = lazy(_checked(model.config, model.params, "parameters").items())
    export(folder, model.config, tensors, model.fields, shard_bytes)


def export(
    folder: str | os.PathLike, config: Config, params: Mapping[str, Tensor], fields: Mapping[str, Any],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes our parameters by path, tensor by tensor, as `save_pretrained` does."""
    kind, tensors = model_kinds.kind_of(config), _renamed(params, model_kinds.names(config))
    dtype = next(iter(tensors.values())).dtype
    constants = {name: value.astype(dtype) for name, value in model_kinds.constants(config).items()}
    write_folder(folder, kind.stem, tensors | lazy(constants.items()), shard_bytes)
    own = {"_class_name": kind.name} if kind.stem.startswith("diffusion") else {"architectures": [kind.name]}
    written = kind.write(config)
    # What a file said stays as it said it, also where we would put it otherwise, unless the model is another one now.
    same_class = kind.name in (fields.get("_class_name"), *(fields.get("architectures") or ()))
    same = same_class and kind.write(kind.read(Fields(fields, "config.json"))) == written
    text = json.dumps({**fields, **({} if same else written), **own}, indent=2, sort_keys=True)
    (pathlib.Path(folder) / "config.json").write_text(text + "\n", encoding="utf-8")


def save_original(path: str | os.PathLike, model: Pretrained) -> None:
    """Writes a model as one safetensors file by the names of its authors; `single_file.py` reads it.

    Raises `UserError` for a model whose authors' names we do not write, parameters that do not match the config, by
    name, and as `write_file` does.
    """
    params = lazy(_checked(model.config, model.params, "parameters").items())
    write_file(path, _renamed(params, model_kinds.original_names(model.config)), {"format": "pt"})


def _renamed(params: Mapping[str, Tensor], table: tensor_names.Names) -> dict[str, Tensor]:
    """Our parameters by path as tensors of another layout, not read yet."""
    tensors = {}
    for path, tensor in params.items():
        for layer, (inner, shape) in enumerate(tensor_names.layers(path, tensor.shape, table)):
            def read(path: str = inner, tensor: Tensor = tensor, layer: int | None = layer if inner != path else None):
                array = tensor.read()
                return tensor_names.to_theirs(path, array if layer is None else array[layer], table)

            tensors[tensor_names.their_name(inner, table)] = Tensor(
                tensor_names.their_shape(inner, shape, table), tensor.dtype, read)
    return tensors


def _checked(config: Config, params: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Path -> parameter, all of them and no others."""
    flat = flatten(params)
    wanted = {path: str(list(leaf.shape)) for path, leaf in model_kinds.shapes(config).items()}
    if text := mismatch({path: str(list(leaf.shape)) for path, leaf in flat.items()}, wanted):
        raise UserError(f"{what} do not match the config: {text}")
    return flat


def import_folder(folder: str | os.PathLike, out: str | os.PathLike, variant: str | None = None) -> Config:
    """Rewrites a folder as one file in our layout, tensor by tensor; returns the config, which the file holds too.

    Raises `UserError` as `load_pretrained` does.
    """
    if pathlib.Path(out).suffix != ".safetensors":
        raise UserError(f"out={out}; permitted: a name that ends in .safetensors")
    config, tensors, fields = open_pretrained(folder, None, variant)
    write_file(out, tensors, {"config": to_json(config), "fields": json.dumps(fields)})
    return config


def load_imported(path: str | os.PathLike) -> Pretrained:
    """What `import_folder` or `save_imported` wrote. Raises `UserError` for another file."""
    params, metadata = load_params(path)
    if "config" not in metadata:
        raise UserError(f"{path} does not say what it holds; permitted: files that `vdm-jax convert` wrote, or the "
                        "training of an autoencoder")
    config = from_json(Config, metadata["config"], str(path))
    _checked(config, params, f"parameters of {path}")
    return Pretrained(config, params, json.loads(metadata.get("fields", "{}")))


def save_imported(
    path: str | os.PathLike, model: Pretrained, metadata: Mapping[str, str] | None = None, *, dtype: str | None = None
) -> None:
    """Writes a model as one file in our layout, which `load_imported` reads; `metadata` is text next to its config.

    `dtype` as in `save_params`. Raises `UserError` for parameters that do not match the config, by name, and as
    `save_params` does.
    """
    _checked(model.config, model.params, "parameters")
    text = {**(metadata or {}), "config": to_json(model.config), "fields": json.dumps(model.fields)}
    save_params(path, model.params, text, dtype=dtype)
