"""Honest pictures: what is shown where, whose statistics, which mask."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import torchmae
from torchmae.errors import UserError
from torchmae.models.masking import MASKINGS
from torchmae.models.patches import gather_tokens, patchify
from torchmae.report.pictures import caption, draw_mask, predict_pixels
from torchmae.tasks.reconstruct.config import Reconstruct
from torchmae.tasks.reconstruct.run import mask_from_image, read_image


def test_visible_patches_are_the_image_and_hidden_ones_are_not_in_it(
    run: Path, photos: Path
) -> None:
    model = torchmae.load_mae(run)
    images = torch.stack([read_image(str(photos / "across" / f"{i}.jpg"), model) for i in range(3)])
    mask = draw_mask(model, "random", 0.75, 0, torch.arange(3))
    masked, reconstruction, prediction = predict_pixels(model, images, mask)
    size = model.encoder.patch
    original, masked, reconstruction, prediction = (
        patchify(x, size) for x in (images, masked, reconstruction, prediction)
    )
    assert torch.equal(gather_tokens(original, mask.keep), gather_tokens(masked, mask.keep))
    assert torch.equal(gather_tokens(original, mask.keep), gather_tokens(reconstruction, mask.keep))
    assert torch.equal(
        gather_tokens(reconstruction, mask.hide), gather_tokens(prediction, mask.hide)
    )
    grey = gather_tokens(masked, mask.hide)
    assert (grey == grey[:, :1]).float().mean() > 0.99


def test_the_default_picture_knows_nothing_of_the_hidden_pixels(run: Path, photos: Path) -> None:
    """The leak of other viewers: change the hidden pixels, and an honest picture must not change."""
    model = torchmae.load_mae(run)
    images = read_image(str(photos / "down" / "0.jpg"), model).unsqueeze(0)
    mask = draw_mask(model, "random", 0.75, 0, torch.arange(1))
    size, grid = model.encoder.patch, model.encoder.grid
    from torchmae.models.patches import scatter_tokens, unpatchify

    other = unpatchify(
        scatter_tokens(
            patchify(images, size),
            mask.hide,
            255 - gather_tokens(patchify(images, size), mask.hide),
        ),
        size,
        grid,
    )
    for kind in (1, 2):
        assert torch.equal(
            predict_pixels(model, images, mask)[kind], predict_pixels(model, other, mask)[kind]
        )
    leaky = [predict_pixels(model, x, mask, true_statistics=True)[2] for x in (images, other)]
    assert not torch.equal(*leaky)


def test_the_caption_says_whose_statistics(run: Path) -> None:
    model = torchmae.load_mae(run)
    assert "TRUE" in caption(model, True) and "leaks" in caption(model, True)
    assert "predicted" in caption(model, False) and "TRUE" not in caption(model, False)


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
    good = str(photos / "blob" / "0.jpg")
    from torchmae.tasks.reconstruct.run import run as verb

    for config, message in [
        (Reconstruct(str(run), ()), "at least one image"),
        (Reconstruct(str(run), ("missing.jpg",)), "cannot read missing.jpg"),
        (Reconstruct(str(run), (str(text),)), "not an image"),
        (Reconstruct(str(run), (good,), out="x.gif"), "must be a .png or .jpg"),
        (Reconstruct(str(run), (good,), mask_ratio=0.0), "mask ratio 0.0"),
        (Reconstruct(str(run), (good,), masking="blocks"), "Did you mean block"),
        (Reconstruct(str(tmp_path), (good,)), "is not a run folder"),
    ]:
        with pytest.raises(UserError, match=message):
            verb(config)
