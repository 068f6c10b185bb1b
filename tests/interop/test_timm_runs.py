"""`timm:NAME` where a run folder is read: weights from files, run folders, and what is made of
them."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.small import QUICK
from safetensors.torch import load_file, save_file

import torchmae
from torchmae.errors import UserError
from torchmae.interop.timm_runs import parse, run_folder
from torchmae.models.encoders.timm import TimmEncoder
from torchmae.models.weights import load_classifier
from torchmae.runfolder import read_config

SMALL = "timm:test_vit?random=0&image_size=32"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def theirs() -> Any:
    torch.manual_seed(3)
    return timm.create_model("test_vit", num_classes=5, img_size=32).eval()


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_of_weights(here: Path, theirs: Any, suffix: str) -> None:
    file = here / f"w{suffix}"
    state = theirs.state_dict()
    if suffix == ".pth":
        torch.save({"model": state}, file)  # with its head
    else:
        save_file(state, file)
    images = torch.randn(2, 3, 32, 32)
    ours = torchmae.load(f"timm:test_vit?checkpoint={file}&image_size=32")
    assert torch.equal(ours(images), theirs.forward_features(images))
    larger = torchmae.load(f"timm:test_vit?checkpoint={file}&image_size=64")
    theirs.set_input_size(img_size=(64, 64))
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(larger(images), theirs.forward_features(images))
    assert not (here / "runs").exists()  # reading leaves nothing behind


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["eva02_tiny_patch14_224", "test_vit2", "vit_small_patch16_dinov3"]
)
def test_a_file_of_other_families(here: Path, name: str) -> None:
    size = 28 if "14" in name else 32
    torch.manual_seed(3)
    theirs = timm.create_model(name, num_classes=2, img_size=size).eval()
    save_file(theirs.state_dict(), here / "w.safetensors")
    ours = torchmae.load(f"timm:{name}?checkpoint=w.safetensors&image_size={size}")
    images = torch.randn(2, 3, size, size)
    assert isinstance(ours, TimmEncoder)
    assert torch.equal(ours(images), theirs.forward_features(images)[:, ours.left_out :])


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


def test_files_that_are_none(here: Path, theirs: Any) -> None:
    torch.save({"model": Harmful()}, "harmful.pth")
    Path("text.safetensors").write_text("no")
    other = timm.create_model("test_vit3", num_classes=0, img_size=32)
    save_file(other.state_dict(), "other.safetensors")
    state = theirs.state_dict()
    state["blocks.0.mlp.fc1.weight"][0, 0] = float("nan")
    save_file(state, "nan.safetensors")
    for file, message in (
        ("harmful.pth", "wants to run code"),
        ("text.safetensors", "cannot be read as safetensors"),
        ("other.safetensors", "do not fit its model|are not those of test_vit"),
        ("nan.safetensors", "not finite"),
        ("nowhere.pth", "nowhere.pth does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            torchmae.knn(f"timm:test_vit?checkpoint={file}&image_size=32", "digits")
    assert not Path("harm").exists()
    assert not list(here.glob("runs/*"))


def test_the_run_folder_is_made_once(here: Path, theirs: Any, capsys: Any) -> None:
    made = run_folder(SMALL)
    assert made == Path("runs/timm-test_vit-random-0-32")
    config = read_config(made)
    assert config["model"]["encoder"]["kind"] == "timm"
    assert config["config"]["source"] == SMALL
    assert config["config"]["crop_pct"] == theirs.pretrained_cfg["crop_pct"]
    time = (made / "model.safetensors").stat().st_mtime_ns
    assert run_folder(SMALL) == made
    assert (made / "model.safetensors").stat().st_mtime_ns == time
    assert "made before" in capsys.readouterr().out
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        tokens = torchmae.load(made)(images)
        assert torch.equal(tokens, torchmae.load(SMALL)(images))  # of the seed alone
        other = torchmae.load(SMALL.replace("random=0", "random=1"))(images)
        assert not torch.equal(tokens, other)
    assert not list(Path("runs").glob(".*"))
    save_file(theirs.state_dict(), "w.safetensors")
    text = "timm:test_vit?checkpoint=w.safetensors"
    run_folder(text)
    save_file({n: w + 1 for n, w in theirs.state_dict().items()}, "w.safetensors")
    with pytest.raises(UserError, match=r"runs/timm-test_vit-w is not timm:.*move it away"):
        run_folder(text)


def test_every_verb_that_reads_features(photos: Path) -> None:
    found = torchmae.knn(SMALL, photos, device="cpu")
    assert found["run"] == "runs/timm-test_vit-random-0-32"
    assert 0 <= found["knn"]["features"]["accuracy"] <= 1
    torchmae.probe(SMALL, photos, fast=True, device="cpu")
    out = torchmae.embed("timm:test_vit3?random=0&image_size=32", photos, device="cpu")
    assert Path(out).is_file()
    run = torchmae.probe(SMALL, photos, device="cpu", epochs=1, batch_size=6, workers=0)
    assert load_classifier(run).pool == "cls"


@pytest.mark.parametrize("train", ["all", "2"])
def test_a_fine_tuned_encoder_of_timm_is_a_run_folder_like_any(
    photos: Path, here: Path, train: str
) -> None:
    options: dict[str, Any] = {**QUICK, "train": train, "drop_path": 0.5, "pool": "cls"}
    run = torchmae.finetune(SMALL, photos, out="a", **options)
    again = torchmae.finetune(SMALL, photos, out="b", **options)
    first, second = (load_file(folder / "model.safetensors") for folder in (run.path, again.path))
    assert all(torch.equal(first[name], second[name]) for name in first)
    still = torchmae.finetune(SMALL, photos, out="c", **{**options, "drop_path": 0.0})
    third = load_file(still.path / "model.safetensors")
    changed = {name for name in first if not torch.equal(first[name], third[name])}
    assert changed, "drop path did nothing"
    start = load_file("runs/timm-test_vit-random-0-32/model.safetensors")
    frozen = {n for n in start if torch.equal(start[n], first[n])}
    if train == "2":
        assert (
            "encoder.model.pos_embed" in frozen and "encoder.model.blocks.3.norm1.weight" in frozen
        )
        assert not any(".blocks.4." in n or n[-12:] == ".norm.weight" for n in frozen)
    else:
        assert frozen <= {n for n in start if "blocks" not in n}
    shutil.rmtree("runs")  # the run stands by itself, without timm's weights
    model = load_classifier(run)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = torchmae.load(run)(images)
        assert torch.equal(model.features(images), tokens[:, 0])
    torchmae.evaluate(run, photos, device="cpu")
    torchmae.predict(run, photos, out="p.csv", device="cpu")
    torchmae.embed(run, photos, out="f.npz", device="cpu")
    for form in ("timm", "onnx"):
        with pytest.raises(UserError, match="an encoder of timm, which is not exported"):
            torchmae.export(run, to=form, out="e")
    with pytest.raises(UserError, match=r"cannot skip patches.*mae import timm:test_vit"):
        torchmae.pretrain(photos, from_run=run, out="p", workers=0)


def test_from_scratch_with_the_architecture(photos: Path) -> None:
    run = run_folder("timm:test_vit3?random=0&image_size=32")
    made = torchmae.finetune("none", photos, model=run, out="s", **QUICK)
    encoder = torchmae.load(made)
    assert isinstance(encoder, TimmEncoder) and encoder.name == "test_vit3"


def test_a_hub_that_does_not_answer_is_given_up_within_seconds(here: Path) -> None:
    """One that accepts connections and says nothing; timm alone tries for nearly a minute."""
    code = """
import time
import timm, torchmae
began = time.monotonic()
try:
    torchmae.load("timm:test_vit")
except torchmae.errors.UserError as error:
    print(time.monotonic() - began, error)
"""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        env = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(here), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    seconds, _, said = done.stdout.strip().partition(" ")
    assert said.endswith("Without a network: timm:test_vit?checkpoint=FILE reads a local file")
    assert 4 < float(seconds) < 20  # 5, on a machine that does nothing else


def test_names_and_options() -> None:
    named = parse("timm:vit_base_patch16_224.mae?random=7&image_size=32x48")
    assert (named.name, named.random, named.image_size) == ("vit_base_patch16_224.mae", 7, (32, 48))
    assert str(named.folder) == "runs/timm-vit_base_patch16_224.mae-random-7-32x48"
    assert "downloaded" in parse("timm:vit_base_patch16_224").origin
    for text, message in (
        ("timm:vit_tiny", "timm has no model 'vit_tiny'"),
        ("timm:test_vit?chekpoint=a", "Did you mean checkpoint"),
        ("timm:test_vit?random", "not random"),
        ("timm:test_vit?random=-1", "random=-1 is no seed"),
        ("timm:test_vit?random=0&image_size=x", "--image-size x"),
        ("timm:resnet18", "no plain transformer"),
    ):
        with pytest.raises(UserError, match=message):
            parse(text)
    Path("w").touch()
    with pytest.raises(UserError, match="leave one out"):
        parse("timm:test_vit?random=0&checkpoint=w")


def line(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 2, done.stderr
    return done.stderr.strip()


def test_without_network_or_timm_one_line_says_so(here: Path) -> None:
    command = "import sys; from torchmae.cli import main; sys.exit(main(sys.argv[1:] or {}))"
    words = ["knn", "timm:vit_tiny_patch16_224", "digits"]
    offline = line(command.format(words), HF_HUB_OFFLINE="1", HF_HOME=str(here / "empty"))
    assert offline.startswith("mae: timm's weights of vit_tiny_patch16_224 could not be had (")
    assert offline.count("\n") == 0 and "?checkpoint=FILE" in offline
    absent = line(f"import sys; sys.modules['timm'] = None; {command.format(words)}")
    assert absent == 'mae: this needs the package "timm": pip install "torchmae[timm]"'
    assert not list(here.glob("runs/*"))
