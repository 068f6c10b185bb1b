"""How good a model of dense prediction is while it is trained."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from torchmae import manifest, runfolder
from torchmae.disk import parse_json, write_text
from torchmae.tasks.dense.job import Job, Verb
from torchmae.train.checkpoint import refuse_not_finite, save_tensors
from torchmae.train.distributed import World

# What validation leaves in a run folder.
MEASURED = (
    runfolder.BEST_SCORES,
    runfolder.BEST_MODEL,
    runfolder.LAST_SCORES,
    runfolder.RESULTS,
)


def read_scores(path: Path) -> dict[str, Any] | None:
    """What a validation wrote; None where there is nothing, or it is damaged: then the next
    validation writes it again."""
    try:
        found = parse_json(path.read_bytes())
        return {**found, "step": int(found["step"]), "score": float(found["score"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Validation:
    """Evaluator: the scores on the validation images; the best weights so far are kept beside the
    last."""

    def __init__(self, job: Job[Any, Any], verb: Verb[Any, Any], out: Path, world: World):
        self.job = job
        self.verb = verb
        self.out = out
        self.world = world

    def step(self) -> int | None:
        """The step that was validated last."""
        found = read_scores(self.out / runfolder.LAST_SCORES)
        return found["step"] if found else None

    def __call__(self, step: int) -> Iterator[tuple[str, float]]:
        """Measures at a step; yields what is logged."""
        job = self.job
        result = self.verb.measure(job.model, job.sets, job.config, self.world)
        best = self.out / runfolder.BEST_SCORES

        def is_best() -> bool:
            before = read_scores(best)
            return before is None or before["score"] < result.score

        text = json.dumps({"step": step, "score": result.score, **result.summary()}, indent=1)
        weights: dict[str, Tensor] = {}
        if self.world.on_main(is_best):  # all processes bring sharded weights together
            state = job.model.state_dict().items()
            weights = {name: self.world.gather(value).contiguous() for name, value in state}
        if self.world.is_main:
            write_text(self.out / runfolder.LAST_SCORES, text)
            if weights:
                partial = self.out / f".{runfolder.BEST_MODEL}.partial"
                refuse_not_finite(weights)
                save_tensors(weights, partial)
                manifest.publish(self.out, {runfolder.BEST_MODEL: partial}, runfolder.LISTED)
                write_text(best, text)
        yield from result.logged().items()
