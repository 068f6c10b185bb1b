"""Tokens of a discrete VAE as a target."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from torchmae.errors import UserError
from torchmae.models.masking import Mask
from torchmae.models.patches import Size, size_name
from torchmae.models.targets.target import Target, conversion, frozen
from torchmae.models.targets.tokenizer import Tokenizer, perplexity


class Tokens(Target):
    """The token that a tokenizer gives a patch (BEiT, Bao et al. 2021; paper Table 1d, "dVAE
    token"), with cross-entropy as the loss.

    The tokenizer sees the whole image. Its weights are frozen: buffers, which are saved with the
    model, and which no optimizer, gradient norm or sharding knows of. Until they are loaded they
    are NaN, and so is the loss.

    Args:
        patch, channels: as for every target; the tokenizer's have to be the same.
        model: what config.json of the tokenizer's run says of its model.
        mean, std: of the normalised images that `forward` gets; the tokenizer has its own.
    """

    run_kinds = ("tokenizer",)
    run_words = "a run of mae tokenizer (mae tokenizer DATA makes one)"

    def __init__(
        self,
        patch: Size,
        channels: int,
        model: dict[str, Any],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ):
        super().__init__(patch, channels)
        tokenizer = Tokenizer.build(model["tokenizer"])
        if tokenizer.patch != tuple(patch):
            own, wanted = size_name(tokenizer.patch), size_name(patch)
            size = size_name(tuple(tokenizer.config.image_size))
            raise UserError(
                f"the tokenizer has patches of {own} px, the model {wanted}: make a tokenizer with "
                f"--patch-size {wanted} at the model's image size, or train at the tokenizer's own "
                f"sizes, --patch-size {own} and --image-size {size}"
            )
        if tokenizer.channels != channels:
            raise UserError(
                f"the tokenizer takes {tokenizer.channels} channels, the model {channels}: use "
                f"--channels {tokenizer.channels}, or another tokenizer"
            )
        self.width = tokenizer.config.vocabulary
        frozen(tokenizer)
        self.network: Tokenizer = tokenizer
        theirs = tokenizer.pixel_statistics.flatten(1)
        self.conversion: Tensor
        self.register_buffer("conversion", conversion((mean, std), theirs), persistent=False)

    def forward(
        self, images: Float[Tensor, "B C H W"], ids: Int64[Tensor, "B M"]
    ) -> Int64[Tensor, "B M"]:
        """The tokens of the patches `ids`; -100, which no loss counts, without weights."""
        # Half precision would turn tokens that are nearly as likely into each other.
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            scale, shift = self.conversion
            likelihood, tokens = self.network.logits(images * scale + shift).max(dim=2)
            return torch.where(likelihood.isfinite(), tokens, -100).gather(1, ids)

    def flops(self, grid: Size) -> int:
        """Those of the tokenizer."""
        return self.network.flops(grid)

    def loss(
        self, prediction: Float[Tensor, "B M V"], truth: Int64[Tensor, "B M"]
    ) -> Float[Tensor, ""]:
        """Cross-entropy in nats, the mean over patches."""
        return F.cross_entropy(prediction.flatten(0, 1), truth.flatten())

    def trivial_losses(
        self,
        images: Float[Tensor, "B C H W"],
        mask: Mask,
        seen: Float[Tensor, "B C H W"],
        counted: Bool[Tensor, "B N"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Of predicting how often each token occurs in the batch, and of the uniform distribution.

        The first is the entropy of the batch's tokens. A sample's is too small on average, by
        nearly (tokens that occur - 1) / (2 * sample), which is added (Miller 1955).
        """
        tokens = self(images, torch.cat(mask, dim=1)).flatten()
        counts = tokens.bincount(minlength=self.width).float()
        entropy = perplexity(counts).log() + ((counts > 0).sum() - 1) / (2 * len(tokens))
        uniform = torch.tensor(float(self.width), device=tokens.device).log()
        return {"token frequencies": entropy.clamp(max=uniform), "uniform tokens": uniform}
