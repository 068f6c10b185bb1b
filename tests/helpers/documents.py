"""Code and commands in documents, and a way to make the commands short."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
QUICK = {"--epochs": "1", "--labels-per-class": "4", "--workers": "0", "--device": "cpu"}


def blocks(file: Path, language: str) -> list[str]:
    """The fenced blocks of a document in one language ("" for none)."""
    return re.findall(rf"^```{language}\n(.*?)^```", file.read_text(), re.DOTALL | re.MULTILINE)


def command_lines(page: Path) -> list[str]:
    """The command lines of a page's ```sh blocks; a line that ends with a backslash is joined with the next."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if shlex.split(line, comments=True)]
