"""Pictures of reconstructions: what is shown where, whose statistics, which mask."""

from pathlib import Path

import pytest
import torch

from torchmae.data.config import DecodeOptions
from torchmae.data.sources.single import read_image
from torchmae.data.transforms import CenterCropResize
from torchmae.models.mae import MAE
from torchmae.models.masking import MaskGenerator
from torchmae.models.patches import gather_tokens, patchify, scatter_tokens, unpatchify
from torchmae.models.weights import load_mae
from torchmae.report.pictures import (
    MOST_ERROR,
    caption,
    draw_mask,
    error_map,
    predict_pixels,
    with_errors,
)


@pytest.fixture
def model(run: Path) -> MAE:
    return load_mae(run)


def read_photo(path: Path, model: MAE) -> torch.Tensor:
    pixels = read_image(str(path), DecodeOptions(channels=3))
    return CenterCropResize(model.encoder.image_size)(pixels)[0]


def test_visible_patches_are_the_image_and_hidden_ones_are_not_in_it(
    model: MAE, photos: Path
) -> None:
    images = torch.stack([read_photo(photos / "across" / f"{i}.jpg", model) for i in range(3)])
    mask = draw_mask(model, MaskGenerator(), 0, torch.arange(3))
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


def test_the_default_picture_knows_nothing_of_the_hidden_pixels(model: MAE, photos: Path) -> None:
    """The leak of other viewers: change hidden pixels, and an honest picture must not change."""
    images = read_photo(photos / "down" / "0.jpg", model).unsqueeze(0)
    mask = draw_mask(model, MaskGenerator(), 0, torch.arange(1))
    size, grid = model.encoder.patch, model.encoder.grid
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


def test_the_caption_says_whose_statistics(model: MAE) -> None:
    assert "TRUE" in caption(model, True) and "leaks" in caption(model, True)
    assert "predicted" in caption(model, False) and "TRUE" not in caption(model, False)


def test_errors_are_colours_from_white_to_dark_red() -> None:
    images = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    others = images.clone()
    others[0, :, 0, 1] = torch.tensor([1, 0, 0])  # the least that differs
    others[0, :, 1, 0], others[0, :, 1, 1] = MOST_ERROR, 255
    colours, mean = error_map(images, others)
    assert mean == pytest.approx((1 / 3 + MOST_ERROR + 255) / 4)
    assert colours[0, :, 0, 0].tolist() == [255, 255, 255] != colours[0, :, 0, 1].tolist()
    assert torch.equal(colours[0, :, 1, 0], colours[0, :, 1, 1])
    red, green, blue = colours[0, :, 1, 1].tolist()
    assert 80 < red < 130 and green < 20 and blue < 20
    assert torch.equal(error_map(others, images)[0], colours)


def test_errors_are_those_of_hidden_patches(model: MAE, photos: Path) -> None:
    images = read_photo(photos / "down" / "0.jpg", model).unsqueeze(0)
    masks = {
        f"{r} ": draw_mask(model, MaskGenerator(ratio=r), 0, torch.arange(1)) for r in (0.5, 0.75)
    }
    rows = with_errors(model, images, masks, False)
    assert [name.split(",")[0] for name in rows] == [
        f"{ratio} {row}"
        for ratio in (0.5, 0.75)
        for row in ("masked", "prediction", "reconstruction", "error")
    ]
    for ratio, mask in masks.items():
        (name,) = (name for name in rows if name.startswith(f"{ratio}error"))
        patches = patchify(rows[name], model.encoder.patch)
        assert (gather_tokens(patches, mask.keep) == 255).all()
        truth, made = (
            gather_tokens(patchify(x, model.encoder.patch), mask.hide).float()
            for x in (images, rows[f"{ratio}reconstruction"])
        )
        assert float(name.split()[-1]) == pytest.approx(
            float((truth - made).abs().mean()), abs=0.06
        )
