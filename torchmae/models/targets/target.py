"""The contract of a target."""

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from torchmae.models.patches import Size, patch_statistics, patchify


class Target(nn.Module):
    """What is predicted for a patch, and how wrong a prediction is.

    A target may have state (buffers), which is saved with the model's weights. One whose state
    comes from data says so with `needs_fit`; `mae pretrain` then calls `fit` once, before the first
    step of a new run.

    Args:
        patch: height and width of a patch in pixels.
        channels: of the images.

    Attributes:
        width: values predicted for a patch.
        needs_fit: True while the state of the target is still to be fitted.
        needs_statistics: True if a prediction has no brightness and contrast of its own; the
            decoder then has a head that predicts mean and std of each hidden patch, which
            `to_pixels` gets.
    """

    width: int
    needs_fit: bool = False
    needs_statistics: bool = False

    def __init__(self, patch: Size, channels: int):
        super().__init__()
        self.patch = patch
        self.channels = channels

    def fit(self, patches: Float[Tensor, "n P"]) -> None:
        """Fits the state to a sample of patches of normalised images, float32; nothing unless a
        target needs it."""

    def forward(
        self, images: Float[Tensor, "B C H W"], ids: Int64[Tensor, "B M"]
    ) -> Float[Tensor, "B M width"]:
        """The true values of the patches `ids`, from normalised images."""
        raise NotImplementedError

    def loss(
        self, prediction: Float[Tensor, "B M width"], truth: Float[Tensor, "B M width"]
    ) -> Float[Tensor, ""]:
        """Mean squared error over all values (paper section 3)."""
        return F.mse_loss(prediction, truth)

    def with_statistics(
        self, images: Float[Tensor, "B C H W"], ids: Int64[Tensor, "B M"]
    ) -> tuple[Float[Tensor, "B M width"], Float[Tensor, "B M 2"] | None]:
        """`forward`, and mean and std of each patch if there is a head that predicts them."""
        truth = self(images, ids)
        if not self.needs_statistics:
            return truth, None
        return truth, patch_statistics(patchify(images, self.patch, ids))

    def to_pixels(
        self, prediction: Float[Tensor, "B M width"], statistics: Float[Tensor, "B M 2"] | None
    ) -> Float[Tensor, "B M P"]:
        """A prediction as the values of normalised pixels, for pictures.

        Args:
            prediction: what the decoder predicts.
            statistics: mean and std of each patch, predicted or true; None unless
                `needs_statistics`.
        """
        raise NotImplementedError
