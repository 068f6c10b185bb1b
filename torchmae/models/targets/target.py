"""What a target is."""

from typing import Protocol

from jaxtyping import Float, Int64
from torch import Tensor


class Target(Protocol):
    """What is predicted: `width` values a patch, from the images; and how a prediction becomes pixels again."""

    width: int
    loses_statistics: bool  # True if the prediction has no brightness and contrast of its own

    def __init__(self, patch_size: int, channels: int) -> None: ...

    def __call__(
        self, images: Float[Tensor, "B C H W"], ids: Int64[Tensor, "B M"]
    ) -> Float[Tensor, "B M P"]: ...

    def to_pixels(
        self, prediction: Float[Tensor, "B M P"], statistics: Float[Tensor, "B M 2"] | None
    ) -> Float[Tensor, "B M P"]: ...
