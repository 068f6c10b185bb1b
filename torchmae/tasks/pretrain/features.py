"""How good the encoder's features are while pre-training, measured on labelled images."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from torchmae.data.config import DecodeOptions, Listing, same_place
from torchmae.data.labels import LabelledSets, by_class, labelled, open_pair, split_off
from torchmae.data.sources.source import Source, Subset
from torchmae.disk import write_text
from torchmae.errors import UserError, printable
from torchmae.eval.extract import collect, features_of
from torchmae.eval.probes.knn import knn
from torchmae.eval.rank import rankme
from torchmae.hashing import SPLIT, hash32
from torchmae.models.mae import MAE
from torchmae.models.weights import seeded
from torchmae.runfolder import LOG, read_log
from torchmae.train.distributed import World

T = TypeVar("T")

# Images that vote and that are classified: enough for an interval of +- 3 points, and a second or
# two of a GPU.
MOST_VOTERS, MOST_TESTED = 2000, 1000
HELD_OUT, NEIGHBOURS = 0.2, 20  # as by default in mae knn
ACCURACY, RANK = "k-NN accuracy", "RankMe"  # names in log.jsonl


def open_labelled(
    labels: str | None, data: str, seed: int, decode: DecodeOptions, listing: Listing
) -> LabelledSets | None:
    """The images of `--labelled`; None where it was not given, or is "none".

    They are split as `mae knn` does with this seed, then drawn (see `drawn`). A class -1 is one of
    the test images alone.

    Args:
        labels: the images, as given.
        data: those that are trained on.
        seed: of split and draw.
        decode: how they are decoded.
        listing: which images of `data` are taken, and so of `labels` where that is the same.

    Raises:
        UserError: there are no labels, one class, or a class with a single image.
    """
    if labels in (None, "none"):
        return None
    listing = listing if same_place(data, labels) else Listing()
    try:
        source, given = open_pair(labels, None, decode, listing)
        images, names = labelled(source, labels)
        refuse_few(names, 1 if given is not None else 2)
        if given is None:
            train, names, test, test_names = split_off(images, names, HELD_OUT, seed, labels)
        else:
            train, (test, test_names) = images, labelled(given, labels)
    except UserError as error:
        raise UserError(f"--labelled {labels}: {error}") from error
    classes = tuple(sorted(set(names)))
    number = {name: i for i, name in enumerate(classes)}
    voting, tested = drawn(names, MOST_VOTERS, seed), drawn(test_names, MOST_TESTED, seed)
    return LabelledSets(
        Subset(train, voting),
        Subset(test, tested),
        classes,
        torch.tensor([number[names[i]] for i in voting]),
        torch.tensor([number.get(test_names[i], -1) for i in tested]),
    )


def refuse_few(names: Sequence[str], least: int) -> None:
    """Raises UserError for a single class, and for one with fewer images than that."""
    counts = Counter(names)
    if len(counts) < 2:
        raise UserError(f"k-NN needs at least two classes, there is one: '{names[0]}'")
    few = sorted(name for name, count in counts.items() if count < least)
    if few:
        more = f" (and {len(few) - 1} more)" if len(few) > 1 else ""
        raise UserError(
            f"class '{few[0]}'{more} has one image, and one is needed to vote and one to test on: "
            "add images, or leave the class out"
        )


def drawn(names: Sequence[str], most: int, seed: int) -> list[int]:
    """The numbers of at most so many images: the same share of every class, but at least one."""
    share = min(1.0, most / len(names))
    ids = [
        i
        for _, members in by_class(names, seed)
        for i in members[: max(1, int(share * len(members)))]
    ]
    return sorted(sorted(ids, key=lambda i: hash32(seed, SPLIT, i))[:most])


class Features:
    """Evaluator: k-NN accuracy and effective rank of the encoder as it is now, on the same images.

    These are decoded once and kept as uint8. What is measured is that of `mae knn`, with `--aspect
    keep` on center crops of one shape.

    Args:
        model: it is read, and its mode (train or eval) left as it was.
        sets: the labelled images.
        out: the run folder.
        world: with several processes the main one measures; all do where weights are sharded.
        sharded: whether they are (FSDP).
    """

    def __init__(self, model: MAE, sets: LabelledSets, out: Path, world: World, sharded: bool):
        self.model = model
        self.sets = sets
        self.out = out
        self.world = world
        self.sharded = sharded
        self.parts: list[tuple[list[int], Shaped[Tensor, "N C H W"]]] = []
        self.before = ""
        self.where_needed(self.load)

    def where_needed(self, work: Callable[[], T]) -> T:
        """What some work returns; done by all processes where each of them has to."""
        return work() if self.sharded else self.world.on_main(work)

    def load(self) -> None:
        """Decodes the images."""
        self.parts = [self.read(part) for part in (self.sets.train, self.sets.val)]

    def read(self, source: Source) -> tuple[list[int], Shaped[Tensor, "N C H W"]]:
        """The numbers of the images that can be read, and these."""
        cpu = torch.device("cpu")
        with seeded(0):
            ids, (images,), _ = collect(
                source, self.model.encoder, self.out, [lambda images: images], cpu
            )
        return ids, images

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """The two values by name; none where the features are not finite."""
        was_training = self.model.training
        function = features_of(self.model.encoder, None, "mean", self.world.device)
        with seeded(0):  # an encoder of another kind may draw random numbers
            train, test = (
                torch.cat([function(some) for some in images.split(64)]) for _, images in self.parts
            )
        self.model.train(was_training)
        if not (train.isfinite().all() and test.isfinite().all()):
            return {}
        labels, truth = self.labels()
        guesses = knn(train, test, labels, len(self.sets.classes), NEIGHBOURS)
        return {ACCURACY: float((guesses == truth).double().mean()), RANK: rankme(train)}

    def labels(self) -> tuple[Int64[Tensor, " A"], Int64[Tensor, " B"]]:
        """The classes of the images that can be read."""
        (train, _), (test, _) = self.parts
        return self.sets.train_labels[train], self.sets.val_labels[test]

    def __call__(self, step: int) -> Iterator[tuple[str, float]]:
        """Measures at a step."""
        yield from self.where_needed(self.measure).items()

    def first(self) -> None:
        """Measures before the first step: the start of the curves, and how long it takes."""
        started = time.monotonic()
        self.model.to(self.world.device)
        found = dict(self(0))
        if self.world.is_main and found:
            write_text(self.out / LOG, json.dumps({"step": 0, **found}) + "\n")
            self.before = (
                f", {time.monotonic() - started:.1f} s each time; before the first step "
                f"{found[ACCURACY]:.1%} and {found[RANK]:.1f}"
            )

    def describe(self, labels: str) -> str:
        """For the plan."""
        voting, tested = len(self.sets.train), len(self.sets.val)
        return (
            f"{ACCURACY} ({tested:,} test and {voting:,} training images of {printable(labels)}) "
            f"and {RANK} with each picture{self.before}"
        )


def progress(out: Path) -> list[str]:
    """A line on how the features changed; none where they were not measured."""
    found = [record for record in read_log(out) if ACCURACY in record]
    if not found:
        return []
    first, last = found[0], found[-1]
    return [
        f"{ACCURACY} {first[ACCURACY]:.1%} at step {first['step']}, {last[ACCURACY]:.1%} at step "
        f"{last['step']}; {RANK} {first[RANK]:.1f} and {last[RANK]:.1f}."
    ]
