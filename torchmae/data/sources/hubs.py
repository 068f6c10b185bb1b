"""Images in data sets of other libraries: torchvision and Hugging Face."""

import hashlib
import os
import re
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from torchmae.data.decode import BadImage, from_pil
from torchmae.data.sources.source import Pixels, Source, distinct, options_of, sampled
from torchmae.errors import UserError, choose, missing_extra


class TorchVision(Source):
    """A torchvision data set, whose items are (image, class) pairs."""

    named = False

    def __init__(self, data: Any, prefix: str):
        self.data = data
        self.prefix = prefix
        names = getattr(data, "classes", None) or []  # those of ImageNet are tuples of synonyms
        self.classes = distinct([", ".join(n) if isinstance(n, tuple) else str(n) for n in names])

    @cached_property
    def stored_channels(self) -> int:  # type: ignore[override]  # once it is known what is white
        """The most that some of the images have: some sets mix grey with colour."""
        found = [1]
        for i in np.unique(np.linspace(0, len(self) - 1, 8).astype(int)).tolist():
            with suppress(BadImage):
                found.append(self.read(i).shape[2])
        return max(found)

    def __len__(self) -> int:
        return len(self.data)

    def name(self, i: int) -> str:
        return f"{self.prefix}[{i}]"

    def label(self, i: int) -> str | None:
        targets = getattr(self.data, "targets", None)
        targets = getattr(self.data, "labels", None) if targets is None else targets
        try:
            target = int(self.data[i][1] if targets is None else targets[i])
        except (TypeError, ValueError, IndexError, KeyError):
            return None
        if target < 0:  # how torchvision's sets mark images without a label
            return None
        return self.classes[target] if target < len(self.classes) else str(target)

    def read(self, i: int) -> Pixels:
        item = self.data[i]
        image = item[0] if isinstance(item, tuple) else item
        if isinstance(image, Image.Image):
            return from_pil(image, self.decode.white)
        tensor = not isinstance(image, np.ndarray)
        pixels = np.asarray(image)
        pixels = (
            pixels[..., None]
            if pixels.ndim == 2
            else np.moveaxis(pixels, 0, -1)
            if tensor
            else pixels
        )
        if pixels.dtype != np.uint8 or pixels.ndim != 3:
            raise BadImage(f"{pixels.dtype} {list(pixels.shape)} is no uint8 image")
        return pixels

    def fingerprint(self) -> str:
        return sampled(self, self.prefix, count=32)

    def stamp(self) -> str | None:
        return None


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
        data = build(**{key: _literal(value) for key, value in arguments.items()})
    except Exception as error:  # each of its data sets fails in its own way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"torchvision:{spec}: {reason} (to download: &download=true)") from error
    if len(data) == 0:
        raise UserError(f"torchvision:{spec}: no images")
    return TorchVision(data, name)


class HuggingFace(Source):
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
        return None if value is None or value < 0 else self.classes.features[column].int2str(value)

    def read(self, i: int) -> bytes:
        item = self.images[i][self.image]
        if item is None:
            raise BadImage("no image in this row")
        if item["bytes"] is not None:
            return item["bytes"]
        with open(item["path"], "rb") as file:
            return file.read()

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
    import datasets

    if isinstance(data, dict):
        split = options.get("split", "train" if "train" in data else next(iter(data)))
        data = choose(data, split, f"split of '{name}'")
    columns = {
        column: kind for column, kind in data.features.items() if isinstance(kind, datasets.Image)
    }
    if not columns or len(data) == 0:
        raise UserError(
            f"hf:{spec}: no images; {len(data)} rows with the columns {', '.join(data.features)}"
        )
    image = options.get("column", next(iter(columns)))
    choose(columns, image, f"image column of '{name}'")
    label = next(
        (column for column, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)),
        None,
    )
    return HuggingFace(data, os.path.basename(name.rstrip("/")), image, label)


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


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    parts = text.split(",")
    if not all(re.fullmatch(r"-?\d+", part) for part in parts):
        return text
    return int(text) if len(parts) == 1 else tuple(map(int, parts))
