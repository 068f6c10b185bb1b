"""Arrays row by row: what numpy and safetensors read of them; whole or not there."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from torchmae.errors import UserError
from torchmae.report.arrays import HEADERS, rows_file

ABOUT = {"run": "photos", "layer": 3}


def read(path: Path) -> tuple[np.ndarray, list[str], str]:
    if path.suffix == ".npy":
        known = json.loads(path.with_suffix(".json").read_text())
        return np.load(path, mmap_mode="r"), known["paths"], known["run"]
    with safe_open(path, "np") as file:
        known = file.metadata()
        return file.get_tensor("features"), json.loads(known["paths"]), json.loads(known["run"])


@pytest.mark.parametrize("suffix", HEADERS)
@pytest.mark.parametrize("kept", [1, 11])
def test_rows_come_back_though_some_images_had_none(tmp_path: Path, suffix: str, kept: int) -> None:
    names = [f"f/ö{i}\udc80.jpg" for i in range(11)]
    rows = torch.randn(kept, 2, 3, 5).half()
    out = tmp_path / f"x{suffix}"
    with rows_file(out, (11, 2, 3, 5), names) as file:
        for part in rows.split(4):
            file.add(part)
        file.finish(names[-kept:], ABOUT)
    found, paths, run = read(out)
    assert found.dtype == np.float16 and np.array_equal(found, rows)
    assert paths == names[-kept:] and run == "photos"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("suffix", HEADERS)
def test_a_failure_leaves_what_was_there(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"x{suffix}"
    out.write_bytes(b"before")

    def broken() -> None:
        with rows_file(out, (3, 4), ["a", "b", "c"]) as file:
            file.add(torch.zeros(1, 4).half())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert out.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == [out.name]


def test_more_than_the_disk_holds_is_refused_first(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="would take .* GB, and .* GB are free"),
        rows_file(tmp_path / "x.npy", (1 << 40, 14, 14, 768), []),
    ):
        pass
    assert not list(tmp_path.iterdir())
