"""mae finetune --mae-weight: both losses, resumed to the same bits, exported alone."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.small import QUICK, make_photos

import torchmae
from torchmae import cli
from torchmae.data.loader import Batch, Batches, Paired
from torchmae.data.sources import open_source
from torchmae.data.transforms import RandomResizedCropFlip
from torchmae.errors import UserError
from torchmae.models.masking import noise
from torchmae.models.weights import load_classifier, load_mae
from torchmae.runfolder import stored_settings
from torchmae.settings.options import build
from torchmae.tasks.finetune.config import ResolvedFinetune
from torchmae.tasks.finetune.task import ClassifyTask

ASKED = {**QUICK, "mae_weight": 0.9, "layer_decay": 0.75}


@pytest.fixture(scope="module")
def tuned(run: Path, photos: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("beside") / "run"
    return Path(torchmae.finetune(run, photos, out=out, log_every=2, save_minutes=1e-6, **ASKED))


def test_the_loss_is_the_weighted_sum_and_the_decoder_begins_as_the_run_s(
    tuned: Path, run: Path
) -> None:
    config = build(ResolvedFinetune, stored_settings(tuned))
    model, mae = load_classifier(tuned), load_mae(run)
    task = ClassifyTask(model, config).train()
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    batch = Batch(images, torch.tensor([0, 1, 2, 0]), torch.full((4,), 5), torch.arange(4))
    model.beside.take(mae)
    model.encoder.load_state_dict(mae.encoder.state_dict(), strict=False)
    loss = task(batch)["loss"]
    floats = mae.encoder.normalize(images)
    mask = model.beside.masks(
        noise(config.optim.seed, batch.epoch, batch.sample, 16), mae.encoder.grid
    )
    theirs = mae(floats, mask).loss
    smooth = config.regularization.label_smoothing
    targets = F.one_hot(batch.targets, 3) * (1 - smooth) + smooth / 3
    labels = F.cross_entropy(model(floats, task.draws(batch)), targets)
    torch.testing.assert_close(loss, 0.1 * labels + 0.9 * theirs)


def test_it_trains_both_and_a_resumed_run_ends_with_the_same_bits(
    tuned: Path, run: Path, photos: Path, tmp_path: Path
) -> None:
    records = [json.loads(line) for line in (tuned / "log.jsonl").read_text().splitlines()]
    assert all(r["mae loss"] > 0 for r in records if "loss" in r)
    before, after = load_mae(run), load_classifier(tuned)
    own = after.beside.decoder
    assert not torch.equal(own.pred.weight, before.decoder.pred.weight), "it is trained"
    assert torch.equal(own.pos_embed, before.decoder.pos_embed)
    whole = (tuned / "model.safetensors").read_bytes()
    again = shutil.copytree(tuned, tmp_path / "again")
    shutil.rmtree(max((again / "state").iterdir()))
    (again / "model.safetensors").unlink()
    torchmae.finetune(run, photos, out=again, log_every=2, save_minutes=1e-6, **ASKED)
    assert (again / "model.safetensors").read_bytes() == whole


def test_images_without_labels(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    """Their loss against a written-out one; two processes see what one does; resumed the same."""
    others = make_photos(tmp_path / "others", each=2)
    asked = {**ASKED, "unlabelled": str(others), "save_minutes": 1e-6, "out": tmp_path / "run"}
    made = Path(torchmae.finetune(run, photos, **asked))
    assert "6 images, 6 beside the labelled ones of each step" in capsys.readouterr().out
    model = load_classifier(made)
    task = ClassifyTask(model, build(ResolvedFinetune, stored_settings(made)))
    crop = RandomResizedCropFlip((32, 32))

    def step(rank: int, size: int) -> Batch:
        both = (
            Batches(open_source(str(data)), crop, 6, 3, rank, size) for data in (photos, others)
        )
        return Paired(*both)[5]

    whole, one, two = step(0, 1), step(0, 2), step(1, 2)
    assert one.beside and two.beside and whole.beside and model.beside
    for a, b, both in ((one, two, whole), (one.beside, two.beside, whole.beside)):
        assert torch.equal(torch.cat([a.images, b.images]), both.images)
        assert torch.equal(torch.cat([a.sample, b.sample]), both.sample)
    with torch.no_grad():
        floats = model.encoder.normalize(torch.cat([whole.images, whole.beside.images]))
        scores = [noise(task.seed, x.epoch, x.sample, 16) for x in (whole, whole.beside)]
        mask = model.beside.masks(torch.cat(scores), (4, 4))
        wanted = model.beside(model.encoder, floats, mask)
        found = task.mae_loss(model.encoder.normalize(whole.images), whole)
        torch.testing.assert_close(found, wanted)
        parts = whole.chunks(3)
        losses = [task.mae_loss(model.encoder.normalize(x.images), x) for x in parts]
        torch.testing.assert_close(torch.stack(losses).mean(), wanted)
    before = (made / "model.safetensors").read_bytes()
    shutil.rmtree(max((made / "state").iterdir()))
    (made / "model.safetensors").unlink()
    torchmae.finetune(run, photos, **{**asked, "micro_batch_size": 6})
    assert (made / "model.safetensors").read_bytes() == before


def test_later_verbs_take_it(tuned: Path, photos: Path, tmp_path: Path) -> None:
    assert cli.main(["evaluate", str(tuned), str(photos)]) == 0
    exported = ["export", str(tuned), "--to", "safetensors", "--out", str(tmp_path / "exported")]
    assert cli.main(exported) == 0
    from safetensors.torch import load_file

    names = load_file(tmp_path / "exported" / "model.safetensors")
    assert "head.weight" in names and not any("beside" in name for name in names)


@pytest.mark.parametrize(
    "asked, words",
    [
        (dict(run="none"), "--mae-weight trains the encoder by the decoder"),
        (dict(train="head"), "--mae-weight trains the encoder by the decoder"),
        (dict(mae_weight=0.0, unlabelled="x"), "add --mae-weight 0.9"),
        (dict(unlabelled="x", cache="device"), "--cache device holds one set"),
    ],
)
def test_what_it_needs_is_said_before_training(run, photos, asked, words, tmp_path) -> None:
    asked = {"run": run, "mae_weight": 0.5, **QUICK, **asked}
    with pytest.raises(UserError, match=words):
        torchmae.finetune(asked.pop("run"), photos, out=tmp_path / "x", **asked)
