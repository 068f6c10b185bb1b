"""The training of a tokenizer in numbers and in words: what the loop is told, the plan before it,
the summary after it."""

import shlex
from pathlib import Path
from typing import Any

from torchmae import runfolder
from torchmae.data.suspicious import suspicious
from torchmae.data.view import Glance, view_notes
from torchmae.errors import printable
from torchmae.settings.defaults import reasons
from torchmae.settings.options import size_text
from torchmae.settings.python_data import typed
from torchmae.tasks.tokenizer.config import ResolvedTokenizer
from torchmae.tasks.tokenizer.job import Job
from torchmae.train.config import TrainConfig
from torchmae.train.optim import train_config_of
from torchmae.version import command


def train_config(config: ResolvedTokenizer, images: int) -> TrainConfig:
    """What `fit` is told for a training on so many images."""
    output = config.output
    return train_config_of(
        config.optim,
        config.runtime,
        output,
        images,
        weight_decay=0.0,
        betas=(0.9, 0.999),
        evaluate_minutes=output.picture_minutes,
    )


def describe(job: Job, plan: TrainConfig, where: str) -> str:
    """The plan before training starts: what it is, and a line with the reason for each setting that
    was chosen."""
    config, model, source = job.config, job.model, job.batches.source
    described, optim = model.config, config.optim
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    grid = [length // described.patch_size for length in described.image_size]
    left_out = f", {source.left_out}" if source.left_out else ""
    rows = {
        "data": f"{config.source.data}: {len(source)} images{left_out}",
        "model": f"discrete VAE, {parameters:.1f} M parameters, {described.vocabulary} tokens",
        "image": f"{size_text(tuple(described.image_size))} px, {model.channels} "
        f"channel{'s' * (model.channels > 1)}, {'x'.join(map(str, grid))} tokens, one for each "
        f"patch of {described.patch_size} px",
        "training": f"{optim.epochs:.4g} epochs, {plan.steps} steps of {optim.batch_size} images, "
        f"peak learning rate {plan.lr:.2g}, {optim.precision}, {where}",
        "cache": f"{job.cache.name} ({job.cache.reason})",
    }
    lines = [f"{name:>17}  {value}" for name, value in rows.items()]
    if job.found is not None:  # else it is resumed, and the data has been looked at
        lines += [f"{'suspicious':>17}  {printable(line)}" for line in suspicious(source)]
        seen = Glance(job.found.sizes, job.found.stacks)
        height, width = described.image_size
        lines += [f"{'note':>17}  {note}" for note in view_notes(seen, (height, width))]
    return "\n".join([*lines, *reasons(job.chosen)])


def summary(config: ResolvedTokenizer, found: dict[str, Any], plan: TrainConfig, out: Path) -> str:
    """What was made and how good it is; the same goes to results.json."""
    path = runfolder.add_result(out, "tokenizer", {}, found)
    pictures = sorted((out / runfolder.PICTURES).glob("step-*.png"))
    run, data, mae = shlex.quote(str(out)), typed(config.source.data), command()
    lines = [
        f"Done: {plan.steps} steps. On {found['images']:,} training images, through their tokens "
        f"and back: mean squared error {found['error']:.4f} of normalized pixels (1: predicting "
        f"the mean color); perplexity {found['perplexity']:.1f} of {found['vocabulary']} tokens, "
        f"{found['dead']} of them never used."
    ]
    if found["perplexity"] < 4:
        lines.append(
            "Nearly all patches have the same few tokens, so there is little to predict: train "
            "longer (--epochs), or with a smaller --kl-weight, with a new --out."
        )
    lines += ["Made:", f"  {out / runfolder.MODEL}  the tokenizer"]
    lines += [f"  {picture}  images from tokens" for picture in pictures[-1:]]
    lines += [f"  {out / runfolder.CURVES}, {path}  how it went"]
    lines += [f"  {out / runfolder.REPORT}  all of it in one page"]
    patch, size = config.model.patch_size, config.model.image_size
    lines += [
        "Next:",
        f"  {mae} pretrain {data} --target tokens:{run} --image-size {size} --patch-size {patch}",
    ]
    return "\n".join(lines)
