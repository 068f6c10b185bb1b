"""The MAE's loss beside a classifier's: that of the MAE it comes from, number by number."""

import pytest
import torch
from helpers.mae import some, tiny

from torchmae.errors import UserError
from torchmae.models.beside import MAEBeside, described_beside
from torchmae.models.decoders import DecoderConfig
from torchmae.models.heads import Classifier, trainable
from torchmae.models.mae import MAE
from torchmae.models.vit import ViT


def beside(mae: MAE, pool: str = "mean") -> tuple[Classifier, MAEBeside]:
    encoder = ViT(**{n: v for n, v in mae.encoder.config().items() if n != "kind"})
    encoder.load_state_dict(mae.encoder.state_dict())
    classifier = Classifier(encoder, ["a", "b"], pool)
    described = described_beside(mae, encoder, {"mask_ratio": 0.5, "masking": "block", "seed": 3})
    added = classifier.add_beside(described)
    added.take(mae)
    return classifier, added


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("target", ["norm-pixels", "hog", "ema"])
def test_loss_and_gradients_are_those_of_the_mae(target, pool):
    torch.manual_seed(0)
    mae = tiny(target=target, encoder=dict(registers=2))
    if target == "ema":
        mae.target.follow(mae.encoder, decay=0.0)
    classifier, added = beside(mae, pool)
    images, mask = some(mae)
    wanted = mae(images, mask).loss
    wanted.backward()
    found = added(classifier.encoder, images, mask)
    found.backward()
    assert torch.equal(found, wanted)
    theirs = dict(mae.named_parameters())
    for name, parameter in classifier.named_parameters():
        own = name.removeprefix("beside.").replace("norm.", "encoder.norm.", 1)
        own = own if name.startswith("beside.norm.") else name.removeprefix("beside.")
        if own in theirs and theirs[own].grad is not None:
            torch.testing.assert_close(parameter.grad, theirs[own].grad)
    assert added.masks.ratio == 0.5 and added.masks.name == "block"
    again = Classifier.build(classifier.config())
    again.load_state_dict(classifier.state_dict())
    assert again.beside is not None
    assert torch.equal(again.beside(again.encoder, images, mask), wanted)
    moved = trainable(classifier, "all")
    assert "beside.decoder.pred.weight" in moved and "beside.decoder.pos_embed" not in moved


def test_another_size_has_its_own_positions():
    torch.manual_seed(0)
    mae, encoder = tiny(), tiny((24, 32)).encoder
    classifier = Classifier(encoder, ["a", "b"], "cls")
    added = classifier.add_beside(described_beside(mae, encoder, {}))
    added.take(mae)
    own = added.decoder
    assert own.grid == (6, 8) and own.pos_embed.shape[1] == 49
    assert torch.equal(own.pred.weight, mae.decoder.pred.weight)
    images = torch.randn(2, 3, 24, 32)
    mask = some(tiny((24, 32)), batch=2)[1]
    assert added(encoder, images, mask).isfinite()


def test_what_it_cannot_be_made_of():
    gray, encoder = tiny(channels=1), tiny().encoder
    with pytest.raises(UserError, match="1 channels, and there are 3"):
        described_beside(gray, encoder, {})
    with pytest.raises(UserError, match="saw every patch"):
        described_beside(tiny(), encoder, {"mask_ratio": 0.0})
    with pytest.raises(UserError, match="saw every patch"):
        described_beside(tiny(encode_all=True), encoder, {})
    weighted = tiny(decoder=DecoderConfig("cross-weighted", 16, 1, 2))
    with pytest.raises(UserError, match="last block's features, not cross-weighted"):
        described_beside(weighted, encoder, {})
