"""The page of a run: what it learned, how, with what; also of several runs side by side."""

import json
import logging
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import UnidentifiedImageError

from torchmae import manifest, runfolder
from torchmae.disk import parse_json, write_text
from torchmae.errors import UserError
from torchmae.report.curves import panels
from torchmae.report.experiments.ablation import not_above, ordering_lines
from torchmae.report.html.charts import chart
from torchmae.report.html.classes import classes_section, has_matrix
from torchmae.report.html.page import (
    MOST_SLIDES,
    Cell,
    Section,
    details,
    findings,
    page,
    paragraph,
    table,
    text,
)
from torchmae.report.html.thumbs import picture_file
from torchmae.report.words.health import words_of

logger = logging.getLogger(__name__)

WIDEST = 1100  # px of reconstructions
MOST_BYTES = 3_000_000  # of all pictures of a page, as it holds them
MOST_FILES = 200  # bad files that are named
DEPTH, MOST_OPEN, MOST_ROWS = 5, 40, 500  # of results: levels, parts of one, rows of a table
PICTURES = (
    *(runfolder.CONFUSION, runfolder.MISTAKES, runfolder.WORST),
    *(runfolder.LAYERS, runfolder.CORRUPTIONS, runfolder.CORRUPTED),
)


def write_report(run: Path) -> Path | None:
    """Makes report.html of a run; a page that cannot be made ends no training."""
    try:
        write_text(run / runfolder.REPORT, run_page(run))
        return run / runfolder.REPORT
    except (OSError, UserError) as error:
        reason = getattr(error, "strerror", None) or error
        logger.warning(f"could not write {run / runfolder.REPORT}: {reason}")
        return None


class Page:
    """Evaluator: refreshes report.html while a run is trained; measures nothing.

    Args:
        run: the run folder.
        seconds: at least so long after the last time, or after the start.
    """

    def __init__(self, run: Path, seconds: float = 60.0):
        self.run = run
        self.seconds = seconds
        self.made = time.monotonic()

    def __call__(self, step: int) -> Iterator[tuple[str, float]]:
        """Shows what was logged and drawn up to a step."""
        if time.monotonic() - self.made >= self.seconds:
            write_report(self.run)
            self.made = time.monotonic()
        yield from ()


def run_page(run: Path) -> str:
    """The page of a run folder, or of the folder of mae compare or mae ablate.

    Raises:
        UserError: it is none of these.
    """
    if not (run / runfolder.CONFIG).is_file() and is_experiment(run):
        return experiment_page(run)
    with manifest.verification(False):  # a damaged run has a page too: mae verify says what is
        config = runfolder.read_any_config(run)
    records = runfolder.read_log(run)
    made = f"Made by mae {config.get('verb')}; {kind_words(config)}"
    lead = paragraph(made, pale=True) + findings(words_of(run, config))
    room = MOST_BYTES
    drawn, room = over_time(run, room)
    names = [n for n in PICTURES if n != runfolder.CONFUSION or not has_matrix(run)]
    shown, room = pictures(run, names, room)
    return page(
        run.resolve().name,
        lead,
        [
            Section("Curves", curves(records)),
            Section("Reconstructions over time", drawn),
            Section("Classes", classes_section(run)),
            Section("Measured", measured(runfolder.read_results(run)) + shown),
            Section("Data", data_section(run, config)),
            Section("Settings", settings_table(config)),
            Section("Versions and files", provenance(run, config)),
        ],
    )


def kind_words(config: Mapping[str, Any]) -> str:
    """What the model is."""
    kind = runfolder.kind_of(dict(config))
    name = config["config"].get("model")
    return f"{kind}{f', {name}' if name else ''}"


def curves(records: Sequence[Mapping[str, Any]]) -> str:
    """A chart for each panel of curves.png."""
    found = {
        title: {name: points_of(records, name) for name in names}
        for title, names in panels([dict(record) for record in records]).items()
    }
    lengths = [len(points) for lines in found.values() for points in lines.values()]
    if max(lengths, default=0) == 1:
        return paragraph("One record so far: curves begin with the second one.", pale=True)
    drawn = [chart(title, lines) for title, lines in found.items()]
    return f'<div class="charts">{"".join(drawn)}</div>' if any(drawn) else ""


def points_of(records: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """(step, value) of a logged value where it is a number."""
    return [(r["step"], r[name]) for r in records if isinstance(r.get(name), int | float)]


def over_time(run: Path, room: int) -> tuple[str, int]:
    """Reconstructions from first to last behind a slider, and the bytes that are left.

    The newest come first into the page's size; of many evenly spaced ones.
    """
    found = sorted((run / runfolder.PICTURES).glob("step-*.png"))
    last = len(found) - 1
    count = min(MOST_SLIDES, len(found))
    chosen = sorted({round(k * last / max(1, count - 1)) for k in range(count)}, reverse=True)
    figures: list[tuple[int, str]] = []
    for k in chosen:
        source = readable(found[k])
        if source is None or len(source) > room:
            continue
        room -= len(source)
        figures.append((int(found[k].stem.removeprefix("step-")), source))
    return slider(figures[::-1], len(found)), room


def slider(figures: Sequence[tuple[int, str]], count: int) -> str:
    """Pictures by step of which one is seen, without a script: a radio button each, which the arrow
    keys move along like a slider. The last one is seen first."""
    if not figures:
        return ""
    buttons, shown_figures = "", ""
    for k, (step, source) in enumerate(figures):
        checked = " checked" * (k == len(figures) - 1)
        buttons += (
            f'<input type="radio" name="time" id="time{k}"{checked}>'
            f'<label for="time{k}">{step:,}</label>'
        )
        shown_figures += (
            f'<figure><img class="large" src="{source}" alt="reconstructions at step {step}">'
            f"<figcaption>step {step:,}</figcaption></figure>"
        )
    more = paragraph(
        f"{len(figures)} of {count} pictures, by step: choose one, or use the arrow keys", True
    )
    return (
        f'<div class="slider" role="radiogroup" aria-label="step">{buttons}{shown_figures}</div>'
        f"{more if len(figures) > 1 else ''}"
    )


def readable(path: Path) -> str | None:
    """A picture of a run for the page; None where it is damaged."""
    try:
        return picture_file(path, WIDEST)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError):
        return None


def pictures(run: Path, names: Sequence[str], room: int) -> tuple[str, int]:
    """The pictures of a run that there are, whole, and the bytes that are left."""
    drawn = ""
    for name in names:
        path = run / name
        source = None
        if path.is_file() and path.stat().st_size < 300_000:  # lines and text are best as PNG
            source = f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}"
        elif path.is_file():
            source = readable(path)
        if source is not None and len(source) <= room:
            room -= len(source)
            drawn += f'<p><img class="large" src="{source}" alt="{text(name)}"></p>'
    return drawn, room


def measured(records: Sequence[Mapping[str, Any]]) -> str:
    """What evaluations measured, the newest first: numbers, then the accuracy of each class."""
    blocks = []
    for record in reversed(records):
        results = record.get("results")
        where = (record.get("settings") or {}).get("data")
        title = f"mae {record.get('verb')}{f' on {where}' if where else ''}"
        blocks.append(f'<div class="group"><strong>{text(title)}</strong>{nested(results)}</div>')
    return "".join(blocks)


def nested(value: Any, depth: int = 0) -> str:
    """Any JSON as tables: numbers and texts first, what is inside of something to be opened."""
    if isinstance(value, list):
        if value and all(isinstance(one, Mapping) for one in value):
            return listed(value, depth)
        return paragraph(", ".join(map(shown, value[:100])))
    if not isinstance(value, Mapping):
        return paragraph(shown(value))
    inside = {name: one for name, one in value.items() if isinstance(one, Mapping | list)}
    plain = {name: one for name, one in value.items() if name not in inside}
    if not plain and inside and all(isinstance(one, Mapping) for one in inside.values()):
        return listed([{"": name, **dict(one)} for name, one in inside.items()], depth)
    body = table([], [[str(name), number(one)] for name, one in plain.items()])
    for names in beside(inside):  # such as IoU and Dice of each class
        columns = [inside.pop(name) for name in names]
        rows = [[str(key), *(number(one[key]) for one in columns)] for key in columns[0]]
        some = table(["", *names], rows)
        body += details(", ".join(names), some, open=depth < 3 and len(rows) < MOST_OPEN)
    for name, one in inside.items():
        if one and depth < DEPTH:
            body += details(name, nested(one, depth + 1), open=depth < 3 and len(one) < MOST_OPEN)
    return body


def beside(inside: Mapping[str, Any]) -> list[list[str]]:
    """The names of numbers by the same keys, two and more together: they fit into one table."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, one in inside.items():
        if isinstance(one, Mapping) and all(isinstance(v, int | float) for v in one.values()):
            alike.setdefault(tuple(one), []).append(name)
    return [names for keys, names in alike.items() if keys and len(names) > 1]


def listed(rows: Sequence[Mapping[str, Any]], depth: int) -> str:
    """Records as one table of their plain values, then what else is in each."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    hidden = [n for n in names if any(isinstance(row.get(n), Mapping | list) for row in rows)]
    names = [name for name in names if name not in hidden]
    body = table(names, [[number(row.get(name)) for name in names] for row in rows[:MOST_ROWS]])
    if depth < DEPTH:
        for row in rows[:MOST_OPEN]:
            inside = {name: row[name] for name in hidden if row.get(name)}
            title = shown(row.get("name", row.get("", "more")))
            body += details(title, nested(inside, depth + 1) if inside else "", open=depth == 1)
    return body


def shown(value: Any) -> str:
    """A value as text."""
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def number(value: Any) -> str | Cell:
    """A value as a cell: numbers to the right."""
    if isinstance(value, bool) or value is None or not isinstance(value, int | float):
        return "" if value is None else shown(value)
    return Cell(shown(value))


def data_section(run: Path, config: Mapping[str, Any]) -> str:
    """The images, and those that cannot be read."""
    data, settings = config.get("data"), config["config"]
    body = ""
    if isinstance(data, Mapping):
        val = data.get("val") or {}
        rows: list[list[str | Cell]] = [
            ["images", settings.get("data") or "", number(data.get("count"))]
        ]
        if val:
            rows.append(["validation images", settings.get("val") or "", number(val["count"])])
        body += table(["", "from", "count"], rows) + data_sheet(run, settings)
        body += paragraph(f"fingerprint of names and sizes: {data.get('fingerprint')}", pale=True)
    bad = runfolder.read_bad_files(run)
    named = table(["file", "reason"], [(one["file"], one["reason"]) for one in bad[:MOST_FILES]])
    return body + details(f"{len(bad):,} files that cannot be read", named, open=len(bad) < 6)


def data_sheet(run: Path, settings: Mapping[str, Any]) -> str:
    """What the scan before training found of the images."""
    found = runfolder.read_object(run / runfolder.DATA_SHEET)

    def size(name: str) -> str:
        height, width = found[name]
        return f"{width:.0f} x {height:.0f} px"

    def share(name: str) -> str:
        return ", ".join(f"{float(value):.3f}" for value in found[name])

    rows: list[list[str | Cell]] = []
    try:
        rows += [["median size", size("median")]]
        if "smallest" in found:
            rows += [["shortest and longest sides", f"{size('smallest')} to {size('largest')}"]]
        rows += [["mean of pixels, of 1", share("mean")], ["their std", share("std")]]
        rows += [["colors", "none: gray" if found["gray"] else "yes"]]
        if found["stacks"]:
            rows += [["files with several pages", f"{found['stacks']:,}, the first is taken"]]
    except (KeyError, TypeError, ValueError):  # none, or damaged
        pass
    for name in ("include", "exclude"):
        if settings.get(name):
            rows += [[name, ", ".join(map(str, settings[name]))]]
    return table([], rows)


def settings_table(config: Mapping[str, Any]) -> str:
    """The settings; those that were chosen with their reasons first."""
    reasons = config.get("reasons") or {}
    values = {name: value for name, value in config["config"].items() if value is not None}
    chosen = [[name, shown(values[name]), reasons[name]] for name in reasons if name in values]
    others = [[name, shown(value)] for name, value in values.items() if name not in reasons]
    body = table(["chosen by rule", "value", "why"], chosen)
    return body + details("all others", table(["setting", "value"], others), open=not chosen)


def provenance(run: Path, config: Mapping[str, Any]) -> str:
    """Versions, and what the files of the run have to be."""
    versions = [
        [name, str(config[name])] for name in ("torchmae", "torch", "commit") if config.get(name)
    ]
    try:
        content = manifest.listed(run) or {}
    except UserError as error:
        return table(["version", ""], versions) + paragraph(str(error))
    rows: list[list[str | Cell]] = [
        [name, Cell(f"{one.bytes:,}"), one.sha256] for name, some in content.items() for one in some
    ]
    return table(["version", ""], versions) + table(["file", "bytes", "SHA-256"], rows)


# The folders of mae compare and mae ablate.

ABLATION = "ablation.json"


def is_experiment(folder: Path) -> bool:
    """Whether a folder holds results of several trainings."""
    return runfolder.has_results(folder) or (folder / ABLATION).is_file()


def experiment_page(folder: Path) -> str:
    """The page of mae compare, mae partial or mae ablate: their figures and tables."""
    shown_pictures, _ = pictures(folder, sorted(p.name for p in folder.glob("*.png")), MOST_BYTES)
    records = runfolder.read_results(folder)
    tables, said = measured(records), verdicts(records)
    if (folder / ABLATION).is_file():
        try:
            ablation = parse_json((folder / ABLATION).read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / ABLATION} cannot be read: {error}") from error
        tables += nested(ablation)
        said += of_studies(ablation)
    return page(
        folder.resolve().name,
        findings(said),
        [Section("Figures", shown_pictures), Section("Measured", tables)],
    )


def verdicts(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What a comparison says of its claims, in words: findings of a page."""
    found = []
    for record in records:
        rows = (record.get("results") or {}).get("rows")
        for row in rows if isinstance(rows, list) else []:
            says = isinstance(row, Mapping) and (row.get("claim") or row.get("reason"))
            if says and row.get("verdict"):
                about = ", ".join(shown(row[name]) for name in ("measure", "name") if row.get(name))
                found.append(
                    (VERDICTS.get(row["verdict"], ""), f"{about}: {says}: {row['verdict']}")
                )
    return found


def of_studies(ablation: Any) -> list[tuple[str, str]]:
    """What an ablation says of the paper's orderings, a line for each measure of a study."""
    try:
        return [
            ("", f"{study['title']}: {line}")
            for study in ablation["studies"]
            for line in [*ordering_lines(study["orderings"]), *not_above(study)]
        ]
    except (KeyError, TypeError, AttributeError, ValueError):  # of an older version, or damaged
        return []


VERDICTS = {"shown": "good", "worse": "bad"}
