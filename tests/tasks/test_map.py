"""mae map: one page without script, every image on it, colors and names; small whatever the set."""

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.planted import plant_run, small_vit

import torchmae
from torchmae.errors import UserError
from torchmae.report.html.map import HEIGHT, MOST_COLORS, THUMB, WIDTH, fit, map_page, uncovered


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant_run(tmp_path_factory.mktemp("map") / "run", small_vit())


def test_every_image_is_on_the_page_with_name_and_color(
    encoder: Path, photos: Path, tmp_path: Path
) -> None:
    text = torchmae.map_(encoder, photos, out=tmp_path / "m.html", device="cpu").read_text()
    titles = re.findall(r"<title>(\w+/\d\.jpg) \((\w+)\)</title>", text)
    assert len(titles) == 24 and {name.split("/")[0] for name, _ in titles} == {
        k for _, k in titles
    }
    assert text.count("<image ") + text.count("<circle") == 24 and text.count("<image ") > 3
    assert "<script" not in text and "default-src 'none'" in text
    assert "PCA: across the first" in text and "across</label>" not in text
    assert re.search(r"across\s*\(8\)</label>", text)
    kinds = re.findall(r'class="(k\d)"', text)
    assert sorted(kinds.count(k) for k in set(kinds)) == [8, 8, 8]


def test_features_of_a_file_and_a_part_of_the_images(
    encoder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = torchmae.embed(encoder, photos, out=tmp_path / "f.npz", device="cpu")
    out = torchmae.map_(encoder, photos, out=tmp_path / "m.html", features=file, count=10)
    assert len(re.findall(r"<title>\w+/", out.read_text())) == 10
    assert "10 images of 24, chosen by hash" in capsys.readouterr().out


def test_ten_thousand_images_with_long_names_fit_in_five_megabytes() -> None:
    draw = np.random.default_rng(0)
    places = draw.uniform(size=(10_000, 2))
    names = [f"{'&<ö' * 60}{i}" for i in range(10_000)]
    labels = [f"class {i % 37}" for i in range(10_000)]
    source = "data:image/jpeg;base64," + "A" * 2400  # a noisy 52-px JPEG: 1.8 kB
    text, pictures = map_page("many", ["words"], places, names, labels, lambda i: source)
    assert 250 < pictures < 600 and len(text.encode()) < 5_000_000
    assert f"{37 - MOST_COLORS + 1} other classes" in text
    assert "<script" not in text and "&lt;" in text


def test_no_thumbnail_covers_another_or_leaves_the_map() -> None:
    places = np.random.default_rng(0).uniform(0, 200, (500, 2))
    kept = uncovered(places)
    assert kept[0] == 0
    apart = np.abs(places[kept][:, None] - places[kept][None]).max(2)
    np.fill_diagonal(apart, np.inf)
    assert apart.min() > THUMB
    left = sorted(set(range(500)) - set(kept))
    assert (np.abs(places[left][:, None] - places[kept][None]).max(2).min(1) < THUMB + 5).all()
    rim = fit(np.random.default_rng(1).standard_cauchy((500, 2)))
    assert rim.min() > THUMB and (rim.max(0) < [WIDTH - THUMB, HEIGHT - THUMB]).all()


def test_places_fill_the_map_and_up_is_up() -> None:
    places = np.array([[0.0, 0.0], [1.0, 2.0], [0.5, 1.0]])
    made = fit(places)
    assert made[:, 0].min() >= 0 and made[:, 0].max() <= WIDTH and made[:, 1].max() <= HEIGHT
    assert made[1, 0] > made[0, 0] and made[1, 1] < made[0, 1]
    assert np.isfinite(fit(np.zeros((5, 2)))).all()


def test_mistakes(encoder: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    for i in range(2):
        (tmp_path / "two" / f"{i}.jpg").write_bytes((photos / "blob" / f"{i}.jpg").read_bytes())
    for data, options, message in [
        (photos, {"method": "pcc"}, "unknown method 'pcc'; one of: pca"),
        (photos, {"out": tmp_path / "m.txt"}, "a .html file in a folder that exists"),
        (photos, {"out": tmp_path / "no" / "m.html"}, "a .html file in a folder that exists"),
        (photos, {"count": 2}, "--count 2"),
        (tmp_path / "two", {}, "2 images are no map"),
        (tmp_path / "nowhere", {}, "no such folder"),
    ]:
        with pytest.raises(UserError, match=message):
            torchmae.map_(encoder, data, **({"out": tmp_path / "m.html"} | options))
