"""What an ablation found: ablation.json, a table and a picture for each study."""

import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchmae.disk import parse_json, write_text
from torchmae.eval.intervals import LEAST_SEEDS, paired_difference
from torchmae.eval.probes.measures import MEASURES
from torchmae.report.experiments.ablation import ablation_table, draw_ablation
from torchmae.settings.options import flatten
from torchmae.tasks.ablate.measure import read_record
from torchmae.tasks.ablate.points import Ablation, Experiment
from torchmae.tasks.ablate.studies import FINETUNED, LINEAR, Point
from torchmae.version import __version__

logger = logging.getLogger(__name__)

RESULTS = "ablation.json"
COSTS = ("minutes", "images_per_s", "images_seen", "flops", "peak_memory_mb", "loss")
CLEAR = 0.5  # percentage points: a difference of the paper that is an ordering


def write_results(ablation: Ablation, out: Path) -> list[str]:
    """Writes ablation.json and, of every study that is finished, a picture; says the tables.

    Returns:
        What failed, in words.
    """
    records = {
        key: read_record(out, training, ablation.config) for key, training in ablation.found.items()
    }
    missing = sum(record is None for record in records.values())
    records |= {
        key: read_record(out, baseline, ablation.config)
        for key, baseline in ablation.baselines.items()
    }
    studies = []
    for experiment in ablation.experiments:
        found = summarize(ablation, experiment, records)
        studies.append(found)
        if all(row["seeds"] for row in found["rows"]):
            picture = out / f"{experiment.name}.png"
            draw_ablation(found, picture)
            logger.info(f"\n{ablation_table(found)}\nPicture: {picture}")
    names = {study["name"] for study in studies}
    others = [study for study in before(out) if study["name"] not in names]
    content = {
        "torchmae": __version__,
        "settings": flatten(ablation.config),
        "studies": [*others, *studies],
    }
    write_text(out / RESULTS, json.dumps(content, indent=1))
    unfinished = (
        f"; {missing} of {len(ablation.found)} trainings are not finished" if missing else ""
    )
    logger.info(f"Written to {out / RESULTS}{unfinished}")
    return [
        f"{record['name']}: {record['failed']}"
        for record in records.values()
        if record and "failed" in record
    ]


def before(out: Path) -> list[dict[str, Any]]:
    """The studies of earlier calls; none where there are none, or they cannot be read."""
    try:
        return list(parse_json((out / RESULTS).read_text())["studies"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def summarize(
    ablation: Ablation, experiment: Experiment, records: Mapping[tuple[str, int], Any]
) -> dict[str, Any]:
    """What ablation.json holds of a study.

    Returns:
        "name", "title", "axis"; "reference", the label of the point that others are compared with;
        "columns", the names of the measures; "orderings", see `orderings`; "rows", of each point:
        "label", "x", "changes", "paper" (accuracies in %), "seeds" (how many are finished), the
        means of `COSTS`, and "measures", by column: "by_seed", "mean",
        "std", "images", and "difference" to the reference (paired by seed, 95 % interval);
        "baselines", rows of what is measured beside the points, without costs.
    """

    def of_point(point: Point, name: str) -> dict[str, Any]:
        found = {
            seed: record
            for seed in ablation.config.ablation.seeds
            if (record := records[name, seed]) is not None and "failed" not in record
        }
        return row_of(point, found, experiment.measured_by(point, ablation.config.measures.measure))

    rows = [of_point(*pair) for pair in zip(experiment.points, experiment.trainings)]
    reference = rows[experiment.reference]
    measured_by = experiment.points[experiment.reference].measured_by
    seed = ablation.config.ablation.seeds[0]
    baselines = []
    for name in experiment.baselines:
        one = ablation.baselines[name, seed]
        words = [one.subject, *(f"{n.replace('_', ' ')} {v}" for n, v in one.changes.items())]
        point = Point(", ".join(words), one.changes, measured_by=measured_by)
        baselines.append(of_point(point, name))
    for row in (*rows, *baselines):
        add_differences(row, reference)
    columns = list(dict.fromkeys(column for row in rows for column in row["measures"]))
    return {
        "name": experiment.name,
        "title": experiment.study.title,
        "axis": experiment.study.axis,
        "reference": reference["label"],
        "columns": columns,
        "orderings": {column: orderings(rows, column) for column in columns},
        "rows": rows,
        "baselines": baselines,
    }


def row_of(
    point: Point, found: Mapping[int, Mapping[str, Any]], by: Mapping[str, str]
) -> dict[str, Any]:
    """What `summarize` has of a point, from its records by seed."""
    measures = {}
    for column, measure in by.items():
        # A baseline may lack a measure.
        ones = {s: r["measures"][measure] for s, r in found.items() if measure in r["measures"]}
        values = {seed: one["accuracy"] for seed, one in ones.items()}
        if values:
            measures[column] = {
                "by_seed": values,
                "mean": statistics.mean(values.values()),
                "std": statistics.stdev(values.values()) if len(values) > 1 else None,
                "images": next(iter(ones.values()))["images"],
                "difference": None,
            }
    costs = {}
    for name in COSTS:
        paid = [record[name] for record in found.values() if name in record]
        costs[name] = statistics.mean(paid) if paid else None
    return {
        "label": point.label,
        "x": point.x,
        "changes": dict(point.changes),
        "paper": dict(point.paper),
        "seeds": len(found),
        **costs,
        "measures": measures,
    }


def add_differences(row: dict[str, Any], reference: Mapping[str, Any]) -> None:
    """Adds the paired differences of a row to the reference, of the seeds that both have."""
    for column, found in row["measures"].items():
        other = reference["measures"].get(column)
        if other is None or row["label"] == reference["label"]:
            continue
        pairs = paired(found["by_seed"], other["by_seed"])
        if len(pairs[0]) > 1:
            found["difference"] = paired_difference(*pairs, 1 / found["images"])._asdict()


def paired(
    ours: Mapping[int, float], theirs: Mapping[int, float]
) -> tuple[list[float], list[float]]:
    """The values of the seeds that both have, in the same order."""
    seeds = [seed for seed in ours if seed in theirs]
    return [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]


def orderings(rows: Sequence[Mapping[str, Any]], column: str) -> list[dict[str, Any]]:
    """For each pair of points that clearly differ in the paper, whether ours differ alike.

    The paper's fine-tuning is what fine-tunings are compared with, its linear probe what probes of
    frozen features are.

    Returns:
        "better" and "worse", labels in the paper's order; "paper", the paper's difference in
        percentage points; "ours", the paired difference; "verdict": "reproduced" (the 95 % interval
        is above zero), "not reproduced" (below), or "not decided" (it contains zero). Nothing with
        fewer than three seeds.
    """
    of_paper = LINEAR if column in MEASURES else FINETUNED
    known = [row for row in rows if of_paper in row["paper"] and column in row["measures"]]
    found = []
    for better in known:
        for worse in known:
            gap = better["paper"][of_paper] - worse["paper"][of_paper]
            if gap < CLEAR - 1e-9:
                continue
            pairs = paired(*(row["measures"][column]["by_seed"] for row in (better, worse)))
            if len(pairs[0]) < LEAST_SEEDS:
                continue
            ours = paired_difference(*pairs, 1 / better["measures"][column]["images"])
            signs = {"above": "reproduced", "below": "not reproduced", "unclear": "not decided"}
            found.append(
                {
                    "better": better["label"],
                    "worse": worse["label"],
                    "paper": round(gap, 1),
                    "ours": ours._asdict(),
                    "verdict": signs[ours.sign],
                }
            )
    return found
