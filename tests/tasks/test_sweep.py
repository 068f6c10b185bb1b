"""mae compare and mae partial: what is trained in which folder, what is recorded and drawn."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small import QUICK, make_photos
from safetensors.torch import load_file, save_file

import torchmae
from torchmae.data.labels import labelled_sets, tuning_sets
from torchmae.errors import UserError
from torchmae.eval.baselines import untrained
from torchmae.eval.extract import collect, features_of, patch_tokens_of
from torchmae.eval.probes.attentive import attentive_probe
from torchmae.eval.probes.knn import knn
from torchmae.eval.probes.logistic import linear_probe
from torchmae.models.weights import load
from torchmae.runfolder import last_validation, read_config, read_results
from torchmae.settings.options import build, flatten
from torchmae.tasks.finetune.run import identity_of
from torchmae.tasks.sweep.config import Compare, Partial
from torchmae.tasks.sweep.grids import (
    PRETRAINED,
    SCRATCH,
    compare_grid,
    in_path,
    named,
    partial_grid,
)
from torchmae.tasks.sweep.run import chosen_measures
from torchmae.tasks.sweep.search import Search, plan_search
from torchmae.tasks.sweep.verdict import (
    FROZEN,
    METRICS,
    summarize_comparison,
    training_losses,
)

ONE = {**QUICK, "epochs": 1}


def test_compare_pairs_every_seed(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def compare(*seeds: int) -> dict[str, Any]:
        out = tmp_path / "c"
        options = {**ONE, "trials": 0, "labels_per_class": (2, 4)}
        torchmae.compare(run, photos, out=out, seeds=seeds, **options)
        *_, record = read_results(out, "compare")
        assert record["settings"]["run"] == str(run)
        return record["results"]

    out, rows = tmp_path / "c", compare(0, 1)["rows"]
    assert [row["name"] for row in rows] == ["2", "4"]
    assert (out / "compare.png").stat().st_size > 10_000
    for row in rows:
        folders = {
            arm: [f"{arm.replace(' ', '-')}-{row['name']}-labels-seed-{seed}" for seed in (0, 1)]
            for arm in (PRETRAINED, SCRATCH)
        }
        for arm, names in folders.items():
            found = [last_validation(out / name)["top1"] for name in names]
            assert row["arms"][arm]["top1"] == found
            assert row["arms"][arm]["mean"] == pytest.approx(sum(found) / 2)
        for pair in zip(*folders.values()):
            first, second = (read_config(out / name) for name in pair)
            assert first["data"] == second["data"], "not the same images"
            assert first["config"]["labels_per_class"] == int(row["name"])
            for name in ("seed", "epochs", "dtype", "max_megapixels"):
                assert first["config"][name] == second["config"][name]
            depth = ("model", "encoder", "depth")
            assert first[depth[0]][depth[1]][depth[2]] == second[depth[0]][depth[1]][depth[2]]
        difference = row["differences"]["pre-trained - from scratch"]
        means = [row["arms"][arm]["mean"] for arm in folders]
        assert difference["mean"] == pytest.approx(means[0] - means[1])
    printed = capsys.readouterr().out
    assert "[3/8] pre-trained, 2 labels a class, seed 1" in printed
    assert "mean ± std over 2 seeds" in printed
    assert printed.count(" wide, ") == 1, "one plan, then what differs from it"
    assert printed.count("unlike pre-trained-") == 2 and "run none (" in printed
    assert "no search for either side" in printed

    finished = {path: path.stat().st_mtime_ns for path in out.glob("*/model.safetensors")}
    again = compare(0, 1, 2)["rows"]
    assert [row["arms"][PRETRAINED]["top1"][:2] for row in again] == [
        row["arms"][PRETRAINED]["top1"] for row in rows
    ]
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    assert len(read_results(out)) == 2  # of two and of three seeds


def test_both_sides_are_searched_alike_and_measured_beside_baselines(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c"
    options: dict[str, Any] = {**ONE, "trials": 3, "labels_per_class": (3,)}
    torchmae.compare(run, photos, out=out, seeds=(0, 1), **options)
    ((row,),) = (record["results"]["rows"] for record in read_results(out, "compare"))
    tried = {arm: row["search"][arm]["tried"] for arm in (PRETRAINED, SCRATCH)}
    settings = [[(t["lr_scale"], t["augment"]) for t in found] for found in tried.values()]
    assert settings[0] == settings[1] == [(1, "mild"), (3, "mild"), (1, "strong")]
    for arm, found in tried.items():
        best = max(found, key=lambda one: one["top1"])
        chosen = row["search"][arm]["chosen"]
        assert chosen == {name: best[name] for name in ("lr_scale", "augment")}
        used = read_config(out / f"{arm.replace(' ', '-')}-3-labels-seed-0")["config"]
        assert (used["lr_scale"], used["augment"]) == tuple(chosen.values())
    trials = out / "trials-without-seeds-0-1"
    rates = [
        read_config(trials / f"from-scratch-3-labels-lr-x{n}-mild")["config"]["base_lr"]
        for n in (1, 3)
    ]
    assert rates[1] == pytest.approx(3 * rates[0])

    # No image on which is chosen is validated on by a seed.
    trial, *_ = trials.iterdir()
    assert read_config(trial)["config"]["avoid_seeds"] == [0, 1]
    which = (str(photos), None, 0.2)
    tuning = tuning_sets(*which, 3, 100, (0, 1))
    seen = {part.name(i) for part in (tuning.train, tuning.val) for i in range(len(part))}
    for seed in (0, 1):
        validated = labelled_sets(*which, 3, seed).val
        assert not seen & {validated.name(i) for i in range(len(validated))}
    assert identity_of(tuning) == read_config(trial)["data"]

    baselines = ["untrained encoder", "raw pixels", "commonest class"]
    assert list(row["arms"]) == [PRETRAINED, SCRATCH, FROZEN, *baselines]
    for arm in row["arms"].values():
        for metric in ("top1", "balanced_accuracy", "macro_f1", "auc"):
            assert len(arm[metric]) == 2
            assert all(0 <= value <= 1 for value in arm[metric])
        assert arm["low"] <= arm["mean"] <= arm["high"]
    assert row["arms"]["commonest class"]["top1"] == pytest.approx([1 / 3] * 2)
    assert row["arms"]["commonest class"]["auc"] == [0.5, 0.5]
    assert row["verdict"] in ("shown", "not shown", "worse")
    printed = capsys.readouterr().out
    assert "the best of 3 trials for each side (learning rate x1, x3; augment mild" in printed
    assert "[trial 2/3] from scratch, 3 labels a class: learning rate x3, augment mild" in printed
    assert f"Gain of pre-training {row['verdict']}: " in printed


def test_a_baseline_that_learned_nothing_is_named_and_the_difference_is_no_gain(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From scratch at a learning rate of nearly nothing: whatever the difference, it is no gain.

    Images have another size and other channels than the run's, also for the baselines.
    """
    photos = make_photos(tmp_path / "photos", each=12)
    still: dict[str, Any] = {**ONE, "base_lr": 1e-9, "augment": "none"}
    options = {**still, "image_size": 48, "channels": 1}
    out = tmp_path / "c"
    torchmae.compare(run, photos, out=out, seeds=(0, 1), **options)
    ((row,),) = (record["results"]["rows"] for record in read_results(out, "compare"))
    scratch = row["arms"][SCRATCH]
    assert scratch["learned_nothing"]
    assert scratch["training_loss"] == pytest.approx(math.log(3), rel=0.01)
    assert scratch["chance_loss"] == pytest.approx(math.log(3))
    assert {len(arm["top1"]) for arm in row["arms"].values()} == {2}
    assert row["verdict"] != "shown"
    printed = capsys.readouterr().out
    assert "from scratch has learned nothing" in printed
    assert "the difference to it is no gain" in printed
    assert "learning rate and augmentation are given" in printed  # nothing is left to search


def test_several_encoders_by_every_measure(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """A second command with one more encoder repeats nothing of the first."""
    monkeypatch.chdir(tmp_path)
    small = "timm:test_vit?random=0&image_size=32"
    arm = "timm-test_vit-random-0-32"
    options: dict[str, Any] = {**ONE, "trials": 0, "labels_per_class": (3,), "out": "c"}

    def compare(*encoders: Any, **more: Any) -> list[dict[str, Any]]:
        torchmae.compare(encoders, photos, seeds=(0, 1), **{**options, **more})
        return read_results(Path("c"), "compare")[-1]["results"]["rows"]

    rows = compare(run, "none", measure=("linear", "few-label"))
    assert [row["measure"] for row in rows] == ["linear", "few-label"]
    files = {
        file: file.stat().st_mtime_ns
        for file in [*Path("c").glob("*/model.safetensors"), *Path("c").glob("frozen/*/*.json")]
    }
    assert len(files) == 4 + 3
    rows = compare(run, "none", small, measure=("linear", "few-label"))
    assert all(file.stat().st_mtime_ns == time for file, time in files.items())
    for row in rows:
        extra = [*["raw pixels"] * (row["measure"] == "linear"), "commonest class"]
        assert list(row["arms"]) == [run.name, SCRATCH, arm, *extra]
        assert row["settings"] == {"labels_per_class": 3}
        assert {len(one["top1"]) for one in row["arms"].values()} == {2}
        found = row["differences"][f"{run.name} - {arm}"]
        mean = row["arms"][run.name]["mean"] - row["arms"][arm]["mean"]
        assert found["mean"] == pytest.approx(mean)
        assert found["low"] < found["mean"] < found["high"]
        assert row["verdict"] in ("shown", "not shown", "worse")
    last = last_validation(Path(f"c/{arm}-3-labels-seed-1"))
    assert last["top1"] == rows[1]["arms"][arm]["top1"][1]
    printed = capsys.readouterr().out
    assert "Measures: linear, few-label; 6 fine-tunings; each minus small" in printed
    assert "linear, 3 labels a class" in printed
    assert f"Lead of {run.name} " in printed
    assert Path("c/compare.png").stat().st_size > 10_000


def test_frozen_measures_are_those_of_the_parts(run: Path, photos: Path, tmp_path: Path) -> None:
    """By hand: features of the very images, and the functions that classify them."""
    out = tmp_path / "c"
    measures = ("linear", "knn", "attentive")
    options: dict[str, Any] = {"measure": measures, "seeds": (0, 1), "device": "cpu"}
    torchmae.compare(run, photos, out=out, **options)
    rows = {r["measure"]: r for r in read_results(out, "compare")[-1]["results"]["rows"]}
    assert list(rows["knn"]["arms"])[:2] == [PRETRAINED, SCRATCH]
    for place, seed in enumerate((0, 1)):
        sets = labelled_sets(str(photos), None, 0.2, None, seed)
        for arm, encoder in ((PRETRAINED, load(run)), (SCRATCH, untrained(str(run), seed))):
            cpu = torch.device("cpu")
            both = [features_of(encoder, None, "mean", cpu), patch_tokens_of(encoder, None, cpu)]
            (train, tokens), (test, others) = (
                collect(part, encoder, run, both, cpu)[1] for part in (sets.train, sets.val)
            )
            queried = attentive_probe(tokens, sets.train_labels, others, seed)
            said = {
                "knn": knn(train, test, sets.train_labels, 3, 20),
                "linear": linear_probe(train, sets.train_labels, test, seed).logits.argmax(1),
                "attentive": queried.logits.argmax(1),
            }
            for measure, guesses in said.items():
                right = float((guesses == sets.val_labels).double().mean())
                assert rows[measure]["arms"][arm]["top1"][place] == pytest.approx(right)
    assert not list(out.glob("*labels*"))  # nothing was trained


def test_measurements_are_made_again_where_weights_or_images_differ(
    own: Path, photos: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"measure": ("knn",), "seeds": (0, 1), "device": "cpu"}

    def count(**more: Any) -> int:
        torchmae.compare(own, photos, out=tmp_path / "c", **{**options, **more})
        return len(read_results(tmp_path / "c" / "frozen" / "pre-trained", "knn"))

    assert count() == 2
    assert count() == 2
    assert count(seeds=(0, 2)) == 3
    assert count(exclude="*/0.jpg") == 5
    weights = load_file(own / "model.safetensors")
    weights["encoder.norm.weight"] += 1
    save_file(weights, own / "model.safetensors")
    (own / "manifest.json").unlink()
    assert count() == 7


def test_learning_rates_are_swept_for_every_encoder(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c"
    options: dict[str, Any] = {**ONE, "lr_sweep": 3, "labels_per_class": (3,), "seeds": (0, 1)}
    torchmae.compare((run, "none"), photos, out=out, measure=("few-label",), **options)
    ((row,),) = (record["results"]["rows"] for record in read_results(out, "compare"))
    for arm, folder in ((run.name, run.name), (SCRATCH, "from-scratch")):
        tried = row["search"][arm]["tried"]
        assert [(t["lr_scale"], t["augment"]) for t in tried] == [
            (1, None),
            (3, None),
            (1 / 3, None),
        ]
        best = max(tried, key=lambda one: one["top1"])
        used = read_config(out / f"{folder}-3-labels-seed-0")["config"]
        assert used["lr_scale"] == best["lr_scale"] == row["search"][arm]["chosen"]["lr_scale"]
        assert used["augment"] == "mild"  # the recipe's
        trials = sorted(path.name for path in out.glob(f"trials*/{folder}-3-*"))
        assert trials == [f"{folder}-3-labels-lr-x{n}" for n in ("0.33", "1", "3")]
    printed = capsys.readouterr().out
    assert "the best of 3 trials for each encoder (learning rate x1, x3, x1/3)" in printed


def test_two_seeds_show_nothing_and_equal_differences_are_not_certain() -> None:
    def row(scores: list[float], seeds: int) -> dict[str, Any]:
        def found(tops: list[float]) -> list[dict[str, Any]]:
            return [{**dict.fromkeys(METRICS, top), "count": 20} for top in tops]

        measured = {"a": found([0.9] * seeds), "b": found(scores)}
        return summarize_comparison("10", {}, "knn", measured, {})

    two = row([0.5, 0.5], 2)
    assert two["verdict"] == "not shown"
    assert two["reasons"][1].startswith("2 seeds are too few")
    three = row([0.5] * 3, 3)
    assert three["verdict"] == "shown"
    difference = three["differences"]["a - b"]
    # The differences are known to a step of 1/20: std 1 / (20 sqrt(12)), t of 2 degrees 4.303.
    half = 4.303 / (20 * math.sqrt(12) * math.sqrt(3))
    assert difference["high"] - difference["mean"] == pytest.approx(half)
    for arm in three["arms"].values():  # nor are accuracies, whose bars show it
        assert arm["high"] - arm["mean"] == arm["mean"] - arm["low"] == pytest.approx(half)
    close = row([0.88] * 3, 3)
    assert close["reasons"] == ["b: no difference from a is shown"]
    assert row([0.99, 0.98, 1.0], 3)["reasons"] == ["b is better than a"]
    assert row([0.99, 0.98, 1.0], 3)["verdict"] == "worse"
    assert three["reasons"] == ["a is better than b"]
    assert three["claim"] == "Lead of a"


def test_inherited_patterns_need_not_match_in_any_arm(
    own: Path, photos: Path, tmp_path: Path
) -> None:
    """As in the fine-tuning of the run, and unlike patterns that were typed."""
    path = own / "config.json"
    stored = json.loads(path.read_text())
    stored["config"] |= {"exclude": ["*_mask*"], "data": str(photos)}
    path.write_text(json.dumps(stored))
    (own / "manifest.json").unlink()
    options: dict[str, Any] = {**ONE, "trials": 0, "seeds": (0, 1)}
    torchmae.compare(own, photos, out=tmp_path / "c", **options)
    for arm in ("pre-trained", "from-scratch"):
        config = read_config(tmp_path / "c" / f"{arm}-all-labels-seed-0")["config"]
        assert (config["exclude"], config["inherited"]) == (["*_mask*"], True)
    with pytest.raises(UserError, match="_mask"):
        torchmae.compare(own, photos, out=tmp_path / "d", exclude="*_mask*", **options)


def test_what_is_measured_by_default() -> None:
    def measures(*places: str, **options: Any) -> tuple[str, ...]:
        return chosen_measures(build(Compare, {"run": places, "data": "photos", **options}))

    assert measures("a") == ("few-label",)
    assert measures("a", "none") == ("knn", "linear", "attentive", "few-label")
    assert measures("a", measure=("linear", "knn", "linear")) == ("linear", "knn")


def test_arms_have_names_of_their_own(tmp_path: Path) -> None:
    assert named(["runs/a", "none", "runs/b"]) == {"a": "runs/a", SCRATCH: "none", "b": "runs/b"}
    assert list(named(["x/a", "y/a"])) == ["x/a", "y/a"]
    assert in_path("x/a b") == "x-a-b"
    for places in (["x/a", "x/a/"], ["x/a", "none", "none"]):
        with pytest.raises(UserError, match="named twice"):
            named(places)


def judged(scratch: float, pixels: float, loss: float = 0.3) -> dict[str, Any]:
    """The row of a run with 70, 71, 72 % of fine-tuning, beside others with these accuracies."""

    def found(mean: float, **more: float) -> list[dict[str, Any]]:
        scores = [mean - 0.01, mean, mean + 0.01]
        return [{**dict.fromkeys(METRICS, one), "count": 50, **more} for one in scores]

    trained = {"training_loss": 0.2, "chance_loss": math.log(3)}
    measured = {
        PRETRAINED: found(0.71, **trained),
        SCRATCH: found(scratch, **{**trained, "training_loss": loss}),
        FROZEN: found(0.9),  # pre-trained too: it is no baseline
        "raw pixels": found(pixels),
    }
    return summarize_comparison("10", {}, "few-label", measured, {})


@pytest.mark.parametrize(
    "row, word, reason",
    [
        (judged(0.5, 0.5), "shown", ["better than from scratch and raw pixels"]),
        (judged(0.9, 0.5), "worse", ["better than raw pixels; worse than from scratch"]),
        (judged(0.5, 0.9), "worse", ["better than from scratch; worse than raw pixels"]),
        (judged(0.71, 0.5), "not shown", ["better than raw pixels; not clearly better than from "]),
        (judged(0.5, 0.5, 1.08), "not shown", ["better than raw", "from scratch has learned noth"]),
        (judged(0.5, 0.5, 1.05), "shown", ["better than from scratch and raw pixels"]),
    ],
)
def test_verdicts(row: dict[str, Any], word: str, reason: list[str]) -> None:
    assert row["verdict"] == word
    assert len(row["reasons"]) == len(reason)
    assert all(said.startswith(start) for said, start in zip(row["reasons"], reason))


def test_the_loss_of_knowing_nothing_is_that_of_the_class_shares(tmp_path: Path) -> None:
    lines = [{"step": 20 * i, "loss": loss} for i, loss in enumerate((9.0, 1.0, 2.0, 3.0), 1)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = {"encoder": {}, "classes": ["a", "b", "c"]}
    content = {"model": model, "config": {"label_smoothing": 0.3}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    even = training_losses(tmp_path, torch.tensor([0, 1, 2, 0, 1, 2]))
    assert even == {"training_loss": 2.0, "chance_loss": pytest.approx(math.log(3))}
    uneven = training_losses(tmp_path, torch.tensor([0, 0, 0, 1]))
    shares = [0.75 * 0.7 + 0.1, 0.25 * 0.7 + 0.1, 0.1]
    assert uneven["chance_loss"] == pytest.approx(-sum(p * math.log(p) for p in shares))


def test_what_is_searched_follows_flags_and_images(run: Path, photos: Path, tmp_path: Path) -> None:
    def plan(**options: Any) -> Search:
        config = build(
            Compare, {"run": (str(run),), "data": str(photos), "seeds": (0, 1), **options}
        )
        return plan_search(config, compare_grid(config))

    assert len(plan().trials) == 6
    assert {t.lr_scale for t in plan(base_lr=0.1, trials=9).trials} == {1}
    assert {t.augment for t in plan(augment="mild", trials=9).trials} == {"mild"}
    assert len(plan(augment="mild", trials=9).trials) == 3
    assert plan(seeds=(0, 100)).seed == 101
    many = tuple(range(30))  # every image is validated on by one of them
    assert "no search for either side: " in plan(seeds=many).words
    with pytest.raises(UserError, match="left to choose settings on.*--trials 0"):
        plan(seeds=many, trials=4)
    assert len(plan(seeds=many, val=str(photos), trials=4).trials) == 4


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
        assert json.loads((made / "last.json").read_text())["top1"] == found["top1"]
        assert found["low"] <= found["top1"] <= found["high"]
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
    assert {name: arm["top1"] for name, arm in row["arms"].items()} == found
    assert found[row["best"]] == max(found.values())


def test_grids_without_numbers_of_one_s_own(run: Path) -> None:
    values = {"run": str(run), "data": "photos"}
    partial = partial_grid(build(Partial, values))
    assert list(partial.rows) == ["0", "0.5", "1", "2", "4", "all 6"]
    assert str(partial.out) == f"{run}-partial"
    training = partial.training("0.5", "accuracy", 0)
    assert (training.model.train, training.optim.epochs) == ("0.5", None)
    assert training.output.out == f"{run}-partial/train-0.5"
    compare = compare_grid(build(Compare, {**values, "run": (str(run),), "train": "head"}))
    assert list(compare.rows) == ["all"]
    assert len(compare.seeds) == 5
    scratch = flatten(compare.training("all", "from scratch", 3))
    assert (scratch["run"], scratch["model"], scratch["train"]) == ("none", str(run), "all")
    assert scratch["seed"] == 3
    assert compare.training("all", "pre-trained", 3).model.train == "head"


def test_from_scratch_decodes_as_the_run_does(own: Path) -> None:
    config = (own / "config.json").read_text()
    (own / "config.json").write_text(config.replace('"nodata": null', '"nodata": 4095'))
    (own / "manifest.json").unlink()
    grid = compare_grid(build(Compare, {"run": (str(own),), "data": "photos"}))
    assert grid.training("all", "from scratch", 0).decode.nodata == 4095


def test_mistakes(run: Path, photos: Path) -> None:
    for function, folder, options, message in (
        (torchmae.compare, run, {"seeds": (1,)}, "at least two"),
        (torchmae.compare, run, {"seeds": (1, 1)}, "all different"),
        (torchmae.compare, run, {"trials": 10}, "--trials 10: must be at most 9"),
        (torchmae.compare, "none", {}, "mae compare needs a run"),
        (torchmae.compare, run, {"measure": ("kn",)}, "unknown --measure 'kn'.*Did you mean knn"),
        (torchmae.compare, run, {"lr_sweep": 3, "trials": 2}, "leave --trials out"),
        (torchmae.compare, run, {"lr_sweep": 3, "base_lr": 0.1}, "leave --base-lr out"),
        (torchmae.compare, run, {"lr_sweep": 4}, "--lr-sweep 4: must be at most 3"),
        (torchmae.compare, (run, run), {}, "named twice"),
        (torchmae.partial, "none", {}, "mae partial needs a run"),
        (torchmae.partial, run, {"train": ("0", "7")}, "--train 7: all, head, 0.5 or a number"),
    ):
        with pytest.raises(UserError, match=message):
            function(folder, photos, **options)
    with pytest.raises(UserError, match="the last argument is the labelled images"):
        torchmae.compare(run, "none")
