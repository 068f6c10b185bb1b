"""What is said at the end of a pre-training: each cause is planted in a small real run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small import SMALL, make_photos
from PIL import Image

import torchmae
from torchmae.data.sources import open_source
from torchmae.report.words.learning import Look, end_of, look_at, verdict

TINY: dict[str, Any] = {**SMALL, "image_size": 16, "precision": "fp32", "log_every": 5}
NOT_BETTER = "It is not better than these trivial baselines: "


def save(folder: Path, pictures: list[np.ndarray]) -> Path:
    folder.mkdir()
    for i, pixels in enumerate(pictures):
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03d}.png")
    return folder


def noise(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3)))


def ending(capsys: pytest.CaptureFixture[str], data: Path, out: Path, **options: Any) -> str:
    """What a run prints from its summary on."""
    torchmae.pretrain(data, out=out, **{**TINY, **options})
    return capsys.readouterr().out.partition("Done: ")[2]


def test_images_of_a_single_colour(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = [np.full((16, 16, 3), 10 * i) for i in range(16)]
    text = ending(capsys, save(tmp_path / "flat", flat), tmp_path / "run", epochs=4)
    assert f"{NOT_BETTER}16 of 16 images that were looked at have a single color" in text
    assert "Train longer" not in text
    mixed = open_source(str(save(tmp_path / "mixed", flat[:4] + noise(12))))
    assert look_at(mixed) == Look(16, 4, 0)


def test_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = make_photos(tmp_path / "photos", each=2)
    first = [np.array(Image.open(path)) for path in sorted(photos.rglob("*.jpg"))]
    copies = save(tmp_path / "copies", first * 4)
    text = ending(capsys, copies, tmp_path / "run", epochs=1)
    assert "18 of 24 images that were looked at are copies of others" in text
    assert look_at(open_source(str(photos))) == Look(6, 0, 0)


def test_a_learning_rate_that_is_too_high(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ending(capsys, photos, tmp_path / "run", epochs=20, base_lr=30.0)
    assert NOT_BETTER in text
    assert "so the learning rate is probably too high. Try --base-lr 3 (it was 30)" in text


def test_too_few_steps(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ending(capsys, photos, tmp_path / "run", epochs=1)
    assert f"{NOT_BETTER}3 steps are too few to tell. Train longer" in text


def test_noise_that_cannot_be_predicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = save(tmp_path / "noise", noise(400))
    options = {"epochs": 1, "batch_size": 2, "base_lr": 0.05, "patch_size": 4}
    text = ending(capsys, data, tmp_path / "run", **options)
    assert f"{NOT_BETTER}the loss has stopped falling there, so that more steps will not" in text


def records(losses: list[float | None], every: int = 100, **more: Any) -> list[dict[str, Any]]:
    """Of a log, beside a baseline of 1."""
    baselines = {"loss of patch mean": 1.0, "loss of visible mean": 2.0, "skipped": 0}
    return [
        {"step": every * i, "loss": loss, **baselines, **more} for i, loss in enumerate(losses, 1)
    ]


GOOD = Look(100, 0, 0)


def test_baselines_and_loss_are_means_of_the_same_records() -> None:
    log = records([9.0, 0.5, 0.6, 0.7, 0.8, 0.9])
    log[-1]["loss of patch mean"] = 0.5  # of one easy batch, below the last loss
    end = end_of(log)
    assert end.loss == pytest.approx(0.7)
    assert end.baselines == {"patch mean": pytest.approx(0.9), "visible mean": 2.0}
    assert end.learned
    assert verdict(log, 0.1, GOOD) == []
    assert not end_of(records([0.5, None])).learned


@pytest.mark.parametrize(
    "log, look, said",
    [
        (records([3.0, 1.5, 1.2, 1.1, 1.05]), GOOD, "the loss may still be falling. Train "),
        (records([1.2], every=400), GOOD, "the loss may still be falling. Train longer"),
        (records([1.2, 1.1, 1.1, 1.1, 1.1]), GOOD, "more steps will not help"),
        (records([1.1, 1.0, 1.1, 1.2, 1.3]), GOOD, "risen again, from 1.0000 to 1.3000"),
        (
            records([9.0, 1.1, 1.1, 1.1]),
            GOOD,
            "the loss went up to 9, so the learning rate is prob",
        ),
        (records([1.1] * 5, skipped=1), GOOD, "5 steps had a loss or gradient that was not finit"),
        (records([1.1, None], skipped=1), GOOD, "the learning rate is probably too high"),
        (records([3.0, 1.5], every=50), GOOD, "100 steps are too few to tell"),
        (records([0.5] * 5), Look(100, 20, 0), "Note: 20 of 100 images"),
        (records([0.5] * 5), Look(100, 0, 20), "known by heart"),
    ],
)
def test_the_cause_is_named(log: list[dict[str, Any]], look: Look, said: str) -> None:
    (line,) = verdict(log, 0.1, look)
    assert said in line
