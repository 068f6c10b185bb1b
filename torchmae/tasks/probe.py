"""`mae probe`: what a linear map makes of frozen features; trained as in the paper, or solved at once on stored features."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from torchmae.data.labels import by_class, labelled_sets
from torchmae.errors import UserError, choose
from torchmae.tasks import classify, settings
from torchmae.tasks.features import accuracy, line, looker
from torchmae.tasks.neighbours import add_result
from torchmae.tasks.recipe import Finetune
from torchmae.train.distributed import find_device


@dataclass(frozen=True)
class Probe:
    """How well does a linear map tell the classes apart, from the features of the frozen encoder?

    By default the paper's linear probe: the head alone, behind a BatchNorm, is trained by SGD or LARS on weakly augmented
    images. With --fast, logistic regression on the stored features of whole images, beside the same on an untrained encoder
    and on raw pixels.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Labelled images: class folders (with train/ and val/ above them: the split), CSV of path,label, tar, digits, ..."""
    fast: bool = False
    """Logistic regression on stored features, its strength chosen by cross-validation on the training images."""
    val: str | None = None
    """Labelled images to measure on. Default: val/ or test/ beside train/, else a share of DATA."""
    val_fraction: float = 0.2
    """That share, of every class, drawn by the seed."""
    labels_per_class: int | None = None
    """Train on so many images of each class, drawn by the seed."""
    pool: str | None = None
    """mean of the patch tokens or the class token. Default: token (the paper's); mean with --fast, as mae neighbours."""
    layer: int | None = None
    """Only with --fast: take the tokens after this block, 1 to depth. Default: after the last."""
    out: str | None = None
    """Run folder of the trained probe. Default: RUN-probe. With --fast there is none."""
    epochs: float | None = None
    """Not with --fast: passes over the labelled images."""
    batch_size: int | None = None
    """Not with --fast: images per optimizer step, over all processes."""
    base_lr: float | None = None
    """Not with --fast: learning rate for 256 images a step."""
    optimizer: str | None = None
    """Not with --fast: adamw, sgd or lars. Default: sgd, or lars from 4,096 images a step on."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Not with --fast: least and largest share of the image's area that a random crop takes."""
    flip: bool = True
    """Not with --fast: mirror half of the crops (not for text or digits)."""
    seed: int = 0
    """Of split, subset, head, order and augmentation; of the cross-validation and the untrained encoder."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: int | None = None
    """Not with --fast: processes that load images."""


TRAINED_ONLY = ("out", "epochs", "batch_size", "base_lr", "optimizer", "crop_scale", "flip", "workers")
FAST_ONLY = ("fast", "layer")
POOLINGS = {"mean": "mean", "token": "cls"}  # mae finetune's words for what mae embed calls pooling

# Of the punishment of mean cross-entropy + strength / 2 |weights|^2, strongest first. In a mean it means the same for any
# number of images; features are standardised, so that it means much the same for all of them.
STRENGTHS = tuple(10.0**power for power in range(1, -8, -1))
# px: with 32, raw pixels of Imagenette do no better at any strength (40.4 % at most, 41.4 % with 16) and take over ten times
# as long.
RAW_SIDE = 16


def run(config: Probe) -> Path | dict[str, Any]:
    """The run folder of the trained probe; with --fast what was found, which is printed and added to `results.json` of RUN."""
    foreign = TRAINED_ONLY if config.fast else FAST_ONLY
    for field in fields(config):
        if field.name in foreign and getattr(config, field.name) != field.default:
            flag = f"--{'no-' * (field.name == 'flip')}{field.name.replace('_', '-')}"
            raise UserError(
                f"{flag} belongs to the probe that is trained: leave it out, or --fast"
                if config.fast
                else f"{flag} belongs to the probe on stored features: add --fast, or leave it out"
            )
    if config.run == "none":
        raise UserError("mae probe needs a run: an untrained encoder stands beside it with --fast")
    if config.fast:
        return regress(config)
    given = {name: value for name, value in asdict(config).items() if name not in FAST_ONLY}
    return classify.run(Finetune(train="head", **given))


def regress(config: Probe) -> dict[str, Any]:
    """The probe by logistic regression, of the features, an untrained encoder and raw pixels."""
    settings.check_numbers(config, ("labels_per_class",), ("seed",))
    if not 0 < config.val_fraction < 1:
        raise UserError(f"--val-fraction {config.val_fraction}: must lie between 0 and 1")
    pool = config.pool or "mean"
    pooling = choose(POOLINGS, pool, "pool")
    look = looker(config.run, config.layer, pooling, RAW_SIDE, config.seed, find_device(config.device))
    sets = labelled_sets(config.data, config.val, config.val_fraction, config.labels_per_class, config.seed)
    train, labels = look(sets.train, sets.train_labels)
    counts = labels.bincount(minlength=len(sets.classes)).tolist()
    if min(counts) == 0:
        raise UserError(f"no training image of class '{sets.classes[counts.index(0)]}' can be read")
    test, truth = look(sets.val, sets.val_labels)
    print(
        f"Linear probe (logistic regression on frozen features, {pool} pooling), {len(truth)} test and {len(labels)} "
        f"training images, {len(sets.classes)} classes"
    )
    if min(counts) == 1:
        print(
            f"  class '{sets.classes[counts.index(1)]}' has one training image, too few for cross-validation: the strength is "
            f"the middle one, {STRENGTHS[len(STRENGTHS) // 2]:g}"
        )
    found = {name: probed(train[name], labels, test[name], truth, config.seed) for name in train}
    for name, score in found.items():
        print(f"{line(name, score)}, strength {score['strength']:g}{remark(score)}")
    result = {
        "train_images": len(labels),
        "test_images": len(truth),
        "classes": len(sets.classes),
        **asdict(config),
        "pool": pool,
        "probe": found,
    }
    print(f"Written to {add_result(Path(config.run), 'probe', result)}")
    return result


def probed(
    train: Float[Tensor, "A F"],
    labels: Int64[Tensor, "A"],
    test: Float[Tensor, "B F"],
    truth: Int64[Tensor, "B"],
    seed: int,
) -> dict[str, Any]:
    """Accuracy on the test rows, used once, of the regression on all training rows with the strength found on these alone."""
    rows, test_rows = standardised(train, test)
    validated = cross_validated(rows, labels, seed)
    best = max(range(len(validated)), key=validated.__getitem__) if validated else len(STRENGTHS) // 2
    everything = torch.full((len(rows), 1), 1 / len(rows), dtype=rows.dtype)
    *_, weights = logistic(rows, labels, everything, STRENGTHS[: best + 1])
    score = accuracy((test_rows @ weights[:, 0]).argmax(1), truth)
    return {**score, "strength": STRENGTHS[best], "cross_validated": validated}


def remark(score: dict[str, Any]) -> str:
    """A warning where the best strength is the first or the last that is tried, and better than all others."""
    validated, strength = score["cross_validated"], score["strength"]
    if strength not in (STRENGTHS[0], STRENGTHS[-1]) or not validated or validated.count(max(validated)) > 1:
        return ""
    kind, next_one = ("strongest", validated[1]) if strength == STRENGTHS[0] else ("weakest", validated[-2])
    return (
        f"\n    warning: the {kind} that is tried; another might do better (cross-validation: {max(validated):.1%}, with the "
        f"strength next to it {next_one:.1%})"
    )


def standardised(
    train: Float[Tensor, "A F"], test: Float[Tensor, "B F"]
) -> tuple[Float64[Tensor, "A D"], Float64[Tensor, "B D"]]:
    """Features less the training rows' mean, in units of their deviation (one that is constant there stays as it is), with
    a last feature of 1, for the bias."""
    mean, deviation = train.double().mean(0), train.double().std(0, correction=0)
    deviation = torch.where(deviation > 1e-6, deviation, 1.0)
    first, second = (F.pad((rows.double() - mean) / deviation, (0, 1), value=1.0) for rows in (train, test))
    return first, second


def cross_validated(rows: Float64[Tensor, "N D"], labels: Int64[Tensor, "N"], seed: int) -> list[float]:
    """The accuracy of each strength on rows left out of the fit, one part after the other. Empty where a class has but one
    row: there are no parts then."""
    part = parts(labels, seed)
    count = int(part.max()) + 1
    if count < 2:
        return []
    inside = (part.unsqueeze(1) != torch.arange(count)).double()
    accuracies = []
    for weights in logistic(rows, labels, inside / inside.sum(0), STRENGTHS):
        guesses = torch.empty_like(labels)
        for i in range(count):
            guesses[part == i] = (rows[part == i] @ weights[:, i]).argmax(1)
        accuracies.append(int((guesses == labels).sum()) / len(labels))
    return accuracies


def parts(labels: Int64[Tensor, "N"], seed: int) -> Int64[Tensor, "N"]:
    """For each row the number of its part in cross-validation: five, or as many as the smallest class has rows, each with its
    share of every class."""
    count = min(5, int(labels.bincount().min()))
    part = torch.empty_like(labels)
    for _, members in by_class([str(label) for label in labels.tolist()], seed):
        part[members] = torch.arange(len(members)) % count
    return part


def logistic(
    rows: Float64[Tensor, "N D"],
    labels: Int64[Tensor, "N"],
    weights: Float64[Tensor, "N fits"],
    strengths: Sequence[float],
) -> Iterator[Float64[Tensor, "D fits classes"]]:
    """Multinomial logistic regressions, one a column of `weights`, which says how much each row counts (columns sum to 1): for
    each strength what makes cross-entropy + strength / 2 |W|^2 least. The last feature is the bias and is not punished.

    The strengths go from strong to weak, and each starts from the one before: begun at a weak one, it would stop too early.

    scikit-learn's L-BFGS needs hundreds of passes over the rows where the punishment is weak, since features vary far more
    in some directions than in others. Here it works in coordinates in which the curvature is near 1 everywhere: that of a
    row is (diag p - p p^T) x (row row^T), whose first factor is taken as the mean of its eigenvalues, so that one D x D
    matrix does for all classes and all fits, which share the passes.
    """
    fits, classes = weights.shape[1], int(labels.max()) + 1
    hits = F.one_hot(labels, classes).unsqueeze(1)
    batches = list(zip(*(x.split(4096) for x in (rows, hits, weights.unsqueeze(2)))))  # bounds the memory of the logits
    punished = torch.ones(rows.shape[1], 1, dtype=rows.dtype)
    punished[-1] = 0

    def log_chances(
        some: Float64[Tensor, "B D"], found: Float64[Tensor, "D columns"]
    ) -> Float64[Tensor, "B fits classes"]:
        return (some @ found).view(-1, fits, classes).log_softmax(2)

    def fit(strength: float, start: Float64[Tensor, "D columns"]) -> Float64[Tensor, "D columns"]:
        curvature, at_start = strength * torch.diag(punished[:, 0]), strength / 2 * (punished * start.square()).sum()
        for some, hit, counts in batches:
            logs = log_chances(some, start)
            eigenvalue = (counts * (1 - logs.exp().square().sum(2, keepdim=True))).sum(1) / (fits * (classes - 1))
            curvature += (some * eigenvalue).T @ some
            at_start -= (counts * hit * logs).sum()
        curvature += 1e-7 * torch.diag(curvature.diagonal())  # whatever rounding does, more than 0
        root = torch.linalg.cholesky(curvature)
        back = torch.linalg.inv(root)
        moved = root.T @ start  # W = back.T @ moved

        def loss_and_slope() -> Tensor:
            found = back.T @ moved
            loss, slope = strength / 2 * (punished * found.square()).sum(), strength * punished * found
            for some, hit, counts in batches:
                logs = log_chances(some, found)
                loss -= (counts * hit * logs).sum()
                slope += some.T @ (counts * (logs.exp() - hit)).flatten(1)
            moved.grad = back @ slope
            return loss

        # What is left to gain is about |slope|^2 / 2 in these coordinates. Where classes are told apart the loss itself is
        # tiny, and the slope must be small beside it: with 1e-4 for all, the loss could end ten times too high.
        enough = 1e-4 * min(1.0, float(at_start) / fits) ** 0.5
        optimizer = torch.optim.LBFGS(
            [moved], max_iter=3000, tolerance_grad=enough, tolerance_change=0, line_search_fn="strong_wolfe"
        )
        optimizer.step(loss_and_slope)
        return back.T @ moved

    found = torch.zeros(rows.shape[1], fits * classes, dtype=rows.dtype)
    for strength in strengths:
        found = fit(strength, found)
        yield found.view(-1, fits, classes)
