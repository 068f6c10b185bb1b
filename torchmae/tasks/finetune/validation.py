"""How good a classifier is while it is fine-tuned."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchmae import manifest, runfolder
from torchmae.data.labels import LabelledSets
from torchmae.disk import parse_json, write_text
from torchmae.eval.classification import scores
from torchmae.eval.extract import collect, logits_of
from torchmae.models.heads import Classifier
from torchmae.train.checkpoint import refuse_not_finite, save_tensors
from torchmae.train.distributed import World

# What validation leaves in a run folder.
MEASURED = (
    runfolder.BEST_SCORES,
    runfolder.BEST_MODEL,
    runfolder.LAST_SCORES,
    runfolder.RESULTS,
)
IN_MEMORY = 1 << 30  # bytes of validation pixels that are kept from one epoch to the next


def read_scores(path: Path) -> dict[str, Any] | None:
    """What a validation wrote; None where there is nothing, or it is damaged: then the next
    validation writes it again."""
    try:
        found = parse_json(path.read_bytes())
        return {**found, "step": int(found["step"]), "top1": float(found["top1"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


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

    def step(self) -> int | None:
        """The step that was validated last."""
        found = read_scores(self.out / runfolder.LAST_SCORES)
        return found["step"] if found else None

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
        ids, found = self.logits()
        result = scores(found, self.data.val_labels[ids], self.model.classes)
        best = self.out / runfolder.BEST_SCORES

        def is_best() -> bool:
            before = read_scores(best)
            return before is None or before["top1"] < result.top1

        text = json.dumps({"step": step, **result.summary()}, indent=1)
        weights: dict[str, Tensor] = {}
        if self.world.on_main(is_best):  # all processes bring sharded weights together
            state = self.model.state_dict().items()
            weights = {name: self.world.gather(value).contiguous() for name, value in state}
        if self.world.is_main:
            write_text(self.out / runfolder.LAST_SCORES, text)
            if weights:
                partial = self.out / f".{runfolder.BEST_MODEL}.partial"
                refuse_not_finite(weights)
                save_tensors(weights, partial)
                manifest.publish(self.out, {runfolder.BEST_MODEL: partial}, runfolder.LISTED)
                write_text(best, text)
        yield "accuracy", result.top1
