"""`mae pack`: image files into tar shards with an index, which open at once and read faster."""

import hashlib
import io
import json
import logging
import os
import shlex
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from torchmae import disk
from torchmae.data.config import listing_as_run
from torchmae.data.decode import BadImage, decode, extension, image_extensions, is_photo
from torchmae.data.labels import PARTS, divided
from torchmae.data.scan import measure
from torchmae.data.sources import open_source, with_decode
from torchmae.data.sources.files import Files
from torchmae.data.sources.packed import (
    INDEX,
    PROGRESS,
    REMEDY,
    Packed,
    Shard,
    clear,
    is_packed,
    open_packed,
    parts,
    read_header,
    shard_name,
    write_header,
    write_index,
    write_part,
)
from torchmae.data.sources.source import BadFile, Slices, Source, suffix_of
from torchmae.data.sources.tars import Tars
from torchmae.data.transforms import Crop, Pixels, resized_crop
from torchmae.data.view import glance, pages_note
from torchmae.disk import write_text
from torchmae.errors import RunError, UserError
from torchmae.runfolder import identity
from torchmae.settings.options import flatten
from torchmae.tasks.pack.config import Pack, check
from torchmae.train.checkpoint import lock
from torchmae.version import command

logger = logging.getLogger(__name__)


def run(config: Pack) -> Path:
    """Packs the images, resuming where an earlier attempt stopped.

    Returns:
        The folder of the shards.
    """
    if config.verify:
        return verify(config.data)
    check(config)
    if not config.lossless:
        config = replace(config, size=config.size or 320, quality=config.quality or 90)
    listing = listing_as_run(config.listing, config.data, "none")
    source = open_source(config.data, replace(config.decode, channels=None), listing)
    if source.left_out:
        logger.info(source.left_out)
    out = Path(config.out)
    source = files_of(source, config)
    check_out(out, config.data)
    header = {"settings": settings_of(config), "data": identity(source)}
    if (out / INDEX).exists():
        compare(out, read_header(out), header)
        open_packed(str(out))
        shutil.rmtree(out / PROGRESS, ignore_errors=True)  # a kill came between the index and this
        logger.info(
            f"{out} is finished: nothing to do. mae pack --verify {out} compares the shards with "
            "their SHA-256."
        )
        return out
    try:
        (out / PROGRESS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made: {error.strerror or error}") from error
    began = time.monotonic()
    before = torch.get_num_threads()
    try:
        with only_process(out):
            begin(out, header)
            seen = glance(source)
            if seen.stacks:
                logger.info(f"note: {pages_note(seen)}")
            done, fresh = write_shards(source, config, out)
            text = finish(source, config, out, done, header)
            shutil.rmtree(out / PROGRESS, ignore_errors=True)
    except KeyboardInterrupt as error:
        raise RunError(
            f"interrupted: the finished shards in {out} stay, the same command resumes after them",
            130,
        ) from error
    except OSError as error:  # what cannot be read is a bad file, so this is about writing
        raise RunError(
            f"could not write in {out}: {error.strerror or error}. Its finished shards stay: make "
            "room, and the same command "
            "resumes after them"
        ) from error
    finally:
        torch.set_num_threads(before)
    seconds = time.monotonic() - began
    again = f"{command()} pretrain {shlex.quote(str(out))}"
    logger.info(f"{text}\nTook {seconds:.1f} s, {fresh / seconds:.0f} files/s.\nNext: {again}")
    return out


def files_of(source: Source, config: Pack) -> Source:
    """The files of a source: those that hold slices are packed whole.

    Raises:
        UserError: there are none, or they cannot be packed so.
    """
    if isinstance(source, Slices):
        if not config.lossless:
            raise UserError(
                f"{config.data} has files of several slices, which no JPEG holds: add --lossless, "
                "which packs the files as they are"
            )
        return source.source
    with suppress(OSError, BadImage):
        if not isinstance(source.read(0), bytes):
            raise UserError(
                f"mae pack packs image files, but {config.data} holds pixels: train on it as it is"
            )
    return source


def check_out(out: Path, data: str) -> None:
    """Shards go into a folder of their own, outside of the data.

    Raises:
        UserError: they would not.
    """
    folder = Path(data).expanduser()
    if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
        better = os.path.relpath(f"{folder.resolve()}-shards")
        raise UserError(
            f"--out {out} lies inside the data ({data}): name a folder outside, such as --out "
            f"{better}"
        )
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")
    if out.is_dir() and not is_packed(str(out)):
        strange = sorted(p.name for p in out.iterdir() if p.name != PROGRESS)
        if strange:
            raise UserError(
                f"--out {out} holds other things ({strange[0]}, ...): name a new folder"
            )


def settings_of(config: Pack) -> dict[str, Any]:
    """What the shards depend on."""
    return {
        name: value
        for name, value in flatten(config).items()
        if name not in {"data", "out", "workers", "verify", "channels", *flatten(config.listing)}
    }


@contextmanager
def only_process(out: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(out / PROGRESS))
        except UserError as error:
            raise UserError(
                f"another process is packing into {out}: wait for it, or choose another --out"
            ) from error
        yield


def begin(out: Path, header: dict[str, Any]) -> None:
    """Writes down what is packed, or compares it with that; before the first shard all may
    change."""
    progress = out / PROGRESS
    if any(progress.glob("part-*.safetensors")):  # readable or not
        compare(out, read_header(progress), header)
    else:
        write_header(progress, header)


def compare(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Compares what was packed into `out` with what is requested.

    Raises:
        UserError: names every difference.
    """
    was = before["settings"]
    settings = now["settings"]
    wrong = [
        f"{name} was {was.get(name)}, is {settings[name]}"
        for name in settings
        if was.get(name) != settings[name]
    ]
    counts = [facts["data"]["count"] for facts in (before, now)]
    if counts[0] != counts[1]:
        wrong.append(f"the data had {counts[0]} files, has {counts[1]}")
    elif before["data"] != now["data"]:
        wrong.append(
            f"the data has {counts[0]} files as before, but not the same ones (names or sizes "
            "differ)"
        )
    if wrong:
        raise UserError(
            f"{out} was packed with other settings: {'; '.join(wrong)}. Repeat its command to "
            "resume, or choose another --out"
        )


class Item(NamedTuple):
    """A packed file: its bytes, a new suffix of its name, its (height, width), or why it is bad."""

    data: bytes = b""
    suffix: str = ""
    size: tuple[int, int] = (0, 0)
    digest: bytes = b""
    original_bytes: int = 0
    reason: str = ""


def write_shards(source: Source, config: Pack, out: Path) -> tuple[list[dict[str, Any]], int]:
    """Writes all shards that are not finished yet, in the order of the source.

    Beside the source's own list, memory holds a digest and a hash of the name for each file.

    Returns:
        The facts of each shard, and last the notes of files after them; and how many files were
        read.
    """
    done: list[dict[str, Any]] = []
    digests: dict[bytes, int] = {}  # of a file: its number in the source
    taken: set[int] = set()  # hashes of the names in the shards
    for part in parts(out):
        for origin, digest in zip(part.origins.tolist(), part.digests):
            digests.setdefault(digest.tobytes(), origin)
        taken.update(map(hashed, part.names))
        done.append(part.facts)
    clear(out, len(done))
    start = done[-1]["stop"] if done else 0
    count = len(source)
    if done:
        logger.info(
            f"{out}: {len(done)} shards are finished; resuming after {start} of {count} files"
        )
    inner = isinstance(source, Files) and source.labels is None and divided(config.data) is not None
    made = in_order(
        lambda i: prepare(source, i, config),
        range(start, count),
        config.workers or os.cpu_count() or 1,
    )
    shard = None
    notes = Notes()
    try:
        for i, item in enumerate(
            tqdm(made, "pack", count, initial=start, unit=" images", disable=None, leave=False),
            start,
        ):
            first = digests.setdefault(item.digest, i) if not item.reason else i
            if item.reason:
                notes.bad.append((source.name(i), item.reason))
            elif first != i:
                notes.duplicates.append((source.name(i), source.name(first)))
            if not item.reason and (first == i or not config.drop_duplicates):
                shard = shard or Shard(out / shard_name(len(done)))
                name = free(member_name(source, i, item.suffix), taken)
                shard.add(name, label_of(source, i, inner), item.data, item.size, item.digest, i)
                notes.original_bytes += item.original_bytes
            if shard is not None and (shard.size >= config.shard_mb * 1e6 or i == count - 1):
                part = shard.finish(stop=i + 1, **asdict(notes))
                write_part(out, len(done), part)
                done.append(part.facts)
                shard = None
                notes = Notes()
    finally:
        if shard is not None:
            shard.discard()
    return [*done, asdict(notes)], count - start


@dataclass
class Notes:
    """What is reported of the files since the last shard."""

    original_bytes: int = 0  # of the files that were taken
    bad: list[tuple[str, str]] = field(default_factory=list)  # name, reason
    duplicates: list[tuple[str, str]] = field(
        default_factory=list
    )  # name, and the name of the first such file


def in_order(function: Callable[[int], Item], numbers: range, threads: int) -> Iterator[Item]:
    """`function` of all numbers in order, computed ahead by threads (decoders release the GIL).

    Only a few results wait in memory.
    """
    waiting: deque[Future[Item]] = deque()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for number in numbers:
            waiting.append(pool.submit(function, number))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def prepare(source: Source, i: int, config: Pack) -> Item:
    """Reads and decodes one file, and makes it smaller if --size says so."""
    try:
        data = source.read(i)
        if not isinstance(data, bytes):
            raise BadImage("pixels, not a file")
        pixels = decode(data, source.decode)
    except (OSError, BadImage) as error:
        return Item(reason=getattr(error, "strerror", None) or str(error))
    digest = hashlib.sha256(data).digest()[:16]
    ending = suffix_of(source.name(i))
    # Others than 8-bit gray and color are packed as they are: no JPEG holds them.
    if config.size is None or min(pixels.shape[:2]) <= config.size or not is_photo(pixels):
        missing = "" if ending in image_extensions() else extension(data, source.decode)
        return Item(data, missing, pixels.shape[:2], digest, len(data))
    smaller = shrink(pixels, config.size)
    missing = "" if ending in (".jpg", ".jpeg") else ".jpg"
    return Item(
        encode(smaller, config.quality or 90), missing, smaller.shape[:2], digest, len(data)
    )


def shrink(image: Pixels, size: int) -> UInt8[np.ndarray, "h w C"]:
    """The whole image with a short side of `size`, by the same filter as all other resizing."""
    height, width = image.shape[:2]
    to = tuple(max(1, round(side * size / min(height, width))) for side in (height, width))
    return (
        resized_crop(image, Crop(0, 0, height, width, False), (to[0], to[1]))
        .permute(1, 2, 0)
        .numpy()
    )


def encode(pixels: UInt8[np.ndarray, "h w 3"], quality: int) -> bytes:
    """A JPEG; a grey one if all channels are equal."""
    grey = np.array_equal(pixels[..., 0], pixels[..., 1]) and np.array_equal(
        pixels[..., 0], pixels[..., 2]
    )
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[..., 0] if grey else pixels)).save(
        out, "JPEG", quality=quality
    )
    return out.getvalue()


def member_name(source: Source, i: int, suffix: str) -> str:
    """The name of image `i` in its shard: relative, with `suffix` if there is one."""
    name = source.member(i) if isinstance(source, Tars) else source.name(i)
    name = "/".join(part for part in name.split("/") if part not in ("", ".", ".."))
    if suffix and suffix_of(name) in image_extensions():
        name = os.path.splitext(name)[0]
    return name + suffix


def label_of(source: Source, i: int, inner: bool) -> str:
    """The label of image `i`.

    In a folder of train/ and val/ (`inner`) it is the class inside its part, as in labelled use.
    """
    folders = source.name(i).split("/")[:-1]
    if inner and folders and folders[0] in PARTS:
        return folders[1] if len(folders) > 1 else ""
    return source.label(i) or ""


def hashed(name: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    )


def free(name: str, taken: set[int]) -> str:
    """`name`, or name~2, name~3, ... if it is taken (a.png and a.jpg, once both are JPEGs)."""
    stem, suffix = os.path.splitext(name)
    number = 1
    while (key := hashed(name)) in taken:
        number += 1
        name = f"{stem}~{number}{suffix}"
    taken.add(key)
    return name


def finish(
    source: Source, config: Pack, out: Path, done: list[dict[str, Any]], header: dict[str, Any]
) -> str:
    """Writes the index and the lists of bad files and duplicates; returns the summary."""
    bad = [*source.unusable, *((name, reason) for facts in done for name, reason in facts["bad"])]
    duplicates = [pair for facts in done for pair in facts["duplicates"]]
    original = sum(facts["original_bytes"] for facts in done)
    *shards, _ = done
    if not shards:
        raise UserError(
            f"none of the {len(source)} files can be read; the first: {BadFile(*bad[0])}"
        )
    for name, keys, rows in (
        ("bad-files", ("file", "reason"), bad),
        ("duplicates", ("file", "same_as"), duplicates),
    ):
        (out / f"{name}.jsonl").unlink(missing_ok=True)
        if rows:
            text = "".join(json.dumps(dict(zip(keys, row))) + "\n" for row in rows)
            write_text(out / f"{name}.jsonl", text)
    counts = {"original_bytes": original, "bad_files": len(bad), "duplicates": len(duplicates)}
    write_index(
        out,
        list(parts(out)),
        {**header, **counts},
        lambda made: measure(with_decode(made, source.decode)),
    )
    images, size = (sum(facts[what] for facts in shards) for what in ("images", "bytes"))
    lines = [
        f"{out}: {images} images in {len(shards)} shard{'s' * (len(shards) > 1)}, {amount(size)} "
        f"({size / original:.0%} of the files' {amount(original)})"
    ]
    if bad:
        lines.append(
            f"{len(bad)} files skipped, see {out / 'bad-files.jsonl'}; the first: "
            f"{BadFile(*bad[0])}"
        )
    if duplicates:
        what = "skipped" if config.drop_duplicates else "kept; --drop-duplicates skips them"
        lines.append(
            f"{len(duplicates)} files with the bytes of earlier ones ({what}), see "
            f"{out / 'duplicates.jsonl'}"
        )
    return "\n".join(lines)


def amount(size: int) -> str:
    return (
        f"{size / 1e9:.1f} GB"
        if size >= 1e9
        else f"{size / 1e6:.1f} MB"
        if size >= 1e6
        else f"{size / 1e3:.1f} kB"
    )


def verify(spec: str) -> Path:
    """Compares the shards of a packed set with their SHA-256.

    Raises:
        UserError: names the shards that differ and their damaged images.
    """
    source = open_source(spec)
    if not isinstance(source, Packed):
        raise UserError(
            f"--verify compares a packed set with its sums, and {spec} is none: name a folder of "
            "mae pack"
        )
    wrong = []
    for shard, facts in enumerate(
        tqdm(source.header["shards"], "verify", unit=" shards", disable=None, leave=False)
    ):
        sha256 = ""
        with suppress(OSError):  # a disk that cannot read it any more
            sha256 = disk.sha256(Path(source.paths[shard]))
        if sha256 != facts["sha256"]:
            wrong.append(f"{source.paths[shard]}{damage(source, shard)}")
    if wrong:
        raise UserError(
            f"{len(wrong)} shards are not as they were packed: {'; '.join(wrong)}. {REMEDY}"
        )
    logger.info(
        f"{spec}: {len(source)} images in {len(source.paths)} shards, all as they were packed."
    )
    return Path(spec)


def damage(source: Packed, shard: int) -> str:
    """Which images of a damaged shard are damaged."""
    bad = []
    for i in np.flatnonzero(source.places[:, 0] == shard).tolist():
        try:
            source.read(i)
        except (OSError, BadImage):
            bad.append(source.name(i))
    return (
        f" (damaged images: {', '.join(bad[:3])}{f' and {len(bad) - 3} more' if bad[3:] else ''})"
        if bad
        else ""
    )
