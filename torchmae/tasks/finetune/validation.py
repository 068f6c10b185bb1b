"""How good a classifier is while it is fine-tuned."""

from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from torchmae import manifest
from torchmae.data.labels import LabelledSets
from torchmae.eval.classification import scores
from torchmae.eval.extract import collect, logits_of
from torchmae.models.heads import Classifier
from torchmae.report.mistakes import draw_mistakes
from torchmae.runfolder import MISTAKES, add_classes
from torchmae.train.checkpoint import keep_scores, validated_step
from torchmae.train.distributed import World

SCORE = "top1"  # what the best weights are chosen by
IN_MEMORY = 1 << 30  # bytes of validation pixels that are kept from one epoch to the next


class Validation:
    """Evaluator: the scores on the validation images; the best weights so far are kept beside the
    last.

    The images are decoded once and kept, where they need no more than `IN_MEMORY`: with few labels
    an epoch takes less time than reading them.
    """

    def __init__(self, model: Classifier, data: LabelledSets, out: Path, world: World):
        self.model = model
        self.data = data
        self.out = out
        self.world = world
        self.decoded: tuple[list[int], Tensor] | None = None
        self.last: tuple[list[int], Tensor] | None = None  # numbers and logits

    def step(self) -> int | None:
        """The step that was validated last."""
        return validated_step(self.out, SCORE)

    def logits(self) -> tuple[list[int], Float[Tensor, "N classes"]]:
        """Of the validation images that can be read: their numbers and logits."""
        encoder, device = self.model.encoder, self.world.device
        classify = logits_of(self.model, device)
        height, width = encoder.image_size
        size = len(self.data.val) * encoder.channels * height * width
        keep = size <= IN_MEMORY
        if self.decoded is None or not keep:
            functions = [(lambda x: x) if keep else classify]
            # It wrote config.json itself: a manifest that is damaged meanwhile does not end it.
            with manifest.verification(False):
                ids, (found,), _ = collect(self.data.val, encoder, str(self.out), functions, device)
            if not keep:
                return ids, found
            self.decoded = ids, found
        ids, images = self.decoded
        return ids, torch.cat([classify(some) for some in images.split(64)])

    def __call__(self, step: int) -> Iterator[tuple[str, float]]:
        """Measures at a step; yields the accuracy."""
        ids, found = self.last = self.logits()
        result = scores(found, self.data.val_labels[ids], self.model.classes)
        keep_scores(self.out, step, result.summary(), SCORE, self.model, self.world)
        yield "accuracy", result.top1

    def details(self, step: int) -> None:
        """Writes and draws what the last validation says of single classes and images, if there
        was one in this process."""
        if self.last is None:
            return
        (ids, found), classes = self.last, self.model.classes
        labels = self.data.val_labels[ids]
        detail = scores(found, labels, classes).detail(f"validation at step {step:,}", classes)
        add_classes(self.out, "finetune", detail)
        size = self.model.encoder.image_size
        draw_mistakes(self.data.val, ids, found, labels, classes, size, self.out / MISTAKES)
