"""mae look: sheets of every kind of run, images of any size, patches by name and by pixel."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.planted import plant_run, shaken, small_vit
from PIL import Image

import torchmae
from torchmae.errors import UserError
from torchmae.models.detection.detector import Detector
from torchmae.models.heads import Classifier
from torchmae.models.segmentation.segmenter import Segmenter


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant_run(tmp_path_factory.mktemp("look") / "encoder", small_vit())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A wide one, a high one, and one smaller than a patch."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for name, size in (("wide.png", (60, 130, 3)), ("high.png", (90, 40, 3)), ("s.png", (5, 5, 3))):
        Image.fromarray(draw.integers(0, 256, size, dtype=np.uint8)).save(folder / name)
    return [folder / name for name in ("wide.png", "high.png", "s.png")]


def test_images_of_any_size_are_in_one_sheet(
    encoder: Path, pictures: list[Path], written: list[str]
) -> None:
    out = torchmae.look(encoder, pictures, device="cpu")
    assert out == encoder / "look"
    assert {p.name for p in out.iterdir()} == {"look.png", "heads.png"}
    # 32 x 69 px are 4 x 9 patches, 72 x 32 are 9 x 4, 32 x 32 are 4 x 4
    assert "all 88 tokens together" in " ".join(written)
    assert "encoder · tokens after block 3 of 3" in written
    assert {"image", "components", "norms", "attention", "head 1", "head 4"} <= set(written)
    assert "similarity" not in written and not any("MAE" in word for word in written)
    before = (out / "look.png").read_bytes()
    torchmae.look(encoder, pictures, device="cpu")
    assert (out / "look.png").read_bytes() == before


def test_a_patch_by_row_and_column_and_by_pixel(
    encoder: Path, pictures: list[Path], tmp_path: Path, written: list[str]
) -> None:
    """The patch in row 2, column 7 of 4 x 9 covers 30 to 45 px down, 101 to 115.5 px across."""
    same = [
        torchmae.look(encoder, pictures[:2], out=tmp_path / str(i), device="cpu", **options)
        for i, options in enumerate(({"patch": (2, 7)}, {"point": (102.5, 31)}))
    ]
    first, second = ((out / "look.png").read_bytes() for out in same)
    assert first == second
    assert "row 2, column 7 of wide.png" in " ".join(written)


def test_the_crop_is_what_embed_sees(encoder: Path, pictures: list[Path], tmp_path: Path) -> None:
    from torchmae.data.sources.single import Named
    from torchmae.tasks.look.config import Look
    from torchmae.tasks.look.run import seen

    model = torchmae.load(encoder)
    pixels = np.asarray(Image.open(pictures[0]))
    found = seen(Named("wide", pixels), model, Look(str(encoder), ("x",), crop=True))
    assert found.pixels.shape == (3, 32, 32) and found.window[:4] == (0, 35, 60, 60)
    with torch.no_grad():
        feature = model(model.normalize(found.pixels[None]))[0, 1:].mean(0)
    (tmp_path / "data").mkdir()
    Image.fromarray(pixels).save(tmp_path / "data" / "wide.png")
    out = torchmae.embed(encoder, tmp_path / "data", out=tmp_path / "f.npz", device="cpu")
    with np.load(out) as arrays:
        np.testing.assert_allclose(arrays["features"][0], feature, atol=1e-5)


def test_attentive_queries_of_a_classifier(
    pictures: list[Path], tmp_path: Path, written: list[str]
) -> None:
    model = shaken(Classifier(small_vit(), ("a", "b"), pool="attentive", queries=16))
    run = plant_run(tmp_path / "probe", model, "probe")
    out = torchmae.look(run, pictures[:1], device="cpu")
    assert {p.name for p in out.iterdir()} == {"look.png", "heads.png", "queries.png"}
    assert "queries" in written and "The 8 of 16 that look at the fewest patches." in written
    torchmae.look(run, pictures[:1], layer=1, device="cpu")  # not what the queries have learned of
    assert {p.name for p in out.iterdir()} == {"look.png", "heads.png"}


@pytest.mark.parametrize("kind", ["classifier", "segmenter", "windowed"])
def test_encoders_of_fine_tuned_models(kind: str, pictures: list[Path], tmp_path: Path) -> None:
    vit = small_vit(depth=4, embed_dim=32)
    model: torch.nn.Module = vit
    if kind == "classifier":
        model = Classifier(vit, ("a", "b"))
    elif kind == "segmenter":
        model = Segmenter(vit, ("a", "b"), "linear", 16)
    else:  # as those of detectors
        vit.set_windows(2, global_blocks=2, relative_positions=True)
    out = torchmae.look(plant_run(tmp_path / kind, model), pictures[:2], device="cpu")
    assert (out / "look.png").is_file()
    assert (out / "heads.png").is_file() == (kind != "windowed")


def test_an_encoder_of_a_detector(pictures: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    model = Detector(small_vit(depth=4), ("a",))
    out = torchmae.look(plant_run(tmp_path / "d", model), pictures[:1], device="cpu")
    assert (out / "look.png").is_file()


def test_bands_are_said_and_many_images_are_cut(
    tmp_path: Path, written: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = plant_run(tmp_path / "bands", small_vit(channels=5))
    np.save(tmp_path / "x.npy", np.zeros((12, 20, 20, 5), dtype=np.uint8))
    array = str(tmp_path / "x.npy")
    torchmae.look(run, [array, array, array], device="cpu")
    assert "Bands 1, 2 and 3 of 5" in " ".join(written)
    assert "the first 16 images of 3 files" in capsys.readouterr().out
    assert sum(word.startswith("x.npy[") for word in written) >= 16


def test_mistakes(encoder: Path, pictures: list[Path], tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    long = tmp_path / "long.png"
    Image.new("RGB", (60_000, 8)).save(long)
    wide = pictures[0]
    for images, options, message in [
        ((), {}, "at least one image"),
        (("missing.jpg",), {}, "cannot read missing.jpg"),
        (("nothing-*.jpg",), {}, "no file matches 'nothing-"),
        ((text,), {}, "not an image"),
        ((tmp_path,), {}, "is a folder: name image files"),
        ((wide,), {"patch": (4, 0)}, "has 4 rows and 9 columns of patches, so 0 to 3 and 0 to 8"),
        ((wide,), {"patch": (0, -1)}, "--patch -1: must not be negative"),
        ((wide,), {"point": (130, 0)}, "sees 0 to 129 px from the left and 0 to 59 px from"),
        ((wide,), {"point": (10, 0), "crop": True}, "sees 35 to 94 px from the left"),
        ((wide,), {"patch": (0, 0), "point": (1, 1)}, "leave one of them out"),
        ((wide,), {"crop": True, "short_side": 64}, "leave out --short-side"),
        ((wide,), {"layer": 4}, "--layer 4: 1 to 3"),
        ((wide,), {"out": text.parent / "x.png"}, "x.png: name a folder, .* as --out .*/x$"),
        ((wide,), {"out": text}, "text.png: name a folder"),
        ((wide,), {"out": wide / "x"}, "cannot be made"),
        ((long,), {}, "patches, and 16,384 are possible: a smaller --short-side"),
    ]:
        with pytest.raises(UserError, match=message):
            torchmae.look(encoder, images, device="cpu", **options)
    (encoder.parent / "broken").mkdir()
    (encoder.parent / "broken" / "config.json").write_text("{}")
    for run, message in [
        (tmp_path, "is not a run folder"),
        (encoder.parent / "broken", "describe"),
    ]:
        with pytest.raises(UserError, match=message):
            torchmae.look(run, wide)
