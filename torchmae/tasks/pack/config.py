"""The settings of `mae pack`."""

from dataclasses import dataclass
from typing import ClassVar

from torchmae.data.config import DecodeOptions
from torchmae.errors import UserError
from torchmae.settings.groups import LabelledListingOptions
from torchmae.settings.options import WIDTH, Range, argument, check_ranges, hidden, option


@dataclass(frozen=True)
class PackDecodeOptions(DecodeOptions):
    """How images that are made smaller are decoded; their channels stay."""

    channels: int | None = hidden(None)


@dataclass(frozen=True)
class Pack:
    """Pack image files into tar shards with an index, which every verb takes as DATA; the files
    stay as they are.

    Images with a longer short side than --size are made smaller and become JPEGs, all others keep
    their bytes. The same command resumes after any interruption.
    """

    GROUP: ClassVar[str] = "output"

    data: str = argument(
        "image files, as for mae pretrain; with --verify: a packed set", "DATA", images=True
    )
    out: str = option(
        "shards", "Folder for the shards: a new one, or that of the same command.", metavar="FOLDER"
    )
    size: int | None = option(
        None, "Pixels of the short side of larger images.", within=WIDTH, otherwise="320"
    )
    quality: int | None = option(
        None,
        "Of the JPEGs that are made, 1 to 100.",
        within=Range(at_least=1, at_most=100),
        otherwise="90",
    )
    lossless: bool = option(False, "Copy every file as it is, whatever its size.")
    drop_duplicates: bool = option(
        False, "Skip files whose bytes are those of an earlier one. They are listed in any case."
    )
    shard_mb: float = option(
        256.0,
        "A shard is closed when it has so many megabytes.",
        within=Range(above=0, at_most=1e6),
    )
    workers: int | None = option(
        None,
        "Threads; the result does not depend on them.",
        within=Range(above=0, at_most=1024),
        otherwise="one a core",
    )
    verify: bool = option(False, "Pack nothing; compare the shards of DATA with their SHA-256.")
    listing: LabelledListingOptions = LabelledListingOptions()
    decode: PackDecodeOptions = PackDecodeOptions()


def check(config: Pack) -> None:
    """Raises UserError for what is known to be wrong before any file is read."""
    check_ranges(config)
    for name in ("size", "quality"):
        if config.lossless and getattr(config, name) is not None:
            raise UserError(
                f"--{name} is for images that are made smaller, --lossless makes none: leave one "
                "of them out"
            )
