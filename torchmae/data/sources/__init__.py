"""Where images come from. A source lists, labels and reads its images, and owns their
`DecodeOptions`.

A new kind of source is one opener in `SOURCES`. Every source pickles, and works in forked workers.
Names are kept as one block of bytes: a list of Python strings would be copied page by page into
every forked worker, because reading a string writes its reference count.
"""

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from torchmae.data.config import DecodeOptions, Listing
from torchmae.data.sources.arrays import open_array, open_digits
from torchmae.data.sources.cloud.address import open_address
from torchmae.data.sources.cloud.ranges import is_url
from torchmae.data.sources.containers.chunks import is_zarr, open_hdf5, open_zarr
from torchmae.data.sources.containers.parquet import only_parquet, open_parquet
from torchmae.data.sources.files import is_glob, open_folder, open_glob
from torchmae.data.sources.hubs import open_hf, open_torchvision
from torchmae.data.sources.lists import open_list
from torchmae.data.sources.packed import is_packed, open_packed
from torchmae.data.sources.python import open_python
from torchmae.data.sources.select import select_all
from torchmae.data.sources.source import BadFile as BadFile
from torchmae.data.sources.source import Source as Source
from torchmae.data.sources.source import StringArray as StringArray
from torchmae.data.sources.source import redecoded, refuse_other_kind, with_slices
from torchmae.data.sources.source import with_decode as with_decode
from torchmae.data.sources.tars import open_tar
from torchmae.data.sources.tiles import with_tiles
from torchmae.errors import UserError, choose, nearest
from torchmae.settings.python_data import PythonData

Opener = Callable[..., Source]  # of a text; those of `TABLES` take columns too


def open_source(
    spec: str | os.PathLike[str],
    decode: DecodeOptions = DecodeOptions(),
    listing: Listing = Listing(),
) -> Source:
    """The images that `spec` names.

    Args:
        spec: a folder, pattern of paths, list (.txt, .csv, .tsv, .jsonl), tar or Parquet
            shards, packed set, array (.npy, .npz, .zarr, .h5), or "kind:what"; a `PythonData` for
            what is in Python already.
        decode: how they are decoded.
        listing: which of them are taken.

    Raises:
        UserError: there is no such set, or it cannot be opened, or `decode` is impossible, or a
            pattern of `listing` matches nothing.
    """
    return open_sources([os.fspath(spec)], decode, listing)[0]


def open_sources(specs: Sequence[str], decode: DecodeOptions, listing: Listing) -> list[Source]:
    """Sets that belong together; a pattern or column need only be in one of them."""
    decode.check()
    places = [find_kind(spec) for spec in specs]
    columns = listing.columns
    if columns and all(kind not in TABLES for kind, _ in places):
        flag = f"--{next(iter(columns)).replace('_', '-')}"
        raise UserError(
            f"{flag} is for tables (.csv, .tsv, .jsonl, .parquet), and {specs[0]} is none: leave "
            "it out"
        )
    named: dict[str, dict[str, Any]] = {
        **dict.fromkeys(TABLES, columns),
        "cloud": {"cloud_cache": listing.cloud_cache},
    }
    opened = [SOURCES[kind](what, **named.get(kind, {})) for kind, what in places]
    chosen = select_all(opened, listing, specs[0])
    return [as_images(source, decode, listing) for source in chosen]


def as_images(source: Source, decode: DecodeOptions, listing: Listing) -> Source:
    """Files as the images that they hold: slices, tiles."""
    # To count the pages of a TIFF is to read it: not of images that are too large for that.
    slices = with_slices(redecoded(source, decode), stacks=not listing.tile)
    images = with_tiles(slices, listing)
    refuse_other_kind(images)
    return images


def find_kind(spec: str) -> tuple[str, str]:
    """What opens a set, a name in `SOURCES`, and what it is given."""
    if isinstance(spec, PythonData):
        return "python", spec
    if is_url(spec):
        return "cloud", spec
    kind, colon, rest = spec.partition(":")
    if kind in SOURCES and colon:
        return kind, rest
    if spec.partition("?")[0] == "digits" and not os.path.exists(spec):
        return "digits", spec.removeprefix("digits")
    path = os.path.expanduser(spec)
    if os.path.isdir(path):
        return kind_of_folder(path), path
    whole = os.path.exists(path) or path.lower().endswith(
        ".tar"
    )  # "?" may also be a wildcard of a tar's name
    suffix = os.path.splitext(path if whole else path.partition("?")[0])[1].lower()
    if is_glob(path) and suffix not in (".tar", ".parquet"):
        return "glob", path
    if suffix in BY_SUFFIX:
        return BY_SUFFIX[suffix], path
    if os.path.exists(path):
        hint = f" ({REMEDIES[suffix]})" if suffix in REMEDIES else ""
        raise UserError(
            f"'{spec}' is no source{hint}: give a folder, {', '.join(BY_SUFFIX)} or one of "
            f"{_kinds()}"
        )
    if colon and re.fullmatch(r"\w{2,}", kind):
        choose(SOURCES, kind, "kind of source")
    folder = os.path.dirname(path.rstrip("/"))
    beside = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    near = nearest(os.path.basename(path.rstrip("/")), beside)
    hint = f". Did you mean {os.path.join(folder, near)}?" if near else ""
    raise UserError(f"no such folder or file: '{spec}' (or one of {_kinds()}){hint}")


def kind_of_folder(path: str) -> str:
    """What opens a folder, a name in `SOURCES`."""
    if is_zarr(path):
        return "zarr"
    return "parquet" if not is_packed(path) and only_parquet(path) else "folder"


# What to do with files that hold images in a way that is not read.
REMEDIES = {
    ".zip": "unzip it first",
    **dict.fromkeys((".gz", ".tgz", ".bz2", ".xz"), "unpack it first; a plain .tar is read"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save the table as .csv"),
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".tif", ".tiff"), "one image: name its folder"),
}


BY_SUFFIX = {
    ".txt": "list",
    ".csv": "list",
    ".tsv": "list",
    ".jsonl": "list",
    ".tar": "tar",
    ".npy": "array",
    ".npz": "array",
    ".zarr": "zarr",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".parquet": "parquet",
}


TABLES = ("list", "parquet", "python")  # have columns


def _kinds() -> str:
    return "torchvision:NAME, hf:NAME, digits"


SOURCES: dict[str, Opener] = {
    "folder": open_folder,
    "glob": open_glob,
    "list": open_list,
    "tar": open_tar,
    "packed": open_packed,
    "array": open_array,
    "zarr": open_zarr,
    "hdf5": open_hdf5,
    "parquet": open_parquet,
    "cloud": open_address,
    "torchvision": open_torchvision,
    "hf": open_hf,
    "digits": open_digits,
    "python": open_python,
}
