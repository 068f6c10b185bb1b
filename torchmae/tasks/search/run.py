"""`mae search`: the nearest images to others, and images that are nearly the same."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from torchmae.data.decode import BadImage
from torchmae.data.formats.raster import viewable
from torchmae.data.loader import read_pixels
from torchmae.data.sources.single import Named, read_named
from torchmae.data.sources.source import Source, with_decode
from torchmae.data.transforms import CenterCropResize
from torchmae.data.view import center_crop
from torchmae.disk import whole_file
from torchmae.errors import RunError, UserError, choose, library, printable
from torchmae.eval.extract import features_of, image_batches, shown
from torchmae.eval.neighbors.nearest import (
    INDEXES,
    Space,
    blocks_of,
    close_blocks,
    exact,
    found_blocks,
    groups,
)
from torchmae.eval.neighbors.stored import Features, features_of_set, open_of_run
from torchmae.models.encoders import Backbone
from torchmae.models.weights import load
from torchmae.report.sheet import bands_note
from torchmae.report.sheets.rows import Told, sheet_of_rows
from torchmae.report.tables import Column, check_table, write_table
from torchmae.tasks.search.config import Search, check
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)

MANY = 1_000_000  # images, beyond which an approximate index is worth its errors
MOST_QUERIES = 64  # images that are looked for at a time
MOST_ROWS, MOST_TILES = 24, 8  # of a sheet
NEIGHBORS = 32  # of each image, among which faiss looks for duplicates


class Images(NamedTuple):
    """The images of a set, as the encoder gets them, for pictures."""

    source: Source
    crop: CenterCropResize

    def told(self, i: int, words: str) -> Told:
        """An image with words; gray where it can no longer be read."""
        try:
            pixels, _ = self.crop(viewable(read_pixels(self.source, i)))
        except BadImage:
            pixels = torch.full((1, *self.crop.size), 200, dtype=torch.uint8)
        return Told(pixels, (words, self.source.name(i).rpartition("/")[2]))


def run(config: Search) -> Path:
    """Writes the table and the sheet, and returns the table.

    Its columns are, with --query, "query", "rank" (from 1), "path" and "distance"; with
    --duplicates "group" (from 1), "path" and "distance" (to the nearest image of the group).
    """
    check(config)
    choose(INDEXES, config.index, "index")
    if config.index == "faiss":
        library("faiss", "faiss")
    out = Path(config.out or ("duplicates.csv" if config.duplicates else "search.csv"))
    check_table(out, (".csv", ".parquet"))
    encoder = load(config.run)
    source = open_of_run(config.run, config.data, config.decode, config.listing)
    options = replace(source.decode, channels=encoder.channels)
    named, cut = read_named(config.query, options, MOST_QUERIES)
    if cut:
        raise UserError(f"--query: at most {MOST_QUERIES} images at a time")
    device = find_device(config.runtime.device)
    found = features_of_set(config.run, source, encoder, config.compared, device)
    if len(found.rows) > MANY and config.index == "exact":
        logger.info(f"{len(found.rows):,} images: --index faiss is faster, and misses some")
    crop = image_batches(source, encoder, config.run).transform
    assert isinstance(crop, CenterCropResize)
    images = Images(with_decode(source, options), crop)
    if config.duplicates:
        columns, rows, said = duplicates(config, images, found, device)
    else:
        columns, rows, said = nearest(config, images, found, encoder, named)
    write_table(out, columns, digits=6)
    picture = out.with_suffix(".png")
    picture.unlink(missing_ok=True)  # of another search
    if rows:
        draw(rows, f"{Path(config.run).resolve().name} \N{MIDDLE DOT} {said}", found, picture)
    logger.info(f"{out}{f', {picture}' if rows else ''}: {said}")
    return out


Sheet = list[tuple[str, list[Told]]]


def nearest(
    config: Search, images: Images, found: Features, encoder: Backbone, named: Sequence[Named]
) -> tuple[dict[str, Column], Sheet, str]:
    """The nearest images to each query: the table, the rows of the sheet, and what it is."""
    device = find_device(config.runtime.device)
    crop = center_crop(config.run, encoder.image_size)
    pixels = [crop(image.pixels)[0] for image in named]
    function = features_of(encoder, found.layer, found.pool, device)
    with torch.no_grad():
        queries = torch.cat([function(one[None]) for one in pixels])
    space = Space(found.rows)
    rows = space.place(found.rows)
    search = INDEXES[config.index](rows, device)
    distances, numbers = search(space.place(queries), config.k)
    table: dict[str, list[str]] = {"query": [], "path": []}
    ranks, near = [], []
    sheet: Sheet = []
    for image, row, ids in zip(named, distances.tolist(), numbers.tolist()):
        pairs = [(d, found.ids[i]) for d, i in zip(row, ids) if i >= 0]
        for rank, (distance, i) in enumerate(pairs, 1):
            table["query"].append(image.name)
            table["path"].append(images.source.name(i))
            ranks.append(rank)
            near.append(distance)
        if len(sheet) < MOST_ROWS:
            tiles = [images.told(i, in_words(distance)) for distance, i in pairs[:MOST_TILES]]
            seen = images.crop(viewable(image.pixels))[0]
            sheet.append(("", [Told(seen, ("query", image.name)), *tiles]))
        best = ", ".join(f"{printable(images.source.name(i))} {in_words(d)}" for d, i in pairs[:3])
        logger.info(f"{printable(image.name)}: {best}")
    columns: dict[str, Column] = {
        "query": table["query"],
        "rank": np.array(ranks),
        "path": table["path"],
        "distance": np.array(near, dtype=np.float32),
    }
    return columns, sheet, f"the nearest of {len(found.ids):,} images"


def duplicates(
    config: Search, images: Images, found: Features, device: torch.device
) -> tuple[dict[str, Column], Sheet, str]:
    """Groups of nearly equal images: as `nearest`."""
    rows = Space(found.rows).place(found.rows)
    blocks: Iterable[Tensor]
    if config.index == "exact":
        blocks, count = close_blocks(rows, config.max_distance, device), blocks_of(len(rows))
    else:
        search = INDEXES[config.index](rows, device)
        blocks = found_blocks(rows, config.max_distance, search, NEIGHBORS)
        count = -(-len(rows) // 1024)
    linked = groups(len(rows), shown(iter(blocks), "compare", count))
    names: list[str] = []
    numbers, near = [], []
    sheet: Sheet = []
    for k, group in enumerate(linked, 1):
        distances = to_nearest(rows[group])
        names += [images.source.name(found.ids[i]) for i in group]
        numbers += [k] * len(group)
        near += distances
        if k <= MOST_ROWS:
            some = list(zip(group, distances))[:MOST_TILES]
            more = f", {MOST_TILES} are shown" if len(group) > MOST_TILES else ""
            tiles = [images.told(found.ids[i], in_words(distance)) for i, distance in some]
            sheet.append((f"group {k}: {len(group):,} images{more}", tiles))
    columns: dict[str, Column] = {
        "group": np.array(numbers, dtype=np.int64),
        "path": names,
        "distance": np.array(near, dtype=np.float32),
    }
    if len(names) > len(found.ids) / 2:
        logger.info(
            "warning: more than half of all images are linked; the set is full of copies, or "
            "these features tell images apart too little: a smaller --max-distance, a longer "
            "pre-training, or mae check, which compares pixels"
        )
    said = (
        f"{len(linked):,} groups of near-duplicates, {len(names):,} of {len(found.ids):,} images, "
        f"at distances of {config.max_distance:g} and less"
    )
    return columns, sheet, said


def in_words(distance: float) -> str:
    """A distance in two digits; what is rounding of float32 is 0."""
    return f"{distance:.2g}" if distance >= 1e-5 else "0"


def to_nearest(rows: Float[Tensor, "N F"]) -> list[float]:
    """The distance of each row of a group to the nearest other one."""
    distances, numbers = exact(rows, torch.device("cpu"))(rows, 2)
    own = torch.arange(len(rows))
    return torch.where(numbers[:, 0] == own, distances[:, 1], distances[:, 0]).tolist()


def draw(rows: Sheet, title: str, found: Features, path: Path) -> None:
    """Writes the sheet."""
    notes = [
        f"Distances: 1 - cosine of features ({found.pool} of layer {found.layer}), standardized "
        f"over the {len(found.ids):,} images; 0 is equal, 1 unrelated.",
        *bands_note(len(rows[0][1][0].pixels)),
    ]
    picture = sheet_of_rows(rows, title, notes)
    try:
        with whole_file(path) as partial:
            picture.save(partial)
    except OSError as error:
        raise RunError(f"could not write {path}: {error.strerror or error}") from error
