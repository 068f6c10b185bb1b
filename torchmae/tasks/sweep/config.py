"""The settings of `mae compare` and `mae partial`: those of `mae finetune`, and what is swept."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from torchmae.tasks.finetune.config import Finetune


@dataclass(frozen=True)
class Compare(Finetune):
    """Fine-tune a run and, as its partner, the same encoder from scratch: same images, labels, steps and seeds.

    Flags are those of mae finetune and hold for both; what is left open follows each one's own recipe.
    """

    labels_per_class: tuple[int, ...] = ()  # type: ignore[assignment]
    """Numbers of training images of each class, one comparison each. Default: all images."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of split, subset, head, order and augmentation: a pair of trainings each."""
    seed: Annotated[int, tyro.conf.Suppress] = 0
    model: Annotated[str | None, tyro.conf.Suppress] = None  # these two are the run's
    patch_size: Annotated[int | None, tyro.conf.Suppress] = None


@dataclass(frozen=True)
class Partial(Finetune):
    """Fine-tune more and more of the last blocks, and draw the accuracies beside those of the paper's Figure 9.

    Flags are those of mae finetune and hold for all; 0 is the linear probe with its own recipe.
    """

    train: tuple[str, ...] = ()  # type: ignore[assignment]
    """What may change, one training each: 0 (linear probe), 0.5 (MLP half of the last block), numbers of last blocks, all.
    Default: 0 0.5 1 2 4 all, as far as there are so many."""
    epochs: tuple[float, ...] = ()  # type: ignore[assignment]
    """Passes over the labelled images. Several: each is tried, and the best of each part is shown (the paper: 50 100 200)."""
