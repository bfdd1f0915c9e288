"""What annotations name exists: every function, class and alias of the package has type hints that resolve."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from jaxtyping import AbstractArray

import vdm_jax

MODULES = sorted(module.name for module in pkgutil.walk_packages(vdm_jax.__path__, "vdm_jax."))
# Classes of TFDS that our subclass inherits name types that TFDS itself does not import.
FOREIGN = {"DigitsBuilderConfig"}


@functools.cache
def objects(module: str) -> dict[str, Any]:
    """The functions and classes that a module defines, and what its classes define, by qualified name."""
    own = {name: value for name, value in vars(importlib.import_module(module)).items()
           if getattr(value, "__module__", None) == module and (inspect.isclass(value) or function_of(value))}
    members = {f"{name}.{key}": member for name, value in own.items() if inspect.isclass(value)
               for key, member in vars(value).items()
               # `__init__` of a data class repeats its fields, those of other modules too.
               if not (key == "__init__" and dataclasses.is_dataclass(value))
               and getattr(function_of(member), "__module__", None) == module}
    return {**own, **members}


def function_of(value: Any) -> Any:
    """The plain function under decorators, or None where there is none."""
    for inner in ("fget", "func", "__func__"):
        value = getattr(value, inner, value)
    value = inspect.unwrap(value) if callable(value) else value
    return value if inspect.isfunction(value) else None


def hints(module: str, value: Any) -> dict[str, Any]:
    value = value if inspect.isclass(value) else function_of(value)
    return typing.get_type_hints(value, localns=names_for_checkers(module), include_extras=True)


@functools.cache
def names_for_checkers(module: str) -> dict[str, Any]:
    """What a module imports for type checkers alone, as commands do that answer without JAX."""
    names: dict[str, Any] = {}
    for node in ast.parse(inspect.getsource(importlib.import_module(module))).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            exec(compile(ast.Module(node.body, []), module, "exec"), names)
    return names


def walk() -> Iterator[tuple[str, str, Any]]:
    for module in MODULES:
        for name, value in objects(module).items():
            if name not in FOREIGN:
                yield module, name, value


def test_every_annotation_names_what_exists():
    wrong = []
    for module, name, value in walk():
        try:
            hints(module, value)
        except Exception as error:  # whatever a wrong annotation raises when it is read
            wrong.append(f"{module}.{name}: {error!r}")
    assert not wrong, "\n".join(wrong)


def test_the_walk_sees_functions_methods_and_properties_under_decorators():
    seen = {f"{module}.{name}" for module, name, _ in walk()}
    assert {"vdm_jax.video.arrays.to_float", "vdm_jax.runs.directory.load", "vdm_jax.networks.unet.SpaceTimeUNet",
            "vdm_jax.networks.unet.SpaceTimeUNet.__call__", "vdm_jax.data.image_folder.opened",
            "vdm_jax.generation.generator.Generated.videos"} <= seen
    assert len(seen) > 2500


def test_an_undefined_name_is_found():
    def wrong(x: NoSuchType) -> None:  # noqa: F821
        ...

    with pytest.raises(NameError, match="NoSuchType"):
        hints("vdm_jax.seeds", wrong)


def dimensions(hint: Any) -> set[str]:
    """The names of dimensions in an annotation, without what marks variadic and broadcast ones."""
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return {name.lstrip("*#") for name in hint.dim_str.split()}
    return set().union(*map(dimensions, typing.get_args(hint)), set())


def test_dimensions_have_the_names_that_the_package_says():
    """A letter of its docstring (and a digit: after a change), a number, or a word in lower case."""
    letters = "".join(re.findall(r"`([A-Z])\b", vdm_jax.__doc__))
    name = re.compile(rf"[{letters}]\d?|\d+|[a-z]{{2,}}\d?|_|\.\.\.")
    strange = {f"{module}.{of}: {dimension}" for module, of, value in walk() for hint in hints(module, value).values()
               for dimension in dimensions(hint) if not name.fullmatch(dimension)}
    assert not strange, "\n".join(sorted(strange))
