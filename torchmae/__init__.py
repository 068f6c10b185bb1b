"""Masked Autoencoders in PyTorch: pre-train a Vision Transformer on unlabelled images, and use it.

    # the same names as the flags of `mae pretrain`
    run = torchmae.pretrain("photos/", out="runs/photos", epochs=50)
    encoder = run.encoder()  # an nn.Module: encoder(images) is [B, 1 + N, D]
    tokens = encoder(encoder.normalize(uint8_images))  # of the run's size, with gradients
    features = encoder.features(pil_images)  # of any size: [N, D]
    torchmae.reconstruct(run, ["cat.jpg"], out="cat.png", mask_ratio=0.85)
    torchmae.embed(run, "photos/", out="features.npz")

Each verb of the command `mae` is a function with its name (`import_`, `report_` and `map_` for
import, report and map); `help(torchmae.pretrain)` lists its options. A mistake is a `UserError`, a
run that fails a `RunError`. Messages go to the logger "torchmae".
"""

import importlib
from typing import Any

from torchmae.errors import RunError as RunError
from torchmae.errors import UserError as UserError
from torchmae.version import __version__ as __version__

# Where public names are. They are imported when they are asked for: `import torchmae` does not load
# torch.
PLACES = {
    "MAE": "torchmae.models.mae",
    "Mask": "torchmae.models.masking",
    "ViT": "torchmae.models.vit",
    "load": "torchmae.interop.timm_runs",
    "load_mae": "torchmae.models.weights",
    "load_classifier": "torchmae.models.weights",
    "load_segmenter": "torchmae.models.weights",
    "load_detector": "torchmae.models.weights",
    "load_tokenizer": "torchmae.models.weights",
    "param_groups_weight_decay": "torchmae.train.optim",
    "MASKINGS": "torchmae.models.masking",
    "TARGETS": "torchmae.models.targets",
    "DECODERS": "torchmae.models.decoders",
    "ENCODERS": "torchmae.models.encoders",
    "SOURCES": "torchmae.data.sources",
    "VERBS": "torchmae.verbs",
    "Verb": "torchmae.verbs",
    "Run": "torchmae.verbs",
}
FUNCTIONS = (
    *(
        "pretrain",
        "tokenizer",
        "refine",
        "finetune",
        "segment",
        "detect",
        "probe",
        "knn",
        "partial",
    ),
    *("ablate", "compare", "evaluate", "predict", "reconstruct", "look", "search", "map_"),
    *("embed", "verify", "pack", "import_", "export", "bench", "check", "plan", "watch"),
    *("serve", "report_", "doctor"),
)
__all__ = ["RunError", "UserError", "__version__", "presets", *FUNCTIONS, *PLACES]


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use."""
    if name in FUNCTIONS:
        value = importlib.import_module("torchmae.verbs").function(name.removesuffix("_"))
    elif name in PLACES:
        value = getattr(importlib.import_module(PLACES[name]), name)
    elif name in ("presets", "sklearn"):
        return importlib.import_module(f"torchmae.{name}")
    else:
        raise AttributeError(f"module 'torchmae' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
