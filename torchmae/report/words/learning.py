"""Whether a pre-training has learned more than predicting means and, if not, the likely cause."""

import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from torchmae.data.decode import BadImage
from torchmae.data.loader import read_pixels
from torchmae.data.sources.source import Source
from torchmae.hashing import hash32

LOOKED_AT = 100  # images that are looked at again at the end
FEW_STEPS = 200  # below these a loss that is not better than the baselines means nothing yet
ENDS = 5  # log records, whose mean is compared: each has the baselines of a single batch
BASELINE = "loss of "  # what their names in log.jsonl begin with


class Look(NamedTuple):
    """What was seen of the images: how many were looked at, how many of these have a single colour,
    and how many are copies of another one of these."""

    images: int
    constant: int
    copies: int


def look_at(source: Source) -> Look:
    """Decodes `LOOKED_AT` images of a source, drawn over all of it."""
    count = len(source)
    ids: Sequence[int] = range(count)
    if count > LOOKED_AT:
        drawn = (hash32(0, count, n) % count for n in range(2 * LOOKED_AT))
        ids = list(dict.fromkeys(drawn))[:LOOKED_AT]

    def seen(i: int) -> tuple[bool, tuple[Any, ...]] | None:
        try:
            pixels = read_pixels(source, i)
        except (BadImage, OSError):
            return None
        flat = pixels.reshape(-1, pixels.shape[2])
        return bool((np.nanmin(flat, 0) == np.nanmax(flat, 0)).all()), (
            pixels.shape,
            zlib.crc32(pixels.tobytes()),
        )

    with ThreadPoolExecutor(4) as pool:
        found = [one for one in pool.map(seen, ids) if one is not None]
    return Look(
        len(found), sum(one for one, _ in found), len(found) - len({key for _, key in found})
    )


class End(NamedTuple):
    """The end of a training: its loss (None: not finite) and those of the trivial baselines, means
    of the same log records, and over how many steps these go."""

    loss: float | None
    baselines: dict[str, float]
    steps: int

    @property
    def learned(self) -> bool:
        return self.loss is not None and self.loss < min(self.baselines.values())

    @property
    def span(self) -> str:
        """What the numbers are means of; curves and progress lines show single records."""
        return f"mean of the last {self.steps:,} steps"


def end_of(records: Sequence[Mapping[str, Any]]) -> End:
    """The end of a training, from the records of log.jsonl that hold a loss, oldest first."""
    last = records[-ENDS:]
    names = [name for name in last[-1] if name.startswith(BASELINE)]
    losses = [record["loss"] for record in last]
    return End(
        None if None in losses else sum(losses) / len(losses),
        {n.removeprefix(BASELINE): sum(r[n] for r in last) / len(last) for n in names},
        last[-1]["step"] - (records[-ENDS - 1]["step"] if len(records) > ENDS else 0),
    )


def verdict(records: Sequence[Mapping[str, Any]], base_lr: float, look: Look) -> list[str]:
    """Lines about what a training has learned, beside its loss; none where all is well.

    Args:
        records: those of log.jsonl that hold a loss, oldest first.
        base_lr: of the training.
        look: what was seen of its images.
    """
    lines = []
    end = end_of(records)
    if not end.learned:
        lines.append(
            f"It is not better than these trivial baselines: {cause(records, base_lr, look)}"
        )
    elif look.constant * 10 > look.images:
        lines.append(f"Note: {constant_words(look)}.")
    if look.copies * 10 > look.images and look.constant * 2 < look.images:
        lines.append(
            f"Note: {look.copies} of {look.images} images that were looked at are copies of "
            "others: the loss is that of images known by heart, and says little of new ones. "
            "Remove the copies."
        )
    return lines


def constant_words(look: Look) -> str:
    return (
        f"{look.constant} of {look.images} images that were looked at have a single color, in "
        "which there is nothing to predict"
    )


def cause(records: Sequence[Mapping[str, Any]], base_lr: float, look: Look) -> str:
    """The likely cause of a loss that is not better than the trivial baselines, and what to do."""
    if look.constant * 2 >= look.images > 0:
        return f"{constant_words(look)}. Are these the right files (and --nodata and --bands)?"
    unstable = unstable_words(records)
    if unstable:
        return (
            f"{unstable}, so the learning rate is probably too high. Try --base-lr "
            f"{base_lr / 10:.2g} (it was {base_lr:.2g}), with a new --out."
        )
    if records[-1]["step"] < FEW_STEPS:
        return (
            f"{records[-1]['step']} steps are too few to tell. Train longer (--epochs, new --out)."
        )
    *before, last = quarters(records)
    if not before or last < 0.995 * before[-1]:
        return "the loss may still be falling. Train longer (--epochs, new --out)."
    return (
        "the loss has stopped falling there, so that more steps will not help. What is hidden "
        "cannot be told from what is visible: look at the pictures and at the images (noise, text, "
        "blank areas?), and try a lower --mask-ratio or another --image-size."
    )


def unstable_words(records: Sequence[Mapping[str, Any]]) -> str:
    """How the losses show that the training was not stable; empty where they do not."""
    skipped = sum(record["skipped"] for record in records)
    if skipped:
        return f"{skipped} steps had a loss or gradient that was not finite"
    highest = max(record["loss"] for record in records if record["loss"] is not None)
    trivial = max(value for r in records for name, value in r.items() if name.startswith(BASELINE))
    if highest > 3 * trivial:  # untrained weights are not as bad: they predict nearly nothing
        return f"the loss went up to {highest:.4g}"
    losses = quarters(records)
    if losses[-1] > 1.03 * min(losses):
        return f"the loss has risen again, from {min(losses):.4f} to {losses[-1]:.4f}"
    return ""


def quarters(records: Sequence[Mapping[str, Any]]) -> list[float]:
    """The mean loss of each quarter of the records; of each record, where there are few."""
    losses = [record["loss"] for record in records if record["loss"] is not None]
    size = max(1, len(losses) // 4)
    parts = [losses[max(0, end - size) : end] for end in range(len(losses), 0, -size)]
    return [sum(part) / len(part) for part in reversed(parts)]
