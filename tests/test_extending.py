"""The examples of docs/extending.md: each file as it is, its commands as real processes."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.documents import DOCS, blocks, quick

PAGE = DOCS / "extending.md"
SMALLER = {"digits": "digits?part=test"}
SECTIONS = dict(re.findall(r"^## An? ([\w ]+)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.S | re.M))


def test_every_table_has_an_example() -> None:
    tables = set(re.findall(r"`torchmae\.([A-Z]+)`", PAGE.read_text()))
    used = set(re.findall(r"^torchmae\.([A-Z]+)\[", PAGE.read_text(), re.M))
    assert used == tables and len(SECTIONS) == len(tables)


@pytest.mark.parametrize("name", SECTIONS)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    page = tmp_path / "section.md"
    page.write_text(SECTIONS[name])
    for code in blocks(page, "python"):
        file = re.match(r"# (\w+\.py)\n", code)
        assert file, "the first line of an example is its file's name"
        (tmp_path / file[1]).write_text(code)
    for line in "".join(blocks(page, "sh")).splitlines():
        first, *words = shlex.split(line, comments=True)
        words = [SMALLER.get(word, word) for word in words]
        command = [sys.executable, *words]
        if first == "mae":
            command = [sys.executable, "-m", "torchmae", *quick(words)]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
