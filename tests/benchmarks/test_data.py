"""`mae bench data`, `resume`, `startup`: what is compared and written, not how fast it is."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torchmae import cli
from torchmae.benchmarks import data as bench_data
from torchmae.benchmarks import run as bench
from torchmae.benchmarks import start as bench_start
from torchmae.benchmarks import timing as bench_timing
from torchmae.benchmarks.config import Bench
from torchmae.data.sources import open_source
from torchmae.errors import RunError, UserError

TINY = ["--rounds", "1", "--device", "cpu"]
SIZES = [
    "--model",
    "vit_micro",
    "--image-size",
    "32",
    "--patch-size",
    "8",
    "--batch-size",
    "2",
    "--precision",
    "fp32",
]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_timing, "MIN_SECONDS", 0.01)
    monkeypatch.setattr(bench_data, "MIN_SECONDS", 0.05)


def measured(tmp_path: Path, *words: str) -> dict:
    """The JSON of a bench, in which no path of this machine may stand."""
    out = tmp_path / "out" / "bench.json"
    assert cli.main(["bench", *words, *TINY, "--out", str(out)]) == 0
    text = out.read_text()
    assert str(tmp_path) not in text and str(Path.home()) not in text
    assert [file.name for file in out.parent.iterdir()] == ["bench.json"]
    return json.loads(text)


def test_each_path_from_file_to_crop(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("torchvision")
    found = measured(tmp_path, "data", str(photos), *SIZES)
    said = capsys.readouterr().out
    assert (
        found["command"].startswith("mae bench data photos --model vit_micro")
        and found["settings"]["data"] == "photos"
    )
    assert (
        found["sample"]["files"] == 24
        and found["sample"]["skipped"] == 0
        and found["skipped"] == []
    )
    names = ["PIL + torchvision, float", "torchvision decode_image + v2, uint8", "torchmae"]
    names += ["torchmae, packed at size 320", "torchmae, decoded in memory"]
    assert [row["name"] for row in found["paths"]] == names
    base = found["paths"][0]
    for row in found["paths"]:
        assert row["name"] in said and row["images_per_s"] == pytest.approx(1 / row["seconds"][0])
        assert (row["speed"] is None) == (row is base)
        assert row is base or row["speed"]["median"] == pytest.approx(
            base["seconds"][0] / row["seconds"][0]
        )
        assert row["cores_needed"]["vit_micro"] == pytest.approx(
            found["steps"]["vit_micro"] / row["images_per_s"]
        )
    assert found["pixels"]["files"] == found["pixels"]["decoded_equal"] == 24
    assert found["pixels"]["mean"] <= 0.2 and found["pixels"]["most"] <= 4
    assert found["loader"]["batch"] == 24 and {"0", "1", "2"} <= set(found["loader"]["workers"])
    (lost,) = found["loader"]["overhead"]
    one, alone = found["loader"]["workers"]["1"]["rates"][0], found["loader"]["direct"]["rates"][0]
    assert lost == pytest.approx(1 - one / alone)


def test_a_step_that_was_measured_elsewhere(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also: without torchvision PIL alone does the reference's pipeline; the table says so."""
    monkeypatch.setattr(bench_data, "find_spec", lambda name: None)
    monkeypatch.setattr(bench_data, "loader", lambda batches, rounds: NO_LOADER)
    found = measured(
        tmp_path, "data", str(photos), "--image-size", "32", "--step-images-per-s", "6000"
    )
    assert found["paths"][0]["name"] == "PIL, float" and len(found["paths"]) == 4
    assert 'pip install "torchmae[torchvision]"' in found["skipped"][0]
    assert found["steps"] == {"as given": 6000.0}
    flags = "--image-size 32 --step-images-per-s 6000.0 --rounds 1 --device cpu"
    assert found["command"] == f"mae bench data photos {flags}"
    row = found["paths"][0]
    assert row["cores_needed"]["as given"] == pytest.approx(6000 / row["images_per_s"])


NO_LOADER = {"batch": 1, "direct": {"images_per_s": 1.0}, "workers": {}, "overhead": [0.0]}


def test_what_cannot_be_read_is_skipped(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name, data in (
        ("good.jpg", (photos / "blob" / "0.jpg").read_bytes()),
        ("bad.jpg", b"\xff\xd8 no more"),
    ):
        (folder / name).write_bytes(data)
    Image.fromarray(np.full((9, 9, 4), 128, dtype=np.uint8)).save(folder / "alpha.png")
    sample = bench_data.take(open_source(str(folder)), "mixed")
    assert (len(sample), sample.bad) == (2, 1)
    (folder / "good.jpg").unlink()
    (folder / "alpha.png").unlink()
    with pytest.raises(UserError, match="none of the 1 files of mixed that were tried can be read"):
        bench_data.take(open_source(str(folder)), "mixed")
    with pytest.raises(UserError, match="no such folder or file: 'nowhere'"):
        bench.run(Bench("data", "nowhere", out=str(tmp_path / "bench.json")))
    with pytest.raises(UserError, match="digits holds pixels"):
        bench_data.take(open_source("digits"), "digits")


def test_a_sample_has_room_in_memory(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_data, "MAX_FILES", 10)
    assert len(bench_data.take(open_source(str(photos)), "photos")) == 10
    monkeypatch.setattr(bench_data, "MAX_PIXELS", 3 * 40 * 48)
    assert len(bench_data.take(open_source(str(photos)), "photos")) == 3


def test_a_checkpoint_beside_a_plain_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    everything = measured(tmp_path, "resume", "--model", "vit_micro")
    assert everything["command"] == "mae bench resume --model vit_micro --rounds 1 --device cpu"
    found = everything["models"]["vit_micro"]
    assert [row["name"] for row in found["rows"]] == ["save", "load", "plain write", "plain read"]
    for row in found["rows"]:
        assert row["s_per_gb"] == pytest.approx(row["s"] / found["gb"])
        assert (row["speed"] is None) == row["name"].startswith("plain")
    assert f"vit_micro: weights and moments, {found['gb']:.3f} GB" in capsys.readouterr().out


def test_the_way_to_the_first_step(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        bench_start, "interleave", lambda measures, rounds: {n: [f()] for n, f in measures.items()}
    )
    found = measured(tmp_path, "startup", str(photos), "--threads", "1")["startup"]
    rows = {row["name"]: row["s"] for row in found["rows"]}
    assert list(rows) == ["python -c pass", "import torch", "mae --help", "first step"]
    share = (rows["import torch"] - rows["python -c pass"]) / rows["first step"]
    assert found["import_torch_share"]["median"] == pytest.approx(share)


def test_a_first_step_that_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        bench_start, "interleave", lambda measures, rounds: {n: [f()] for n, f in measures.items()}
    )
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(
        RunError, match=r"did not reach its first step: mae: none of 1 images can be read"
    ):
        bench.run(
            Bench(
                "startup",
                str(tmp_path / "broken"),
                rounds=1,
                device="cpu",
                out=str(tmp_path / "bench.json"),
            )
        )


def test_interleaved_measurements_begin_with_one_to_warm_up() -> None:
    calls: list[str] = []

    def measure(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    found = bench_timing.interleave({name: lambda name=name: measure(name) for name in "ab"}, 2)  # type: ignore[misc]
    assert "".join(calls) == "ba" + "ab" + "ba" and found == {"a": [3.0, 6.0], "b": [4.0, 5.0]}
