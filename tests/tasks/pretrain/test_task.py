"""Several masks of a crop, units, and predicting a part: what is trained is what the words say."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from helpers.mae import DECODER, tiny
from helpers.small import SMALL, make_photos
from torch import Tensor

import torchmae
from torchmae import cli
from torchmae.data.loader import Batch
from torchmae.errors import RunError, UserError
from torchmae.models.masking import MaskGenerator, noise
from torchmae.tasks.pretrain.plan import COLLAPSE
from torchmae.tasks.pretrain.task import PretrainTask


def batch_of(count: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return Batch(images, None, torch.tensor([4, 4, 5]), torch.tensor([7, 0, 2]))


def loss_of(task: PretrainTask, batch: Batch) -> Tensor:
    task.zero_grad()
    loss = task(batch)["loss"]
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("complementary", [False, True])
def test_views_are_a_loop_over_masks(complementary: bool, share: float) -> None:
    torch.manual_seed(0)
    model = tiny(decoder=DECODER)
    masks, batch = MaskGenerator(predicted=share), batch_of()
    task = PretrainTask(model, masks, 3, 0.1, 4, complementary)
    loss = loss_of(task, batch)
    mine = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    losses, seen = [], []
    model.zero_grad()
    for view in range(4):
        # Alone: one mask, of an epoch of its own or the next turn of the same epoch's.
        epoch = batch.epoch if complementary else batch.epoch * 4 + view
        mask = masks(noise(3, epoch, batch.sample, 16), (4, 4), view if complementary else 0)
        images, _, noisy, _ = PretrainTask(model, masks, 3, 0.1).inputs(batch)
        output = model(images, mask, noisy)
        losses.append(output.loss.detach())
        seen.append(mask.keep)
        ((output.loss + output.statistics_loss) / 4).backward()
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(mine[name], parameter.grad)
    places = torch.cat(seen, dim=1).sort(dim=1).values
    assert torch.equal(places, torch.arange(16).expand(3, -1)) == complementary


WAYS = {
    "views": dict(views=4, decoder="cross", predict_share=0.5),
    "complementary": dict(views=2, complementary=True, masking="green", mask_unit=2),
    "ratios": dict(mask_ratio="0.5..0.8", views=2, decoder="cross-weighted"),
    "ema": dict(target="ema", views=2),
}
SAID = {
    "views": "4 masks of each crop",
    "complementary": "2 complementary masks of each crop",
    "ratios": "50 to 80 % of patches hidden (random), 2 masks of each crop",
    "ema": "target ema",
}


@pytest.mark.parametrize("way", WAYS)
def test_it_trains_and_a_resumed_run_ends_with_the_same_bits(tmp_path, way, capsys) -> None:
    photos = make_photos(tmp_path / "photos")
    asked = dict(
        out=str(tmp_path / "run"), epochs=3, log_every=2, save_minutes=1e-6,
        **SMALL, **WAYS[way],
    )  # fmt: skip
    run = torchmae.pretrain(str(photos), **asked).path
    words = capsys.readouterr().out
    assert SAID[way] in words
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert records[-1]["images_seen"] == 8 * records[-1]["step"], "each mask is counted"
    whole = (run / "model.safetensors").read_bytes()
    shutil.rmtree(max((run / "state").iterdir()))
    (run / "model.safetensors").unlink()
    torchmae.pretrain(str(photos), **{**asked, "micro_batch_size": 8 // WAYS[way]["views"]})
    assert (run / "model.safetensors").read_bytes() == whole
    if way == "ema":  # its predictions are no pixels
        assert all(r["target std"] > 0.1 and r["target rank"] > 1 for r in records)
        return
    cli.main(["reconstruct", str(run), str(photos), "--sheet", "--count", "2", "--out",
              str(tmp_path / "sheet.png")])  # fmt: skip
    assert (tmp_path / "sheet.png").is_file()


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(batch_size=9, views=4), "--batch-size 9 counts 4 masks of each crop"),
        (dict(complementary=True), "add --views 4"),
        (dict(predict_share=0.5, loss_on="all"), "--loss-on all needs all of them"),
        (dict(mask_unit=3), "units of 3x3 patches do not fill a grid of 4x4"),
        (dict(decoder="cross", encode_all=True), "use the transformer decoder"),
        (dict(masking="greem"), "green"),
        (dict(mask_ratio="0.9..0.6"), "a share above 0 to a larger one"),
        (dict(mask_ratio="0.9..1"), "must be below 1"),
        (dict(target="ema", fsdp=True), "needs the whole encoder in each process"),
        (dict(mask_ratio="much"), "a range such as 0.6..0.9"),
        (dict(mask_ratio="0.5..0.95"), "leaves 0 of 16 patches visible"),
    ],
)
def test_what_does_not_go_together_is_said_before_training(tmp_path, options, words) -> None:
    photos = make_photos(tmp_path / "photos")
    with pytest.raises(UserError, match=words):
        torchmae.pretrain(str(photos), out=str(tmp_path / "run"), **{**SMALL, **options})


def test_a_collapsed_target_stops_the_training_with_words(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("torchmae.tasks.pretrain.plan.COLLAPSE", replace(COLLAPSE, least=2.0))
    photos = make_photos(tmp_path / "photos")
    asked = dict(out=str(tmp_path / "run"), epochs=1, log_every=1, target="ema", **SMALL)
    with pytest.raises(RunError, match=r"^step 1: target std is 0\..* below 2: all images"):
        torchmae.pretrain(str(photos), **asked)
