"""Code and commands in documents, and a way to make the commands short."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from torchmae.settings.options import options_of
from torchmae.verbs import VERBS, load, with_second_word

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
QUICK = {
    "--epochs": "1",
    "--labels-per-class": "4",
    "--workers": "0",
    "--device": "cpu",
    "--trials": "2",
}
SIZE = {"--model": "vit_micro", "--image-size": "32", "--patch-size": "8", "--batch-size": "2"}
BENCH = {  # of each WHAT
    "step": {**SIZE, "--vs": "none"},
    "dense": SIZE | {"--image-size": "64", "--patch-size": "16"},
    "wall-clock": SIZE,
    "data": {"--image-size": "32", "--step-images-per-s": "100"},
    "resume": {"--model": "vit_micro"},
    "startup": {},
}
SHORTER = {"--epochs", *SIZE}  # replaced where they are given


def blocks(file: Path, language: str) -> list[str]:
    """The fenced blocks of a document in one language ("" for none)."""
    return re.findall(rf"^```{language}\n(.*?)^```", file.read_text(), re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block of a document."""

    language: str
    text: str

    @property
    def not_run(self) -> str | None:
        """The reason why the tests do not run it, which its first line gives; else None."""
        first, _, _ = self.text.partition("\n")
        return first.removeprefix(NOT_RUN) if first.startswith(NOT_RUN) else None

    @property
    def lines(self) -> list[str]:
        """Its commands; a backslash at the end of a line continues it."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if shlex.split(line, comments=True)]


NOT_RUN = "# not run by the tests: "


def fenced(page: Path) -> list[Block]:
    """The fenced blocks of a document, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [Block(*pair) for pair in found]


def flags_of(verb: str) -> set[str]:
    """The flags of a verb, such as "--mask-ratio"; none of a verb that only a plugin knows."""
    if verb not in VERBS:
        return set()
    options = options_of(load(VERBS[verb].config)).values()
    return {o.flag for o in options if not o.positional and not o.metadata["hidden"]}


def quick(words: list[str]) -> list[str]:
    """The same command made short: fewer epochs, smaller models, with the flags its verb has."""
    wanted = QUICK
    if words[0] == "bench":
        wanted = {**BENCH[words[1]], "--rounds": "1", "--device": "cpu"}
    elif words[0] == "pack":
        wanted = {}  # it has one worker or more
    elif "--fast" in words:
        wanted = {"--device": "cpu", "--labels-per-class": "10"}
    known = flags_of(with_second_word(words[0], words[1:])[0])
    words = [
        part for word in words for part in (word.split("=", 1) if word[:2] == "--" else [word])
    ]
    for flag, value in wanted.items():
        if flag not in words and flag in known:
            words = [*words, flag, value]
        elif flag in words and flag in SHORTER:
            words[words.index(flag) + 1] = value
    return two_seeds(words) if "--seeds" in known else words


def two_seeds(words: list[str]) -> list[str]:
    """With the seeds 0 and 1, whichever were named."""
    if "--seeds" in words:
        at = words.index("--seeds")
        after = next((i for i in range(at + 1, len(words)) if not words[i].isdigit()), len(words))
        words = words[:at] + words[after:]
    return [*words, "--seeds", "0", "1"]
