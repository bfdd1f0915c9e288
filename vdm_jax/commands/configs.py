"""Finding configs: by name in `configs/`, or by path to a Python file of the user's own."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import re
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING

from vdm_jax.configuration import todays_name
from vdm_jax.errors import UserError
from vdm_jax.versions import PACKAGE

if TYPE_CHECKING:  # names and headers of configs are read without JAX
    from vdm_jax.stages.autoencoding import AnyExperiment
    from vdm_jax.stages.stage import Experiment


def config_folder() -> Path:
    """The folder of shipped configs: next to the package in a checkout, installed with it otherwise."""
    beside = PACKAGE.parent / "configs"
    if beside.is_dir():
        return beside
    spec = importlib.util.find_spec("vdm_jax_configs")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the shipped configs are not installed; permitted: a path to a config file")
    return Path(next(iter(spec.submodule_search_locations)))


def config_names() -> dict[str, Path]:
    """Shipped configs by name ('captioned_digits', 'vdm/ucf101')."""
    folder = config_folder()
    paths = (p for p in sorted(folder.rglob("*.py")) if not p.name.startswith("_"))
    return {p.relative_to(folder).with_suffix("").as_posix(): p for p in paths}


@dataclasses.dataclass(frozen=True)
class Header:
    """What the docstring of a config says: a first line, then paragraphs that begin with `Word:`."""

    title: str
    sections: dict[str, str]  # Citation, Hardware, Expected, Run; each on one line

    @property
    def published(self) -> str:
        """The published result to compare with."""
        return STATUS.sub("", self.sections.get("Expected", "")).strip()

    @property
    def status(self) -> str:
        """Whether we have trained it: only where the header says so."""
        said = STATUS.search(self.sections.get("Expected", ""))
        return "trained" if said and said[0] == "Trained by us." else "not trained by us"


STATUS = re.compile(r"\b(Not trained|Trained) by us\.")  # in a config's header, under Expected


def read_header(path: Path) -> Header:
    """The header of a config file, which is not executed."""
    title, _, rest = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")
    parts = re.split(r"^(\w+): +", rest.strip(), flags=re.MULTILINE)[1:]
    return Header(title, {name: " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)})


def load_config(name: str) -> AnyExperiment:
    """The experiment of a config, given by name or as a path ending in .py.

    Raises `UserError` listing the names when there is none of that name, or when the file has no `get_config`.
    """
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"config file {name!r} does not exist; permitted: a Python file with get_config(), "
                            f"or one of {', '.join(config_names())}")
    else:
        names = config_names()
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise UserError(f"config {name!r} is unknown{hint}; permitted: {', '.join(names)}, or a path to a .py file")
        path = names[name]
    try:
        module = load_module(path)
        if not hasattr(module, "get_config"):
            raise UserError(f"config file {path} has no get_config(); permitted: a file with get_config() -> "
                            "Experiment")
        experiment = module.get_config()
    except (ImportError, TypeError) as error:
        if today := todays_name(error):
            raise UserError(f"config file {path}: {error}; permitted: {today}", "renamed") from error
        raise
    from vdm_jax.stages.autoencoding import AnyExperiment

    if not isinstance(experiment, AnyExperiment):
        raise UserError(f"get_config() in {path} returned {type(experiment).__name__}; permitted: Experiment, "
                        "AutoencoderExperiment")
    if experiment.data is None:
        raise UserError(f"config file {path}: Experiment.data=None; permitted: a data set, such as "
                        "VideoFolder(path='videos')", "Experiment.data")
    return experiment


def load_cascade(name: str) -> Experiment:
    """The experiment of diffusion stages of a config, a run or a released model's folder. Raises `UserError` as
    `load_any`, and for an autoencoder's."""
    from vdm_jax.stages.stage import Experiment

    experiment = load_any(name)
    if not isinstance(experiment, Experiment):
        raise UserError(f"config {name!r} trains an autoencoder; permitted: one of diffusion stages")
    return experiment


def load_any(name: str) -> AnyExperiment:
    """The experiment of a config, a run, an exported run or a released model's folder. Raises `UserError` where there
    is none of them."""
    if not name.endswith(".py") and name not in config_names():
        from vdm_jax.runs.directory import read_config

        for path in (Path(name), Path("runs") / name):
            if path.is_dir():
                return read_config(path)
    return load_config(name)  # says which names there are


def load_module(path: Path):
    """The Python module of a config file, executed anew. It may import `vdm_jax`; shipped configs may also import
    private files of their folder (`from vdm_jax_configs.vdm import _network`)."""
    _make_importable(config_folder())
    spec = importlib.util.spec_from_file_location(f"vdm_jax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{error.filename or path}, line {error.lineno}: {error.msg}; permitted: a Python file with "
                        "get_config()", "configs.syntax") from error
    return module


def _make_importable(folder: Path) -> None:
    """Let `vdm_jax_configs` mean the folder of shipped configs, also in a checkout that is not installed."""
    if "vdm_jax_configs" not in sys.modules:
        package = types.ModuleType("vdm_jax_configs")
        package.__path__ = [str(folder)]
        sys.modules["vdm_jax_configs"] = package
