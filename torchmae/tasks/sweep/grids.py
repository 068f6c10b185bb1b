"""What `mae compare` and `mae partial` train: two grids of one runner (run.py)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torchmae.data.config import decode_as_run, listing_as_run
from torchmae.errors import UserError
from torchmae.models.heads import blocks_of
from torchmae.models.vit import Block
from torchmae.models.weights import load
from torchmae.runfolder import last_validation, read_config
from torchmae.settings.options import build, check_ranges, flatten
from torchmae.tasks.finetune.config import Finetune
from torchmae.tasks.finetune.run import run as finetune
from torchmae.tasks.sweep.config import Compare, Partial, check_compare

Changes = Mapping[str, Any]  # of the fields of `Trained.settings`
NOTHING: Changes = {}

# The arms of mae compare with one run; of several, from scratch has the same name.
PRETRAINED = "pre-trained"
SCRATCH = "from scratch"


class Train(Protocol):
    """The function of a verb that trains."""

    def __call__(self, config: Any, quiet: bool = False) -> Path: ...


class Trained(NamedTuple):
    """A verb whose trainings make up a grid.

    Attributes:
        verb: its name.
        settings: the class of its settings.
        train: its function.
        metric: what a training is judged by, of its last validation.
    """

    verb: str
    settings: type[Any]
    train: Train
    metric: str

    def scores(self, run: Path) -> dict[str, Any]:
        """Those of a finished training's last weights."""
        return last_validation(run, self.verb)


FINETUNE = Trained("finetune", Finetune, finetune, "top1")


@dataclass(frozen=True)
class Grid:
    """A training for every row, arm and seed.

    Args:
        verb: such as "compare" or "partial"; the picture has its name.
        config: the settings that all trainings share.
        out: the folder of the sweep.
        rows: by name, what each line of the table changes.
        arms: by name, what each column of the table changes.
        seeds: of the trainings; those of several arms with the same seed are pairs.
        row_title: what the rows differ in, such as "labels a class".
        folder: the name of the folder of a training, from row, arm and seed.
        unit: what a row is a number of, for the names of folders.
        trained: whose trainings these are.
        choose_best: whether the best arm of each row is what is shown.
    """

    verb: str
    config: Any
    out: Path
    rows: Mapping[str, Changes]
    arms: Mapping[str, Changes]
    seeds: tuple[int, ...]
    row_title: str
    folder: Callable[[str, str, int], str]
    unit: str = "labels"
    trained: Trained = FINETUNE
    choose_best: bool = False

    def training(self, row: str, arm: str, seed: int, chosen: Changes = NOTHING) -> Any:
        """The settings of one training; `chosen` are those of a search, which may name the
        folder."""
        out = str(self.out / self.folder(row, arm, seed))
        changes = {"seed": seed, **self.rows[row], **self.arms[arm], "out": out, **chosen}
        return build(self.trained.settings, {**flatten(self.config), **changes})


def compare_grid(config: Compare) -> Grid:
    """A run against the same encoder from scratch, or several encoders, on the same images, labels,
    steps and seeds."""
    check_ranges(config)
    check_compare(config)
    first = first_run(config)
    # All take the images of the first run, also where they would take others by themselves.
    listing = listing_as_run(config.listing, config.source.data, first).settings(config.listing)
    scratch = {**from_scratch(first, config.decode), **listing}
    few = config.split.labels_per_class or (None,)
    return Grid(
        verb="compare",
        config=config,
        out=Path(config.output.out or f"{first.rstrip('/')}-compare"),
        rows={str(n or "all"): {"labels_per_class": n} for n in few},
        arms={
            arm: scratch if place == "none" else {"run": place, **listing}
            for arm, place in named(config.run).items()
        },
        seeds=config.optim.seeds,
        row_title="labels a class",
        folder=lambda row, arm, seed: f"{in_path(arm)}-{row}-labels-seed-{seed}",
    )


def from_scratch(run: str, decode: Any) -> dict[str, Any]:
    """What makes a training that of a run's encoder from scratch, with images decoded alike."""
    channels = read_config(run)["model"]["encoder"]["channels"]
    return {
        "run": "none",
        "model": run,
        "train": "all",
        **decode_as_run(run, decode).stored(),
        "channels": decode.channels or channels,
    }


def first_run(config: Any) -> str:
    """The first of the encoders that is not from scratch."""
    return next(place for place in config.run if place != "none")


def named(places: Sequence[str]) -> dict[str, str]:
    """The arms of a comparison, by name: a run and its partner, or several encoders.

    Raises:
        UserError: an encoder is named twice.
    """
    if len(places) == 1:
        return {PRETRAINED: places[0], SCRATCH: "none"}
    last = [SCRATCH if place == "none" else Path(place).resolve().name for place in places]
    arms: dict[str, str] = {}
    for name, place in zip(last, places):
        twice = last.count(name) > 1 and place != "none"
        arm = f"{Path(place).resolve().parent.name}/{name}" if twice else name
        if arm in arms:
            raise UserError(f"{place} is named twice, or has the name of another run: {arm}")
        arms[arm] = place
    return arms


def in_path(arm: str) -> str:
    """The name of an arm in the names of folders."""
    return arm.replace(" ", "-").replace("/", "-")


def partial_grid(config: Partial) -> Grid:
    """More and more of the last blocks fine-tuned: section 4.3 and Figure 9 of the paper."""
    check_ranges(config)
    if config.run == "none":
        raise UserError(
            "mae partial needs a run: an untrained encoder has to be trained as a whole"
        )
    layers = load(config.run).layers()
    depth = len(layers)
    default = [p for p in ("0", "0.5", "1", "2", "4", "all") if p == "all" or float(p) < depth]
    if not isinstance(layers[-1], Block):
        default.remove("0.5")  # half of a block is known of our own only
    parts = sorted(dict.fromkeys(config.model.train or default), key=lambda p: blocks_of(p, depth))
    rows = {f"all {depth}" if part == "all" else part: {"train": part} for part in parts}
    arms: dict[str, Changes] = {f"{n:g} epochs": {"epochs": n} for n in config.optim.epochs}
    arms = arms or {"accuracy": {"epochs": None}}

    def folder(row: str, arm: str, seed: int) -> str:
        epochs = arms[arm]["epochs"]
        return f"train-{rows[row]['train']}{'' if epochs is None else f'-epochs-{epochs:g}'}"

    return Grid(
        verb="partial",
        config=config,
        out=Path(config.output.out or f"{config.run.rstrip('/')}-partial"),
        rows=rows,
        arms=arms,
        seeds=(config.optim.seed,),
        row_title="blocks fine-tuned",
        folder=folder,
        choose_best=len(arms) > 1,
    )
