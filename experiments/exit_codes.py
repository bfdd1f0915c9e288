"""How the scripts of these folders end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from vdm_jax.errors import UserError


def exit_code(name: str, work: Callable[[], Any]) -> int:
    """That of a script: 2 where it is refused, 130 where it is stopped; the reason in one line."""
    try:
        work()
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"{name}: {str(stop) or 'stopped; the same command goes on'}", file=sys.stderr)
        return 130
    return 0
