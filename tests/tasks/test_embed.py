"""mae embed: every kind of file, the right order, no mask, bad files named and skipped."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import torchmae
from torchmae.data.decode import decode
from torchmae.data.transforms import CenterCropResize
from torchmae.errors import UserError
from torchmae.eval.extract import POOLS
from torchmae.report.arrays import HEADERS
from torchmae.report.tables import WRITERS


def table(path: Path) -> tuple[list[str], np.ndarray]:
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return arrays["paths"].tolist(), arrays["features"]
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        assert header == ["path", *(f"f{i}" for i in range(len(header) - 1))]
        return [row[0] for row in rows], np.array([row[1:] for row in rows], dtype=np.float32)
    import pyarrow.parquet

    columns = pyarrow.parquet.read_table(path).to_pydict()
    return columns["path"], np.array(columns["features"], dtype=np.float32)


def by_hand(run: Path, file: Path, pool: str, layer: int | None) -> torch.Tensor:
    encoder = torchmae.load(run)
    pixels, _ = CenterCropResize(encoder.image_size)(decode(file.read_bytes()))
    with torch.no_grad():
        tokens = encoder(encoder.normalize(pixels.unsqueeze(0)), layer=layer)
    return POOLS[pool](tokens, 1)[0]


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_kind_of_file_holds_paths_and_features(
    run: Path, photos: Path, tmp_path: Path, suffix: str
) -> None:
    names, features = table(torchmae.embed(run, photos, out=tmp_path / f"f{suffix}", device="cpu"))
    assert names == sorted(str(file.relative_to(photos)) for file in photos.rglob("*.jpg"))
    assert features.shape == (24, 128)
    assert features.dtype == np.float32
    for i in (0, 11, 23):
        expected = by_hand(run, photos / names[i], "mean", None)
        np.testing.assert_allclose(features[i], expected, atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == [f"f{suffix}"]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("layer", [1, 4])
def test_layer_and_pool(run: Path, photos: Path, tmp_path: Path, pool: str, layer: int) -> None:
    out = torchmae.embed(run, photos, out=tmp_path / "f.npz", pool=pool, layer=layer, batch_size=5)
    names, features = table(out)
    expected = by_hand(run, photos / names[7], pool, layer)
    np.testing.assert_allclose(features[7], expected, atol=1e-5)


@pytest.mark.parametrize("suffix", HEADERS)
def test_tokens_of_every_patch_in_half_precision(
    run: Path, photos: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their mean is the pooled feature; an unreadable file has no row."""
    data = shutil.copytree(photos / "blob", tmp_path / "blob")
    (data / "0.jpg").write_bytes(b"no image")
    out = tmp_path / f"t{suffix}"
    torchmae.embed(run, data, out=out, pool="tokens", layer=3, batch_size=3, device="cpu")
    assert "skipped: 0.jpg" in capsys.readouterr().out
    if suffix == ".npy":
        tokens, paths = np.load(out), json.loads(out.with_suffix(".json").read_text())["paths"]
    else:
        with safe_open(out, "np") as file:
            tokens, paths = file.get_tensor("features"), json.loads(file.metadata()["paths"])
    assert paths == [f"{i}.jpg" for i in range(1, 8)]
    assert tokens.shape == (7, 4, 4, 128) and tokens.dtype == np.float16
    expected = by_hand(run, data / "5.jpg", "mean", 3)
    np.testing.assert_allclose(tokens[4].mean((0, 1), dtype=np.float64), expected, atol=1e-3)


def test_bad_files_are_named_and_skipped(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    content = (photos / "blob" / "0.jpg").read_bytes()
    (data / "good.jpg").write_bytes(content)
    (data / "cut.jpg").write_bytes(content[: len(content) // 2])
    names, _ = table(torchmae.embed(run, data, out=tmp_path / "f.npz"))
    assert names == ["good.jpg"]
    assert "skipped: cut.jpg: Truncated" in capsys.readouterr().out


def test_mistakes(run: Path, photos: Path, tmp_path: Path) -> None:
    for options, message in [
        ({"out": "f.txt"}, "unknown kind of file '.txt'"),
        ({"pool": "max"}, "unknown pool 'max'"),
        ({"pool": "tokens"}, "unknown kind of file '.npz'.* of: .safetensors, .npy"),
        ({"out": "f.npy"}, "unknown kind of file '.npy'"),
        ({"layer": 7}, "--layer 7: 1 to 6"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"device": "tpu"}, "device 'tpu' is not known"),
    ]:
        with pytest.raises(UserError, match=message):
            torchmae.embed(run, photos, **{"out": tmp_path / "f.npz", **options})  # type: ignore[dict-item]


def test_an_unknown_pool_names_all(run, photos):
    with pytest.raises(UserError, match="'foo'; one of: mean, cls, cls\\+mean, tokens"):
        torchmae.embed(run, photos, pool="foo")
