"""The largest principal components of patches as a target."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from torchmae.models.patches import Size, patchify
from torchmae.models.targets.target import Target

COMPONENTS = 96  # the paper's number (section 4.1, "reconstruction target")


class PCA(Target):
    """The coefficients of a patch in the 96 largest principal components of the data's patches
    (paper Table 1d).

    All of them where a patch has fewer than 96 values. The components are fitted before the first
    step (`fit`) and saved as `target.mean` [P] and `target.components` [P, width]; until then both
    are NaN, and so is the loss.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, patch: Size, channels: int):
        super().__init__(patch, channels)
        values = math.prod(patch) * channels
        self.width = min(COMPONENTS, values)
        self.register_buffer("mean", torch.full((values,), torch.nan))
        self.register_buffer("components", torch.full((values, self.width), torch.nan))

    @property
    def needs_fit(self) -> bool:  # type: ignore[override]
        """Whether there are no components yet."""
        return not bool(self.components.isfinite().all())

    @torch.no_grad()
    def fit(self, patches: Float[Tensor, "n P"]) -> None:
        """Fits mean and components; the sign of a component makes its entry of largest size
        positive.

        In float64, by chunks: the covariance of 768 values needs no more memory than that of its
        chunk.
        """
        mean = patches.mean(dim=0, dtype=torch.float64)
        covariance = sum(
            (chunk := part.double() - mean).T @ chunk for part in patches.split(1 << 14)
        )
        assert isinstance(covariance, Tensor)
        vectors = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, : self.width]
        largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
        self.mean.copy_(mean)
        self.components.copy_(vectors * largest.sign())

    def forward(
        self, images: Float[Tensor, "B C H W"], ids: Int64[Tensor, "B M"]
    ) -> Float[Tensor, "B M width"]:
        """The coefficients of the patches `ids`."""
        # Autocast would round the truth to half precision.
        with torch.autocast(images.device.type, enabled=False):
            return (patchify(images, self.patch, ids) - self.mean) @ self.components

    def to_pixels(
        self, prediction: Float[Tensor, "B M width"], statistics: Float[Tensor, "B M 2"] | None
    ) -> Float[Tensor, "B M P"]:
        """The patch with these coefficients, and zero in the other components."""
        return prediction @ self.components.T + self.mean
