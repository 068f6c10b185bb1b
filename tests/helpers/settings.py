"""Configs from flat names, and what is chosen for them on a CPU."""

from types import SimpleNamespace
from typing import Any

from torchmae.settings.defaults import Choice, Facts
from torchmae.settings.options import build, flatten
from torchmae.tasks.finetune import config as finetuning
from torchmae.tasks.finetune.config import Finetune, ResolvedFinetune
from torchmae.tasks.pretrain.config import Pretrain, ResolvedPretrain


def pretrain_config(data: Any, **options: Any) -> Pretrain:
    """As `mae pretrain DATA` with these flags."""
    return build(Pretrain, {"data": str(data), **options})


def finetune_config(run: Any, data: Any, **options: Any) -> Finetune:
    """As `mae finetune RUN DATA` with these flags."""
    return build(Finetune, {"run": str(run), "data": str(data), **options})


def resolve_pretrain(config: Pretrain, **facts: Any) -> tuple[ResolvedPretrain, dict[str, Choice]]:
    """On images of 500 x 375 px with 3 channels, or whatever `facts` say."""
    usual = dict(images=1000, height=500, width=375, channels=3)
    return config.resolve(Facts(**{**usual, **facts}))


def resolve_finetune(config: Finetune, **facts: Any) -> tuple[ResolvedFinetune, dict[str, Choice]]:
    """With a run of 32 px and 50 images to validate on, or whatever `facts` say."""
    usual = dict(images=100, val_images=50, height=32, width=32, channels=3, run_size=(32, 32))
    values = dict(max_megapixels=100.0, dtype="uint8", channels=3)
    known = build(type(config), {**flatten(config), **values})
    return finetuning.resolve(known, Facts(**{**usual, **facts}))


def flat(config: Any) -> SimpleNamespace:
    """All settings of a config as attributes."""
    return SimpleNamespace(**flatten(config))
