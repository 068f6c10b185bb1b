"""The features beside which a run's are measured."""

from pathlib import Path

import torch

from torchmae.data.sources import open_source
from torchmae.eval.baselines import baseline_features, raw_pixels, untrained

CPU = torch.device("cpu")


def test_three_kinds_of_features_in_one_pass(run: Path, photos: Path) -> None:
    extract = baseline_features(str(run), None, "mean", 16, 0, CPU)
    ids, found, bad = extract(open_source(str(photos)))
    assert len(ids) == 24
    assert bad == []
    assert {name: rows.shape for name, rows in found.items()} == {
        "features": (24, 128),
        "untrained encoder": (24, 128),
        "raw pixels": (24, 3 * 16 * 16),
    }
    assert not torch.equal(found["features"], found["untrained encoder"])


def test_raw_pixels_are_block_means_and_never_enlarged() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    expected = images.float().unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5))
    assert torch.allclose(raw_pixels(images, 4), expected.flatten(1))
    assert torch.equal(raw_pixels(images, 16), images.float().flatten(1))


def test_the_untrained_encoder_is_its_seed_s(run: Path) -> None:
    first, again, other = (untrained(str(run), seed).state_dict() for seed in (0, 0, 1))
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
