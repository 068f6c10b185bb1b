"""What a source of images is: an indexable set that lists, labels and reads its images."""

import hashlib
import os
import stat
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from typing import IO, Any, NamedTuple, Protocol, TypeVar, overload, runtime_checkable

import numpy as np

from torchmae.data.config import DecodeOptions
from torchmae.data.decode import (
    BadImage,
    Kind,
    check_bytes,
    kind_of,
    max_bytes,
    read_encoded,
    with_nodata,
)
from torchmae.data.decode import Pixels as Pixels
from torchmae.data.formats import FORMATS, SLICED, format_of
from torchmae.data.formats.tiff import count_pages, is_tiff
from torchmae.errors import UserError, choose, printable
from torchmae.runfolder import UNKNOWN

S = TypeVar("S", bound="Source")


class BadFile(NamedTuple):
    """An image that cannot be read; as text, "name: reason" in one printable line."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{printable(self.name)}: {printable(self.reason)}"


@runtime_checkable
class Source(Protocol):
    """An indexable set of images.

    Inherit from it: the attributes have defaults, of the methods only `group` and `select`.
    """

    stored_channels: int = 3
    """Of what `read` returns; 3 for image files of 8 bits, which become gray or color."""
    stored_dtype: str = "uint8"
    """Likewise the type of its pixels."""
    decode: DecodeOptions = DecodeOptions()
    """How `read_pixels` decodes an image; `with_decode` makes a copy with other options."""
    unusable: Sequence[BadFile] = ()
    """Found while listing: broken and looping links, unreadable folders, missing files."""
    named: bool = True
    """Whether names are those of files, which patterns can match."""
    left_out: str = ""
    """How many images were not taken, and why, in words."""
    data_id: str | None = None
    """The name that the caller of the library gives the set (`data_id=`)."""

    @property
    def channels(self) -> int:
        """Of the decoded images."""
        return self.decode.channels or self.chosen_channels

    @property
    def chosen_channels(self) -> int:
        """Those that the images have, or --bands chooses of these."""
        bands = self.decode.bands
        return len(bands) if bands else self.stored_channels

    @property
    def dtype(self) -> str:
        """Of the decoded images: a name in `KINDS`."""
        floats = self.decode.nodata is not None
        return self.decode.dtype or ("float32" if floats else self.stored_dtype)

    @property
    def pixel_bytes(self) -> int:
        """Of a decoded pixel, all channels."""
        return self.channels * np.dtype(self.dtype).itemsize

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """What to call image `i` in messages; unique, and independent of where the set lies."""

    def label(self, i: int) -> str | None:
        """The name of the class of image `i`, where there is one."""

    def group(self, i: int) -> str | None:
        """What image `i` belongs to, such as a patient: no split divides a group."""
        return None

    def path(self, i: int) -> str | None:
        """The file that holds image `i` alone, where there is one."""
        return None

    def select(self, ids: Sequence[int] | np.ndarray) -> "Source":
        """Some of the images, as a source of the same kind where that makes a difference."""
        return Subset(self, ids)

    def read(self, i: int) -> bytes | Pixels:
        """The encoded file, or pixels [H, W, C] of one of `KINDS`.

        Raises:
            OSError: it cannot be read.
            BadImage: it is damaged, or larger than any image of `max_megapixels` needs to be.
        """

    def fingerprint(self) -> str:
        """A hex digest of names and sizes, equal for equal sets anywhere.

        Of arrays: of shape and a sample of the pixels. Where nothing can be known of a set, it
        begins with `runfolder.UNKNOWN`, and is equal in this process alone.
        """

    def stamp(self) -> str | None:
        """A digest that changes whenever any byte may have changed; None if that is not known.

        It is made of sizes and times of the files at opening.
        """

    def is_changed(self, i: int) -> bool:
        """Whether the file of image `i` was written to since opening; False if that is not known.

        By its times, so that a change of its owner or of its links counts too.
        """
        return False


PEEKED = 8  # encoded images that are looked at for what all are

# What is always 8-bit gray or color, whatever is in the file.
PHOTOS = (".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".webp", ".avif", ".ico", ".tga")


class Encoded(Source):
    """A source of encoded images, which finds out what most of them are: by looking at some."""

    kinds: dict[Any, Kind] | None = None  # found already, by what decides of it

    def kind(self) -> Kind:
        """What most of `PEEKED` images spread over the set are; 8-bit color where none can be
        read."""
        decode = self.decode
        self.kinds = {} if self.kinds is None else self.kinds
        key = decode.bands, decode.nodata
        if key not in self.kinds:
            spread = np.unique(np.linspace(0, len(self) - 1, min(PEEKED, len(self))).astype(int))
            found = [kind for kind in map(self.kind_at, spread.tolist()) if kind is not None]
            self.kinds[key] = Counter(found or [Kind(3, "uint8")]).most_common(1)[0][0]
        return self.kinds[key]

    def kind_at(self, i: int) -> Kind | None:
        """What one image is; None if that cannot be read."""
        plain = self.decode.bands is None and self.decode.nodata is None
        if plain and suffix_of(self.name(i)) in PHOTOS:
            return Kind(3, "uint8")
        try:
            data = self.read(i)
            if isinstance(data, bytes):
                return kind_of(data, self.decode)
            return Kind(data.shape[2], data.dtype.name)
        except (BadImage, OSError):
            return None

    @property
    def stored_channels(self) -> int:  # type: ignore[override]  # found when it is asked for
        return self.kind().channels

    @property
    def stored_dtype(self) -> str:  # type: ignore[override]
        return self.kind().dtype


def read_file(path: str | bytes | os.PathLike[str], options: DecodeOptions) -> bytes:
    """The bytes of an image file.

    Raises:
        OSError: it cannot be read.
        BadImage: it is larger than any image of `max_megapixels` needs to be; nothing is read then.
    """
    with open(path, "rb") as file:
        facts = os.fstat(file.fileno())
        if stat.S_ISFIFO(facts.st_mode):  # it has an end, when its writer closes it
            data = file.read(max_bytes(options) + 1)
            check_bytes(len(data), options)
            return data
        if not stat.S_ISREG(facts.st_mode):  # such as /dev/zero, which has no end
            raise BadImage("not a regular file")
        return read_whole(file, facts.st_size, options)


def read_whole(file: IO[bytes], size: int, options: DecodeOptions) -> bytes:
    """What is left of an open image file of `size` bytes; `BadImage` as for `read_file`."""
    check_bytes(size, options)
    return file.read()


class SourceWrapper(Source):
    """A source around a source: a subclass changes `read`, everything else is handed on."""

    holds_pixels = False
    """Whether `read` returns pixels that were decoded with the options of the inner source."""

    def __init__(self, source: Source):
        self.source = source
        self.unusable = source.unusable
        self.named = source.named
        self.left_out = source.left_out
        self.data_id = source.data_id

    @property
    def stored_channels(self) -> int:  # type: ignore[override]  # as `decode`: handed on
        return self.source.stored_channels

    @property
    def stored_dtype(self) -> str:  # type: ignore[override]
        return self.source.stored_dtype

    @property
    def decode(self) -> DecodeOptions:  # type: ignore[override]
        return self.source.decode

    def __len__(self) -> int:
        return len(self.source)

    def name(self, i: int) -> str:
        return self.source.name(i)

    def label(self, i: int) -> str | None:
        return self.source.label(i)

    def group(self, i: int) -> str | None:
        return self.source.group(i)

    def path(self, i: int) -> str | None:
        return self.source.path(i)

    def read(self, i: int) -> bytes | Pixels:
        return self.source.read(i)

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def stamp(self) -> str | None:
        return self.source.stamp()

    def is_changed(self, i: int) -> bool:
        return self.source.is_changed(i)


class Subset(SourceWrapper):
    """Some images of a source, by their numbers there."""

    def __init__(self, source: Source, ids: Sequence[int] | np.ndarray):
        super().__init__(source)
        self.ids = np.array(ids, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, i: int) -> str:
        return self.source.name(int(self.ids[i]))

    def label(self, i: int) -> str | None:
        return self.source.label(int(self.ids[i]))

    def group(self, i: int) -> str | None:
        return self.source.group(int(self.ids[i]))

    def path(self, i: int) -> str | None:
        return self.source.path(int(self.ids[i]))

    def read(self, i: int) -> bytes | Pixels:
        return self.source.read(int(self.ids[i]))

    def fingerprint(self) -> str:
        whole = self.source.fingerprint()
        digest = hashlib.sha256(whole.encode() + self.ids.tobytes()).hexdigest()
        return UNKNOWN * whole.startswith(UNKNOWN) + digest

    def stamp(self) -> str | None:
        whole = self.source.stamp()
        return whole and hashlib.sha256(whole.encode() + self.ids.tobytes()).hexdigest()

    def is_changed(self, i: int) -> bool:
        return self.source.is_changed(int(self.ids[i]))


def whole(source: Source) -> Source:
    """The source that subsets and the like are of."""
    while isinstance(source, SourceWrapper):
        source = source.source
    return source


def with_decode(source: Source, options: DecodeOptions) -> Source:
    """The same images decoded with other options: a copy that shares what the source has listed.

    A cache holds pixels of one way of decoding, so the copy is without it.
    """
    if options == source.decode:
        return source
    other = redecoded(source, options)
    refuse_other_kind(other)
    return other


def redecoded(source: Source, options: DecodeOptions) -> Source:
    """As `with_decode`, whatever the images are."""
    if isinstance(source, SourceWrapper) and source.holds_pixels:
        return redecoded(source.source, options)
    if isinstance(source, SourceWrapper):
        return copied(source, source=redecoded(source.source, options))
    return copied(source, decode=options)


def copied(source: S, /, **changes: Any) -> S:
    """A copy with other values of some attributes, which shares all others."""
    copy = object.__new__(type(source))  # copy.copy would load arrays again, as unpickling does
    copy.__dict__.update({**source.__dict__, **changes})
    return copy


def refuse_other_kind(source: Source) -> None:
    """Raises UserError where the images have pixels of a type that cannot become the one that is
    expected of them."""
    want = source.decode.dtype
    if want is None:
        return
    have = "float32" if source.decode.nodata is not None else source.stored_dtype
    if want == have or (want == "float32" and have != "uint8"):
        return
    raise UserError(
        f"the images have {have} pixels, {want} is expected (of the run, or by --dtype): mae "
        f"finetune, segment and detect take --dtype {have}, and mae pretrain --from RUN, which "
        "measure mean and std again"
    )


class Slices(Subset):
    """The slices of files that hold several (DICOM, NIfTI, TIFF), each an image of its own.

    Args:
        source: the files.
        counts: how many slices each has.
    """

    def __init__(self, source: Source, counts: Sequence[int]):
        super().__init__(source, np.repeat(np.arange(len(counts)), counts))
        firsts = np.cumsum([0, *counts])[:-1]
        self.within = np.arange(len(self.ids)) - firsts[self.ids]
        self.counts = np.array(counts)

    def name(self, i: int) -> str:
        several = self.counts[self.ids[i]] > 1
        return super().name(i) + f"[{self.within[i]}]" * bool(several)

    def group(self, i: int) -> str | None:
        """No split divides a volume."""
        several = self.counts[self.ids[i]] > 1
        return super().group(i) or (self.source.name(int(self.ids[i])) if several else None)

    def read(self, i: int) -> bytes | Pixels:
        data = super().read(i)
        if not isinstance(data, bytes):
            return data
        kind = format_of(data)
        if self.counts[self.ids[i]] == 1 and (kind is None or FORMATS[kind].slices is None):
            return data
        raster = read_encoded(data, self.decode, int(self.within[i]))
        return with_nodata(raster.pixels, raster.nodata, None)


TIFFS = (".tif", ".tiff")


def with_slices(source: Source, stacks: bool = True) -> Source:
    """The source itself, or its slices where some files have several; without `stacks` only the
    first image of a TIFF.

    Of TIFFs `PEEKED` are looked at first: all are read only where one of these is a stack.
    """
    names = getattr(source, "names", None)
    blob = names.blob.lower() if isinstance(names, StringArray) else b""
    if not any(ending.encode() in blob for ending in (*SLICED, *(TIFFS if stacks else ()))):
        return source
    suffixes = [suffix_of(source.name(i)) for i in range(len(source))]
    with ThreadPoolExecutor(8) as pool:

        def counts_of(which: Sequence[int]) -> list[int]:
            return list(pool.map(lambda i: count_slices(source, i), which))

        tiffs = [i for i, suffix in enumerate(suffixes) if suffix in TIFFS and stacks]
        spread = np.unique(np.linspace(0, len(tiffs) - 1, min(PEEKED, len(tiffs))).astype(int))
        found = max(counts_of([tiffs[k] for k in spread]), default=1) > 1
        wanted = {*SLICED, *TIFFS} if found else SLICED
        several = [i for i, suffix in enumerate(suffixes) if suffix in wanted]
        if not several:
            return source
        counts = np.ones(len(source), dtype=np.int64)
        counts[several] = counts_of(several)
        return Slices(source, counts.tolist())


def count_slices(source: Source, i: int) -> int:
    """How many images a file of a source holds; 1 where it cannot be read, which the scan will
    name."""
    with suppress(BadImage, OSError):
        data = source.read(i)
        if isinstance(data, bytes):
            kind = format_of(data)
            tiff = count_pages if is_tiff(data) else None
            counter = tiff if kind is None else FORMATS[kind].slices
            return 1 if counter is None else counter(data)
    return 1


class StringArray(Sequence[str]):
    """Immutable strings in one block of memory: bytes, and where each string ends."""

    def __init__(self, items: Iterable[str]):
        blob = bytearray()
        ends = array("q", [0])
        for item in items:
            blob += item.encode("utf-8", "surrogateescape")
            ends.append(len(blob))
        self.blob = bytes(blob)
        self.ends = np.array(ends, dtype=np.int64)

    @classmethod
    def of(cls, blob: bytes, ends: np.ndarray) -> "StringArray":
        """From the bytes and ends of another one."""
        strings = cls(())
        strings.blob = blob
        strings.ends = ends
        return strings

    @classmethod
    def joined(cls, several: "Sequence[StringArray]") -> "StringArray":
        """One after the other."""
        starts = np.cumsum([0, *(len(strings.blob) for strings in several)])
        ends = [strings.ends[1:] + start for strings, start in zip(several, starts)]
        return cls.of(
            b"".join(strings.blob for strings in several),
            np.concatenate([np.zeros(1, dtype=np.int64), *ends]),
        )

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        return self.blob[self.ends[i] : self.ends[i + 1]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        ends = self.ends.tolist()  # ten times as fast as one after the other by its number
        for start, end in pairwise(ends):
            yield self.blob[start:end].decode("utf-8", "surrogateescape")

    def take(self, ids: Sequence[int] | np.ndarray) -> "StringArray":
        """Some of the strings, by their numbers."""
        return StringArray(self[i] for i in np.asarray(ids).tolist())


def digest(names: StringArray, *numbers: np.ndarray) -> str:
    """A hex digest of names and integers."""
    state = hashlib.sha256(names.blob)
    for some in (names.ends, *numbers):
        state.update(some.astype(np.int64).tobytes())
    return state.hexdigest()


def time_of(facts: os.stat_result) -> int:
    """The times of modification and change, added: another number after any write or
    replacement."""
    return (facts.st_mtime_ns + facts.st_ctime_ns) & (1 << 63) - 1


def has_time(path: str, time: int) -> bool:
    """Whether a file has this `time_of`; also where it is gone, which reading it finds out."""
    try:
        return time_of(os.stat(path)) == time
    except OSError:
        return True


def digest_of(*facts: Any) -> str:
    """A hex digest of the `repr` of its arguments."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def sampled(source: Source, *facts: Any, count: int = 64) -> str:
    """A digest of `facts`, the length, and the content of `count` evenly spaced images."""
    sums = []
    for i in np.unique(np.linspace(0, len(source) - 1, count).astype(int)):
        try:
            item = source.read(int(i))
        except (BadImage, OSError):  # it counts as it is: the scan will name it
            sums.append((None, -1))
            continue
        sums.append(
            (
                getattr(item, "shape", None),
                zlib.crc32(item if isinstance(item, bytes) else item.tobytes()),
            )
        )
    return digest_of(facts, len(source), sums)


def options_of(spec: str, allowed: Sequence[str] | None) -> tuple[str, dict[str, str]]:
    """ "what?a=1&b=2" to ("what", {"a": "1", "b": "2"}).

    Args:
        spec: the text.
        allowed: names of options; None allows any.

    Raises:
        UserError: a name is not allowed.
    """
    what, _, query = spec.partition("?")
    pairs = (part.partition("=") for part in query.split("&") if part)
    options = {name: value for name, _, value in pairs}
    for name in options:
        if allowed is not None:
            choose(dict.fromkeys(allowed), name, f"option in '{spec}'")
    return what, options


def suffix_of(name: str) -> str:
    """The extension of a file name, in lower case; of packed volumes both of theirs."""
    lower = name.lower()
    return ".nii.gz" if lower.endswith(".nii.gz") else os.path.splitext(lower)[1]


def distinct(names: Sequence[str]) -> list[str]:
    """The names, with its number after each that is not unique.

    ImageNet has a "crane (134)" and a "crane (517)".
    """
    often = Counter(names)
    return [f"{name} ({i})" if often[name] > 1 else name for i, name in enumerate(names)]
