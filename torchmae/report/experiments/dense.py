"""What a comparison of encoders in dense prediction found, as a table and as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchmae.disk import whole_file


def dense_table(rows: Sequence[Mapping[str, Any]], metric: str, search: str) -> str:
    """A line for each encoder and number of training images, numbers in %.

    Args:
        rows: see `torchmae.tasks.sweep.dense.run.summarize`.
        metric: what the scores are.
        search: how the settings of the trainings were chosen.
    """
    lines = [
        f"{metric} in % of the last checkpoint, mean ± std over {rows[0]['seeds']} seeds, "
        f"{rows[0]['images']} validation images; the same images, crops and steps for all.",
        f"Settings: {search}.",
    ]
    for row in rows:
        first = next(iter(row["arms"]))
        width = max(map(len, row["arms"]))
        lines += ["", f"{row['name']} training images"]
        for arm, one in row["arms"].items():
            line = f"  {arm:<{width}}  {100 * one['mean']:.1f} ± {100 * one['std']:.1f}"
            difference = row["differences"].get(f"{first} - {arm}")
            if difference:
                mean, low, high = (100 * difference[name] for name in ("mean", "low", "high"))
                line += f"   {first} minus it {mean:+.1f} ({low:+.1f} to {high:+.1f})"
            chosen = row["search"].get(arm, {}).get("chosen")
            line += f"   learning rate x{chosen['lr_scale']:.2g}" if chosen else ""
            lines.append(line)
        lines.append(f"  Lead of {first} {row['verdict']}: {row['reason']}.")
    return "\n".join(lines)


def draw_dense(rows: Sequence[Mapping[str, Any]], metric: str, path: Path) -> None:
    """A bar with its 95 % interval for each encoder and number of training images, a dot for each
    seed; arguments as for `dense_table`."""
    from matplotlib.figure import Figure

    names = list(rows[0]["arms"])
    figure = Figure(figsize=(max(5.0, 2 + 2.2 * len(rows)), 4.2), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        places = [place + width * (number - (len(names) - 1) / 2) for place in range(len(rows))]
        arms = [row["arms"][name] for row in rows]
        means = [100 * arm["mean"] for arm in arms]
        error = [100 * (arm["high"] - arm["mean"]) for arm in arms]
        bars = axis.bar(places, means, width, yerr=error, capsize=3, label=name, alpha=0.8)
        for place, bar, arm in zip(places, bars, arms):
            scores = [100 * score for score in arm["scores"]]
            axis.plot([place] * len(scores), scores, "k.", markersize=4)
            text = f"{100 * arm['mean']:.1f}"
            axis.text(bar.get_x() + width / 2, 1, text, ha="center", fontsize=8)
    titles = [f"{row['name']} training images\nlead {row['verdict']}" for row in rows]
    axis.set_xticks(range(len(rows)), titles)
    axis.set(ylabel=f"{metric} in % on {rows[0]['images']} images", ylim=(0, 100))
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    figure.suptitle(f"Mean of {rows[0]['seeds']} seeds, 95 % intervals", fontsize="medium")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=130)
