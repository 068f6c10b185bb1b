"""`mae bench dense`: every candidate trains and predicts, and is measured."""

import json

import pytest
import torch

from torchmae import cli
from torchmae.benchmarks.config import Bench
from torchmae.benchmarks.dense import CLASSES, PEER, detector, peer, segmenter

CONFIG = Bench(
    "dense", model="vit_micro", image_size=64, patch_size=16, batch_size=1, precision="fp32"
)


def test_ours_learn_one_batch():
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    for case in (
        segmenter(CONFIG, "vit_micro", "fpn", images),
        detector(CONFIG, "vit_micro", "mask_rcnn", images),
    ):
        for group in case.optimizer.param_groups:
            group["lr"] = 1e-3
        step = case.candidate("", "train", CONFIG).step
        before = float(case.loss().detach())
        for _ in range(6):
            step()
        case.model.train()
        assert float(case.loss().detach()) < before


def test_the_peer_has_the_same_classes():
    pytest.importorskip("torchvision")
    found = peer(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).model
    assert found.roi_heads.box_predictor.cls_score.out_features == CLASSES + 1


def test_a_table_of_five(tmp_path, capfd):
    pytest.importorskip("torchvision")
    line = "bench dense --model vit_micro --image-size 64 --batch-size 1 --rounds 1"
    out = tmp_path / "bench.json"
    code = cli.main([*line.split(), "--device", "cpu", "--precision", "fp32", "--out", str(out)])
    assert code == 0 and "training step" in capfd.readouterr().out
    rows = json.loads(out.read_text())["models"]["vit_micro"]["rows"]
    assert [row["what"] for row in rows] == ["train"] * 5 + ["predict"] * 5
    assert all(row["images_per_s"] > 0 and row["peak_memory_mb"] > 1 for row in rows)
    assert {row["name"] for row in rows if row["speed"] is None} == {PEER}
    least = {row["name"]: row["peak_memory_mb"] for row in rows if row["what"] == "predict"}
    assert all(row["peak_memory_mb"] > least[row["name"]] for row in rows[:5])


def test_what_does_not_go_with_it(capfd):
    assert cli.main(["bench", "dense", "--compile"]) == 2
    assert "--compile goes with mae bench step" in capfd.readouterr().err
