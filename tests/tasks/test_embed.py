"""Features in files: every kind, the right order, no mask, bad files named and left out."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

import torchmae
from torchmae.data.decode import decode
from torchmae.data.transforms import CenterCropResize
from torchmae.errors import UserError
from torchmae.eval.extract import POOLINGS
from torchmae.tasks.embed.run import WRITERS


def table(path: Path) -> tuple[list[str], np.ndarray]:
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return arrays["paths"].tolist(), arrays["features"]
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            _, *rows = csv.reader(file)
        return [row[0] for row in rows], np.array([row[1:] for row in rows], dtype=np.float32)
    import pyarrow.parquet

    columns = pyarrow.parquet.read_table(path).to_pydict()
    return columns["path"], np.array(columns["features"], dtype=np.float32)


def by_hand(run: Path, file: Path, pooling: str, layer: int | None) -> torch.Tensor:
    encoder = torchmae.load(run)
    pixels = CenterCropResize(encoder.image_size)(decode(file.read_bytes()))[0]
    with torch.no_grad():
        return POOLINGS[pooling](encoder(encoder.normalize(pixels.unsqueeze(0)), layer=layer))[0]


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_kind_of_file_holds_paths_and_features(
    run: Path, photos: Path, tmp_path: Path, suffix: str
) -> None:
    names, features = table(
        torchmae.embed(run, str(photos), out=str(tmp_path / f"f{suffix}"), device="cpu")
    )
    assert (
        names == sorted(str(file.relative_to(photos)) for file in photos.rglob("*.jpg"))
        and len(names) == 24
    )
    assert features.shape == (24, 128)
    for i in (0, 11, 23):
        np.testing.assert_allclose(
            features[i], by_hand(run, photos / names[i], "mean", None), atol=1e-5
        )
    assert not list(tmp_path.glob(".partial*"))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layer", [1, 4])
def test_layer_and_pooling(
    run: Path, photos: Path, tmp_path: Path, pooling: str, layer: int
) -> None:
    out = torchmae.embed(
        run, str(photos), out=str(tmp_path / "f.npz"), pooling=pooling, layer=layer, batch_size=5
    )
    names, features = table(out)
    np.testing.assert_allclose(
        features[7], by_hand(run, photos / names[7], pooling, layer), atol=1e-5
    )


def test_bad_files_are_named_and_left_out(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    whole = (photos / "blob" / "0.jpg").read_bytes()
    (data / "good.jpg").write_bytes(whole)
    (data / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    names, _ = table(torchmae.embed(run, str(data), out=str(tmp_path / "f.npz")))
    assert names == ["good.jpg"] and "left out: cut.jpg: Truncated" in capsys.readouterr().out


def test_mistakes(run: Path, photos: Path, tmp_path: Path) -> None:
    for options, message in [
        ({"out": "f.txt"}, "unknown kind of file '.txt'"),
        ({"pooling": "max"}, "unknown pooling 'max'"),
        ({"layer": 7}, "--layer 7: 1 to 6"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"device": "tpu"}, "device 'tpu' is not available"),
    ]:
        with pytest.raises(UserError, match=message):
            torchmae.embed(run, str(photos), **{"out": str(tmp_path / "f.npz"), **options})
