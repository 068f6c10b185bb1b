"""What `mae compare` measures of frozen features, extracted once of each encoder."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64, Shaped
from torch import Tensor

from torchmae.data.config import decode_as_run, listing_as_run
from torchmae.data.labels import LabelledSets, groups_of, labelled_sets
from torchmae.data.sources.source import Source, Subset, with_decode
from torchmae.disk import sha256
from torchmae.eval.baselines import COMMONEST, PIXELS, RAW_SIDE, commonest, raw_pixels, untrained
from torchmae.eval.classification import scores
from torchmae.eval.extract import Function, collect, features_of, patch_tokens_of
from torchmae.eval.probes.measures import MEASURES, POOLED, TOKENS
from torchmae.models.encoders import Backbone
from torchmae.models.weights import load
from torchmae.runfolder import MODEL, add_result, identity, read_config, read_results
from torchmae.settings.options import parse_size
from torchmae.tasks.sweep.config import Compare
from torchmae.tasks.sweep.grids import Grid, first_run, in_path
from torchmae.train.distributed import find_device

logger = logging.getLogger(__name__)


class Place(NamedTuple):
    """One measurement: a measure, a row of the grid, a seed."""

    measure: str
    row: str
    seed: int


class Subject(NamedTuple):
    """What has features: an encoder, or raw pixels.

    Args:
        arm: its name in the table.
        run: the run folder that says how images are seen.
        seed: of an encoder from scratch; None where weights are those of the run.
        kinds: what it gives, `POOLED` or `TOKENS`.
    """

    arm: str
    run: str
    seed: int | None
    kinds: tuple[str, ...] = (POOLED, TOKENS)

    @property
    def weights(self) -> str:
        """What its features depend on, besides the images."""
        if self.arm == PIXELS:
            return f"pixels of images reduced to {RAW_SIDE}"
        if self.seed is None:
            return sha256(Path(self.run) / MODEL)
        return json.dumps([self.seed, read_config(self.run)["model"]["encoder"]])

    def encoder(self) -> Backbone:
        return load(self.run) if self.seed is None else untrained(self.run, self.seed)


def subjects_of(config: Compare, grid: Grid) -> list[Subject]:
    """The encoders of the grid, of one from scratch one for each seed, and raw pixels."""
    found = []
    for arm, changes in grid.arms.items():
        if changes["run"] == "none":
            found += [Subject(arm, changes["model"], seed) for seed in grid.seeds]
        else:
            found.append(Subject(arm, changes["run"], None))
    return [*found, Subject(PIXELS, first_run(config), None, (POOLED,))]


def measure_frozen(
    config: Compare, grid: Grid, measures: Sequence[str]
) -> dict[tuple[str, str], dict[str, list[dict[str, Any]]]]:
    """The scores of frozen features.

    A measurement is written to `frozen/ARM/results.json` in the folder of the sweep as soon as it
    is made, with what it depends on (weights, images, labels), and is not made again. Features are
    extracted in one pass over the images of all rows and seeds, if any measurement is missing.

    Args:
        config: the settings.
        grid: encoders, rows and seeds.
        measures: names in `MEASURES`.

    Returns:
        By measure and row: by arm, the scores of each seed, `PIXELS` and `COMMONEST` among them.
    """
    found: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {
        (measure, row): {} for measure in measures for row in grid.rows
    }
    sets = {
        (row, seed): labelled_as(config, changes["labels_per_class"], seed)
        for row, changes in grid.rows.items()
        for seed in grid.seeds
    }
    data = {key: described(one) for key, one in sets.items()}
    for subject in subjects_of(config, grid):
        seeds = grid.seeds if subject.seed is None else (subject.seed,)
        places = [
            Place(measure, row, seed)
            for measure in measures
            if MEASURES[measure][0] in subject.kinds
            for row in grid.rows
            for seed in seeds
        ]
        depends = {"weights": subject.weights, "view": view_of(config, subject)}
        folder = grid.out / "frozen" / in_path(subject.arm)
        settings = {
            place: {**depends, "data": data[place.row, place.seed], "seed": place.seed}
            for place in places
        }
        kept = {place: recorded(folder, place.measure, settings[place]) for place in places}
        missing = [place for place in places if kept[place] is None]
        made = measured(config, subject, missing, sets) if missing else iter(())
        folder.mkdir(parents=True, exist_ok=True)
        for place, one in made:
            add_result(folder, place.measure, settings[place], one)
            kept[place] = one
        for place, result in kept.items():
            assert result is not None
            found[place.measure, place.row].setdefault(subject.arm, []).append(result)
    for (_, row), arms in found.items():
        arms[COMMONEST] = [commonest_scores(sets[row, seed]) for seed in grid.seeds]
    return found


def labelled_as(config: Compare, labels_per_class: int | None, seed: int) -> LabelledSets:
    """The labelled images of a row and seed."""
    source, split = config.source, config.split
    listing = listing_as_run(config.listing, source.data, first_run(config))
    which = (source.data, source.val, split.val_fraction, labels_per_class, seed)
    return labelled_sets(*which, listing=listing)


def commonest_scores(sets: LabelledSets) -> dict[str, Any]:
    """The scores of always saying the commonest class."""
    said = F.one_hot(commonest(sets.val_labels), len(sets.classes)).float()
    return scores(said, sets.val_labels, sets.classes).summary()


def recorded(folder: Path, measure: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was measured with these settings; None if nothing was."""
    records = read_results(folder, measure)
    return next((r["results"] for r in records if r["settings"] == settings), None)


def described(sets: LabelledSets) -> dict[str, Any]:
    """What labelled images are recognised by, as JSON."""
    labels = repr((sets.classes, sets.train_labels.tolist(), sets.val_labels.tolist()))
    return {
        "train": identity(sets.train),
        "val": identity(sets.val),
        "labels": hashlib.sha256(labels.encode()).hexdigest(),
    }


def view_of(config: Compare, subject: Subject) -> dict[str, Any]:
    """How a subject sees images, as JSON."""
    run, decode = read_config(subject.run), config.decode
    options = decode_as_run(subject.run, decode)
    encoder = run["model"]["encoder"]
    return {
        **options.stored(),
        "bands": options.bands and list(options.bands),
        "image_size": config.model.image_size or list(encoder["image_size"]),
        "channels": encoder["channels"],
        "crop_pct": run["config"].get("crop_pct", 1.0),
        "pool": pool_of(config),
    }


def pool_of(config: Compare) -> str:
    """How features are pooled: as --pool says, but the mean where that is for tokens."""
    return "cls" if config.model.pool == "cls" else "mean"


def measured(
    config: Compare,
    subject: Subject,
    places: Sequence[Place],
    sets: Mapping[tuple[str, int], LabelledSets],
) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Each place with its scores, as soon as they are known."""
    kinds = sorted({MEASURES[place.measure][0] for place in places})
    keys = sorted({(place.row, place.seed) for place in places})
    logger.info(f"{subject.arm}: {' and '.join(kinds)}, {len(places)} measurements")
    features = extract(config, subject, kinds, [sets[key] for key in keys])
    for place in places:
        kind, classify = MEASURES[place.measure]
        one = sets[place.row, place.seed]
        (train_ids, train), (test_ids, test) = (
            features.rows(part, kind) for part in (one.train, one.val)
        )
        labels, count = one.train_labels[train_ids], len(one.classes)
        groups = groups_of(one.train, train_ids)
        logits = classify(train, labels, test, count, place.seed, groups)
        # the last class may have no image that can be read
        logits = F.pad(logits, (0, count - logits.shape[1]), value=-torch.inf)
        yield place, scores(logits, one.val_labels[test_ids], one.classes).summary()


class Features(NamedTuple):
    """Features of images, by kind, and the row of each image: by the source below the subsets
    (its fingerprint) and its number there."""

    tables: dict[str, Shaped[Tensor, "N ..."]]
    places: dict[tuple[str, int], int]

    def rows(self, part: Source, kind: str) -> tuple[list[int], Shaped[Tensor, "M ..."]]:
        """The numbers of the readable images of a part of the images, and their features."""
        base, numbers = below(part)
        mark = base.fingerprint()
        found = [self.places.get((mark, int(number))) for number in numbers]
        ids = [i for i, row in enumerate(found) if row is not None]
        return ids, self.tables[kind][[row for row in found if row is not None]]


def extract(
    config: Compare, subject: Subject, kinds: Sequence[str], sets: Sequence[LabelledSets]
) -> Features:
    """The features of all images of some sets, each image once."""
    encoder, device = subject.encoder(), find_device(config.runtime.device)
    size = config.model.image_size and parse_size(config.model.image_size)
    if size and encoder.image_size != size:
        encoder.resize(size)
    functions: dict[str, Function] = {
        POOLED: partial(raw_pixels, side=RAW_SIDE)
        if subject.arm == PIXELS
        else features_of(encoder, None, pool_of(config), device)
    }
    if TOKENS in kinds:
        functions[TOKENS] = patch_tokens_of(encoder, None, device)
    decode = decode_as_run(subject.run, config.decode)
    bases: dict[str, Source] = {}
    wanted: dict[str, set[int]] = {}
    for one in sets:
        for part in (one.train, one.val):
            base, numbers = below(part)
            mark = base.fingerprint()
            bases.setdefault(mark, base)
            wanted.setdefault(mark, set()).update(numbers.tolist())
    tables: list[list[Tensor]] = []
    places: dict[tuple[str, int], int] = {}
    for mark, base in bases.items():
        order = sorted(wanted[mark])
        images = with_decode(Subset(base, order), decode)
        chosen = [functions[kind] for kind in kinds]
        ids, rows, bad = collect(images, encoder, subject.run, chosen, device)
        for file in bad:
            logger.info(f"skipped: {file}")
        places |= {(mark, order[i]): len(places) + row for row, i in enumerate(ids)}
        tables.append(rows)
    return Features(
        {kind: torch.cat([rows[i] for rows in tables]) for i, kind in enumerate(kinds)}, places
    )


def below(part: Source) -> tuple[Source, Int64[np.ndarray, " N"]]:
    """The source below subsets, and the numbers of the images there."""
    base, numbers = part, np.arange(len(part))
    while isinstance(base, Subset):
        numbers = base.ids[numbers]
        base = base.source
    return base, numbers
