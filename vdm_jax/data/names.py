"""Names of files as text."""

import os


def is_utf8(name: str) -> bool:
    """Whether a file's name can be written in UTF-8, as in a table of captions or an index."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    """A file's name on one line that every terminal and file takes: other bytes and line ends as backslash escapes."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode()
