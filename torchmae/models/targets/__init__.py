"""What the decoder predicts for a hidden patch: one file a kind."""

from torchmae.models.targets.pixels import NormalizedPixels, Pixels
from torchmae.models.targets.target import Target as Target

TARGETS: dict[str, type[Target]] = {"norm-pixels": NormalizedPixels, "pixels": Pixels}
