"""The page of several runs: their curves in one chart each, and where their settings differ."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchmae import manifest, runfolder
from torchmae.report.curves import panels
from torchmae.report.html.charts import chart
from torchmae.report.html.page import Cell, Section, details, findings, page, table, text
from torchmae.report.html.run import number, pictures, points_of, readable, shown
from torchmae.report.words.health import words_of

MOST_BYTES = 4_000_000


def several_page(runs: Sequence[Path]) -> str:
    """The page.

    Raises:
        UserError: one of them is no run folder.
    """
    with manifest.verification(False):
        configs = [runfolder.read_any_config(run) for run in runs]
    names = distinct_names(runs)
    logs = {name: runfolder.read_log(run) for name, run in zip(names, runs)}
    words = "".join(
        f"<h3>{text(name)}</h3>{findings(words_of(run, config))}"
        for name, run, config in zip(names, runs, configs)
    )
    return page(
        f"{len(runs)} runs",
        "",
        [
            Section("Each", words),
            Section("Curves", curves(logs)),
            Section("Different settings", differences(names, configs)),
            Section("Measured", results(names, runs)),
            Section("Last reconstructions", last_pictures(names, runs)),
        ],
    )


def distinct_names(runs: Sequence[Path]) -> list[str]:
    """The names of the folders, with those above where they are equal."""
    short = [run.resolve().name for run in runs]
    return [name if short.count(name) == 1 else str(run) for name, run in zip(short, runs)]


def curves(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A chart for each logged value, with a curve for each run; trivial losses are left out."""
    titles = dict.fromkeys(
        name
        for records in logs.values()
        for names in panels([dict(record) for record in records]).values()
        for name in names
        if not name.startswith("loss of")
    )
    drawn = [
        chart(title, {run: points_of(records, title) for run, records in logs.items()})
        for title in titles
    ]
    return f'<div class="charts">{"".join(drawn)}</div>'


def differences(names: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> str:
    """The settings that are not the same in all runs."""
    known = dict.fromkeys(name for config in configs for name in config["config"])
    rows = []
    for setting in known:
        values = [config["config"].get(setting) for config in configs]
        if any(value != values[0] for value in values) and setting != "out":
            rows.append([setting, *("" if value is None else shown(value) for value in values)])
    return table(["setting", *names], rows)


def results(names: Sequence[str], runs: Sequence[Path]) -> str:
    """Each number that an evaluation measured, for every run that has it."""
    found: dict[str, dict[str, float]] = {}
    for name, run in zip(names, runs):
        for record in runfolder.read_results(run):
            where = (record.get("settings") or {}).get("data")
            for key, value in flat(record.get("results") or {}).items():
                title = f"{record['verb']}{f' on {where}' if where else ''}: {key}"
                found.setdefault(title, {})[name] = value
    rows: list[list[str | Cell]] = [
        [title, *(number(values.get(name)) for name in names)] for title, values in found.items()
    ]
    common = [row for row, values in zip(rows, found.values()) if len(values) > 1]
    others = [row for row, values in zip(rows, found.values()) if len(values) == 1]
    return table(["", *names], common) + details(
        "measured on one run only", table(["", *names], others[:300])
    )


def flat(value: Mapping[str, Any], before: str = "") -> dict[str, float]:
    """The numbers inside of nested results, by their path."""
    found: dict[str, float] = {}
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            found |= flat(inner, f"{before}{name} ")
        elif isinstance(inner, int | float) and not isinstance(inner, bool):
            found[f"{before}{name}"] = inner
    return found


def last_pictures(names: Sequence[str], runs: Sequence[Path]) -> str:
    """The newest reconstructions of each run that has some, else its confusion matrix."""
    body, room = "", MOST_BYTES
    for name, run in zip(names, runs):
        found = sorted((run / runfolder.PICTURES).glob("step-*.png"))
        source = readable(found[-1]) if found else None
        if source and len(source) <= room:
            room -= len(source)
            drawn = f'<p><img class="large" src="{source}" alt="{text(found[-1].name)}"></p>'
        else:
            drawn, room = pictures(run, (runfolder.CONFUSION,), room)
        body += f"<h3>{text(name)}</h3>{drawn}" if drawn else ""
    return body
