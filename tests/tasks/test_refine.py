"""mae refine: what moves, resumed to the same bits, one process as two, later verbs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.mae import tiny
from torch import Tensor

import torchmae
from torchmae import cli
from torchmae.data.loader import Batches
from torchmae.data.sources import open_source
from torchmae.data.transforms import RandomResizedCropFlip
from torchmae.errors import UserError
from torchmae.models.refine import Refined
from torchmae.models.weights import load
from torchmae.runfolder import read_results
from torchmae.tasks.refine.task import RefineTask, TwoViews

ASKED = dict(epochs=2, batch_size=6, queue=32, blocks=2, log_every=3, save_minutes=1e-6,
             workers=0, device="cpu", precision="fp32")  # fmt: skip


@pytest.fixture(scope="module")
def refined(run: Path, photos: Path, tmp_path_factory) -> Path:
    parent = shutil.copytree(run, tmp_path_factory.mktemp("parent") / "small")
    return Path(torchmae.refine(parent, photos, **ASKED))


def test_the_last_blocks_move_and_k_nn_is_measured_before_and_after(refined: Path) -> None:
    parent = refined.with_name("small")
    assert refined.name == "small-refined"
    before, after = load(parent).state_dict(), load(refined).state_dict()
    depth = len(load(parent).layers())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    last = tuple(f"blocks.{i}." for i in (depth - 2, depth - 1))
    assert {n for n in before if n.startswith(("norm.", *last))} == moved
    for place in (parent, refined):
        assert read_results(place)[-1]["results"]["knn"]["features"]["accuracy"] >= 0
    records = [json.loads(line) for line in (refined / "log.jsonl").read_text().splitlines()]
    assert all(record["queue rank"] > 2 for record in records if "loss" in record)


def test_a_resumed_run_ends_with_the_same_bits(refined: Path, photos: Path, tmp_path) -> None:
    again = shutil.copytree(refined, tmp_path / "again")
    whole = (again / "model.safetensors").read_bytes()
    shutil.rmtree(max((again / "state").iterdir()))
    (again / "model.safetensors").unlink()
    asked = {**ASKED, "micro_batch_size": 6, "labelled": "none"}
    torchmae.refine(refined.with_name("small"), photos, out=again, **asked)
    assert (again / "model.safetensors").read_bytes() == whole


def test_two_processes_and_micro_batches_are_one(photos: Path) -> None:
    torch.manual_seed(0)
    model = Refined(tiny((16, 16)).encoder, 16, 0.1)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    crop = TwoViews(RandomResizedCropFlip((16, 16), 3))
    source, found = open_source(str(photos)), []
    for size, parts in ((1, 1), (2, 1), (1, 3)):
        model.load_state_dict(start)
        model.zero_grad()
        pushed: list[Tensor] = []
        losses: list[Tensor] = []

        def gather(rows: Tensor, pushed: list[Tensor] = pushed) -> Tensor:
            pushed.append(rows)
            return rows

        for rank in range(size):
            task = RefineTask(model, 1, 6 // size, gather).train()
            batch = Batches(source, crop, 6, 3, rank, size)[4]
            for part in batch.chunks(parts):
                losses.append(task(part)["loss"] / (size * parts))
                losses[-1].backward()
            queue = model.contrast.queue.clone()
            task.after_step(4)
            model.contrast.queue.copy_(queue)  # the others have not seen it
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append((torch.stack(losses).sum(), torch.cat(pushed), *gradients))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    views = Batches(source, crop, 6, 3)[4]
    assert not torch.equal(views.images, torch.stack(views.targets)), "two crops"


def test_later_verbs_take_it(refined: Path, photos: Path, tmp_path: Path) -> None:
    exported = ["export", str(refined), "--to", "safetensors", "--out", str(tmp_path / "e")]
    assert cli.main(exported) == 0
    from safetensors.torch import load_file

    assert not any("contrast" in n for n in load_file(tmp_path / "e" / "model.safetensors"))
    out = tmp_path / "features.npz"
    assert cli.main(["embed", str(refined), str(photos), "--out", str(out)]) == 0
    assert cli.main(["verify", str(refined)]) == 0


@pytest.mark.parametrize(
    "asked, words",
    [
        (dict(blocks=99), "--blocks 99: the encoder of .* has"),
        (dict(batch_size=24, queue=8), "--batch-size 24 is more than --queue 8: use at most 8"),
        (dict(cache="device"), "use --cache memory"),
        (dict(fsdp=True), "without --fsdp"),
    ],
)
def test_mistakes_come_before_compute(run: Path, photos: Path, tmp_path, asked, words) -> None:
    with pytest.raises(UserError, match=words):
        torchmae.refine(run, photos, out=tmp_path / "x", **{**ASKED, **asked})
