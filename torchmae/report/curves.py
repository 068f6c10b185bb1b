"""curves.png: how a training went."""

from pathlib import Path
from typing import Any

from torchmae.runfolder import read_log


def panels(records: list[dict[str, Any]]) -> dict[str, list[str]]:
    """What is drawn together: every loss, the learning rate, what evaluators measured (else the gradient norm), speed."""
    names = dict.fromkeys(name for record in records for name in record)
    measured = [
        name
        for name in dict.fromkeys(n for r in records if "loss" not in r for n in r)
        if name != "step"
    ]
    return {
        "loss": [name for name in names if name == "loss" or name.startswith("loss of")],
        "learning rate": ["lr"],
        **({", ".join(measured): measured} if measured else {"gradient norm": ["grad_norm"]}),
        "images per second": ["images_per_s"],
    }


def draw_curves(run: Path) -> Path | None:
    """curves.png from log.jsonl, four panels."""
    records = read_log(run)
    if not records:
        return None

    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    for axis, (title, shown) in zip(figure.subplots(2, 2).flat, panels(records).items()):
        for name in shown:
            points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
            axis.plot(
                *zip(*points),
                label=name,
                linewidth=1.2,
                marker="o" if len(points) < 10 else None,
                markersize=4,
            )
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if len(shown) > 1:
            axis.legend()
    path = run / "curves.png"
    partial = run / ".curves.partial.png"
    figure.savefig(partial, dpi=110)
    partial.replace(path)
    return path
