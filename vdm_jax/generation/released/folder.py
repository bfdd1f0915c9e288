"""What a pipeline's folder holds: networks with weights, a scheduler, a tokenizer, and how pictures are prepared."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vdm_jax.errors import UserError
from vdm_jax.generation.released.scheduler_options import class_named
from vdm_jax.generation.released.schedulers import Scheduler, read_scheduler
from vdm_jax.networks.control_net import ControlNet
from vdm_jax.networks.sparse_control import SparseControlNet
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.weights.model_kinds import kind_of
from vdm_jax.weights.pretrained import Pretrained, load_pretrained, open_pretrained, save_pretrained
from vdm_jax.weights.tensor_files import read_json
from vdm_jax.weights.tokenizers import Tokenizer, open_tokenizer

INDEX = "model_index.json"
DTYPES = ("float32", "bfloat16", "float16")
COPIED = ("scheduler", "tokenizer", "tokenizer_2", "feature_extractor", "image_processor")  # folders without weights
SEVERAL = {"controlnet": "MultiControlNetModel", "adapter": "MultiAdapter"}  # parts of which others have a number
_NUMBERED = re.compile(rf"({'|'.join(SEVERAL)})_[1-9]\d*")


@dataclasses.dataclass(frozen=True)
class Folder:
    """A local folder of a pipeline in the layout of diffusers, and how it is to be loaded."""

    path: pathlib.Path
    index: dict[str, Any]  # of `model_index.json`
    mesh: Mesh
    spec: MeshSpec  # of the mesh
    dtype: str | None = None  # of parameters and activations; None: as stored, computed in float32 unless bfloat16
    variant: str | None = None  # part of the weights' file names, such as fp16
    sampler: str | None = None  # name or class of the scheduler to use; None: the folder's

    @property
    def kind(self) -> str:
        """Class of the pipeline."""
        return str(self.index.get("_class_name"))

    def holds(self, part: str) -> bool:
        """Whether the pipeline has a part. Of several ControlNets or T2I-Adapters the index names the folder of the
        first one."""
        entry = self.index.get(part)
        if match := _NUMBERED.fullmatch(part):
            return self.index.get(match[1], [None])[-1] == SEVERAL[match[1]] and (self.path / part).is_dir()
        return isinstance(entry, list) and bool(entry) and entry[-1] is not None

    def model(self, part: str, wanted: type, weights: bool = True) -> Pretrained:
        """A network with weights on the mesh, or without them. Raises `UserError` for one that is missing or of another
        kind."""
        self._check(part)
        dtype = self.dtype
        if part == "vae" and dtype == "float16":
            dtype = "float32"  # the released autoencoders overflow float16
        where = self.path / part, wanted
        if weights:
            found = load_pretrained(*where, variant=self._variant(part), dtype=dtype, mesh=self.mesh)
            stored = {leaf.dtype.name for leaf in jax.tree.leaves(found.params)}
        else:
            config, tensors, fields = open_pretrained(*where, self._variant(part))
            found, stored = Pretrained(config, {}, fields), {np.dtype(t.dtype).name for t in tensors.values()}
        activations = dtype or ("bfloat16" if stored == {"bfloat16"} else "float32")
        return dataclasses.replace(found, config=_with_dtype(found.config, activations))

    def scheduler(self) -> Scheduler:
        """The scheduler, read. Raises `UserError` for what we do not have."""
        self._check("scheduler")
        return read_scheduler(self.path / "scheduler", self.sampler)

    def tokenizer(self, length: int, part: str = "tokenizer", llama: bool = False) -> Tokenizer:
        """A tokenizer, for texts of so many tokens; `llama` and errors are those of `open_tokenizer`."""
        self._check(part)
        return open_tokenizer(self.path / part, length, llama)

    def fields(self, file: str) -> dict[str, Any]:
        """An object of a file of the folder; empty where there is none."""
        return read_json(self.path / file) if (self.path / file).is_file() else {}

    def _check(self, part: str) -> None:
        if not self.holds(part) or not (self.path / part).is_dir():
            raise UserError(f"{self.path} has no {part}/, which {self.kind} needs; permitted: the whole folder of a "
                            "pipeline")

    def _variant(self, part: str) -> str | None:
        """The variant, for the parts that have one: pipelines mix them."""
        if self.variant is None or not any((self.path / part).glob(f"*.{self.variant}.*")):
            return None
        return self.variant


def _with_dtype(config: Any, dtype: str) -> Any:
    """A network's config with other activations; of a ControlNet, those of the U-Net that it is a half of."""
    if isinstance(config, ControlNet | SparseControlNet):
        return dataclasses.replace(config, unet=_with_dtype(config.unet, dtype))
    return dataclasses.replace(config, dtype=dtype)


def open_folder(
    path: str | os.PathLike, *, dtype: str | None = None, variant: str | None = None, mesh: MeshSpec | None = None,
    scheduler: str | None = None, devices: Sequence[jax.Device] | None = None,
) -> Folder:
    """A pipeline's folder; nothing is loaded yet.

    Raises `UserError` where there is none, for an unknown dtype or scheduler, and for a variant that no part has.
    """
    if scheduler is not None:
        class_named(scheduler)
    path = pathlib.Path(path)
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r}; permitted: {', '.join(DTYPES)}, or none for what is stored")
    if not (path / INDEX).is_file():
        raise UserError(f"{path} has no {INDEX}; permitted: the local folder of a pipeline in the layout of diffusers")
    if variant is not None and not any(path.glob(f"*/*.{variant}.*")):
        raise UserError(f"variant={variant!r}: {path} has no files of that variant; permitted: part of the names of "
                        "its .safetensors files, such as fp16, or none")
    # One device unless a mesh is asked for.
    made = make_mesh(MeshSpec(), jax.devices()[:1]) if mesh is None else make_mesh(mesh, devices)
    return Folder(path, read_json(path / INDEX), made, mesh or MeshSpec(), dtype, variant, scheduler)


def save_folder(
    path: str | os.PathLike, source: Folder, models: dict[str, Pretrained], scheduler: Scheduler | None = None
) -> None:
    """Writes a pipeline as a folder that diffusers loads; what has no weights is copied from where it came from, but
    for a `scheduler` of another class or with other options than the folder's.

    Raises `UserError` for a folder that has a pipeline already, or cannot be written.
    """
    path = pathlib.Path(path)
    if (path / INDEX).exists():
        raise UserError(f"{path} has {INDEX} already; permitted: a new or empty folder")
    index = dict(source.index)
    for part, model in models.items():
        save_pretrained(path / part, model)
        if not _NUMBERED.fullmatch(part):  # the first one stands for all
            name = SEVERAL[part] if f"{part}_1" in models else kind_of(model.config).name
            index[part] = [(index.get(part) or [None])[0] or "diffusers", name]
    kept = {name: [None, None] if isinstance(value, list) and name not in (*models, *COPIED) else value
            for name, value in index.items()}
    try:
        for part in COPIED:
            if source.holds(part) and (source.path / part).is_dir():
                shutil.copytree(source.path / part, path / part, dirs_exist_ok=True)
        stated = read_json(path / "scheduler" / "scheduler_config.json") if scheduler is not None else {}
        if scheduler is not None and (stated.get("_class_name") != scheduler.name or {
                k: v for k, v in stated.items() if not k.startswith("_")} != scheduler.stated):
            kept["scheduler"] = ["diffusers", scheduler.name]
            (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(
                {"_class_name": scheduler.name, **scheduler.stated}, indent=2) + "\n", encoding="utf-8")
        (path / INDEX).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} was not written: {error}") from error
