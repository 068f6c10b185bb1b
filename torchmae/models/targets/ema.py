"""Features of the encoder's own average over the steps as a target."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from torchmae.models.encoders import Backbone, build_encoder
from torchmae.models.patches import Size, gather_tokens
from torchmae.models.targets.target import Target, encoder_flops, frozen

TOP = 5 / 6  # of the blocks: data2vec 2.0 takes 10 of 12
EPS = 1e-5


class EMA(Target):
    """What a teacher makes of the whole image: the mean over its top blocks (data2vec 2.0, Baevski
    et al. 2023). The teacher is the exponential moving average of the encoder.

    The output of each block is normalised over the tokens of an image, feature by feature, before
    the mean is taken; what a patch then has is normalised to mean 0 and std 1 over its values.
    The teacher's weights are buffers, which are saved with the model and trained by nothing.

    Args:
        patch, channels: as for every target.
        model: "encoder": the encoder's own description.
        mean, std: of images; the teacher gets them as the encoder does.
    """

    follows_encoder = True

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
        self.width = encoder.embed_dim
        depth = len(encoder.layers())
        self.taps = list(range(depth - max(1, round(TOP * depth)), depth))
        assert isinstance(encoder, nn.Module)
        self.network: Backbone = frozen(encoder.eval())  # type: ignore[assignment]

    def train(self, mode: bool = True) -> "EMA":
        """The teacher stays in eval mode."""
        super().train(mode)
        self.network.eval()
        return self

    @torch.no_grad()
    def follow(self, encoder: Backbone, decay: float) -> None:
        assert isinstance(encoder, nn.Module)
        mine = self.network.state_dict()  # type: ignore[attr-defined]
        theirs = encoder.state_dict()
        if not decay:  # also from NaN, before the first step
            self.network.load_state_dict(theirs)  # type: ignore[attr-defined]
            return
        torch._foreach_lerp_(list(mine.values()), [theirs[name] for name in mine], 1 - decay)

    def forward(
        self, images: Float[Tensor, "B C H W"], ids: Int64[Tensor, "B M"]
    ) -> Float[Tensor, "B M D"]:
        """The teacher's features of the patches `ids`, float32."""
        with torch.no_grad():
            maps = self.network.forward_intermediates(images, self.taps)
            total = sum(F.instance_norm(one.flatten(2).float(), eps=EPS) for one in maps)
            assert isinstance(total, Tensor)
            tokens = gather_tokens(total.transpose(1, 2) / len(maps), ids)
        return F.layer_norm(tokens, (self.width,))

    def flops(self, grid: Size) -> int:
        """Those of the teacher."""
        return encoder_flops(self.network, grid)
