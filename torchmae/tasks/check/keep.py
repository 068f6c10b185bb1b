"""The list of the images to keep."""

import csv
import io
import os
from pathlib import Path

from torchmae.data.quality.duplicates import rank
from torchmae.data.quality.findings import Checked
from torchmae.data.quality.survey import Survey
from torchmae.data.sources.files import Files
from torchmae.data.sources.source import Source
from torchmae.data.suspicious import innermost
from torchmae.disk import write_text
from torchmae.errors import UserError


def refuse_unlisted(sources: list[Source], data: str) -> None:
    """Raises UserError for images that are not files of their own, which no list can name."""
    if not all(isinstance(innermost(source), Files) for source in sources):
        raise UserError(
            f"--write-list is for images in files, and those of {data} are not: leave it out (mae "
            "pack --drop-duplicates leaves out copies)"
        )


def kept(checked: Checked) -> list[int]:
    """The images that can be read, are not blank, and are no copies of another that is kept.

    Of a group of copies the one in the part that is held out stays: what is trained on gives way.
    """
    survey = checked.survey
    out = set(checked.blank)
    for group in [*checked.duplicates.exact, *checked.duplicates.near]:
        best = max(group, key=lambda i: (rank(survey.parts[i])[0], -i))
        out |= set(group) - {best}
    return [i for i in survey.good.tolist() if i not in out]


def write_list(path: Path, survey: Survey, ids: list[int]) -> int:
    """Writes the paths of some images, relative to the list; of a .csv with their classes.

    Returns:
        How many could not be named: a line break is in their name.
    """
    rows = [(path_of(survey, i, path), survey.labels[i] or "") for i in ids]
    fit = [row for row in rows if not set("\r\n") & set(row[0])]
    out = io.StringIO(newline="")
    if path.suffix == ".csv":
        csv.writer(out, lineterminator="\n").writerows([("path", "label"), *fit])
    else:
        out.writelines(f"{name}\n" for name, _ in fit)
    write_text(path, out.getvalue())
    return len(rows) - len(fit)


def path_of(survey: Survey, i: int, beside: Path) -> str:
    """The path of an image from the folder of a list; "./" keeps one from being a comment."""
    source, k = survey.place(i)
    inner = innermost(source)
    assert isinstance(inner, Files)  # see `refuse_unlisted`
    path = os.path.relpath(os.path.join(inner.root, source.name(k)), beside.absolute().parent)
    return path if path[0] not in "# " else f"./{path}"
