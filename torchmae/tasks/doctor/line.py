"""A line of `mae doctor`."""

from typing import NamedTuple

OK, NOTE, WRONG = "ok", "note", "WRONG"


class Line(NamedTuple):
    """What was looked at, its state (`OK`, `NOTE` or `WRONG`), what is known or to be done."""

    name: str
    state: str
    about: str = ""


def judged(name: str, right: bool, about: str, remedy: str) -> Line:
    """`OK` with what is known, or `WRONG` with what to do too."""
    return Line(name, OK, about) if right else Line(name, WRONG, f"{about}: {remedy}")
