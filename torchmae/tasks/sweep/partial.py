"""`mae partial`: the paper's partial fine-tuning (section 4.3, Figure 9) on your data: how much of the encoder has to move?"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchmae.disk import write_text
from torchmae.errors import UserError
from torchmae.models.heads import blocks_of
from torchmae.models.weights import load
from torchmae.tasks.finetune import run as classify
from torchmae.tasks.finetune.config import Finetune, plain
from torchmae.tasks.finetune.run import last_scores
from torchmae.train.distributed import is_main

logger = logging.getLogger(__name__)

# Figure 9: ViT-L/16, ImageNet-1K, top-1 in % by blocks that were fine-tuned (read from the figure's labels; 24 are all).
PAPER = {0: 73.5, 0.5: 79.1, 1: 81.0, 2: 83.1, 4: 84.2, 6: 84.4, 12: 84.6, 18: 84.7, 24: 84.9}


@dataclass(frozen=True)
class Partial(Finetune):
    """Fine-tune more and more of the last blocks, and draw the accuracies beside those of the paper's Figure 9.

    Flags are those of mae finetune and hold for all; 0 is the linear probe with its own recipe.
    """

    train: tuple[str, ...] = ()  # type: ignore[assignment]
    """What may change, one training each: 0 (linear probe), 0.5 (MLP half of the last block), numbers of last blocks, all.
    Default: 0 0.5 1 2 4 all, as far as there are so many."""
    epochs: tuple[float, ...] = ()  # type: ignore[assignment]
    """Passes over the labelled images. Several: each is tried, and the best of each part is shown (the paper: 50 100 200)."""


def run(config: Partial) -> Path:
    """Trains all (those that are finished already are taken as they are), prints the table, and gives the folder with
    `results.json` and `partial.png`."""
    if config.run == "none":
        raise UserError(
            "mae partial needs a run: of an untrained encoder nothing may stay as it is"
        )
    blocks = len(load(config.run).layers())
    parts = config.train or tuple(
        p for p in ("0", "0.5", "1", "2", "4", "all") if p == "all" or float(p) < blocks
    )
    for part in parts:
        blocks_of(part, blocks)
    out = Path(config.out or f"{config.run.rstrip('/')}-partial")
    rows: list[dict[str, Any]] = []
    done = 0
    for part in dict.fromkeys(parts):
        tried = []
        for epochs in config.epochs or (None,):
            place = out / f"train-{part}{'' if epochs is None else f'-epochs-{epochs:g}'}"
            done += 1
            if is_main():
                logger.info(f"[{done}/{len(set(parts)) * max(1, len(config.epochs))}] train {part}")
            asked = plain(config, train=part, epochs=epochs, out=str(place))
            last = last_scores(
                classify.run(asked, quiet=done > 2)
            )  # plans of the probe, of the first that tunes
            tried.append(
                {"train": part, "blocks": blocks_of(part, blocks), "epochs": epochs, **last}
            )
        rows.append(max(tried, key=lambda row: row["top1"]))
    rows.sort(key=lambda row: row["blocks"])
    if not is_main():
        return out
    write_text(
        out / "results.json",
        json.dumps({"partial": rows, "run": config.run, "data": config.data}, indent=1),
    )
    draw(rows, blocks, out / "partial.png")
    logger.info(
        f"Accuracy of the last epoch on {rows[0]['count']} validation images, by what was fine-tuned"
    )
    for row in rows:
        logger.info(
            f"  {row['train']:>4}  {row['top1']:6.1%}  (95 % interval {row['low']:.1%} to {row['high']:.1%})"
        )
    if len(config.epochs) > 1:
        logger.info(
            "The number of epochs was chosen on these same images, as in the paper: that flatters all of them."
        )
    logger.info(f"Written to {out / 'results.json'} and {out / 'partial.png'}")
    return out


def draw(rows: list[dict[str, Any]], blocks: int, path: Path) -> None:
    """Two axes side by side, since the encoders differ in depth: this data, and the paper's ViT-L."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    ours, theirs = figure.subplots(1, 2)
    places = range(len(rows))
    values = [100 * row["top1"] for row in rows]
    below, above = (
        [100 * abs(row[side] - row["top1"]) for row in rows] for side in ("low", "high")
    )
    ours.errorbar(places, values, yerr=[below, above], marker="o", capsize=3)
    ours.set_xticks(
        places, [f"all {blocks}" if row["train"] == "all" else row["train"] for row in rows]
    )
    ours.set(title="your data (95 % intervals)", ylabel="accuracy of the last epoch in %")
    theirs.plot(range(len(PAPER)), list(PAPER.values()), marker="o", color="tab:gray")
    theirs.set_xticks(range(len(PAPER)), [f"{count:g}" for count in PAPER])
    theirs.set(title="the paper's Figure 9: ViT-L/16, ImageNet-1K")
    for axis in (ours, theirs):
        axis.set_xlabel("blocks fine-tuned")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
