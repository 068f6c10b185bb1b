"""The console of the command line: what the logger "torchmae" says, on stdout, without tearing progress bars."""

import logging
import sys

from tqdm import tqdm


class ConsoleHandler(logging.Handler):
    """Writes the bare message above any progress bar; warnings begin with "warning: "."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        tqdm.write(prefix + record.getMessage(), file=sys.stdout)
        sys.stdout.flush()


def show_messages() -> None:
    """Installs the handler once. A library user who does not call this sees warnings only, as Python does by default."""
    logger = logging.getLogger("torchmae")
    if not any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
        logger.addHandler(ConsoleHandler())
    logger.setLevel(logging.INFO)
