"""`mae pretrain`: any folder of images to a run folder with an encoder, pictures and curves."""

import logging
import math
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from torchmae import runfolder as runs
from torchmae.data.cache.device import DeviceLoader
from torchmae.data.cache.device import bytes_needed as resident_bytes
from torchmae.data.cache.disk import make_folder
from torchmae.data.cache.layout import bytes_needed, check_room, free_memory
from torchmae.data.cache.memory import Cached
from torchmae.data.loader import Batches
from torchmae.data.scan import scan, scan_and_report
from torchmae.data.sources import open_source
from torchmae.data.sources.source import Source
from torchmae.data.transforms import CenterCropResize, RandomResizedCropFlip
from torchmae.errors import UserError
from torchmae.models.mae import MAE
from torchmae.models.masking import num_visible
from torchmae.options import parse_size
from torchmae.report.curves import draw_curves
from torchmae.report.pictures import draw, draw_mask
from torchmae.runfolder import is_run, last_step, name_of, prepare, resume, write_config
from torchmae.tasks.pretrain.config import FREE, Pretrain, asked, check, describe, resolve
from torchmae.tasks.pretrain.start import build, fit_target, init_from_run
from torchmae.tasks.pretrain.task import PretrainTask
from torchmae.train.checkpoint import lock
from torchmae.train.config import TrainConfig
from torchmae.train.distributed import World, start
from torchmae.train.loop import Outcome, fit
from torchmae.train.optim import peak_lr
from torchmae.version import command

logger = logging.getLogger(__name__)

SMALL = 256  # px: the largest side of images for which the device crops by matrix products without being asked


def run(config: Pretrain) -> Path:
    """Trains, or goes on training, and gives the run folder."""
    check(config)
    with start(config.device) as world, ExitStack() as stack:
        if is_run(Path(config.data)):
            raise UserError(
                f"{config.data} is a run folder, not images (to start from its weights: --from {config.data})"
            )
        source = open_source(config.data)
        out = Path(config.out or Path("runs") / name_of(config.data))
        if config.from_run is not None and out.resolve() == Path(config.from_run).resolve():
            raise UserError(
                f"the run folder {out} is that of --from, which stays as it is: name a new one with --out"
            )
        goes_on = prepare(out, config.data, world)
        world.on_main(lambda: stack.enter_context(lock(out)))
        if goes_on:
            merged, described = resume(out, "pretrain", asked(config), FREE, runs.identity(source))
            config = Pretrain(**{**merged, "cache": config.cache})
            model, origin = MAE.build(described), config.from_run or "from scratch"
        else:
            config, parent = init_from_run(config, source.channels)
            channels, limits = (
                config.channels or source.channels,
                (config.max_megapixels, config.white),
            )
            found = world.on_main(
                lambda: scan_and_report(source, channels, out, *limits, config.max_bad_percent)
            )
            width = parent.encoder.embed_dim if parent else None
            config = resolve(config, found, source.channels, world, width)
            model, origin = build(config, found, parent)
        num_visible(math.prod(model.encoder.grid), config.mask_ratio)
        batches = make_batches(config, source, world)
        config = replace(
            config, cache=config.cache or world.on_main(lambda: cache_for(batches, world))
        )
        if not goes_on:  # all that can be wrong with the settings has been said by now
            fit_target(model, batches, world)
            identity = runs.identity(source)
            world.on_main(
                lambda: write_config(out, "pretrain", asdict(config), identity, model.config())
            )
        return train(config, batches, model, origin, out, world)


def make_batches(config: Pretrain, source: Source, world: World) -> Batches:
    """The batches of this process."""
    assert config.image_size and config.batch_size and config.channels
    return Batches(
        source,
        RandomResizedCropFlip(
            parse_size(config.image_size), config.seed, config.crop_scale, config.flip
        ),
        config.batch_size,
        config.channels,
        config.seed,
        world.rank,
        world.size,
        config.max_megapixels,
        config.white,
    )


def train(
    config: Pretrain, batches: Batches, model: MAE, origin: str, out: Path, world: World
) -> Path:
    """fit() with this task, its pictures, and the words before and after; `origin` says where the weights come from."""
    assert (
        config.epochs
        and config.batch_size
        and config.base_lr is not None
        and config.warmup_epochs is not None
    )
    assert config.precision and config.workers is not None
    model.set_grad_checkpointing(config.grad_checkpointing)
    steps_per_epoch = len(batches.source) / config.batch_size
    plan = TrainConfig(
        steps=max(1, round(config.epochs * steps_per_epoch)),
        warmup_steps=round(config.warmup_epochs * steps_per_epoch),
        lr=peak_lr(config.base_lr, config.batch_size),
        weight_decay=config.weight_decay,
        betas=(0.9, 0.95),
        clip_grad=config.clip_grad,
        precision=config.precision,
        compile=config.compile,
        fsdp=config.fsdp,
        workers=config.workers,
        micro_batch_size=config.micro_batch_size,
        log_every=config.log_every,
        save_minutes=config.save_minutes,
        evaluate_minutes=config.picture_minutes,
        tensorboard=config.tensorboard,
    )
    if world.is_main:
        logger.info(describe(config, plan, len(batches.source), model, origin, out, world))
    task = PretrainTask(model, config.masking, config.mask_ratio, config.seed)
    steps = kept_decoded(config, batches, world) if last_step(out) < plan.steps else batches
    outcome = fit(task, steps, plan, out, world, [Pictures(model, batches, config, out, world)])
    if world.is_main:
        draw_curves(out)
        logger.info(summary(out, outcome, plan, config))
    return out


def cache_for(batches: Batches, world: World) -> str:
    """Which cache there is where none was asked for: the device, for small images that take up to a quarter of what is free."""
    if world.device.type != "cuda":
        return "none"
    sizes = scan(
        batches.source, batches.channels, batches.max_megapixels, batches.white
    ).sizes  # is remembered
    fits = resident_bytes(sizes, batches.channels) <= torch.cuda.mem_get_info(world.device)[0] / 4
    return "device" if sizes.max() <= SMALL and fits else "none"


def kept_decoded(config: Pretrain, batches: Batches, world: World) -> Batches | DeviceLoader:
    """The same batches, with each image decoded once, if that is asked for (`--cache`)."""
    where, limits = config.cache, (batches.channels, batches.max_megapixels, batches.white)
    if where in (None, "none"):
        return batches
    sizes = world.on_main(lambda: scan(batches.source, *limits)).sizes  # is remembered

    def room() -> Path | None:
        """Makes sure of it (what the main process finds holds for all), and gives the folder if it is on a disk."""
        if where == "disk":
            return make_folder(config.data, batches.source, sizes, *limits)
        if where == "device" and world.device.type not in ("cpu", "cuda"):
            raise UserError(
                f"--cache device: on cpu and cuda, not on {world.device.type}; use --cache memory"
            )
        on_host = world.device.type == "cpu" or where == "memory"
        free = (
            free_memory() / world.local_size
            if on_host
            else torch.cuda.mem_get_info(world.device)[0]
        )
        pixels = bytes_needed(sizes, batches.channels)
        check_room(str(where), 2 * pixels if where == "device" else pixels, free)
        return None

    folder = world.on_main(room)
    if folder is not None and world.is_main:
        size = bytes_needed(sizes, batches.channels) / 1e6
        logger.info(f"      cache  {folder}: {size:,.0f} MB, may be deleted at any time")
    if where == "device":
        return DeviceLoader(batches, world.device)
    if folder is not None:  # on another machine there is none yet
        folder = room()
    return replace(batches, source=Cached(batches.source, sizes, *limits, folder))


class Pictures:
    """Evaluator: the same 8 images with the same masks, as training goes on, in `pictures/`."""

    def __init__(self, model: MAE, batches: Batches, config: Pretrain, out: Path, world: World):
        self.model, self.config, self.folder, self.is_main = (
            model,
            config,
            out / "pictures",
            world.is_main,
        )
        count = len(batches.source)
        self.samples = torch.arange(min(8, count)) * count // min(8, count)
        whole = CenterCropResize(model.encoder.image_size)
        self.images = torch.stack([whole(batches.read(int(i), [])[1]) for i in self.samples])

    def __call__(self, step: int) -> Iterator[tuple[str, float]]:
        config = self.config
        mask = draw_mask(self.model, config.masking, config.mask_ratio, config.seed, self.samples)
        picture = draw(self.model, self.images, mask)
        if self.is_main:
            self.folder.mkdir(exist_ok=True, parents=False)
            partial = self.folder / ".partial.png"
            try:
                picture.save(partial)
                partial.replace(self.folder / f"step-{step:08d}.png")
            except OSError as error:  # no reason to lose a training
                logger.info(f"could not draw {self.folder}: {error.strerror or error}")
        yield from ()


def summary(out: Path, outcome: Outcome, plan: TrainConfig, config: Pretrain) -> str:
    """What was made, where, and what to type next."""
    last: dict[str, Any] = outcome.last or {}
    if not last:
        head = f"{out} is finished ({plan.steps} steps): nothing to do. For a longer run choose another --out."
    else:
        loss = "not finite" if last["loss"] is None else f"{last['loss']:.4f}"
        head = (
            f"Done: {plan.steps} steps, loss {loss} (predicting each patch's mean: {last['loss of patch mean']:.4f}, "
            f"the visible patches' mean: {last['loss of visible mean']:.4f})"
        )
    pictures = sorted((out / "pictures").glob("step-*.png"))
    bad = (
        len((out / "bad-files.jsonl").read_text().splitlines())
        if (out / "bad-files.jsonl").exists()
        else 0
    )
    trivial = [last[name] for name in last if name.startswith("loss of ")]
    if last and (last["loss"] is None or last["loss"] >= min(trivial)):
        head += "\nIt is not better than these yet: it has learned nothing to speak of. Train longer (--epochs, new --out)."
    if last.get("peak_memory_mb"):
        head += f"\nMost memory at a time: {last['peak_memory_mb']:.0f} MB."
    lines = [head, "", "Made:", f"  {out / 'model.safetensors'}  encoder and decoder"]
    if pictures:
        lines.append(f"  {pictures[-1]}  reconstructions")
    lines.append(f"  {out / 'curves.png'}, {out / 'log.jsonl'}  how it learned")
    if bad:
        lines.append(
            f"  {out / 'bad-files.jsonl'}  {bad} files that could not be read, with reasons"
        )
    run, data, mae = shlex.quote(str(out)), shlex.quote(config.data), command()
    lines += [
        "Next:",
        f"  {mae} reconstruct {run} IMAGE...  look at images of your own",
        f"  {mae} knn {run} LABELLED_FOLDER  how good are the features?",
        f"  {mae} finetune {run} LABELLED_FOLDER  a classifier from a few labels (mae compare: what pre-training is worth)",
        f"  {mae} embed {run} {data} --out features.npz  features for your own use",
    ]
    return "\n".join(lines)
