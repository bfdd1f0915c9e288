"""Why writing to a disk failed, from the errors of the libraries that write."""

from __future__ import annotations

import errno
import os
import re

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # full disk, quota, limit of file size


def write_failure(error: BaseException | None) -> str | None:
    """Why writing failed, in words for the user; None if it was not the disk."""
    while error is not None:
        # tensorstore raises ValueErrors that carry the system's error number in their text.
        number = getattr(error, "errno", None)
        if match := re.search(r"os_error_code='(\d+)'", str(error)):
            number = int(match[1])
        if number is not None:
            return f"no space left ({os.strerror(number)})" if number in _NO_SPACE else os.strerror(number)
        error = error.__cause__ or error.__context__
    return None
