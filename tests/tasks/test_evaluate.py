"""Scores by hand, and the verbs evaluate and predict on a classifier that was really trained."""

import csv
import json
from pathlib import Path

import pytest
import torch

from torchmae.data.sources.source import distinct
from torchmae.errors import UserError
from torchmae.eval.classification import scores
from torchmae.tasks.evaluate.config import Evaluate
from torchmae.tasks.evaluate.run import run as evaluate
from torchmae.tasks.finetune.config import Finetune
from torchmae.tasks.finetune.run import run as finetune
from torchmae.tasks.predict.config import Predict
from torchmae.tasks.predict.run import WRITERS
from torchmae.tasks.predict.run import run as predict


@pytest.fixture(scope="module")
def classifier(run: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("classifier") / "run"
    quick = dict(epochs=3, batch_size=6, workers=0, device="cpu", precision="fp32")
    return finetune(Finetune(str(run), str(photos), out=str(out), **quick))


def test_scores_by_hand() -> None:
    logits = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 2, 0], [0, 0, 2]]).log_softmax(1)
    found = scores(logits, torch.tensor([0, 1, 0, 2]), ("a", "b", "c"))
    assert (found.count, found.top1, found.top5) == (4, 0.75, 1.0)
    assert found.per_class == {"a": 0.5, "b": 1.0, "c": 1.0}
    assert found.confusion == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    confidence = float(logits.exp().max())
    assert found.calibration_error == pytest.approx(abs(0.75 - confidence), abs=1e-6)
    assert found.low < 0.75 < found.high


def test_evaluate_agrees_with_predict(classifier: Path, photos: Path, tmp_path: Path) -> None:
    result = evaluate(Evaluate(str(classifier), str(photos)))
    out = predict(Predict(str(classifier), str(photos), out=str(tmp_path / "p.csv")))
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == result["count"] == 24
    right = sum(row["path"].startswith(f"{row['class']}/") for row in rows)
    assert right / 24 == pytest.approx(result["top1"])
    for row in rows:
        shares = [float(row[f"p_{name}"]) for name in ("across", "blob", "down")]
        assert sum(shares) == pytest.approx(1, abs=1e-4) and max(shares) == pytest.approx(
            float(row["probability"])
        )
    stored = json.loads((classifier / "results.json").read_text())
    assert stored["evaluate"][-1]["top1"] == result["top1"] and "validation" in stored
    assert (classifier / "confusion.png").stat().st_size > 5000
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(
        predict(Predict(str(classifier), str(photos), out=str(tmp_path / "p.parquet")))
    )
    assert table.column("class").to_pylist() == [row["class"] for row in rows]


def test_classes_named_like_columns(tmp_path: Path) -> None:
    import pyarrow.parquet

    names = distinct(["path", "class", "probability", "crane", "crane"])
    shares = torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1, 0.6]])
    for suffix, write in WRITERS.items():
        write(tmp_path / f"p{suffix}", ["1.jpg", "2.jpg"], shares, names)
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    wanted = [
        "path",
        "class",
        "probability",
        "p_path",
        "p_class",
        "p_probability",
        "p_crane (3)",
        "p_crane (4)",
    ]
    assert header == wanted and [row[:3] for row in rows] == [
        ["1.jpg", "path", "0.5"],
        ["2.jpg", "crane (4)", "0.6"],
    ]
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet")
    assert table.column_names == wanted and table.column("path").to_pylist() == ["1.jpg", "2.jpg"]
    assert table.column("p_path").to_pylist() == pytest.approx([0.5, 0.1])


def test_an_out_that_cannot_be_written_is_found_first(
    classifier: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchmae.tasks.predict.collect", lambda *_: pytest.fail("computed"))
    (tmp_path / "file").touch()
    (tmp_path / "folder.csv").mkdir()
    for name, words in (
        ("file/p.csv", "cannot be written"),
        ("folder.csv", "is a folder: name a file"),
    ):
        with pytest.raises(UserError, match=f"--out .*{name} {words}"):
            predict(Predict(str(classifier), str(photos), out=str(tmp_path / name)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.csv"]


def test_some_of_the_classes_under_other_names(
    classifier: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "stripes").symlink_to(photos / "across")
    with pytest.raises(UserError, match="class 'stripes' .* is not one of the classifier's 3"):
        evaluate(Evaluate(str(classifier), str(tmp_path / "data")))
    (tmp_path / "map.json").write_text('{"stripes": "across"}')
    found = evaluate(
        Evaluate(str(classifier), str(tmp_path / "data"), class_map=str(tmp_path / "map.json"))
    )
    assert found["count"] == 8 and set(found["per_class"]) == {"across"}
    alone = Evaluate(
        str(classifier), str(tmp_path / "data"), class_map=str(tmp_path / "map.json"), among=True
    )
    assert evaluate(alone)["top1"] == 1.0  # only one class to choose from


def test_of_data_with_a_split_the_validation_part_is_measured(
    classifier: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, name in (("train", "across"), ("train", "down"), ("val", "blob")):
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / name).symlink_to(photos / name)
    found = evaluate(Evaluate(str(classifier), str(tmp_path)))
    assert found["count"] == 8 and set(found["per_class"]) == {"blob"}
    assert "brings its own split: measured on its validation part" in capsys.readouterr().out


def test_mistakes(classifier: Path, run: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        evaluate(Evaluate(str(run), str(photos)))  # a MAE is no classifier
    with pytest.raises(UserError, match="unknown kind of file '.txt'"):
        predict(Predict(str(classifier), str(photos), out=str(tmp_path / "p.txt")))
    with pytest.raises(UserError, match="--class-map"):
        evaluate(Evaluate(str(classifier), str(photos), class_map=str(tmp_path / "none.json")))
