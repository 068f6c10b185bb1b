"""From studies and grids to trainings: which there are, without doubles, and that each can run."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from torchmae.errors import UserError, choose
from torchmae.eval.baselines import FEATURES, PIXELS, UNTRAINED
from torchmae.eval.probes.measures import MEASURES, POOLED
from torchmae.models.decoders import DecoderConfig, decoder_config
from torchmae.models.encoders import build_encoder
from torchmae.models.mae import MAE, training_flops
from torchmae.models.masking import MASKINGS, MaskGenerator
from torchmae.models.patches import as_size, grid_of
from torchmae.models.sizes import size_of
from torchmae.models.targets import split_target
from torchmae.models.targets.tokenizer import TokenizerConfig
from torchmae.runfolder import read_any_config, read_config
from torchmae.settings.defaults import Facts
from torchmae.settings.options import (
    build,
    changeable,
    flatten,
    options_of,
    parse_patch,
    parse_size,
)
from torchmae.settings.parser import value_type
from torchmae.tasks.ablate.config import Ablate, parse_budget
from torchmae.tasks.ablate.studies import ALL, OWN_TOKENS, STUDIES, Base, Changes, Point, Study
from torchmae.tasks.pretrain.config import Pretrain
from torchmae.tasks.tokenizer.config import TrainTokenizer

TOKENIZER = "tokenizer"  # the folder, below that of the ablation
FEW_LABEL, FINETUNE = "few-label", "finetune"
# What points are measured beside, by the settings that decide what it is.
VIEW = ("image_size", "channels", "max_megapixels", "dtype", "nodata", "bands")
BASELINES = {
    UNTRAINED: ("model", "patch_size", "registers", "normalize", "from_run", *VIEW),
    PIXELS: VIEW,
}


class Training(NamedTuple):
    """One pre-training, and how its encoder is measured; or a baseline, measured in the folder of
    the training that comes before it.

    Attributes:
        name: unique within the ablation; a file name.
        folder: of its run. Trainings of the warmup-stable-decay schedule that differ in their
            length alone share one: each continues the shorter.
        changes: the settings in which it differs from the others.
        seed: of everything.
        config: the settings that it starts with.
        resolved: the same with nothing left to choose, by name.
        relative_flops: of an image, over those of the default.
        measures: what is measured.
        data: what the images and the labelled images are recognized by.
        subject: what is measured: its features, or one of `BASELINES`.
    """

    name: str
    folder: str
    changes: Changes
    seed: int
    config: Pretrain
    resolved: Mapping[str, Any]
    relative_flops: float
    measures: tuple[str, ...]
    data: Mapping[str, Any]
    subject: str = FEATURES


@dataclass(frozen=True)
class Experiment:
    """A study on these images: its points, each with the name of its training without the seed, and
    the names of what they are measured beside."""

    name: str
    study: Study
    points: tuple[Point, ...]
    trainings: tuple[str, ...]
    baselines: tuple[str, ...]
    reference: int  # the point that the others are compared with

    def measured_by(self, point: Point, measures: Sequence[str]) -> Mapping[str, str]:
        """The measures of a point, by the column that shows them."""
        return point.measured_by or {name: name for name in measures}


class Ablation:
    """All experiments of a call, and the trainings that they need.

    Args:
        config: the settings.
        facts: what is known of data and device.
        out: the folder of the ablation.
        data: what the images and the labelled images are recognized by.

    Raises:
        UserError: a study or setting that there is not; a point that cannot be trained.
    """

    def __init__(self, config: Ablate, facts: Facts, out: Path, data: Mapping[str, Any]):
        self.config = config
        self.facts = facts
        self.out = out
        self.data = data
        self.found: dict[tuple[str, int], Training] = {}
        self.baselines: dict[tuple[str, int], Training] = {}
        self.base_config = build(Pretrain, flatten(config))
        self.base = self.resolve({})
        model = config.model.from_run
        width = facts.embed_dim or size_of(self.base["model"])["embed_dim"]
        self.depth = (
            read_config(model)["model"]["encoder"].get("depth", 0)
            if model
            else size_of(self.base["model"])["depth"]
        )
        known = Base(width, self.depth, self.base["epochs"])
        studies = named_studies(config.ablation.study)
        if config.ablation.vary:
            studies["grid"] = grid(config.ablation.vary)
        self.experiments = [
            self.experiment(name, study, study.points(known)) for name, study in studies.items()
        ]

    def experiment(self, name: str, study: Study, points: Sequence[Point]) -> Experiment:
        """The experiment of a study; its trainings are added to those that are needed."""
        trainings = [self.add(name, point) for point in points]
        # The default of these trainings if it is one of the points, else the paper's, or the first.
        places = [i for i, training in enumerate(trainings) if training == DEFAULT]
        if len(places) != 1:
            places = [i for i, point in enumerate(points) if point.default]
        seed, reference = self.config.ablation.seeds[0], next(iter(places), 0)
        changes = [self.found[training, seed].changes for training in trainings]
        beside = [baseline_name(subject, some) for subject in BASELINES for some in changes]
        baselines = tuple(name for name in dict.fromkeys(beside) if (name, seed) in self.baselines)
        return Experiment(name, study, tuple(points), tuple(trainings), baselines, reference)

    def add(self, study: str, point: Point) -> str:
        """The name of a point's training, of which there is one for each seed."""
        try:
            resolved = self.resolve(point.changes)
            self.refuse(point.changes, resolved)
        except UserError as error:
            raise UserError(f"{study}, {point.label}: {error}") from error
        changes = {n: v for n, v in point.changes.items() if resolved[n] != self.base[n]}
        name = name_of(changes)
        trunk = resolved.get("schedule") == "wsd"
        folder = name_of({n: v for n, v in changes.items() if n != "epochs"}) if trunk else name
        measures = tuple(point.measured_by.values()) or self.config.measures.measure
        for seed in self.config.ablation.seeds:
            before = self.found.get((name, seed))
            wanted = (before.measures if before else ()) + measures
            training = self.found[name, seed] = Training(
                f"{name}-seed-{seed}",
                f"{folder}-seed-{seed}",
                changes,
                seed,
                self.training(changes, seed),
                {**resolved, "seed": seed},
                self.image_flops(resolved) / self.image_flops(self.base),
                tuple(dict.fromkeys(wanted)),
                self.data,
            )
            self.add_baselines(training)
        return name

    def add_baselines(self, training: Training) -> None:
        """What a training is measured beside is added, once for all that look at images alike."""
        for subject, decides in BASELINES.items():
            name = baseline_name(subject, training.changes)
            before = self.baselines.get((name, training.seed))
            measures = [m for m in training.measures if suits(subject, m)]
            wanted = dict.fromkeys((*(before.measures if before else ()), *measures))
            if wanted:
                self.baselines[name, training.seed] = training._replace(
                    name=f"{name}-seed-{training.seed}",
                    changes={n: v for n, v in training.changes.items() if n in decides},
                    resolved={n: training.resolved[n] for n in decides},
                    measures=tuple(wanted),
                    subject=subject,
                )

    def refuse(self, changes: Changes, resolved: Mapping[str, Any]) -> None:
        """Raises UserError for what only a grid can ask for."""
        if self.config.ablation.budget is not None and "epochs" in changes:
            raise UserError("--budget fixes the length, which is varied here: leave one out")
        run = split_target(resolved["target"])[1]
        if run is None:
            return
        patch = self.base["patch_size"]
        if isinstance(resolved["patch_size"], str):
            raise UserError(f"a tokenizer has square patches, not {resolved['patch_size']} px")
        if changes.get("target") != OWN_TOKENS:
            patch = read_any_config(run)["model"]["tokenizer"]["patch_size"]
        if patch != resolved["patch_size"]:
            raise UserError(
                f"the tokenizer has patches of {patch} px, the model of "
                f"{resolved['patch_size']} px: they must be equal"
            )

    def training(self, changes: Changes, seed: int) -> Pretrain:
        """The settings of a training; those that a budget decides included."""
        changes = {**changes, "seed": seed}
        if changes.get("target") == OWN_TOKENS:
            changes["target"] = f"{OWN_TOKENS}:{self.out / TOKENIZER}"
        budget = parse_budget(self.config.ablation.budget)
        if budget is not None and "epochs" not in changes:
            changes |= self.lengths(budget, changes)
        return build(Pretrain, {**flatten(self.base_config), **changes})

    def lengths(self, budget: tuple[str, float], changes: Changes) -> Changes:
        """The setting that gives a training its budget."""
        kind, amount = budget
        if kind == "minutes":
            return {"minutes": amount, "epochs": None}
        if kind == "flops":
            plain = self.resolve_config(build(Pretrain, {**flatten(self.base_config), **changes}))
            amount /= self.image_flops(plain)
        return {"epochs": amount / self.facts.images}

    def resolve(self, changes: Changes) -> dict[str, Any]:
        """All settings of a training with nothing left to choose, the decoder's included.

        Raises:
            UserError: it could not be trained.
        """
        return self.resolve_config(self.training(changes, 0))

    def resolve_config(self, config: Pretrain) -> dict[str, Any]:
        """As `resolve`, of the settings that a training starts with."""
        config.check()
        resolved, _ = config.resolve(self.facts)
        model, masked = resolved.model, resolved.masking
        choose(MASKINGS, masked.masking, "masking")
        split_target(masked.target)
        patches = grid_of(parse_size(model.image_size), as_size(parse_patch(model.patch_size)))
        for masks in MaskGenerator.of(vars(masked)).each():
            masks.counts(patches)
        width = self.facts.embed_dim or size_of(model.model or "")["embed_dim"]
        sizes = (model.decoder_dim, model.decoder_depth, model.decoder_heads)
        decoder = decoder_config(width, model.decoder, *sizes)
        found = {"dim": decoder.dim, "depth": decoder.depth, "heads": decoder.heads}
        return flatten(resolved) | {f"decoder_{name}": value for name, value in found.items()}

    def tokenizer(self) -> TrainTokenizer:
        """The settings of the tokenizer whose tokens a study predicts."""
        base, known = self.base, flatten(TrainTokenizer(source=self.config.source))
        settings = {
            **flatten(self.config),
            "out": str(self.out / TOKENIZER),
            "image_size": base["image_size"],
            "patch_size": base["patch_size"],
            "seed": 0,
        }
        # What is open, or has no meaning here (the scale of --crop none), is as it chooses.
        values = {n: value for n, value in settings.items() if n in known and value is not None}
        for name in ("epochs", "base_lr", "warmup_epochs", "batch_size", "minutes"):
            values.pop(name, None)  # a tokenizer has its own
        return build(TrainTokenizer, values)

    def described_target(self, resolved: Mapping[str, Any]) -> str | dict[str, Any]:
        """The target of a training as `MAE` takes it, also where its tokenizer is yet to be
        trained."""
        name, run = split_target(resolved["target"])
        if run is None:
            return name
        if run != str(self.out / TOKENIZER):
            return {"name": name, "model": read_any_config(run)["model"]}
        about = self.tokenizer().resolve(self.facts)[0].model
        size, values = parse_size(about.image_size), (1.0,) * resolved["channels"]
        described = TokenizerConfig(about.patch_size, about.vocabulary, size, values, values)
        return {"name": name, "model": {"tokenizer": asdict(described)}}

    def image_flops(self, resolved: Mapping[str, Any]) -> float:
        """Operations of a training step for one image. What --from brings counts as the default
        model."""
        with torch.device("meta"):
            shape: dict[str, Any] = {"channels": resolved["channels"]}
            shape["patch_size"] = parse_patch(resolved["patch_size"])
            shape["image_size"] = parse_size(resolved["image_size"])
            encoder = build_encoder({**shape, **size_of(resolved["model"] or "vit_base")})
            sizes = (resolved[f"decoder_{name}"] for name in ("dim", "depth", "heads"))
            decoder = DecoderConfig(resolved["decoder"], *sizes)
            target = self.described_target(resolved)
            model = MAE(encoder, decoder, target, encode_all=resolved["encode_all"])
        return float(training_flops(model, MaskGenerator.of(resolved)) or 1)

    def units(self) -> list[list[Training]]:
        """The trainings in the order in which they run, seed by seed, those that share a folder
        together, the shortest first; every baseline follows the first of its trainings."""
        order = {training.folder: place for place, training in enumerate(self.found.values())}
        every = sorted(
            self.found.values(), key=lambda t: (t.seed, order[t.folder], t.resolved["epochs"])
        )
        units = [list(group) for _, group in groupby(every, key=lambda t: t.folder)]
        left = dict(self.baselines)
        for unit in units:
            for training, subject in product(tuple(unit), BASELINES):
                key = baseline_name(subject, training.changes), training.seed
                if key in left:
                    place = {"folder": training.folder, "config": training.config}
                    unit.append(left.pop(key)._replace(**place))
        return units


DEFAULT = "default"


def name_of(changes: Changes, *start: str) -> str:
    """What a training is called: "mask_ratio=0.5", in letters that every file system has."""
    text = "-".join([*start, *(f"{name}={value}" for name, value in changes.items())]) or DEFAULT
    return re.sub(r"[^\w.=+-]+", "_", text)


def baseline_name(subject: str, changes: Mapping[str, Any]) -> str:
    """What a baseline of trainings with these changes is called."""
    return name_of({n: v for n, v in changes.items() if n in BASELINES[subject]}, subject)


def part_of(measure: str) -> str:
    """What a fine-tuning may change: `finetune-2` the last two blocks, others everything."""
    return measure.partition(f"{FINETUNE}-")[2] or "all"


def suits(subject: str, measure: str) -> bool:
    """Whether a baseline has a measure: pixels have neither tokens nor weights, and of an untrained
    encoder everything has to be trained."""
    if measure in MEASURES:
        return subject == UNTRAINED or MEASURES[measure][0] == POOLED
    return subject == UNTRAINED and part_of(measure) == "all"


def named_studies(names: Sequence[str]) -> dict[str, Study]:
    """The studies of these names, "all" of them included."""
    for name in names:
        choose({**STUDIES, ALL: None}, name, "study")
    return {n: study for n, study in STUDIES.items() if n in names or ALL in names}


def grid(words: Sequence[str]) -> Study:
    """The study that `--vary SETTING VALUE... SETTING VALUE...` describes: every combination."""
    varied = list(settings_in(words))
    axes = [[(name, value) for value in values] for name, values in varied]
    names = [name.replace("_", " ") for name, _ in varied]

    def points(base: Base) -> list[Point]:
        return [point_of(dict(pairs)) for pairs in product(*axes)]

    return Study(f"Grid: {', '.join(names)}", ", ".join(names), points)


def point_of(changes: Changes) -> Point:
    """A point of a grid, with a place on the axis where one number varies."""
    values = list(changes.values())
    number = len(values) == 1 and isinstance(values[0], int | float)
    number = number and not isinstance(values[0], bool)
    label = " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
    return Point(label, changes, x=values[0] if number else None)


def settings_in(words: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    """The settings of `--vary` with their values; a word that names a setting begins the next.

    Raises:
        UserError: an unknown setting, a value of another type, no value.
    """
    known = {
        name: setting
        for name, setting in options_of(Pretrain).items()
        if not (setting.positional or setting.metadata["hidden"])
        and name not in {"seed", "minutes"} | changeable(Pretrain)
    }
    starts = [i for i, word in enumerate(words) if plain(word) in known]
    if not starts or starts[0] != 0:
        choose(known, plain(words[0]), "setting of mae pretrain:")
    for start, stop in zip(starts, [*starts[1:], len(words)]):
        name, texts = plain(words[start]), words[start + 1 : stop]
        if not texts:
            raise UserError(f"--vary {words[start]}: its values are missing, such as 0.5 0.75")
        yield name, [value_of(name, known[name].type, text) for text in texts]


def plain(word: str) -> str:
    return word.removeprefix("--").replace("-", "_")


def value_of(name: str, kind: Any, text: str) -> Any:
    """A value of `--vary`; several numbers are divided by commas, as in 0.2,1."""
    single, several = value_type(kind)
    switches = {"on": True, "true": True, "off": False, "false": False}
    if single is bool:
        return choose(switches, text.lower(), f"value of {name}:")
    try:
        if several:
            return tuple(single(part) for part in text.split(","))
        return single(text)
    except ValueError:
        what = "a whole number" if single is int else "a number"
        raise UserError(f"--vary {name} {text}: not {what}, and no other setting") from None
