"""The paper's experiments: what each varies, and what the paper has measured. Importable without
torch.

Accuracies are those of ViT-L/16 on ImageNet-1K after 800 epochs: top-1 in %, fine-tuned and linear
probe.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torchmae.report.experiments.sweep import FIGURE_9

Changes = Mapping[str, Any]  # of settings of mae pretrain

FINETUNED, LINEAR = "fine-tuned", "linear probe"  # the paper's two measures
ALL = "all"
# Stands for the folder of the tokenizer that the ablation trains.
OWN_TOKENS = "tokens"


@dataclass(frozen=True)
class Point:
    """One value of what a study varies.

    Attributes:
        label: the value in words.
        changes: the settings of mae pretrain that it changes.
        paper: the paper's accuracies in %, by `FINETUNED` and `LINEAR`.
        x: its place on the axis where the varied thing is a number.
        measured_by: the measures to take in place of the requested ones, by the column that shows
            them.
        default: whether it is what the paper compares with.
    """

    label: str
    changes: Changes
    paper: Mapping[str, float] = field(default_factory=dict)
    x: float | None = None
    measured_by: Mapping[str, str] = field(default_factory=dict)
    default: bool = False


class Base(NamedTuple):
    """What studies know of the trainings that they vary: the encoder's width and number of blocks,
    and the epochs."""

    width: int
    depth: int
    epochs: float


@dataclass(frozen=True)
class Study:
    """One experiment: its title, what is varied, and its points.

    Attributes:
        title: with the number of the figure or table.
        axis: what is varied, in words.
        points: from what is known of the trainings.
    """

    title: str
    axis: str
    points: Callable[[Base], list[Point]]


def numbers(name: str, default: float, *rows: tuple[float, float, float]) -> list[Point]:
    """Points of one numeric setting, from rows of (value, fine-tuned, linear probe)."""
    return [
        Point(f"{x:g}", {name: x}, {FINETUNED: ft, LINEAR: lin}, x, default=x == default)
        for x, ft, lin in rows
    ]


def words(default: str, *rows: tuple[str, Changes, float, float]) -> list[Point]:
    """Points from rows of (label, changes, fine-tuned, linear probe)."""
    return [
        Point(label, changes, {FINETUNED: ft, LINEAR: lin}, default=label == default)
        for label, changes, ft, lin in rows
    ]


def mask_ratio(base: Base) -> list[Point]:
    """Figure 5."""
    return numbers(
        "mask_ratio",
        0.75,
        (0.1, 83.2, 54.6),
        (0.2, 83.4, 58.9),
        (0.3, 83.4, 61.7),
        (0.4, 84.7, 67.0),
        (0.5, 84.9, 69.9),
        (0.6, 85.0, 71.8),
        (0.7, 84.9, 73.2),
        (0.75, 84.9, 73.5),
        (0.8, 84.5, 71.8),
        (0.9, 83.0, 66.1),
    )


def decoder_depth(base: Base) -> list[Point]:
    """Table 1a."""
    return numbers(
        "decoder_depth",
        8,
        (1, 84.8, 65.5),
        (2, 84.9, 70.0),
        (4, 84.9, 71.9),
        (8, 84.9, 73.5),
        (12, 84.4, 73.3),
    )


def decoder_width(base: Base) -> list[Point]:
    """Table 1b: 1/8, 1/4, 1/2, 3/4 and all of the encoder's width, as the paper's 128 to 1024 are
    of 1024."""
    rows = (
        (1 / 8, 84.9, 69.1),
        (1 / 4, 84.8, 71.3),
        (1 / 2, 84.9, 73.5),
        (3 / 4, 84.4, 73.1),
        (1.0, 84.3, 73.1),
    )
    points = []
    for share, finetuned, linear in rows:
        width = round(base.width * share)
        paper = {FINETUNED: finetuned, LINEAR: linear}
        label = f"{width} ({1024 * share:g} in the paper)"
        changes = {"decoder_dim": width}
        points.append(Point(label, changes, paper, width, default=share == 1 / 2))
    return points


def mask_tokens(base: Base) -> list[Point]:
    """Table 1c."""
    return words(
        "encoder without",
        ("encoder with mask tokens", {"encode_all": True}, 84.2, 59.6),
        ("encoder without", {"encode_all": False}, 84.9, 73.5),
    )


def targets(base: Base) -> list[Point]:
    """Table 1d. The paper's tokens are DALL-E's; here a tokenizer is trained on the same images."""
    return words(
        "pixels",
        ("pixels", {"target": "pixels"}, 84.9, 73.5),
        ("normalized pixels", {"target": "norm-pixels"}, 85.4, 73.9),
        ("PCA", {"target": "pca"}, 84.6, 72.3),
        ("tokens", {"target": OWN_TOKENS}, 85.3, 71.6),
    )


def augmentation(base: Base) -> list[Point]:
    """Table 1e."""
    return words(
        "crop, random size",
        ("none", {"crop": "none", "color_jitter": 0.0}, 84.0, 65.7),
        ("crop, fixed size", {"crop": "fixed", "color_jitter": 0.0}, 84.7, 73.1),
        ("crop, random size", {"crop": "random", "color_jitter": 0.0}, 84.9, 73.5),
        ("crop + color jitter", {"crop": "random", "color_jitter": 0.4}, 84.3, 71.9),
    )


def sampling(base: Base) -> list[Point]:
    """Table 1f."""
    return words(
        "random 75 %",
        ("random 75 %", {"masking": "random", "mask_ratio": 0.75}, 84.9, 73.5),
        ("block 50 %", {"masking": "block", "mask_ratio": 0.5}, 83.9, 72.3),
        ("block 75 %", {"masking": "block", "mask_ratio": 0.75}, 82.8, 63.9),
        ("grid 75 %", {"masking": "grid", "mask_ratio": 0.75}, 84.0, 66.0),
    )


def length(base: Base) -> list[Point]:
    """Figure 7: 1/8 to 2 times the epochs, as the paper's 100 to 1600 are of 800. With the
    warmup-stable-decay schedule one training, continued, serves all."""
    rows = (
        (1 / 8, 82.3, 57.3),
        (1 / 4, 83.3, 64.4),
        (1 / 2, 84.3, 69.7),
        (1.0, 84.9, 73.5),
        (2.0, 85.1, 75.1),
    )
    return [
        Point(
            f"{base.epochs * share:.4g}",
            # The warm-up must not depend on the length, or there is no common trunk.
            {
                "epochs": base.epochs * share,
                "schedule": "wsd",
                "warmup_epochs": base.epochs / 8 / 20,
            },
            {FINETUNED: finetuned, LINEAR: linear},
            base.epochs * share,
            default=share == 1,
        )
        for share, finetuned, linear in rows
    ]


def partial(base: Base) -> list[Point]:
    """Figure 9: the default pre-training, with more and more of its last blocks fine-tuned."""
    *shares, (_, all_blocks) = FIGURE_9.values.items()
    found = [
        Point(part, {}, {FINETUNED: value}, float(part), {"finetune": f"finetune-{part}"})
        for part, value in shares
        if float(part) < base.depth
    ]
    whole = {"finetune": "finetune-all"}
    return [*found, Point("all", {}, {FINETUNED: all_blocks}, base.depth, whole, True)]


def wall_clock(base: Base) -> list[Point]:
    """Table 2, ViT-L: see the images per second; mae bench wall-clock times more carefully."""
    rows = (
        ("mask tokens in the encoder, 8 decoder blocks", True, 8, 84.2),
        ("8 decoder blocks", False, 8, 84.9),
        ("1 decoder block", False, 1, 84.8),
    )
    return [
        Point(
            label,
            {"encode_all": everywhere, "decoder_depth": depth},
            {FINETUNED: finetuned},
            default=not everywhere and depth == 8,
        )
        for label, everywhere, depth, finetuned in rows
    ]


def loss(base: Base) -> list[Point]:
    """Section 4.1: the loss on all patches costs half a percent when fine-tuned."""
    return [
        Point("hidden patches", {"loss_on": "hidden"}, {FINETUNED: 84.9}, default=True),
        Point("all patches", {"loss_on": "all"}, {FINETUNED: 84.4}),
    ]


STUDIES: dict[str, Study] = {
    "fig5": Study("Figure 5: mask ratio", "mask ratio", mask_ratio),
    "table1a": Study("Table 1a: decoder depth", "decoder blocks", decoder_depth),
    "table1b": Study("Table 1b: decoder width", "decoder width", decoder_width),
    "table1c": Study("Table 1c: mask tokens", "encoder", mask_tokens),
    "table1d": Study("Table 1d: target", "target", targets),
    "table1e": Study("Table 1e: augmentation", "augmentation", augmentation),
    "table1f": Study("Table 1f: mask sampling", "sampling", sampling),
    "fig7": Study("Figure 7: length of training", "epochs", length),
    "fig9": Study("Figure 9: partial fine-tuning", "blocks fine-tuned", partial),
    "table2": Study("Table 2: wall-clock time", "model", wall_clock),
    "loss": Study("Section 4.1: patches of the loss", "loss on", loss),
}
