"""A detector as a graph finds what the detector finds, in eager mode and reloaded elsewhere."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs_on_disk import ENV
from safetensors.torch import save_file

import torchmae
from torchmae.errors import RunError, UserError
from torchmae.interop.exporting.check import ExportInput, ExportResult
from torchmae.models.detection.detector import Detector
from torchmae.models.encoders import new_encoder

pytest.importorskip("torchvision")
from torchmae.interop.exporting.detectors import (
    DetectorGraph,
    compare_found,
    differences,
    outputs,
)

SIZE = (32, 48)


def detector(kind: str = "mask_rcnn") -> Detector:
    """Random weights that are far from equal, so that scores differ."""
    torch.manual_seed(0)
    encoder = new_encoder("vit_micro", SIZE, 8, 3)
    made = Detector(encoder, ("a", "b"), kind, width=16, samples=16, max_detections=20)
    with torch.no_grad():
        for value in made.parameters():
            value.add_(torch.randn_like(value) * 0.1)
        made.heads.box_predictor.bbox_pred.weight.mul_(0.1)
    return made.eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, as a training would have left it."""
    folder, model = tmp_path_factory.mktemp("runs") / "cells", detector()
    folder.mkdir()
    about: dict[str, Any] = dict(
        torchmae="0.1.0", commit=None, verb="detect", config={"data": "x/cells"}
    )
    about |= dict(data={"count": 12, "fingerprint": "f"}, model=model.config())
    (folder / "config.json").write_text(json.dumps(about))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("kind", ["mask_rcnn", "faster_rcnn"])
def test_the_graph_finds_what_the_detector_finds(kind: str) -> None:
    model = detector(kind)
    graph = DetectorGraph(model, pixels=False).eval()
    assert outputs(model)[-1] == "count" and ("masks" in outputs(model)) == (kind == "mask_rcnn")
    for seed in range(6):
        image = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            found = dict(zip(outputs(model), graph(image), strict=True))
            (expected,) = model(image)
            count = int(found["count"])
            assert count == len(expected["scores"]) > 5
            kept = {n: v[:count] for n, v in found.items() if n != "count"}
            assert differences(expected, kept, 48).max() < 1e-5
            assert torch.allclose(kept["scores"], expected["scores"])  # in the same order


def test_objects_below_the_score_and_in_black_images_are_behind_the_count() -> None:
    model = detector("faster_rcnn")
    with torch.no_grad():
        model.heads.box_predictor.cls_score.bias[0] += 20  # all is background
        boxes, scores, labels, count = DetectorGraph(model, pixels=True)(
            torch.zeros(1, 3, *SIZE, dtype=torch.uint8)
        )
    assert count == 0 and scores.shape == (20,) and labels.max() < 2 and boxes.isfinite().all()
    assert (scores <= 0.05).all()


def test_another_model_is_refused() -> None:
    model = detector()
    other = detector()
    with torch.no_grad():
        other.heads.box_predictor.cls_score.bias[1] += 1e-2
    graph = DetectorGraph(other, pixels=False).eval()
    subject = ExportInput(model, {}, model.config(), 0.75, Path("x"), 1.0)
    with pytest.raises(RunError, match=r"finds \d+ of 320 objects otherwise, by more than 1e-05"):
        compare_found(subject, ExportResult(graph, [], None))
    assert model.heads.score_thresh == 0.05


def test_reloaded_by_onnxruntime_and_torch(run: Path, tmp_path: Path) -> None:
    """Traced in a process of its own, without the shape checks of the tests."""
    ort = pytest.importorskip("onnxruntime")
    code = f"""
from torchmae.cli import main
to = ["export", {str(run)!r}, "--to"]
assert main([*to, "onnx", "--with-preprocessing", "--out", {str(tmp_path / "onnx")!r}]) == 0
assert main([*to, "torch-export", "--out", {str(tmp_path / "pt2")!r}]) == 0
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(scores, masks, boxes in sides of the image)") == 2
    session = ort.InferenceSession(tmp_path / "onnx/model.onnx")
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties["classes"]) == ["a", "b"]
    assert properties["input"] == "uint8 pixels, [1, 3, 32, 48]"
    assert [one.name for one in session.get_outputs()] == list(outputs(detector()))
    program = torch.export.load(tmp_path / "pt2/model.pt2").module()
    model = torchmae.load(run)
    for seed in (7, 8):
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, (1, 3, *SIZE), generator=generator, dtype=torch.uint8)
        (expected,) = model.predict(pixels)
        _, scores, labels, masks, count = session.run(None, {"images": pixels.numpy()})
        assert count == len(expected.scores) > 5
        assert torch.allclose(torch.from_numpy(scores[:count]), expected.scores, atol=1e-4)
        assert (labels[:count] == expected.classes.numpy()).mean() > 0.8 and masks.ndim == 3
        again = program(model.encoder.normalize(pixels))
        assert torch.allclose(again[1][: int(again[-1])], expected.scores, atol=1e-5)
    card = (tmp_path / "onnx/README.md").read_text()
    assert "It finds its 2 classes only" in card and "in a graph (onnx" in card
    with pytest.raises(UserError, match="a detector has no place there: use --to onnx"):
        torchmae.export(run, to="timm", out=tmp_path / "timm")
    with pytest.raises(UserError, match="a detector returns boxes; its features"):
        torchmae.export(run, to="onnx", out=tmp_path / "o", with_preprocessing=True, pool="cls")
