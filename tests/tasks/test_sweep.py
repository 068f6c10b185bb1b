"""The paper's recipes for classifiers, in numbers; channels; other runs to start from; what goes on after a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.small import SMALL, make_photos
from safetensors.torch import load_file

import torchmae
from torchmae import cli, presets
from torchmae.errors import UserError
from torchmae.eval import intervals
from torchmae.models.weights import load_classifier
from torchmae.presets import finetune as presets
from torchmae.runfolder import read_config
from torchmae.tasks.finetune.config import Finetune
from torchmae.tasks.finetune.run import plan_of
from torchmae.tasks.finetune.run import run as finetune
from torchmae.tasks.sweep import compare, partial

QUICK = dict(epochs=2, batch_size=6, workers=0, device="cpu", precision="fp32")
SCRATCH = dict(image_size=16, patch_size=8)


def test_the_paper_s_rows_in_numbers() -> None:
    """Tables 9, 10 and 11: learning rate, decays, length; and where the repository differs."""
    rows = {
        "finetune_base": (4e-3, 0.05, 0.75, 100, 5, 0.1, 0.0),
        "finetune_base_repo": (2e-3, 0.05, 0.65, 100, 5, 0.1, 0.25),
        "finetune_large": (4e-3, 0.05, 0.75, 50, 5, 0.1, 0.0),
        "finetune_large_repo": (4e-3, 0.05, 0.75, 50, 5, 0.2, 0.25),
        "finetune_huge": (4e-3, 0.05, 0.75, 50, 5, 0.2, 0.0),
        "finetune_huge_repo": (4e-3, 0.05, 0.75, 50, 5, 0.3, 0.25),
        "finetune_huge_448": (4e-3, 0.05, 0.75, 50, 5, 0.3, 0.25),
        "scratch_base": (1.6e-3, 0.3, 1.0, 300, 20, 0.1, 0.0),
        "scratch_large": (1.6e-3, 0.3, 1.0, 200, 20, 0.2, 0.0),
        "scratch_huge": (1.6e-3, 0.3, 1.0, 200, 20, 0.2, 0.0),
    }
    for name, (lr, decay, layers, epochs, warmup, drop_path, random_erasing) in rows.items():
        recipe = presets.PRESETS[name]()
        plan = plan_of(replace(recipe, precision="fp32", workers=0), 1_281_167)
        assert (
            plan.lr == pytest.approx(lr)
            and plan.layer_decay == layers
            and plan.weight_decay == decay
        ), name
        assert (recipe.epochs, recipe.warmup_epochs, recipe.drop_path, recipe.random_erasing) == (
            epochs,
            warmup,
            drop_path,
            random_erasing,
        )
        assert (recipe.mixup, recipe.cutmix, recipe.label_smoothing, recipe.randaug_magnitude) == (
            0.8,
            1.0,
            0.1,
            9,
        )
        assert plan.steps == round(epochs * 1_281_167 / recipe.batch_size)
        assert plan.ema == (0.9999 if "scratch" in name else None)
        assert plan.betas == ((0.9, 0.95) if "scratch" in name else (0.9, 0.999))
    probe = presets.probe_base()
    assert (
        plan_of(
            replace(probe, precision="fp32", workers=0, beta2=0.9, layer_decay=1.0), 1_281_167
        ).lr
        == 6.4
    )
    assert (probe.optimizer, probe.train, probe.epochs, probe.weight_decay) == (
        "lars",
        "head",
        90,
        0,
    )
    assert presets.probe_large().epochs == 50


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_recipe_parses_and_says_what_to_expect(name: str) -> None:
    made = presets.PRESETS[name]()
    verb = "finetune" if isinstance(made, Finetune) else "pretrain"
    given = {
        "pretrain": ["photos/"],
        "finetune": ["none" if "scratch" in name else "runs/x", "labelled/"],
    }[verb]
    config = cli.parse(type(made), verb, [*given, "--preset", name, "--epochs", "3"])
    assert (config.data, config.epochs) == (given[-1], 3)
    assert (
        replace(
            config,
            data=made.data,
            epochs=made.epochs,
            **({"run": made.run} if len(given) > 1 else {}),
        )
        == made
    )
    said = presets.PRESETS[name].__doc__ or ""
    assert f"--preset {name}" in said and "%" in said
    if not made.data:
        with pytest.raises(UserError, match="is missing: mae .* --help"):
            cli.parse(type(made), verb, ["--preset", name])


def test_the_linear_probe(run: Path, photos: Path, tmp_path: Path) -> None:
    """Frozen encoder, class token, BatchNorm without parameters whose statistics are kept; 0 blocks mean the same."""
    out = finetune(Finetune(str(run), str(photos), out=str(tmp_path / "p"), train="0", **QUICK))
    config = read_config(out)
    assert config["config"]["train"] == "head" and config["config"]["optimizer"] == "sgd"
    assert config["model"]["pool"] == "cls" and config["model"]["batch_norm"]
    model = load_classifier(out)
    assert not list(model.bn.parameters()) and model.bn.running_var is not None
    assert not torch.equal(model.bn.running_var, torch.ones(128))
    lars = finetune(
        Finetune(
            str(run),
            str(photos),
            out=str(tmp_path / "l"),
            train="head",
            optimizer="lars",
            base_lr=9.0,
            **QUICK,
        )
    )
    assert not torch.equal(load_classifier(lars).head.weight, model.head.weight)


def test_channels_that_differ_are_refused_with_the_ways_out(run: Path, tmp_path: Path) -> None:
    import numpy as np

    generator = np.random.default_rng(0)
    labels = np.array(["a", "b"] * 10)
    for channels in (1, 5):
        pixels = generator.integers(0, 256, (20, 32, 32, channels), dtype=np.uint8)
        np.savez(tmp_path / f"{channels}.npz", images=pixels, labels=labels)
    grey = Finetune(
        str(run), str(tmp_path / "1.npz"), out=str(tmp_path / "out"), **{**QUICK, "epochs": 1}
    )
    with pytest.raises(
        UserError,
        match=r"takes 3 channels, .* has 1: --channels 3 converts .* --channels 1 adapts .* --from",
    ):
        finetune(grey)
    five = replace(grey, data=str(tmp_path / "5.npz"), out=str(tmp_path / "five"))
    with pytest.raises(
        UserError, match=r"takes 3 channels, .* has 5: --channels 5 adapts the run's patch weights"
    ):
        finetune(five)
    with pytest.raises(UserError, match="--channels 3: .* has 5, and only grey and colour convert"):
        finetune(replace(five, channels=3))
    for config, channels in ((grey, 3), (replace(grey, out=str(tmp_path / "one")), 1), (five, 5)):
        out = finetune(replace(config, channels=channels))
        assert load_classifier(out).encoder.channels == channels


def test_a_classifier_as_the_run_gives_its_encoder(run: Path, photos: Path, tmp_path: Path) -> None:
    first = finetune(
        Finetune(str(run), str(photos), out=str(tmp_path / "first"), **{**QUICK, "epochs": 1})
    )
    for pool in ("mean", "cls"):
        out = finetune(
            Finetune(
                str(first),
                str(photos),
                out=str(tmp_path / pool),
                pool=pool,
                **{**QUICK, "epochs": 1, "base_lr": 0.0, "min_lr": 0.0},
            )
        )
        ours, theirs = load_classifier(out), load_file(first / "model.safetensors")
        for name, value in ours.encoder.state_dict().items():
            if not name.startswith("norm."):
                assert torch.equal(value, theirs[f"encoder.{name}"]), name
        tokens = ours.encoder(torch.zeros(1, 3, 32, 32))
        assert pool == "mean" or tokens[0, 0].std(correction=0).item() == pytest.approx(
            1, abs=0.01
        )  # a norm is there


def test_from_scratch_with_the_architecture_of_a_run(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    out = finetune(
        Finetune(
            "none",
            str(photos),
            out=str(tmp_path / "s"),
            model=str(run),
            seed=5,
            **{**QUICK, "epochs": 1},
        )
    )
    ours, theirs = (read_config(folder)["model"]["encoder"] for folder in (out, run))
    names = ("image_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "channels")
    assert [ours[name] for name in names] == [theirs[name] for name in names]
    a, b = load_file(out / "model.safetensors"), load_file(run / "model.safetensors")
    assert not torch.allclose(
        a["encoder.blocks.0.mlp.fc1.weight"], b["encoder.blocks.0.mlp.fc1.weight"], atol=0.01
    )


STRONG = dict(
    mixup=0.8, cutmix=1.0, ema=0.999, drop_path=0.3, random_erasing=0.5, randaug_magnitude=9.0
)


def test_after_kills_a_classifier_is_the_same_to_the_bit(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    """With everything on that draws at random or remembers: real processes, real kills, other workers."""
    asked = {**STRONG, **QUICK, "epochs": 12, "save_minutes": 0.0}
    flags = [
        text
        for name, value in asked.items()
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]

    def command(out: Path, *more: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "torchmae",
            "finetune",
            str(run),
            str(photos),
            "--out",
            str(out),
            *flags,
            *more,
        ]

    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command(tmp_path / "whole"), env=env, check=True, capture_output=True)
    for sent in (signal.SIGKILL, signal.SIGTERM):
        child = subprocess.Popen(
            command(tmp_path / "killed"), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        before = len(list((tmp_path / "killed" / "state").glob("step-*")))
        end = time.monotonic() + 120
        while time.monotonic() < end and child.poll() is None:
            if len(list((tmp_path / "killed" / "state").glob("step-*"))) > before:
                break
            time.sleep(0.01)
        child.send_signal(sent)
        child.communicate(timeout=120)
    subprocess.run(
        command(tmp_path / "killed", "--workers", "1"), env=env, check=True, capture_output=True
    )
    for name in ("model.safetensors", "best.safetensors"):
        whole, killed = (load_file(tmp_path / run / name) for run in ("whole", "killed"))
        assert whole.keys() == killed.keys() and all(
            torch.equal(whole[key], killed[key]) for key in whole
        ), name
    last, again = (
        json.loads((tmp_path / run / "last.json").read_text()) for run in ("whole", "killed")
    )
    assert last == again


def test_the_averaged_weights_are_what_is_kept_and_measured(photos: Path, tmp_path: Path) -> None:
    config = Finetune("none", str(photos), out=str(tmp_path / "e"), ema=0.9, **SCRATCH, **QUICK)
    out = finetune(config)
    (state, *_) = sorted((out / "state").glob("step-*"), reverse=True)
    kept, moving = load_file(out / "model.safetensors"), load_file(state / "optimizer.safetensors")
    raw = {
        name.removeprefix("raw."): value
        for name, value in moving.items()
        if name.startswith("raw.")
    }
    assert raw and all(not torch.equal(kept[name], value) for name, value in raw.items())
    from torchmae.tasks.evaluate.config import Evaluate
    from torchmae.tasks.evaluate.run import run as evaluate

    val = tmp_path / "val"
    measured = json.loads((out / "results.json").read_text())["validation"]["last"]
    from torchmae.data.labels import labelled_sets

    held_out = labelled_sets(str(photos), None, config.val_fraction, None, 0).val
    for i in range(len(held_out)):
        source = photos / held_out.name(i)
        (val / source.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(source, val / source.parent.name / source.name)
    again = evaluate(Evaluate(str(out), str(val), device="cpu"))
    assert again["top1"] == measured["top1"] and again["calibration_error"] == pytest.approx(
        measured["calibration_error"]
    )


def test_compare_pairs_every_seed(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = compare.Compare(
        str(run),
        str(photos),
        out=str(tmp_path / "c"),
        labels_per_class=(2, 4),
        seeds=(0, 1),
        **{**QUICK, "epochs": 1},
    )
    out = compare.run(asked)
    rows = json.loads((out / "results.json").read_text())["compare"]
    assert [row["labels_per_class"] for row in rows] == [2, 4] and (
        out / "compare.png"
    ).stat().st_size > 10_000
    for row in rows:
        for arm, folder in (("pre-trained", "pre-trained"), ("from scratch", "from-scratch")):
            for seed, value in zip((0, 1), row[arm]):
                made = out / f"{folder}-{row['labels_per_class']}-labels-seed-{seed}"
                assert json.loads((made / "last.json").read_text())["top1"] == value
                settings = read_config(made)["config"]
                assert (settings["seed"], settings["labels_per_class"]) == (
                    seed,
                    row["labels_per_class"],
                )
        pair = [
            read_config(out / f"{arm}-2-labels-seed-1") for arm in ("pre-trained", "from-scratch")
        ]
        assert pair[0]["data"] == pair[1]["data"], "not the same images"
        assert pair[0]["config"]["epochs"] == pair[1]["config"]["epochs"]
        assert pair[0]["model"]["encoder"]["depth"] == pair[1]["model"]["encoder"]["depth"]
    assert "labels a class" in capsys.readouterr().out
    for wrong, message in (
        (replace(asked, seeds=(1,)), "at least two"),
        (replace(asked, run="none"), "needs a run"),
    ):
        with pytest.raises(UserError, match=message):
            compare.run(wrong)


def test_the_interval_of_paired_differences() -> None:
    """Against scipy's t distribution."""
    from scipy import stats

    for degrees in (1, 4, 9, 10, 11, 20, 100):
        assert intervals.t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=2e-3)
    ours, theirs = [0.9, 0.8, 0.85, 0.95], [0.5, 0.6, 0.55, 0.5]
    found = intervals.difference(ours, theirs)
    exact = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-3)


def test_partial_fine_tuning_draws_figure_9(run: Path, photos: Path, tmp_path: Path) -> None:
    asked = partial.Partial(
        str(run),
        str(photos),
        out=str(tmp_path / "p"),
        train=("0", "0.5", "2", "all"),
        **{**QUICK, "epochs": (1.0,)},
    )
    out = partial.run(asked)
    rows = json.loads((out / "results.json").read_text())["partial"]
    assert [row["train"] for row in rows] == ["0", "0.5", "2", "all"] and [
        row["blocks"] for row in rows
    ] == [
        0,
        0.5,
        2,
        6,
    ]
    assert (out / "partial.png").stat().st_size > 10_000
    for row in rows:
        made = out / f"train-{row['train']}-epochs-1"
        assert json.loads((made / "last.json").read_text())["top1"] == row["top1"]
    with pytest.raises(
        UserError, match="--train 7: all, head, 0.5 or a number of blocks from 0 to 6"
    ):
        partial.run(replace(asked, train=("0", "7")))


def test_several_lengths_are_searched_as_in_the_paper(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    asked = partial.Partial(
        str(run),
        str(photos),
        out=str(tmp_path / "p"),
        train=("1",),
        **{**QUICK, "epochs": (1.0, 2.0)},
    )
    (row,) = json.loads((partial.run(asked) / "results.json").read_text())["partial"]
    found = [
        json.loads((tmp_path / "p" / f"train-1-epochs-{e}" / "last.json").read_text())["top1"]
        for e in (1, 2)
    ]
    assert row["top1"] == max(found)


def test_a_classifier_learns(tmp_path: Path) -> None:
    """Not a smoke test: three textures are told apart on images that were held out."""
    photos = make_photos(tmp_path / "photos", 24)
    run = torchmae.pretrain(str(photos), out=str(tmp_path / "pre"), epochs=3, **SMALL)
    options = {**QUICK, "epochs": 40, "batch_size": 8, "randaug_magnitude": 0.0}
    out = finetune(Finetune(str(run), str(photos), out=str(tmp_path / "ft"), **options))
    last = json.loads((out / "last.json").read_text())
    assert last["count"] == 15 and last["top1"] >= 0.8
