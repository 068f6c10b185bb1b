"""The page of `mae check`."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from torchmae.data.decode import BadImage
from torchmae.data.loader import read_pixels
from torchmae.data.quality.findings import Checked, Finding, class_counts
from torchmae.data.quality.survey import Survey
from torchmae.data.quality.texture import Suggestion, Texture
from torchmae.report.html.charts import chart
from torchmae.report.html.page import (
    Cell,
    Section,
    bars,
    details,
    findings,
    page,
    paragraph,
    table,
)
from torchmae.report.html.thumbs import thumbnail, tile, tiles

MOST_GROUPS, MOST_OF_GROUP, MOST_TILES, MOST_ROWS = 12, 6, 12, 500


def check_page(
    data: str,
    checked: Checked,
    found: Sequence[Finding],
    look: tuple[Texture, Suggestion] | None,
    shown: Sequence[int],
    left_out: str,
) -> str:
    """The page.

    Args:
        data: what the user named.
        checked: what is known.
        found: the same in words.
        look: how pixels are correlated, and what that suggests.
        shown: images for the sheet.
        left_out: how many images were not taken, in words; "" for none.
    """
    survey = checked.survey
    lead = paragraph(summary(survey)) + (paragraph(left_out) if left_out else "")
    lines = [("bad" if one.bad else "", one.text) for one in found]
    lead += findings(lines or [("good", "nothing suspicious was found")])
    sheet = tiles(tile(picture(survey, i), survey.name(i)) for i in shown)
    return page(
        f"Check of {data}",
        lead,
        [
            Section("Images, chosen by hash", sheet),
            Section("Leakage", leakage(checked)),
            Section("Exact duplicates", groups(survey, checked.duplicates.exact)),
            Section("Near-duplicates", groups(survey, checked.duplicates.near)),
            Section("Blank images", some(survey, checked.blank)),
            Section("Mostly black", some(survey, checked.dark)),
            Section("Mostly white", some(survey, checked.bright)),
            Section("Files that cannot be read", unreadable(survey)),
            Section("Formats", bars(dict(kinds(survey)))),
            Section("Sizes", sizes(survey)),
            Section("Classes", classes(survey)),
            Section("Patch size and mask ratio", suggestion(look)),
        ],
    )


def summary(survey: Survey) -> str:
    """Counts in a sentence."""
    good, parts = survey.good, Counter(survey.parts)
    words = f"{len(survey):,} images, {survey.stored[good].sum() / 1e6:,.1f} MB"
    if len(parts) > 1:
        words += f" ({', '.join(f'{part} {count:,}' for part, count in parts.items())})"
    height, width = np.median(survey.sizes[good], axis=0)
    return f"{words}; the median image is {width:.0f} x {height:.0f} px"


def picture(survey: Survey, i: int) -> str:
    """A thumbnail; none where the image can no longer be read."""
    try:
        return thumbnail(read_pixels(*survey.place(i)))
    except BadImage:
        return ""


def kinds(survey: Survey) -> list[tuple[str, int]]:
    """Formats with channels and bits, the most common first."""
    return Counter(kind for kind in survey.kinds if kind).most_common()


def some(survey: Survey, ids: Sequence[int]) -> str:
    """The first of some images."""
    more = paragraph(f"{MOST_TILES} of {len(ids):,}", True) if len(ids) > MOST_TILES else ""
    return tiles(tile(picture(survey, i), survey.name(i)) for i in ids[:MOST_TILES]) + more


def groups(survey: Survey, found: Sequence[Sequence[int]]) -> str:
    """The first groups, the largest first; the names of all others."""
    ordered = sorted(found, key=lambda group: -len(group))
    drawn = "".join(
        f'<div class="group">{paragraph(f"{len(group)} images", True)}'
        f"{tiles(tile(picture(survey, i), survey.name(i)) for i in group[:MOST_OF_GROUP])}</div>"
        for group in ordered[:MOST_GROUPS]
    )
    rest = ordered[MOST_GROUPS : MOST_GROUPS + MOST_ROWS]
    rows = [(Cell(f"{len(group)}"), ", ".join(map(survey.name, group[:8]))) for group in rest]
    more = details(f"{len(rest):,} more groups", table(["images", "names"], rows))
    return f'<div class="groups">{drawn}</div>{more}' if drawn else ""


def leakage(checked: Checked) -> str:
    """The first leaks as pairs of pictures; the names of all others."""
    survey, drawn = checked.survey, []
    leaks = sorted(checked.leaks, key=lambda leak: -leak.likeness)
    for leak in leaks[:MOST_GROUPS]:
        pair = tiles(
            tile(picture(survey, i), f"{survey.parts[i]}: {survey.name(i)}")
            for i in (leak.image, leak.copy)
        )
        how = "the same pixels" if leak.exact else f"correlation {leak.likeness:.3f}"
        how += "" if leak.certain else ": alike, perhaps no copy"
        drawn.append(f'<div class="group">{paragraph(how, True)}{pair}</div>')
    rest = leaks[MOST_GROUPS : MOST_GROUPS + MOST_ROWS]
    rows = [(survey.name(leak.image), survey.name(leak.copy)) for leak in rest]
    more = details(f"{len(rest):,} more", table(["image", "is a copy of"], rows))
    return f'<div class="groups">{"".join(drawn)}</div>{more}' if drawn else ""


def unreadable(survey: Survey) -> str:
    """The files with their reasons."""
    rows = [(file.name, file.reason) for file in survey.bad[:MOST_ROWS]]
    more = ""
    if len(survey.bad) > MOST_ROWS:
        more = paragraph(f"{MOST_ROWS} of {len(survey.bad):,}", True)
    return table(["file", "reason"], rows) + more


def sizes(survey: Survey) -> str:
    """The commonest sizes, and how they are distributed."""
    measured = survey.sizes[survey.good]
    each = Counter(f"{width} x {height} px" for height, width in measured.tolist())
    body = bars(dict(each.most_common()), 8)
    if len(each) < 2:
        return body
    aspect = np.log2(measured[:, 1] / measured[:, 0])
    wide = {"square": 1, "6:5": 6 / 5, "4:3": 4 / 3, "3:2": 3 / 2, "16:9": 16 / 9, "2:1": 2}
    tall = ["1:2", "9:16", "2:3", "3:4", "5:6"]
    steps = np.log2([*wide.values(), 3])  # 3: beyond the last one
    middles = (steps[1:] + steps[:-1]) / 2
    names = ["narrower", *tall, *wide, "wider"]
    counts, _ = np.histogram(aspect, [-np.inf, *-middles[::-1], *middles, np.inf])
    body += paragraph("Width to height, about:", True) + bars(dict(zip(names, counts.tolist())))
    least, middle, most = np.percentile(measured.min(axis=1), (0, 50, 100))
    return body + paragraph(
        f"shorter side: {least:.0f} to {most:.0f} px, median {middle:.0f}", True
    )


def classes(survey: Survey) -> str:
    """How many images each class has; with parts, in each."""
    counts = class_counts(survey)
    if len(counts) < 2:
        return ""
    parts = sorted(set(survey.parts))
    if len(parts) == 1:
        return bars({label: count.total() for label, count in counts.items()}, 60)
    rows: list[list[str | Cell]] = [
        [label, *(Cell(f"{count[part]:,}") for part in parts)]
        for label, count in list(counts.items())[:MOST_ROWS]
    ]
    return table(["class", *parts], rows)


def suggestion(look: tuple[Texture, Suggestion] | None) -> str:
    """The correlation of pixels by distance, and what follows by a rule of thumb."""
    if look is None:
        return ""
    texture, suggested = look
    curve = chart(
        "correlation of two pixels",
        {"correlation of two pixels": list(enumerate(texture.correlation.tolist()))},
        "distance (px)",
    )
    return (
        paragraph(
            f"Suggested: --patch-size {suggested.patch} --mask-ratio {suggested.ratio:g}, for "
            f"images of {texture.side} px"
        )
        + paragraph(f"Why: {suggested.why}.")
        + paragraph(RULE, pale=True)
        + f'<div class="charts">{curve}</div>'
    )


RULE = (
    "A rule of thumb, not a measurement of any training. Where a share 1 - m of patches of p px is "
    "visible, they are p / sqrt(1 - m) px apart. That distance is made the correlation length L "
    "(where the correlation has fallen to 1/e): p near L / 2 (at most 16 px), and "
    "m = 1 - (p / L)². With L = 32 px this is the paper's 16 px and 75 %. mae ablate measures "
    "which is best."
)
