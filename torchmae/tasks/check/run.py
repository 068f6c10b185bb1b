"""`mae check`: what is there, in one screen and one page."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from torchmae.data.config import listing_as_run
from torchmae.data.quality.duplicates import find_duplicates, leaks
from torchmae.data.quality.findings import Checked, Finding, findings
from torchmae.data.quality.parts import open_parts
from torchmae.data.quality.survey import Survey, survey
from torchmae.data.quality.texture import Suggestion, Texture, chosen, suggest, texture
from torchmae.disk import write_text
from torchmae.errors import UserError, printable
from torchmae.report.html.check import check_page, kinds, summary
from torchmae.runfolder import is_run, read_config
from torchmae.settings.defaults import SIDES
from torchmae.tasks.check.config import Check
from torchmae.tasks.check.keep import kept, refuse_unlisted, write_list
from torchmae.tasks.check.likeness import by_features

logger = logging.getLogger(__name__)


def run(config: Check) -> dict[str, Any]:
    """Looks at every image once, says what was found and writes the page.

    Returns:
        Counts: "images", "bad", "exact_duplicates", "near_duplicates", "leaks", "lookalikes"
        (across parts, not certainly copies), "blank", "dark", "bright", "kept";
        "correlation_length" in pixels, "patch_size" and "mask_ratio" as they are suggested (None
        where nothing could be measured); "findings" in words; "page", its path.

    Raises:
        UserError: there is no such set, or none of its images can be read.
    """
    config.check()
    if is_run(Path(config.data).expanduser()):
        raise UserError(f"{config.data} is a run folder, not images (mae doctor looks at runs)")
    refuse_inside(config)
    for file in filter(None, (config.out, config.write_list)):
        if not Path(file).absolute().parent.is_dir():
            raise UserError(f"{file}: there is no such folder")
    if config.run is not None:
        read_config(config.run)  # before every image is read
    listing = listing_as_run(config.listing, config.data, "none")
    sources, parts, labels = open_parts(config.data, config.val, config.decode, listing)
    if config.write_list is not None:
        refuse_unlisted(sources, config.data)
    checked, note = look_at(survey(sources, parts, labels), config)
    found = [*findings(checked), *([Finding(False, note)] if note else [])]
    left_out = "; ".join(filter(None, (source.left_out for source in sources)))
    look = structure(checked.survey, config.seed)
    shown = chosen(checked.survey.good, config.count, config.seed)
    page = check_page(config.data, checked, found, look, shown, left_out)
    write_text(Path(config.out), page)
    for line in screen(config.data, checked.survey, look, left_out):
        logger.info(line)
    for one in found:
        logger.info(f"{'!' if one.bad else '-'} {one.text}")
    if not found:
        logger.info("nothing suspicious was found")
    keep = kept(checked)
    if config.write_list is not None:
        say_kept(config, checked.survey, keep)
    logger.info(f"Written to {config.out}")
    exact, near = checked.copies
    return {
        "images": len(checked.survey),
        "bad": len(checked.survey.bad),
        "exact_duplicates": exact,
        "near_duplicates": near,
        "leaks": sum(leak.certain for leak in checked.leaks),
        "lookalikes": sum(not leak.certain for leak in checked.leaks),
        "blank": len(checked.blank),
        "dark": len(checked.dark),
        "bright": len(checked.bright),
        "kept": len(keep),
        "correlation_length": look and look[0].length,
        "patch_size": look and look[1].patch,
        "mask_ratio": look and look[1].ratio,
        "findings": [one.text for one in found],
        "page": config.out,
    }


def refuse_inside(config: Check) -> None:
    """Raises UserError for --val in DATA, where its images would be counted in both."""
    if config.val is None:
        return
    data, val = (Path(one).expanduser().resolve() for one in (config.data, config.val))
    if data.is_dir() and val.is_dir() and data in val.parents:
        raise UserError(
            f"--val {config.val} lies inside DATA, so its images would be in both: name the folder "
            "of the training images as DATA, or leave --val out (train/, val/ and test/ of DATA "
            "are its parts)"
        )


def look_at(found: Survey, config: Check) -> tuple[Checked, str]:
    """What follows from a survey; with --run, how near-duplicates were found."""
    if not len(found.good):
        raise UserError(
            f"none of the {len(found)} images of {config.data} can be read; the first: "
            f"{found.bad[0]}"
        )
    if config.run is None:
        ids, note = found.good[~found.blank[found.good]], ""
        copies = find_duplicates(found.digests, found.hashes, found.thumbs, ids)
    else:
        alike = by_features(found, config.run, config.runtime.device, config.seed)
        copies, note = alike.duplicates, alike.words(config.run)
    leaked = leaks(copies, found.parts, found.digests, found.thumbs)
    return Checked(found, copies, leaked), note


def structure(found: Survey, seed: int) -> tuple[Texture, Suggestion] | None:
    """How pixels are correlated at the size that mae pretrain would take, and what that
    suggests."""
    least = int(np.median(found.sizes[found.good], axis=0).min())
    side = next((side for side in SIDES if side <= least), SIDES[-1])
    measured = texture(found, side, seed)
    return measured and (measured, suggest(measured))


def screen(
    data: str, found: Survey, look: tuple[Texture, Suggestion] | None, left_out: str
) -> list[str]:
    """The facts, a line each."""
    aspects = found.sizes[found.good, 1] / found.sizes[found.good, 0]
    low, high = found.sizes[found.good].min(axis=0), found.sizes[found.good].max(axis=0)
    labels = Counter(label for label in found.labels if label is not None)
    rows = {
        "data": f"{printable(data)}: {summary(found)}",
        "left out": left_out,
        "formats": "; ".join(f"{count:,} {kind}" for kind, count in kinds(found)[:5]),
        "sizes": f"{low[1]} to {high[1]} px wide, {low[0]} to {high[0]} px high, width to height "
        f"{aspects.min():.2f} to {aspects.max():.2f}",
        "classes": f"{len(labels)}, of {min(labels.values()):,} to {max(labels.values()):,} images"
        if len(labels) > 1
        else "",
        "suggestion": f"--patch-size {look[1].patch} --mask-ratio {look[1].ratio:g} (a rule of "
        f"thumb: {look[1].why})"
        if look
        else "",
    }
    return [f"{name:>10}  {words}" for name, words in rows.items() if words]


def say_kept(config: Check, found: Survey, keep: list[int]) -> None:
    """Writes the list of what to keep and says so."""
    path = Path(str(config.write_list))
    unnamed = write_list(path, found, keep)
    logger.info(
        f"{len(keep) - unnamed} of {len(found)} images to keep are listed in {path}: "
        f"mae pretrain {path}"
    )
    if unnamed:
        logger.warning(f"{unnamed} images are not listed: their names have line breaks")
