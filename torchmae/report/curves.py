"""curves.png: how training went."""

import logging
from pathlib import Path
from typing import Any

from torchmae.disk import whole_file
from torchmae.runfolder import CURVES, read_log

logger = logging.getLogger(__name__)


def panels(records: list[dict[str, Any]]) -> dict[str, list[str]]:
    """What is drawn in each panel: losses, learning rate, what was evaluated, speed.

    Args:
        records: the lines of log.jsonl.

    Returns:
        Names of logged values by title, in an even number; each value that was evaluated has a
        panel of its own, the gradient norm where a place is left.
    """
    names = dict.fromkeys(name for record in records for name in record)
    evaluated = dict.fromkeys(
        name for r in records if "loss" not in r for name in r if name != "step"
    )
    return {
        "loss": [name for name in names if name == "loss" or name.startswith("loss of")],
        "learning rate": ["lr"],
        **{name: [name] for name in evaluated},
        **({} if len(evaluated) % 2 else {"gradient norm": ["grad_norm"]}),
        "images per second": ["images_per_s"],
    }


def draw_curves(run: Path) -> Path | None:
    """Draws curves.png from log.jsonl; None where nothing was logged."""
    records = read_log(run)
    if not records:
        return None

    from matplotlib.figure import Figure

    drawn = panels(records)
    across = len(drawn) // 2
    figure = Figure(figsize=(5.5 * across, 7), layout="constrained")
    for axis, (title, shown) in zip(figure.subplots(2, across).flat, drawn.items()):
        for name in shown:
            points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
            marker = "o" if len(points) < 10 else None  # a single point draws no line
            axis.plot(*zip(*points), label=name, linewidth=1.2, marker=marker, markersize=4)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if len(shown) > 1:
            axis.legend()
    try:
        with whole_file(run / CURVES) as partial:
            figure.savefig(partial, dpi=110)
    except OSError as error:  # no reason to end what was trained in failure
        logger.warning(f"could not draw {run / CURVES}: {error.strerror or error}")
        return None
    return run / CURVES
