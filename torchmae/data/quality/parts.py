"""Which part of a data set an image is in (train, val, ...), and its class there."""

from collections.abc import Sequence

from torchmae.data.config import DecodeOptions, Listing
from torchmae.data.labels import PART, divided
from torchmae.data.sources import open_sources
from torchmae.data.sources.files import Files
from torchmae.data.sources.select import paths_of
from torchmae.data.sources.source import Source


def open_parts(
    data: str, val: str | None, decode: DecodeOptions, listing: Listing
) -> tuple[list[Source], list[str], list[str | None]]:
    """The sets that belong together, with the part and the class of each image.

    Args:
        data: the images; its folders train/, val/, ... are parts, as are splits of Hugging Face.
        val: other images to validate on, if any.
        decode: how the images are decoded.
        listing: which of them are taken.

    Returns:
        The sets; the part of each image, set after set, "" where all are in one; its class.
    """
    splits = divided(data) if data.startswith("hf:") and val is None else None
    specs = list(splits) if splits else [data] if val is None else [data, val]
    sources = open_sources(specs, decode, listing)
    if len(sources) > 1:
        named = zip(("train", "val"), sources)
        parts = [part for part, source in named for _ in range(len(source))]
        return sources, parts, [label for source in sources for label in labels_of(source)]
    (source,) = sources
    found = [part_and_class(path) for path in paths_of(source)] if source.named else []
    first = {part for part, _ in found}
    if len(first - {""}) < 2:  # a single train/ is only a folder
        return sources, [""] * len(source), labels_of(source)
    listed = isinstance(source, Files) and source.labels is not None
    labels = labels_of(source) if listed else [label for _, label in found]
    return sources, [part or "elsewhere" for part, _ in found], labels


def labels_of(source: Source) -> list[str | None]:
    """The class of each image, if it has one."""
    return [source.label(i) for i in range(len(source))]


def part_and_class(path: str) -> tuple[str, str | None]:
    """The first folder of a path that is named like a part, and the folder in it.

    "train/cat/1.jpg" is in ("train", "cat"), "cat/1.jpg" in ("", "cat"), "1.jpg" in ("", None).
    """
    folders: Sequence[str] = path.split("/")[:-1]
    at = next((k for k, name in enumerate(folders) if PART.fullmatch(name.lower())), None)
    if at is None:
        return "", folders[0] if folders else None
    return folders[at], folders[at + 1] if at + 1 < len(folders) else None
