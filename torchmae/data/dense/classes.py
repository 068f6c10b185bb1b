"""The classes of label maps: their names, their colors, and which values of masks they are."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torchmae.data.dense.masks import IGNORE, MOST_CLASSES, Coding, Survey
from torchmae.disk import parse_json
from torchmae.errors import UserError, printable

Color = tuple[int, int, int]

# Tables that are looked for in the folder of the data.
TABLES = (
    *("classes.json", "classes.txt", "class_dict.csv", "label_colors.txt", "labelmap.txt"),
    "codes.txt",
)
OBJECTS = ("background", "object")


class Entry(NamedTuple):
    """A line of a table of classes."""

    name: str
    value: int | None = None
    color: Color | None = None


class Classes(NamedTuple):
    """What is predicted for each pixel."""

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    """For pictures."""
    coding: Coding


def find_table(data: Path) -> Path | None:
    """The table of classes in the folder of the data, or beside the folders above the masks."""
    return next((data / name for name in TABLES if (data / name).is_file()), None)


def read_table(path: Path) -> list[Entry]:
    """The classes of a file.

    JSON: a list of names in the order of their values, or an object from names to values or colors
    ([r, g, b] or "#rrggbb"), or from values to names, or a list of objects with name, value and
    color. Text: lines of a name, or of a name and red, green, blue in either order.

    Raises:
        UserError: it is neither.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        entries = entries_of(parse_json(text)) if path.suffix == ".json" else lines_of(text)
        if len({entry.name for entry in entries}) < len(entries):
            raise ValueError("a name is there twice")
        if not entries:
            raise ValueError("no class is in it")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or printable(error)
        raise UserError(
            f'{path} is no table of classes ({reason}): a JSON list of names, {{"name": value}} or '
            '{"name": [red, green, blue]}, or lines "name red green blue"'
        ) from error
    return entries


def entries_of(content: Any) -> list[Entry]:
    """Those of a JSON file."""
    if isinstance(content, dict) and set(content) <= {"classes", "labels", "names"}:
        content = next(iter(content.values()))
    if isinstance(content, list):
        return [
            Entry(one, i)
            if isinstance(one, str)
            else Entry(
                str(one["name"]),
                int(one.get("value", one.get("id", i))),
                color_of(one["color"]) if "color" in one else None,
            )
            for i, one in enumerate(content)
        ]
    entries: list[Entry] = []
    for key, value in content.items():
        if isinstance(value, str) and re.fullmatch(r"\d+", key):
            entries.append(Entry(value, int(key)))
        elif isinstance(value, int):
            entries.append(Entry(key, value))
        else:
            entries.append(Entry(key, len(entries), color_of(value)))
    return entries


def lines_of(text: str) -> list[Entry]:
    """Those of a text file."""
    number = r"\s*(\d{1,3})\s*"
    before = re.compile(rf"{number}[,\s]{number}[,\s]{number}[,\s]\s*(.+)")
    after = re.compile(rf"(.+?)[,:\s]{number}[,\s]{number}[,\s]{number}(?:[:,\s].*)?")
    entries: list[Entry] = []
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#") or re.fullmatch(r"name\s*,\s*r.*", line, re.I):
            continue
        first, last = before.fullmatch(line), after.fullmatch(line)
        if first:
            red, green, blue, name = first.groups()
        elif last:
            name, red, green, blue = last.groups()
        else:
            entries.append(Entry(line, len(entries)))
            continue
        color = (int(red), int(green), int(blue))
        entries.append(Entry(name.strip(), len(entries), color_of(list(color))))
    return entries


def color_of(value: Any) -> Color:
    """A color as [r, g, b] or "#rrggbb"; ValueError for anything else."""
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        number = int(value[1:], 16)
        return number >> 16, number >> 8 & 255, number & 255
    red, green, blue = value
    if not all(isinstance(one, int) and 0 <= one <= 255 for one in value):
        raise ValueError(f"{value} is no color")
    return red, green, blue


def number_of(color: Color) -> int:
    """As masks have it: see `Stored.values`."""
    return color[0] << 16 | color[1] << 8 | color[2]


def palette_color(i: int) -> Color:
    """The color of class `i` where nothing else is known: black for 0, then colors far apart, made
    of the bits of the number (as the PASCAL VOC challenge numbers its palette)."""
    red = green = blue = 0
    for shift in range(7, -1, -1):
        red |= (i & 1) << shift
        green |= (i >> 1 & 1) << shift
        blue |= (i >> 2 & 1) << shift
        i >>= 3
    return red, green, blue


def decide(
    found: Survey, table: list[Entry] | None, names: Sequence[str], ignore: Sequence[str], data: str
) -> Classes:
    """What the values of masks mean.

    Args:
        found: what is in the masks.
        table: the classes as a table lists them.
        names: of the classes in the order of their values, in place of a table.
        ignore: values, colors (#rrggbb) or names of classes that are not learned.
        data: what the masks are called, for messages.

    Raises:
        UserError: it cannot be known.
    """
    if not found.values:
        first = f"; the first: {found.bad[0]}" if found.bad else ""
        raise UserError(f"none of the masks of {data} can be used{first}")
    if found.several:
        return objects(names)
    if found.colored:
        if table is None or not all(entry.color for entry in table):
            raise UserError(need_colors(found, data))
        by_value = {number_of(entry.color): entry for entry in table if entry.color}
    elif table is not None:
        by_value = {int(entry.value or 0): entry for entry in table}
    else:
        by_value = {}
    ignored = ignored_values(ignore, found.colored, by_value)
    binary = set(found.values) <= {0, 255} and 255 in found.values
    if binary and not found.colored and len(by_value) in (0, 2) and 255 not in by_value:
        return objects(names or [entry.name for entry in by_value.values()])
    if not by_value:
        values = sorted(set(found.values) - set(ignored))
        if names:
            numbers = (i for i in range(len(names) + len(ignored)) if i not in ignored)
            values = list(numbers)[: len(names)]
        labels = names or [str(value) for value in values]
        by_value = {v: Entry(name, v) for v, name in zip(values, labels)}
    kept = {value: entry for value, entry in by_value.items() if value not in ignored}
    check_number(kept, found, data)
    return Classes(
        tuple(entry.name for entry in kept.values()),
        tuple(
            entry.color or color_in(found.palette, value, i)
            for i, (value, entry) in enumerate(kept.items())
        ),
        Coding("colors" if found.colored else "values", tuple(kept), tuple(ignored)),
    )


def objects(names: Sequence[str]) -> Classes:
    """Background and objects."""
    chosen = tuple(names) or OBJECTS
    if len(chosen) != 2:
        raise UserError(
            f"the masks only tell objects from background, so there are 2 classes, not "
            f"{len(chosen)} (--classes)"
        )
    return Classes(chosen, (palette_color(0), palette_color(1)), Coding("objects"))


def ignored_values(ignore: Sequence[str], colored: bool, by_value: dict[int, Entry]) -> list[int]:
    """The values that --ignore names; `UserError` for what is neither a value nor a class."""
    values = {entry.name: value for value, entry in by_value.items()}
    found = []
    for text in ignore:
        if text in values:
            found.append(values[text])
        elif re.fullmatch("#[0-9a-fA-F]{6}", text):
            found.append(int(text[1:], 16))
        elif text.isdecimal():
            if not colored:  # of color masks there are no values to ignore
                found.append(int(text))
        else:
            raise UserError(
                f"--ignore {text}: a value of the masks such as 255, a color such as #000000, or "
                f"the name of a class{': ' + ', '.join(values) if values else ''}"
            )
    return found


def check_number(kept: dict[int, Entry], found: Survey, data: str) -> None:
    """Raises UserError for fewer than two classes, or more than label maps can hold."""
    if len(kept) < 2:
        names = ", ".join(entry.name for entry in kept.values()) or "none"
        raise UserError(
            f"{data} has fewer than two classes ({names}): a segmenter needs two; name them by "
            "--classes, and what is no class by --ignore"
        )
    if len(kept) > MOST_CLASSES:
        raise UserError(
            f"the masks of {data} have {len(kept)} different values, and at most {MOST_CLASSES} "
            "classes are possible: are they numbers of objects, or gray images? Name the classes "
            "by --classes"
        )


def need_colors(found: Survey, data: str) -> str:
    """What to do where masks are colored and nothing says what the colors mean."""
    common = [f"#{value:06x}" for value, _ in found.values.most_common(8)]
    return (
        f"the masks of {data} are color images ({len(found.values)} colors, such as "
        f"{', '.join(common)}): say what the colors mean in {data}/classes.json, "
        '{"name": "#rrggbb", ...}, or --classes FILE'
    )


def color_in(palette: tuple[Color, ...], value: int, i: int) -> Color:
    """The color of a value in the masks' own palette, else that of class `i`."""
    return palette[value] if value < len(palette) else palette_color(i)


def ignored_share(found: Survey, coding: Coding) -> float:
    """The share of all pixels that is ignored."""
    values = found.values
    known = set(coding.values)
    none = sum(count for value, count in values.items() if value not in known)
    return 0.0 if coding.kind == "objects" else none / values.total()


assert IGNORE == MOST_CLASSES, "a label map is uint8, and its last value is no class"
