"""Documents that run: every ```sh block of these pages is typed, line by line, beside a small run of the digits.

Commands that need a download or a user's own files stand in plain indented text, which is not run.
"""

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from torchmae import cli

DOCS = Path(__file__).parent.parent / "docs"
QUICK = {"--epochs": "1", "--labels-per-class": "4", "--workers": "0", "--device": "cpu"}
TRACED = {
    "onnx",
    "torch-export",
}  # what is traced must not have the tests' checks of shapes in it: a process of its own


def lines_of(page: Path) -> list[str]:
    """The command lines of a page, each whole (a backslash goes on in the next) and without its comment."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if shlex.split(line, comments=True)]


NAMED = [DOCS / f"{name}.md" for name in ("finetune", "probe", "evaluate", "import", "export")]
PAGES = [page for page in NAMED if page.exists() and lines_of(page)]


def quick(words: list[str]) -> list[str]:
    """The same command made short: flags that its verb has and that are not given."""
    module, config, _ = cli.VERBS[words[0]]
    known = {
        f"--{field.name.replace('_', '-')}"
        for field in fields(getattr(importlib.import_module(module), config))
    }
    given = {word.partition("=")[0] for word in words}
    wanted = (
        {"--device": "cpu"} if "--fast" in given else QUICK
    )  # a fast probe makes no steps: all labels cost nothing
    return words + [
        part for flag, value in wanted.items() if flag in known - given for part in (flag, value)
    ]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run: one epoch of a fifth of the digits."""
    out = tmp_path_factory.mktemp("docs") / "demo"
    assert (
        cli.main(quick(["pretrain", "digits?part=test", "--preset", "demo", "--out", str(out)]))
        == 0
    )
    return out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(
    page: Path,
    demo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(demo, tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    for line in lines_of(page):
        first, *words = shlex.split(line, comments=True)
        assert first == "mae", (
            f"{page.name}: not a command of mae, so it belongs in indented text: {line}"
        )
        if TRACED & set(words):
            code = subprocess.run([sys.executable, "-m", "torchmae", *quick(words)]).returncode
        else:
            code = cli.main(quick(words))
        assert code == 0, f"{page.name}: {line}\n{capfd.readouterr().err}"
