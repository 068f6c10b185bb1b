"""mae compare and mae partial: what is trained in which folder, what is recorded and drawn."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.small import QUICK

import torchmae
from torchmae.errors import UserError
from torchmae.runfolder import last_validation, read_config, read_results
from torchmae.settings.options import build, flatten
from torchmae.tasks.sweep.config import Compare, Partial
from torchmae.tasks.sweep.grids import compare_grid, partial_grid

ONE = {**QUICK, "epochs": 1}


def test_compare_pairs_every_seed(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def compare(*seeds: int) -> dict[str, Any]:
        out = tmp_path / "c"
        torchmae.compare(run, photos, out=out, labels_per_class=(2, 4), seeds=seeds, **ONE)
        *_, record = read_results(out, "compare")
        assert record["settings"]["run"] == str(run)
        return record["results"]

    out, rows = tmp_path / "c", compare(0, 1)["rows"]
    assert [row["name"] for row in rows] == ["2", "4"]
    assert (out / "compare.png").stat().st_size > 10_000
    for row in rows:
        folders = {
            arm: [f"{arm.replace(' ', '-')}-{row['name']}-labels-seed-{seed}" for seed in (0, 1)]
            for arm in ("pre-trained", "from scratch")
        }
        for arm, names in folders.items():
            found = [last_validation(out / name)["top1"] for name in names]
            assert row["arms"][arm]["top1"] == found
            assert row["arms"][arm]["mean"] == pytest.approx(sum(found) / 2)
        for pair in zip(*folders.values()):
            first, second = (read_config(out / name) for name in pair)
            assert first["data"] == second["data"], "not the same images"
            assert first["config"]["labels_per_class"] == int(row["name"])
            for name in ("seed", "epochs", "white", "max_megapixels"):
                assert first["config"][name] == second["config"][name]
            depth = ("model", "encoder", "depth")
            assert first[depth[0]][depth[1]][depth[2]] == second[depth[0]][depth[1]][depth[2]]
        (difference,) = row["differences"].values()
        means = [row["arms"][arm]["mean"] for arm in folders]
        assert difference["mean"] == pytest.approx(means[0] - means[1])
    printed = capsys.readouterr().out
    assert "[3/8] pre-trained, 2 labels a class, seed 1" in printed
    assert "mean ± std over 2 seeds" in printed

    finished = {path: path.stat().st_mtime_ns for path in out.glob("*/model.safetensors")}
    again = compare(0, 1, 2)["rows"]
    assert [row["arms"]["pre-trained"]["top1"][:2] for row in again] == [
        row["arms"]["pre-trained"]["top1"] for row in rows
    ]
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    assert len(read_results(out)) == 2  # of two and of three seeds


def test_partial_fine_tuning_draws_figure_9(run: Path, photos: Path, tmp_path: Path) -> None:
    parts = ("all", "0", "2", "0.5")
    out = torchmae.partial(
        run, photos, out=tmp_path / "p", train=parts, **{**ONE, "epochs": (1.0,)}
    )
    (record,) = read_results(Path(out))
    rows = record["results"]["rows"]
    assert [row["name"] for row in rows] == ["0", "0.5", "2", "all 6"]
    assert (out / "partial.png").stat().st_size > 10_000
    for row in rows:
        made = tmp_path / "p" / f"train-{row['settings']['train']}-epochs-1"
        (found,) = row["arms"].values()
        assert [json.loads((made / "last.json").read_text())["top1"]] == found["top1"]
        assert found["low"] <= found["mean"] <= found["high"]
        assert row["best"] is None


def test_of_several_lengths_the_best_is_chosen_as_in_the_paper(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    epochs = {**QUICK, "epochs": (1.0, 2.0)}
    out = torchmae.partial(run, photos, out=tmp_path / "p", train=("1",), **epochs)
    ((row,),) = (record["results"]["rows"] for record in read_results(Path(out)))
    found = {
        f"{e} epochs": last_validation(tmp_path / "p" / f"train-1-epochs-{e}")["top1"]
        for e in (1, 2)
    }
    assert {name: arm["top1"] for name, arm in row["arms"].items()} == {
        name: [value] for name, value in found.items()
    }
    assert found[row["best"]] == max(found.values())


def test_grids_without_numbers_of_one_s_own(run: Path) -> None:
    values = {"run": str(run), "data": "photos"}
    partial = partial_grid(build(Partial, values))
    assert list(partial.rows) == ["0", "0.5", "1", "2", "4", "all 6"]
    assert str(partial.out) == f"{run}-partial"
    training = partial.training("0.5", "accuracy", 0)
    assert (training.model.train, training.optim.epochs) == ("0.5", None)
    assert training.output.out == f"{run}-partial/train-0.5"
    compare = compare_grid(build(Compare, {**values, "train": "head"}))
    assert list(compare.rows) == ["all"]
    assert len(compare.seeds) == 5
    scratch = flatten(compare.training("all", "from scratch", 3))
    assert (scratch["run"], scratch["model"], scratch["train"]) == ("none", str(run), "all")
    assert scratch["seed"] == 3
    assert compare.training("all", "pre-trained", 3).model.train == "head"


def test_from_scratch_decodes_as_the_run_does(own: Path) -> None:
    config = (own / "config.json").read_text()
    (own / "config.json").write_text(config.replace('"white": 65535', '"white": 4095'))
    (own / "manifest.json").unlink()
    grid = compare_grid(build(Compare, {"run": str(own), "data": "photos"}))
    assert grid.training("all", "from scratch", 0).decode.white == 4095


def test_mistakes(run: Path, photos: Path) -> None:
    for function, folder, options, message in (
        (torchmae.compare, run, {"seeds": (1,)}, "at least two"),
        (torchmae.compare, run, {"seeds": (1, 1)}, "all different"),
        (torchmae.compare, "none", {}, "mae compare needs a run"),
        (torchmae.partial, "none", {}, "mae partial needs a run"),
        (torchmae.partial, run, {"train": ("0", "7")}, "--train 7: all, head, 0.5 or a number"),
    ):
        with pytest.raises(UserError, match=message):
            function(folder, photos, **options)
