"""How images are decoded, as a value."""

import math
import subprocess
import sys

import pytest

from torchmae.data.config import DecodeOptions
from torchmae.errors import UserError


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(max_megapixels=0), r"--max-megapixels 0: must be more than 0"),
        (dict(max_megapixels=-1.5), r"--max-megapixels -1.5: must be more than 0"),
        (dict(max_megapixels=math.inf), r"--max-megapixels inf: must be a finite number"),
        (dict(max_megapixels=math.nan), r"--max-megapixels nan: must be a finite number"),
        (dict(white=0), r"--white 0: must be more than 0"),
        (dict(channels=0), r"--channels 0: must be more than 0"),
        (dict(channels=-3), r"--channels -3: must be more than 0"),
    ],
)
def test_impossible_values_are_named_by_their_flag(options, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        DecodeOptions(**options).check()


def test_the_defaults_and_usual_values_are_possible():
    for options in (DecodeOptions(), DecodeOptions(0.5, 4095, 1), DecodeOptions(channels=7)):
        options.check()


def test_it_is_imported_without_torch_and_numpy():
    code = "import sys, torchmae.data.config; print({'torch', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
