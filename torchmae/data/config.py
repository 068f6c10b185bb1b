"""Which images of a set are taken, and how they become pixels. Importable without torch or
numpy."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torchmae.errors import UserError, choose
from torchmae.runfolder import CONFIG, read_any_config
from torchmae.settings.groups import PatternOptions
from torchmae.settings.options import (
    CHANNELS,
    MEGAPIXELS,
    check_ranges,
    flatten,
    option,
)

# What pixels may be, from decoding to the device. Those of 8 bits are shares of white, all others
# are the values themselves.
KINDS = ("uint8", "uint16", "int16", "float16", "float32")


OF_PIXELS = f"The type of pixels: {', '.join(KINDS)}."


@dataclass(frozen=True)
class DecodeOptions:
    """How encoded images become pixels. A source owns one (`Source.decode`).

    Args:
        max_megapixels: larger images are refused, from the header, before anything is decoded.
        channels: of the decoded images; None for what the source stores.
        dtype: of the decoded images, one of `KINDS`; None for what the source stores. Only what
            float32 holds is converted, to float32.
        nodata: the value that stands for no value; it becomes NaN, and the pixels float32. None for
            what each file declares.
        bands: which channels are taken, by name or number (from 1); None for all.
    """

    GROUP: ClassVar[str] = "data"

    max_megapixels: float = option(
        100.0, "Larger images are refused before they are decoded.", within=MEGAPIXELS
    )
    channels: int | None = option(
        None,
        "3 for color, 1 for gray.",
        within=CHANNELS,
        otherwise="what the data has; 3 for image files of 8 bits",
    )
    dtype: str | None = option(None, OF_PIXELS, otherwise="what the data has")
    nodata: float | None = option(
        None, "The value of pixels that have none.", otherwise="what each file declares"
    )
    bands: tuple[str, ...] | None = option(
        None,
        "Take these channels, by name or number from 1, as in B02,B03,B04.",
        several=True,
        otherwise="all",
    )

    def check(self) -> None:
        """Raises `UserError` for a value that no image could be decoded with."""
        check_ranges(self)
        if self.dtype is not None:
            choose(dict.fromkeys(KINDS), self.dtype, "--dtype")
        if self.bands is not None and not all(self.bands):
            raise UserError("--bands: names or numbers of channels, such as B02,B03,B04")

    def stored(self) -> dict[str, Any]:
        """What a run keeps of it, by the names of its settings, beside the channels."""
        return {name: getattr(self, name) for name in INHERITED}


INHERITED = ("max_megapixels", "dtype", "nodata", "bands")


def split_bands(bands: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Bands one by one: on the command line several are joined by commas."""
    return bands and tuple(one.strip() for text in bands for one in text.split(","))


def decode_as_run(run: str, requested: Any = None) -> DecodeOptions:
    """How a later verb decodes images: as those that a run was trained on, unless told otherwise.

    Args:
        run: a run folder; "none" for no run.
        requested: the group of settings of this call; None for the run's.
    """
    known = {} if run == "none" else {"dtype": "uint8", **read_any_config(run)["config"]}
    asked = {} if requested is None else flatten(requested)
    values: dict[str, Any] = {}
    for name in INHERITED:
        value = known.get(name) if asked.get(name) is None else asked[name]
        if value is not None:
            values[name] = tuple(value) if isinstance(value, list) else value
    values["bands"] = split_bands(values.get("bands"))
    options = DecodeOptions(**values)
    options.check()
    return options


def channels_for(
    have: int, requested: int | None, data: str, run: str, of_run: int | None, ways: str
) -> int:
    """How many channels a model takes: the run's, to which gray and color are converted.

    Args:
        have: channels of the data.
        requested: --channels.
        data: its name.
        run: the name of the run.
        of_run: channels of its encoder; None: from scratch.
        ways: ways out beside --channels, in words.

    Raises:
        UserError: run and data do not agree and cannot be converted; it names the ways out.
    """
    run_channels = have if of_run is None else of_run
    both = {run_channels, have} <= {1, 3}
    channels = requested or (run_channels if both else have)
    if channels != have and {channels, have} != {1, 3}:
        raise UserError(
            f"--channels {channels}: {data} has {have}, and only gray and color convert to each "
            "other"
        )
    if requested is None and channels != run_channels:
        raise UserError(
            f"{run} takes {run_channels} channel{'s' * (run_channels > 1)}, {data} has {have}: "
            f"--channels {have} adapts the run's patch weights; {ways}or begin with run none"
        )
    return channels


@dataclass(frozen=True)
class Listing:
    """Which images of DATA are taken, and by which columns a table names them.

    Args:
        include: patterns of names; where there are any, one of them has to match.
        exclude: patterns of names that are not taken.
        path_column: of a table; None for what its header says.
        label_column: likewise.
        group_column: of a table: what no split divides, such as patients.
        tile: side in pixels of the tiles that large images are taken in; None or 0: whole images.
        overlap: pixels that neighbors share.
        level: of the pyramids of large images, in whose pixels tiles are; 0: the full size.
        empty: a tile of which less than this share of the range differs is left out; 0: none.
        cloud_cache: GB that are kept of sets at an address; None for the default.
        inherited: the patterns are those of a run, which need not match anything here.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    path_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    tile: int | None = None
    overlap: int = 0
    level: int = 0
    empty: float = 0.05
    cloud_cache: float | None = None
    inherited: bool = False

    @property
    def patterns(self) -> list[tuple[str, str]]:
        """Flag and text of each pattern."""
        flags = {"--include": self.include, "--exclude": self.exclude}
        return [(flag, text) for flag, texts in flags.items() for text in texts]

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are named, by the arguments of `open_list`."""
        named = {name: getattr(self, name) for name in COLUMNS}
        return {name: column for name, column in named.items() if column is not None}

    def settings(self, requested: PatternOptions) -> dict[str, object]:
        """Its values for the settings of a group."""
        return {name: getattr(self, name) for name in flatten(requested)}


COLUMNS = ("path_column", "label_column", "group_column")


def listing_as_run(
    requested: PatternOptions, data: str, run: str | Path, resuming: bool = False
) -> Listing:
    """What a verb takes of DATA: what the run took of the same data, unless told otherwise.

    Patterns are about the names of one set of files. On another set they would match nothing, or
    something that nobody meant, so they are not inherited there (as decoding is: that is about
    pixels, which the weights have learned).

    Args:
        requested: the settings of this call; "none" as a pattern is no pattern.
        data: the images.
        run: a run folder; "none", or a folder without a run, for no run.
        resuming: the data is that of the run, wherever it lies now.
    """
    has_run = str(run) != "none" and (Path(run) / CONFIG).is_file()
    known = read_any_config(run).get("config", {}) if has_run else {}
    same = resuming or any(
        isinstance(before, str) and same_place(before, data)
        for before in (known.get("data"), known.get("val"))
    )
    values = flatten(requested)
    for name, value in values.items():
        if value is None and same:
            values[name] = known.get(name)
    for name in ("include", "exclude"):
        values[name] = () if values[name] == ("none",) else tuple(values[name] or ())
        if not all(values[name]) or "none" in values[name]:
            raise UserError(f"--{name} {' '.join(values[name])}: none is no pattern, alone")
    asked, tile = flatten(requested), values.get("tile") or 0
    values["overlap"], values["level"] = values.get("overlap") or 0, values.get("level") or 0
    values["empty"] = Listing.empty if values.get("empty") is None else values["empty"]
    if (tile or asked.get("overlap")) and values["overlap"] >= max(1, tile):
        raise UserError(f"--overlap {values['overlap']}: with --tile, and less than it")
    if asked.get("level") and not tile:
        raise UserError(f"--level {asked['level']}: with --tile, which says how large tiles are")
    own = requested.include is not None or requested.exclude is not None
    return Listing(**{**values, "inherited": requested.inherited or not own})


def same_place(one: str, other: str) -> bool:
    """Whether two spellings of DATA mean the same."""
    return one == other or (
        os.path.exists(os.path.expanduser(other))
        and os.path.realpath(os.path.expanduser(one)) == os.path.realpath(os.path.expanduser(other))
    )
