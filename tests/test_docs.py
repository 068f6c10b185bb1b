"""What the documents say is true: commands run, flags, links and the files of the tree exist.

Every ```sh block of docs/ is run, line by line, and the ```python blocks between them, in a folder
with small runs and pictures of the names that the pages use. A block that cannot run here says so
in its first line, with the reason (`NOT_RUN` below has all of them).
"""

import ast
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.documents import DOCS, ROOT, blocks, fenced, flags_of, quick
from helpers.label_maps import make_shapes
from helpers.objects import coco_set
from helpers.small import make_photos
from helpers.sources import noise
from PIL import Image

import torchmae
from torchmae import cli
from torchmae.data import decode
from torchmae.verbs import VERBS

TRACED = {"onnx", "torch-export"}  # must be traced without the shape checks of the tests
PAGES = sorted(
    page
    for page in DOCS.glob("*.md")
    if page.name != "extending.md"  # tests/test_extending.py runs it
    and any(block.language == "sh" and not block.not_run for block in fenced(page))
)
NOT_RUN = {  # block by block: a new one is added here on purpose
    "ablate.md": ["each takes hours"],
    "compare.md": ["needs a network; tests/tasks/test_sweep.py compares small ones"],
    "encoders.md": ["needs a network; tests/interop/test_timm_runs.py runs what does not"],
    "evaluate.md": [
        "needs the published sets; tests/tasks/test_evaluate.py measures small ones of the same "
        "layout"
    ],
    "export.md": [
        "needs npm's onnxruntime-web; tests/tasks/test_export.py exports and opens these"
    ],
    "finetune.md": [
        "needs ImageNet and days of 8 GPUs; tests/presets builds every recipe",
        "needs iNaturalist and days of 8 GPUs; tests/presets builds every recipe",
    ],
    "import.md": ["needs files of hundreds of megabytes from other people's servers"],
    "probe.md": ["needs ImageNet and days of 8 GPUs; tests/presets builds every recipe"],
    "detect.md": ["needs COCO and days of 8 GPUs; tests/presets builds every recipe"],
    "segment.md": ["needs ADE20K and days of 8 GPUs; tests/presets builds every recipe"],
    "speed.md": ["tests/benchmarks/test_dense.py runs it"],
    "serve.md": ["it serves until Ctrl-C; tests/tasks/test_serve.py clicks through it"],
    "quickstart.md": ["creates .venv and takes minutes"],
}
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
}
COMMANDS = "mae|torchrun|python|pip|make|sbatch|[.]venv/bin/[a-z]+"
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
        "--bind",
        "--directory",
        "--count",
    ),
    *("--job-name", "--gpus-per-node", "--cpus-per-task", "--time", "--requeue", "--open-mode"),
    "--signal",
    "--backend-store-uri",  # of MLflow
}
GONE = {"CHANGELOG.md", "lab-notes.md"}  # these may name flags that are gone


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run: one epoch of a fifth of the digits."""
    out = tmp_path_factory.mktemp("docs") / "demo"
    line = ["pretrain", "digits?part=test", "--preset", "demo", "--out", str(out)]
    assert cli.main(quick(line)) == 0
    return out


@pytest.fixture
def place(run: Path, photos: Path, tmp_path: Path) -> Path:
    """A folder with what the pages name: runs, photos, single pictures."""
    shutil.copytree(run, tmp_path / "runs" / "photos")
    for name in ("photos", "labelled", "other", "other-labelled"):
        shutil.copytree(photos, tmp_path / name)
    for i, name in enumerate(("cat.jpg", "dog.jpg")):
        shutil.copy(photos / "blob" / f"{i}.jpg", tmp_path / name)
    Image.fromarray(np.eye(4, dtype=np.uint8) * 255).save(tmp_path / "mask.png")
    return tmp_path


def plant_flowers(place: Path) -> None:
    """Classes under two sets of names, and the pairs that evaluate.md shows."""
    make_photos(place / "flowers", 5)
    pairs = re.search(r"`(\{.*?\})` in `names.json`", (DOCS / "evaluate.md").read_text())
    assert pairs is not None
    (place / "names.json").write_text(pairs[1])
    for theirs, ours in zip(json.loads(pairs[1]).items(), ("across", "down")):
        (place / "flowers" / ours).rename(place / "flowers" / theirs[1])
        shutil.copytree(place / "flowers" / theirs[1], place / "holiday-pictures" / theirs[0])


def plant_table(place: Path) -> None:
    """The tables of finetune.md: pictures, their classes, four patients of each class; those of
    iNaturalist."""
    lines = ["picture,finding,patient"]
    for image in sorted((place / "photos").rglob("*.jpg")):
        kind = image.parent.name
        lines.append(f"photos/{kind}/{image.name},{kind},{kind}-{int(image.stem) % 4}")
    (place / "table.csv").write_text("\n".join(lines))
    for part in ("train", "val"):  # the annotations of iNaturalist
        files = [str(image.relative_to(place)) for image in (place / "photos").rglob("*.jpg")]
        facts = {
            "images": [{"id": 7 + i, "file_name": name} for i, name in enumerate(files)],
            "annotations": [
                {"image_id": 7 + i, "category_id": len(Path(name).parent.name)}
                for i, name in enumerate(files)
            ],
        }
        (place / f"{part}2018.json").write_text(json.dumps(facts))


def plant_streets(place: Path) -> None:
    """Images with masks of segment.md."""
    make_shapes(place / "streets", 4, 2)


PLANTS: dict[str, Callable[[Path], object]] = {
    "evaluate.md": plant_flowers,
    "finetune.md": plant_table,
    "quickstart.md": lambda place: shutil.rmtree(place / "runs" / "photos"),  # it makes its own
    "segment.md": plant_streets,
    "detect.md": lambda place: coco_set(place / "cells", {"train": 4, "val": 2}, least=1),
}


def batches() -> list[torch.Tensor]:
    """What own-loop.md calls a loader."""
    return [torch.from_numpy(noise(4, 3, 32, 32)) for _ in range(4)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(
    page: Path,
    place: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    if "runs/demo" in page.read_text():
        shutil.copytree(request.getfixturevalue("demo"), place / "runs" / "demo")
    PLANTS.get(page.name, lambda _: None)(place)
    images = {"pixels": noise(2, 1, 32, 32), "images": torch.randn(2, 1, 32, 32)}  # digits
    names = {"loader": batches(), **images}
    for block in fenced(page):
        script = re.match(r"# (\w+[.]py)\n", block.text)
        if block.not_run or block.text.startswith(("#!", "# with ")):
            continue  # scripts and loops of other libraries have tests of their own
        elif block.language == "python" and script:
            Path(script[1]).write_text(block.text)
        elif block.language == "python":
            with torch.enable_grad():
                exec(compile(block.text, page.name, "exec"), names)
        elif block.language == "sh":
            for line in block.lines:
                code = run_line(shlex.split(line, comments=True))
                assert code == 0, f"{page.name}: {line}\n{capfd.readouterr().err}"


def run_line(words: list[str]) -> int:
    """The exit code of one command of a page, made short."""
    first, *words = words
    torch_module = [sys.executable, "-m"]
    if first == "torchrun":
        at = words.index("torchmae") + 1
        words = [*quick(words[at:]), "--batch-size", "8"]
        words = ["vit_micro" if word == "vit_large" else word for word in words]
        command = [*torch_module, "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        return subprocess.run([*command, "-m", "torchmae", *words], env=ENVIRONMENT).returncode
    if first == "python":
        words = ["4" if word.isdigit() and int(word) > 8 else word for word in words]
        return subprocess.run([sys.executable, *words], env=ENVIRONMENT).returncode
    assert first in ("mae", ".venv/bin/mae"), f"what is {first}?"
    if TRACED & set(words) or words[0] == "bench":
        command = [*torch_module, "torchmae", *quick(words)]
        return subprocess.run(command, env=ENVIRONMENT).returncode
    return cli.main(quick(words))


def test_every_shell_block_is_run_or_says_why_not() -> None:
    found: dict[str, list[str]] = {}
    for page in DOCS.glob("*.md"):
        for block in fenced(page):
            if block.not_run is not None:
                found.setdefault(page.name, []).append(block.not_run)
        outside = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        hidden = re.findall(rf"^(?: {{4}}|\t)(?:{COMMANDS}) .*", outside, re.MULTILINE)
        assert not hidden, f"{page.name}: commands belong into a ```sh block: {hidden}"
        assert {block.language for block in fenced(page)} <= {"sh", "python", ""}, page.name
    assert found == NOT_RUN


def test_the_loop_of_ones_own_has_12_lines_and_learns() -> None:
    code = fenced(DOCS / "own-loop.md")[0].text
    assert len([line for line in code.splitlines() if line.strip()]) == 12
    torch.manual_seed(0)
    pictures = torch.linspace(0, 255, 32).to(torch.uint8).expand(8, 3, 32, 32)
    losses: list[float] = []
    code = code.replace(
        "    optimizer.step()",
        "    losses.append(float(output.loss.detach()))\n    optimizer.step()",
    )
    exec(code, {"loader": [pictures] * 40, "losses": losses})
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("library", ["lightning", "accelerate"])
def test_the_loops_of_other_libraries_train(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    (code,) = (
        block.text
        for block in fenced(DOCS / "own-loop.md")
        if f"pip install {library}" in block.text.partition("\n")[0]
    )
    pictures = torch.linspace(0, 255, 32).to(torch.uint8).expand(16, 3, 32, 32)
    loader = torch.utils.data.DataLoader(pictures, batch_size=8)
    names: dict[str, Any] = {"torch": torch, "torchmae": torchmae, "loader": loader}
    torch.manual_seed(0)
    sizes = dict(patch_size=4, embed_dim=128, depth=4, num_heads=4)
    before = torchmae.MAE(torchmae.ViT((32, 32), **sizes)).encoder.blocks[0].mlp.fc1.weight
    torch.manual_seed(0)
    with torch.enable_grad():
        exec(compile(code, "own-loop.md", "exec"), names)
    moved = (names["model"].encoder.blocks[0].mlp.fc1.weight.cpu() - before).abs().max()
    assert 5e-4 < moved < 5e-3  # two steps of 1e-3


def test_the_page_about_pixels_has_every_row_of_decode() -> None:
    """The table of decode.py, in the spelling of the documents."""
    page = (DOCS / "pixels.md").read_text()
    rows = re.findall(r"^\| (.+?) +\| .+\|$", decode.__doc__ or "", re.MULTILINE)
    assert len(rows) > 8
    american = {"grey": "gray", "colour": "color", "damaged, large": "damaged, too large"}
    for row in rows:
        for ours, theirs in american.items():
            row = row.replace(ours, theirs)
        assert f"| {row} |" in page, f"pixels.md has no row '{row}'"


def test_the_slurm_script_requeues_at_the_limit_and_ends_when_done(
    photos: Path, tmp_path: Path
) -> None:
    """The script itself in bash; `scontrol` is SLURM's, so a file stands for it."""
    (script,) = [block.text for block in fenced(DOCS / "slurm.md") if block.text[:2] == "#!"]
    small = "--epochs 60 --log-every 1 --model vit_micro --image-size 32 --patch-size 8"
    small += " --batch-size 8 --workers 0 --device cpu --decoder-dim 32 --decoder-depth 1"
    (tmp_path / "mae.sbatch").write_text(script.replace("--epochs 400", small))
    shutil.copytree(photos, tmp_path / "photos")
    commands = {
        "mae": f'exec {sys.executable} -m torchmae "$@"',
        "scontrol": f'echo "$@" >> {tmp_path}/requeued',
    }
    for name, line in commands.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = ENVIRONMENT | {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
    }
    job = ["bash", "mae.sbatch"]
    log = tmp_path / "runs" / "photos" / "log.jsonl"
    with subprocess.Popen(job, cwd=tmp_path, env=environment) as process:
        while process.poll() is None and not (log.exists() and log.stat().st_size):
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(120) == 0
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert list((tmp_path / "runs" / "photos" / "state").glob("step-*"))
    assert json.loads(log.read_text().splitlines()[-1])["step"] < 180
    assert subprocess.run(job, cwd=tmp_path, env=environment, timeout=240).returncode == 0
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"  # it ended by itself
    assert json.loads(log.read_text().splitlines()[-1])["step"] == 180


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


def test_texts_for_people_have_one_spelling() -> None:
    """That of the United States, as in most of them: documents, messages, help."""
    british = re.compile(
        r"\b[Gg]rey(?:s|ed|scale)?\b|[Cc]olour|[a-z]alis(?:e|ing|ation)|eighbour|\b[Cc]entred?\b|"
        r"[Bb]ehaviour|[Ll]icence|(?:recogn|organ|optim|summar|standard)is(?:e|ing|ation)"
    )
    words = {file.name: re.sub("`[^`]*`", "", file.read_text()) for file in TEXTS}
    wrong = [name for name, text in words.items() if british.search(text)]
    for path in (ROOT / "torchmae").rglob("*.py"):
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and id(node) not in docstrings and british.search(text):
                wrong.append(f"{path.name}:{node.lineno}")
    assert not wrong


def test_the_raw_files_behind_a_page_are_committed() -> None:
    for page in DOCS.glob("*.md"):
        for name in re.findall(r"`(bench/results/[^`]+)`", page.read_text()):
            assert list(ROOT.glob(name)), f"{page.name} names {name}"


def test_verbs_have_a_page() -> None:
    text = "".join(page.read_text().split("\n")[0] for page in DOCS.glob("*.md"))
    assert {verb for verb in VERBS if f"mae {verb}" not in text} == set()


def test_links_lead_somewhere() -> None:
    for file in TEXTS:
        text = re.sub(
            r"^```.*?^```|`[^`\n]*`", "", file.read_text(), flags=re.DOTALL | re.MULTILINE
        )
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
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
