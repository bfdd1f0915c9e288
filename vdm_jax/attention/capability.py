"""The capability table: which pattern runs on which kernel in which context.

What is not in the table is an error that lists what is; nothing ever falls back to something else.
"""

from __future__ import annotations

from vdm_jax.errors import UserError

# (kernel, context) -> names of the patterns that work there.
CAPABILITIES: dict[tuple[str, str], frozenset[str]] = {
    ("xla", "none"): frozenset({"Spatial", "Temporal", "Full"}),
}


def require(pattern: object, kernel: str, context: str) -> None:
    """Raise `UserError` unless `pattern` can run on `kernel` in `context`."""
    name = type(pattern).__name__
    if name in CAPABILITIES.get((kernel, context), ()):
        return
    permitted = sorted(f"kernel={k!r} with context={c!r}" for (k, c), names in CAPABILITIES.items() if name in names)
    raise UserError(
        f"attention kernel={kernel!r}, context={context!r} is not supported with pattern {name}; "
        f"permitted: {'; '.join(permitted) or 'nothing yet'}"
    )
