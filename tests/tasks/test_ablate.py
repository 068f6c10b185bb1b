"""mae ablate: which trainings there are, what is measured, kills, and bad input."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers.small import SMALL, make_photos

import torchmae
from torchmae.errors import RunError, UserError
from torchmae.settings.defaults import Facts
from torchmae.settings.groups import SourceOptions
from torchmae.settings.options import build, flatten
from torchmae.tasks.ablate.config import Ablate, parse_budget, parse_part
from torchmae.tasks.ablate.points import Ablation
from torchmae.tasks.ablate.results import orderings
from torchmae.tasks.ablate.run import needs_tokenizer
from torchmae.tasks.ablate.studies import FINETUNED, LINEAR, STUDIES, Base

FACTS = Facts(images=1000, height=64, width=64, channels=3)
TINY = {**SMALL, "epochs": 1.0, "precision": "fp32", "seeds": (0, 1), "measure": ("knn", "linear")}


def ablation(**options: Any) -> Ablation:
    known = flatten(Ablate(source=SourceOptions("photos"), labelled_data="photos"))
    assert set(options) <= set(known)
    config = build(Ablate, {**known, **options})
    return Ablation(config, FACTS, Path("out"), {})


def results(out: Path) -> dict[str, Any]:
    """ablation.json without what depends on the clock."""
    content = json.loads((out / "ablation.json").read_text())
    for study in content["studies"]:
        for row in study["rows"]:
            for name in ("minutes", "images_per_s", "peak_memory_mb"):
                row.pop(name)
    content.pop("settings")
    return content


def test_the_papers_numbers() -> None:
    """Of shared/design/paper.md, section 1.2: the ends and the defaults of each series."""
    base = Base(width=1024, depth=24, epochs=800)
    found = {name: study.points(base) for name, study in STUDIES.items()}
    lin = {name: [point.paper.get(LINEAR) for point in points] for name, points in found.items()}
    assert lin["fig5"] == [54.6, 58.9, 61.7, 67.0, 69.9, 71.8, 73.2, 73.5, 71.8, 66.1]
    assert lin["table1a"] == [65.5, 70.0, 71.9, 73.5, 73.3]
    assert lin["table1b"] == [69.1, 71.3, 73.5, 73.1, 73.1]
    assert lin["table1c"] == [59.6, 73.5]
    assert lin["table1d"] == [73.5, 73.9, 72.3, 71.6]
    assert lin["table1e"] == [65.7, 73.1, 73.5, 71.9]
    assert lin["table1f"] == [73.5, 72.3, 63.9, 66.0]
    assert lin["fig7"] == [57.3, 64.4, 69.7, 73.5, 75.1]
    assert [p.label for p in found["fig7"]] == ["100", "200", "400", "800", "1600"]
    assert [p.changes["decoder_dim"] for p in found["table1b"]] == [128, 256, 512, 768, 1024]
    partial = [73.5, 79.1, 81.0, 83.1, 84.2, 84.4, 84.6, 84.7, 84.9]
    assert [p.paper[FINETUNED] for p in found["fig9"]] == partial
    assert [p.label for p in found["fig9"]][-2:] == ["18", "all"]
    assert all(sum(p.default for p in points) == 1 for points in found.values())


def test_a_point_that_is_the_default_is_trained_once() -> None:
    made = ablation(study=("fig5", "loss", "table1a", "table1f"), seeds=(0, 1))
    names = {name for name, _ in made.found}
    # mask ratio 0.75, the loss on hidden patches, random 75 % and vit_micro's 2 decoder blocks
    assert len(names) == 10 + 1 + 4 + 3
    assert len(made.found) == 2 * len(names)
    by = {experiment.name: experiment for experiment in made.experiments}
    assert by["fig5"].trainings[7] == by["loss"].trainings[0] == "default"
    assert by["table1a"].trainings[1] == by["table1f"].trainings[0] == "default"
    assert by["fig5"].reference == 7
    assert by["table1a"].reference == 1  # ours; the paper's is 8 blocks


def test_a_reference_that_is_not_the_default_is_the_papers() -> None:
    made = ablation(study=("fig5",), mask_ratio=0.65)
    assert made.experiments[0].reference == 7


def test_the_tokenizer_is_trained_for_those_that_predict_its_tokens() -> None:
    units = ablation(study=("table1d", "loss"), seeds=(0,)).units()
    assert [needs_tokenizer([unit]) for unit in units] == [False, False, False, True, False]


def test_a_grid_varies_any_setting_in_every_combination() -> None:
    words = ("mask-ratio", "0.5", "0.9", "flip", "on", "off", "crop_scale", "0.5,1")
    made = ablation(vary=words, seeds=(0,))
    found = [training.changes for training in made.found.values()]
    assert found == [
        {"mask_ratio": ratio, **({} if flip else {"flip": False}), "crop_scale": (0.5, 1.0)}
        for ratio in (0.5, 0.9)
        for flip in (True, False)
    ]
    assert next(p.label for p in made.experiments[0].points) == "0.5 True (0.5, 1.0)"


def test_a_budget_of_images_is_equal_for_all() -> None:
    made = ablation(study=("loss",), budget="images=2500", seeds=(0,))
    assert {training.config.optim.epochs for training in made.found.values()} == {2.5}


@pytest.mark.parametrize(
    "options, words",
    [
        ({"study": ("fig55",)}, "unknown study 'fig55'.*Did you mean fig5?"),
        ({"vary": ("mask_ration", "0.5")}, "Did you mean mask_ratio?"),
        ({"vary": ("mask_ratio",)}, "its values are missing"),
        ({"vary": ("mask_ratio", "half")}, "--mask-ratio half: a share such as 0.75, or a range"),
        ({"vary": ("decoder_depth", "half")}, "decoder_depth half: not a whole number"),
        ({"vary": ("decoder_depth", "0")}, "0: --decoder-depth 0: must be more than 0"),
        ({"vary": ("mask_ratio", "1.5")}, "--mask-ratio 1.5: must be below 1"),
        ({"vary": ("patch_size", "7")}, "7"),
        ({"vary": ("masking", "blocks")}, "Did you mean block?"),
        ({"vary": ("target", "pixel")}, "Did you mean pixels?"),
        ({"vary": ("batch_size", "2000")}, "more than the 1000 images"),
        ({"vary": ("encode_all", "yes")}, "encode_all"),
        ({"vary": ("device", "cpu")}, "unknown setting"),
        ({"vary": ("target", "tokens", "pixels", "patch_size", "16")}, "patches of 8 px, the mo"),
        ({"study": ("fig7",), "budget": "images=100"}, "--budget fixes the length"),
    ],
)
def test_what_cannot_be_varied(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ablation(**options)


def test_budgets_and_parts() -> None:
    assert parse_budget("images=2e5") == ("images", 200_000)
    assert parse_part("3/12") == (3, 12)
    for text in ("2e5", "epochs=3", "images=0", "images=-1", "images=many", "minutes=inf"):
        with pytest.raises(UserError, match="--budget"):
            parse_budget(text)
    for text in ("3", "0/2", "3/2", "a/b", "1/2/3"):
        with pytest.raises(UserError, match="--part"):
            parse_part(text)


def row(label: str, linear: float, *values: float) -> dict[str, Any]:
    measures = {"linear": {"by_seed": dict(enumerate(values)), "images": 1000}}
    return {"label": label, "paper": {LINEAR: linear}, "measures": measures}


def test_orderings_need_the_interval() -> None:
    rows = [
        row("a", 70.0, 0.70, 0.71, 0.70),
        row("b", 60.0, 0.60, 0.61, 0.60),
        row("c", 59.8, 0.80, 0.81, 0.80),
        row("d", 50.0, 0.30, 0.90, 0.60),
    ]
    found = {(pair["better"], pair["worse"]): pair["verdict"] for pair in orderings(rows, "linear")}
    assert found == {  # b and c differ by less than half a point in the paper
        ("a", "b"): "reproduced",
        ("a", "c"): "not reproduced",
        ("a", "d"): "not decided",
        ("b", "d"): "not decided",
        ("c", "d"): "not decided",
    }


def test_orderings_need_three_seeds_and_more_than_equal_differences() -> None:
    two = [row("a", 70.0, 0.70, 0.71), row("b", 60.0, 0.60, 0.61)]
    assert orderings(two, "linear") == []
    alike = [row("a", 70.0, *3 * [0.7001]), row("b", 60.0, *3 * [0.7])]
    assert [pair["verdict"] for pair in orderings(alike, "linear")] == ["not decided"]


def test_an_ablation_is_measured_drawn_and_cleaned(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a"
    options = {**TINY, "study": ("loss",), "vary": ("mask_ratio", "0.5", "0.75")}
    torchmae.ablate(photos, photos, out=out, **options)
    loss, grid = json.loads((out / "ablation.json").read_text())["studies"]
    assert [row["seeds"] for row in loss["rows"] + grid["rows"]] == [2, 2, 2, 2]
    default = grid["rows"][1]
    for name, found in loss["rows"][0]["measures"].items():
        assert found["by_seed"] == default["measures"][name]["by_seed"], "it is trained once"
    measured = loss["rows"][1]["measures"]["knn"]
    assert measured["difference"]["mean"] == pytest.approx(
        measured["mean"] - loss["rows"][0]["measures"]["knn"]["mean"]
    )
    for name in ("loss.png", "grid.png"):
        assert (out / name).stat().st_size > 10_000
    assert not list(out.glob("trainings/*/model.safetensors"))
    assert not list(out.glob("trainings/*/state"))
    assert list(out.glob("trainings/*/log.jsonl"))
    printed = capsys.readouterr().out
    assert "6 trainings with 2 seeds, 0 finished, 6 to do" in printed
    assert "MB of disk" in printed
    assert "Section 4.1: patches of the loss. Accuracy in %, mean ± std over 2 seeds" in printed

    before = results(out)
    records = {path: path.stat().st_mtime_ns for path in (out / "points").iterdir()}
    (out / "points" / "raw_pixels-seed-1.json").unlink()
    torchmae.ablate(photos, photos, out=out, **options)
    assert results(out) == before
    made = {path.name for path, old in records.items() if path.stat().st_mtime_ns != old}
    assert made == {"raw_pixels-seed-1.json"}
    assert "6 finished, 0 to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="made with epochs 1.0, not 2.0: use another --out"):
        torchmae.ablate(photos, photos, out=out, **{**options, "epochs": 2.0})
    with pytest.raises(UserError, match="made with labels_per_class 10, not 4"):
        torchmae.ablate(photos, photos, out=out, **options, labels_per_class=4)
    others = make_photos(tmp_path / "others", each=7)
    with pytest.raises(UserError, match="made with other images: use another --out"):
        torchmae.ablate(others, photos, out=out, **options)
    with pytest.raises(UserError, match="made with other labelled images: use another --out"):
        torchmae.ablate(photos, others, out=out, **options)


def test_baselines_are_measured_once_for_all_that_look_at_images_alike() -> None:
    made = ablation(study=("fig5", "loss", "fig9"), seeds=(0, 1), measure=("knn", "finetune-2"))
    beside = {name: t.measures for (name, seed), t in made.baselines.items() if seed == 1}
    # Fewer blocks of an untrained encoder are not fine-tuned: that of fig9 is trained as a whole.
    assert beside == {"untrained_encoder": ("knn", "finetune-all"), "raw_pixels": ("knn",)}
    assert all(e.baselines == ("untrained_encoder", "raw_pixels") for e in made.experiments)
    follows = {t.name: unit[0].name for unit in made.units() for t in unit[1:]}
    assert follows == {
        f"{name}-seed-{seed}": f"mask_ratio=0.1-seed-{seed}"
        for name in ("untrained_encoder", "raw_pixels")
        for seed in (0, 1)
    }
    sizes = ablation(vary=("patch_size", "8", "16", "mask_ratio", "0.5", "0.75"), seeds=(0,))
    assert sizes.experiments[0].baselines == (
        "untrained_encoder",
        "untrained_encoder-patch_size=16",
        "raw_pixels",
    )
    fine = ablation(study=("loss",), seeds=(0,), measure=("finetune",))
    assert [name for name, _ in fine.baselines] == ["untrained_encoder"]


def test_baselines_are_what_the_verbs_measure(photos: Path, tmp_path: Path) -> None:
    out, few = tmp_path / "a", {"labels_per_class": 3, "finetune_epochs": 2.0}
    options = {**TINY, **few, "study": ("loss",), "measure": ("knn", "few-label"), "seeds": (1,)}
    torchmae.ablate(photos, photos, out=out, **options, keep=True)
    (study,) = json.loads((out / "ablation.json").read_text())["studies"]
    found = {row["label"]: row["measures"] for row in study["baselines"]}
    run = out / "trainings" / "default-seed-1"
    verb = torchmae.knn(run, photos, val_fraction=0.2, seed=1)["knn"]["untrained encoder"]
    assert found["untrained encoder"]["knn"]["mean"] == verb["accuracy"]
    assert list(found["raw pixels"]) == ["knn"]
    scratch = {"model": str(run), "labels_per_class": 3, "epochs": 2.0, "seed": 1}
    torchmae.finetune("none", photos, out=tmp_path / "scratch", **scratch)
    (record,) = json.loads((tmp_path / "scratch" / "results.json").read_text())["results"]
    assert found["untrained encoder"]["few-label"]["mean"] == record["results"]["last"]["top1"]


def command(photos: Path, out: Path, *more: str) -> list[str]:
    words = [sys.executable, "-m", "torchmae", "ablate", str(photos), str(photos)]
    flags = [
        text
        for name, value in SMALL.items()
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]
    fixed = ["--epochs", "3", "--precision", "fp32", "--seeds", "0", "1", "--study", "loss"]
    fixed += ["--measure", "knn", "few-label", "--labels-per-class", "3", "--finetune-epochs", "1"]
    return [*words, *flags, *fixed, "--out", str(out), *more]


QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
ENV = os.environ | {"OMP_NUM_THREADS": "1"}


class Whole(NamedTuple):
    """An ablation that nothing stopped: its results, and the seconds that it took."""

    results: dict[str, Any]
    seconds: float


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    out, began = tmp_path_factory.mktemp("ablation") / "whole", time.monotonic()
    subprocess.run(command(photos, out), check=True, env=ENV, **QUIET)
    return Whole(results(out), time.monotonic() - began)


def test_ctrl_c_stops_all_jobs_and_the_same_command_resumes(
    whole: Whole, photos: Path, tmp_path: Path
) -> None:
    """A terminal sends it to every process: one training, one measuring, or both."""
    words = command(photos, tmp_path / "a", "--jobs", "2")
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(words, env=ENV, start_new_session=True, **pipes)
    while not list(tmp_path.glob("a/trainings/*-few-label")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "Traceback" not in said, said
    assert said.splitlines()[-1] == "mae: interrupted"
    records = list(tmp_path.glob("a/points/*.json"))
    assert len(records) < 8, "nothing was left to stop"
    time.sleep(2)
    assert list(tmp_path.glob("a/points/*.json")) == records, "a job went on"
    subprocess.run(words, check=True, env=ENV, **QUIET)
    assert results(tmp_path / "a") == whole.results


def test_a_full_disk_ends_it_with_a_line_and_the_same_command_resumes(
    whole: Whole, photos: Path, tmp_path: Path
) -> None:
    """A limit on the size of files, which fails like a full disk: for the checkpoint of the third
    training, then for whatever the next command writes."""
    words = command(photos, tmp_path / "a")
    code = """
import resource, sys
from torchmae import cli
from torchmae.tasks.ablate import measure
real, calls = measure.pretrain, 0
def pretrain(*arguments, **more):
    global calls
    calls += 1
    if calls == int(sys.argv[1]):
        resource.setrlimit(resource.RLIMIT_FSIZE, 2 * (int(sys.argv[2]),))
    return real(*arguments, **more)
measure.pretrain = pretrain
sys.exit(cli.main(sys.argv[3:]))
"""
    for limit in (["3", "200000"], ["1", "200"]):
        full = [sys.executable, "-c", code, *limit, *words[3:]]
        done = subprocess.run(full, env=ENV, capture_output=True, text=True)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert "File too large" in done.stderr.splitlines()[-1]
        points = [path.name for path in tmp_path.glob("a/points/*")]
        assert len(points) == 4 and "default-seed-0.json" in points
    subprocess.run(words, check=True, env=ENV, **QUIET)
    assert results(tmp_path / "a") == whole.results


def test_killed_anywhere_it_ends_with_the_same_table(
    whole: Whole, photos: Path, tmp_path: Path
) -> None:
    stopped = tmp_path / "stopped"
    process = subprocess.Popen(command(photos, stopped), env=ENV, **QUIET)
    while not list(stopped.glob("trainings/*/config.json")):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait() != 0, "it went on with the next training"
    assert len(list(stopped.glob("trainings/*/config.json"))) == 1
    subprocess.run(command(photos, stopped), check=True, env=ENV, **QUIET)
    assert results(stopped) == whole.results

    killed, draw = tmp_path / "killed", random.Random(0)
    for _ in range(3):
        process = subprocess.Popen(command(photos, killed), env=ENV, **QUIET)
        time.sleep(draw.uniform(0.3, 0.8) * whole.seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(photos, killed), check=True, env=ENV, **QUIET)
    assert results(killed) == whole.results

    parts = tmp_path / "parts"
    for part in ("2/2", "1/2"):
        subprocess.run(command(photos, parts, "--part", part), check=True, env=ENV, **QUIET)
    assert results(parts) == whole.results
    jobs = tmp_path / "jobs"
    subprocess.run(command(photos, jobs, "--jobs", "2"), check=True, env=ENV, **QUIET)
    assert results(jobs) == whole.results


def test_a_training_that_diverges_is_reported(photos: Path, tmp_path: Path) -> None:
    options = {**TINY, "vary": ("base_lr", "0.01", "1e30"), "seeds": (0,), "epochs": 20.0}
    for _ in range(2):  # the second call trains nothing
        with pytest.raises(RunError, match="1 training failed; the first: base_lr=1e.30-seed-0"):
            torchmae.ablate(photos, photos, out=tmp_path / "a", **options)
    (study,) = json.loads((tmp_path / "a" / "ablation.json").read_text())["studies"]
    assert [row["seeds"] for row in study["rows"]] == [1, 0]


def test_all_targets_train_for_the_same_operations(photos: Path, tmp_path: Path) -> None:
    options = {**TINY, "study": ("table1d",), "seeds": (0,), "measure": ("knn",)}
    options |= {"epochs": None, "budget": "flops=1e10"}
    torchmae.ablate(photos, photos, out=tmp_path / "a", **options)
    (study,) = json.loads((tmp_path / "a" / "ablation.json").read_text())["studies"]
    assert [row["label"] for row in study["rows"]] == [
        "pixels",
        "normalized pixels",
        "PCA",
        "tokens",
    ]
    assert all(row["seeds"] == 1 for row in study["rows"])
    for row in study["rows"]:  # the tokenizer's pass is nearly half of its training
        step = row["flops"] / row["images_seen"] * TINY["batch_size"]
        assert abs(row["flops"] - 1e10) <= 0.5 * step, row["label"]
    assert study["rows"][3]["images_seen"] < 0.8 * study["rows"][0]["images_seen"]


def test_lengths_share_a_training(photos: Path, tmp_path: Path) -> None:
    options = {**TINY, "study": ("fig7",), "seeds": (0,), "epochs": 8.0, "keep": True}
    torchmae.ablate(photos, photos, out=tmp_path / "a", **{**options, "measure": ("knn",)})
    assert len(list((tmp_path / "a").glob("trainings/*/model.safetensors"))) == 1
    before = results(tmp_path / "a")["studies"][0]["rows"]
    assert [row["images_seen"] for row in before] == [24, 48, 96, 192, 384]
    # Another measure of the shorter ones needs weights that are gone: they are made again.
    torchmae.ablate(photos, photos, out=tmp_path / "a", **options)
    after = results(tmp_path / "a")["studies"][0]["rows"]
    for old, new in zip(before, after):
        assert new["measures"]["knn"] == old["measures"]["knn"]
        assert "linear" in new["measures"]


def test_bad_data_before_any_training(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to vary"):
        torchmae.ablate(photos, photos, out=tmp_path / "a", **TINY)
    with pytest.raises(UserError, match="class"):
        torchmae.ablate(photos, photos / "blob", out=tmp_path / "b", study=("loss",), **TINY)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds other things"):
        torchmae.ablate(photos, photos, out=tmp_path / "c", study=("loss",), **TINY)
    with pytest.raises(UserError, match="--measure kn: some of knn"):
        torchmae.ablate(photos, photos, study=("loss",), **{**TINY, "measure": ("kn",)})
    assert not list(tmp_path.rglob("config.json"))
