"""What can go wrong, for people: a mistake of theirs (exit code 2) or a run that failed (1, or 65 when the loss broke)."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """What was given is wrong. The message says what was given, what is allowed and what to do, in at most a few lines."""

    exit_code = 2


class RunError(RuntimeError):
    """A correct request that could not be carried out (full disk, out of memory, a loss that broke)."""

    def __init__(self, message: str, exit_code: int = 1):
        super().__init__(message)
        self.exit_code = exit_code


def choose(options: Mapping[str, T], name: str, what: str) -> T:
    """`options[name]`, or a `UserError` that lists what is allowed and suggests the nearest name."""
    if name in options:
        return options[name]
    near = difflib.get_close_matches(name, options, n=1)
    raise UserError(
        f"unknown {what} '{name}'; one of: {', '.join(options)}{f'. Did you mean {near[0]}?' if near else ''}"
    )


def missing_extra(package: str, extra: str) -> UserError:
    """The one-line hint for an optional library that is not installed."""
    return UserError(f'this needs the package "{package}": pip install "torchmae[{extra}]"')
