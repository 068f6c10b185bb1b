"""Images in data sets of other libraries: torchvision and Hugging Face."""

import hashlib
import inspect
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any, get_args

import numpy as np
from PIL import Image

from torchmae.data.config import KINDS, DecodeOptions
from torchmae.data.decode import BadImage, from_pil
from torchmae.data.sources.source import (
    Encoded,
    Pixels,
    Source,
    distinct,
    options_of,
    read_file,
    read_whole,
    sampled,
)
from torchmae.errors import UserError, choose, missing_extra


class TorchVision(Encoded):
    """A torchvision data set, whose items are (image, class) pairs.

    Where an item opens an image file, the file's bytes are taken in its place, so that the rules of
    `torchmae.data.decode` hold: the set would decode formats that start other programs, and images
    of any size. Sets that keep arrays (CIFAR, MNIST) return pixels.
    """

    named = False

    def __init__(self, data: Any, prefix: str):
        self.data = data
        self.prefix = prefix
        names = getattr(data, "classes", None) or []  # those of ImageNet are tuples of synonyms
        self.classes = distinct([", ".join(n) if isinstance(n, tuple) else str(n) for n in names])

    @cached_property
    def stored_channels(self) -> int:  # type: ignore[override]  # once it is known what is white
        """3 for image files; of arrays the most that some have: some sets mix grey with colour."""
        found = [1]
        for i in np.unique(np.linspace(0, len(self) - 1, 8).astype(int)).tolist():
            with suppress(BadImage, OSError):
                item = self.read(i)
                found.append(3 if isinstance(item, bytes) else item.shape[2])
        return max(found)

    def __len__(self) -> int:
        return len(self.data)

    def name(self, i: int) -> str:
        return f"{self.prefix}[{i}]"

    def label(self, i: int) -> str | None:
        kept = (getattr(self.data, name, None) for name in ("targets", "labels", "_labels"))
        targets = next((some for some in kept if some is not None), None)
        try:
            target = int(self._label_of_item(i) if targets is None else targets[i])
        except (TypeError, ValueError, IndexError, KeyError):
            return None
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"the class of {self.name(i)} cannot be read: {reason}") from error
        if target < 0:  # how torchvision's sets mark images without a label
            return None
        return self.classes[target] if target < len(self.classes) else str(target)

    def _label_of_item(self, i: int) -> Any:
        """The class in an item, whose image is not decoded for it."""
        with _opening(lambda file: Image.new("RGB", (1, 1))):
            return self.data[i][1]

    def read(self, i: int) -> bytes | Pixels:
        def take(file: Any) -> Image.Image:
            raise _Encoded(_bytes_of(file, self.decode))

        try:
            with _opening(take):
                item = self.data[i]
        except _Encoded as found:
            return found.data
        except (BadImage, OSError):
            raise
        except Exception as error:  # each of its data sets fails in its own way
            if not 0 <= i < len(self):
                raise
            reason = (str(error).strip().splitlines() or [""])[0]
            raise BadImage(f"{type(error).__name__}: {reason}") from error
        image = item[0] if isinstance(item, tuple) else item
        if isinstance(image, Image.Image):
            return from_pil(image)
        tensor = not isinstance(image, np.ndarray)
        pixels = np.asarray(image)
        pixels = (
            pixels[..., None]
            if pixels.ndim == 2
            else np.moveaxis(pixels, 0, -1)
            if tensor
            else pixels
        )
        if pixels.dtype.name not in KINDS or pixels.ndim != 3:
            raise BadImage(f"{pixels.dtype} {list(pixels.shape)} is no image")
        return pixels

    def fingerprint(self) -> str:
        return sampled(self, self.prefix, count=32)

    def stamp(self) -> str | None:
        return None


class _Encoded(BaseException):
    """An encoded image, on its way out of a data set that would decode it.

    Not an `Exception`: no set may take it for a failure of its own.
    """

    def __init__(self, data: bytes):
        super().__init__()
        self.data = data


_this_thread = threading.local()
_guard = threading.Lock()
_inside: list[Callable[..., Image.Image]] = []  # Pillow's own `open`, once for each thread inside


@contextmanager
def _opening(instead: Callable[[Any], Image.Image]) -> Iterator[None]:
    """What this thread does in place of Pillow's `open`; other threads are not affected."""

    with _guard:
        original = _inside[0] if _inside else Image.open
        _inside.append(original)

        def dispatch(file: Any, *args: Any, **options: Any) -> Any:
            mine = getattr(_this_thread, "instead", None)
            return original(file, *args, **options) if mine is None else mine(file)

        if len(_inside) == 1:
            Image.open = dispatch  # type: ignore[assignment]
    _this_thread.instead = instead
    try:
        yield
    finally:
        _this_thread.instead = None
        with _guard:
            _inside.pop()
            if not _inside:
                Image.open = original  # type: ignore[assignment]


def _bytes_of(file: Any, options: DecodeOptions) -> bytes:
    """What `Image.open` would read: a path, or a file object, which it rewinds."""
    if isinstance(file, str | bytes | os.PathLike):
        return read_file(file, options)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return read_whole(file, size, options)


def open_torchvision(spec: str) -> Source:
    """A class of torchvision.datasets with its arguments.

    "CIFAR10?root=/data&train=true&download=true".
    """
    try:
        import torchvision
    except ImportError as error:
        raise missing_extra("torchvision", "torchvision") from error
    name, arguments = options_of(spec, None)
    kinds = {kind: getattr(torchvision.datasets, kind) for kind in torchvision.datasets.__all__}
    build = choose(kinds, name, "torchvision data set")
    try:
        data = build(**typed(arguments, build))
    except Exception as error:  # each of its data sets fails in its own way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"torchvision:{spec}: {reason} (to download: &download=true)") from error
    if len(data) == 0:
        raise UserError(f"torchvision:{spec}: no images")
    return TorchVision(data, name)


class HuggingFace(Encoded):
    """A Hugging Face data set: encoded bytes of an image column, names of a class column."""

    named = False

    def __init__(self, data: Any, prefix: str, image: str, label: str | None):
        import datasets

        self.prefix = prefix
        self.image = image
        self.images = data.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        self.classes = data.select_columns([label]) if label else None

    def __len__(self) -> int:
        return len(self.images)

    def name(self, i: int) -> str:
        return f"{self.prefix}[{i}]"

    def label(self, i: int) -> str | None:
        if self.classes is None:
            return None
        ((column, value),) = self.classes[i].items()
        names = getattr(self.classes.features[column], "int2str", str)  # of classes, or values
        missing = value is None or (names is not str and value < 0)
        return None if missing else names(value)

    def read(self, i: int) -> bytes:
        item = self.images[i][self.image]
        if item is None:
            raise BadImage("no image in this row")
        if item["bytes"] is not None:
            return item["bytes"]
        return read_file(item["path"], self.decode)

    def fingerprint(self) -> str:
        import pyarrow.compute as arrow

        column = self.images.with_format("arrow")[:][self.image]
        sizes = arrow.fill_null(arrow.binary_length(arrow.struct_field(column, "bytes")), 0)
        return sampled(
            self, hashlib.sha256(sizes.to_numpy().astype(np.int64).tobytes()).hexdigest()
        )

    def stamp(self) -> str | None:
        return None


def open_hf(spec: str) -> Source:
    """A data set of the Hugging Face hub, or a folder of `save_to_disk`.

    "NAME?split=train&config=..&column=image".
    """
    name, options, data = _load_hf(spec)
    if isinstance(data, dict):
        split = options.get("split", "train" if "train" in data else next(iter(data)))
        data = choose(data, split, f"split of '{name}'")
    image, label = columns_of_hf(data, f"hf:{spec}", options.get("column"), None)
    return HuggingFace(data, os.path.basename(name.rstrip("/")), image, label)


def columns_of_hf(
    data: Any, what: str, image: str | None, label: str | None
) -> tuple[str, str | None]:
    """The columns of images and of classes, where there are classes.

    Args:
        data: a `datasets.Dataset`.
        what: its name, for messages.
        image: the column of images that is asked for; None for the first one.
        label: likewise of classes.
    """
    import datasets

    columns = dict(data.features)
    images = {name: kind for name, kind in columns.items() if isinstance(kind, datasets.Image)}
    if not images or len(data) == 0:
        raise UserError(
            f"{what}: no images; {len(data)} rows with the columns {', '.join(columns)}"
        )
    image = image or next(iter(images))
    choose(images, image, f"image column of '{what}'")
    if label is not None:
        choose(columns, label, f"column of '{what}'")
        return image, label
    classes = (name for name, kind in columns.items() if isinstance(kind, datasets.ClassLabel))
    return image, next(classes, None)


def hf_splits(spec: str) -> list[str]:
    """The splits that `spec` could mean; none if it names one."""
    data = _load_hf(spec)[2]
    return list(data) if isinstance(data, dict) and "split" not in options_of(spec, None)[1] else []


def _load_hf(spec: str) -> tuple[str, dict[str, str], Any]:
    """Name and options of `spec`, and its data set or the dictionary of its splits."""
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("datasets", "hf") from error
    name, options = options_of(spec, ("split", "config", "column"))
    path = os.path.expanduser(name)
    split = options.get("split")
    saved = any(
        os.path.exists(os.path.join(path, part)) for part in ("state.json", "dataset_dict.json")
    )
    try:
        data = (
            datasets.load_from_disk(path)
            if saved
            else datasets.load_dataset(path, options.get("config"), split=split)
        )
    except Exception as error:  # the hub, the disk and the format fail in their own ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"hf:{spec}: {reason}") from error
    if (
        saved
        and split
        and not isinstance(data, dict)
        and data.split is not None
        and str(data.split) != split
    ):
        raise UserError(f"hf:{spec}: the folder holds the split '{data.split}', not '{split}'")
    return name, options, data


def typed(arguments: Mapping[str, str], build: Callable[..., Any]) -> dict[str, Any]:
    """Options of a text as the values that a class takes: what it says is text stays text, such as
    the version "2019" of INaturalist."""
    parameters = inspect.signature(build).parameters
    values: dict[str, Any] = {}
    for name, value in arguments.items():
        kind = parameters[name].annotation if name in parameters else None
        is_text = kind is str or str in get_args(kind)
        values[name] = value if is_text else _literal(value)
    return values


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    parts = text.split(",")
    if not all(re.fullmatch(r"-?\d+", part) for part in parts):
        return text
    return int(text) if len(parts) == 1 else tuple(map(int, parts))
