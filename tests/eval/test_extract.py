"""Features of all readable images: order, pools, layers, decoding."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchmae.data.config import DecodeOptions
from torchmae.data.sources import open_source
from torchmae.data.sources.source import Subset
from torchmae.errors import UserError
from torchmae.eval.extract import POOLS, collect, features_of, say_view
from torchmae.models.weights import load

CPU = torch.device("cpu")


def test_pools_leave_out_the_tokens_that_are_no_patches() -> None:
    tokens = torch.randn(2, 3 + 4, 5)
    assert torch.equal(POOLS["cls"](tokens, 3), tokens[:, 0])
    assert torch.equal(POOLS["mean"](tokens, 3), tokens[:, 3:].mean(1))
    assert POOLS["cls+mean"](tokens, 3).shape == (2, 10)


def test_one_pass_serves_several_functions_in_order(run: Path, photos: Path) -> None:
    encoder = load(run)
    functions = [features_of(encoder, None, pool, CPU) for pool in ("cls", "mean", "cls+mean")]
    source = open_source(str(photos))
    ids, (cls, mean, both), bad = collect(source, encoder, run, functions, CPU, batch_size=7)
    assert ids == list(range(24))
    assert bad == []
    assert torch.equal(both, torch.cat([cls, mean], dim=1))


def test_unreadable_images_are_named_and_not_counted(run: Path, tmp_path: Path) -> None:
    for i in range(3):
        Image.new("RGB", (40, 40), (80 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    encoder = load(run)
    functions = [features_of(encoder, None, "mean", CPU)]
    ids, (rows,), bad = collect(open_source(str(tmp_path)), encoder, run, functions, CPU)
    assert ids == [0, 2]
    assert len(rows) == 2
    assert [file.name for file in bad] == ["1.png"]
    for i in (0, 2):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"none of the 3 images can be read; the first: 0\.png"):
        collect(open_source(str(tmp_path)), encoder, run, functions, CPU)


def test_images_are_decoded_as_their_source_says(run: Path, tmp_path: Path) -> None:
    pixels = np.full((40, 40), 32768, dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    encoder = load(run)
    for bands in (None, ("1", "1", "1")):
        source = open_source(str(tmp_path), DecodeOptions(bands=bands))
        _, (images,), _ = collect(source, encoder, run, [lambda x: x], CPU)
        assert images.shape == (1, 3, 32, 32) and images.dtype == torch.float32
        assert torch.allclose(images, torch.tensor(32768.0))


def test_what_the_plan_of_the_run_has_said_is_not_repeated(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "large").mkdir()
    for i in range(3):
        Image.new("RGB", (500, 160), (80 * i, 0, 0)).save(tmp_path / "large" / f"{i}.png")
    source = open_source(str(tmp_path / "large"))
    say_view(source, run)
    said = capsys.readouterr().out
    assert "3 of 3 images are shrunk more than 4 times" in said and "center crop shows" in said
    own = shutil.copytree(run, tmp_path / "own")
    config = json.loads((own / "config.json").read_text())
    config["data"]["fingerprint"] = source.fingerprint()
    (own / "config.json").write_text(json.dumps(config))
    (own / "manifest.json").unlink()
    say_view(Subset(source, [0, 2]), own)  # of the images that it was trained on
    said = capsys.readouterr().out
    assert "shrunk" not in said and "center crop shows" in said  # which mae pretrain has not said


def test_mistakes(run: Path) -> None:
    encoder = load(run)
    for layer, pool, message in ((0, "mean", "--layer 0: 1 to 6"), (None, "max", "unknown pool")):
        with pytest.raises(UserError, match=message):
            features_of(encoder, layer, pool, CPU)
