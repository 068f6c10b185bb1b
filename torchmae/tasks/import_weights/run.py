"""`mae import`: weights of other libraries as a run folder, compared with their source."""

import logging
from collections import Counter
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from torchmae.disk import refuse_full, whole_folder
from torchmae.errors import RunError, UserError
from torchmae.interop.foreign import open_weights
from torchmae.interop.importing import Facts, Report, compare, crop_of, describe
from torchmae.interop.names import to_ours, to_plain
from torchmae.models.weights import build, build_any, load_weights
from torchmae.runfolder import kind_of, write_config
from torchmae.settings.options import check_ranges
from torchmae.tasks.import_weights.config import Import

logger = logging.getLogger(__name__)


def shortened(names: list[str]) -> str:
    """Names of tensors; where there are many, the parts they belong to."""
    if len(names) <= 4:
        return ", ".join(names)
    counts: Counter[str] = Counter()
    for name in names:
        stem, head, _ = name.partition("head.")
        counts[f"{stem}head" if head else name.partition(".")[0]] += 1
    parts = [f"{part} ({count} tensor{'s' * (count > 1)})" for part, count in counts.items()]
    return ", ".join(parts)


def run(config: Import) -> Path:
    """Imports, compares and writes; returns the run folder."""
    check_ranges(config)
    out = Path(config.out)
    refuse_full(out)
    try:
        return import_to(out, config)
    except (UserError, RunError):
        raise
    # A file from elsewhere can say anything about its model: sizes that are words, lists of lists.
    except DAMAGED as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"what {config.source} says of its model does not fit together "
            f"({type(error).__name__}: {reason}): it is damaged, or no model that torchmae knows"
        ) from error


DAMAGED: tuple[type[Exception], ...] = (
    *(TypeError, ValueError, LookupError, ArithmeticError, AttributeError, AssertionError),
    *(RuntimeError, SafetensorError),  # RecursionError is a RuntimeError
)


def import_to(out: Path, config: Import) -> Path:
    """Imports into the folder `out`, which it makes."""
    report = Report()
    found = open_weights(config.source, config.image_size)
    layout, plain, unused = to_plain(found.weights)
    facts = Facts(vars(config), found.facts)
    model = describe(plain, facts, report)
    crop_pct, why = crop_of(facts, layout, model)
    report.note("crop", f"evaluation sees {crop_pct:g} of an image's sides ({why})")
    kind = kind_of({"model": model})
    weights = to_ours(plain, model)
    made = build(build_any, model, config.source)
    prefix = "encoder." if kind == "encoder" else ""
    own = {n.removeprefix(prefix): w for n, w in weights.items()}
    load_weights(made, own, config.source)
    if unused:
        report.note("skipped", shortened(unused))
    if len(weights) > len(plain):
        report.note(
            "added", f"{len(weights) - len(plain)} tensors of zeros, which the source does not have"
        )
    compare(made.eval(), found, report)
    encoder = model["encoder"]
    settings = {
        "source": config.source,
        "sha256": found.sha256,
        "layout": layout,
        "image_size": "x".join(map(str, encoder["image_size"])),
        "patch_size": encoder["patch_size"],
        "channels": encoder["channels"],
        "masking": "random",
        "mask_ratio": found.facts.get("mask_ratio", 0.75),
        "max_megapixels": 100.0,
        "dtype": "uint8",
        "crop_pct": crop_pct,
    }
    with whole_folder(out) as folder:
        save_file(weights, folder / "model.safetensors")
        write_config(folder, "import", settings, None, model)
    logger.info(
        f"{config.source}: {kind} in the layout of {layout}, {len(found.weights)} tensors, "
        f"{len(plain)} mapped"
    )
    logger.info("\n".join(report.lines))
    nexts = {
        "mae": "reconstruct {} IMAGE...",
        "classifier": "evaluate {} LABELLED",
        "encoder": "embed {} DATA",
    }
    logger.info(f"Made: {out / 'model.safetensors'}\nNext:\n  mae {nexts[kind].format(out)}")
    return out
