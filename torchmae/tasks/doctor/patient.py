"""`mae doctor RUN`: files, weights, learning, features and data of a run."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchmae import manifest, runfolder
from torchmae.data.config import DecodeOptions, Listing, decode_as_run, listing_as_run
from torchmae.data.dense import detection, segmentation
from torchmae.data.dense.find import Split
from torchmae.data.labels import labelled_sets
from torchmae.data.quality.duplicates import find_duplicates, leaks
from torchmae.data.quality.parts import open_parts
from torchmae.data.quality.survey import survey
from torchmae.data.quality.texture import chosen
from torchmae.data.scan import AS_THEY_ARE, measure
from torchmae.data.sources.source import Source, Subset, with_decode
from torchmae.errors import RunError, UserError
from torchmae.eval.extract import collect, features_of
from torchmae.eval.rank import rankme
from torchmae.models.encoders import Backbone
from torchmae.models.weights import read_encoder
from torchmae.report.words.health import words_of
from torchmae.settings.groups import SplitListingOptions
from torchmae.tasks.doctor.line import NOTE, OK, WRONG, Line, judged
from torchmae.tasks.doctor.training import position_line, quiet
from torchmae.tasks.verify import run as verify
from torchmae.tasks.verify.config import Verify

MEASURED = 256  # images for statistics and features
MOST = 20_000  # images among which leakage is looked for
# RankMe of centered features, as a share of the most that is possible: healthy runs of ours have
# 0.12 (nuclei: few kinds of images), 0.26 (brain MRI) and 0.33 (digits), one of 91 steps 0.02.
LEAST_RANK = 0.05
# How the images of models are opened that lie beside masks or annotations.
ANNOTATED: dict[str, Callable[..., Any]] = {
    "segmenter": segmentation.open_sets,
    "detector": detection.open_sets,
}
FAR_MEAN, FAR_STD = 0.5, 2.0  # stds between means; times between stds


def patient(
    run: Path, data: str | None, listing: SplitListingOptions, device: torch.device
) -> Iterator[Line]:
    """The lines about a run.

    Args:
        run: its folder.
        data: the images, where they are not those of config.json.
        listing: which of them are taken.
        device: where features are computed.
    """
    written = files(run)
    yield written
    with manifest.verification(False):  # what is damaged was just said
        try:
            config = runfolder.read_any_config(run)
        except UserError as error:
            if written.state == OK:
                yield Line("files", WRONG, str(error))
            return
        for word in words_of(run, config):
            yield Line("training", {"bad": WRONG, "good": OK}.get(word.kind, NOTE), word.text)
        if runfolder.kind_of(config) == "tokenizer":
            return
        try:
            encoder = read_encoder(run)
        except UserError as error:
            yield Line("weights", WRONG, str(error))
            return
        yield Line("weights", OK, "they are finite and fit config.json")
        rows = getattr(encoder, "pos_embed", None)
        if isinstance(rows, torch.Tensor) and rows.ndim == 3:
            yield position_line(rows[0], "restore the weights, or import them again")
        try:
            yield from of_data(run, config, (data, listing), encoder, device)
        except (UserError, OSError) as error:
            about = f"{error}; statistics, features and leakage were not looked at (--data DATA)"
            yield Line("data", NOTE, about)


def files(run: Path) -> Line:
    """Whether every file is as it was written."""
    try:
        with quiet():
            found = verify.run(Verify(str(run)))
    except RunError as error:
        return Line("files", WRONG, str(error))
    return Line("files", OK, f"{len(found)} files and checkpoints are as written")


def of_data(
    run: Path,
    config: dict[str, Any],
    named: tuple[str | None, SplitListingOptions],
    encoder: Backbone,
    device: torch.device,
) -> Iterator[Line]:
    """The lines for which images are needed; `named` are the images and which of them are taken."""
    settings, (data, options) = config["config"], named
    place = data or settings.get("data")
    if not isinstance(place, str):
        raise UserError("config.json names no images")
    decode = decode_as_run(str(run))
    listing = listing_as_run(options, place, run, resuming=data is None)
    if config.get("verb") == "finetune":
        names = ("val_fraction", "labels_per_class", "seed")
        fraction, few, seed = (settings.get(name) for name in names)
        sets = labelled_sets(place, settings.get("val"), fraction, few, seed, decode, listing)
        sources: list[Source] = [sets.train, sets.val]
        parts = ["train"] * len(sets.train) + ["val"] * len(sets.val)
    else:
        sources, parts = annotated_or_plain(config, data, place, decode, listing)
    first = with_decode(sources[0], replace(decode, channels=encoder.channels))
    some = Subset(first, chosen(np.arange(len(first)), MEASURED, 0))
    yield statistics(some, encoder, runfolder.kind_of(config) == "mae")
    yield rank(some, encoder, run, device)
    yield leakage(sources, parts)


def annotated_or_plain(
    config: dict[str, Any],
    data: str | None,
    place: str,
    decode: DecodeOptions,
    listing: Listing,
) -> tuple[list[Source], list[str]]:
    """The sets and the part of each image: of a segmenter or a detector as it was trained.

    Args:
        config: config.json.
        data: --data; these may be images without masks or annotations.
        place: the images.
        decode: how they are decoded.
        listing: which are taken.
    """
    settings, open_sets = config["config"], ANNOTATED.get(runfolder.kind_of(config))
    if open_sets is not None:
        names = ("val_fraction", "train_images", "seed", "avoid_seeds")
        fraction, few, seed, avoid = (settings.get(name) for name in names)
        split = Split(fraction, few, seed, tuple(avoid or ()))
        try:
            sets = open_sets(place, settings.get("val"), decode, split, listing)
            sources = [sets.train_source, sets.val_source]
            return sources, ["train"] * len(sources[0]) + ["val"] * len(sources[1])
        except UserError:
            if data is None:
                raise
    sources, parts, _ = open_parts(place, None, decode, listing)
    return sources, parts


def statistics(source: Source, encoder: Backbone, own: bool) -> Line:
    """Whether the encoder's normalization is that of the images.

    Args:
        source: the images.
        encoder: what normalizes them.
        own: whether it was trained on such images first; a fine-tuned encoder keeps the
            normalization of its pre-training.
    """
    floats = encoder.scaling is not None
    mean, square = measure(source, encoder.scaling or AS_THEY_ARE)
    std = np.sqrt(np.maximum(square - mean**2, 1e-12 if floats else 1e-4))
    shift = np.abs(mean - np.array(encoder.mean)) / np.array(encoder.std)
    times = np.maximum(std / np.array(encoder.std), np.array(encoder.std) / std)
    about = (
        f"images: mean {words(mean)}, std {words(std)}; the model normalizes by "
        f"{words(encoder.mean)} and {words(encoder.std)}"
    )
    right = bool((shift < FAR_MEAN).all() and (times < FAR_STD).all())
    if not own and not right:
        return Line("statistics", NOTE, f"{about}, as in its pre-training on other images")
    remedy = "other images than it was trained on, or decoded otherwise (--nodata, --bands)?"
    return judged("statistics", right, about, remedy)


def words(values: Any) -> str:
    """Numbers of the channels."""
    return " ".join(f"{value:.2f}" for value in values)


def rank(source: Source, encoder: Backbone, run: Path, device: torch.device) -> Line:
    """Whether the features of different images differ."""
    function = features_of(encoder.to(device).eval(), None, "mean", device)
    _, (features,), _ = collect(source, encoder, run, [function], device)
    if not features.isfinite().all():
        return Line("features", WRONG, "they are not finite: restore the weights")
    centered = features - features.mean(0)
    value = rankme(centered) if centered.abs().max() > 1e-6 else 1.0
    about = f"centered, RankMe {value:.1f} of at most {min(features.shape)}"
    remedy = (
        "they are nearly the same for all images, as those of a collapsed encoder or of a short "
        "training: train longer, or again with a lower --base-lr"
    )
    return judged("features", value >= max(2.0, LEAST_RANK * min(features.shape)), about, remedy)


def leakage(sources: list[Source], parts: list[str]) -> Line:
    """Whether images of one part are copies of images of another one."""
    if len(set(parts)) < 2:
        return Line("leakage", OK, "there is one part only")
    if len(parts) > MOST:
        return Line("leakage", NOTE, f"{len(parts):,} images are many: mae check looks at them")
    found = survey(sources, parts, [None] * len(parts))
    ids = found.good[~found.blank[found.good]]
    copies = find_duplicates(found.digests, found.hashes, found.thumbs, ids)
    leaked = leaks(copies, parts, found.digests, found.thumbs)
    if not leaked:
        return Line("leakage", OK, f"no copies across {', '.join(sorted(set(parts)))}")
    certain = [leak for leak in leaked if leak.certain]
    one, count = (certain or leaked)[0], len(certain or leaked)
    what = ("is a copy of", "are copies of") if certain else ("is very like", "are very like")
    said = f"1 image {what[0]} an image" if count == 1 else f"{count} images {what[1]} images"
    about = (
        f"{said} of another part, such as "
        f"{found.name(one.image)!r} ({parts[one.image]}) and {found.name(one.copy)!r} "
        f"({parts[one.copy]})"
    )
    state = WRONG if certain else NOTE
    return Line("leakage", state, f"{about}: scores may flatter; mae check shows all pairs")
