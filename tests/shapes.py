"""The check of shapes and dtypes that the suite runs over the package: what jaxtyping says of arrays, at each call.

`tests/conftest.py` installs it. beartype sees the annotations of arrays alone, and it sees arguments and result
together, after the call: whatever the package itself refuses stays its own to refuse, by a `UserError`. Fields of data
classes are left out: JAX takes them for trees, and builds them of shardings, axes and rows of a batch too.
"""

import builtins
import inspect
import re
import typing

import jax
import jaxtyping
import numpy as np
from beartype import beartype
from jaxtyping import AbstractArray

RESULT = re.compile(r"ret\d+")  # the argument by which jaxtyping hands the result of a call to its check


NAME = re.compile(r"[A-Za-z_]\w*")
JAXTYPED = jaxtyping.jaxtyped


def jaxtyped_where_arrays_are(*arguments, **options):
    """`jaxtyping.jaxtyped` for functions whose annotations may say something of arrays; others stay as they are, since
    its wrapper takes a third of the time of tracing a network. Set it before modules are imported by the hook."""
    if arguments:
        return JAXTYPED(*arguments, **options)
    decorate = JAXTYPED(**options)
    return lambda found: decorate(found) if inspect.isfunction(found) and may_be_of_arrays(found) else found


def may_be_of_arrays(function) -> bool:
    """Whether a name in the annotations means an array, or nothing yet."""
    names = {name for hint in function.__annotations__.values() for name in NAME.findall(str(hint))}
    for name in names - vars(builtins).keys():
        value = function.__globals__.get(name, name)
        if value == name or getattr(value, "__module__", "") == "jaxtyping" or of_array(value):
            return True
    return False


def of_array(hint) -> bool:
    """Whether an annotation says something about the shape or dtype of an array."""
    if not (isinstance(hint, type) and issubclass(hint, AbstractArray)):
        return any([of_array(part) for part in typing.get_args(hint)])  # all of them: it also widens them
    if hint.array_type is jax.Array:
        hint.array_type = jax.Array | np.ndarray  # JAX takes numpy's arrays wherever it takes its own
    return True


def checked(signature, *_, **__):
    """A function of the same arguments that checks them, for `jaxtyping.install_import_hook`."""
    result = any(map(RESULT.fullmatch, signature.__annotations__)) and signature.__name__ != "__init__"
    arrays = {name: hint for name, hint in signature.__annotations__.items() if of_array(hint)}
    signature.__annotations__ = arrays if result else {}
    return beartype(signature) if signature.__annotations__ else signature
