"""A training of dense prediction in numbers and in words: what the loop is told, the plan before
it, the summary after it."""

from pathlib import Path
from typing import Any

from torch import nn

from torchmae import runfolder
from torchmae.settings.defaults import reasons
from torchmae.settings.options import size_text
from torchmae.tasks.dense.config import ResolvedDense
from torchmae.tasks.dense.job import Job, Verb
from torchmae.tasks.dense.validation import SCORE
from torchmae.train.checkpoint import read_scores
from torchmae.train.config import TrainConfig
from torchmae.train.optim import train_config_of
from torchmae.version import command


def train_config(config: ResolvedDense, images: int) -> TrainConfig:
    """What `fit` is told for a training on so many images."""
    optim = config.optim
    return train_config_of(
        optim,
        config.runtime,
        config.output,
        images,
        min_lr=optim.min_lr,
        weight_decay=optim.weight_decay,
        betas=(0.9, optim.beta2),
        evaluate_steps=max(1.0, optim.validate_epochs * images / optim.batch_size),
        layer_decay=optim.layer_decay,
        ema=optim.ema or None,
    )


def describe(
    job: Job[Any, Any], verb: Verb[Any, Any], task: nn.Module, plan: TrainConfig, where: str
) -> str:
    """The plan before training starts: what it is, and a line with the reason for each setting that
    was chosen."""
    config, sets, encoder = job.config, job.sets, job.model.encoder
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    left_out = dict.fromkeys([sets.train_source.left_out, sets.val_source.left_out])
    words = "; ".join(filter(None, left_out))
    rows = {
        "data": f"{config.source.data} ({sets.layout}): {len(sets.train_source)} training images "
        f"and {len(sets.val_source)} validation images{f' ({words})' if words else ''}",
        "encoder": f"{encoder.embed_dim} wide, {len(encoder.layers())} blocks, crops of "
        f"{size_text(encoder.image_size)} px, {encoder.channels} "
        f"channel{'s' * (encoder.channels > 1)}; "
        f"train {config.model.train} ({trained:,} parameters)",
        **verb.describe(config, job.model, sets),
        "training": f"{config.optim.epochs:.4g} epochs, {plan.steps} steps of "
        f"{config.optim.batch_size} images, peak learning rate {plan.lr:.2g}, "
        f"{config.optim.precision}, {where}",
        "cache": f"{job.cache.name} ({job.cache.reason})",
    }
    lines = [f"{name:>17}  {value}" for name, value in rows.items()]
    lines += [f"{'note':>17}  {note}" for note in job.notes]
    return "\n".join([*lines, *reasons(job.chosen)])


def summary(out: Path, verb: Verb[Any, Any], plan: TrainConfig) -> str:
    """What was made and how good it is; the same goes to results.json."""
    last = read_scores(out / runfolder.LAST_SCORES, SCORE)
    assert last is not None, "the last step is validated before this"
    best = read_scores(out / runfolder.BEST_SCORES, SCORE) or last
    path = runfolder.add_result(out, verb.name, {}, {"best": best, "last": last})
    beside = ""
    if best["step"] != last["step"]:
        beside = (
            f"\nBest: step {best['step']}, {verb.words(best)} (chosen on these same images, so it "
            "flatters)"
        )
    averaged = ", of the moving average of the weights" if plan.ema else ""
    mae = command()
    return "\n".join(
        [
            f"Done: {plan.steps} steps{averaged}. On the validation images: {verb.words(last)}"
            f"{beside}",
            f"Made:\n  {out / runfolder.MODEL}  the last weights",
            f"  {out / runfolder.BEST_MODEL}  the best ones (--best in the commands below)",
            f"  {out / runfolder.CURVES}, {path}  how it went",
            f"  {out / runfolder.WORST}  the worst validation images",
            f"  {out / runfolder.REPORT}  all of it in one page",
            f"Next:\n  {mae} evaluate {out} DATA  each class, the worst images of DATA",
            f"  {mae} predict {out} IMAGES --out predictions",
        ]
    )
