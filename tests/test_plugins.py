"""A user's own file, with real processes: it adds names and a verb, is stored in the run, and
loaded by later verbs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import torchmae
from torchmae.errors import UserError
from torchmae.plugins import load_plugin, load_run_plugins

PLUGIN = '''
from dataclasses import dataclass

import torch

import torchmae
from torchmae.models.masking import mask_from_order
from torchmae.models.targets import Pixels
from torchmae.settings.options import argument, option


def halves(noise, grid, ratio):
    """The left columns stay visible."""
    column = torch.arange(noise.shape[1], device=noise.device) % grid[1]
    return mask_from_order(column.expand(len(noise), -1).argsort(dim=1, stable=True), ratio)


class Doubled(Pixels):
    """Twice the pixels."""

    def forward(self, images, ids):
        return 2 * super().forward(images, ids)

    def to_pixels(self, prediction, statistics):
        return prediction / 2


@dataclass(frozen=True)
class Greet:
    """Say hello."""

    GROUP = "words"

    name: str = argument("whom", "NAME")
    times: int = option(1, "How often.")


def greet(config):
    print("hello", *[config.name] * config.times)


torchmae.MASKINGS["halves"] = halves
torchmae.TARGETS["doubled"] = Doubled
torchmae.SOURCES["mine"] = lambda spec: torchmae.SOURCES["folder"](spec)
torchmae.VERBS["greet"] = torchmae.Verb(Greet, greet, "say hello")
'''

TINY = (
    "--model vit_micro --image-size 16 --patch-size 4 --decoder-dim 32 --decoder-depth 1 "
    "--epochs 1 --batch-size 8 --device cpu"
).split()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A folder with images, a plugin beside them, and a run that was made with it."""
    place = tmp_path_factory.mktemp("plugin")
    shutil.copytree(photos, place / "photos")
    (place / "my_masks.py").write_text(PLUGIN)
    line = "pretrain mine:photos --out run --masking halves --target doubled --workers 1"
    done = mae(place, *line.split(), "--plugin", "my_masks.py", *TINY)
    assert done.returncode == 0, done.stderr
    return place


def mae(place: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "torchmae", *words]
    return subprocess.run(
        command,
        cwd=place,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(torchmae.__file__).parent.parent)},
    )


def test_the_plugin_is_stored_and_later_verbs_load_it(place):
    config = json.loads((place / "run/config.json").read_text())["config"]
    assert config["plugin"] == [str((place / "my_masks.py").resolve())]
    assert (config["masking"], config["target"]) == ("halves", "doubled")
    done = mae(place, "reconstruct", "run", "photos/blob/0.jpg", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    done = mae(place, "embed", "run", "mine:photos", "--device", "cpu")
    assert done.returncode == 0, done.stderr


def test_the_same_command_without_the_flag_resumes(place):
    line = "pretrain mine:photos --out run --masking halves --target doubled --workers 1"
    done = mae(place, *line.split(), *TINY)
    assert done.returncode == 0, done.stderr
    assert "is finished" in done.stdout


def test_a_verb_of_a_plugin(place):
    done = mae(place, "greet", "you", "--times", "2", "--plugin", "my_masks.py")
    assert (done.returncode, done.stdout) == (0, "hello you you\n"), done.stderr
    done = mae(place, "greet", "you")
    assert done.returncode == 2
    assert "unknown verb 'greet'" in done.stderr


def test_two_processes_with_a_plugin(place):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    words = "-m torchmae pretrain photos --out two --masking halves --workers 0".split()
    done = subprocess.run(
        [*command, *words, "--plugin", "my_masks.py", *TINY],
        cwd=place,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(torchmae.__file__).parent.parent)},
    )
    assert done.returncode == 0, done.stderr


def test_a_plugin_that_moved_is_named_and_can_be_given_again(place, tmp_path):
    shutil.copytree(place, tmp_path / "there")
    moved = tmp_path / "there"
    config = json.loads((moved / "run/config.json").read_text())
    config["config"]["plugin"] = [str(tmp_path / "gone/my_masks.py")]
    (moved / "run/config.json").write_text(json.dumps(config))
    (moved / "run/manifest.json").unlink()
    done = mae(moved, "embed", "run", "photos", "--device", "cpu")
    assert done.returncode == 2
    assert "was made with the plugin" in done.stderr
    assert "name its new place with --plugin" in done.stderr
    done = mae(moved, "embed", "run", "photos", "--device", "cpu", "--plugin", "my_masks.py")
    assert done.returncode == 0, done.stderr


def test_a_run_from_somebody_else_brings_no_code_along(place, tmp_path):
    """A file that this user never named with --plugin is not loaded, wherever it is."""
    shutil.copytree(place / "run", tmp_path / "run")
    evil = tmp_path / "run/evil_plugin.py"
    evil.write_text("raise SystemExit('loaded')")
    (tmp_path / "run/manifest.json").unlink()  # whoever edits a run can write another one
    config = json.loads((tmp_path / "run/config.json").read_text())
    for path in (str(evil), os.path.relpath(evil), f"/proc/self/cwd/{os.path.relpath(evil)}"):
        config["config"]["plugin"] = [path]
        (tmp_path / "run/config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match="which you have not used before"):
            load_run_plugins(tmp_path / "run")


def test_what_is_trained_from_a_run_has_its_plugin_too(place):
    """Once it was lost on the way, and the classifier could not be used."""
    words = "--labels-per-class 4 --epochs 1 --batch-size 6 --workers 0 --device cpu".split()
    done = mae(place, "finetune", "run", "photos", "--out", "tuned", *words)
    assert done.returncode == 0, done.stderr
    config = json.loads((place / "tuned/config.json").read_text())["config"]
    assert config["plugin"] == [str((place / "my_masks.py").resolve())]
    done = mae(place, "evaluate", "tuned", "photos", "--device", "cpu")
    assert done.returncode == 0, done.stderr


def test_plugins_that_cannot_be_loaded(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_plugin(str(tmp_path / "nowhere.py"))
    (tmp_path / "json.py").write_text("")
    with pytest.raises(UserError, match="'json' is not free"):
        load_plugin(str(tmp_path / "json.py"))
    (tmp_path / "broken_plugin.py").write_text("1 / 0")
    with pytest.raises(UserError, match="failed: ZeroDivisionError"):
        load_plugin(str(tmp_path / "broken_plugin.py"))
    assert "broken_plugin" not in sys.modules


def test_a_plugin_through_the_library(place, tmp_path):
    code = f"""
import my_masks, torchmae
run = torchmae.pretrain({str(place / "photos")!r}, out={str(tmp_path / "run")!r}, target="doubled",
    model="vit_micro", image_size=16, patch_size=4, decoder_dim=32, decoder_depth=1, epochs=1,
    batch_size=8, device="cpu", workers=0)
print(run.path)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=place,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(torchmae.__file__).parent.parent)},
    )
    assert done.returncode == 0, done.stderr
