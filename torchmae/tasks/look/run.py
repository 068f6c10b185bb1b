"""`mae look`: what an encoder makes of images, patch by patch, in pictures."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from torch import Tensor

from torchmae.data.config import decode_as_run
from torchmae.data.formats.raster import viewable
from torchmae.data.sources.single import Named, read_named
from torchmae.data.transforms import Crop, resized_crop
from torchmae.data.view import center_crop
from torchmae.disk import whole_file
from torchmae.errors import RunError, UserError, printable
from torchmae.eval.tokens.maps import (
    OUTLIER,
    TokenMaps,
    as_colors,
    components,
    likeness,
    most_selective,
    outliers,
    token_maps,
)
from torchmae.models.encoders import Backbone
from torchmae.models.heads import AttentivePool
from torchmae.models.weights import load, load_classifier
from torchmae.report.sheet import bands_note
from torchmae.report.sheets.tokens import Marked, sheet_of_maps
from torchmae.runfolder import LOOK, kind_of, last_step, read_config
from torchmae.tasks.look.config import Look, check
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)

MOST = 16  # images of a sheet
MOST_PATCHES = 16_384  # of an image: 2048 x 2048 px in patches of 16
MOST_QUERIES = 8  # rows of queries.png
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".pdf", ".svg")  # no endings of folders


class Seen(NamedTuple):
    """An image as the encoder gets it, as pictures show it, and the window of the file that it
    is."""

    name: str
    pixels: Shaped[Tensor, "C H W"]
    shown: UInt8[Tensor, "C H W"]
    window: Crop


def run(config: Look) -> Path:
    """Draws the sheets, and returns their folder.

    It holds look.png (the images, components, norms; where there is one, the attention of the class
    token, of attentive queries, the similarity to a patch), heads.png (the attention of each head)
    and queries.png (of single queries).
    """
    check(config)
    encoder, pool = encoder_of(config.run)
    depth = len(encoder.layers())
    layer = config.layer or depth
    if layer > depth:
        raise UserError(f"--layer {layer}: 1 to {depth}")
    out = folder_of(config)
    decode = decode_as_run(config.run, config.decode)
    named, cut = read_named(config.images, replace(decode, channels=encoder.channels), MOST)
    images = [seen(image, encoder, config) for image in named]
    mark = marked(images[0], encoder, config)
    device = find_device(config.runtime.device)
    encoder.eval().to(device)
    pool = pool.to(device) if pool is not None and layer == depth else None
    maps = [token_maps(encoder, image.pixels, layer, pool, device) for image in images]
    if cut:
        logger.info(cut)
    title = title_of(config.run, layer, depth)
    written = [save(overview(config.run, images, maps, title, mark), out / "look.png")]
    parts = {
        "heads.png": ("head", [one.attention for one in maps], None),
        "queries.png": ("query", [one.queries for one in maps], MOST_QUERIES),
    }
    for name, (word, weights, most) in parts.items():
        known = [one for one in weights if one is not None]
        if known:
            written.append(save(each_of(word, images, known, title, most), out / name))
    for name in set(parts) - {path.name for path in written}:
        (out / name).unlink(missing_ok=True)  # of another run, or of another layer
    count = f"{len(images)} image{'s' * (len(images) != 1)}"
    logger.info(f"{', '.join(map(str, written))}: {count}, tokens after block {layer} of {depth}")
    return out


def encoder_of(run: str) -> tuple[Backbone, AttentivePool | None]:
    """The encoder of a run, and the attentive pooling of its classifier, if that has one."""
    described = read_config(run)
    if kind_of(described) == "classifier" and described["model"].get("pool") == "attentive":
        classifier = load_classifier(run)
        return classifier.encoder, classifier.query_pool
    return load(run), None


def folder_of(config: Look) -> Path:
    """The folder for the pictures, made before anything is computed."""
    out = Path(config.out) if config.out is not None else Path(config.run) / LOOK
    if out.suffix.lower() in PICTURES:
        raise UserError(
            f"--out {out}: name a folder, which gets look.png and, of what has attention, "
            f"heads.png and queries.png; such as --out {out.with_suffix('')}"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {out} cannot be made ({error.strerror or error}): name another folder"
        ) from error
    return out


def seen(image: Named, encoder: Backbone, config: Look) -> Seen:
    """An image as the encoder gets it: whole at about the scale of the run's images, its sides
    rounded to patches, or the central crop."""
    height, width = image.pixels.shape[:2]
    visible = viewable(image.pixels)
    if config.crop:
        center = center_crop(config.run, encoder.image_size)
        pixels, shown = center(image.pixels)[0], center(visible)[0]
        return Seen(image.name, pixels, shown, center.crop(height, width))
    ratio = (config.short_side or min(encoder.image_size)) / min(height, width)
    down, across = (
        max(1, round(side * ratio / patch)) for side, patch in zip((height, width), encoder.patch)
    )
    if down * across > MOST_PATCHES:
        raise UserError(
            f"{printable(image.name)} would have {down} x {across} patches, and {MOST_PATCHES:,} "
            "are possible: a smaller --short-side, or --crop"
        )
    whole = Crop(0, 0, height, width, False)
    size = down * encoder.patch[0], across * encoder.patch[1]
    pixels, shown = (resized_crop(one, whole, size) for one in (image.pixels, visible))
    return Seen(image.name, pixels, shown, whole)


def marked(first: Seen, encoder: Backbone, config: Look) -> Marked | None:
    """The patch that --patch or --point names."""
    down, across = (side // p for side, p in zip(first.pixels.shape[1:], encoder.patch))
    if config.patch is not None:
        row, column = config.patch
        if row >= down or column >= across:
            raise UserError(
                f"--patch {row} {column}: {printable(first.name)} has {down} rows and {across} "
                f"columns of patches, so 0 to {down - 1} and 0 to {across - 1}"
            )
        return Marked(0, row, column, (down, across))
    if config.point is None:
        return None
    x, y = config.point
    top, left, height, width, _ = first.window
    row = math.floor((y - top) / height * down)
    column = math.floor((x - left) / width * across)
    if not (0 <= row < down and 0 <= column < across):
        raise UserError(
            f"--point {x:g} {y:g}: of {printable(first.name)} the encoder sees {left} to "
            f"{left + width - 1} px from the left and {top} to {top + height - 1} px from the top"
        )
    return Marked(0, row, column, (down, across))


def title_of(run: str, layer: int, depth: int) -> str:
    """Such as "photos, step 1,200, tokens after block 12 of 12"."""
    step = last_step(Path(run))
    words = [Path(run).resolve().name, *([f"step {step:,}"] if step else [])]
    return " \N{MIDDLE DOT} ".join([*words, f"tokens after block {layer} of {depth}"])


def overview(
    run: str, images: Sequence[Seen], maps: Sequence[TokenMaps], title: str, mark: Marked | None
) -> Image.Image:
    """look.png."""
    tokens = [one.tokens for one in maps]
    found = components(tokens)
    share = found.shares.sum()
    norms = [one.norms for one in maps]
    every = torch.cat([each.flatten() for each in norms])
    rows: dict[str, list[Tensor]] = {
        "components": as_colors([found.project(each) for each in tokens]),
        "norms": on_one_scale(norms),
    }
    notes = [
        f"Components: the first {len(found.axes)} principal components of all {len(every):,} "
        f"tokens together as red, green and blue ({share:.0%} of the variance). "
        "Like colors, like tokens.",
        f"Norms: lengths of the tokens before the final norm, {every.min():.3g} (dark) to "
        f"{every.max():.3g} (yellow), median {every.median():.3g}; {outliers(norms)} are above "
        f"{OUTLIER:g} times the median (outlier tokens).",
    ]
    attention = [one.attention.mean(0) for one in maps if one.attention is not None]
    if attention:
        rows["attention"] = [from_zero(each) for each in attention]
        notes.append(
            "Attention: of the class token in that block, the mean of its heads; each image from 0 "
            "to its largest weight."
        )
        if kind_of(read_config(run)) == "mae":
            notes[-1] += " No loss asked the class token of an MAE for anything."
    queries = [one.queries.mean(0) for one in maps if one.queries is not None]
    if queries:
        rows["queries"] = [from_zero(each) for each in queries]
        notes.append("Queries: attention of the attentive pooling, the mean of its queries.")
    if mark is not None:
        alike = [likeness(each, tokens[0][:, mark.row, mark.column]) for each in tokens]
        rows["similarity"] = on_one_scale(alike)
        least = min(float(each.min()) for each in alike)
        notes.append(
            f"Similarity: cosine of each token to that of the framed patch (row {mark.row}, column "
            f"{mark.column} of {printable(images[0].name)}), {least:.2f} (dark) to 1 (yellow)."
        )
    notes += bands_note(images[0].pixels.shape[0])
    pixels, names = [one.shown for one in images], [one.name for one in images]
    return sheet_of_maps(pixels, rows, title, names, notes, mark)


def each_of(
    word: str,
    images: Sequence[Seen],
    weights: Sequence[Float[Tensor, "Q _ _"]],
    title: str,
    most: int | None,
) -> Image.Image:
    """heads.png or queries.png: a row for each head; of more than `most`, those that look at the
    fewest patches."""
    count = len(weights[0])
    chosen = range(count) if most is None or count <= most else most_selective(weights, most)
    rows = {f"{word} {i + 1}": [from_zero(each[i]) for each in weights] for i in chosen}
    notes = ["Each map from 0 to its largest weight."]
    if len(chosen) < count:
        notes.append(f"The {len(chosen)} of {count} that look at the fewest patches.")
    pixels, names = [one.shown for one in images], [one.name for one in images]
    return sheet_of_maps(pixels, rows, f"{title} \N{MIDDLE DOT} attention", names, notes)


def on_one_scale(maps: Sequence[Float[Tensor, "_ _"]]) -> list[Tensor]:
    """Maps between 0, the least value of all, and 1, the largest."""
    low = min(float(each.min()) for each in maps)
    high = max(float(each.max()) for each in maps)
    return [(each - low) / max(high - low, 1e-12) for each in maps]


def from_zero(weights: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    """A map between 0 and 1, its largest value."""
    return weights / weights.max().clamp(min=1e-12)


def save(picture: Image.Image, path: Path) -> Path:
    """Writes a picture, whole or not at all."""
    try:
        with whole_file(path) as partial:
            picture.save(partial)
    except OSError as error:
        raise RunError(f"could not write {path}: {error.strerror or error}") from error
    return path
