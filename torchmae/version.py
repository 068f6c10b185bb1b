"""The version of torchmae, its git commit, and the command that started it."""

import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

__version__ = "0.1.0"


def commit() -> str | None:
    """The git commit of a checkout, as 40 hexadecimal digits; None for an installed package."""
    package = Path(__file__).parent
    if (package.parent / ".git").exists():
        with suppress(OSError):  # git is not installed
            command = ["git", "-C", str(package), "rev-parse", "HEAD"]
            return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    return None


def versions() -> dict[str, str]:
    """Versions that the last bits of weights may depend on."""
    import torch  # whoever asks has it loaded; --version does not ask

    return {"torchmae": __version__, "torch": str(torch.__version__)}


def command() -> str:
    """The words that call `mae` again from the same shell, for messages.

    That is the path as typed where a plain `mae` is not on PATH or is another installation.
    """
    typed, found = Path(sys.argv[0]), shutil.which("mae")
    if typed.name != "mae":
        return "python -m torchmae"
    return "mae" if found and Path(found).resolve() == typed.resolve() else shlex.quote(sys.argv[0])
