"""What features and classifiers are measured beside: an untrained encoder, raw pixels, and always
the commonest class."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from torchmae.data.config import decode_as_run
from torchmae.data.labels import LabelledSets, groups_of
from torchmae.data.sources.source import BadFile, Source
from torchmae.eval.extract import (
    Function,
    collect,
    collect_batches,
    features_of,
    image_batches,
    layers_of,
    patch_tokens_of,
)
from torchmae.eval.probes.logistic import linear_probe
from torchmae.models.encoders import Backbone, build_encoder
from torchmae.models.heads import check_queries
from torchmae.models.vit import ViT
from torchmae.models.weights import load, seeded
from torchmae.runfolder import read_config
from torchmae.settings.options import ALL, parse_size

# The names of the measurements. FEATURES are those of the run, of a frozen encoder.
FEATURES = "features"
UNTRAINED = "untrained encoder"
PIXELS = "raw pixels"
COMMONEST = "commonest class"

# px: the largest side of raw pixels for regressions. With 32, those of Imagenette do no better at
# any strength (40.4 % at most, 41.4 % with 16) and take over ten times as long.
RAW_SIDE = 16

FeatureExtractor = Callable[
    [Source], tuple[list[int], dict[str, Shaped[Tensor, "N ..."]], list[BadFile]]
]


def baseline_features(
    run: str, layer: int | str | None, pool: str, side: int, seed: int, device: torch.device
) -> FeatureExtractor:
    """The function from a source to the run's features and those of the two baselines, in one pass.

    Args:
        run: a run folder.
        layer: as for `features_of`, of both encoders; `ALL`: the run's features have one row for
            each block, [N, depth, F], and the untrained encoder's are the last.
        pool: as for `features_of`, of both encoders.
        side: raw pixels are those of images reduced to at most so many px a side.
        seed: of the untrained encoder.
        device: where the encoders compute.

    Returns:
        A function that returns the numbers of the readable images; float32 features on the CPU of
        these, by name (`FEATURES`, `UNTRAINED`, `PIXELS`); the unreadable files.

    Raises:
        UserError: no such run, layer or pool; before any image is read.
    """
    encoder, every = load(run), layer == ALL
    one = layer if isinstance(layer, int) else None
    functions: dict[str, Function] = {
        FEATURES: (layers_of if every else partial(features_of, layer=one))(
            encoder, pool=pool, device=device
        ),
        UNTRAINED: features_of(untrained(run, seed), one, pool, device),
        PIXELS: lambda images: raw_pixels(images, side, encoder.image_size),
    }
    return extractor(encoder, run, functions, device, own_shapes=True)


def baseline_tokens(
    run: str, layer: int | None, queries: int, seed: int, device: torch.device
) -> FeatureExtractor:
    """As `baseline_features`, the patch tokens of both encoders, float16 [N, T, D], which so many
    queries shall pool."""
    encoder = load(run)
    check_queries(encoder.embed_dim, queries)
    functions = {
        FEATURES: patch_tokens_of(encoder, layer, device),
        UNTRAINED: patch_tokens_of(untrained(run, seed), layer, device),
    }
    return extractor(encoder, run, functions, device)


def extractor(
    encoder: Backbone,
    run: str,
    functions: Mapping[str, Function],
    device: torch.device,
    own_shapes: bool = False,
) -> FeatureExtractor:
    """The function from a source to what several functions make of its images, by name."""

    def extract(
        images: Source,
    ) -> tuple[list[int], dict[str, Shaped[Tensor, "N ..."]], list[BadFile]]:
        batches = image_batches(images, encoder, run, own_shapes=own_shapes)
        ids, rows, bad = collect_batches(batches, list(functions.values()), device)
        return ids, dict(zip(functions, rows)), bad

    return extract


def baseline_logits(
    run: str, sets: LabelledSets, seed: int, trained: Path, device: torch.device
) -> tuple[list[int], dict[str, Float[Tensor, "N classes"]]]:
    """What is said of the validation images by logistic regressions on the training images, and by
    always saying the commonest class.

    The regressions see the features of the run's frozen encoder, those of the same encoder before
    its first step, and raw pixels. Their penalty is chosen by cross-validation on the training
    labels.

    Args:
        run: the run folder.
        sets: the labelled images.
        seed: of the folds and of the untrained encoder.
        trained: a classifier of these images, which says what an image is: how it is decoded, size,
            channels and their statistics, the share that is seen, the pooling.
        device: where the encoders compute.

    Returns:
        The numbers of the validation images that can be read; the logits of these, by name
        (`FEATURES`, `UNTRAINED`, `PIXELS`, `COMMONEST`).
    """
    described = read_config(trained)
    settings, shape = described["config"], described["model"]["encoder"]
    encoder = load(run)
    scaling = [shape["scaling"]] if shape.get("scaling") else []
    encoder.adapt(shape["channels"], tuple(shape["mean"]), tuple(shape["std"]), *scaling)
    size = parse_size(settings["image_size"])
    pool = "mean" if settings["pool"] == "attentive" else settings["pool"]  # no queries here
    if isinstance(encoder, ViT) and settings.get("position_resizing") is not None:
        encoder.position_resizing = settings["position_resizing"]
    if encoder.image_size != size:
        encoder.resize(size)
    with seeded(seed):
        other = build_encoder(shape)
    other.restore_norm()
    functions: dict[str, Function] = {
        FEATURES: features_of(encoder, None, pool, device),
        UNTRAINED: features_of(other, None, pool, device),
        PIXELS: lambda images: raw_pixels(images, RAW_SIDE),
    }
    decoded = sets.with_decode(decode_as_run(str(trained)))
    train, test = (
        collect(part, encoder, trained, list(functions.values()), device)
        for part in (decoded.train, decoded.val)
    )
    labels, count = sets.train_labels[train[0]], len(sets.classes)
    groups = groups_of(sets.train, train[0])
    found = {
        name: linear_probe(ours, labels, theirs, seed, groups).logits.float()
        for name, ours, theirs in zip(functions, train[1], test[1])
    }
    # the last class may have no image that can be read
    found = {n: F.pad(x, (0, count - x.shape[1]), value=-torch.inf) for n, x in found.items()}
    said = commonest(sets.val_labels[test[0]])
    return test[0], {**found, COMMONEST: F.one_hot(said, count).float()}


def commonest(truth: Int64[Tensor, " N"]) -> Int64[Tensor, " N"]:
    """Always the commonest class of the images that are measured: no constant is better.

    A class -1 is one that cannot be named.
    """
    named = truth[truth >= 0]
    return named.mode().values.expand(len(truth)) if len(named) else torch.zeros_like(truth)


def not_above_commonest(low: float, truth: Int64[Tensor, " N"]) -> str:
    """A warning where the lower end of an accuracy's interval, 0 to 1, does not exceed the share of
    the commonest class; else empty."""
    share = float((commonest(truth) == truth).double().mean())
    if low > share:
        return ""
    return f".\nNot clearly better than always saying the commonest class ({share:.1%})"


def raw_pixels(
    images: Shaped[Tensor, "B C H W"], side: int, like: tuple[int, ...] | None = None
) -> Float[Tensor, "B F"]:
    """The pixels (0 where there is none) of images reduced to at most `side` px (memory), as if
    they were of the size `like`: that of all where they have several."""
    size = [min(side, length) for length in like or images.shape[2:]]
    return F.interpolate(images.float().nan_to_num(0.0), size, mode="area").flatten(1)


def untrained(run: str, seed: int) -> Backbone:
    """An encoder of the run's architecture with the initial weights of a seed."""
    with seeded(seed):
        return build_encoder(read_config(run)["model"]["encoder"]).eval()
