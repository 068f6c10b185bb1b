"""Named recipes: `--preset NAME` of `mae pretrain` and `mae finetune`; flags win over them."""

from collections.abc import Callable
from typing import Any

from torchmae.presets.finetune import (
    finetune_base,
    finetune_base_repo,
    finetune_huge,
    finetune_huge_448,
    finetune_huge_repo,
    finetune_large,
    finetune_large_repo,
    probe_base,
    probe_large,
    scratch_base,
    scratch_huge,
    scratch_large,
)
from torchmae.presets.pretrain import demo, paper_base, paper_huge, paper_large

PRESETS: dict[str, Callable[[], Any]] = {
    recipe.__name__: recipe
    for recipe in (
        *(demo, paper_base, paper_large, paper_huge),
        *(finetune_base, finetune_base_repo, finetune_large, finetune_large_repo),
        *(finetune_huge, finetune_huge_repo, finetune_huge_448),
        *(scratch_base, scratch_large, scratch_huge, probe_base, probe_large),
    )
}
