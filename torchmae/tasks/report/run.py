"""`mae report`: the page of a run, or of several."""

import logging
from pathlib import Path

from torchmae.disk import write_text
from torchmae.errors import UserError
from torchmae.report.html.run import run_page
from torchmae.report.html.several import several_page
from torchmae.runfolder import REPORT
from torchmae.tasks.report.config import Report

logger = logging.getLogger(__name__)


def run(config: Report) -> Path:
    """Writes the page.

    Returns:
        Its path.

    Raises:
        UserError: a folder is no run, or the page cannot be written.
    """
    runs = [Path(name) for name in config.runs]
    usual = runs[0] / REPORT if len(runs) == 1 else Path(REPORT)
    out = Path(config.out) if config.out is not None else usual
    if out.suffix != ".html":
        raise UserError(f"--out {out}: name a file that ends in .html, such as report.html")
    made = run_page(runs[0]) if len(runs) == 1 else several_page(runs)
    try:
        write_text(out, made)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from error
    logger.info(f"Written to {out} ({len(made.encode()) / 1e6:.2f} MB)")
    return out
