"""Errors for people: a mistake in the input (`UserError`) or a run that failed (`RunError`)."""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

NOT_FINITE = 65  # exit code of a training whose loss or weights are not finite


def printable(text: object, keep: str = "") -> str:
    r"""Text in which nothing can move the cursor, forge a line or turn the direction of writing.

    For what comes from outside: names of files and classes, texts in files, other libraries'
    errors. What is not printable becomes its escape, such as \x1b.

    Args:
        text: anything.
        keep: characters that stay: "\n" for messages of our own, which have lines.
    """
    return "".join(
        sign
        if sign.isprintable() or sign in keep
        else sign.encode("unicode_escape", "surrogatepass").decode()
        for sign in str(text)
    )


class UserError(ValueError):
    """The input is wrong. The message says what is wrong, what is allowed and what to do."""

    exit_code = 2


class RunError(RuntimeError):
    """A correct request that failed: disk full, out of memory, a loss that is not finite.

    Args:
        message: What failed and what to do.
        exit_code: Of the command line: 65 for a loss that is not finite, 1 for everything else.
    """

    def __init__(self, message: str, exit_code: int = 1):
        super().__init__(message)
        self.exit_code = exit_code


MOST_NAMES = 24  # names in a message, at most


def choose(options: Mapping[str, T], name: str, what: str) -> T:
    """`options[name]`, for a name that a user typed.

    Args:
        options: What is allowed, by name.
        name: The name looked up.
        what: The kind of thing, for the message: "model", "masking".

    Raises:
        UserError: No such name. The message suggests the nearest one and lists the names.
    """
    if name in options:
        return options[name]
    near, names = nearest(name, options), list(options)
    if len(names) > MOST_NAMES:
        names[MOST_NAMES:] = [f"... ({len(names)} in all)"]
    hint = f". Did you mean {near}? One" if near else "; one"
    raise UserError(f"unknown {what} '{name}'{hint} of: {', '.join(names)}")


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The option that a name is a slip of the keyboard away from; None where none is that close
    ("tensorrt" is no way of writing "safetensors")."""
    return next(iter(difflib.get_close_matches(name, list(options), n=1, cutoff=0.75)), None)


def missing_extra(package: str, extra: str) -> UserError:
    """The error for an optional package that is missing, with the command that installs it."""
    return UserError(f'this needs the package "{package}": pip install "torchmae[{extra}]"')


def library(name: str, extra: str) -> Any:
    """An optional library, or the one-line hint of how to install it."""
    package = name.partition(".")[0]
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise missing_extra(package, extra) from error
    # A folder that happens to have this name, such as what pip leaves behind, can be imported too.
    if hasattr(module, "__path__") and getattr(module, "__file__", None) is None:
        raise missing_extra(package, extra)
    return module
