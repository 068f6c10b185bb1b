"""How images are decoded, as a value."""

import json
import math
import subprocess
import sys

import pytest

from torchmae.data.config import DecodeOptions, Listing, listing_as_run
from torchmae.errors import UserError
from torchmae.settings.groups import LabelledListingOptions, ListingOptions


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(max_megapixels=0), r"--max-megapixels 0: must be more than 0"),
        (dict(max_megapixels=-1.5), r"--max-megapixels -1.5: must be more than 0"),
        (dict(max_megapixels=math.inf), r"--max-megapixels inf: must be a finite number"),
        (dict(max_megapixels=math.nan), r"--max-megapixels nan: must be a finite number"),
        (dict(nodata=math.inf), r"--nodata inf: must be a finite number"),
        (dict(dtype="int8"), r"unknown --dtype 'int8'.*uint8, uint16, int16, float16, float32"),
        (dict(bands=("",)), r"--bands: names or numbers .*"),
        (dict(channels=0), r"--channels 0: must be more than 0"),
        (dict(channels=-3), r"--channels -3: must be more than 0"),
    ],
)
def test_impossible_values_are_named_by_their_flag(options, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        DecodeOptions(**options).check()


def test_the_defaults_and_usual_values_are_possible():
    for options in (
        DecodeOptions(),
        DecodeOptions(0.5, 1, "int16", -9999.0, ("B02", "3")),
        DecodeOptions(channels=7),
    ):
        options.check()


def test_it_is_imported_without_torch_and_numpy():
    code = "import sys, torchmae.data.config; print({'torch', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_what_a_later_verb_takes_of_the_data(tmp_path):
    """Patterns of a run hold for its own data, whatever its spelling; elsewhere, none."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "others").mkdir()
    run = tmp_path / "run"
    run.mkdir()
    stored = {"data": str(tmp_path / "photos"), "exclude": ["*_mask*"], "include": []}
    text = json.dumps({"torchmae": "0.1.0", "config": stored, "model": {"encoder": {}}})
    (run / "config.json").write_text(text)
    here, own = ListingOptions(), ListingOptions(exclude=("*_seg*",))
    same, other = f"{tmp_path}/others/../photos/", str(tmp_path / "others")
    assert listing_as_run(here, same, run) == Listing(exclude=("*_mask*",), inherited=True)
    assert listing_as_run(here, other, run).exclude == ()
    assert listing_as_run(here, other, run, resuming=True).exclude == ("*_mask*",)
    assert listing_as_run(own, same, run) == Listing(exclude=("*_seg*",))
    assert listing_as_run(ListingOptions(exclude=("none",)), same, run).exclude == ()
    assert listing_as_run(here, same, "none") == Listing(inherited=True)
    with pytest.raises(UserError, match="none is no pattern"):
        listing_as_run(ListingOptions(exclude=("none", "*.png")), same, run)


def test_columns_belong_to_the_same_data_too(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "config": {"data": "x.csv", "label_column": "dx", "val": "y.csv"},
                "model": {"encoder": {}},
            }
        )
    )
    for data, want in (("x.csv", "dx"), ("y.csv", "dx"), ("z.csv", None)):
        found = listing_as_run(LabelledListingOptions(), data, tmp_path)
        assert found.label_column == want
        assert found.columns == ({"label_column": "dx"} if want else {})


def test_tiles_are_those_of_a_run_of_the_same_data(tmp_path):
    def listed(data: str = "slides", **asked: float) -> tuple[int | None, int, float]:
        found = listing_as_run(ListingOptions(**asked), data, tmp_path)
        return found.tile, found.overlap, found.empty

    assert listed() == (None, 0, 0.05)
    stored = {"data": "slides", "tile": 512, "overlap": 64, "level": 2, "empty": 0.0}
    (tmp_path / "config.json").write_text(json.dumps({"model": {"encoder": {}}, "config": stored}))
    assert listed() == (512, 64, 0.0)
    assert listed(data="photos") == (None, 0, 0.05)
    assert listed(tile=0)[0] == 0 and listed(overlap=0, empty=0.1) == (512, 0, 0.1)
    assert listing_as_run(ListingOptions(), "slides", tmp_path).level == 2
    assert listing_as_run(ListingOptions(level=0), "slides", tmp_path).level == 0
    with pytest.raises(UserError, match="--level 1: with --tile"):
        listing_as_run(ListingOptions(level=1), "photos", tmp_path)
    for wrong in (dict(tile=64), dict(overlap=512), dict(tile=0, overlap=8)):
        with pytest.raises(UserError, match="--overlap .*less than it"):
            listed(**wrong)
