"""What a comparison shows, in words."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from torchmae.eval.intervals import Difference, mean_interval, paired_difference
from torchmae.eval.verdict import by_sign, in_words
from torchmae.runfolder import read_config, read_log
from torchmae.tasks.sweep.grids import PRETRAINED, SCRATCH

FROZEN = "frozen features"  # the row of the run's features, which are pre-trained too
METRICS = ("top1", "balanced_accuracy", "macro_f1", "auc")
NOTHING_LEARNED = 0.98  # of the loss of knowing nothing: a training that ends above learned nothing
LAST_RECORDS = 3  # of log.jsonl, whose mean is the loss at the end


def training_losses(run: Path, labels: Int64[Tensor, " N"]) -> dict[str, float]:
    """The "training_loss" at the end of a fine-tuning, and the "chance_loss" of knowing nothing.

    The latter is the loss of always predicting how common the classes are: ln(classes), where all
    are equally common.

    Args:
        run: the run folder.
        labels: those that it was trained on, from 0.
    """
    losses = [r["loss"] for r in read_log(run) if r.get("loss") is not None][-LAST_RECORDS:]
    described = read_config(run)
    classes, smooth = described["model"]["classes"], described["config"]["label_smoothing"]
    share = labels.bincount(minlength=len(classes)).double() / len(labels)
    share = share * (1 - smooth) + smooth / len(classes)
    chance = float(torch.special.entr(share).sum())
    return {"training_loss": statistics.mean(losses), "chance_loss": chance}


def summarize_comparison(
    row: str,
    settings: Mapping[str, Any],
    scores: Mapping[str, Sequence[Mapping[str, Any]]],
    searched: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What results.json holds of a row of `mae compare`.

    Args:
        row: its name.
        settings: what it changes.
        scores: of each arm and baseline, the scores of each seed.
        searched: of each arm, what `search_row` found.

    Returns:
        "name"; "settings"; "images": how many were validated on; "seeds": how many; "arms": by
        name, the values of `METRICS` of each seed, of "top1" also "mean", "std" and the 95 %
        interval of the mean, "low" to "high", and of trainings "training_loss", "chance_loss" (the
        means over the seeds) and "learned_nothing"; "differences": the paired difference of the
        pre-trained arm to each other; "search": as `searched`; "verdict": "shown", "not shown" or
        "worse"; "reasons": of the verdict, in words.
    """
    arms = {arm: summarize_arm(found) for arm, found in scores.items()}
    ours = arms[PRETRAINED]["top1"]
    differences = {
        arm: paired_difference(ours, arms[arm]["top1"]) for arm in arms if arm != PRETRAINED
    }
    word, reasons = judge(arms, differences)
    return {
        "name": row,
        "settings": dict(settings),
        "images": scores[PRETRAINED][0]["count"],
        "seeds": len(ours),
        "arms": arms,
        "differences": {
            f"{PRETRAINED} - {arm}": found._asdict() for arm, found in differences.items()
        },
        "search": {arm: dict(found) for arm, found in searched.items()},
        "verdict": word,
        "reasons": reasons,
    }


def summarize_arm(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `summarize_comparison` has of one arm, from the scores of each seed."""
    arm: dict[str, Any] = {name: [one[name] for one in found] for name in METRICS}
    mean, low, high = mean_interval(arm["top1"])
    arm |= {"mean": mean, "std": statistics.stdev(arm["top1"]), "low": low, "high": high}
    if "training_loss" in found[0]:
        for name in ("training_loss", "chance_loss"):
            arm[name] = statistics.mean(one[name] for one in found)
        arm["learned_nothing"] = arm["training_loss"] >= NOTHING_LEARNED * arm["chance_loss"]
    return arm


def judge(
    arms: Mapping[str, Mapping[str, Any]], differences: Mapping[str, Difference]
) -> tuple[str, list[str]]:
    """The verdict on pre-training: a word and its reasons.

    "shown" needs paired differences whose intervals are above zero, to training from scratch, if
    that has learned something, and to every baseline; one that is below zero makes it "worse".
    """
    idle = [arm for arm in (PRETRAINED, SCRATCH) if arms[arm]["learned_nothing"]]
    compared = [arm for arm in arms if arm not in (PRETRAINED, FROZEN, *idle)]
    signs = by_sign({arm: differences[arm] for arm in compared})
    reasons = [in_words(signs)]
    for arm in idle:
        loss, chance = arms[arm]["training_loss"], arms[arm]["chance_loss"]
        consequence = ", so the difference to it is no gain" if arm == SCRATCH else ""
        reasons.append(
            f"{arm} has learned nothing (training loss {loss:.2f}, that of knowing nothing "
            f"{chance:.2f}){consequence}"
        )
    failed = bool(idle or signs["unclear"])
    return "worse" if signs["below"] else "not shown" if failed else "shown", reasons
