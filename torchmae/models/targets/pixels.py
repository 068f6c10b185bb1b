"""Pixels as targets, as they are or normalized patch by patch."""

import math

from jaxtyping import Float, Int64
from torch import Tensor

from torchmae.errors import UserError
from torchmae.models.patches import Size, patchify, standardize
from torchmae.models.targets.target import Target


class Pixels(Target):
    """The pixels themselves, as the encoder gets them (paper Table 1d, "pixel, w/o norm")."""

    def __init__(self, patch: Size, channels: int):
        super().__init__(patch, channels)
        self.width = math.prod(patch) * channels

    def forward(
        self, images: Float[Tensor, "B C H W"], ids: Int64[Tensor, "B M"]
    ) -> Float[Tensor, "B M P"]:
        """The values of the patches `ids`."""
        return patchify(images, self.patch, ids)

    def to_pixels(
        self, prediction: Float[Tensor, "B M P"], statistics: Float[Tensor, "B M 2"] | None
    ) -> Float[Tensor, "B M P"]:
        """The prediction as it is."""
        return prediction


class NormalizedPixels(Pixels):
    """Each patch minus its mean, over its std (paper section 3 and Table 1d, "pixel, w/ norm":
    better features)."""

    needs_statistics = True

    def __init__(self, patch: Size, channels: int):
        super().__init__(patch, channels)
        if self.width < 2:
            raise UserError(
                "patches of one value have no std: use a larger patch, or --target pixels"
            )

    def forward(
        self, images: Float[Tensor, "B C H W"], ids: Int64[Tensor, "B M"]
    ) -> Float[Tensor, "B M P"]:
        """The normalized values of the patches `ids`."""
        return self.with_statistics(images, ids)[0]

    def with_statistics(
        self, images: Float[Tensor, "B C H W"], ids: Int64[Tensor, "B M"]
    ) -> tuple[Float[Tensor, "B M P"], Float[Tensor, "B M 2"]]:
        """The normalized values, and mean and std, which are computed once."""
        return standardize(super().forward(images, ids))

    def to_pixels(
        self, prediction: Float[Tensor, "B M P"], statistics: Float[Tensor, "B M 2"] | None
    ) -> Float[Tensor, "B M P"]:
        """The prediction times each patch's std, plus its mean."""
        assert statistics is not None, "normalized pixels need statistics to become a picture"
        mean, std = statistics.unbind(-1)
        return prediction * std.unsqueeze(-1) + mean.unsqueeze(-1)
