"""Packed sets: image files in plain tar shards with an index; a million of them open without a
walk.

    shards/shard-000000.tar   CLASS/name.jpg, ...: whole tars, which other readers take too
    shards/index.safetensors  of each image its name, label, shard, offset, bytes, CRC-32, height
                              and width; mean and mean square of the pixels of some (the last three
                              are not in sets of older versions)
    shards/index.json         settings, totals, channels and type of the pixels; of each shard its
                              images, bytes and SHA-256
    shards/.progress/         only while packing: of each finished shard its part of the index

Every file is written under another name, synced and renamed: it is whole or not there.
"""

import hashlib
import json
import os
import tarfile
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from torchmae.data.config import KINDS
from torchmae.data.decode import BadImage, Kind
from torchmae.data.sources.source import Source, StringArray, copied, digest_of
from torchmae.data.sources.tars import Tars
from torchmae.disk import parse_json, publish, sha256, write_whole
from torchmae.errors import UserError

FORMAT = "torchmae packed set"
VERSION = 1


INDEX = "index.json"
ARRAYS = "index.safetensors"
PROGRESS = ".progress"


class Packed(Tars):
    """The images of a packed set. Opening it reads the index and the sizes of the shards only."""

    def __init__(self, root: str, header: dict[str, Any], arrays: dict[str, np.ndarray]):
        self.header = header
        self.unusable = ()
        self.handles = {}
        self.shard_names = [facts["file"] for facts in header["shards"]]
        self.paths = [os.path.join(root, name) for name in self.shard_names]
        self.names, self.labels = (unpacked(arrays, what) for what in ("names", "labels"))
        self.places = arrays["places"]
        self.sums = arrays["sums"]
        self.sizes = arrays.get("sizes")
        self.moments = arrays.get("moments")

    def member(self, i: int) -> str:
        return self.names[i]

    def stamp(self) -> str | None:
        return self.header["index_sha256"]  # covers the CRCs of the images, checked at every read

    def is_changed(self, i: int) -> bool:
        return False  # what has changed is not read

    def kind(self) -> Kind:
        """What the images are, by the index; sets of older versions are looked at."""
        plain = self.decode.bands is None and self.decode.nodata is None
        match self.header.get("pixels"):
            case [int(channels), str(dtype)] if plain and dtype in KINDS and channels > 0:
                return Kind(channels, dtype)
        return super().kind()

    def scanned(self) -> tuple[np.ndarray, np.ndarray] | None:
        """What a scan would find.

        Returns:
            Height and width of every image, int32 [N, 2], and mean and mean square of the pixels,
            float64 [2, 3]; None if the set is of an older version, or was packed with other
            options.
        """
        settings = self.header["settings"]
        decode = self.decode
        same = (self.channels, self.dtype, decode.bands) == (3, "uint8", None)
        same = same and decode.max_megapixels >= settings.get("max_megapixels", np.inf)
        if not same or self.sizes is None or self.moments is None:
            return None
        return self.sizes, self.moments

    def select(self, ids: Sequence[int] | np.ndarray) -> "Packed":
        part = super().select(ids)
        known = digest_of(self.header["index_sha256"], part.fingerprint())
        return copied(
            self,
            header={**self.header, "index_sha256": known},
            handles={},
            names=part.names,
            labels=part.labels,
            places=part.places,
            sums=self.sums[ids],
            kinds=None,
            sizes=None if self.sizes is None else self.sizes[ids],
            moments=None,  # they are those of all
        )

    def read(self, i: int) -> bytes:
        data = super().read(i)
        if zlib.crc32(data) != self.sums[i]:
            raise BadImage("its bytes are not those that were packed: the shard is damaged")
        return data


def open_packed(path: str) -> Source:
    """The folder that `mae pack` made.

    Raises:
        UserError: names the file that is missing or damaged.
    """
    root = Path(os.path.abspath(os.path.expanduser(path)))
    if not (root / INDEX).exists():
        if (root / PROGRESS / INDEX).exists():
            raise UserError(
                f"the packing of '{path}' is not finished: the same mae pack command resumes it"
            )
        raise UserError(
            f"'{path}' is not a packed set (it has no {INDEX}): mae pack makes one of any folder "
            "of images"
        )
    source = read_packed(root, str(root))
    for shard, facts in zip(source.paths, source.header["shards"]):
        if not os.path.isfile(shard):
            raise UserError(f"'{shard}' is missing: {REMEDY}")
        if os.path.getsize(shard) != facts["bytes"]:
            raise UserError(
                f"'{shard}' has {os.path.getsize(shard)} bytes, but was packed with "
                f"{facts['bytes']}: {REMEDY}"
            )
    return source


def read_packed(folder: Path, root: str) -> Packed:
    """A packed set from its index alone.

    Args:
        folder: of the index.
        root: folder or address of the shards.

    Raises:
        UserError: the index is damaged.
    """
    header = read_header(folder)
    file = folder / ARRAYS
    try:
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() != header["index_sha256"]:
            raise ValueError("its SHA-256 is not that of index.json")
        arrays = load(data)
        check_arrays(arrays, header)
        source = Packed(root, header, arrays)
        counts = {len(source.labels), len(source.places), len(source.sums), header["images"]}
        if counts | ({len(source.sizes)} if source.sizes is not None else set()) != {len(source)}:
            raise ValueError("its parts do not fit together")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise damaged(file, error) from error
    return source


def check_arrays(arrays: dict[str, np.ndarray], header: dict[str, Any]) -> None:
    """Raises ValueError for an index that does not fit to its shards: the sums of an index that
    somebody made say nothing of what is in it."""
    kinds = {
        "places": (np.int64, 2),
        "sums": (np.uint32, 1),
        "sizes": (np.int32, 2),
        "moments": (np.float64, 2),
        "names_ends": (np.int64, 1),
        "labels_ends": (np.int64, 1),
    }
    for name, (kind, axes) in kinds.items():
        array = arrays.get(name)
        if array is not None and (array.dtype != kind or array.ndim != axes):
            raise ValueError(f"{name} is {array.dtype} {list(array.shape)}")
    for name in ("names", "labels"):
        ends = arrays[f"{name}_ends"]
        if not len(ends) or ends[0] or ends[-1] != arrays[name].size or (np.diff(ends) < 0).any():
            raise ValueError(f"the ends of its {name} are not in order")
    places, bytes_of = arrays["places"], [facts["bytes"] for facts in header["shards"]]
    if places.shape[1] != 3 or (places < 0).any() or (places > max(bytes_of, default=0)).any():
        raise ValueError("places outside of the shards")
    if (places[:, 0] >= len(bytes_of)).any():
        raise ValueError(f"it names shard {places[:, 0].max()} of {len(bytes_of)}")
    if (places[:, 1:].sum(axis=1) > np.array(bytes_of)[places[:, 0]]).any():
        raise ValueError("places behind the end of their shard")
    sizes, moments = arrays.get("sizes"), arrays.get("moments")
    if sizes is not None and (sizes.shape[1] != 2 or (sizes < 1).any()):
        raise ValueError("sizes that no image has")
    if moments is not None and (moments.shape != (2, 3) or not np.isfinite(moments).all()):
        raise ValueError("mean and std that no images have")


REMEDY = "copy it again from where the set was made, or pack into a new folder"


def damaged(file: Path, error: Exception) -> UserError:
    reason = (
        f"it has no {error}"
        if isinstance(error, KeyError)
        else getattr(error, "strerror", None) or error
    )
    return UserError(f"'{file}' is damaged ({reason}): {REMEDY}")


def is_packed(root: str) -> bool:
    """Whether a folder is a packed set, whole, damaged or unfinished; not any index.json."""

    def there(name: str) -> bool:
        return os.path.exists(os.path.join(root, name))

    if there(f"{PROGRESS}/{INDEX}") or (there(ARRAYS) and (there(INDEX) or there(shard_name(0)))):
        return True
    try:
        with open(os.path.join(root, INDEX), "rb") as file:
            return FORMAT.encode() in file.read(200)
    except OSError:
        return False


def read_header(folder: Path) -> dict[str, Any]:
    """The index.json of a packed set, finished or not.

    Raises:
        UserError: it cannot be one.
    """
    file = folder / INDEX
    try:
        header = parse_json(file.read_bytes())
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']}")
        version = int(header["version"])
        needed = (
            ("settings", "data")
            if folder.name == PROGRESS
            else ("settings", "data", "images", "index_sha256", "shards")
        )
        for name in needed:
            header[name]
        if not isinstance(header["settings"], dict):
            raise ValueError("its settings are none")
        for facts in header.get("shards", ()):
            if os.path.basename(facts["file"]) != facts["file"] or not isinstance(
                facts["bytes"], int
            ):
                raise ValueError(f"no shard can be {facts['file']} of {facts['bytes']} bytes")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(file, error) from error
    if version > VERSION:
        raise UserError(
            f"'{file}' is of version {version}, but this torchmae reads up to {VERSION}: use a "
            "newer one"
        )
    return header


class Part(NamedTuple):
    """The index of one shard.

    `origins` are the images' numbers in the source, `digests` those of its files; `facts` is what
    the header has of the shard, and what packing needs to continue after it.
    """

    names: StringArray
    labels: StringArray
    places: np.ndarray  # int64 [n, 2]: offset, bytes
    sums: np.ndarray  # uint32 [n]
    sizes: np.ndarray  # int32 [n, 2]: height, width
    origins: np.ndarray  # int64 [n]
    digests: np.ndarray  # uint8 [n, 16]
    facts: dict[str, Any]


NUMBERS = ("places", "sums", "sizes", "origins", "digests")


class Shard:
    """A tar that is being written: the same members always become the same bytes."""

    def __init__(self, path: Path):
        self.path = path
        self.partial = path.with_name(f".{path.name}.partial")
        self.file = self.partial.open("wb")
        self.tar = tarfile.TarFile(
            fileobj=self.file,
            mode="w",
            format=tarfile.GNU_FORMAT,
            encoding="utf-8",
            errors="surrogateescape",
        )
        self.names: list[str] = []
        self.labels: list[str] = []
        self.places = array("q")
        self.sums = array("I")
        self.sizes = array("i")
        self.origins = array("q")
        self.digests = bytearray()

    @property
    def size(self) -> int:
        return self.tar.offset

    def add(
        self, name: str, label: str, data: bytes, size: tuple[int, int], digest: bytes, origin: int
    ) -> None:
        """Adds one image.

        Args:
            name: of its member.
            label: goes into a .cls member, as in WebDataset, unless it is the name's folder.
            data: the encoded image.
            size: (height, width).
            digest: of the original file.
            origin: its number in the source.
        """
        folder, _, base = name.rpartition("/")
        if label != folder.rpartition("/")[2]:
            self._member(
                f"{folder}/{base.partition('.')[0]}.cls".lstrip("/"),
                label.encode("utf-8", "surrogateescape"),
            )
        self._member(name, data)
        self.places.extend(
            (self.tar.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, len(data))
        )
        self.sums.append(zlib.crc32(data))
        self.sizes.extend(size)
        self.origins.append(origin)
        self.digests += digest
        self.names.append(name)
        self.labels.append(label)

    def _member(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)  # of time 0, mode 644, owner 0 and no name
        info.size = len(data)
        self.tar.addfile(info, BytesIO(data))
        self.tar.members = []  # type: ignore[attr-defined]  # it would keep an object for each

    def finish(self, **more: Any) -> Part:
        """Closes the tar and renames it to its name. `more` is added to its facts."""
        self.tar.close()
        self.file.close()
        publish(self.partial, self.path)
        size = self.path.stat().st_size
        digest = sha256(self.path)
        facts = {
            "file": self.path.name,
            "images": len(self.names),
            "bytes": size,
            "sha256": digest,
            **more,
        }
        return Part(
            StringArray(self.names),
            StringArray(self.labels),
            np.array(self.places, dtype=np.int64).reshape(-1, 2),
            np.array(self.sums, dtype=np.uint32),
            np.array(self.sizes, dtype=np.int32).reshape(-1, 2),
            np.array(self.origins, dtype=np.int64),
            np.frombuffer(bytes(self.digests), dtype=np.uint8).reshape(-1, 16),
            facts,
        )

    def discard(self) -> None:
        with suppress(OSError):  # closing writes what is left, which fails again on a full disk
            self.file.close()
        self.partial.unlink(missing_ok=True)


def packed(strings: StringArray, what: str) -> dict[str, np.ndarray]:
    return {what: np.frombuffer(strings.blob, dtype=np.uint8), f"{what}_ends": strings.ends}


def unpacked(arrays: dict[str, np.ndarray], what: str) -> StringArray:
    return StringArray.of(arrays[what].tobytes(), arrays[f"{what}_ends"])


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def part_file(out: Path, number: int) -> Path:
    return out / PROGRESS / f"part-{number:06d}.safetensors"


def write_part(out: Path, number: int, part: Part) -> None:
    facts = np.frombuffer(json.dumps(part.facts).encode(), dtype=np.uint8)
    rest = {name: getattr(part, name) for name in NUMBERS}
    data = save(
        {**packed(part.names, "names"), **packed(part.labels, "labels"), **rest, "facts": facts}
    )
    write_whole(part_file(out, number), data)


def parts(out: Path) -> Iterator[Part]:
    """The parts of finished shards in order, up to the first that is not whole or has no shard."""
    number = 0
    while True:
        try:
            arrays = load(part_file(out, number).read_bytes())
            facts = parse_json(arrays["facts"].tobytes())
            if (out / facts["file"]).stat().st_size != facts["bytes"]:
                return
            names, labels = (unpacked(arrays, what) for what in ("names", "labels"))
            numbers = [arrays[what] for what in NUMBERS]
        except (OSError, ValueError, KeyError, SafetensorError):
            return
        yield Part._make([names, labels, *numbers, facts])
        number += 1


def write_header(folder: Path, header: dict[str, Any]) -> None:
    """index.json, atomically; `header` needs at least settings and data."""
    text = json.dumps({"format": FORMAT, "version": VERSION, **header}, indent=1)
    write_whole(folder / INDEX, f"{text}\n".encode())


def clear(out: Path, number: int) -> None:
    """Removes what an earlier attempt left of shards from this number on."""
    for pattern in (f"{PROGRESS}/part-*.safetensors", "shard-*.tar"):
        for file in out.glob(pattern):
            if file.name >= (
                part_file(out, number).name if file.suffix != ".tar" else shard_name(number)
            ):
                file.unlink()


def write_index(
    out: Path,
    done: Sequence[Part],
    header: dict[str, Any],
    measure: Callable[[Source], np.ndarray] | None = None,
) -> None:
    """Writes the arrays, then index.json, whose presence means that the set is finished.

    Args:
        out: the folder.
        done: the parts of all shards.
        header: settings and data.
        measure: mean and mean square of the pixels of a set; without it, a scan will read the
            images.
    """
    shards = [np.full((len(part.names), 1), k, dtype=np.int64) for k, part in enumerate(done)]
    arrays = {
        **packed(StringArray.joined([part.names for part in done]), "names"),
        **packed(StringArray.joined([part.labels for part in done]), "labels"),
        "places": np.concatenate([np.hstack([k, part.places]) for k, part in zip(shards, done)]),
        "sums": np.concatenate([part.sums for part in done]),
        "sizes": np.concatenate([part.sizes for part in done]),
    }
    kept = ("file", "images", "bytes", "sha256")
    header = {
        **header,
        "images": len(arrays["sums"]),
        "bytes": sum(part.facts["bytes"] for part in done),
        "index_sha256": "",
        "shards": [{name: part.facts[name] for name in kept} for part in done],
    }
    made = Packed(str(out), header, arrays)
    header["pixels"] = [*made.kind()]
    if measure and (made.channels, made.dtype) == (3, "uint8"):  # what `scanned` answers for
        arrays["moments"] = measure(made)
    data = save(arrays)
    write_whole(out / ARRAYS, data)
    write_header(out, {**header, "index_sha256": hashlib.sha256(data).hexdigest()})
