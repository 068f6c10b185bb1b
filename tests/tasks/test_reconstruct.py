"""mae reconstruct: pictures of every masking, masks of one's own, mistakes."""

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.small import SMALL
from helpers.sources import noise
from PIL import Image

import torchmae
from torchmae.errors import UserError
from torchmae.models.masking import MASKINGS
from torchmae.tasks.reconstruct.run import mask_from_image


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
        (tmp_path, (good,), {}, "is not a run folder"),
    ]:
        with pytest.raises(UserError, match=message):
            torchmae.reconstruct(folder, images, **options)
