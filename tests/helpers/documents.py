"""Code and commands in documents, and a way to make the commands short."""

import re
import shlex
from pathlib import Path

from torchmae.settings.options import options_of
from torchmae.verbs import VERBS, load

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
QUICK = {
    "--epochs": "1",
    "--labels-per-class": "4",
    "--workers": "0",
    "--device": "cpu",
    "--trials": "2",
}


def blocks(file: Path, language: str) -> list[str]:
    """The fenced blocks of a document in one language ("" for none)."""
    return re.findall(rf"^```{language}\n(.*?)^```", file.read_text(), re.DOTALL | re.MULTILINE)


def command_lines(page: Path) -> list[str]:
    """The commands of a page's ```sh blocks; a backslash at the end of a line continues it."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if shlex.split(line, comments=True)]


def flags_of(verb: str) -> set[str]:
    """The flags of a verb, such as "--mask-ratio"; none of a verb that only a plugin knows."""
    if verb not in VERBS:
        return set()
    options = options_of(load(VERBS[verb].config)).values()
    return {o.flag for o in options if not o.positional and not o.metadata["hidden"]}


def quick(words: list[str]) -> list[str]:
    """The same command made short: with flags that its verb has and that are not given."""
    known = flags_of(words[0])
    given = {word.partition("=")[0] for word in words}
    # a fast probe makes no steps: all labels cost nothing
    wanted = {"--device": "cpu"} if "--fast" in given else QUICK
    return words + [
        part for flag, value in wanted.items() if flag in known - given for part in (flag, value)
    ]
