"""Other names of directories whose own names orbax does not understand.

Orbax searches directories by patterns without escaping their names, and hands names to libraries that want UTF-8. So a
path with `[`, `*`, `?`, a backslash or bytes that are not UTF-8 could be written and never read again. It is given a
symbolic link with a plain name instead, in a folder of the user in the temporary directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from pathlib import Path

from vdm_jax.errors import UserError

_PATTERNS = re.compile(r"[\[\]*?\\]")


def plain_name(path: str) -> str:
    """`path`, or a link to it where its name holds what patterns or UTF-8 do not allow. The path need not exist.

    The link has the same name in every process with the same temporary directory, since orbax compares names.
    Raises `UserError` when no link can be made.
    """
    if not _PATTERNS.search(path) and path.isprintable():
        return path
    folder = Path(tempfile.gettempdir()) / f"vdm_jax_{os.getuid()}"
    link = folder / hashlib.sha256(os.fsencode(path)).hexdigest()[:24]
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder} is not ours")
        with contextlib.suppress(FileExistsError):
            link.symlink_to(path)
        if os.readlink(link) != path:
            raise FileExistsError(f"{link} leads elsewhere")
    except OSError as error:
        raise UserError(f"{path!r} has a name that needs a link in {folder} ({error}); permitted: a path of letters, "
                        "digits and the like, or another TMPDIR") from error
    return str(link)
