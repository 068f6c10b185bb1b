"""What the two sides of `mae compare` are measured beside, on the same images, labels and seeds."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from torchmae.data.config import DecodeOptions
from torchmae.data.labels import LabelledSets, labelled_sets
from torchmae.eval.baselines import raw_pixels
from torchmae.eval.classification import scores
from torchmae.eval.extract import Function, collect, features_of
from torchmae.eval.logistic import fit_logits
from torchmae.models.encoders import build_encoder
from torchmae.models.weights import load, seeded
from torchmae.runfolder import read_config
from torchmae.settings.options import parse_size
from torchmae.tasks.sweep.config import Compare
from torchmae.train.distributed import find_device

RAW_SIDE = 16  # px, as in mae probe --fast

# The names of the rows: logistic regression on what the run's frozen encoder makes of an image, on
# what the same encoder makes of it before its first step, and on its pixels; always saying the
# commonest class of the validation images.
FROZEN = "frozen features"
UNTRAINED = "untrained encoder"
PIXELS = "raw pixels"
COMMONEST = "commonest class"


def baseline_scores(
    config: Compare, sets: LabelledSets, seed: int, trained: Path
) -> dict[str, dict[str, Any]]:
    """The scores of the baselines, by name, with what `Scores.summary` holds.

    The penalty of the regressions is chosen by cross-validation on the training labels.

    Args:
        config: of the comparison.
        sets: the labelled images of a row and seed.
        seed: of the folds and of the untrained encoder.
        trained: the fine-tuning of the same row and seed, which says what an image is: how it is
            decoded, size, channels, their statistics, the share that is seen.
    """
    described = read_config(trained)
    settings, shape = described["config"], described["model"]["encoder"]
    encoder = load(config.run)
    encoder.adapt(shape["channels"], tuple(shape["mean"]), tuple(shape["std"]))
    size = parse_size(settings["image_size"])
    if encoder.image_size != size:
        encoder.resize(size)
    with seeded(seed):
        untrained = build_encoder(shape)
    untrained.restore_norm()
    device = find_device(config.runtime.device)
    functions: dict[str, Function] = {
        FROZEN: features_of(encoder, None, settings["pool"], device),
        UNTRAINED: features_of(untrained, None, settings["pool"], device),
        PIXELS: lambda images: raw_pixels(images, RAW_SIDE),
    }
    pixels = (settings[name] for name in ("max_megapixels", "white", "channels"))
    sets = sets.with_decode(DecodeOptions(*pixels))
    train, test = (
        collect(part, encoder, trained, list(functions.values()), device)
        for part in (sets.train, sets.val)
    )
    labels, truth = sets.train_labels[train[0]], sets.val_labels[test[0]]
    count = len(sets.classes)
    logits = {
        name: fit_logits(ours, labels, theirs, seed).logits.float()
        for name, ours, theirs in zip(functions, train[1], test[1])
    }
    # the last class may have no image that can be read
    logits = {n: F.pad(v, (0, count - v.shape[1]), value=-torch.inf) for n, v in logits.items()}
    commonest = F.one_hot(truth.mode().values, count).float()
    logits[COMMONEST] = commonest.expand(len(truth), -1)
    return {name: scores(found, truth, sets.classes).summary() for name, found in logits.items()}


def sets_of(config: Compare, labels_per_class: int | None, seed: int) -> LabelledSets:
    """The labelled images of the fine-tunings of a row and seed."""
    source, split = config.source, config.split
    return labelled_sets(source.data, source.val, split.val_fraction, labels_per_class, seed)
