"""The limits of a model, for its card: from what the run folder knows, and what every such model
shares."""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torchmae.errors import UserError, printable
from torchmae.models.patches import size_name
from torchmae.runfolder import is_run, read_bad_files, read_config, read_results

# What a verb trains on, where that has labels.
LABELED = {
    "finetune": "labeled images",
    "segment": "images with masks",
    "detect": "images with objects",
}
# What a verb measures, in words.
MEASURED = {
    "knn": "how good the frozen features are (k-NN)",
    "probe": "how well a linear classifier separates the frozen features",
    "evaluate": "accuracy and calibration on images without a part in training or in the choice of "
    "the epoch",
}


# Of these the frozen features are not what is used.
DENSE = {
    "segmenter": "mean IoU on images without a part in training or in the choice of the weights",
    "detector": "AP on images without a part in training or in the choice of the weights",
}


def limits(run: Path, what: str) -> list[str]:
    """Sentences on what the model has seen, what was not measured, what not to use it for.

    Args:
        run: the run folder.
        what: the part that is exported: "mae", "classifier", "segmenter", "detector" or "encoder".
    """
    described = read_config(run)
    model = described["model"]
    classes = model.get("classes", ()) if what != "encoder" else ()
    own = {"segmenter": of_segmenter, "detector": of_detector}.get(what, of_others)
    return [
        f"**Data.** {' '.join(trained_on(run, described))} What these images show, where they come "
        "from, and who or what is missing in them is not recorded here: say it where you publish "
        "this.",
        f"**Not measured.** {not_measured(run, bool(classes), what)}",
        *own(model, len(classes)),
        "**Biases are learned.** The model repeats what its images have in common, also by "
        "accident (backgrounds, cameras, marks, one group of people more than another). What was "
        "rare there is represented worse.",
        *always(what, len(classes)),
    ]


def always(what: str, classes: int) -> list[str]:
    """That a model of classes knows no other ones."""
    if not classes or what == "detector":
        return []
    answered = "pixel" if what == "segmenter" else "image"
    return [
        f"**It always answers.** Every {answered} gets one of the {classes} classes, also one that "
        "shows none of them."
    ]


def of_others(model: Mapping[str, Any], classes: int) -> list[str]:
    """What is to be known of a model whose decoder draws, or may be drawn with."""
    return [
        "**Reconstructions are invented.** What a decoder of this model draws in place of hidden "
        "patches is what usually was there in its training images. It may look right and be wrong: "
        "it is no evidence of what was hidden."
    ]


def of_segmenter(model: Mapping[str, Any], classes: int) -> list[str]:
    """What a segmenter cannot do."""
    cell = size_name(model["encoder"]["patch_size"])
    return [
        f"**Edges are interpolated.** Features are those of patches of {cell} px: what is thinner "
        "may be lost, and an edge may lie beside the true one. Areas and lengths measured on these "
        "masks need a check on images that were measured by hand.",
        "**One scale.** Images are seen resized as in training; what appears much smaller or "
        "larger there than in the training images is labeled worse.",
    ]


def of_detector(model: Mapping[str, Any], classes: int) -> list[str]:
    """What a detector cannot do."""
    return [
        f"**It finds its {classes} class{'es' * (classes != 1)} only.** Other things are not "
        "found, or are taken for one of these. Objects are missed and invented: counts need a "
        f"check, and more than {model['max_detections']} objects in an image are never found.",
        "**Scores are no probabilities.** They order what was found; choose the least score on "
        "images of your own.",
        "**One scale.** Objects that appear much smaller or larger than in the training crops are "
        "missed; a mask has 28 x 28 cells over its box, however large that is.",
    ]


def trained_on(run: Path, described: Mapping[str, Any], generations: int = 4) -> list[str]:
    """Sentences on the images of a run, and on those of so many runs that it started from."""
    settings, data = described.get("config", {}), described.get("data") or {}
    verb = described.get("verb")
    if verb == "import" or not data.get("count"):
        source = settings.get("source")
        origin = f" ({name_of(source)})" if source else ""
        return [f"Imported weights{origin}: their source says what they were trained on."]
    encoder = described["model"]["encoder"]
    size = size_name(tuple(encoder["image_size"])) if "image_size" in encoder else "?"
    bands = encoder.get("channels", 3)
    kind = {1: "gray", 3: "color"}.get(bands, f"{bands}-band")
    seen = f"seen as {kind} images of {size} px"
    bad = len(read_bad_files(run))
    skipped = f"; {bad:,} {'file' if bad == 1 else 'files'} could not be read" if bad else ""
    if verb in LABELED:
        names = described["model"].get("classes", ())
        sentences = [
            f"Fine-tuned on {data['count']:,} {LABELED[verb]} of {len(names)} classes from "
            f"{name_of(settings.get('data'))}, {seen}{skipped}."
        ]
        if data.get("val"):
            sentences.append(f"{data['val']['count']:,} others were for validation.")
    else:
        sentences = [
            f"Pre-trained without labels on {data['count']:,} images from "
            f"{name_of(settings.get('data'))}, {seen}{skipped}."
        ]
    return sentences + before(settings.get("run") or settings.get("from_run"), generations - 1)


def before(origin: str | None, generations: int) -> list[str]:
    """Sentences on the run that a run started from."""
    if origin is None:
        return []
    if origin == "none":
        return ["Its encoder was not pre-trained."]
    folder = Path(origin)
    found: list[str] = []
    with suppress(UserError):  # it may be anything by now
        if generations and is_run(folder):
            found = trained_on(folder, read_config(folder), generations)
    known = " ".join(found) or "That folder is gone, so what it was trained on is not known here."
    return [f"The weights before that are those of {name_of(origin)}. {known}"]


def not_measured(run: Path, is_classifier: bool, what: str = "") -> str:
    """What no result of the run is about."""
    done = {record["verb"] for record in read_results(run)}
    missing = [words for verb, words in MEASURED.items() if verb not in done]
    if not is_classifier and "evaluate" not in done:
        missing.remove(MEASURED["evaluate"])
    if what in DENSE:
        missing = [] if "evaluate" in done else [DENSE[what]]
    missing += [
        "images of another kind, place or camera than those of training",
        "damaged, unusual or manipulated images",
        "differences between groups of people, places or devices",
    ]
    words = "; ".join(missing)
    return f"{words[0].upper()}{words[1:]}."


def name_of(place: Any) -> str:
    """The last part of a path or address, quoted, for Markdown."""
    return f'"{markdown(Path(str(place).rstrip("/")).name or place)}"'


def markdown(value: Any) -> str:
    """Text that Markdown and HTML show as it is, in one line: names of classes and folders come
    from whoever made the data."""
    return MARKUP.sub(lambda found: ESCAPED.get(found[0], f"\\{found[0]}"), printable(value))


# HTML's own signs as entities, which no renderer undoes; Markdown's behind a backslash. "_" is left
# alone inside words, where it marks nothing.
MARKUP = re.compile(r"[&<>\\`*\[\]#|~$!]|\b_|_\b")
ESCAPED = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
