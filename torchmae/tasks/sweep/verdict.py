"""What a comparison shows, in words."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from torchmae.eval.intervals import LEAST_SEEDS, Difference, mean_interval, paired_difference
from torchmae.eval.verdict import by_sign, in_words, listed
from torchmae.runfolder import read_config, read_log
from torchmae.tasks.sweep.grids import PRETRAINED

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
    measure: str,
    scores: Mapping[str, Sequence[Mapping[str, Any]]],
    searched: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What results.json holds of a row of `mae compare`.

    Args:
        row: its name.
        settings: what it changes.
        measure: what was measured, of `MEASURES`.
        scores: of each arm and baseline, the scores of each seed; the first is compared with the
            others.
        searched: of each arm, what `search_row` found.

    Returns:
        "name"; "settings"; "measure"; "images": how many were validated on; "seeds": how many;
        "arms": by name, the values of `METRICS` of each seed, of "top1" also "mean", "std" and the
        95 % interval of the mean, "low" to "high", and of trainings "training_loss", "chance_loss"
        (the means over the seeds) and "learned_nothing"; "differences": the paired difference of
        the first arm to each other, by "first - other"; "search": as `searched`; "claim": what the
        verdict is about; "verdict": "shown", "not shown" or "worse"; "reasons": of the verdict, in
        words.
    """
    arms = {arm: summarize_arm(found) for arm, found in scores.items()}
    first = next(iter(arms))
    ours, images = arms[first]["top1"], scores[first][0]["count"]
    differences = {
        arm: paired_difference(ours, arms[arm]["top1"], 1 / images) for arm in arms if arm != first
    }
    word, reasons = judge(arms, differences, len(ours))
    return {
        "name": row,
        "settings": dict(settings),
        "measure": measure,
        "images": images,
        "seeds": len(ours),
        "arms": arms,
        "differences": {f"{first} - {arm}": found._asdict() for arm, found in differences.items()},
        "search": {arm: dict(found) for arm, found in searched.items()},
        "claim": "Gain of pre-training" if first == PRETRAINED else f"Lead of {first}",
        "verdict": word,
        "reasons": reasons,
    }


def summarize_arm(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `summarize_comparison` has of one arm, from the scores of each seed."""
    arm: dict[str, Any] = {name: [one[name] for one in found] for name in METRICS}
    mean, low, high = mean_interval(arm["top1"], 1 / found[0]["count"])
    arm |= {"mean": mean, "std": statistics.stdev(arm["top1"]), "low": low, "high": high}
    if "training_loss" in found[0]:
        for name in ("training_loss", "chance_loss"):
            arm[name] = statistics.mean(one[name] for one in found)
        arm["learned_nothing"] = arm["training_loss"] >= NOTHING_LEARNED * arm["chance_loss"]
    return arm


def judge(
    arms: Mapping[str, Mapping[str, Any]], differences: Mapping[str, Difference], seeds: int
) -> tuple[str, list[str]]:
    """The verdict on the first arm: a word and its reasons.

    "shown" needs `LEAST_SEEDS` and paired differences whose intervals are above zero, to every
    other arm that has learned something and to every baseline; one that is below zero makes it
    "worse".
    """
    first = next(iter(arms))
    idle = [arm for arm in arms if arms[arm].get("learned_nothing")]
    compared = [arm for arm in arms if arm not in (first, FROZEN, *idle)]
    signs = by_sign({arm: differences[arm] for arm in compared})
    if seeds < LEAST_SEEDS:
        signs = {"above": [], "unclear": compared, "below": []}
    reasons = [in_words(signs)] if first == PRETRAINED else in_sentences(first, signs)
    if seeds < LEAST_SEEDS:
        reasons.append(f"{seeds} seeds are too few to show a difference, {LEAST_SEEDS} may do")
    for arm in idle:
        loss, chance = arms[arm]["training_loss"], arms[arm]["chance_loss"]
        consequence = "" if arm == first else ", so the difference to it is no gain"
        reasons.append(
            f"{arm} has learned nothing (training loss {loss:.2f}, that of knowing nothing "
            f"{chance:.2f}){consequence}"
        )
    failed = bool(idle or signs["unclear"])
    return "worse" if signs["below"] else "not shown" if failed else "shown", reasons


def in_sentences(first: str, signs: Mapping[str, Sequence[str]]) -> list[str]:
    """What `by_sign` found of several encoders: who is better than whom."""
    better, worse, unclear = (signs[sign] for sign in ("above", "below", "unclear"))
    return [
        *([f"{first} is better than {listed(better)}"] if better else ()),
        *(f"{name} is better than {first}" for name in worse),
        *([f"{listed(unclear)}: no difference from {first} is shown"] if unclear else ()),
    ]
