"""Where things lie that are kept between runs and may be deleted at any time."""

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """The folder of the user's cache for one kind of things, such as "scans". It may not be there, nor be writable."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        root = given if given.is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # nobody's home: below this nothing can be made
        root = Path(os.devnull)
    return root / "torchmae" / kind
