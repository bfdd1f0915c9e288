"""The fields of a model's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vdm_jax.errors import UserError


class Fields:
    """A model's `config.json`, read field by field; what it asks for and we do not have raises `UserError`."""

    def __init__(self, data: Mapping[str, Any], where: str):
        self.data, self.where = data, where

    def get(self, name: str, default: Any) -> Any:
        """A field, or what the model's class takes where it is missing; lists become tuples."""
        value = self.data.get(name)
        value = default if value is None else value
        if value is None:
            raise UserError(f"{self.where}: field {name!r} is missing")
        value = tuple(value) if isinstance(value, list) else value
        kinds = (int, float) if isinstance(default, float) else type(default)
        if default is not None and not isinstance(value, kinds):
            raise UserError(f"{self.where}: {name}={value!r}; permitted: a {type(default).__name__}")
        return value

    def require(self, **values: Any) -> None:
        """Fields that may be missing and must otherwise have this value."""
        for name, value in values.items():
            if self.data.get(name, value) != value:
                raise UserError(f"{self.where}: {name}={self.data[name]!r} is not supported; permitted: {value!r}")
