"""The settings of `mae plan`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torchmae.errors import UserError
from torchmae.models.sizes import SIZES, size_of
from torchmae.settings.defaults import Rule
from torchmae.settings.groups import ListingOptions, RuntimeOptions, ScanOptions, SourceOptions
from torchmae.settings.options import (
    BATCH,
    POSITIVE,
    Range,
    build,
    check_ranges,
    flatten,
    option,
    options_of,
)
from torchmae.tasks.pretrain.config import (
    RULES,
    MaskingOptions,
    Pretrain,
    PretrainCropOptions,
    PretrainDecodeOptions,
)


@dataclass(frozen=True)
class PlanOptions:
    """How much time there is, and what is measured."""

    GROUP: ClassVar[str] = "plan"

    hours: float = option(
        8.0, "Hours that the training may take.", within=Range(above=0, at_most=8784)
    )
    models: tuple[str, ...] | None = option(
        None,
        f"Sizes that are measured: {', '.join(SIZES)}.",
        metavar="SIZE",
        otherwise="from the smallest up to what so many images call for, until one is too slow",
        several=True,
    )
    seconds: float = option(
        5.0, "Seconds of steps that are measured of each size.", within=Range(above=0, at_most=3600)
    )
    labels_per_class: int | None = option(
        None,
        "Labels of each class that there will be, for the gain to expect.",
        within=POSITIVE,
        otherwise="every number that was measured",
    )
    out: str | None = option(
        None, "A .json file for all this.", metavar="FILE", otherwise="it is only printed"
    )


@dataclass(frozen=True)
class TrainedOptions:
    """What the training would be told, as for mae pretrain."""

    GROUP: ClassVar[str] = "training"

    image_size: str | int | None = option(
        None,
        "Side in pixels, or HEIGHTxWIDTH such as 192x256.",
        metavar="SIZE",
    )
    patch_size: str | int | None = option(
        None,
        "Side of a patch in pixels, or HEIGHTxWIDTH such as 8x32; divides the image size.",
        metavar="SIZE",
    )
    batch_size: int | None = option(
        None,
        "Images per optimizer step.",
        within=BATCH,
    )
    precision: str | None = option(None, "fp32, bf16 or fp16.")


@dataclass(frozen=True)
class Plan:
    """Measure what a pre-training would take on this device, before it is begun.

    A few real steps of each size, with loading; what follows from them is computed.
    """

    RULES: ClassVar[Mapping[str, Rule]] = RULES

    source: SourceOptions
    plan: PlanOptions = PlanOptions()
    trained: TrainedOptions = TrainedOptions()
    listing: ListingOptions = ListingOptions()
    masking: MaskingOptions = MaskingOptions()
    crop: PretrainCropOptions = PretrainCropOptions()
    decode: PretrainDecodeOptions = PretrainDecodeOptions()
    scan: ScanOptions = ScanOptions()
    runtime: RuntimeOptions = RuntimeOptions()

    def check(self) -> None:
        """Raises UserError for what is known to be wrong before any file is read."""
        check_ranges(self)
        for model in self.plan.models or ():
            size_of(model)
        out = self.plan.out
        if out is not None and not out.endswith(".json"):
            raise UserError(f"--out {out}: name a file that ends in .json, such as plan.json")
        self.pretrain().check()

    def pretrain(self, **more: Any) -> Pretrain:
        """The pre-training with these settings."""
        return build(Pretrain, {**self.shared(), **more})

    def shared(self) -> dict[str, Any]:
        """The settings that are those of mae pretrain."""
        theirs = options_of(Pretrain).keys() - options_of(PlanOptions).keys()
        return {name: value for name, value in flatten(self).items() if name in theirs}
