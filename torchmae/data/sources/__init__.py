"""Where images come from. A source lists, labels and reads its images, and owns their
`DecodeOptions`.

A new kind of source is one opener in `SOURCES`. Every source pickles, and works in forked workers.
Names are kept as one block of bytes: a list of Python strings would be copied page by page into
every forked worker, because reading a string writes its reference count.
"""

import os
import re
from collections.abc import Callable

from torchmae.data.config import DecodeOptions
from torchmae.data.sources.arrays import open_array, open_digits
from torchmae.data.sources.files import open_folder, open_list
from torchmae.data.sources.hubs import open_hf, open_torchvision
from torchmae.data.sources.packed import open_packed
from torchmae.data.sources.source import BadFile as BadFile
from torchmae.data.sources.source import Source as Source
from torchmae.data.sources.source import StringArray as StringArray
from torchmae.data.sources.source import with_decode as with_decode
from torchmae.data.sources.tars import open_tar
from torchmae.errors import UserError, choose

Opener = Callable[[str], Source]


def open_source(spec: str | os.PathLike[str], decode: DecodeOptions = DecodeOptions()) -> Source:
    """The images that `spec` names.

    Args:
        spec: a folder, list (.txt, .csv), tar shards, packed set, array (.npy, .npz), or
            "kind:what".
        decode: how they are decoded.

    Raises:
        UserError: there is no such set, or it cannot be opened, or `decode` is impossible.
    """
    decode.check()
    return with_decode(_open(os.fspath(spec)), decode)


def _open(spec: str) -> Source:
    kind, colon, rest = spec.partition(":")
    if kind in SOURCES and colon:
        return SOURCES[kind](rest)
    if spec.partition("?")[0] == "digits" and not os.path.exists(spec):
        return open_digits(spec.removeprefix("digits"))
    path = os.path.expanduser(spec)
    if os.path.isdir(path):
        return open_folder(path)
    whole = os.path.exists(path) or path.lower().endswith(
        ".tar"
    )  # "?" may also be a wildcard of a tar's name
    suffix = os.path.splitext(path if whole else path.partition("?")[0])[1].lower()
    by_suffix = {".txt": "list", ".csv": "list", ".tar": "tar", ".npy": "array", ".npz": "array"}
    if suffix in by_suffix:
        return SOURCES[by_suffix[suffix]](path)
    if os.path.exists(path):
        raise UserError(
            f"'{spec}' is no source: give a folder, .txt, .csv, .tar, .npy, .npz or one of "
            f"{_kinds()}"
        )
    if colon and re.fullmatch(r"\w{2,}", kind):
        choose(SOURCES, kind, "kind of source")
    raise UserError(f"no such folder or file: '{spec}' (or one of {_kinds()})")


def _kinds() -> str:
    return "torchvision:NAME, hf:NAME, digits"


SOURCES: dict[str, Opener] = {
    "folder": open_folder,
    "list": open_list,
    "tar": open_tar,
    "packed": open_packed,
    "array": open_array,
    "torchvision": open_torchvision,
    "hf": open_hf,
    "digits": open_digits,
}
