"""`mae verify`: every file of a run compared with what was written."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file

from torchmae import manifest, runfolder
from torchmae.disk import parse_json
from torchmae.errors import RunError, UserError
from torchmae.tasks.verify.config import Verify
from torchmae.train import checkpoint

logger = logging.getLogger(__name__)

OK, DAMAGED, UNKNOWN = "OK", "damaged", "not listed"
ASIDE = "damaged-step-*"  # checkpoints that a resume has found damaged
WHOLE = (  # JSON without a hash
    *(runfolder.RESULTS, runfolder.LAST_SCORES, runfolder.BEST_SCORES),
    *(runfolder.DATA_SHEET, runfolder.CLASSES, runfolder.TRACKED),
)


class Finding(NamedTuple):
    """What is known of one file, or of a checkpoint's folder."""

    name: str
    state: str
    about: str


def run(config: Verify) -> list[dict[str, str]]:
    """Reads a run.

    Returns:
        A record of "name", "state" ("OK", "damaged" or "not listed") and "about" for each file.

    Raises:
        UserError: it is no run folder.
        RunError: something is damaged; after everything was read and reported.
    """
    folder = Path(config.folder)
    files = (runfolder.CONFIG, manifest.MANIFEST, runfolder.MODEL)
    if not any((folder / name).is_file() for name in files) and not runfolder.checkpoints(folder):
        raise UserError(
            f"{folder} is not a run folder (it has none of {', '.join(files)} and no checkpoint): "
            "name a folder that mae pretrain, finetune or import made"
        )
    found = [*published(folder), *saved(folder), *lines(folder), *scores(folder)]
    width = max(len(finding.name) for finding in found)
    for name, state, about in found:
        logger.info(f"{name:<{width}}  {state}{f': {about}' if about else ''}")
    damaged = [finding.name for finding in found if finding.state == DAMAGED]
    if damaged:
        raise RunError(
            f"{folder}: {len(damaged)} of {len(found)} damaged ({', '.join(damaged)}). Restore "
            "them from a copy. The command that trained the run writes weights again from its "
            "newest good checkpoint, and drops lines of logs that cannot be read"
        )
    return [finding._asdict() for finding in found]


def published(folder: Path) -> Iterator[Finding]:
    """The files that later verbs read, and the manifest that lists them."""
    name = manifest.MANIFEST
    listed: dict[str, list[manifest.Content]] | None = None
    try:
        listed = manifest.listed(folder)
        yield (
            Finding(name, OK, "")
            if listed
            else Finding(
                name,
                UNKNOWN,
                "the run was made before there were manifests; resuming it writes one",
            )
        )
    except UserError as error:
        yield Finding(name, DAMAGED, str(error))
    for name in dict.fromkeys([*runfolder.LISTED, *(listed or {})]):
        path = folder / name
        if not path.is_file():
            if listed and name in listed:
                yield Finding(name, DAMAGED, "it is missing")
            continue
        try:
            if listed is not None:
                manifest.check(folder, name)
            wrong = unreadable(path)
        except (UserError, OSError) as error:
            wrong = str(error)
        state = DAMAGED if wrong else OK if listed else UNKNOWN
        yield Finding(name, state, wrong or ("" if listed else "it can be read"))


def unreadable(path: Path) -> str:
    """Why weights or a config.json cannot be used, whatever their hash; empty if they can."""
    if path.name == runfolder.CONFIG:
        with manifest.verification(False):
            runfolder.read_any_config(path.parent)
        return ""
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        return f"it cannot be read: {error}"
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    return f"not finite: {', '.join(broken[:3])} ({len(broken)} tensors)" if broken else ""


def saved(folder: Path) -> Iterator[Finding]:
    """The checkpoints."""
    for path in runfolder.checkpoints(folder)[::-1]:
        name = str(path.relative_to(folder))
        try:
            checkpoint.check(path)
            yield Finding(name, OK, "")
        except checkpoint.DAMAGE as error:
            yield Finding(name, DAMAGED, str(error))
    for path in sorted((folder / runfolder.STATE).glob(ASIDE)):
        about = "put aside by an earlier resume; it is not used and may be deleted"
        yield Finding(str(path.relative_to(folder)), DAMAGED, about)


def lines(folder: Path) -> Iterator[Finding]:
    """The logs."""
    for name, read in (
        (runfolder.LOG, runfolder.read_log),
        (runfolder.BAD_FILES, runfolder.read_bad_files),
    ):
        if (folder / name).is_file():
            count = len((folder / name).read_bytes().splitlines())
            bad = count - len(read(folder))
            about = f"{bad} of {count} lines cannot be read" if bad else f"{count} lines"
            yield Finding(name, DAMAGED if bad else OK, about)


def scores(folder: Path) -> Iterator[Finding]:
    """Files of scores, which have no hash: later verbs add to them."""
    for name in WHOLE:
        if (folder / name).is_file():
            try:
                parse_json((folder / name).read_bytes())
                yield Finding(name, OK, "it can be read; it has no hash")
            except (ValueError, OSError) as error:
                yield Finding(name, DAMAGED, f"it cannot be read: {error}")
