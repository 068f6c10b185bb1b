"""mae evaluate on a classifier that was really trained."""

import json
from pathlib import Path

import pytest

import torchmae
from torchmae.errors import UserError
from torchmae.runfolder import read_results


def test_the_scores_are_recorded_and_drawn(
    classifier: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = torchmae.evaluate(classifier, photos)
    assert result["count"] == 24
    assert "top5" not in result and "top 5" not in capsys.readouterr().out  # of 3 classes
    validation, *_, record = read_results(classifier)
    assert validation["verb"] == "finetune"
    assert record["verb"] == "evaluate"
    assert {**record["settings"], **record["results"]} == json.loads(json.dumps(result))
    assert (classifier / "confusion.png").stat().st_size > 5000
    count = len(read_results(classifier))
    torchmae.evaluate(classifier, photos)
    assert len(read_results(classifier)) == count  # the same measurement, made again


def test_some_of_the_classes_under_other_names(
    classifier: Path, photos: Path, tmp_path: Path
) -> None:
    data, names = tmp_path / "data", tmp_path / "map.json"
    data.mkdir()
    (data / "stripes").symlink_to(photos / "across")
    with pytest.raises(UserError, match="class 'stripes' .* is not one of the classifier's 3"):
        torchmae.evaluate(classifier, data)
    names.write_text('{"stripes": "across"}')
    found = torchmae.evaluate(classifier, data, class_map=names)
    assert found["count"] == 8
    assert set(found["per_class"]) == {"across"}
    alone = torchmae.evaluate(classifier, data, class_map=names, among=True)
    assert alone["top1"] == 1.0  # only one class to choose from


def test_of_data_with_a_split_the_validation_part_is_measured(
    classifier: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, name in (("train", "across"), ("train", "down"), ("val", "blob")):
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / name).symlink_to(photos / name)
    found = torchmae.evaluate(classifier, tmp_path)
    assert found["count"] == 8
    assert set(found["per_class"]) == {"blob"}
    assert "brings its own split: measured on its validation part" in capsys.readouterr().out


def test_mistakes(classifier: Path, run: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no classifier"):
        torchmae.evaluate(run, photos)
    with pytest.raises(UserError, match="--class-map"):
        torchmae.evaluate(classifier, photos, class_map=tmp_path / "none.json")
