"""Images that a caller of the library holds in Python, as the value of a setting that names images.

Importable without torch or numpy.
"""

import os
import shlex
from typing import Any

from torchmae.errors import UserError

PREFIX = "python:"


class PythonData(str):
    """A short text for plans and config.json, such as "python:Faces-1000", with the data itself.

    Two are equal where they are the same object. No text is equal to one: what a run folder says of
    its data may be of another object that looks the same.

    Attributes:
        data: what the caller holds.
        data_id: the name that the caller gives it, by which a resumed run recognizes it.
    """

    data: Any
    data_id: str | None

    @classmethod
    def of(cls, data: Any, data_id: Any = None) -> "PythonData":
        """The value of a setting.

        Args:
            data: anything that `torchmae.data.sources.python.open_python` takes.
            data_id: a name of the caller's own.

        Raises:
            UserError: the name is no text, or empty.
        """
        if data_id is not None and (not isinstance(data_id, str) or not data_id.strip()):
            raise UserError(f"data_id={data_id!r}: a text of your own, such as 'faces-2024-05'")
        value = cls(describe(data) + (f"?data_id={data_id}" if data_id is not None else ""))
        value.data = data
        value.data_id = data_id
        return value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PythonData) and self.data is other.data

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return id(self.data)


def describe(data: Any) -> str:
    """What it is, in a word without blanks: its class, shape or length, and type of numbers; of
    (images, labels) the images."""
    pair = isinstance(data, tuple) and len(data) == 2 and hasattr(data[0], "__len__")
    if pair and not is_place(data[0]):
        return describe(data[0])
    parts = [type(data).__name__]
    shape, dtype = getattr(data, "shape", None), getattr(data, "dtype", None)
    if shape is not None and dtype is not None:
        parts += ["x".join(map(str, shape)), str(dtype).removeprefix("torch.")]
    elif hasattr(data, "__len__"):
        parts.append(str(len(data)))
    return PREFIX + "-".join(part for part in parts if part)


def is_place(value: Any) -> bool:
    """Whether a value is a path or the name of a set, as on the command line."""
    return isinstance(value, str | os.PathLike)


def as_images(value: Any, several: bool, data_id: Any) -> Any:
    """The value of a setting that names images: places as they are, all else as `PythonData`.

    Args:
        value: what the caller gave; None for nothing.
        several: whether the setting takes several places.
        data_id: the name that the caller gives its data.
    """
    if value is None or is_place(value):
        return value
    if several and isinstance(value, list | tuple) and all(map(is_place, value)):
        return value
    data = PythonData.of(value, data_id)
    return (data,) if several else data


def typed(data: str) -> str:
    """How to type the data on a command line; a placeholder for what is in Python alone."""
    return "DATA" if isinstance(data, PythonData) else shlex.quote(data)
