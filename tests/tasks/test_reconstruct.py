"""mae reconstruct: pictures of every masking, masks of one's own, mistakes."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small import SMALL
from helpers.sources import noise
from PIL import Image

import torchmae
from torchmae.data.sources import open_source
from torchmae.errors import UserError
from torchmae.models.masking import MASKINGS
from torchmae.tasks.reconstruct.run import mask_from_image
from torchmae.tasks.reconstruct.sheet import chosen


@pytest.mark.parametrize("masking", MASKINGS)
def test_the_verb_draws_every_masking_and_ratio(
    run: Path, photos: Path, tmp_path: Path, masking: str
) -> None:
    files = [str(photos / "blob" / f"{i}.jpg") for i in range(2)]
    out = torchmae.reconstruct(
        run, files, out=str(tmp_path / "new" / "x.png"), masking=masking, mask_ratio=0.5, seed=3
    )
    with Image.open(out) as picture:
        assert picture.width > 2 * 128 and picture.height > 4 * 128
        assert np.asarray(picture).std() > 10


def test_the_picture_says_what_it_shows(
    run: Path, photos: Path, tmp_path: Path, written: list[str]
) -> None:
    files = [str(photos / "blob" / f"{i}.jpg") for i in range(2)]
    out = torchmae.reconstruct(run, files, out=tmp_path / "x.png", mask_ratio=0.5)
    assert written[0] == "small · step 9 · 50 % of patches hidden (random)"
    assert [word for word in written if word.endswith(".jpg")] == ["0.jpg", "1.jpg"]
    assert {"original", "masked", "reconstruction", "prediction"} < set(written)
    with Image.open(out) as small:
        width = small.width
    Image.new("L", (8, 8), 255).save(tmp_path / "mask.png")
    Image.open(tmp_path / "mask.png").crop((-4, 0, 4, 8)).save(tmp_path / "mask.png")
    out = torchmae.reconstruct(
        run, files[0], out=tmp_path / "x.png", scale=10, mask=tmp_path / "mask.png"
    )
    assert "small · step 9 · 50 % of patches hidden (own mask)" in written
    with Image.open(out) as large:
        assert large.width > 320 and large.height > 4 * 320 and width < 2 * 320
    with pytest.raises(UserError, match="--scale 0: must be at least 1"):
        torchmae.reconstruct(run, files, out=tmp_path / "x.png", scale=0)


def test_a_run_of_five_bands_says_which_are_shown(tmp_path: Path, written: list[str]) -> None:
    """In the pictures of its training."""
    np.save(tmp_path / "tiles.npy", noise(9, 32, 32, 5))
    out = tmp_path / "bands"
    torchmae.pretrain(tmp_path / "tiles.npy", out=out, epochs=1, **SMALL)
    assert "Bands 1, 2 and 3 of 5 are shown, as red, green and blue." in written
    assert any(
        re.fullmatch(r"bands · step \d+ · 75 % of patches hidden \(random\)", w) for w in written
    )
    assert "tiles.npy[0]" in written
    with Image.open(sorted((out / "pictures").iterdir())[-1]) as picture:
        assert picture.width > 8 * 150


def test_seeds_give_other_masks_and_the_same_seed_the_same_picture(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    file = str(photos / "blob" / "0.jpg")
    made = [
        torchmae.reconstruct(run, [file], out=str(tmp_path / f"{i}.png"), seed=seed)
        for i, seed in enumerate((3, 3, 4))
    ]
    same, again, other = (path.read_bytes() for path in made)
    assert same == again != other


def test_a_mask_of_one_s_own(tmp_path: Path) -> None:
    picture = np.zeros((40, 80), np.uint8)
    picture[:20] = 255
    Image.fromarray(picture).save(tmp_path / "mask.png")
    mask = mask_from_image(str(tmp_path / "mask.png"), (4, 8), 2)
    assert (
        mask.hide.tolist() == [list(range(16))] * 2
        and mask.keep.tolist() == [list(range(16, 32))] * 2
    )
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "none.png")
    with pytest.raises(UserError, match="hides 0 of 32"):
        mask_from_image(str(tmp_path / "none.png"), (4, 8), 1)


def test_a_sheet_shows_images_that_the_seed_chooses(
    run: Path, photos: Path, tmp_path: Path, written: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """16 patches: 95 % would leave none visible."""
    options: dict[str, Any] = dict(sheet=True, count=3, device="cpu")
    torchmae.reconstruct(run, photos, out=tmp_path / "a.png", **options)
    how = "images chosen by hash, seed 0, of 24"
    assert " ".join(written).startswith(f"small · step 9 · {how} · random masks ")
    files = [word for word in written if re.fullmatch(r"\d+\.jpg", word)]
    assert len(files) == 3 and f"8 masks of {files[0]}" in written
    assert [word for word in written if word.isdigit()] == [str(i) for i in range(1, 9)]
    rows = ["masked", "prediction", "reconstruction", "error, mean"]
    labels = ["original", *(f"{ratio} % {row}" for ratio in (75, 85) for row in rows)]
    labels += [f"75 % {row}" for row in rows]
    found = [re.sub(r" [\d.]+$", "", word) for word in written]
    assert [word for word in found if word in labels] == labels
    assert any(word.startswith("Brightness and contrast of hidden") for word in written)
    said = capsys.readouterr().out
    assert f"3 {how}" in said and "95% hidden would leave none visible" in said
    before = (tmp_path / "a.png").read_bytes()
    for seed, same in ((0, True), (1, False)):
        torchmae.reconstruct(run, photos, out=tmp_path / "a.png", **options, seed=seed)
        assert ((tmp_path / "a.png").read_bytes() == before) == same


def test_a_sheet_of_one_ratio_and_a_masking_without_randomness(
    run: Path, photos: Path, tmp_path: Path, written: list[str]
) -> None:
    options: dict[str, Any] = dict(sheet=True, mask_ratio=0.5, true_statistics=True, count=2)
    options |= dict(include="blob")
    torchmae.reconstruct(run, photos, out=tmp_path / "a.png", masking="grid", **options)
    assert not any("masks of" in word for word in written)
    assert sum(word.endswith("reconstruction") for word in written) == 1
    assert any("TRUE" in word for word in written)
    assert "seed 0, of 8 · " in " ".join(written), "of the folder blob alone"


def test_images_of_a_sheet_that_cannot_be_read_are_replaced_and_those_left_out_stay_out(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = open_source(str(photos))
    (first, second), _ = chosen(source, 2, 0, (32, 32))
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / source.name(first)).write_bytes(b"no image")
    (found,), images = chosen(open_source(str(tmp_path / "photos")), 1, 0, (32, 32))
    assert found == second and images.shape == (1, 3, 32, 32)
    assert f"skipped: {source.name(first)}" in capsys.readouterr().out
    ids, _ = chosen(source, 16, 0, (32, 32))
    assert len(set(ids)) == 16 and ids[:2] == [first, second]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the 1 images can be read"):
        chosen(open_source(str(tmp_path / "bad")), 1, 0, (32, 32))


def test_of_very_many_images_the_first_are_drawn(
    run: Path, photos: Path, tmp_path: Path, written: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    files = [photos / "blob" / f"{i % 8}.jpg" for i in range(40)]
    torchmae.reconstruct(run, [*files, "missing.jpg"], out=tmp_path / "a.png", device="cpu")
    assert sum(word.endswith(".jpg") for word in written) == 32
    assert "the first 32 images of 41 files are drawn" in capsys.readouterr().out
    torchmae.reconstruct(run, files[:32], out=tmp_path / "a.png", device="cpu")
    assert "the first" not in capsys.readouterr().out


def test_mistakes(run: Path, photos: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    good = photos / "blob" / "0.jpg"
    for folder, images, options, message in [
        (run, (), {}, "at least one image"),
        (run, ("missing.jpg",), {}, "cannot read missing.jpg"),
        (run, (text,), {}, "not an image"),
        (run, (photos,), {}, "is a folder: name image files"),
        (run, (good,), {"out": "x.gif"}, "must be a .png or .jpg"),
        (run, (good,), {"mask_ratio": 0.0}, "--mask-ratio 0: must be more than 0"),
        (run, (good,), {"masking": "blocks"}, "Did you mean block"),
        (run, (good,), {"count": 3}, "--count 3 belongs to --sheet"),
        (run, (good,), {"exclude": "*"}, "choose among the images of a set: with --sheet"),
        (run, (good, good), {"sheet": True}, "--sheet takes one set of images, not 2"),
        (run, (photos,), {"sheet": True, "mask": "m.png"}, "--mask is a single mask"),
        (run, (photos,), {"sheet": True, "count": 17}, "--count 17: must be at most 16"),
        (run, (photos,), {"sheet": True, "mask_ratio": 0.99}, "leaves 0 of 16 patches visible"),
        (tmp_path, (good,), {}, "is not a run folder"),
    ]:
        with pytest.raises(UserError, match=message):
            torchmae.reconstruct(folder, images, **options)
