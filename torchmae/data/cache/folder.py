"""Where things are kept between runs; they may be deleted at any time."""

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """A folder of the user's cache, such as "scans". It may not exist, nor be writable."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        root = given if given.is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # nobody's home: below this nothing can be made
        root = Path(os.devnull)
    return root / "torchmae" / kind
