"""`python -m torchmae`: the command `mae`, also under torchrun."""

import sys

from torchmae.cli import main

if __name__ == "__main__":
    sys.exit(main())
