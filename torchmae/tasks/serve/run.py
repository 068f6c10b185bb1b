"""`mae serve`: a page on this machine that shows what a model makes of images."""

import logging

from torchmae.settings.options import check_ranges
from torchmae.tasks.serve.answers import Answers
from torchmae.tasks.serve.config import Serve
from torchmae.tasks.serve.server import Server, open_server

logger = logging.getLogger(__name__)


def run(config: Serve) -> None:
    """Serves the page until Ctrl-C."""
    with opened(config) as server:
        logger.info(
            f"{config.run}: open {server.url}\n(for this machine alone; the address is the key to "
            "it; Ctrl-C ends it)"
        )
        server.serve_forever()


def opened(config: Serve) -> Server:
    """The server, which has loaded its model and taken its port, but does not answer yet."""
    check_ranges(config)
    return open_server(config.port, Answers(config), round(config.max_upload * 1e6))
