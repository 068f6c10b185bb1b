"""Named recipes by verb: `mae pretrain DATA --preset NAME`; flags win over them."""

from collections.abc import Callable
from typing import Any

from torchmae.presets import detect, finetune, pretrain, segment

PRESETS: dict[str, dict[str, Callable[[], dict[str, Any]]]] = {
    "pretrain": pretrain.PRESETS,
    "finetune": finetune.PRESETS,
    "segment": segment.PRESETS,
    "detect": detect.PRESETS,
}
