"""The scripts in examples/ run as they are, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SHOWN = {  # what the last lines of each script must contain
    "first_look": ["of the visible mean", "untrained encoder", "tokens of two images: (2, 65, "],
    "arrays_and_pipelines": ["images: (1797, 32, 32) uint8", "features: ", "raw pixels: "],
    "pretrain_and_search": ["nearest to ", ".png"],
    "finetune_few_labels": ["pre-trained: ", "from scratch: ", "95 % interval"],
    "custom_masking": ["random: k-NN ", "stripes: k-NN "],
}


def test_every_example_is_tested_and_listed() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts == set(SHOWN)
    assert all(f"({name}.py)" in (EXAMPLES / "README.md").read_text() for name in scripts)


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--quick"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,  # seconds are usual; a busy machine is not a failure
    )
    assert done.returncode == 0, done.stderr
    assert all(words in done.stdout for words in SHOWN[name]), done.stdout
