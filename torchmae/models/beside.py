"""The MAE's loss beside another one, on the same encoder."""

from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchmae.errors import UserError, choose
from torchmae.models.decoders import DECODERS, DecoderConfig
from torchmae.models.encoders import Backbone
from torchmae.models.mae import MAE
from torchmae.models.masking import Mask, MaskGenerator
from torchmae.models.patches import size_name
from torchmae.models.targets import build_target


class MAEBeside(nn.Module):
    """The decoder of a run, so that the encoder of a classifier keeps its first task (SSAT, Das et
    al. 2024).

    Args:
        encoder: of the classifier, in which it stays.
        described: what `described_beside` says.
        norm: whether the encoder's last norm was removed, so that the decoder needs it here.
    """

    def __init__(self, encoder: Backbone, described: dict[str, Any], norm: bool):
        super().__init__()
        self.described = described
        self.masks = MaskGenerator.of(described["masks"])
        self.class_tokens = min(1, encoder.num_prefix_tokens)
        self.prefix = encoder.num_prefix_tokens
        self.norm = nn.LayerNorm(encoder.embed_dim, eps=1e-6) if norm else nn.Identity()
        statistics = (encoder.mean, encoder.std)
        target = described["target"]
        self.target = build_target(target, encoder.patch, encoder.channels, *statistics)
        config = DecoderConfig(**described["decoder"])
        build = choose(DECODERS, config.kind, "decoder")
        self.decoder = build(config, encoder, self.target.width, True)

    def forward(
        self, encoder: Backbone, images: Float[Tensor, "B C H W"], mask: Mask
    ) -> Float[Tensor, ""]:
        """The loss on hidden patches, as `MAE.forward` gives it.

        Args:
            encoder: the one that it was built for.
            images: normalised.
            mask: the visible and the predicted patches.
        """
        latent = self.norm(encoder(images, mask.keep))
        first, patches = latent[:, : self.class_tokens], latent[:, self.prefix :]
        latent = patches if not self.class_tokens else torch.cat([first, patches], dim=1)
        prediction = self.decoder.pred(self.decoder.hidden(latent, mask))
        exact = torch.promote_types(images.dtype, torch.float32)
        return self.target.loss(prediction.to(exact), self.target(images, mask.hide))

    def take(self, mae: MAE) -> None:
        """Copies the weights of a run's decoder and target, and of the norm before them.

        Positions of another grid stay those of this one.
        """
        own = self.state_dict()
        theirs = {
            n: w for n, w in mae.state_dict().items() if n.startswith(("decoder.", "target."))
        }
        theirs |= {
            n.removeprefix("encoder."): w
            for n, w in mae.state_dict().items()
            if n.startswith("encoder.norm.")
        }
        if mae.decoder.grid != self.decoder.grid:
            del theirs["decoder.pos_embed"]
        self.load_state_dict(own | {n: w for n, w in theirs.items() if n in own})


def described_beside(mae: MAE, encoder: Backbone, settings: dict[str, Any]) -> dict[str, Any]:
    """What a `MAEBeside` is built from, JSON-able.

    Args:
        mae: of the run.
        encoder: of the classifier.
        settings: of the run, which say how it masked.

    Raises:
        UserError: the run hid nothing, had mask tokens in its encoder, or saw other channels, or
            its decoder needs the features of every block.
    """
    masks = {name: settings[name] for name in MASKED if name in settings}
    if mae.decoder.every_block:
        kind = mae.decoder.config.kind
        raise UserError(f"--mae-weight: a decoder of the last block's features, not {kind}")
    if mae.encode_all or not MaskGenerator.of(masks).ratio:
        raise UserError(
            "--mae-weight: the encoder of that run saw every patch; a run that hides some from it "
            "is needed"
        )
    if encoder.channels != mae.encoder.channels:
        raise UserError(
            f"--mae-weight: the decoder of the run predicts patches of {size_name(encoder.patch)} "
            f"px and {mae.encoder.channels} channels, and there are {encoder.channels}: leave "
            "--channels out"
        )
    return {"decoder": asdict(mae.decoder.config), "target": mae.described_target, "masks": masks}


MASKED = ("masking", "mask_ratio", "mask_unit", "predict_share")  # of a run's settings
