"""One page in one file: no server, no network, no script; light and dark, also on a phone."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from torchmae.errors import printable
from torchmae.version import __version__

# Nothing is loaded from anywhere, and nothing in a name or a class can run.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --pale: #59636e; --back: #fff; --card: #f5f6f8;
  --edge: #d5dae0; --bad: #b3261e; --good: #1a7f37; --c0: #0b6bcb; --c1: #c2410c; --c2: #15803d;
  --c3: #7e22ce; --c4: #a16207; --c5: #0e7490 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --pale: #a2abb6; --back: #14171b;
  --card: #1d2127; --edge: #363d46; --bad: #ff8a80; --good: #6fdd8b; --c0: #6cb6ff; --c1: #ffa16b;
  --c2: #6fdd8b; --c3: #d0a5ff; --c4: #e3c25a; --c5: #67d9ee } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 68rem; padding: 1.2rem; background: var(--back);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; margin: 0 0 .2rem } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
p { margin: .4rem 0 } .pale, figcaption { color: var(--pale); font-size: .85rem }
ul.findings { list-style: none; padding: 0; margin: .8rem 0 }
ul.findings li { background: var(--card); border-left: 4px solid var(--edge); margin: .4rem 0;
  padding: .5rem .8rem }
ul.findings li.bad { border-color: var(--bad) } ul.findings li.good { border-color: var(--good) }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--edge);
  vertical-align: top; overflow-wrap: normal; min-width: 3rem }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.bar { background: var(--c0); height: .8rem; min-width: 1px; border-radius: 2px }
td.bars { width: 40% }
.tiles { display: flex; flex-wrap: wrap; gap: .7rem; margin: .6rem 0 }
.tiles figure { margin: 0; width: 7rem } figcaption { line-height: 1.25; margin-top: .2rem }
.tiles img { width: 7rem; height: 7rem; object-fit: contain; background: var(--card);
  image-rendering: auto; display: block }
.groups { display: flex; flex-wrap: wrap; gap: .7rem; align-items: flex-start }
.group { border: 1px solid var(--edge); border-radius: 6px; padding: .2rem .7rem }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr));
  gap: 1rem } .charts figure { margin: 0 } svg { width: 100%; height: auto; display: block }
svg text { fill: var(--pale); font: 12px system-ui, sans-serif } .grid { stroke: var(--edge) }
img.large { max-width: 100%; height: auto; background: #fff }
.slider { display: flex; flex-wrap: wrap; gap: .3rem; position: relative }
.slider input { position: absolute; opacity: 0 }
.slider label { font-size: .85rem; cursor: pointer; padding: .3rem .7rem; border-radius: 4px;
  border: 1px solid var(--edge); background: var(--card) }
.slider input:checked + label { background: var(--c0); border-color: var(--c0); color: var(--back) }
.slider input:focus-visible + label { outline: 2px solid var(--ink); outline-offset: 2px }
.slider figure { display: none; flex: 0 0 100%; margin: .3rem 0 0 } h3 { margin: 1rem 0 .3rem }
SLIDER .confusion td, .confusion th { padding: .2rem .4rem; min-width: 2rem }
details { margin: .5rem 0 } summary { cursor: pointer; padding: .2rem 0 }
footer { margin-top: 2.5rem; border-top: 1px solid var(--edge); padding-top: .5rem }
"""


# The k-th radio button of a slider shows its k-th figure.
MOST_SLIDES = 8
STYLE = STYLE.replace(
    "SLIDER",
    ",\n".join(
        f".slider input:nth-of-type({k}):checked ~ figure:nth-of-type({k})"
        for k in range(1, MOST_SLIDES + 1)
    )
    + " { display: block }\n",
)


class Section(NamedTuple):
    """A part of a page: its title, and its body as HTML."""

    title: str
    body: str


class Cell(NamedTuple):
    """A number in a table, to the right."""

    text: str


def text(words: object) -> str:
    """Text from anywhere as HTML: markup and control characters are shown, not obeyed."""
    return escape(printable(words))


def page(title: str, lead: str, sections: Iterable[Section]) -> str:
    """A whole page.

    Args:
        title: its text.
        lead: HTML before the first section.
        sections: those without a body are left out.
    """
    body = "".join(
        f"<section><h2>{text(one.title)}</h2>{one.body}</section>\n" for one in sections if one.body
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body><main><h1>{text(title)}</h1>{lead}\n{body}</main>"
        f'<footer class="pale">torchmae {text(__version__)}</footer></body></html>\n'
    )


def findings(lines: Iterable[tuple[str, str]]) -> str:
    """A list of sentences, each with what it is: "bad", "good" or ""."""
    items = "".join(f'<li class="{kind}">{text(words)}</li>' for kind, words in lines)
    return f'<ul class="findings">{items}</ul>' if items else ""


def paragraph(words: str, pale: bool = False) -> str:
    """A paragraph of text."""
    return f"<p class={'pale' if pale else 'plain'}>{text(words)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[str | Cell]]) -> str:
    """A table of text and numbers; empty where there are no rows.

    Args:
        head: the titles of the columns; none for a table without.
        rows: a cell for each of them.
    """
    written = [
        "<tr>"
        + "".join(
            f'<td class="number">{text(cell.text)}</td>'
            if isinstance(cell, Cell)
            else f"<td>{text(cell)}</td>"
            for cell in row
        )
        + "</tr>"
        for row in rows
    ]
    if not written:
        return ""
    names = "".join(f'<th scope="col">{text(name)}</th>' for name in head)
    top = f"<thead><tr>{names}</tr></thead>" if head else ""
    return f'<div class="wide"><table>{top}<tbody>{"".join(written)}</tbody></table></div>'


def bars(counts: Mapping[str, int], most: int = 30) -> str:
    """Counts by name as a table with bars, in the order given; after `most` one line for the
    rest."""
    if not counts:
        return ""
    shown, rest = list(counts.items())[:most], list(counts.items())[most:]
    largest = max(counts.values()) or 1
    rows = "".join(
        f'<tr><td>{text(name)}</td><td class="number">{count:,}</td><td class="bars">'
        f'<div class="bar" style="width:{100 * count / largest:.1f}%"></div></td></tr>'
        for name, count in shown
    )
    more = ""
    if rest:
        more = paragraph(f"and {len(rest):,} more with {sum(n for _, n in rest):,} together", True)
    return f'<div class="wide"><table style="width:100%">{rows}</table></div>{more}'


def details(summary: str, body: str, open: bool = False) -> str:
    """What is shown when its summary is clicked; empty where there is no body."""
    if not body:
        return ""
    return f"<details{' open' * open}><summary>{text(summary)}</summary>{body}</details>"
