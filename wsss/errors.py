"""The one exception a user is meant to see."""


class UserError(Exception):
    """Bad input. The message is one line: the file or option at fault, what is wrong, the remedy.

    Commands print it as ``error: ...`` and exit with status 2, without a traceback.
    """
