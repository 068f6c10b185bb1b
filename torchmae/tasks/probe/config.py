"""The settings of `mae probe`."""

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Probe:
    """How well does a linear map tell the classes apart, from the features of the frozen encoder?

    By default the paper's linear probe: the head alone, behind a BatchNorm, is trained by SGD or LARS on weakly augmented
    images. With --fast, logistic regression on the stored features of whole images, beside the same on an untrained encoder
    and on raw pixels.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Labelled images: class folders (with train/ and val/ above them: the split), CSV of path,label, tar, digits, ..."""
    fast: bool = False
    """Logistic regression on stored features, its strength chosen by cross-validation on the training images."""
    val: str | None = None
    """Labelled images to measure on. Default: val/ or test/ beside train/, else a share of DATA."""
    val_fraction: float = 0.2
    """That share, of every class, drawn by the seed."""
    labels_per_class: int | None = None
    """Train on so many images of each class, drawn by the seed."""
    pool: str | None = None
    """mean of the patch tokens or the class token. Default: token (the paper's); mean with --fast, as mae knn."""
    layer: int | None = None
    """Only with --fast: take the tokens after this block, 1 to depth. Default: after the last."""
    out: str | None = None
    """Run folder of the trained probe. Default: RUN-probe. With --fast there is none."""
    epochs: float | None = None
    """Not with --fast: passes over the labelled images."""
    batch_size: int | None = None
    """Not with --fast: images per optimizer step, over all processes."""
    base_lr: float | None = None
    """Not with --fast: learning rate for 256 images a step."""
    optimizer: str | None = None
    """Not with --fast: adamw, sgd or lars. Default: sgd, or lars from 4,096 images a step on."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Not with --fast: least and largest share of the image's area that a random crop takes."""
    flip: bool = True
    """Not with --fast: mirror half of the crops (not for text or digits)."""
    seed: int = 0
    """Of split, subset, head, order and augmentation; of the cross-validation and the untrained encoder."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: int | None = None
    """Not with --fast: processes that load images."""


TRAINED_ONLY = (
    "out",
    "epochs",
    "batch_size",
    "base_lr",
    "optimizer",
    "crop_scale",
    "flip",
    "workers",
)


FAST_ONLY = ("fast", "layer")
