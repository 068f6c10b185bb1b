"""What the documents say is true: commands run, flags, links and the files of the tree exist.

The ```sh blocks of these pages are run line by line, next to a small run of the digits. Commands
that need a download or a user's own files are plain indented text, which is not run.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.documents import DOCS, ROOT, blocks, command_lines, flags_of, quick

from torchmae import cli
from torchmae.verbs import VERBS

TRACED = {"onnx", "torch-export"}  # must be traced without the shape checks of the tests
NAMED = [DOCS / f"{name}.md" for name in ("finetune", "probe", "evaluate", "import", "export")]
PAGES = [page for page in NAMED if command_lines(page)]
TEXTS = [*ROOT.glob("*.md"), *DOCS.glob("*.md"), *(ROOT / "examples").glob("*.md")]
NOT_OURS = {  # flags of other programs in the documents, and of the command line itself
    *(
        "--nproc-per-node",
        "--onnx",
        "--save",
        "--help",
        "--debug",
        "--quick",
        "--preset",
        "--version",
        "--query",
        "--count",
    ),
}
GONE = {"CHANGELOG.md", "lab-notes.md"}  # these may name flags that are gone


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run: one epoch of a fifth of the digits."""
    out = tmp_path_factory.mktemp("docs") / "demo"
    line = ["pretrain", "digits?part=test", "--preset", "demo", "--out", str(out)]
    assert cli.main(quick(line)) == 0
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
    for line in command_lines(page):
        first, *words = shlex.split(line, comments=True)
        assert first == "mae", f"{page.name}: not a command of mae, so it must be indented: {line}"
        if TRACED & set(words):
            code = subprocess.run([sys.executable, "-m", "torchmae", *quick(words)]).returncode
        else:
            code = cli.main(quick(words))
        assert code == 0, f"{page.name}: {line}\n{capfd.readouterr().err}"


def test_flags_in_documents_exist() -> None:
    known = {flag for verb in VERBS for flag in flags_of(verb)} | NOT_OURS
    wrong = {
        f"{file.name}: {flag}"
        for file in TEXTS
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", file.read_text())
        if flag not in known and f"--{flag.removeprefix('--no-')}" not in known
        if file.name not in GONE
    }
    assert not wrong


def test_verbs_have_a_page() -> None:
    text = "".join(page.read_text().split("\n")[0] for page in DOCS.glob("*.md"))
    assert {verb for verb in VERBS if f"mae {verb}" not in text} == set()


def test_links_lead_somewhere() -> None:
    for file in TEXTS:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", file.read_text()):
            assert link.startswith("https://") or (file.parent / link).exists(), (
                f"{file.name}: {link}"
            )


def test_the_tree_of_the_architecture_is_the_package() -> None:
    """Every file has a caption; several folders in one line hold config.py and run.py each."""
    first, *lines = blocks(ROOT / "ARCHITECTURE.md", "")[0].splitlines()
    folders, drawn = [first.rstrip("/")], []
    for line in lines:
        match = re.match(r"( +)((?:[\w.]+/? )+) +\S", line)
        assert match, f"no caption: {line}"
        parents, names = folders[: len(match[1]) // 2], match[2].split()
        if len(names) > 1:
            drawn += ["/".join([*parents, n + f]) for n in names for f in ("config.py", "run.py")]
        elif names[0].endswith("/"):
            folders = [*parents, names[0].rstrip("/")]
        else:
            drawn.append("/".join([*parents, names[0]]))
    files = [path for path in (ROOT / "torchmae").rglob("*.py") if path.stat().st_size]
    assert sorted(drawn) == sorted(str(path.relative_to(ROOT)) for path in files)
