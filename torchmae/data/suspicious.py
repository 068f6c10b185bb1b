"""What looks wrong with a set before anything is trained on it, in words, with the way out."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np

from torchmae.data.decode import BadImage
from torchmae.data.labels import PART
from torchmae.data.sources.files import Files
from torchmae.data.sources.select import matches, paths_of
from torchmae.data.sources.source import Source, SourceWrapper, Subset
from torchmae.data.sources.tars import Tars
from torchmae.data.sources.tiles import Tiles

# Names of what lies beside images and is none of them, such as segmentation masks.
BESIDE = r"masks?|seg|segm|segmentations?|gt|groundtruth|labels?|annotations?|depth|thumb|thumbnail"
ENDING = re.compile(rf"[_\-. ]({BESIDE})(?=[_\-. ]?\d*\.\w+$)", re.IGNORECASE)
FOLDER = re.compile(rf"{BESIDE}|thumbnails|__macosx|@eadir", re.IGNORECASE)
GROUPS = re.compile(r"(patient|subject|person|case|study|slide|animal)([_ ]?(id|no|number|name))?")

# What is read to find files with the same bytes: less than the scan before training reads.
MOST_BYTES = 256_000_000
MOST_FILES = 20_000


def suspicious(source: Source) -> list[str]:
    """Lines about a set that is pre-trained on: names of masks, parts for measuring, doubles."""
    paths = paths_of(source) if source.named else []
    return [*of_names(paths), *of_parts(paths), *of_doubles([source])]


def notes(train: Source, val: Source, labels: Sequence[str]) -> list[str]:
    """What a verb says of labelled sets: how many images are left out, and what is suspicious."""
    return [*filter(None, [train.left_out]), *suspicious_labels(train, val, labels)]


def suspicious_labels(train: Source, val: Source, labels: Sequence[str]) -> list[str]:
    """Lines about labelled sets: names of masks, doubles, classes of one image, patients.

    Args:
        train: the training images.
        val: the validation images.
        labels: the class of each training image.
    """
    paths = paths_of(train) if train.named else []
    lines = [*of_names(paths), *of_doubles([train, val])]
    counts = Counter(labels)
    single = sum(count == 1 for count in counts.values())
    if 2 * single > len(counts):
        lines.append(f"{single} of {len(counts)} classes have a single training image")
    inner = innermost(train)
    ungrouped = isinstance(inner, Files) and inner.groups is None
    columns = inner.columns if isinstance(inner, Files) and ungrouped else ()
    groups = [name for name in columns if GROUPS.fullmatch(name.lower())]
    if groups:
        lines.append(
            f"the table has a column '{groups[0]}': --group-column '{groups[0]}' keeps the images "
            "of each on one side of every split"
        )
    return lines


def of_names(paths: Sequence[str]) -> Iterator[str]:
    """Names and folders of masks, depth maps and thumbnails, if not all images have them."""
    found = Counter[tuple[str, str]]()
    folders = Counter[str]()
    for path in paths:
        folder, _, name = path.rpartition("/")
        folders[folder] += 1
        if name.startswith("._"):
            found["begin with ._ (copies that macOS makes)", "._*"] += 1
        elif ending := ENDING.search(name):
            found[f"end in {ending[0]}", f"*{ending[0]}*"] += 1
    for path, count in folders.items():
        for part in set(path.split("/")):
            if FOLDER.fullmatch(part):
                found[f"are in a folder '{part}'", part] += count
    for (words, pattern), count in found.most_common(5):
        hit = matches(pattern, paths)
        if not hit.all():
            yield (
                f"{count} of {len(paths)} names {words}, such as '{paths[int(hit.argmax())]}': "
                f"--exclude '{pattern}' leaves them out"
            )


def of_parts(paths: Sequence[str]) -> Iterator[str]:
    """Parts of the set that are there for measuring."""
    first = Counter(path.partition("/")[0] for path in paths)
    parts = [name for name in sorted(first) if PART.fullmatch(name.lower())]
    held = [name for name in parts if not name.lower().startswith(("train", "unlab"))]
    if len(parts) > 1 and held:
        count = sum(first[name] for name in held)
        flag = " ".join(f"'{name}/*'" for name in held)
        yield (
            f"{count} of {len(paths)} images are in {', '.join(held)}: --exclude {flag} keeps "
            "them for measuring"
        )


def of_doubles(sources: Sequence[Source]) -> Iterator[str]:
    """Files with the same bytes: in the first set, and in the first and the second one."""
    sizes = [some for some in map(sizes_of, sources) if some is not None]
    if len(sizes) < len(sources):  # images that are no files
        return
    digests = digests_of(sources, np.concatenate(sizes))
    if digests is None:
        yield (
            "files with the same bytes were not looked for: too many have the same size as another "
            "(mae pack --drop-duplicates looks at all)"
        )
        return
    first = Counter(filter(None, digests[0]))
    count = sum(some - 1 for some in first.values())
    if count:
        i, k = same_pair(digests[0])
        yield (
            f"{count} of {len(sources[0])} images with the bytes of another one, such as "
            f"'{sources[0].name(i)}' and '{sources[0].name(k)}' (mae pack --drop-duplicates "
            "leaves them out)"
        )
    for other, known in zip(sources[1:], digests[1:]):
        shared = [i for i, digest in enumerate(known) if digest and digest in first]
        if shared:
            yield (
                f"{len(shared)} of {len(other)} validation images with the bytes of a training "
                f"image, such as '{other.name(shared[0])}': the scores flatter"
            )


def same_pair(digests: Sequence[bytes]) -> tuple[int, int]:
    """The first two places with the same digest."""
    seen: dict[bytes, int] = {}
    for i, digest in enumerate(digests):
        if digest and seen.setdefault(digest, i) != i:
            return seen[digest], i
    raise ValueError("all differ")


def digests_of(sources: Sequence[Source], sizes: np.ndarray) -> list[list[bytes]] | None:
    """A digest of each file whose size another one has too, b"" for all others; None where too much
    would have to be read."""
    _, place, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    candidates = np.flatnonzero(counts[place] > 1)
    if sizes[candidates].sum() > MOST_BYTES or len(candidates) > MOST_FILES:
        return None
    where = list(chain.from_iterable(((s, i) for i in range(len(s))) for s in sources))

    def digest(k: int) -> bytes:
        source, i = where[k]
        try:
            data = source.read(i)
        except (OSError, BadImage):
            return b""
        return hashlib.sha256(data).digest() if isinstance(data, bytes) and data else b""

    digests = [b""] * len(where)
    with ThreadPoolExecutor(8) as pool:  # which hides the latency of a network's disk
        for k, found in zip(candidates, pool.map(digest, candidates.tolist())):
            digests[k] = found
    ends = np.cumsum([len(source) for source in sources]).tolist()
    return [digests[end - len(source) : end] for source, end in zip(sources, ends)]


def sizes_of(source: Source) -> np.ndarray | None:
    """The bytes of each file, int64 [N]; None for images that are no files."""
    if isinstance(source, Tiles):
        return None
    if isinstance(source, Subset):
        sizes = sizes_of(source.source)
        return None if sizes is None else sizes[source.ids]
    if isinstance(source, SourceWrapper):
        return sizes_of(source.source)
    if isinstance(source, Tars):
        return np.asarray(source.places[:, 2])
    return source.sizes if isinstance(source, Files) else None


def innermost(source: Source) -> Source:
    """The source inside all wrappers."""
    return innermost(source.source) if isinstance(source, SourceWrapper) else source
