"""`mae neighbours`: k-NN accuracy on frozen features, beside the same k-NN on raw pixels and on an untrained encoder."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float, Int64
from torch import Tensor

from torchmae.data.labels import Subset, hold_out, labelled, open_pair
from torchmae.errors import UserError
from torchmae.tasks.features import accuracy, line, looker
from torchmae.train.checkpoint import write_text
from torchmae.train.distributed import find_device


@dataclass(frozen=True)
class Neighbours:
    """How good are the features? k-NN accuracy on labelled images, beside raw pixels and an untrained encoder."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LABELLED")]
    """Labelled images: a folder of class folders (with train/ and val/ above them: these are the split), tar, list, ..."""
    test: str | None = None
    """Labelled images to test on. Default: a share of the others."""
    test_fraction: float = 0.2
    """That share, drawn in every class by the seed."""
    k: int = 20
    """Neighbours that vote, each with the weight exp(similarity / 0.07)."""
    layer: int | None = None
    """Take the tokens after this block, 1 to depth. Default: after the last."""
    pooling: str = "mean"
    """mean (of the patch tokens), cls (the class token) or cls+mean."""
    seed: int = 0
    """Of the split and of the untrained encoder."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def run(config: Neighbours) -> dict[str, Any]:
    """Prints the three accuracies with 95 % intervals, adds them to `results.json` of the run, and gives them."""
    if not 0 < config.test_fraction < 1:
        raise UserError(f"--test-fraction {config.test_fraction}: must lie between 0 and 1")
    if config.k < 1:
        raise UserError(f"--k {config.k}: must be at least 1")
    look = looker(config.run, config.layer, config.pooling, 32, config.seed, find_device(config.device))
    source, test_source = open_pair(config.data, config.test)
    images, names = labelled(source, config.data)
    if test_source is None:
        out = hold_out(names, config.test_fraction, config.seed)
        kept, held_out = np.flatnonzero(~out), np.flatnonzero(out)
        test_images, test_names = Subset(images, held_out), [names[i] for i in held_out]
        images, names = Subset(images, kept), [names[i] for i in kept]
    else:
        test_images, test_names = labelled(test_source, config.test or config.data)
    classes = {name: i for i, name in enumerate(sorted(set(names)))}
    if len(classes) < 2:
        raise UserError(f"k-NN needs at least two classes with labels, {config.data} has {len(classes)}")
    train, labels = look(images, torch.tensor([classes[name] for name in names]))
    # -1: a class that is only among the test images, which no neighbour can name
    test, truth = look(test_images, torch.tensor([classes.get(name, -1) for name in test_names]))
    found = {name: accuracy(knn(train[name], test[name], labels, len(classes), config.k), truth) for name in train}
    result = {
        "data": config.data,
        "train_images": len(labels),
        "test_images": len(truth),
        "classes": len(classes),
        **asdict(config),
        "knn": found,
    }
    print(
        f"k-NN accuracy (k = {config.k}), {len(truth)} test and {len(labels)} training images, {len(classes)} classes"
    )
    for name, score in found.items():
        print(line(name, score))
    print(f"Written to {add_result(Path(config.run), 'neighbours', result)}")
    return result


def knn(
    train: Float[Tensor, "A F"], test: Float[Tensor, "B F"], labels: Int64[Tensor, "A"], classes: int, k: int
) -> Int64[Tensor, "B"]:
    """The class of each test row: the k most similar training rows vote with exp(cosine / 0.07) (Wu et al. 2018), after
    each feature is standardised with the training rows' mean and deviation."""
    mean, std = train.mean(0), train.std(0)
    std = torch.where(std > 1e-6, std, 1.0)  # what is constant in training must not drown the rest where it is not
    train, test = (F.normalize((x - mean) / std, dim=1) for x in (train, test))
    guesses = []
    for rows in test.split(1024):
        similarity, nearest = (rows @ train.T).topk(min(k, len(train)), dim=1)
        votes = torch.zeros(len(rows), classes).scatter_add_(1, labels[nearest], (similarity / 0.07).exp())
        guesses.append(votes.argmax(1))
    return torch.cat(guesses)


def add_result(run: Path, name: str, result: dict[str, Any]) -> Path:
    """Adds an evaluation to the run's `results.json`, after those that are there."""
    path = run / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results.setdefault(name, []).append(result)
    write_text(path, json.dumps(results, indent=1))
    return path
