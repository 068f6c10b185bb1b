"""The console of the command line: shows messages of the logger "torchmae" on stdout."""

import logging
import sys

from tqdm import tqdm


class ConsoleHandler(logging.Handler):
    """Writes the bare message above a progress bar (tqdm); warnings begin with "warning: "."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        tqdm.write(prefix + record.getMessage(), file=sys.stdout)
        sys.stdout.flush()


def show_messages() -> None:
    """Installs the handler, once.

    Without this call, that is in a library, Python shows warnings only.
    """
    logger = logging.getLogger("torchmae")
    if not any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
        logger.addHandler(ConsoleHandler())
    logger.setLevel(logging.INFO)
