"""mae plan: what it measures is there, what it computes follows from it, what it prints can be
typed."""

import json
import re
import shlex
from pathlib import Path

import pytest
from helpers.documents import DOCS

import torchmae
from torchmae import cli
from torchmae.errors import UserError
from torchmae.models.weights import load_mae
from torchmae.runfolder import checkpoints

SMALL = dict(image_size=32, patch_size=8, batch_size=8, workers=0, device="cpu", seconds=0.1)


@pytest.fixture(scope="module")
def made(photos: Path, tmp_path_factory: pytest.TempPathFactory):
    """The result, the file, and what was in the current folder."""
    place = tmp_path_factory.mktemp("plan")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        result = torchmae.plan(
            photos, hours=1, models=["vit_micro", "vit_tiny"], out="plan.json", **SMALL
        )
    return place, result


def test_it_measures_each_size_and_leaves_its_file_alone(made) -> None:
    place, result = made
    assert [path.name for path in place.iterdir()] == ["plan.json"]
    assert json.loads((place / "plan.json").read_text()) == json.loads(json.dumps(result))
    micro, tiny = result["candidates"]
    assert (micro["model"], tiny["model"]) == ("vit_micro", "vit_tiny")
    assert micro["measured"]["images_per_s"] > tiny["measured"]["images_per_s"]
    assert micro["measured"]["peak_memory_mb"] > 50
    assert micro["measured"]["joules_per_step"] is None, "a CPU does not tell"
    assert micro["computed"]["kwh"] is None


def test_what_it_prints_is_a_training_of_that_length_and_size(
    made, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint has the bytes that were computed (their files have headers besides)."""
    _, result = made
    words = shlex.split(result["command"].partition("pretrain ")[2])
    settings = dict(zip(words[1::2], words[2::2]))
    assert words[0] == str(photos) and settings["--model"] == result["takes"]
    assert float(settings["--epochs"]) == result["epochs"]
    assert (settings["--image-size"], settings["--patch-size"]) == ("32", "8")
    words[words.index("--epochs") + 1] = "1"
    monkeypatch.chdir(tmp_path)
    assert cli.main(["pretrain", *words, "--out", "run"]) == 0
    (state, *_) = checkpoints(tmp_path / "run")
    size = sum(
        (state / name).stat().st_size for name in ("model.safetensors", "optimizer.safetensors")
    )
    taken = next(c for c in result["candidates"] if c["model"] == result["takes"])
    assert taken["computed"]["checkpoint_bytes"] == pytest.approx(size, rel=0.03)
    assert load_mae("run").encoder.embed_dim == {"vit_micro": 128, "vit_tiny": 192}[result["takes"]]


def test_the_time_adds_up(made) -> None:
    """The sum of what was measured is the time, and fills the hours."""
    _, result = made
    for candidate in result["candidates"]:
        measured, computed = candidate["measured"], candidate["computed"]
        steps = round(computed["epochs"] * 24 / 8)
        training = 3 * measured["seconds_per_first_step"]
        training += (steps - 3) * measured["seconds_per_step"]
        extra = (1 + training // 180) * measured["seconds_per_picture"]  # every 3 minutes
        extra += (1 + training // 300) * computed["seconds_per_checkpoint"]
        expected = measured["seconds_to_start"] + training + extra
        assert computed["seconds"] == pytest.approx(expected, rel=1e-6)
        full = computed["epochs"] == 1600
        assert full or 0.9 * 3600 < computed["seconds"] <= 3600


def test_sizes_are_measured_until_one_is_too_slow(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 3 minutes, of which a process takes some to start; how far it comes is the machine's."""
    monkeypatch.chdir(tmp_path)
    result = torchmae.plan(photos, hours=0.05, **{**SMALL, "batch_size": 1, "image_size": 64})
    candidates = result["candidates"]
    fits = [one["computed"]["epochs"] >= one["computed"]["wanted_epochs"] for one in candidates]
    names = [one["model"] for one in candidates]
    assert names == ["vit_micro", "vit_tiny"][: len(names)], "24 images call for no larger one"
    assert all(fits[:-1]) and (not fits[-1] or len(names) == 2)
    assert ("features may be poor" in result["why"]) == (not any(fits))
    assert result["seconds_around"] > 0.5
    assert result["gain"]["words"].startswith("not known") and result["gain"]["results"] == []


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(hours=0), "--hours 0: must be more than 0"),
        (dict(models=["vit_tny"]), "Did you mean vit_tiny"),
        (dict(out="plan.txt"), "ends in .json"),
        (dict(out="nowhere/plan.json"), "no such folder"),
        (dict(batch_size=25), "at most 24"),
        (dict(image_size=30, patch_size=16), "divisible"),
        (dict(masking="blok"), "Did you mean block"),
    ],
)
def test_mistakes(photos: Path, tmp_path: Path, monkeypatch, settings, words) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        torchmae.plan(photos, **{**SMALL, **settings})
    assert not list(tmp_path.iterdir())


def test_two_measurements_are_taken_together_and_their_difference_is_said(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    result = torchmae.plan(photos, hours=1, models=["vit_micro"], **SMALL)
    text = capsys.readouterr().out
    found = re.search(r"all else\): ([\d.]+) (ms|s) and ([\d.]+) (ms|s)", text)
    assert found, text
    one, two = (float(found[k]) / {"ms": 1000, "s": 1}[found[k + 1]] for k in (1, 3))
    (taken,) = result["candidates"]
    mean = 2 / (1 / one + 1 / two)
    assert taken["measured"]["seconds_per_step"] == pytest.approx(mean, rel=0.1)
    lowest, highest = sorted((one, two))
    if not 1.1 < highest / lowest < 1.3:  # the words are rounded
        assert ("may be as wrong as these differ" in text) == (highest > 1.2 * lowest)


def test_its_gains_are_those_of_the_results() -> None:
    """The rows "pre-trained minus from scratch" of docs/results.md, in the order of its tables."""
    from torchmae.tasks.pretrain.ahead.gain import GAINS, band, known_gains

    text = (DOCS / "results.md").read_text()
    number = r"\+(\d+\.\d)"
    rows = re.findall(
        rf"pre-trained minus from scratch \| {number} \| {number} to {number} \| {number} \| "
        rf"{number} to {number}",
        text,
    )
    written = [
        (data, labels, *map(float, row[3 * k : 3 * k + 3]))
        for labels, row in zip((10, 50), rows, strict=True)
        for k, data in enumerate(("Imagenette", "brain MRI"))
    ]
    ours = [(g.data, g.labels_per_class, g.points, g.low, g.high) for g in GAINS]
    assert sorted(ours) == sorted(written)
    assert "9,469" in text and "2,123" in text
    assert [gain.data for gain in known_gains(9469, 10)] == ["Imagenette", "brain MRI"][:1]
    assert band(known_gains(5000, 50)).startswith("+6.4 to +14.5 points")
    assert band(known_gains(5000, 5000)).startswith("not known")
    assert band(known_gains(1_000_000, 10)).startswith("not known")


def test_epochs_fill_the_time_and_never_more() -> None:
    from torchmae.tasks.pretrain.ahead.measure import (
        Measured,
        Minutes,
        epochs_in,
        rounded_down,
        seconds_of,
    )

    one = Measured("m", 32, 0.1, 0.5, 10, 2, 3, None, None)
    every = Minutes(3, 5)
    for seconds in (20, 100, 1000, 100_000):
        epochs = epochs_in(one, seconds, 1000, every)
        assert seconds_of(one, epochs, 1000, every) <= seconds
        assert epochs == 1600 or seconds_of(one, 1.02 * epochs + 0.05, 1000, every) > seconds
    assert epochs_in(one, 5, 1000, every) == 0
    assert epochs_in(one, 1e9, 1000, every) == 1600
    assert [rounded_down(x) for x in (0, 0.012349, 1, 123.99, 1599.9)] == [0, 0.0123, 1, 123, 1590]
