"""Images in one array: .npy, .npz, and the built-in digits."""

import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from stat import S_ISDIR
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from torchmae.data.cache.layout import free_memory
from torchmae.data.config import KINDS
from torchmae.data.formats.raster import in_megapixels
from torchmae.data.sources.npy import ArrayFile, in_one_piece, unmapped
from torchmae.data.sources.source import (
    Pixels,
    Source,
    StringArray,
    digest_of,
    has_time,
    options_of,
    sampled,
    suffix_of,
    time_of,
)
from torchmae.errors import UserError, choose, missing_extra

# A .npz unpacks into memory. Photographs shrink to half or a third, drawings and masks to a few
# hundredths; blank pixels to a two-hundredth (fastest deflate) or a thousandth (best).
SMALL, MOST_PACKED = 10**9, 100


class Arrays(Source):
    """Images that are one array [N, H, W, C] of one of `KINDS`.

    Args:
        load: returns the array, or what has its shape, type and images (`ArrayFile`), here and
            again in a process that unpickles this.
        prefix: of the names.
        labels: one for each image.
        origin: what `load` reads: a file, and which part of it.
    """

    named = False

    def __init__(
        self,
        load: Callable[[], Any],
        prefix: str,
        labels: Iterable[str] | None,
        origin: tuple[str, ...] = (),
    ):
        self.load = load
        self.prefix = prefix
        self.stamped = None
        self.time: tuple[str, int] | None = None  # of the file
        if origin:  # before it is loaded: what comes later has other times
            facts = os.stat(origin[0])
            self.stamped = digest_of(origin, *sizes_and_times(origin[0]))
            self.time = None if S_ISDIR(facts.st_mode) else (origin[0], time_of(facts))
        self.pixels = load()
        self.labels = StringArray(labels) if labels is not None else None
        self.stored_channels = int(self.pixels.shape[3])
        self.stored_dtype = self.pixels.dtype.name

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "pixels": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, pixels=state["load"]())

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, i: int) -> str:
        return f"{self.prefix}[{i}]"

    def label(self, i: int) -> str | None:
        return self.labels[i] if self.labels else None

    def read(self, i: int) -> Pixels:
        height, width = self.pixels.shape[1:3]
        in_megapixels(height, width, self.decode.max_megapixels)
        return np.array(self.pixels[i])

    def fingerprint(self) -> str:
        return sampled(self, self.pixels.shape, str(self.pixels.dtype))

    def stamp(self) -> str | None:
        return self.stamped

    def is_changed(self, i: int) -> bool:
        if self.time is None or isinstance(self.pixels, np.ndarray):  # in memory
            return False
        return not has_time(*self.time)


def sizes_and_times(path: str) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of a file, or of each file in a folder (Zarr)."""
    if not os.path.isdir(path):
        facts = os.stat(path)
        yield "", facts.st_size, time_of(facts)
    for folder, inside, files in os.walk(path):
        inside.sort()  # the order in which they are entered
        for name in sorted(files):
            file = os.path.join(folder, name)
            facts = os.stat(file)
            yield os.path.relpath(file, path), facts.st_size, time_of(facts)


def open_array(spec: str) -> Source:
    """An array [N, H, W, C], [N, C, H, W] or [N, H, W] of one of `KINDS`.

    "x.npy", "x.npz" or "x.npz?key=train&layout=NCHW".
    """
    path, options = (
        (spec, {})
        if os.path.exists(spec)
        else options_of(os.path.expanduser(spec), ("key", "layout"))
    )
    path = os.path.abspath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"'{path}' is not a file, so no array can be read from it")
    try:
        key, labels = (
            _choose_array(path, options.get("key")) if suffix_of(path) == ".npz" else ("", None)
        )
        origin = (path, key, options.get("layout", ""))
        return Arrays(partial(_open_pixels, *origin), os.path.basename(path), labels, origin)
    except UserError:
        raise
    except ARRAY_ERRORS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot read the array '{path}': {reason}") from error


# What numpy and zipfile raise for damaged files, besides their own errors.
ARRAY_ERRORS = (
    *(OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, MemoryError),
    tokenize.TokenError,
    *(SyntaxError, TypeError, OverflowError, NotImplementedError, RuntimeError, RecursionError),
)


def _open_pixels(path: str, key: str, layout: str) -> np.ndarray | ArrayFile:
    pixels = _load_array(path, key, layout)
    if isinstance(pixels, np.memmap) and not in_one_piece(pixels):
        refuse_large(
            f"'{path}' is in Fortran order and has to be loaded whole, "
            f"{pixels.nbytes / 1e9:,.1f} GB",
            pixels.nbytes,
            "save it again with numpy.save(path, numpy.ascontiguousarray(x))",
        )
    return unmapped(pixels)


def refuse_large(what: str, size: int, remedy: str) -> None:
    """Raises UserError for an array that would take more than half of the free memory."""
    free = free_memory()
    if size > free / 2:
        raise UserError(
            f"{what}, more than half of the free memory ({free / 1e9:,.1f} GB): {remedy}"
        )


def _load_array(path: str, key: str, layout: str) -> Shaped[np.ndarray, "N H W C"]:
    loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    packed = isinstance(loaded, np.lib.npyio.NpzFile)
    if packed != bool(key):
        kind, other = (".npz", ".npy") if packed else (".npy", ".npz")
        raise UserError(f"'{path}' is a {kind} named {other}: rename it to {kind}")
    pixels = loaded[key] if key else loaded
    if not pixels.dtype.isnative:
        raise UserError(f"'{path}' holds {pixels.dtype}: save it in this machine's byte order")
    first = channels_first(f"'{path}' holds {pixels.dtype}", pixels.shape, pixels.dtype, layout)
    if pixels.ndim == 3:
        return pixels[..., None]
    return pixels.transpose(0, 2, 3, 1) if first else pixels


def channels_first(what: str, shape: tuple[int, ...], dtype: np.dtype, layout: str) -> bool:
    """Whether the images of an array are [C, H, W].

    Args:
        what: the array, for messages, which its shape follows.
        shape: [N, H, W, C], [N, C, H, W] or [N, H, W].
        dtype: of its values.
        layout: "NHWC", "NCHW" or "".

    Raises:
        UserError: it holds no images, or its layout is not clear.
    """
    what = f"{what} {list(shape)}"
    if dtype.newbyteorder("=").name not in KINDS:
        raise UserError(
            f"{what}; {', '.join(KINDS)} are read: save it as one of these, such as "
            "x.astype('float32')"
        )
    if 0 in shape or len(shape) not in (3, 4) or (len(shape) == 3 and shape[2] <= 4 and not layout):
        raise UserError(f"{what}; expected images as [N, H, W, C], [N, C, H, W] or [N, H, W]")
    if len(shape) == 3:
        return False
    first, last = shape[1] <= 16, shape[3] <= 16
    if layout not in ("NHWC", "NCHW") and (layout or first == last):
        raise UserError(
            f"{what}, whose channel axis is not clear; add ?layout=NHWC or ?layout=NCHW to the name"
        )
    return layout == "NCHW" or (not layout and first)


def _choose_array(path: str, key: str | None) -> tuple[str, list[str] | None]:
    """The name of the images in a .npz, and the labels beside them."""
    with open(path, "rb") as file:
        if file.read(6) == np.lib.format.MAGIC_PREFIX:
            raise UserError(f"'{path}' is a .npy named .npz: rename it to .npy")
    with np.load(path, allow_pickle=False) as arrays, zipfile.ZipFile(path) as archive:
        members = {name: _member(archive, name) for name in arrays.files}
        shapes = {name: (shape, dtype) for name, (_, shape, dtype) in members.items()}
        key, beside = choose_array(path, shapes, key)
        _check_unpacked(path, key, *members[key])
        if beside is None:
            return key, None
        _check_unpacked(path, beside, *members[beside])
        return key, [str(value) for value in arrays[beside].ravel().tolist()]


def choose_array(
    path: str, shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]], key: str | None
) -> tuple[str, str | None]:
    """Which of the arrays in a file are the images, and which one beside them their labels.

    Args:
        path: of the file, for messages.
        shapes: shape and type of each array, by name; names may be paths with "/".
        key: the name of the images, where the user says it.

    Raises:
        UserError: there is no such array, or none or several may be meant.
    """
    fitting = [
        name
        for name, (shape, dtype) in shapes.items()
        if len(shape) in (3, 4) and dtype.name in KINDS
    ]
    usual = [
        name for name in ("images", "x", "x_train", "train", "data", "arr_0") if name in shapes
    ]
    if key is None and not (len(fitting) == 1 or usual):
        raise UserError(
            f"which of the arrays in '{path}'? Add ?key=NAME to the name, one of: "
            f"{', '.join(shapes)}"
        )
    key = key or (fitting[0] if len(fitting) == 1 else usual[0])
    choose(shapes, key, f"array in '{path}'")
    count = shapes[key][0][0] if shapes[key][0] else 0
    group = key[: key.rfind("/") + 1]
    paired = [key.replace("images", "labels"), key.replace("x", "y")]
    paired += [group + name for name in ("labels", "y", "label", "targets", "y_train")]
    for name in paired:
        if name != key and name in shapes and shapes[name][0] in ((count,), (count, 1)):
            return key, name
    return key, None


def _member(
    archive: zipfile.ZipFile, name: str
) -> tuple[zipfile.ZipInfo, tuple[int, ...], np.dtype]:
    """What a .npz says of an array: its entry in the zip directory, its shape and its type."""
    info = archive.getinfo(name if name in archive.namelist() else f"{name}.npy")
    with archive.open(info) as file:  # the header alone
        old = np.lib.format.read_magic(file) == (1, 0)
        header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
    return info, shape, dtype


def _check_unpacked(
    path: str, name: str, info: zipfile.ZipInfo, shape: tuple[int, ...], dtype: np.dtype
) -> None:
    """Raises UserError, before anything is unpacked, where an array in a .npz is not what the zip
    says, or takes too much memory."""
    size = math.prod(shape) * dtype.itemsize
    if not size <= info.file_size <= size + 2**16:  # the array's own header
        raise ValueError(
            f"'{name}' is {list(shape)} {dtype}, but the zip has {info.file_size} bytes"
        )
    amount = f"'{name}' in '{path}' unpacks to {size / 1e9:,.1f} GB"
    remedy = "save it with numpy.save as .npy, which stays on the disk and is read where needed"
    if size > SMALL and size > MOST_PACKED * info.compress_size:
        raise UserError(
            f"{amount}, {size / info.compress_size:,.0f} times its size in the file: not unpacked. "
            f"If that is meant, {remedy}"
        )
    refuse_large(amount, size, remedy)


DIGITS = {"all": slice(0, 1797), "train": slice(0, 1438), "test": slice(1438, 1797)}


def open_digits(spec: str = "") -> Source:
    """scikit-learn's 1797 handwritten digits of 8 x 8 px, enlarged to 32 x 32: no download.

    "?part=train" is the first 1438 of them, "?part=test" the last 359. The set is in the order of
    its sheets, about 130 digits of one hand each, so that nearly all of the test part is written by
    hands that are not in the training part (except 23 digits of the sheet at the seam).
    """
    name, options = options_of(spec, ("part",))
    if name:
        raise UserError(
            f"digits:{name}: there is one set of digits, and parts of it: digits?part=train, "
            "digits?part=test"
        )
    part = options.get("part", "all")
    which = choose(DIGITS, part, "part of the digits")
    prefix = "digits" if part == "all" else f"digits-{part}"
    return Arrays(
        partial(_load_digits, part), prefix, map(str, _sklearn_digits().target[which].tolist())
    )


def _load_digits(part: str) -> UInt8[np.ndarray, "N H W 1"]:
    small = np.rint(_sklearn_digits().images[DIGITS[part]] * (255 / 16)).astype(np.uint8)
    large = [
        np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC))
        for image in small
    ]
    return np.stack(large)[..., None]


def _sklearn_digits() -> Any:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing_extra("scikit-learn", "demo") from error
    return load_digits()
