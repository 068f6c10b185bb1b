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


def limits(run: Path, what: str) -> list[str]:
    """Sentences on what the model has seen, what was not measured, what not to use it for.

    Args:
        run: the run folder.
        what: the part that is exported: "mae", "classifier" or "encoder".
    """
    described = read_config(run)
    classes = described["model"].get("classes", ()) if what != "encoder" else ()
    answered = "pixel" if what == "segmenter" else "image"
    return [
        f"**Data.** {' '.join(trained_on(run, described))} What these images show, where they come "
        "from, and who or what is missing in them is not recorded here: say it where you publish "
        "this.",
        f"**Not measured.** {not_measured(run, bool(classes))}",
        "**Reconstructions are invented.** What a decoder of this model draws in place of hidden "
        "patches is what usually was there in its training images. It may look right and be wrong: "
        "it is no evidence of what was hidden.",
        "**Biases are learned.** The model repeats what its images have in common, also by "
        "accident (backgrounds, cameras, marks, one group of people more than another). What was "
        "rare there is represented worse.",
        *(
            [
                f"**It always answers.** Every {answered} gets one of the {len(classes)} classes, "
                "also one that shows none of them."
            ]
            if classes
            else []
        ),
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


def not_measured(run: Path, is_classifier: bool) -> str:
    """What no result of the run is about."""
    done = {record["verb"] for record in read_results(run)}
    missing = [words for verb, words in MEASURED.items() if verb not in done]
    if not is_classifier and "evaluate" not in done:
        missing.remove(MEASURED["evaluate"])
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
