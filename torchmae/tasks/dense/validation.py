"""How good a model of dense prediction is while it is trained."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchmae.runfolder import WORST, add_classes
from torchmae.tasks.dense.job import Job, Scores, Verb
from torchmae.train.checkpoint import keep_scores, validated_step
from torchmae.train.distributed import World

SCORE = "score"  # what the best weights are chosen by


class Validation:
    """Evaluator: the scores on the validation images; the best weights so far are kept beside the
    last."""

    def __init__(self, job: Job[Any, Any], verb: Verb[Any, Any], out: Path, world: World):
        self.job = job
        self.verb = verb
        self.out = out
        self.world = world
        self.last: Scores | None = None

    def step(self) -> int | None:
        """The step that was validated last."""
        return validated_step(self.out, SCORE)

    def __call__(self, step: int) -> Iterator[tuple[str, float]]:
        """Measures at a step; yields what is logged."""
        job = self.job
        result = self.last = self.verb.measure(job.model, job.sets, job.config, self.world)
        scores = {SCORE: result.score, **result.summary()}
        keep_scores(self.out, step, scores, SCORE, job.model, self.world)
        if self.world.is_main:
            detail = result.detail(f"validation at step {step:,}", job.model.classes)
            add_classes(self.out, self.verb.name, detail)
        yield from result.logged().items()

    def draw_worst(self) -> None:
        """Draws the worst images of the last validation, if there was one in this process."""
        if self.last is not None:
            self.last.draw_worst(self.job.sets, self.job.model, self.out / WORST)
