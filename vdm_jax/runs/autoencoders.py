"""Weights of the autoencoders that latent stages work with: files, distinguished by their hash."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vdm_jax.errors import UserError
from vdm_jax.networks.autoencoders.kinds import NORMALISATION
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.stage import Experiment, Stage
from vdm_jax.weights.pretrained import Pretrained, load_imported, save_imported

FILE = "autoencoder.safetensors"  # in the folder of a stage of an exported run, and in that of a trained autoencoder
# Fields that decide how an autoencoder is computed and not what it is.
FREE = ("dtype", "attention_kernel")


def resolved(experiment: Experiment) -> Experiment:
    """The experiment with what the weights of its autoencoders decide: their hash, and how diffusion sees the latents.

    Raises `UserError` for weights that are missing, of another hash or of other sizes than the config says.
    """
    return dataclasses.replace(experiment, stages=tuple(
        stage if stage.latent is None else dataclasses.replace(stage, latent=_pinned(stage))
        for stage in experiment.stages))


def load_autoencoder(stage: Stage, run: Path | None = None) -> tuple[Any, ...]:
    """Weights of a stage's autoencoder on the host, as the further arguments of its programs: none for a stage that
    works on pixels.

    Args:
      stage: of a resolved experiment.
      run: the run it belongs to; one that was exported has the weights in it.

    Raises `UserError` as `resolved` does.
    """
    if stage.latent is None:
        return ()
    inside = None if run is None else run / stage.name / FILE
    path = inside if inside is not None and inside.is_file() else _file(stage)
    return (_checked(stage, path, FREE)[0].params,)


def save_autoencoder(folder: Path, stage: Stage, weights: Any) -> Latent:
    """Write the weights for an exported run; returns the stage's `Latent` with the hash of the file."""
    path = folder / stage.name / FILE
    save_imported(path, Pretrained(stage.latent.autoencoder, weights))
    return dataclasses.replace(stage.latent, sha256=_sha256(path))


def _pinned(stage: Stage) -> Latent:
    model, found = _checked(stage, _file(stage), (*FREE, *NORMALISATION))
    known = {name: getattr(model.config, name) for name in NORMALISATION if hasattr(model.config, name)}
    spec = dataclasses.replace(stage.latent.autoencoder, **known)
    return dataclasses.replace(stage.latent, autoencoder=spec, sha256=found)


def _file(stage: Stage) -> Path:
    """The file of a stage's weights."""
    given, where = stage.latent.weights, f"Stage {stage.name!r}: latent.weights={stage.latent.weights!r}"
    permitted = ("a .safetensors file that 'vdm-jax convert FOLDER/vae FILE.safetensors' wrote, or the run of a "
                 "trained autoencoder")
    if not given:
        raise UserError(f"{where} is not set; permitted: {permitted}")
    path = Path(given).expanduser()
    if path.is_dir():
        files = [path / FILE] if (path / FILE).is_file() else sorted(path.glob(f"*/{FILE}"))
        if len(files) != 1:
            found = ", ".join(map(str, files)) or "none"
            raise UserError(f"{where} is a folder with {len(files)} files {FILE} ({found}); permitted: {permitted}")
        return files[0]
    if not path.is_file():
        raise UserError(f"{where}: {path} does not exist; permitted: {permitted}")
    return path


def _checked(stage: Stage, path: Path, free: Sequence[str]) -> tuple[Pretrained, str]:
    """The model of a file and its hash; fields of its config that are `free` need not be the stage's."""
    latent, found = stage.latent, _sha256(path)
    where = f"Stage {stage.name!r}: latent"
    if latent.sha256 not in ("", found):
        raise UserError(f"{where}.sha256={latent.sha256!r}, but {path} has {found!r}: the latents would be others; "
                        "permitted: the file that the run was made with")
    model = load_imported(path)
    wanted = type(latent.autoencoder)
    if type(model.config) is not wanted:
        raise UserError(f"{where}.weights={latent.weights!r} holds a {type(model.config).__name__}; permitted: "
                        f"{'an' if wanted.__name__.startswith('A') else 'a'} {wanted.__name__}")
    for field in dataclasses.fields(wanted):
        ours, theirs = (getattr(spec, field.name) for spec in (latent.autoencoder, model.config))
        if ours != theirs and field.name not in free:
            raise UserError(f"{where}.autoencoder.{field.name}={ours!r}, but {path} has {theirs!r}; permitted: the "
                            "sizes of the weights")
    return model, found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
