"""mae doctor finds each thing that is broken on purpose, and ends with exit code 1."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.label_maps import make_shapes
from helpers.objects import coco_set
from helpers.small import make_photos
from PIL import Image
from safetensors.torch import load_file, save_file

import torchmae
from torchmae import cli
from torchmae.errors import RunError
from torchmae.settings.groups import SplitListingOptions
from torchmae.tasks.doctor import machine, training
from torchmae.tasks.doctor.line import OK, WRONG, Line
from torchmae.tasks.doctor.training import overfit, position_line, positions, small_model

CPU = torch.device("cpu")


# The machine.


def test_a_good_machine_is_ok(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = torchmae.doctor(device="cpu")
    names = "versions device bf16 cores memory disk decoding positions learning resuming"
    assert [one["name"] for one in found] == names.split()
    assert {one["state"] for one in found} <= {"ok", "note"}
    assert "bit for bit" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_old_and_broken_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.versions().state == OK
    monkeypatch.setattr(machine, "requires", lambda name: ["torch>=99.1", "numpy>=1.0"])
    assert "is older than 99.1" in machine.versions().about
    monkeypatch.setattr(machine, "version", lambda name: "1.2.3")
    monkeypatch.setattr(machine, "BROKEN", {"pillow 1.2.3": "turns images"})
    assert "pillow 1.2.3 turns images" in machine.versions().about
    assert machine.versions().state == WRONG


def test_a_device_that_computes_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "product_error", lambda device, dtype: 0.5)
    assert machine.arithmetic(CPU).state == machine.half_precision(CPU).state == WRONG


def test_little_memory_and_bad_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LEAST_MEMORY", 1e18)
    assert machine.memory().state == WRONG
    assert machine.disk(tmp_path).state in (OK, "note")
    assert machine.disk(tmp_path / "gone").state == WRONG
    monkeypatch.setattr(machine, "LEAST_MB_PER_S", 1e9)
    assert "save less often" in machine.disk(tmp_path).about


def test_decoders_that_differ_from_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert training.decoders().state == OK
    right = training.decode
    monkeypatch.setattr(training, "decode", lambda data: right(data) ^ np.uint8(data[:2] == b"BM"))
    assert training.decoders() == Line(
        "decoding",
        WRONG,
        "not Pillow's pixels: BMP (RGB), BMP (L): install the versions of pillow and simplejpeg "
        "again",
    )


def test_positions_that_are_zero_or_equal() -> None:
    model = small_model()
    assert positions(model).state == OK
    for rows in (torch.zeros(4, 8), torch.ones(4, 8), torch.full((4, 8), torch.nan)):
        assert position_line(rows, "").state == WRONG


def test_a_model_that_cannot_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert overfit(small_model(), CPU).state == OK
    monkeypatch.setattr(training, "LR", 0.0)
    assert overfit(small_model(), CPU).state == WRONG


def test_a_resume_that_loses_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer's moments are lost between two trainings."""
    from torchmae.train.trainer import Trainer

    load = Trainer.load

    def forgetful(self, model, optimizer, metadata):
        load(self, model, {name: value * 0.5 for name, value in optimizer.items()}, metadata)

    monkeypatch.setattr(Trainer, "load", forgetful)
    assert training.resuming(CPU).state == WRONG


# A run.


def lines_of(run: Path, *options: str) -> dict[str, list[tuple[str, str]]]:
    """(state, about) of the lines by name, and whether the exit code agrees.

    Args:
        run: its folder.
        options: the images, and patterns of those that are left out.
    """
    said: list[Line] = []
    from torchmae.tasks.doctor.patient import patient

    data, *exclude = options or (None,)
    said = list(patient(run, data, SplitListingOptions(exclude=tuple(exclude) or None), CPU))
    more = [*(["--data", data] if data else []), *(["--exclude", *exclude] if exclude else [])]
    code = cli.main(["doctor", str(run), "--device", "cpu", *more])
    assert code == (1 if any(line.state == WRONG for line in said) else 0)
    found: dict[str, list[tuple[str, str]]] = {}
    for name, state, about in said:
        found.setdefault(name, []).append((state, about))
    return found


def wrong(found: dict[str, list[tuple[str, str]]]) -> list[str]:
    return [name for name, lines in found.items() if any(state == WRONG for state, _ in lines)]


@pytest.fixture
def learned(own: Path) -> Path:
    """A run whose log says that it learned: 9 steps have not."""
    records = [json.loads(line) for line in (own / "log.jsonl").read_text().splitlines()]
    for record in records:
        if "loss" in record:
            record |= {"loss": 0.1, "wait": 0.0}
    (own / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    edit(own, batch_size=32, base_lr=1.5e-4 * 128**0.75)
    return own


def edit(run: Path, **settings: object) -> None:
    """Other settings, published as torchmae does."""
    from torchmae import manifest

    config = json.loads((run / "config.json").read_text())
    config["config"] |= settings
    partial = run / ".config.json.partial"
    partial.write_text(json.dumps(config))
    manifest.publish(run, {"config.json": partial}, ("config.json", "model.safetensors"))


def publish(run: Path, **changes: torch.Tensor) -> None:
    """Other weights, published as torchmae does."""
    from torchmae import manifest

    weights = load_file(run / "model.safetensors")
    partial = run / ".model.safetensors.partial"
    save_file({**weights, **changes}, partial)
    manifest.publish(run, {"model.safetensors": partial}, ("config.json", "model.safetensors"))


def test_a_good_run_is_ok(learned: Path) -> None:
    found = lines_of(learned)
    assert wrong(found) == []
    assert set(found) == {
        "files",
        "training",
        "weights",
        "positions",
        "statistics",
        "features",
        "leakage",
    }


BREAKS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a flipped bit": (
        "files",
        lambda run: (run / "model.safetensors").write_bytes(
            (run / "model.safetensors").read_bytes()[:-1] + b"\x7f"
        ),
        "model.safetensors",
    ),
    "half a config.json": (
        "files",
        lambda run: (run / "config.json").write_bytes((run / "config.json").read_bytes()[:99]),
        "config.json",
    ),
    "weights not finite": (
        "weights",
        lambda run: publish(run, **{"encoder.norm.bias": torch.full((128,), torch.nan)}),
        "not finite",
    ),
    "no positions": (
        "positions",
        lambda run: publish(run, **{"encoder.pos_embed": torch.zeros(1, 17, 128)}),
        "they are zero",
    ),
    "constant features": (
        "features",
        lambda run: publish(run, **{"encoder.norm.weight": torch.zeros(128)}),
        "the same for all images",
    ),
    "learning rate": ("training", lambda run: edit(run, base_lr=3.0), "far from the recipe"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_broken_is_found(learned: Path, name: str) -> None:
    line, damage, message = BREAKS[name]
    damage(learned)
    found = lines_of(learned)
    assert line in wrong(found)
    assert any(message in about for state, about in found[line] if state == WRONG)


def test_features_of_a_few_directions_are_a_collapse(learned: Path, tmp_path: Path) -> None:
    """Five of 128: more than two, and too few for 200 images."""
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (200, 4, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", coarse.repeat(8, axis=1).repeat(8, axis=2))
    weight, bias = torch.zeros(128), torch.zeros(128)
    weight[:5] = 1
    publish(learned, **{"encoder.norm.weight": weight, "encoder.norm.bias": bias})
    ((state, about),) = lines_of(learned, str(tmp_path / "x.npy"))["features"]
    value = float(about.partition("RankMe ")[2].split()[0])
    assert state == WRONG and 2 < value <= 5.05 and "of at most 128: they are nearly" in about


def test_a_run_that_has_not_learned(own: Path) -> None:
    assert "training" in wrong(lines_of(own))
    with pytest.raises(RunError, match="are WRONG: .*training") as error:
        torchmae.doctor(own, device="cpu")
    assert str(error.value).count("training") == 1 and "(2 lines)" in str(error.value)


def test_leakage_of_a_segmenter_whose_masks_are_no_images(learned: Path, tmp_path: Path) -> None:
    shapes = make_shapes(tmp_path / "shapes", 4, 2)
    for name, end in (("images", "jpg"), ("masks", "png")):
        copy = shapes / "train" / name / f"x.{end}"
        shutil.copy(shapes / "val" / name / f"0.{end}", copy)
    small = {"epochs": 1, "batch_size": 2, "head": "linear", "workers": 0, "device": "cpu"}
    run = torchmae.segment(learned, shapes, out=tmp_path / "run", **small).path
    found = lines_of(run)
    assert "data" not in found and found["statistics"][0][0] in ("ok", "note")
    ((state, about),) = found["leakage"]
    assert state == WRONG and "1 image is a copy of an image of another part" in about
    other = lines_of(run, str(shapes / "train" / "images"))
    assert other["statistics"][0][0] in ("ok", "note") and "leakage" not in wrong(other)


def test_a_detector_s_own_split_is_looked_at(tmp_path: Path) -> None:
    from torchmae.data.config import DecodeOptions, Listing
    from torchmae.tasks.doctor.patient import annotated_or_plain

    boxes = coco_set(tmp_path / "boxes", {"train": 3, "val": 2})
    config = {"model": {"detector": {}}, "config": {"val_fraction": 0.2, "seed": 0}}
    config["model"] |= {"encoder": {}}
    found = annotated_or_plain(config, None, str(boxes), DecodeOptions(), Listing())
    assert [len(source) for source in found[0]] == [3, 2]
    assert found[1] == ["train"] * 3 + ["val"] * 2


def test_other_images(learned: Path, tmp_path: Path) -> None:
    for i in range(6):
        dark = np.random.default_rng(i).integers(0, 12, (40, 40, 3), dtype=np.uint8)
        (tmp_path / "dark").mkdir(exist_ok=True)
        Image.fromarray(dark).save(tmp_path / "dark" / f"{i}.png")
    found = lines_of(learned, str(tmp_path / "dark"))
    assert "statistics" in wrong(found)
    make_photos(tmp_path / "dark", 4)
    assert "statistics" not in wrong(lines_of(learned, str(tmp_path / "dark"), "?.png"))
    missing = lines_of(learned, str(tmp_path / "gone"))
    assert missing["data"][0][0] == "note" and wrong(missing) == []


def test_leakage_of_a_classifier(run: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "set" / "train", 6)
    make_photos(tmp_path / "val", 2)
    for name in ("across", "down", "blob"):
        (tmp_path / "set" / "val" / name).mkdir(parents=True)
        shutil.copy(photos / name / "0.jpg", tmp_path / "set" / "val" / name / "x.jpg")
    out = torchmae.finetune(
        run, tmp_path / "set", out=tmp_path / "c", epochs=1, batch_size=6, workers=0, device="cpu"
    )
    ((state, about),) = lines_of(Path(out))["leakage"]
    assert state == WRONG and "3 images are copies" in about


def test_mistakes_are_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for words in (["doctor", str(tmp_path)], ["doctor", "--data", str(tmp_path)]):
        assert cli.main(words) == 2
        assert capfd.readouterr().err.count("\n") == 1
