"""mae search: nearest images and planted copies, tables and sheets."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.planted import plant_run, small_vit
from PIL import Image

import torchmae
from torchmae.errors import UserError


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant_run(tmp_path_factory.mktemp("search") / "run", small_vit())


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def copied(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos, with a copy of one as it is and one of another at a lower quality."""
    folder = shutil.copytree(photos, tmp_path_factory.mktemp("copied") / "photos")
    shutil.copy(folder / "blob" / "0.jpg", folder / "down" / "copy.jpg")
    Image.open(folder / "across" / "3.jpg").save(folder / "blob" / "low.jpg", quality=80)
    return folder


def test_the_nearest_images_to_queries(
    encoder: Path, photos: Path, tmp_path: Path, written: list[str]
) -> None:
    queries = [photos / "blob" / "2.jpg", photos / "across" / "5.jpg"]
    out = torchmae.search(encoder, photos, query=queries, k=3, out=tmp_path / "near.csv")
    rows = table(out)
    assert [row["query"] for row in rows] == ["2.jpg"] * 3 + ["5.jpg"] * 3
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 2
    assert rows[0]["path"] == "blob/2.jpg" and float(rows[0]["distance"]) < 1e-6
    assert rows[3]["path"] == "across/5.jpg"
    distances = [float(row["distance"]) for row in rows]
    assert distances[:3] == sorted(distances[:3]) and distances[1] > 1e-4
    with Image.open(tmp_path / "near.png") as picture:
        assert picture.width > 4 * 132
    assert written.count("query") == 2 and "0" in written
    assert not any("are shown, as red" in word for word in written)


def test_bands_are_said(tmp_path: Path, written: list[str]) -> None:
    run = plant_run(tmp_path / "bands", small_vit(channels=5))
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 255, (9, 32, 32, 5), np.uint8))
    array = tmp_path / "x.npy"
    torchmae.search(run, array, query=[array], k=2, out=tmp_path / "near.csv", device="cpu")
    assert "Bands 1, 2 and 3 of 5 are shown" in " ".join(written)
    page = torchmae.map_(run, array, out=tmp_path / "m.html", device="cpu")
    assert "Bands 1, 2 and 3 of 5 are shown" in page.read_text()


def test_features_of_a_file_give_the_same(encoder: Path, photos: Path, tmp_path: Path) -> None:
    file = torchmae.embed(encoder, photos, out=tmp_path / "f.npz")
    query = photos / "blob" / "2.jpg"
    one = torchmae.search(encoder, photos, query=query, out=tmp_path / "a.csv")
    other = torchmae.search(encoder, photos, query=query, out=tmp_path / "b.csv", features=file)
    assert one.read_text() == other.read_text()


@pytest.mark.parametrize("index", ["exact", "faiss"])
def test_planted_copies_are_found(
    encoder: Path, copied: Path, tmp_path: Path, written: list[str], index: str
) -> None:
    if index == "faiss":
        pytest.importorskip("faiss")
    out = torchmae.search(
        encoder, copied, duplicates=True, out=tmp_path / "d.csv", max_distance=0.01, index=index
    )
    groups: dict[str, set[str]] = {}
    for row in table(out):
        assert float(row["distance"]) <= 0.01
        groups.setdefault(row["group"], set()).add(row["path"])
    assert {"blob/0.jpg", "down/copy.jpg"} in groups.values()
    assert {"across/3.jpg", "blob/low.jpg"} in groups.values()
    assert (tmp_path / "d.png").is_file() and "group 1: 2 images" in written


def test_a_set_without_copies_has_an_empty_table_and_no_sheet(
    encoder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "d.png").write_bytes(b"of an earlier search")
    out = torchmae.search(
        encoder, photos, duplicates=True, out=tmp_path / "d.csv", max_distance=1e-6
    )
    assert table(out) == [] and not (tmp_path / "d.png").exists()
    assert "0 groups of near-duplicates, 0 of 24 images" in capsys.readouterr().out


def test_mistakes(encoder: Path, photos: Path, tmp_path: Path) -> None:
    good = photos / "blob" / "0.jpg"
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    out = {"out": tmp_path / "s.csv"}
    for data, options, message in [
        (photos, {}, "--query IMAGE... or --duplicates, one of them"),
        (photos, {"query": good, "duplicates": True}, "one of them"),
        (photos, {"query": text}, "cannot read .*not an image"),
        (photos, {"query": photos}, "is a folder"),
        (photos, {"query": "missing.jpg"}, "cannot read missing.jpg"),
        (photos, {"query": [good] * 65}, "at most 64"),
        (photos, {"query": good, "index": "fais"}, "Did you mean faiss"),
        (photos, {"query": good, "k": 0}, "--k 0"),
        (photos, {"query": good, "layer": 9}, "--layer 9: 1 to 3"),
        (photos, {"query": good, "pool": "max"}, "unknown pool"),
        (photos, {"duplicates": True, "max_distance": 1.0}, "--max-distance 1: must be below 1"),
        (tmp_path, {"query": good, "out": tmp_path / "s.txt"}, "unknown kind of file"),
    ]:
        with pytest.raises(UserError, match=message):
            torchmae.search(encoder, data, **(out | options))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in"):
        torchmae.search(encoder, tmp_path / "empty", duplicates=True, **out)
