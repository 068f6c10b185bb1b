"""mae finetune --mae-weight: both losses, resumed to the same bits, exported alone."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.small import QUICK

import torchmae
from torchmae import cli
from torchmae.data.loader import Batch
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


def test_later_verbs_take_it(tuned: Path, photos: Path, tmp_path: Path) -> None:
    assert cli.main(["evaluate", str(tuned), str(photos)]) == 0
    exported = ["export", str(tuned), "--to", "safetensors", "--out", str(tmp_path / "exported")]
    assert cli.main(exported) == 0
    from safetensors.torch import load_file

    names = load_file(tmp_path / "exported" / "model.safetensors")
    assert "head.weight" in names and not any("beside" in name for name in names)


@pytest.mark.parametrize("asked", [dict(run="none"), dict(train="head")])
def test_what_it_needs_is_said_before_training(run: Path, photos: Path, asked, tmp_path) -> None:
    start = asked.pop("run", run)
    with pytest.raises(UserError, match="--mae-weight trains the encoder by the decoder"):
        torchmae.finetune(start, photos, out=tmp_path / "x", **{**QUICK, **asked}, mae_weight=0.5)
