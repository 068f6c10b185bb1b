"""The run folder: what may become one, what is read back, results.json."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from torchmae import runfolder
from torchmae.errors import UserError


class Data:
    def __len__(self) -> int:
        return 3

    def fingerprint(self) -> str:
        return "abc"

    def stamp(self) -> str | None:
        return "then"


def write(out: Path, **config: object) -> None:
    model = {"encoder": {"depth": 2}, "decoder": {"dim": 8}}
    runfolder.write_config(out, "pretrain", config, runfolder.identity(Data()), model)


def test_it_is_light() -> None:
    code = (
        "import sys, torchmae.runfolder; "
        "sys.exit(bool({'torch', 'numpy', 'torchmae.data'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_becomes_a_run_folder_or_is_not_touched(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    out = tmp_path / "runs" / "new"
    assert not runfolder.prepare(out, str(data))
    (out / ".lock").touch()
    (out / "bad-files.jsonl").touch()
    assert not runfolder.prepare(out, str(data))  # an earlier start failed
    write(out)
    runfolder.checkpoint_folder(out, 7).mkdir(parents=True)
    assert runfolder.prepare(out, str(data))
    assert runfolder.last_step(out) == 7
    (tmp_path / "file").touch()
    (data / "x.jpg").touch()
    for place, message in [
        (data / "run", "lies inside the data"),
        (tmp_path / "file", "is a file: name a folder"),
        (tmp_path / "file" / "run", "cannot be made"),
        (tmp_path, "holds other things"),
    ]:
        with pytest.raises(UserError, match=message):
            runfolder.prepare(place, str(data))
    lost = tmp_path / "lost"
    lost.mkdir()
    write(lost)
    (lost / "model.safetensors").touch()
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        runfolder.prepare(lost, str(data))


def test_a_run_is_recognised(tmp_path: Path) -> None:
    assert not runfolder.is_run(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit_mae"}')
    assert not runfolder.is_run(tmp_path)
    (tmp_path / "state" / "step-00000001").mkdir(parents=True)
    assert runfolder.is_run(tmp_path)
    write(tmp_path)
    assert runfolder.is_run(tmp_path)
    assert runfolder.kind_of(runfolder.read_config(tmp_path)) == "mae"


def test_a_config_that_describes_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        runfolder.read_config(tmp_path)
    for text in ("{", "[]", '{"model": {}}', '{"model": {"encoder": 3}}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match="does not describe a torchmae model"):
            runfolder.read_config(tmp_path)


def test_every_difference_to_the_run_is_named(tmp_path: Path) -> None:
    write(tmp_path, epochs=3, seed=0, workers=4)
    data = runfolder.identity(Data())
    requested = {"epochs": None, "seed": None, "workers": 0, "later": "new"}
    settings, model = runfolder.resume(tmp_path, "pretrain", requested, {"workers"}, data)
    assert settings == {"epochs": 3, "seed": 0, "workers": 0, "later": "new"}
    assert model["decoder"] == {"dim": 8}
    changed = {"epochs": 5, "seed": 1, "workers": 0}
    with pytest.raises(UserError, match=r"epochs was 3, is 5; seed was 0, is 1; the data had 3"):
        runfolder.resume(tmp_path, "pretrain", changed, {"workers"}, {**data, "count": 4})
    with pytest.raises(UserError, match="but not the same ones"):
        runfolder.resume(tmp_path, "pretrain", requested, set(), {**data, "fingerprint": "x"})
    with pytest.raises(UserError, match="was made by mae pretrain, not by mae finetune"):
        runfolder.resume(tmp_path, "finetune", requested, set(), data)


def test_results_are_appended_and_the_same_measurement_is_replaced(tmp_path: Path) -> None:
    assert runfolder.read_results(tmp_path) == []
    runfolder.add_result(tmp_path, "knn", {"k": 1, "size": (2, 3)}, {"accuracy": 0.5})
    runfolder.add_result(tmp_path, "knn", {"k": 2}, {"accuracy": 0.6})
    runfolder.add_result(tmp_path, "probe", {"k": 2}, {"accuracy": 0.7})
    path = runfolder.add_result(tmp_path, "knn", {"k": 1, "size": (2, 3)}, {"accuracy": 0.8})
    found = [(r["verb"], r["results"]["accuracy"]) for r in runfolder.read_results(tmp_path)]
    assert found == [("knn", 0.6), ("probe", 0.7), ("knn", 0.8)]
    assert [r["settings"] for r in runfolder.read_results(tmp_path, "probe")] == [{"k": 2}]
    (*_, last) = json.loads(path.read_text())["results"]
    assert set(last) == {"verb", "torchmae", "settings", "results"}


@pytest.mark.parametrize("text", ["{", "[]", '{"knn": []}', '{"results": [{}]}'])
def test_a_file_that_holds_no_results_is_named_and_not_overwritten(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(
        UserError, match=r"results\.json is not a file of results .*: fix or remove"
    ):
        runfolder.add_result(tmp_path, "knn", {}, {})
    assert (tmp_path / "results.json").read_text() == text


def test_bad_files_are_noted_once_and_truncated_lines_skipped(tmp_path: Path) -> None:
    assert runfolder.note_bad_files(tmp_path, [("a", "empty"), ("b", "cut")]) == ["a", "b"]
    assert runfolder.note_bad_files(tmp_path, [("b", "cut"), ("c", "cut")]) == ["c"]
    with (tmp_path / "bad-files.jsonl").open("a") as file:
        file.write('{"file": "d", "rea')
    assert [entry["file"] for entry in runfolder.read_bad_files(tmp_path)] == ["a", "b", "c"]


def test_other_times_of_the_files_are_no_difference_but_are_said(tmp_path: Path) -> None:
    then = runfolder.stamped_identity(Data())
    both = {**then, "val": then}
    runfolder.write_config(tmp_path, "finetune", {}, both, {"encoder": {}})
    assert runfolder.other_times(tmp_path, both) is None
    for now in ({**both, "stamp": "now"}, {**both, "val": {**then, "stamp": "now"}}):
        assert "names and sizes are as then" in str(runfolder.other_times(tmp_path, now))
        runfolder.resume(tmp_path, "finetune", {}, set(), now)
    runfolder.write_config(tmp_path, "finetune", {}, runfolder.identity(Data()), {"encoder": {}})
    assert runfolder.other_times(tmp_path, both) is None, "an older version wrote no stamps"


def test_a_file_of_a_run_is_answered_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=f"name its folder, {tmp_path}$"):
        runfolder.read_config(tmp_path / "model.safetensors")


def test_a_line_that_a_kill_truncated_does_not_swallow_the_next(tmp_path: Path) -> None:
    (tmp_path / "bad-files.jsonl").write_bytes(b'\xff{"file": "a", "rea')
    assert runfolder.note_bad_files(tmp_path, [("a", "cut"), ("b", "cut")]) == ["a", "b"]
    assert [entry["file"] for entry in runfolder.read_bad_files(tmp_path)] == ["a", "b"]
    (tmp_path / "log.jsonl").write_bytes(b'\xff\n[]\n{"loss": 1}\n{"step": 3}\n\x00\x00\n{"st')
    assert runfolder.read_log(tmp_path) == [{"step": 3}]
