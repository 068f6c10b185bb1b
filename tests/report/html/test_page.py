"""A page is whole, valid and obeys nothing that a user named."""

from html.parser import HTMLParser
from pathlib import Path

from helpers.browser import Browser, needs_chromium

import torchmae
from torchmae.report.html.page import Cell, Section, bars, details, findings, page, table

EVIL = "</td><script>alert(1)</script>\x1b[2J\u202e\" onload='x'"
VOID = {"meta", "img", "line", "circle", "polyline"}


class Tags(HTMLParser):
    """Whether all tags are closed in order, and which there are."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_hostile_text_is_only_text() -> None:
    body = (
        table([EVIL], [[EVIL], [Cell(EVIL)]])
        + bars({EVIL: 3, "b": 0})
        + details(EVIL, table(["a"], [["b"]]))
    )
    made = page(EVIL, findings([("bad", EVIL)]), [Section(EVIL, body), Section("left out", "")])
    tags = Tags(made)
    assert "script" not in tags.seen
    assert not {name for name, _ in tags.attributes} & {"onload", "onerror", "src"}
    assert "\x1b" not in made and "\u202e" not in made
    assert "left out" not in made
    assert "default-src 'none'" in dict(tags.attributes).get("content", "") or "default-src" in made


def test_nothing_makes_nothing() -> None:
    assert table(["a"], []) == bars({}) == details("a", "") == findings([]) == ""


@needs_chromium
def test_pages_in_a_browser(run: Path, photos: Path, tmp_path: Path) -> None:
    """From disk, wide and light, narrow and dark: nothing reaches over the side, nothing is refused
    by the policy, and something is drawn in the colors that were asked for."""
    torchmae.check(photos, out=tmp_path / "check.html")
    torchmae.map_(run, photos, out=tmp_path / "map.html", device="cpu")
    sides = "document.getElementsByTagName('main')[0].getBoundingClientRect().height"
    with Browser() as browser:
        for path in (run / "report.html", tmp_path / "check.html", tmp_path / "map.html"):
            tab = browser.tab(path.as_uri())
            backgrounds = []
            for width, dark in ((1200, False), (360, True)):
                tab.resize(width, 800, dark=dark)
                assert tab.value("document.documentElement.scrollWidth") <= width, path.name
                assert tab.value(sides) > 300, path.name
                backgrounds.append(tab.value("getComputedStyle(document.body).backgroundColor"))
            light, dark_one = (int(one.strip("rgb()").split(",")[0]) for one in backgrounds)
            assert light > 200 and dark_one < 60, path.name
            assert tab.complaints() == [], path.name
            tab.close()
