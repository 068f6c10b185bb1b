"""Images that are the items of an object: of a torch Dataset, of a list."""

import logging
import math
import os
import threading
import uuid
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped
from PIL import Image, ImageOps
from torch import Tensor

from torchmae.data.config import KINDS, DecodeOptions
from torchmae.data.decode import BadImage, Kind, check_bytes, from_pil
from torchmae.data.sources.source import Encoded, Pixels, digest_of, read_file, sampled
from torchmae.runfolder import UNKNOWN

logger = logging.getLogger(__name__)

Layout = Literal["HWC", "CHW"]

MOST_CHANNELS = 16  # of an axis that may be the channels, where the other may not
PEEKED = 8  # items of which one should have a label, if any has
# What items that are dictionaries call their parts.
IMAGES = ("image", "img", "pixel_values", "x")
LABELS = ("label", "labels", "target", "class", "y")
# By its address, an object that was opened in this process, and a name for it: another object may
# have the address later.
SEEN: dict[int, tuple["weakref.ref[Any]", str]] = {}


class Items(Encoded):
    """The items of an object with `len()` and numbers: images, or (image, label, ...).

    An image is an array [H, W] or [H, W, C], a tensor [C, H, W], a PIL image, encoded bytes, or the
    path of a file. Whatever an item raises makes it a bad image. One item is read at a time in each
    process: data sets are rarely safe in threads.

    Args:
        data: the object.
        prefix: of the names.
        labels: one for each; None: those of the items, or that `data` keeps beside them.
        held: whether the images are in memory, so that they can be recognized by their content.
    """

    named = False

    def __init__(
        self,
        data: Any,
        prefix: str,
        labels: Sequence[str | None] | None = None,
        held: bool = False,
    ):
        self.data = data
        self.prefix = prefix
        self.held = held or labels is not None
        self.given = labels
        self.guard = (os.getpid(), threading.Lock())
        if not self.held:
            self.warn_of_chance()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "guard": None}

    def __len__(self) -> int:
        return len(self.data)

    def name(self, i: int) -> str:
        return f"{self.prefix}[{i}]"

    def label(self, i: int) -> str | None:
        return self.labels[i]

    def kind(self) -> Kind:
        """What most images are; where gray and color of 8 bits are mixed, color."""
        found = super().kind()
        if found != (1, "uint8"):
            return found
        spread = np.unique(np.linspace(0, len(self) - 1, PEEKED).astype(int)).tolist()
        color = Kind(3, "uint8")
        return color if color in map(self.kind_at, spread) else found

    def item(self, i: int) -> Any:
        """What the object has at a number.

        Raises:
            IndexError: there is no such number.
            BadImage: the object raises something.
        """
        if not 0 <= i < len(self):
            raise IndexError(i)
        if self.guard is None or self.guard[0] != os.getpid():  # a lock that was held at a fork
            self.guard = (os.getpid(), threading.Lock())  # stays held in the new process
        with self.guard[1]:
            try:
                return self.data[i]
            except Exception as error:  # each of them fails in its own way
                raise BadImage(reason_of(error)) from error

    def read(self, i: int) -> bytes | Pixels:
        item = self.item(i)
        try:
            return encoded_or_pixels(part(item, IMAGES, 0), self.decode)
        except (BadImage, OSError):
            raise
        except Exception as error:
            raise BadImage(reason_of(error)) from error

    @cached_property
    def labels(self) -> list[str | None]:
        """The class of each item; None where there is none, or the item cannot be read."""
        names = class_names(self.data)
        kept = kept_labels(self.data) if self.given is None else self.given
        if kept is not None:
            return [label_text(label, names) for label in kept]
        if not any(self.label_of_item(i, names) for i in range(min(PEEKED, len(self)))):
            return [None] * len(self)
        if len(self) > 1000:
            logger.info(f"{self.prefix}: each of {len(self):,} items is read once for its label")
        return [self.label_of_item(i, names) for i in range(len(self))]

    def label_of_item(self, i: int, names: Sequence[str]) -> str | None:
        """The class in an item; why it cannot be read is said."""
        try:
            return label_text(part(self.item(i), LABELS, 1), names)
        except BadImage as error:
            logger.warning(f"{self.name(i)} has no label, since it cannot be read: {error}")
            return None

    def fingerprint(self) -> str:
        """Of images in memory, a sample of their content; else of the name that the caller gives
        them, or of this object in this process (`UNKNOWN`)."""
        if self.held:
            return sampled(self, self.prefix)
        if self.data_id is not None:
            return digest_of("data_id", self.data_id)
        return UNKNOWN + digest_of(name_here(self.data))

    def stamp(self) -> str | None:
        return None

    def warn_of_chance(self) -> None:
        """Says so where an item is another image each time it is read."""
        try:
            one, other = self.read(0), self.read(0)
        except (BadImage, OSError):  # it will be named
            return
        if not (one == other if isinstance(one, bytes) else np.array_equal(one, other)):
            logger.warning(
                f"{self.prefix}: an item is another image each time it is read, so that no "
                "training can be repeated or resumed exactly: leave random changes to the training"
            )


def name_here(data: Any) -> str:
    """A name of an object in this process; a new one each time where nothing can refer to it."""
    reference, name = SEEN.get(id(data), (None, ""))
    if reference is None or reference() is not data:
        name = uuid.uuid4().hex
        with suppress(TypeError):  # of a class that forbids it
            SEEN[id(data)] = (weakref.ref(data), name)
    return name


def reason_of(error: Exception) -> str:
    """What an object raised, in a line."""
    reason = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__


def part(item: Any, names: Sequence[str], place: int) -> Any:
    """A part of an item, by the names of a dictionary or by its place; the item alone is an
    image."""
    if isinstance(item, dict):
        return next((item[name] for name in names if name in item), None)
    if isinstance(item, tuple | list):
        return item[place] if place < len(item) else None
    return item if place == 0 else None


def encoded_or_pixels(image: Any, options: DecodeOptions) -> bytes | Pixels:
    """An image of an item, as `Source.read` returns it.

    Raises:
        BadImage: it is no image.
        OSError: it is the path of a file that cannot be read.
    """
    if isinstance(image, bytes | bytearray):
        check_bytes(len(image), options)
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return read_file(image, options)
    if isinstance(image, Image.Image):
        file = unread_file(image)
        return (
            from_pil(ImageOps.exif_transpose(image)) if file is None else read_file(file, options)
        )
    if isinstance(image, Tensor):
        return known_pixels(image.detach().cpu().numpy(), "CHW")
    if hasattr(image, "__array__"):
        return known_pixels(np.asarray(image), "HWC")
    raise BadImage(f"a {type(image).__name__} is no image")


def unread_file(image: Image.Image) -> str | None:
    """The file of a PIL image that is not decoded yet: processes would share its position."""
    name = getattr(image, "filename", None)
    if not name or getattr(image, "fp", None) is None or image.tell() != 0:
        return None
    return str(name) if os.path.isfile(name) else None


def known_pixels(pixels: np.ndarray, layout: Layout) -> Pixels:
    """An array as pixels [H, W, C] of one of `KINDS`; `BadImage` where it is none."""
    what = f"{pixels.dtype} {list(pixels.shape)}"
    if pixels.dtype.name not in KINDS:
        raise BadImage(f"{what} is no image: {', '.join(KINDS)} are read")
    if pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise BadImage(f"{what} is no image: [H, W], [H, W, C], or of tensors [C, H, W]")
    pixels = pixels[..., None] if pixels.ndim == 2 else channels_last(pixels[None], layout)[0]
    return np.array(pixels, dtype=pixels.dtype.newbyteorder("="))


def channels_last(pixels: Shaped[np.ndarray, "N ..."], layout: Layout) -> np.ndarray:
    """Images [N, H, W, C] from these or [N, C, H, W]: where one axis alone is short enough to be
    the channels, it is; else as the layout says."""
    first, last = pixels.shape[1] <= MOST_CHANNELS, pixels.shape[3] <= MOST_CHANNELS
    moved = first if first != last else layout == "CHW"
    return pixels.transpose(0, 2, 3, 1) if moved else pixels


def kept_labels(data: Any) -> Sequence[Any] | None:
    """The labels that a data set keeps beside its items, as those of torch and torchvision do."""
    inner, ids = getattr(data, "dataset", None), getattr(data, "indices", None)
    if inner is not None and ids is not None:  # torch's Subset
        of_all = kept_labels(inner)
        return None if of_all is None else [of_all[i] for i in ids]
    tensors = getattr(data, "tensors", ())  # torch's TensorDataset
    kept: list[Any] = [getattr(data, name, None) for name in ("targets", "labels")]
    for labels in (*kept, *tensors[1:2]):
        if isinstance(labels, np.ndarray | Tensor) and labels.ndim == 1:
            labels = labels.tolist()
        if isinstance(labels, list | tuple) and len(labels) == len(data):
            return labels
    return None


def class_names(data: Any) -> Sequence[str]:
    """What the numbers of classes mean, where a data set says it."""
    names = getattr(data, "classes", None)
    if names is None and hasattr(data, "dataset"):
        return class_names(data.dataset)
    plain = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return names if names and plain else ()


def label_text(label: Any, names: Sequence[str] = ()) -> str | None:
    """A label as text; None for what is none: no value, a negative number, a mask."""
    if isinstance(label, np.generic | Tensor | np.ndarray) and np.ndim(label) == 0:
        label = label.item()
    if isinstance(label, str | os.PathLike):
        return os.fspath(label)
    if isinstance(label, bool):
        return str(label)
    if not isinstance(label, int | float) or not math.isfinite(label) or label < 0:
        return None
    whole = int(label) if label == int(label) else None
    return str(label if whole is None else names[whole] if whole < len(names) else whole)
