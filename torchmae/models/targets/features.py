"""Features of another encoder as a target."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from torchmae.errors import UserError
from torchmae.models.encoders import Backbone, build_encoder
from torchmae.models.patches import Size, gather_tokens, size_name
from torchmae.models.targets.target import Target, conversion, encoder_flops, frozen


class Features(Target):
    """The features that a frozen encoder gives a patch, each vector normalised to mean 0 and std 1
    over its values (as the targets of EVA and of MaskFeat's Table 1; Fang et al. 2023, Wei et al.
    2022).

    The encoder sees the whole image, at the size of the training. Its weights are buffers, NaN
    until they are loaded: saved with the model, and trained by nothing.

    Args:
        patch, channels: as for every target; the encoder's have to be the same.
        model: what config.json of the encoder's run says of its model.
        mean, std: of the normalised images that `forward` gets; the encoder has its own.
    """

    run_kinds = ("mae", "classifier", "encoder")
    run_words = "a run with an encoder (of mae pretrain, mae finetune or mae import)"

    def __init__(
        self,
        patch: Size,
        channels: int,
        model: dict[str, Any],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ):
        super().__init__(patch, channels)
        encoder = build_encoder(model["encoder"])
        if tuple(encoder.patch) != tuple(patch):
            own = size_name(encoder.patch)
            raise UserError(
                f"the encoder of --target run has patches of {own} px, the model "
                f"{size_name(patch)}: use --patch-size {own}, or another run"
            )
        if encoder.channels != channels or encoder.scaling is not None:
            raise UserError(
                f"the encoder of --target run takes {encoder.channels} channels, the model "
                f"{channels}; both have to take the same pixels, of 8 bits"
            )
        self.width = encoder.embed_dim
        if model.get("pool") == "mean":  # its last norm was the classifier's own
            encoder.remove_norm()
        assert isinstance(encoder, nn.Module)
        theirs = torch.tensor([encoder.mean, encoder.std])
        self.network: Backbone = frozen(encoder.eval())  # type: ignore[assignment]
        self.conversion: Tensor
        self.register_buffer("conversion", conversion((mean, std), theirs), persistent=False)

    @staticmethod
    def network_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The encoder's."""
        start = "encoder."
        return {n.removeprefix(start): w for n, w in weights.items() if n.startswith(start)}

    def train(self, mode: bool = True) -> "Features":
        """The encoder stays in eval mode: its stochastic depth is not part of the truth."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(
        self, images: Float[Tensor, "B C H W"], ids: Int64[Tensor, "B M"]
    ) -> Float[Tensor, "B M D"]:
        """The normalised features of the patches `ids`, float32."""
        scale, shift = self.conversion
        with torch.no_grad():
            (found,) = self.network.forward_intermediates(images * scale + shift, [-1], norm=True)
        tokens = found.flatten(2).transpose(1, 2).float()
        return F.layer_norm(gather_tokens(tokens, ids), (self.width,))

    def flops(self, grid: Size) -> int:
        """Those of the encoder."""
        return encoder_flops(self.network, grid)
