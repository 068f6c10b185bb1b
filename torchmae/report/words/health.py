"""What the files of a run say about how it goes, in words: the verdict first, without its
images."""

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torchmae import runfolder
from torchmae.report.words.learning import BASELINE, Look, cause, end_of
from torchmae.settings.defaults import pretraining_lr
from torchmae.settings.options import parse_ratio

WAITING = 0.2  # share of the time from which loading is too slow
FAR = 5  # times the recipe's learning rate, or a part of it
RATIOS = (0.4, 0.9)  # of hidden patches: outside, features are worse (paper, Figure 5)
LEAST_BATCH = 16
COLLAPSED = 0.25  # of the largest RankMe so far
RANK = "RankMe"  # in log.jsonl
UNSEEN = Look(0, 0, 0)


class Word(NamedTuple):
    """A sentence about a run, and what it is: "bad", "good" or ""."""

    kind: str
    text: str


def words_of(run: Path, config: Mapping[str, Any]) -> list[Word]:
    """The sentences, what is wrong before what is only worth knowing.

    Args:
        run: the run folder.
        config: its config.json.
    """
    records = runfolder.read_log(run)
    losses = [record for record in records if "loss" in record]
    words = [*progress(config, losses, is_unreadable(run)), *learning(run, config, losses)]
    words += [*steps(losses), *features(records), *recipe(config), *files(run)]
    order = ("verdict", "bad", "", "good")
    return sorted(words, key=lambda word: (word is not words[0], order.index(word.kind)))


def is_unreadable(run: Path) -> bool:
    """Whether log.jsonl holds something, and no line of it can be read."""
    path = run / runfolder.LOG
    return path.is_file() and path.stat().st_size > 0 and not runfolder.read_log(run)


def progress(
    config: Mapping[str, Any], losses: Sequence[Mapping[str, Any]], unreadable: bool = False
) -> Iterator[Word]:
    """How far the training is."""
    if unreadable:
        yield Word("bad", f"no line of {runfolder.LOG} can be read: it is not known how far it is")
    if not losses:
        trained = ("pretrain", "finetune", "tokenizer", "refine")
        if not unreadable and config.get("verb") in trained:
            yield Word("", "no step has been logged yet")
        return
    settings, step, of = config["config"], losses[-1]["step"], steps_of(config)
    text, done = f"step {step:,}", of is not None and step >= of
    if of is not None:
        epoch = step * settings["batch_size"] / config["data"]["count"]
        text += f" of {of:,}, epoch {epoch:.4g} of {settings['epochs']:.4g}"
    seen = losses[-1].get("images_seen")
    more = f", {seen:,} images seen" if seen else ""
    yield Word("", f"{'finished' if done else 'last logged'}: {text}{more}")


def steps_of(config: Mapping[str, Any]) -> int | None:
    """The steps of a whole training; None for a config.json that only describes a model."""
    settings, data = config.get("config") or {}, config.get("data") or {}
    try:
        return max(1, round(settings["epochs"] * data["count"] / settings["batch_size"]))
    except (KeyError, TypeError, ZeroDivisionError):
        return None


def learning(
    run: Path, config: Mapping[str, Any], losses: Sequence[Mapping[str, Any]]
) -> Iterator[Word]:
    """Whether it learns: against trivial predictions, or by its validation."""
    if losses and any(name.startswith(BASELINE) for name in losses[-1]):
        end = end_of([one for one in losses if baselines(one) == baselines(losses[-1])])
        beside = ", ".join(f"the {name}'s {value:.4f}" for name, value in end.baselines.items())
        if end.learned:
            yield Word("good", f"learning: loss {end.loss:.4f}, {beside} ({end.span})")
        else:
            what = "not finite" if end.loss is None else f"{end.loss:.4f}, {beside}"
            why = cause(losses, config["config"].get("base_lr") or 0.0, UNSEEN)
            yield Word(
                "bad",
                f"not better than a trivial baseline after {losses[-1]['step']:,} steps (loss "
                f"{what}; {end.span}): {why}",
            )
    elif losses and losses[-1]["loss"] is None:
        yield Word("bad", f"the loss is not finite at step {losses[-1]['step']:,}")
    yield from validation(run)


def baselines(record: Mapping[str, Any]) -> set[str]:
    """The names of the trivial losses in a record."""
    return {name for name in record if name.startswith(BASELINE)}


# Of what last.json holds: the score of a classifier, a segmenter, a detector; its name, and the
# trivial prediction that it is compared with.
SCORES = {
    "top1": ("top 1", "always the commonest class"),
    "miou": ("mIoU", "the commonest class everywhere"),
    "ap": ("AP", ""),
}


def validation(run: Path) -> Iterator[Word]:
    """The last scores of a fine-tuning; none where there are none that can be read."""
    last = runfolder.read_object(run / runfolder.LAST_SCORES)
    kinds = {kind: last[kind] for kind in ("boxes", "masks") if isinstance(last.get(kind), dict)}
    for kind, scores in (kinds or {"": last}).items():
        name = next((name for name in SCORES if name in scores), "")
        count = scores.get("count", scores.get("images"))
        needed = [scores.get(name), scores.get("low"), scores.get("high"), last.get("step"), count]
        if not all(isinstance(one, int | float) for one in needed):
            continue
        of = f" of {kind}" if kind else ""
        title, always = SCORES[name]
        text = (
            f"validation: {title}{of} {scores[name]:.1%} of {count:,} images (95 % "
            f"interval {scores['low']:.1%} to {scores['high']:.1%}) at step {last['step']:,}"
        )
        error = scores.get("calibration_error")
        trivial = scores.get("commonest", commonest(run))
        text += f", calibration error {error:.3f}" if error is not None else ""
        if not isinstance(trivial, int | float):
            yield Word("", text)
        elif scores["low"] > trivial:
            yield Word("good", f"{text}; {always}: {trivial:.1%}")
        else:
            yield Word("bad", f"{text}: not clearly better than {always}, {trivial:.1%}")


def commonest(run: Path) -> float | None:
    """The accuracy of always saying the commonest class of the validation images; None where they
    are not known."""
    found = runfolder.read_object(run / runfolder.CLASSES)
    try:
        images: Counter[int] = Counter()
        for true, _, count in found["finetune"]["confusion"]:
            images[true] += count
        return max(images.values()) / images.total()
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def steps(losses: Sequence[Mapping[str, Any]]) -> Iterator[Word]:
    """Steps that were skipped, and waiting."""
    skipped = sum(record.get("skipped") or 0 for record in losses)
    if skipped:
        yield Word("bad", f"{skipped:,} steps were skipped: their loss or gradient was not finite")
    last = [record["wait"] for record in losses[-10:] if record.get("wait") is not None]
    if last and sum(last) / len(last) > WAITING:  # slow, and not wrong
        yield Word(
            "",
            f"waiting for data {sum(last) / len(last):.0%} of the time: more --workers, --cache "
            "memory or disk, or a packed set (mae pack)",
        )


def features(records: Sequence[Mapping[str, Any]]) -> Iterator[Word]:
    """Whether the features use ever fewer directions (Garrido et al. 2023)."""
    ranks = [record[RANK] for record in records if isinstance(record.get(RANK), int | float)]
    if ranks and ranks[-1] < COLLAPSED * max(ranks):
        yield Word(
            "bad",
            f"features collapse: RankMe is {ranks[-1]:.1f} and was {max(ranks):.1f}. Try a lower "
            "--base-lr, and start from a checkpoint before",
        )


def recipe(config: Mapping[str, Any]) -> Iterator[Word]:
    """Settings of a pre-training that are far from what is known to work."""
    if config.get("verb") != "pretrain":
        return
    settings, width = config["config"], config["model"]["encoder"].get("embed_dim")
    batch, lr = settings.get("batch_size"), settings.get("base_lr")
    if batch and lr is not None and width:
        usual = pretraining_lr(width, batch)
        if not usual / FAR <= lr <= usual * FAR:
            yield Word(
                "bad",
                f"--base-lr {lr:.2g} is far from the recipe's {usual:.2g} for batches of {batch}",
            )
    if batch and batch < LEAST_BATCH:
        yield Word("bad", f"--batch-size {batch} is small: gradients of few images are noisy")
    ratio = settings.get("mask_ratio", 0)
    low, high = parse_ratio(ratio)
    if high and not settings.get("noise") and not RATIOS[0] <= low <= high <= RATIOS[1]:
        yield Word(
            "bad",
            f"--mask-ratio {ratio} is far from the recipe's 0.75: below {RATIOS[0]} patches are "
            f"copied from their neighbors, above {RATIOS[1]} too little is left to see",
        )


def files(run: Path) -> Iterator[Word]:
    """Bad images, and room for the next checkpoints."""
    bad = runfolder.read_bad_files(run)
    if bad:
        yield Word("", f"{len(bad):,} images cannot be read and are replaced by others; see below")
    saved = runfolder.checkpoints(run)
    if saved:
        size = sum(file.stat().st_size for file in saved[0].glob("*"))
        free = shutil.disk_usage(run).free
        if free < 3 * size:
            yield Word(
                "bad",
                f"the disk has room for {free / 1e9:.1f} GB, and a checkpoint takes "
                f"{size / 1e9:.1f} GB: make room, or the run ends where one does not fit",
            )
