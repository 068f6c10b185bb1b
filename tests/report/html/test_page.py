"""A page is whole, valid and obeys nothing that a user named."""

from html.parser import HTMLParser

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
