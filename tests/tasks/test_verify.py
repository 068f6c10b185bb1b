"""mae verify names what is damaged; every other verb refuses it before anything is computed."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.small import QUICK
from safetensors.torch import load_file, save_file

import torchmae
from torchmae import cli
from torchmae.errors import RunError, UserError

STEP = "state/step-00000009"


def flip(path: Path, at: int = -3) -> None:
    """Another bit, in place."""
    with path.open("r+b") as file:
        file.seek(at, 2 if at < 0 else 0)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def states(run: Path, capfd: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Name to state, of the lines that `mae verify` prints."""
    capfd.readouterr()
    code = cli.main(["verify", str(run)])
    out, err = capfd.readouterr()
    lines = [line.split("  ", 1) for line in out.splitlines()]
    found = {name: rest.strip().partition(":")[0] for name, rest in lines}
    damaged = [name for name, state in found.items() if state == "damaged"]
    assert code == (1 if damaged else 0)
    if damaged:
        counted = f"{len(damaged)} of {len(found)} damaged ({', '.join(damaged)})"
        assert f"mae: {run}: {counted}" in err
    return found


def test_a_good_run_is_ok(own: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = ("manifest.json", "config.json", "model.safetensors", STEP)
    wanted = dict.fromkeys((*files, "log.jsonl", "bad-files.jsonl", "data.json"), "OK")
    assert states(own, capfd) == wanted
    assert {record["name"] for record in torchmae.verify(own)} == set(wanted)


def test_a_classifier_is_ok(classifier: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = states(classifier, capfd)
    assert set(found.values()) == {"OK"}
    assert {"best.safetensors", "results.json", "last.json", "best.json"} <= set(found)


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "config flipped": ("config.json", lambda run: flip(run / "config.json", 100)),
    "weights flipped": ("model.safetensors", lambda run: flip(run / "model.safetensors")),
    "weights missing": ("model.safetensors", lambda run: (run / "model.safetensors").unlink()),
    "checkpoint flipped": (STEP, lambda run: flip(run / STEP / "optimizer.safetensors")),
    "checkpoint empty": (STEP, lambda run: [file.unlink() for file in (run / STEP).iterdir()]),
    "bytes in the log": ("log.jsonl", lambda run: append(run / "log.jsonl", b"\xff\n")),
    "half a line": ("bad-files.jsonl", lambda run: append(run / "bad-files.jsonl", b'{"file": ')),
    "results cut": ("results.json", lambda run: (run / "results.json").write_text('{"res')),
}


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_named(own: Path, capfd: pytest.CaptureFixture[str], damage: str) -> None:
    name, work = DAMAGES[damage]
    work(own)
    found = states(own, capfd)
    assert [n for n, state in found.items() if state == "damaged"] == [name]
    with pytest.raises(RunError, match="Restore them from a copy"):
        torchmae.verify(own)


def test_weights_that_are_not_finite_are_damaged_whatever_their_hash(
    own: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(own / "model.safetensors")
    weights["encoder.norm.bias"][0] = torch.nan
    save_file(weights, own / "model.safetensors")
    (own / "manifest.json").unlink()
    assert states(own, capfd)["model.safetensors"] == "damaged"
    with pytest.raises(UserError, match=r"not finite \(norm.bias, 1 of"):
        torchmae.load(own)


def test_a_run_of_an_earlier_version_is_read_and_resuming_it_writes_the_manifest(
    own: Path, run: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (own / "manifest.json").unlink()
    found = states(own, capfd)
    unlisted = ("manifest.json", "config.json", "model.safetensors")
    assert {name for name, state in found.items() if state == "not listed"} == set(unlisted)
    torchmae.load(own)
    torchmae.pretrain(photos, out=own)
    assert (own / "manifest.json").read_bytes() == (run / "manifest.json").read_bytes()
    assert set(states(own, capfd).values()) == {"OK"}


def test_a_folder_that_is_no_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(tmp_path)]) == 2
    assert "is not a run folder" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "manifest.json"])
def test_no_flipped_bit_is_used(own: Path, name: str) -> None:
    """60 single bits, anywhere."""
    dice, path = random.Random(0), own / name
    good = path.read_bytes()
    for _ in range(60):
        data = bytearray(good)
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"is damaged|is not what torchmae wrote"):
            torchmae.load(own)
    path.write_bytes(good)
    torchmae.load(own)


def test_every_verb_refuses_a_flipped_bit_unless_told_otherwise(
    own: Path, classifier: Path, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image, out = str(photos / "blob/0.jpg"), str(tmp_path / "out")
    other = shutil.copytree(classifier, tmp_path / "classifier")
    flip(own / "model.safetensors")
    flip(other / "model.safetensors")
    flip(other / "best.safetensors")
    cpu = ["--device", "cpu"]
    commands = [
        ["embed", str(own), str(photos), "--out", f"{out}.npz", *cpu],
        ["knn", str(own), str(photos), *cpu],
        ["probe", str(own), str(photos), "--fast", *cpu],
        ["reconstruct", str(own), image, "--out", f"{out}.png", *cpu],
        ["evaluate", str(other), str(photos), *cpu],
        ["evaluate", str(other), str(photos), "--best", *cpu],
        ["predict", str(other), str(photos), "--out", f"{out}.csv", *cpu],
        ["export", str(own), "--to", "safetensors", "--out", f"{out}-export"],
        ["finetune", str(own), str(photos), "--out", f"{out}-f", *cpu],
        ["pretrain", str(photos), "--from", str(own), "--out", f"{out}-p", *cpu],
    ]
    for command in commands:
        assert cli.main(command) == 2, command
        err = capfd.readouterr().err
        assert "is not what torchmae wrote" in err, command
        assert "--no-verify" in err
    assert not list(tmp_path.glob("out*.*"))
    assert cli.main([*commands[0], "--no-verify"]) == 0
    assert cli.main([*commands[4], "--no-verify"]) == 0
    assert isinstance(torchmae.load(own, verify=False), torch.nn.Module)


def test_an_edited_config_is_read_when_it_is_asked_for(
    classifier: Path, photos: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(classifier, tmp_path / "own")
    config = json.loads((own / "config.json").read_text())
    config["model"]["classes"] = ["x", "y", "z"]
    (own / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="it was damaged, or edited"):
        torchmae.load_classifier(own)
    assert torchmae.load_classifier(own, verify=False).classes == ("x", "y", "z")


def test_a_repeated_command_repairs_published_weights(
    own: Path, run: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flip(own / "model.safetensors")
    torchmae.pretrain(photos, out=own)
    assert (own / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert set(states(own, capfd).values()) == {"OK"}


def test_a_training_that_ends_badly_publishes_nothing(
    run: Path, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Fewer steps than the five in a row that end a longer one; the first moves weights too far."""
    out = tmp_path / "f"
    few = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    command = ["finetune", str(run), str(photos), "--out", str(out), *few, "--base-lr", "1e30"]
    assert cli.main([*command, "--epochs", "1"]) == 65
    assert "not finite" in capfd.readouterr().err
    assert not list(out.glob("*.safetensors"))
