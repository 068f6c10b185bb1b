"""The Masked Autoencoder (He et al. 2021, section 3): a pure function of images and mask."""

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from torchmae.errors import UserError, choose
from torchmae.models.decoders import (
    DECODERS,
    DecoderConfig,
    decoder_config,
    statistics_head,
)
from torchmae.models.encoders import Backbone, build_encoder
from torchmae.models.masking import THREE_QUARTERS, Mask, MaskGenerator, PartMask
from torchmae.models.patches import gather_tokens, grid_of, patch_statistics, patchify
from torchmae.models.targets import build_target, described_target
from torchmae.models.vit import ViT, product_flops

LOSSES = {
    "hidden": "the mean over hidden patches",
    "all": "the mean over all patches (paper: 0.5 % worse)",
}


class Output(NamedTuple):
    """What one forward pass of `MAE` returns.

    Gradients of `loss` never reach the statistics head, and those of `statistics_loss` reach
    nothing else. `prediction` is of the patches `mask.predicted`, `statistics` their predicted mean
    and std (None unless the target needs them).
    """

    loss: Float[Tensor, ""]
    prediction: Float[Tensor, "B M P"]
    statistics_loss: Float[Tensor, ""] | None
    statistics: Float[Tensor, "B M 2"] | None


class MAE(nn.Module):
    """Masked Autoencoder around an encoder.

    Args:
        encoder: any `Backbone`.
        decoder: None for the default at this width of the encoder (`decoder_config`).
        target: a name in `TARGETS`, or what else `build_target` takes. With normalised pixels, a
            linear head on detached decoder features predicts mean and std of each hidden patch, so
            that pictures need not use the true ones.
        loss_on: "hidden" (the paper's) or "all" patches.
        encode_all: the encoder gets mask tokens at the hidden places, and the decoder none of its
            own (paper Table 1c: worse features, for ViT-L 3.3 times the work); to compare with. For
            ViT only.

    Raises:
        UserError: an unknown name, or sizes that do not fit together.
    """

    def __init__(
        self,
        encoder: Backbone,
        decoder: DecoderConfig | None = None,
        target: str | dict[str, Any] = "norm-pixels",
        loss_on: str = "hidden",
        encode_all: bool = False,
    ):
        super().__init__()
        choose(LOSSES, loss_on, "loss")
        if encode_all and not isinstance(encoder, ViT):
            raise UserError(f"mask tokens in the encoder: for ViT, not {type(encoder).__name__}")
        decoder = decoder or decoder_config(encoder.embed_dim)
        self.encoder = encoder
        self.target_name = target if isinstance(target, str) else target["name"]
        target = described_target(target, encoder)
        self.described_target = target
        self.loss_on = loss_on
        self.encode_all = encode_all
        statistics = (encoder.mean, encoder.std)
        self.target = build_target(target, encoder.patch, encoder.channels, *statistics)
        if self.target.follows_encoder:
            self.target.follow(encoder, decay=0.0)
        build_decoder = choose(DECODERS, decoder.kind, "decoder")
        if build_decoder.every_block and not isinstance(encoder, ViT):
            kind = type(encoder).__name__
            raise UserError(f"--decoder {decoder.kind} sees every block of a ViT, not of a {kind}")
        self.decoder = build_decoder(decoder, encoder, self.target.width, not encode_all)
        if self.target.needs_statistics:  # last, so that no other weight depends on it
            self.decoder.statistics = statistics_head(decoder.dim)
        # Here and not in the encoder, whose weights are those of a plain ViT.
        self.mask_token = (
            nn.Parameter(torch.randn(1, 1, encoder.embed_dim) * 0.02) if encode_all else None
        )

    def config(self) -> dict[str, Any]:
        """JSON-able arguments of `MAE.build`."""
        return {
            "encoder": self.encoder.config(),
            "decoder": asdict(self.decoder.config),
            "target": self.described_target,
            "loss_on": self.loss_on,
            "encode_all": self.encode_all,
        }

    @classmethod
    def build(cls, config: dict[str, Any]) -> "MAE":
        """The model that `config()` describes, with new weights."""
        encoder = build_encoder(config["encoder"])
        decoder = DecoderConfig(**config["decoder"])
        rest = {name: v for name, v in config.items() if name not in ("encoder", "decoder")}
        return cls(encoder, decoder, **rest)

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        mask: Mask,
        seen: Float[Tensor, "B C H W"] | None = None,
        counted: Bool[Tensor, "B N"] | None = None,
    ) -> Output:
        """Loss and prediction; draws no random numbers, the caller makes the mask.

        Args:
            images: normalised floats (`encoder.normalize`), of `encoder.image_size`; or of another
                size, to which a ViT and the decoders here resize their positions.
            mask: the visible and the hidden patches of each image.
            seen: what the encoder gets of the images, such as the images with noise; None: the
                images themselves.
            counted: the patches that the loss may count; None: all. Those with pixels without a
                value do not: they are not predicted, whatever the prediction says.
        """
        seen = images if seen is None else seen
        visible = mask.keep.shape[1]
        count = visible + mask.hide.shape[1]
        grid = grid_of(tuple(images.shape[2:]), self.encoder.patch)
        patches = math.prod(grid)
        part = isinstance(mask, PartMask) and self.loss_on == "hidden"
        fits = count <= patches if part else count == patches
        if self.decoder.grid != self.encoder.grid or not fits:
            raise UserError(
                f"encoder, decoder and mask disagree: grids {self.encoder.grid} and "
                f"{self.decoder.grid}, {count} of {patches} patches"
            )
        # Only if they are of another shape: decoders of plugins need not know of it.
        other = {} if grid == self.encoder.grid else {"grid": grid}
        if self.loss_on == "hidden" and not mask.hide.shape[1]:
            raise UserError("no patch is hidden: a loss on hidden patches needs some")
        latent = self.encode(seen, mask)
        # Under autocast predictions are in half precision, too coarse for a loss.
        exact = torch.promote_types(images.dtype, torch.float32)
        if self.loss_on == "hidden":
            hidden = self.decoder.hidden(latent, mask, **other)
            prediction = self.decoder.pred(hidden).to(exact)
            truth, truths = self.target.with_statistics(images, mask.hide)
            kept = None if counted is None else counted.gather(1, mask.hide)
            loss = over_counted(self.target.loss, prediction, truth, kept)
        else:
            features = self.decoder(latent, mask, **other)
            first = visible if mask.hide.shape[1] else 0
            hidden = features[:, first:]
            everything = self.decoder.pred(features).to(exact)
            ids = torch.cat(mask, dim=1)
            truth, truths = self.target.with_statistics(images, ids)
            kept = None if counted is None else counted.gather(1, ids)
            loss = over_counted(self.target.loss, everything, truth, kept)
            prediction = everything[:, first:]
        if self.decoder.statistics is None or truths is None:
            return Output(loss, prediction, None, None)
        statistics = self.predict_statistics(seen, mask, hidden.detach())
        wanted = truths[:, truths.shape[1] - prediction.shape[1] :]
        kept = None if counted is None else counted.gather(1, mask.predicted)
        off = over_counted(F.mse_loss, statistics, wanted, kept)
        return Output(loss, prediction, off, statistics)

    def predict_statistics(
        self, seen: Float[Tensor, "B C H W"], mask: Mask, features: Float[Tensor, "B M E"]
    ) -> Float[Tensor, "B M 2"]:
        """Mean and std of the hidden patches: the mean of the visible ones' plus a linear map of
        the decoder's features."""
        assert self.decoder.statistics is not None
        around = patch_statistics(patchify(seen, self.encoder.patch, mask.keep))
        change = self.decoder.statistics(features).to(
            torch.promote_types(seen.dtype, torch.float32)
        )
        return around.mean(dim=1, keepdim=True) + change

    def encode(self, images: Float[Tensor, "B C H W"], mask: Mask) -> Float[Tensor, "B T D"]:
        """What the decoder gets: the class token and the visible patches, or with `encode_all`
        those of all places; after the last block, or after each one (`Decoder.every_block`)."""
        encoder = self.encoder
        plain = self.mask_token is None and not self.decoder.every_block
        if plain and tuple(images.shape[2:]) == tuple(encoder.image_size):
            latent = encoder(images, mask.keep)
        elif not isinstance(encoder, ViT):
            raise UserError(f"a {type(encoder).__name__} takes images of one size")
        else:
            tokens, table = encoder.tokens_of_any_size(images, mask.keep)
            if self.mask_token is not None:
                masked = self.mask_token + gather_tokens(table[:, 1:], mask.hide)
                tokens = torch.cat([tokens, masked], dim=1)
            if self.decoder.every_block:
                latent = torch.cat(list(encoder.encode_layers(tokens)), dim=2)
            else:
                latent = encoder.encode(tokens)
        if encoder.num_prefix_tokens > 1:  # registers are the encoder's own (Darcet et al. 2023)
            latent = torch.cat([latent[:, :1], latent[:, encoder.num_prefix_tokens :]], dim=1)
        return latent

    def set_grad_checkpointing(self, on: bool) -> None:
        """Activation checkpointing in encoder and decoder; see `ViT.set_grad_checkpointing`."""
        self.encoder.set_grad_checkpointing(on)
        for block in self.decoder.blocks:
            block.checkpointed = on  # type: ignore[assignment]


def over_counted(
    loss: Callable[[Tensor, Tensor], Float[Tensor, ""]],
    prediction: Float[Tensor, "B M ..."],
    truth: Shaped[Tensor, "B M ..."],
    counted: Bool[Tensor, "B M"] | None,
) -> Float[Tensor, ""]:
    """A loss of the patches that count, as if they were those of one image; 0 where none does."""
    if counted is None:
        return loss(prediction, truth)
    if not counted.any():
        return 0.0 * prediction.sum()  # with a gradient, as the other processes have one
    return loss(prediction[counted].unsqueeze(0), truth[counted].unsqueeze(0))


def training_flops(model: MAE, masks: MaskGenerator = THREE_QUARTERS) -> int | None:
    """Floating-point operations of a training step for one image; None for encoders and decoders
    that do not count theirs.

    Matrix products only, additions and multiplications apart, as the reference code does them: all
    patches embedded, encoder on the visible tokens (on all with `encode_all`), decoder and
    prediction on all tokens. The backward pass is twice the forward pass; only once for the
    embedding, since pixels need no gradient. A network that makes the target (a tokenizer) adds its
    forward pass. What an implementation saves or computes twice does not change the count; the
    statistics head, which the reference lacks, is not counted.

    Args:
        model: its sizes count, not its weights.
        masks: how many patches are visible and predicted; of several ratios the mean counts.
    """
    encoder, decoder = model.encoder, model.decoder
    if not isinstance(encoder, ViT):
        return None
    if masks.ratios:
        counts = [n for one in masks.each() if (n := training_flops(model, one)) is not None]
        return round(sum(counts) / len(counts)) if counts else None
    patches, dim = math.prod(encoder.grid), encoder.embed_dim
    visible, predicted = masks.counts(encoder.grid)
    seen = (patches, 0) if model.encode_all else (visible, predicted)
    decoded = decoder.flops(*seen)
    if decoded is None:
        return None
    tokens, hidden = encoder.num_prefix_tokens + seen[0], int(dim * encoder.mlp_ratio)
    block = product_flops(tokens, dim, 4 * dim + 2 * hidden)
    block += 2 * product_flops(tokens, dim, tokens)
    rest = encoder.depth * block + decoded
    embedding = product_flops(patches, math.prod(encoder.patch) * encoder.channels, dim)
    return 2 * embedding + 3 * rest + model.target.flops(encoder.grid)
