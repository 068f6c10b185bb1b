"""What a model takes for what: its classes one by one, its confusion, its calibration."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torchmae.report.html.charts import chart
from torchmae.report.html.page import Cell, details, paragraph, table, text
from torchmae.runfolder import CLASSES, read_object

MOST_CLASSES = 1000  # rows of the table
MOST_SQUARE = 30  # classes of a confusion matrix that fits on a page


class Counts(NamedTuple):
    """A confusion matrix: counts by (true class, predicted class), and the names of classes."""

    names: Sequence[str]
    pairs: Mapping[tuple[int, int], int]

    def of(self, true: int) -> dict[int, int]:
        """What a class is taken for, the commonest first."""
        row = {j: count for (i, j), count in self.pairs.items() if i == true}
        return dict(sorted(row.items(), key=lambda pair: -pair[1]))


def classes_section(run: Path) -> str:
    """The classes of a run, by its evaluation and by its validation; empty where none were
    measured, or the file is damaged."""
    found = read_object(run / CLASSES)
    verbs = ("evaluate", "finetune", "segment", "detect")
    return "".join(one_section(found[verb]) for verb in verbs if verb in found)


def has_matrix(run: Path) -> bool:
    """Whether the section has the confusion matrix of an evaluation."""
    return 'class="confusion"' in one_section(read_object(run / CLASSES).get("evaluate"))


def one_section(found: Any) -> str:
    """What one verb has measured."""
    try:
        names = [str(name) for name in found.get("classes", [])]
        pairs = {(int(i), int(j)): int(count) for i, j, count in found.get("confusion", [])}
        counts = Counts(names, {key: n for key, n in pairs.items() if max(key) < len(names)})
        bins = [(int(n), float(sure), float(right)) for n, sure, right in found["calibration"]]
        of, unit = str(found["of"]), str(found.get("unit", "images"))
        words = WORDS[unit]
    except (AttributeError, ValueError, KeyError, TypeError):
        return ""
    matrix = confusion(counts) if 0 < len(names) <= MOST_SQUARE else ""
    return (
        f"<h3>{text(of)}</h3>"
        + per_class(counts, unit)
        + details("Confusion: rows are true classes, columns predicted ones", matrix, open=True)
        + calibration(bins, unit, words)
    )


def per_class(counts: Counts, unit: str) -> str:
    """A row for each class that occurs, the weakest first; `unit` is what was counted."""
    rows: list[tuple[float, list[str | Cell]]] = []
    for i, name in enumerate(counts.names):
        taken = counts.of(i)
        images = sum(taken.values())
        if not images:
            continue
        right = taken.pop(i, 0)
        guessed = sum(n for (_, j), n in counts.pairs.items() if j == i)
        wrong = [f"{counts.names[j]} {n:,}" for j, n in list(taken.items())[:3]]
        precision = f"{right / guessed:.1%}" if guessed else "never predicted"
        share = right / images
        cells: list[str | Cell] = [name, Cell(f"{images:,}"), Cell(f"{share:.1%}"), Cell(precision)]
        rows.append((share, [*cells, ", ".join(wrong)]))
    rows.sort(key=lambda row: row[0])
    head = ["class", unit, "recognized", "right where predicted", "most often taken for"]
    return table(head, [row for _, row in rows[:MOST_CLASSES]])


def confusion(counts: Counts) -> str:
    """The matrix, each row shaded by its shares."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in counts.names)
    rows = ""
    for i, name in enumerate(counts.names):
        taken = counts.of(i)
        total = sum(taken.values()) or 1
        cells = "".join(shaded(taken.get(j, 0), total, i == j) for j in range(len(counts.names)))
        rows += f'<tr><th scope="row">{text(name)}</th>{cells}</tr>'
    return (
        f'<div class="wide"><table class="confusion"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def shaded(count: int, total: int, right: bool) -> str:
    """A cell: its color says how large a share it is, and whether it is right."""
    if not count:
        return "<td></td>"
    color = "--good" if right else "--bad"
    share = round(15 + 60 * count / total)
    return (
        f'<td class="number" style="background:color-mix(in srgb, var({color}) {share}%, '
        f'transparent)">{count:,}</td>'
    )


class Words(NamedTuple):
    """What a calibration is called: what it is a share of, by what, and what to know of it."""

    share: str
    by: str
    note: str = ""


WORDS = {  # by what was counted
    "images": Words("accuracy", "confidence"),
    "pixels": Words(
        "accuracy",
        "confidence",
        "Of labeled pixels. Pixels of one image are much alike, so few images say little here, "
        "however many pixels they have.",
    ),
    "detections": Words(
        "precision",
        "score",
        "Right is a detection that overlaps an object of its class by 50 % and more, which no "
        "detection of a higher score has. Objects that were not found are not in it.",
    ),
}


def calibration(bins: Sequence[tuple[int, float, float]], unit: str, words: Words) -> str:
    """How often predictions of a confidence are right, beside what would be calibrated."""
    if not bins:
        return ""
    drawn = chart(
        f"{words.share} by {words.by}",
        {
            "measured": [(sure, right) for _, sure, right in bins],
            "calibrated": [(k / 10, k / 10) for k in range(11)],
        },
        words.by,
    )
    rows = [[Cell(f"{sure:.1%}"), Cell(f"{right:.1%}"), Cell(f"{n:,}")] for n, sure, right in bins]
    numbers = table([f"mean {words.by}", words.share, unit], rows)
    note = paragraph(words.note, pale=True) if words.note else ""
    return f'<div class="charts">{drawn}<div>{numbers}</div></div>{note}'
