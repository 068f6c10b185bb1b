"""Boxes that were found tile by tile, as those of one image."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64

from torchmae.errors import library

NEAR = 0.01  # of a tile's side: what ends nearer to its edge may go on behind it
SAME = 0.5  # IoU from which on two boxes are one object: the detector's own, within a tile


def at_seams(
    boxes: Float[np.ndarray, "N 4"],
    found_in: Int64[np.ndarray, " N"],
    tiles: Int64[np.ndarray, "T 4"],
    size: tuple[int, int],
) -> tuple[Bool[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """Which boxes may be cut by the edge of their tile, and which of these another tile holds
    whole, so that they are its to find.

    Args:
        boxes: x1 y1 x2 y2 in the image.
        found_in: the number of each box's tile.
        tiles: x1 y1 x2 y2 of those that were looked at.
        size: height and width of the image, whose own edges cut nothing.
    """
    sides = (tiles[:, 2:] - tiles[:, :2]).max(initial=0)
    margin = max(1.0, NEAR * sides)
    ends = np.array([size[1], size[0]])
    # Where a tile sees objects whole: without its rim, unless that is the image's.
    first = np.where(tiles[:, :2] > 0, tiles[:, :2] + margin, -np.inf)
    last = np.where(tiles[:, 2:] < ends, tiles[:, 2:] - margin, np.inf)
    cut = (boxes[:, :2] < first[found_in]) | (boxes[:, 2:] > last[found_in])
    cut = cut.any(axis=1)
    held = np.zeros(len(boxes), dtype=bool)
    for k in np.flatnonzero(cut).tolist():
        inside = (boxes[k, :2] >= first) & (boxes[k, 2:] <= last)
        held[k] = inside.all(axis=1).any()
    return cut, held


def without_doubles(
    boxes: Float[np.ndarray, "N 4"],
    scores: Float[np.ndarray, " N"],
    classes: Int64[np.ndarray, " N"],
) -> Int64[np.ndarray, " K"]:
    """The numbers of the boxes that are left of overlapping ones of one class, those with the
    highest scores, highest first (greedy non-maximum suppression)."""
    nms = library("torchvision", "detection").ops.nms
    kept = []
    for number in np.unique(classes).tolist():
        own = np.flatnonzero(classes == number)
        # In double precision: single has half pixels from 4 million on, areas are larger.
        some = torch.from_numpy(boxes[own].astype(np.float64))
        left = nms(some, torch.from_numpy(scores[own].astype(np.float64)), SAME)
        kept.append(own[left.numpy()])
    every = np.concatenate(kept) if kept else np.zeros(0, dtype=np.int64)
    return every[np.argsort(-scores[every], kind="stable")]
