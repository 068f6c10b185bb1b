"""What pre-training has gained in our own results, for so many images and labels."""

from typing import NamedTuple

SOURCE = "docs/results.md, mae compare, vit_micro at 128 px"
FAR = 3  # times more or fewer images or labels than in a result: then it says nothing


class Gain(NamedTuple):
    """A result: points of accuracy of a fine-tuned run above the same encoder from scratch, with
    the ends of its 95 % interval over the seeds."""

    data: str
    images: int  # that were pre-trained on
    labels_per_class: int
    points: float
    low: float
    high: float


GAINS = (
    Gain("Imagenette", 9469, 10, 7.8, 4.2, 11.3),
    Gain("Imagenette", 9469, 50, 10.2, 8.5, 12.0),
    Gain("brain MRI", 2123, 10, 9.0, 5.1, 13.0),
    Gain("brain MRI", 2123, 50, 10.4, 6.4, 14.5),
)


def near(one: float, other: float) -> bool:
    """Whether two counts are of about one size."""
    return other / FAR <= one <= other * FAR


def known_gains(images: int, labels_per_class: int | None) -> list[Gain]:
    """The results with about so many images and labels; None: with any number of labels."""
    return [
        gain
        for gain in GAINS
        if near(images, gain.images)
        and (labels_per_class is None or near(labels_per_class, gain.labels_per_class))
    ]


def band(gains: list[Gain]) -> str:
    """The band of some results in words, with where it is from; "not known" of none."""
    if not gains:
        return "not known: no result of ours has about so many images and labels (docs/results.md)"
    low, high = min(gain.low for gain in gains), max(gain.high for gain in gains)
    each = "; ".join(
        f"{gain.data}, {gain.images:,} images, {gain.labels_per_class} labels a class: "
        f"{gain.points:+.1f}"
        for gain in gains
    )
    return (
        f"{low:+.1f} to {high:+.1f} points of accuracy above the same encoder from scratch "
        f"({each}; {SOURCE}). Your images and another size may gain more or less"
    )
