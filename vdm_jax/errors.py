"""The two exceptions a user is meant to read."""


class UserError(ValueError):
    """Bad input from outside: a config value, a file, a caption, a checkpoint.

    The message is one line that names the field, the value and what is permitted. Commands print it without a
    stack trace and leave with exit code 2; from Python it is an ordinary `ValueError`.
    """


class NotFinite(ArithmeticError):
    """NaN or infinity where a result belongs: videos, losses, scores. The message is one line: what, and where.

    Commands print it without a stack trace and leave with exit code 1: the input was good, the result is not.
    """
