"""The one exception a user is meant to see, and how a reader goes on past a problem.

A reader of something that may have several things wrong calls ``report(problem)`` for each. ``refuse``, the
default everywhere, raises at the first; a list's ``append`` collects all of them (``wsss.datasets.check``).
"""

import contextlib
import typing
from collections.abc import Callable, Iterator


class UserError(Exception):
    """Bad input. The message is one line: the file or option at fault, what is wrong, the remedy.

    Commands print it as ``error: ...`` and exit with status 2, without a traceback.
    """


Report = Callable[[str], None]  # takes a problem: one line, as the message of a UserError


def refuse(problem: str) -> typing.NoReturn:
    """The ``Report`` that raises at the first problem."""
    raise UserError(problem)


@contextlib.contextmanager
def passed_to(report: Report) -> Iterator[None]:
    """Hand a ``UserError`` of the block to ``report``; what is left of the block is skipped."""
    try:
        yield
    except UserError as error:
        if report is refuse:
            raise
        report(str(error))
