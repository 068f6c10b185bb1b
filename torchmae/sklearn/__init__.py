"""Frozen features of a run as a transformer of scikit-learn, for its pipelines and searches."""

from typing import Any

import numpy as np
from jaxtyping import Float32

from torchmae.errors import missing_extra
from torchmae.interop.timm_runs import load_encoder
from torchmae.train.distributed import find_device

try:
    from sklearn.base import (
        BaseEstimator,
        ClassNamePrefixFeaturesOutMixin,
        TransformerMixin,
    )
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise missing_extra("scikit-learn", "sklearn") from error


class Features(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]  # sklearn has no types
    """Images to the frozen features of a run's encoder, as `mae embed` writes them.

    `fit` loads the encoder and learns nothing of the images. What is fitted pickles with its
    weights, so that a saved pipeline needs no run folder.

    Args:
        run: a run folder, or an encoder of timm (`timm:NAME`).
        pool: "mean" of the patch tokens, "cls" (the class token), or "cls+mean".
        layer: take the tokens after this block, 1 to depth; None: the last ones.
        batch_size: images at a time.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Attributes:
        encoder_: the encoder.
    """

    def __init__(
        self,
        run: Any,
        pool: str = "mean",
        layer: int | None = None,
        batch_size: int = 64,
        device: str = "auto",
    ):
        self.run = run
        self.pool = pool
        self.layer = layer
        self.batch_size = batch_size
        self.device = device

    def fit(self, X: Any, y: Any = None) -> "Features":
        """Loads the encoder; the images are not looked at."""
        self.encoder_ = load_encoder(self.run)
        return self

    def transform(self, X: Any) -> Float32[np.ndarray, "N F"]:
        """The features of images.

        Args:
            X: arrays [N, H, W] or [N, H, W, C] of any size, lists of arrays or PIL images, paths,
                or anything else that a verb takes as DATA.

        Raises:
            UserError: an image cannot be read: each row of the result belongs to an image.
        """
        check_is_fitted(self)
        encoder: Any = self.encoder_.to(find_device(self.device))
        return encoder.features(X, self.pool, self.layer, self.batch_size).numpy()

    @property
    def _n_features_out(self) -> int:
        return self.encoder_.embed_dim * (1 + (self.pool == "cls+mean"))

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if "encoder_" in state:
            state["encoder_"].to("cpu")  # where it is unpickled there may be no other device
        return state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False  # images
        tags.input_tags.three_d_array = True
        return tags
