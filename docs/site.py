"""Makes a site of the documents as they are read in the repository (a hook of mkdocs: `make docs`).

README.md is the first page. A link out of docs/ (`../bench/results/x.json`) works in the site too:
the file that it names becomes a part of it. `<!-- settings of mae VERB -->` becomes a table of that
verb's settings, so that the reference cannot differ from the flags.
"""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from torchmae.settings.options import Option, options_of
from torchmae.verbs import VERBS, load

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), ROOT / "examples" / "README.md"]  # beside those of docs/
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")
SETTINGS = re.compile(r"<!-- settings of mae (\S+) -->")


def in_site(path: Path) -> str:
    """Where the site has a file of the repository."""
    name = path.relative_to(ROOT).as_posix()
    return "index.md" if name == "README.md" else name.removeprefix("docs/")


def linked(text: str, page: Path) -> Iterator[Path]:
    """The files that a page links to."""
    for target, _ in LINK.findall(text):
        yield (page.parent / target).resolve()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages outside docs/ and all files that a page links to."""
    documents = [*PAGES, *Path(config.docs_dir).glob("*.md")]
    outside = {path for page in documents for path in linked(page.read_text(), page)}
    for path in sorted({*PAGES, *outside}):
        if path.is_file() and files.get_file_from_path(in_site(path)) is None:
            files.append(File.generated(config, in_site(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page with links as the site has them, and with its tables of settings."""
    own = "README.md" if page.file.src_uri == "index.md" else page.file.src_uri
    source = next(path for path in (ROOT / "docs" / own, ROOT / own) if path.exists())
    up = "../" * page.file.src_uri.count("/")

    def replace(match: re.Match[str]) -> str:
        target = (source.parent / match[1]).resolve()
        if target.is_dir():  # a folder has no page of its own
            target = target / "README.md" if (target / "README.md").exists() else ROOT / "README.md"
        return f"]({up}{in_site(target)}{match[2] or ''})"

    return SETTINGS.sub(lambda match: table(match[1]), LINK.sub(replace, markdown))


def table(verb: str) -> str:
    """All settings of a verb, in the order of `--help`."""
    options = [o for o in options_of(load(VERBS[verb].config)).values() if not o.metadata["hidden"]]
    return "\n".join(["| setting | what it is | default |", "|---|---|---|", *map(row, options)])


def row(option: Option) -> str:
    """A setting as a row of the table."""
    if option.metadata["otherwise"]:
        default = option.metadata["otherwise"]
    else:
        default = "" if option.positional or option.default is None else f"`{option.default}`"
    words = html.escape(option.metadata["help"]).replace("|", r"\|")
    return f"| `{option.name}` | {words} | {default} |"
