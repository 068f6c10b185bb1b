"""A fine-tuning in numbers and in words: what the loop is told, the plan before it, the summary
after it."""

from pathlib import Path

from jaxtyping import Int64
from torch import Tensor

from torchmae import runfolder
from torchmae.data.suspicious import suspicious_labels
from torchmae.data.view import Glance, view_notes
from torchmae.errors import printable
from torchmae.eval.baselines import not_above_commonest
from torchmae.settings.defaults import reasons
from torchmae.settings.options import size_text
from torchmae.tasks.finetune.config import ResolvedFinetune
from torchmae.tasks.finetune.job import Job
from torchmae.tasks.finetune.task import ClassifyTask
from torchmae.tasks.finetune.validation import SCORE
from torchmae.train.checkpoint import read_scores
from torchmae.train.config import TrainConfig
from torchmae.train.optim import train_config_of
from torchmae.version import command


def train_config(config: ResolvedFinetune, images: int) -> TrainConfig:
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
        optimizer=optim.optimizer,
        layer_decay=optim.layer_decay,
        ema=optim.ema or None,
    )


def describe(job: Job, task: ClassifyTask, plan: TrainConfig, where: str) -> str:
    """The plan before training starts: what it is, and a line with the reason for each setting that
    was chosen."""
    config, data, model = job.config, job.data, job.model
    encoder, optim = model.encoder, config.optim
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    few, left_out = config.split.labels_per_class, data.train.left_out
    rows = {
        "data": f"{config.source.data}: {len(data.train)} training images"
        f"{f' ({few} a class)' if few else ''} and {len(data.val)} validation images, "
        f"{len(model.classes)} classes{f', {left_out}' if left_out else ''}",
        **({} if job.unlabelled is None else {"unlabelled": words_of(job)}),
        "model": f"{encoder.embed_dim} wide, {len(encoder.layers())} blocks, "
        f"{size_text(encoder.image_size)} px, {encoder.channels} "
        f"channel{'s' * (encoder.channels > 1)}; "
        f"train {config.model.train} ({trained:,} parameters)",
        "training": f"{optim.epochs:.4g} epochs, {plan.steps} steps of {optim.batch_size} images, "
        f"peak learning rate {plan.lr:.2g} ({optim.optimizer}), {optim.precision}, {where}",
        "cache": f"{job.cache.name} ({job.cache.reason})",
    }
    lines = [f"{name:>17}  {value}" for name, value in rows.items()]
    if job.chosen:  # not where a fine-tuning is resumed, whose data has been looked at
        labels = [model.classes[i] for i in data.train_labels]
        found = suspicious_labels(data.train, data.val, labels)
        lines += [f"{'suspicious':>17}  {printable(line)}" for line in found]
    if job.found is not None:
        seen = Glance(job.found.sizes, job.found.stacks)
        notes = view_notes(seen, encoder.image_size, config.crop.crop_pct)
        notes += doubtful(config, encoder.channels)
        lines += [f"{'note':>17}  {note}" for note in notes]
    return "\n".join([*lines, *reasons(job.chosen)])


def words_of(job: Job) -> str:
    """The images without labels, in words."""
    assert job.unlabelled is not None
    return (
        f"{job.config.regularization.unlabelled}: {len(job.unlabelled)} images, "
        f"{job.config.optim.batch_size} beside the labelled ones of each step, for the MAE's loss"
    )


def doubtful(config: ResolvedFinetune, channels: int) -> list[str]:
    """A line where most of the encoder stays as it was trained on other channels."""
    if config.run == "none" or config.model.train == "all":
        return []
    described = runfolder.read_any_config(config.run)["model"]
    before = described.get("encoder", described).get("channels", channels)
    if before == channels:
        return []
    return [
        f"{config.run} was trained on {before} channels, these images have {channels}: each gets "
        "the mean of its patch weights, and frozen features of them are doubtful. Pre-train on "
        f"them with --from {config.run} first, or --train all"
    ]


def summary(out: Path, plan: TrainConfig, labels: Int64[Tensor, " N"]) -> str:
    """What was made and how good it is; the same goes to results.json."""
    last = read_scores(out / runfolder.LAST_SCORES, SCORE)
    assert last is not None, "the last step is validated before this"
    best = read_scores(out / runfolder.BEST_SCORES, SCORE) or last
    path = runfolder.add_result(out, "finetune", {}, {"best": best, "last": last})
    beside = ", which is the best one too"
    if best["step"] != last["step"]:
        beside = (
            f", best epoch {best['top1']:.1%} (step {best['step']}; "
            "chosen on these same images, so it flatters)"
        )
    averaged = " of the moving average of the weights" if plan.ema else ""
    mae = command()
    return "\n".join(
        [
            f"Done: {plan.steps} steps. Accuracy{averaged} on {len(labels)} validation images: "
            f"last epoch {last['top1']:.1%} "
            f"(95 % interval {last['low']:.1%} to {last['high']:.1%}){beside}"
            f"{not_above_commonest(last['low'], labels)}",
            f"Made:\n  {out / runfolder.MODEL}  the last weights",
            f"  {out / runfolder.BEST_MODEL}  the best epoch's (--best in the commands below)",
            f"  {out / runfolder.CURVES}, {path}  how it went",
            f"  {out / runfolder.REPORT}  all of it in one page",
            f"Next:\n  {mae} evaluate {out} LABELLED  each class, calibration, confusion",
            f"  {mae} predict {out} FOLDER --out predictions.csv",
        ]
    )
