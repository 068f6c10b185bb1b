"""report.html: written by trainings, made again, of several runs; whole whatever the run holds."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
from helpers.small import SMALL, make_photos

import torchmae
from torchmae import cli
from torchmae.report.console import BLOCKS, look, screen

HOSTILE = "<script>alert(1)</script>\"'"


def test_a_pretraining_has_a_page(run: Path) -> None:
    text = (run / "report.html").read_text()
    config = json.loads((run / "config.json").read_text())
    for words in ("One record so far", "step 9 of 9", "vit_micro"):
        assert words in text
    assert "small models bear more than" in config["reasons"]["base_lr"]
    assert "small models bear more than" in text
    assert "data:image/jpeg;base64," in text and "SHA-256" in text
    assert "median size" in text and "48 x 40 px" in text  # the data sheet
    (checked,) = re.findall(r'<input type="radio" name="time" id="time(\d+)" checked>', text)
    assert int(checked) == text.count('type="radio"') - 1, "the newest picture is seen first"
    assert "<script" not in text and "http://" not in text and "https://" not in text


def test_it_is_refreshed_at_each_picture(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the time of each page there is the picture of that step."""
    from torchmae.report.html import run as pages

    seen: list[int] = []
    whole = pages.run_page

    def count(run: Path) -> str:
        seen.append(len(list((run / "pictures").glob("step-*.png"))))
        return whole(run)

    monkeypatch.setattr(pages, "run_page", count)
    torchmae.pretrain(photos, out=tmp_path / "r", epochs=2, picture_minutes=0, log_every=1, **SMALL)
    assert len(seen) >= 3 and seen[0] == 1 and sorted(seen) == seen
    text = (tmp_path / "r" / "report.html").read_text()
    assert "learning rate" in text and "loss of visible mean" in text and "One record" not in text


def test_a_classifier_has_its_classes_and_mistakes(
    classifier: Path, photos: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(classifier, tmp_path / "own")
    text = (own / "report.html").read_text()
    assert "validation: top 1" in text and "validation at step" in text
    assert "recognized" in text and "accuracy by confidence" in text
    (own / "mistakes.png").unlink(missing_ok=True)
    torchmae.evaluate(own, photos)
    text = (own / "report.html").read_text()
    assert f"mae evaluate on {photos}" in text
    assert all(name in text for name in ("per_class", "across", "calibration_error"))
    assert text.count("data:image/png;base64,") == (own / "mistakes.png").is_file()
    assert text.count('class="confusion"') == 2  # of the evaluation and of the validation


def test_hostile_names_are_text(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 4)
    (photos / "blob").rename(photos / HOSTILE.replace("/", "_"))
    (photos / "down" / f"{HOSTILE.replace('/', '_')}.jpg").write_text("no image")
    run = torchmae.pretrain(photos, out=tmp_path / "run", epochs=1, **SMALL)
    config = json.loads((run / "config.json").read_text())
    config["config"][HOSTILE] = HOSTILE
    config["reasons"][HOSTILE] = HOSTILE
    config["torch"] = HOSTILE
    (run / "config.json").write_text(json.dumps(config))
    record = {"verb": HOSTILE, "settings": {"data": HOSTILE}, "results": {HOSTILE: {HOSTILE: 1}}}
    (run / "results.json").write_text(json.dumps({"results": [record]}))
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps({"step": 3, HOSTILE: 1.5}) + "\n")
    other = shutil.copytree(run, tmp_path / HOSTILE.replace("/", "_"))
    for page in (torchmae.report_(run), torchmae.report_([run, other], out=tmp_path / "both.html")):
        text = page.read_text()
        assert "<script" not in text and "&lt;script&gt;alert" in text


def test_ten_thousand_lines_are_small_and_quick(run: Path, tmp_path: Path) -> None:
    own = shutil.copytree(run, tmp_path / "own")
    line = json.loads((own / "log.jsonl").read_text().splitlines()[0])
    lines = (json.dumps({**line, "step": k, "loss": 1 / k}) for k in range(1, 10_001))
    (own / "log.jsonl").write_text("\n".join(lines))
    for k in range(40):  # pictures, as of hours
        shutil.copy(next((run / "pictures").glob("*.png")), own / f"pictures/step-{k:08d}.png")
    began = time.process_time()  # not by the clock: other processes may be busy
    page = torchmae.report_(own)
    assert time.process_time() - began < 5
    assert page.stat().st_size < 5_000_000
    assert "8 of 4" in page.read_text()


def test_several_runs_side_by_side(run: Path, photos: Path, tmp_path: Path) -> None:
    other = torchmae.pretrain(photos, out=tmp_path / "other", epochs=2, mask_ratio=0.5, **SMALL)
    text = torchmae.report_([run, other], out=tmp_path / "both.html").read_text()
    assert "<td>mask_ratio</td>" in text and "<td>epochs</td>" in text
    assert "<td>patch_size</td>" not in text
    assert text.count("<polyline") >= 8


def test_damaged_runs_have_a_page(run: Path, tmp_path: Path) -> None:
    own = shutil.copytree(run, tmp_path / "own")
    for path in (own / "pictures").glob("*.png"):
        path.write_bytes(path.read_bytes()[:100])
    (own / "log.jsonl").write_bytes((own / "log.jsonl").read_bytes()[:-20] + b"\xff{")
    (own / "manifest.json").write_text("{")
    (own / "model.safetensors").unlink()
    assert "is damaged" in torchmae.report_(own).read_text()
    shutil.rmtree(own / "pictures")
    (own / "log.jsonl").unlink()
    assert "no step has been logged yet" in torchmae.report_(own).read_text()


def test_one_record_is_no_curve_and_a_damaged_log_is_said(run: Path, tmp_path: Path) -> None:
    own = shutil.copytree(run, tmp_path / "own")
    lines = (own / "log.jsonl").read_text().splitlines(keepends=True)
    (own / "log.jsonl").write_text(next(line for line in lines if '"loss"' in line))
    text = torchmae.report_(own).read_text()
    assert "One record so far" in text and "<polyline" not in text
    assert "one record so far" in "\n".join(screen(look(own, False), 80, BLOCKS))
    (own / "log.jsonl").write_bytes(b"\xff{]\n" * 3)
    said = "\n".join(screen(look(own, False), 200, BLOCKS))
    assert "no line of log.jsonl can be read" in said and "no step has been logged" not in said


def test_mistakes_are_a_line(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cut = shutil.copytree(run, tmp_path / "cut")
    (cut / "config.json").write_text("{")
    for words, message in {
        (str(tmp_path),): "is not a run folder",
        (str(cut),): "does not describe",
        (str(run), str(tmp_path)): "is not a run folder",
        (str(run), "--out", "a.pdf"): "name a file that ends in .html",
        (str(run), "--out", str(tmp_path / "no" / "a.html")): "cannot be written",
    }.items():
        assert cli.main(["report", *words]) == 2, words
        err = capfd.readouterr().err
        assert message in err and err.count("\n") == 1, err


def test_a_comparison_begins_with_its_verdicts(tmp_path: Path) -> None:
    row = {"name": "10", "measure": "knn", "claim": "Lead of a", "verdict": "shown"}
    rows = [row, {**row, "verdict": "not shown"}, {**row, "verdict": "worse"}, {"name": 1}, 3]
    records = [{"verb": "compare", "settings": {}, "results": {"rows": rows}}]
    (tmp_path / "results.json").write_text(json.dumps({"results": records}))
    text = torchmae.report_(tmp_path).read_text()
    assert '<li class="good">knn, 10: Lead of a: shown</li>' in text
    assert '<li class="">knn, 10: Lead of a: not shown</li>' in text
    assert '<li class="bad">knn, 10: Lead of a: worse</li>' in text


def test_verdicts_of_comparisons_of_segmenters_and_of_ablations(tmp_path: Path) -> None:
    row = {"name": "50", "verdict": "not shown", "reason": "no difference to none is clear"}
    records = [{"verb": "compare segment", "settings": {}, "results": {"rows": [row]}}]
    (tmp_path / "results.json").write_text(json.dumps({"results": records}))
    text = torchmae.report_(tmp_path).read_text()
    assert '<li class="">50: no difference to none is clear: not shown</li>' in text
    pairs = [{"verdict": word} for word in ("reproduced", "reproduced", "not decided")]
    study = {"title": "Mask ratio", "columns": [], "orderings": {"finetune": pairs}}
    studies = {"studies": [{**study, "rows": [], "baselines": []}, {"title": "old"}, 3]}
    for content, found in ((studies, False), ({"studies": studies["studies"][:1]}, True)):
        (tmp_path / "ablation.json").write_text(json.dumps(content))
        text = torchmae.report_(tmp_path).read_text()
        said = "Mask ratio: 3 orderings of the paper, by finetune: 2 reproduced, 1 not decided"
        assert (said in text) == found
