"""Which images of a set are taken: patterns of names (--include, --exclude)."""

import fnmatch
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from torchmae.data.config import Listing
from torchmae.data.sources.files import Files
from torchmae.data.sources.packed import Packed
from torchmae.data.sources.source import Source, copied
from torchmae.data.sources.tars import Tars
from torchmae.errors import UserError


class Pattern(NamedTuple):
    """A pattern of a flag, and how many images of all opened sets it hits."""

    flag: str
    text: str
    hits: int = 0


class Kept(NamedTuple):
    """Which images of a set some patterns take."""

    keep: np.ndarray  # bool [N]
    patterns: Sequence[Pattern]
    words: str  # how many are left out, and by which patterns

    @property
    def ids(self) -> list[int]:
        """The numbers of those that are taken."""
        return [int(i) for i in np.flatnonzero(self.keep)]

    def takes(self, path: str) -> bool:
        """Whether an image of this path, which need not be one of the set, would be taken."""
        return bool(taken(self.patterns, [matches(one.text, [path]) for one in self.patterns])[0])


def select_all(sources: Sequence[Source], listing: Listing, spec: str) -> list[Source]:
    """The images of some sets that a listing takes; arguments and errors as of `kept`."""
    if not listing.patterns:
        return list(sources)
    return [subset(source, one) for source, one in zip(sources, kept(sources, listing, spec))]


def kept(sources: Sequence[Source], listing: Listing, spec: str) -> list[Kept]:
    """Which images of some sets a listing takes.

    Args:
        sources: opened together, such as training and validation images.
        listing: its patterns, at least one.
        spec: what the user named, for messages.

    Raises:
        UserError: a pattern matches nothing in any of the sets, or nothing is left of one.
    """
    patterns = [Pattern(*pair) for pair in listing.patterns]
    for source in sources:
        if not source.named:
            raise UserError(
                f"{patterns[0].flag} '{patterns[0].text}': the images of {spec} have numbers, no "
                "names that a pattern could match; leave it out, or give images in files"
            )
    paths = [paths_of(source) for source in sources]
    hits = [[matches(pattern.text, some) for pattern in patterns] for some in paths]
    counts = [sum(int(found[k].sum()) for found in hits) for k in range(len(patterns))]
    patterns = [pattern._replace(hits=count) for pattern, count in zip(patterns, counts)]
    if not listing.inherited:
        refuse_idle(patterns, paths[0], spec)
    given = " ".join(f"{pattern.flag} '{pattern.text}'" for pattern in patterns)
    inherited = " (as in the run: none takes all)" * listing.inherited
    chosen = []
    for found in hits:
        keep = taken(patterns, found)
        if not keep.any():
            raise UserError(f"{given} leaves nothing of the {len(keep)} images of {spec}")
        out = int((~keep).sum())
        words = f"{out} of {len(keep)} images left out by {given}{inherited}"
        chosen.append(Kept(keep, patterns, words))
    return chosen


def paths_of(source: Source) -> list[str]:
    """The path below DATA of each image; in tar files, the one inside its tar."""
    if isinstance(source, Files | Packed):
        return list(source.names)
    read = source.member if isinstance(source, Tars) else source.name
    return [read(i) for i in range(len(source))]


def matches(pattern: str, paths: Sequence[str]) -> np.ndarray:
    """Which paths a pattern matches, as bool [N].

    It may match the path, the beginning of the path up to a folder, or (without a "/") the name of
    the file or of any folder alone. "*" stands for any text, also with "/".
    """
    text = pattern.removeprefix("./").rstrip("/")
    body = re.sub(r"\\[Zz]$", "", fnmatch.translate(text))
    before = "" if "/" in text else "(?s:.*/)?"
    found = re.compile(f"{before}{body}(?s:/.*)?")
    return np.array([found.fullmatch(path) is not None for path in paths], dtype=bool)


def taken(patterns: Sequence[Pattern], hits: Sequence[np.ndarray]) -> np.ndarray:
    """Which images are taken, as bool [N]: those included, if anything is, and not excluded."""
    masks = {
        flag: [hit for pattern, hit in zip(patterns, hits) if pattern.flag == flag]
        for flag in ("--include", "--exclude")
    }
    keep = np.ones(len(hits[0]), dtype=bool)
    if masks["--include"]:
        keep = np.any(masks["--include"], axis=0)
    if masks["--exclude"]:
        keep = keep & ~np.any(masks["--exclude"], axis=0)
    return keep


def subset(source: Source, kept: Kept) -> Source:
    """The images that are kept, with words for the others."""
    bad = [file for file in source.unusable if kept.takes(file.name)]
    chosen = source if kept.keep.all() else source.select(kept.ids)
    return copied(chosen, unusable=bad, left_out=kept.words)


def refuse_idle(patterns: Sequence[Pattern], paths: Sequence[str], spec: str) -> None:
    """Raises UserError for a pattern that matches nothing: it is misspelt, or not in quotes."""
    for pattern in patterns:
        if pattern.hits:
            continue
        such = f", such as '{paths[0]}'" if paths else ""
        core = pattern.text.strip("*/.")
        loose = f"*{core}*"
        near = int(matches(loose, paths).sum()) if core and loose != pattern.text else 0
        hint = f"; '{loose}' matches {near}" if near else ""
        raise UserError(
            f"{pattern.flag} '{pattern.text}' matches none of the {len(paths)} images of "
            f"{spec}{such}{hint}. A pattern is in quotes and matches a whole name, a folder or a "
            f"path below DATA; {pattern.flag} none takes no pattern"
        )
