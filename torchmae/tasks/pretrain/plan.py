"""A pre-training in numbers and in words: what the loop is told, the plan before it, the summary
after it."""

import platform
import shlex
from pathlib import Path
from typing import Any

import torch

from torchmae import runfolder
from torchmae.data.suspicious import suspicious
from torchmae.data.view import Glance, view_notes
from torchmae.errors import printable
from torchmae.models.mae import MAE
from torchmae.models.masking import MaskGenerator
from torchmae.models.targets import TARGETS, split_target
from torchmae.models.vit import attention
from torchmae.report.pictures import hidden_words
from torchmae.report.words.learning import end_of, look_at, verdict
from torchmae.settings.defaults import reasons
from torchmae.settings.groups import CACHES
from torchmae.settings.python_data import typed
from torchmae.tasks.pretrain.config import MaskingOptions, ResolvedPretrain
from torchmae.tasks.pretrain.features import progress
from torchmae.tasks.pretrain.job import Job
from torchmae.tasks.pretrain.task import TARGET_STD
from torchmae.train.config import Floor, TrainConfig
from torchmae.train.distributed import World
from torchmae.train.loop import Outcome, finished_line
from torchmae.train.optim import train_config_of, trunk
from torchmae.version import command

COLLAPSE = Floor(
    TARGET_STD,
    0.01,
    "all images have the same target, and nothing is left to learn from (collapse). Start again "
    "with a lower --base-lr or a longer --warmup-epochs, or with --target norm-pixels",
)


def train_config(config: ResolvedPretrain, images: int) -> TrainConfig:
    """What `fit` is told for a training on so many images."""
    optim, output = config.optim, config.output
    target = TARGETS[split_target(config.masking.target)[0]]
    return train_config_of(
        optim,
        config.runtime,
        output,
        images,
        weight_decay=optim.weight_decay,
        betas=(0.9, 0.95),  # paper, appendix Table 8
        schedule=optim.schedule,
        evaluate_minutes=output.picture_minutes,
        views=config.masking.views,
        floor=COLLAPSE if target.follows_encoder else None,
    )


def describe(
    job: Job, plan: TrainConfig, out: Path, world: World, measured: str | None = None
) -> str:
    """The plan before training starts: what it is, and a line with the reason for each setting that
    was chosen.

    Args:
        job: the pre-training.
        plan: what `fit` is told.
        out: the run folder.
        world: of this process.
        measured: what is measured meanwhile, in words.
    """
    config, model, cache = job.config, job.model, job.cache
    images = len(job.batches.source)
    optim, masking, stable = config.optim, config.masking, trunk(plan)
    decay = "" if stable is None else f", falling from step {stable} on"
    seen, done = f"{images} images", runfolder.last_step(out)
    bad = len(runfolder.read_bad_files(out))
    if bad:
        seen += f", {bad} unreadable (see {out / runfolder.BAD_FILES})"
    if job.batches.source.left_out:
        seen += f", {job.batches.source.left_out}"
    size, patch = config.model.image_size, config.model.patch_size
    grid, channels = "x".join(map(str, model.encoder.grid)), config.decode.channels
    loading = f"images {CACHES[cache.name]} ({cache.reason})"
    if cache.name != "device":
        workers = config.runtime.workers
        loading += f"; {workers} worker{'s' * (workers != 1)} a process"
    rows = {
        "data": f"{config.source.data}: {seen}",
        "start": f"{job.origin}; this run goes on from step {done:,}" if done else job.origin,
        "model": describe_model(model, config.model.model),
        "image": f"{size} px, {channels} channel{'s' * (channels > 1)}{pixels_of(model)}, "
        f"{grid} patches of {patch} px, "
        f"{hidden_of(masking)}",
        "training": f"{optim.epochs:.4g} epochs, {plan.steps} steps of {optim.batch_size} images, "
        f"peak learning rate {plan.lr:.2g} (base {optim.base_lr:.2g}){decay}",
        "device": describe_device(config, world),
        "loading": loading,
        **({"measured": measured} if measured else {}),
        "run folder": str(out),
    }
    lines = [f"{name:>17}  {value}" for name, value in rows.items()]
    if job.found is not None:  # else it is resumed, and the data has been looked at
        lines += [
            f"{'suspicious':>17}  {printable(line)}" for line in suspicious(job.batches.source)
        ]
    if job.found is not None:
        notes = view_notes(Glance(job.found.sizes, job.found.stacks), model.encoder.image_size)
        lines += [f"{'note':>17}  {note}" for note in notes]
    return "\n".join([*lines, *reasons(job.chosen)])


def hidden_of(masking: MaskingOptions) -> str:
    """What is hidden, and how often, in words."""
    masks = MaskGenerator.of(vars(masking))
    words = [hidden_words(masks.share(), masks.words(), masking.noise)]
    if masks.predicted < 1:
        words.append(f"{100 * masks.predicted:.0f} % of them predicted")
    if masking.views > 1:
        kind = "complementary masks" if masking.complementary else "masks"
        words.append(f"{masking.views} {kind} of each crop")
    return ", ".join(words)


def pixels_of(model: MAE) -> str:
    """What the pixels are, where they are not of 8 bits."""
    scaling = model.encoder.scaling
    return "" if scaling is None else f" of values as they are (scale {scaling.words()})"


def describe_model(model: MAE, name: str | None) -> str:
    """Sizes of encoder and decoder in words."""
    parts = (model.encoder, model.decoder)
    encoder, decoder = (sum(p.numel() for p in part.parameters()) / 1e6 for part in parts)
    name = name or f"{model.encoder.embed_dim} wide, {len(model.encoder.layers())} blocks"
    everywhere = ", mask tokens in the encoder" if model.encode_all else ""
    return (
        f"{name}, {encoder:.1f} M parameters, decoder {decoder:.1f} M{everywhere}; "
        f"target {model.target_name}"
    )


def describe_device(config: ResolvedPretrain, world: World) -> str:
    """Hardware, precision and processes in words."""
    on_gpu = world.device.type == "cuda"
    hardware = torch.cuda.get_device_name() if on_gpu else platform.processor() or "CPU"
    words = [
        f"{world.device.type} ({hardware})",
        config.optim.precision,
        f"{world.size} process{'es' * (world.size > 1)}",
        attention(world.device, config.optim.precision),
        "fused AdamW",
        "compiled" if config.runtime.compile else "not compiled",
    ]
    if config.runtime.grad_checkpointing:
        words.append("gradient checkpointing")
    return ", ".join(words)


def summary(job: Job, outcome: Outcome, plan: TrainConfig, out: Path) -> str:
    """What was made, where, and what to type next."""
    config = job.config
    pictures = sorted((out / runfolder.PICTURES).glob("step-*.png"))
    bad = len(runfolder.read_bad_files(out))
    lines = [*head(job, outcome.last, plan, out), *progress(out), "", "Made:"]
    lines.append(f"  {out / runfolder.MODEL}  encoder and decoder")
    if pictures:
        lines.append(f"  {pictures[-1]}  reconstructions")
    lines.append(f"  {out / runfolder.CURVES}, {out / runfolder.LOG}  how it learned")
    lines.append(f"  {out / runfolder.REPORT}  all of it in one page")
    if bad:
        lines.append(
            f"  {out / runfolder.BAD_FILES}  {bad} files that could not be read, with reasons"
        )
    run, data, mae = shlex.quote(str(out)), typed(config.source.data), command()
    look = [f"  {mae} reconstruct {run} IMAGE...  look at images of your own"]
    return "\n".join(
        [
            *lines,
            "Next:",
            *(look if job.model.target.has_pictures() else []),
            f"  {mae} knn {run} LABELLED_FOLDER  how good are the features?",
            f"  {mae} finetune {run} LABELLED_FOLDER  a classifier from a few labels "
            "(mae compare: what pre-training is worth)",
            f"  {mae} embed {run} {data} --out features.npz  features for your own use",
        ]
    )


def head(job: Job, last: dict[str, Any] | None, plan: TrainConfig, out: Path) -> list[str]:
    """How the training ended: its loss beside those of two predictors that have learned nothing,
    and what that means."""
    if last is None:
        return [finished_line(plan, out)]
    records = [record for record in runfolder.read_log(out) if "loss" in record]
    end = end_of(records)
    loss = "not finite" if end.loss is None else f"{end.loss:.4f}"
    beside = ", ".join(f"{name}: {value:.4f}" for name, value in end.baselines.items())
    lines = [f"Done: {plan.steps} steps, loss {loss} (predicting the {beside}; {end.span})"]
    lines += verdict(records, job.config.optim.base_lr, look_at(job.batches.source))
    if last.get("peak_memory_mb"):
        lines.append(f"Peak memory: {last['peak_memory_mb']:.0f} MB.")
    return lines
