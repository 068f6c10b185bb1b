"""What a person should know of a data set, in words, the worst first."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from torchmae.data.quality.duplicates import Duplicates, Leak
from torchmae.data.quality.survey import Survey
from torchmae.data.sources.select import paths_of
from torchmae.data.suspicious import of_names
from torchmae.errors import printable

MOSTLY = 0.5  # share of black or white pixels from which an image counts as saturated
UNEVEN = 10  # times: the largest class against the smallest


class Finding(NamedTuple):
    """A line about the data; `bad`: something to repair before anything is trained."""

    bad: bool
    text: str


class Checked(NamedTuple):
    """A survey, and what follows from it."""

    survey: Survey
    duplicates: Duplicates
    leaks: Sequence[Leak]

    @property
    def dark(self) -> list[int]:
        """Images that are mostly black, and not blank."""
        return self.which(self.survey.black)

    @property
    def bright(self) -> list[int]:
        """Images that are mostly white, and not blank."""
        return self.which(self.survey.white)

    @property
    def blank(self) -> list[int]:
        """Images of a single color."""
        return [int(i) for i in np.flatnonzero(self.survey.blank)]

    def which(self, share: np.ndarray) -> list[int]:
        return [int(i) for i in np.flatnonzero((share > MOSTLY) & ~self.survey.blank)]

    @property
    def copies(self) -> tuple[int, int]:
        """Images beside the first of each group: with the same pixels, and that look the same."""
        digests = self.survey.digests
        near = sum(len({digests[i] for i in group}) - 1 for group in self.duplicates.near)
        return sum(len(group) - 1 for group in self.duplicates.exact), near


def findings(checked: Checked) -> list[Finding]:
    """What is wrong, then what is worth knowing; none where nothing is."""
    lines = [*of_leaks(checked), *of_bad(checked), *of_copies(checked), *of_pixels(checked)]
    lines += of_classes(checked.survey)
    sources, first = checked.survey.sources, 0
    for source in sources:
        of = f"{checked.survey.parts[first]}: " if len(sources) > 1 and len(source) else ""
        names = of_names(paths_of(source) if source.named else [])
        lines += [Finding(False, f"{of}{line}") for line in names]
        first += len(source)
    return sorted(lines, key=lambda finding: not finding.bad)


def of_leaks(checked: Checked) -> Iterator[Finding]:
    """Leakage, for each pair of parts: copies, then what only looks alike."""
    survey, pairs = checked.survey, defaultdict[tuple[str, str, bool], list[Leak]](list)
    for leak in checked.leaks:
        pairs[survey.parts[leak.image], survey.parts[leak.copy], leak.certain].append(leak)
    for (held, before, certain), some in pairs.items():
        such = f"such as {quoted(survey, some[0].image)} and {quoted(survey, some[0].copy)}"
        count = f"{len(some)} of {sum(part == held for part in survey.parts)} images of {held}"
        exact, are = sum(leak.exact for leak in some), "is" if len(some) == 1 else "are"
        copies = "a copy of an image" if len(some) == 1 else "copies of images"
        if certain:
            text = (
                f"LEAKAGE: {count} {are} {copies} of {before} ({exact} with the same pixels, "
                f"{len(some) - exact} that look the same), {such}: scores on {held} flatter"
            )
        else:
            text = (
                f"{count} {are} very like images of {before}, {such}: frames of one video, slices "
                f"of one patient? Then scores on {held} flatter; look at the pairs"
            )
        yield Finding(certain, text)


def quoted(survey: Survey, i: int) -> str:
    """The name of an image, fit to print."""
    return f"'{printable(survey.name(i))}'"


def counted(count: int, what: str) -> str:
    """Such as "1 group", "2 groups"."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def of_bad(checked: Checked) -> Iterator[Finding]:
    """Files that cannot be read."""
    bad = checked.survey.bad
    if bad:
        yield Finding(True, f"{counted(len(bad), 'file')} cannot be read; the first: {bad[0]}")


def of_copies(checked: Checked) -> Iterator[Finding]:
    """Duplicates."""
    exact, near = checked.copies
    groups = checked.duplicates
    if exact:
        yield Finding(
            True,
            f"{counted(exact, 'exact duplicate')} (the same pixels as another image), in "
            f"{counted(len(groups.exact), 'group')}, such as "
            f"{pair(checked.survey, groups.exact[0])}",
        )
    if near:
        two = other_pixels(checked.survey, groups.near[0])
        yield Finding(
            False,
            f"{counted(near, 'near-duplicate')} (they look like another image), in "
            f"{counted(len(groups.near), 'group')}, such as {pair(checked.survey, two)}",
        )


def other_pixels(survey: Survey, group: Sequence[int]) -> list[int]:
    """The first image of a group, and the first that has not its pixels."""
    digests = survey.digests
    return [group[0], next(i for i in group if digests[i] != digests[group[0]])]


def pair(survey: Survey, group: Sequence[int]) -> str:
    return " and ".join(quoted(survey, i) for i in group[:2])


def of_pixels(checked: Checked) -> Iterator[Finding]:
    """Blank and saturated images, and those with no-data."""
    survey, count = checked.survey, len(checked.survey.good)
    if checked.blank:
        first = quoted(survey, checked.blank[0])
        yield Finding(
            True, f"{counted(len(checked.blank), 'blank image')} (one color), such as {first}"
        )
    for some, word in ((checked.dark, "black"), (checked.bright, "white")):
        if some:
            yield Finding(
                False,
                f"mostly {word} (more than half of the pixels): {len(some)} of {count} images, "
                f"such as {quoted(survey, some[0])}",
            )
    without = np.flatnonzero(survey.missing > 0)
    if len(without):
        yield Finding(
            False,
            f"no-data: {survey.missing[survey.good].mean():.1%} of the values, in {len(without)} "
            f"of {count} images, such as {quoted(survey, int(survey.missing.argmax()))}: patches "
            "that have some are never in the loss",
        )


def class_counts(survey: Survey) -> dict[str, Counter[str]]:
    """For each class how many images there are of it in each part."""
    counts: dict[str, Counter[str]] = {}
    for part, label in zip(survey.parts, survey.labels):
        if label is not None:
            counts.setdefault(label, Counter())[part] += 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1].total(), item[0])))


def of_classes(survey: Survey) -> Iterator[Finding]:
    """Classes of very different sizes, and classes that a part lacks."""
    counts = class_counts(survey)
    if len(counts) < 2:
        return
    (most, many), *_, (least, few) = counts.items()
    if many.total() > UNEVEN * few.total():
        yield Finding(
            False,
            f"classes are uneven: '{printable(most)}' has {many.total():,} images, "
            f"'{printable(least)}' {few.total():,}",
        )
    parts = {part for part, label in zip(survey.parts, survey.labels) if label is not None}
    for part in sorted(parts):
        absent = [label for label, count in counts.items() if not count[part]]
        if absent:
            yield Finding(
                False,
                f"classes without an image in {part}: {len(absent)} of {len(counts)}, such as "
                f"'{printable(absent[0])}'",
            )
