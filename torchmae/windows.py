"""Where windows lie that cover something longer than they are."""


def starts(length: int, side: int, step: int) -> list[int]:
    """Where windows of a side begin: every `step` pixels, the last one at the end."""
    last = max(0, length - side)
    return [*range(0, last, step), last]
