"""What the decoder predicts for a patch: one file a kind. `TARGETS["mine"] = cls` adds one."""

from torchmae.models.targets.pca import PCA
from torchmae.models.targets.pixels import NormalizedPixels, Pixels
from torchmae.models.targets.target import Target as Target

TARGETS: dict[str, type[Target]] = {
    "norm-pixels": NormalizedPixels,
    "pixels": Pixels,
    "pca": PCA,
}
