"""`mae neighbours`: k-NN accuracy on frozen features, beside the same k-NN on raw pixels and on an untrained encoder."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from torchmae.data.labels import hold_out, labelled, open_pair
from torchmae.data.sources import Source
from torchmae.errors import UserError
from torchmae.models.mae import build_encoder
from torchmae.models.vit import ViT
from torchmae.models.weights import load, read_config
from torchmae.tasks.embed import collect, embedding
from torchmae.tasks.metrics import interval
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
    encoder, device = load(config.run), find_device(config.device)
    compared = {
        "features": embedding(encoder, config.layer, config.pooling, device),
        "untrained encoder": embedding(fresh(config.run, config.seed), config.layer, config.pooling, device),
        "raw pixels": raw_pixels,
    }
    train_source, test_source = open_pair(config.data, config.test)

    def look(source: Source, what: str) -> tuple[list[Float[Tensor, "B F"]], list[str]]:
        """What is compared, and the labels, of the readable images that have one."""
        images, labels = labelled(source, what)
        ids, found, _ = collect(images, encoder, config.run, list(compared.values()), device)
        return found, [labels[i] for i in ids]

    train, answers = look(train_source, config.data)
    if test_source is None:
        out = torch.from_numpy(hold_out(answers, config.test_fraction, config.seed))
        train, test = [features[~out] for features in train], [features[out] for features in train]
        truth = [label for label, held_out in zip(answers, out.tolist()) if held_out]
        answers = [label for label, held_out in zip(answers, out.tolist()) if not held_out]
    else:
        test, truth = look(test_source, config.test or config.data)
    classes = {label: i for i, label in enumerate(sorted(set(answers)))}
    if len(classes) < 2:
        raise UserError(f"k-NN needs at least two classes with labels, {config.data} has {len(classes)}")
    labels = torch.tensor([classes[label] for label in answers])
    accuracy: dict[str, Any] = {}
    for name, train_rows, test_rows in zip(compared, train, test):
        guesses = knn(train_rows, test_rows, labels, len(classes), config.k).tolist()
        right = sum(guess == classes.get(label) for guess, label in zip(guesses, truth))
        low, high = interval(right, len(truth))
        accuracy[name] = {"accuracy": right / len(truth), "low": low, "high": high}
    result = {
        "data": config.data,
        "train_images": len(answers),
        "test_images": len(truth),
        "classes": len(classes),
        **asdict(config),
        "knn": accuracy,
    }
    print(
        f"k-NN accuracy (k = {config.k}), {len(truth)} test and {len(answers)} training images, {len(classes)} classes"
    )
    for name, found in accuracy.items():
        print(f"  {name:<18} {found['accuracy']:6.1%}  (95 % interval {found['low']:.1%} to {found['high']:.1%})")
    print(f"Written to {add_result(Path(config.run), 'neighbours', result)}")
    return result


def raw_pixels(images: UInt8[Tensor, "B C H W"]) -> Float[Tensor, "B F"]:
    """The pixels themselves, of images shrunk to at most 32 px a side (more would not fit in memory for large sets)."""
    size = [min(32, side) for side in images.shape[2:]]
    return F.interpolate(images.float(), size, mode="area").flatten(1)


def fresh(run: str, seed: int) -> ViT:
    """The run's encoder as it was before training, up to the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_encoder(read_config(run)["model"]["encoder"]).eval()


def knn(
    train: Float[Tensor, "A F"], test: Float[Tensor, "B F"], labels: Int64[Tensor, "A"], classes: int, k: int
) -> Int64[Tensor, "B"]:
    """The class of each test row: the k most similar training rows vote with exp(cosine / 0.07) (Wu et al. 2018), after
    each feature is standardised with the training rows' mean and deviation."""
    mean, std = train.mean(0), train.std(0).clamp(min=1e-6)
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
