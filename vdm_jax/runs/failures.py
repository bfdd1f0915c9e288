"""Why writing to a disk failed, from the errors of the libraries that write, and what they say of it meanwhile."""

from __future__ import annotations

import errno
import functools
import logging
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


@functools.cache
def quieten_orbax() -> None:
    """Silences orbax's progress messages, and its stack traces of failures, which reach the caller anyway."""
    logging.getLogger("absl").addFilter(_Quiet())
    logging.getLogger("asyncio").addFilter(_QuietTasks())


class _Quiet(logging.Filter):
    """Drops what orbax says, but for warnings."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname or record.levelno == logging.WARNING


class _QuietTasks(logging.Filter):
    """Drops what asyncio says of orbax's other writes, which fail for the same reason as the first: the caller gets
    that one."""

    def filter(self, record: logging.LogRecord) -> bool:
        failed = record.exc_info and write_failure(record.exc_info[1]) is not None
        return not (failed and "never retrieved" in record.getMessage())
