"""What a verb of dense prediction brings to the runner, and a training that is ready."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from torch import nn

from torchmae.data.cache.choose import CacheChoice
from torchmae.data.config import DecodeOptions, Listing
from torchmae.data.dense.find import Split
from torchmae.data.loader import Batch, Batches
from torchmae.data.scan import Scan
from torchmae.data.sources.source import BadFile, Source
from torchmae.models.encoders import Backbone
from torchmae.settings.defaults import Choice, Rule
from torchmae.tasks.dense.config import Dense, ResolvedDense
from torchmae.train.config import Task
from torchmae.train.distributed import World


@runtime_checkable
class DenseSets(Protocol):
    """Annotated images to train on and to validate on."""

    @property
    def layout(self) -> str:
        """What was found in DATA, in words."""

    @property
    def train_source(self) -> Source: ...

    @property
    def val_source(self) -> Source: ...

    @property
    def left_out(self) -> list[BadFile]:
        """What was listed and cannot be used: images without annotations, missing files, ..."""

    def with_decode(self, options: DecodeOptions) -> "DenseSets":
        """The same images decoded with other options."""

    def fingerprint(self) -> str:
        """A hex digest of the annotations of both."""


@runtime_checkable
class DenseModel(Protocol):
    """A model with an `encoder`; an `nn.Module`."""

    @property
    def encoder(self) -> Backbone: ...

    def config(self) -> dict[str, Any]:
        """What its class's `build` takes."""


@runtime_checkable
class Scores(Protocol):
    """How good a model is on the validation images."""

    @property
    def score(self) -> float:
        """What the best weights are chosen by, within 0..1."""

    def logged(self) -> dict[str, float]:
        """What goes to log.jsonl and curves.png, by name."""

    def summary(self) -> dict[str, Any]:
        """What goes to results.json."""

    def detail(self, of: str, classes: Sequence[str]) -> dict[str, Any]:
        """What goes to classes.json; `of` says what was measured."""

    def draw_worst(self, sets: Any, model: Any, path: Path) -> None:
        """Draws the validation images with the lowest scores."""


S = TypeVar("S", bound=DenseSets)
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Looked(Generic[S]):
    """What a look at all annotations found.

    Attributes:
        sets: with what is known now, such as the classes.
        settings: settings that follow from it, by name.
        bad: files whose annotations cannot be used.
        notes: lines for the plan.
        counted: what they count; it goes to bad-files.jsonl one by one.
    """

    sets: S
    settings: Mapping[str, Any]
    bad: list[BadFile]
    notes: list[str]
    counted: list[BadFile] = field(default_factory=list)


@runtime_checkable
class Verb(Protocol[S, M]):
    """What differs between the verbs of dense prediction; the runner knows no verb by name.

    Attributes:
        name: of the verb.
        resolved: the class of its settings with nothing left to choose.
        rules: how settings are chosen.
    """

    @property
    def name(self) -> str: ...

    @property
    def resolved(self) -> type[ResolvedDense]: ...

    @property
    def rules(self) -> Mapping[str, Rule]: ...

    def check(self, config: Any, /) -> None:
        """Raises UserError for what is known to be wrong before any file is read."""

    def open(self, config: Any, decode: DecodeOptions, listing: Listing, /) -> S:
        """The sets; their annotations are listed, and not looked at yet."""

    def look(self, sets: S, config: Any, /) -> Looked[S]:
        """Looks at every annotation, in the main process.

        Raises:
            UserError: there is nothing to learn.
        """

    def known(self, sets: S, stored: Mapping[str, Any], /) -> S:
        """The sets as they were when a run began, from its config.json."""

    def build(self, config: Any, encoder: Backbone, sets: S, /) -> M:
        """The model before its first step, from torch's generator."""

    def rebuild(self, described: dict[str, Any], /) -> M:
        """The model that config.json describes."""

    def batches(self, config: Any, sets: S, model: M, world: World, /) -> Batches:
        """The augmented training images with their targets, of this process."""

    def task(self, model: M, config: Any, /) -> Task[Batch]:
        """The loss."""

    def measure(self, model: M, sets: S, config: Any, world: World, /) -> Scores:
        """The scores on the validation images; every process calls this."""

    def describe(self, config: Any, model: M, sets: S, /) -> dict[str, str]:
        """Lines of the plan, by their titles."""

    def words(self, scores: Mapping[str, Any], /) -> str:
        """What `Scores.summary` says, in one line for people."""


@dataclass(frozen=True)
class Job(Generic[S, M]):
    """A training that is ready to start or to be resumed."""

    config: Any
    sets: S
    model: M
    chosen: dict[str, Choice]
    batches: Batches
    stream: Any  # the batches, with a cache around them where there is one
    notes: list[str]
    found: Scan | None = None  # None when resuming
    cache: CacheChoice = CacheChoice("none", "not needed")


def split_of(config: Dense) -> Split:
    """How the annotated images are split."""
    own = config.split
    return Split(own.val_fraction, own.train_images, config.optim.seed, own.avoid_seeds)


def default_out(config: Dense, verb: str, data: str) -> Path:
    """Where a model goes: beside its run, each kind of training in a folder of its own.

    Args:
        config: the settings.
        verb: its name.
        data: a short name of the data.
    """
    part = "" if config.model.train == "all" else f"-{config.model.train}"
    if config.run == "none":
        return Path("runs") / f"{data}-{verb}-scratch"
    return Path(f"{config.run.rstrip('/')}-{verb}{part}")
