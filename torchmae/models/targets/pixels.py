"""What the decoder predicts for a hidden patch. Targets are computed for the patches asked for, and no others."""

from jaxtyping import Float, Int64
from torch import Tensor

from torchmae.errors import UserError
from torchmae.models.patches import patch_statistics, patchify


class Pixels:
    """The pixels themselves, as the encoder gets them (paper Table 1d, "pixel, w/o norm")."""

    loses_statistics = False

    def __init__(self, patch_size: int, channels: int) -> None:
        self.patch_size, self.width = patch_size, patch_size**2 * channels

    def __call__(
        self, images: Float[Tensor, "B C H W"], ids: Int64[Tensor, "B M"]
    ) -> Float[Tensor, "B M P"]:
        """`[B, M, P]`: the values of the patches `ids`."""
        return patchify(images, self.patch_size, ids)

    def to_pixels(
        self, prediction: Float[Tensor, "B M P"], statistics: Float[Tensor, "B M 2"] | None
    ) -> Float[Tensor, "B M P"]:
        """The prediction as it is."""
        return prediction


class NormalizedPixels(Pixels):
    """Each patch less its mean, over its deviation (paper section 3, "pixel, w/ norm": better features; the default)."""

    loses_statistics = True

    def __init__(self, patch_size: int, channels: int) -> None:
        super().__init__(patch_size, channels)
        if self.width < 2:
            raise UserError(
                "patches of one value have no deviation: use a larger patch, or --target pixels"
            )

    def __call__(
        self, images: Float[Tensor, "B C H W"], ids: Int64[Tensor, "B M"]
    ) -> Float[Tensor, "B M P"]:
        """`[B, M, P]`: the normalised values of the patches `ids`."""
        patches = super().__call__(images, ids)
        mean, deviation = patch_statistics(patches).unbind(-1)
        return (patches - mean.unsqueeze(-1)) / deviation.unsqueeze(-1)

    def to_pixels(
        self, prediction: Float[Tensor, "B M P"], statistics: Float[Tensor, "B M 2"] | None
    ) -> Float[Tensor, "B M P"]:
        """The prediction with each patch's mean and deviation, true or predicted, put back."""
        assert statistics is not None, "normalised pixels need statistics to become a picture"
        mean, deviation = statistics.unbind(-1)
        return prediction * deviation.unsqueeze(-1) + mean.unsqueeze(-1)
