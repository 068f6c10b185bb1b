"""Fine-tuning: what moves and how fast, mixing, defaults, mistakes before compute, resume."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.settings import finetune_config, flat, resolve_finetune
from helpers.small import make_photos
from PIL import Image

import torchmae
from torchmae.data.labels import labelled_sets
from torchmae.data.loader import Batch
from torchmae.errors import UserError
from torchmae.models.heads import Classifier, trainable
from torchmae.models.mixing import mix
from torchmae.models.vit import ViT
from torchmae.runfolder import read_config, read_results
from torchmae.settings.options import changed
from torchmae.tasks.finetune.config import Finetune, check
from torchmae.tasks.finetune.plan import train_config
from torchmae.tasks.finetune.run import run as finetune
from torchmae.tasks.finetune.task import ClassifyTask
from torchmae.train.config import TrainConfig
from torchmae.train.distributed import World
from torchmae.train.loop import evaluation_is_due
from torchmae.train.optim import param_groups_layer_decay
from torchmae.train.trainer import Trainer

CPU = World(0, 1, torch.device("cpu"))
QUICK = dict(epochs=2, batch_size=6, workers=0, device="cpu", precision="fp32")


def small_classifier(pool: str = "mean") -> Classifier:
    torch.manual_seed(0)
    return Classifier(ViT((8, 8), 4, 1, 16, 3, 2), ["a", "b"], pool)


def test_every_parameter_is_in_one_group_with_the_expected_scale_and_decay() -> None:
    """The table by hand for three blocks, layer decay 0.5 and weight decay 0.1: head 1, blocks 1/2,
    1/4, 1/8, below 1/16."""
    model = small_classifier()
    model.encoder.pos_embed.requires_grad_(True)
    table = {}
    for group in param_groups_layer_decay(model, model.encoder.layers(), 0.1, 0.5):
        for name in group["names"]:
            assert name not in table
            table[name] = (group["lr_scale"], group["weight_decay"])
    expected = {
        "encoder.cls_token": (1 / 16, 0),
        "encoder.pos_embed": (1 / 16, 0),
        "encoder.patch_embed.proj.weight": (1 / 16, 0.1),
        "encoder.patch_embed.proj.bias": (1 / 16, 0),
        "fc_norm.weight": (1, 0),
        "fc_norm.bias": (1, 0),
        "head.weight": (1, 0.1),
        "head.bias": (1, 0),
    }
    for i, scale in enumerate((1 / 8, 1 / 4, 1 / 2)):
        for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            expected[f"encoder.blocks.{i}.{part}.weight"] = (scale, 0.1)
            expected[f"encoder.blocks.{i}.{part}.bias"] = (scale, 0)
        for part in ("norm1", "norm2"):
            expected[f"encoder.blocks.{i}.{part}.weight"] = expected[
                f"encoder.blocks.{i}.{part}.bias"
            ] = (scale, 0)
    assert table == expected


def test_what_each_kind_of_training_moves() -> None:
    model = small_classifier("cls")
    everything = [name for name, _ in model.named_parameters()]
    behind = {"encoder.norm.weight", "encoder.norm.bias", "head.weight", "head.bias"}
    last = {n for n in everything if n.startswith("encoder.blocks.2.")}
    assert set(trainable(model, "all")) == set(everything)
    assert set(trainable(model, "head")) == {"head.weight", "head.bias"}
    assert set(trainable(model, "0")) == behind
    assert set(trainable(model, "1")) == behind | last
    assert set(trainable(model, "0.5")) == behind | {
        n for n in last if ".mlp." in n or ".norm2." in n
    }
    assert {n for n in everything if n.startswith("encoder.blocks.0.")} <= set(
        trainable(model, "3")
    )
    for wrong in ("4", "-1", "1.5", "heads", "nan"):
        with pytest.raises(UserError, match="number of blocks from 0 to 3"):
            trainable(model, wrong)


@pytest.mark.parametrize("train", ["head", "0.5", "2", "all"])
def test_frozen_means_unchanged_bit_for_bit(
    run: Path, photos: Path, tmp_path: Path, train: str
) -> None:
    from torchmae.models.weights import read_weights

    out = finetune(
        finetune_config(str(run), str(photos), out=str(tmp_path / "ft"), train=train, **QUICK)
    )
    before, after = read_weights(run), read_weights(out)
    config = json.loads((out / "config.json").read_text())
    moving = set(trainable(Classifier.build(config["model"]), train))
    for name, value in after.items():
        if name in before and name not in moving:
            assert torch.equal(value, before[name]), name
        elif name in before:
            assert not torch.equal(value, before[name]), name
    results = read_results(out, "finetune")[-1]["results"]
    assert results["best"]["top1"] >= results["last"]["top1"] >= 0 and results["last"]["count"] == 6


def test_parts_that_do_not_move_stay_in_eval_mode() -> None:
    model = small_classifier()
    model.encoder.set_drop_path(0.5)
    task = ClassifyTask(model, resolve_finetune(finetune_config("x", "y", train="1"))[0]).train()
    assert [block.training for block in model.encoder.blocks] == [
        False,
        False,
        True,
    ] and model.head.training
    head = ClassifyTask(
        small_classifier(), resolve_finetune(finetune_config("x", "y", train="head"))[0]
    ).train()
    assert (
        not any(module.training for module in head.model.encoder.modules())
        and head.model.head.training
    )
    assert task.eval().model.encoder.blocks[2].training is False


def test_mixing_is_a_function_of_the_step_and_keeps_the_shares_of_pixels_and_labels_alike() -> None:
    images = torch.stack([torch.zeros(1, 32, 32), torch.ones(1, 32, 32)])
    targets = torch.eye(2)
    kinds = set()
    for step in range(40):
        mixed, soft = mix(images, targets, 0.8, 1.0, 3, step)
        assert torch.equal(mixed, mix(images, targets, 0.8, 1.0, 3, step)[0])
        torch.testing.assert_close(soft.sum(1), torch.ones(2))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), soft[:, 1], atol=1e-5, rtol=0)
        kinds.add("cutmix" if set(mixed.unique().tolist()) <= {0.0, 1.0} else "mixup")
    assert kinds == {"mixup", "cutmix"}
    assert mix(images, targets, 0.0, 0.0, 3, 0)[0] is images


def resolved(config: Finetune, images: int) -> SimpleNamespace:
    return flat(resolve_finetune(config, images=images)[0])


def test_defaults_follow_the_number_of_labels_and_say_why() -> None:
    few, many = (resolved(finetune_config("run", "x"), n) for n in (100, 5000))
    assert few.epochs == 100 and many.epochs == 20 and few.mixup == 0 < many.mixup
    assert (few.layer_decay, few.weight_decay, few.image_size, few.beta2, few.ema) == (
        0.75,
        0.05,
        "32",
        0.999,
        0,
    )
    head = resolved(finetune_config("run", "x", train="head"), 100)
    assert (
        head.weight_decay,
        head.randaug_magnitude,
        head.random_erasing,
        head.mixup,
        head.label_smoothing,
    ) == (
        0,
        0,
        0,
        0,
        0,
    )
    assert (head.pool, head.optimizer, head.base_lr) == ("cls", "sgd", 1.0)
    assert (
        resolved(finetune_config("run", "x", train="head", batch_size=4096), 9000).optimizer
        == "lars"
    )
    scratch = resolved(finetune_config("none", "x"), 100)
    assert (scratch.weight_decay, scratch.beta2, scratch.ema, scratch.layer_decay) == (
        0.3,
        0.95,
        0.9999,
        1,
    )
    asked = finetune_config("run", "x", epochs=3, drop_path=0.0, randaug_magnitude=5)
    config, given = resolve_finetune(asked)
    assert not {"epochs", "drop_path", "randaug_magnitude"} & set(given) and all(
        choice.reason for choice in given.values()
    )
    kept = flat(config)
    assert (kept.epochs, kept.drop_path, kept.randaug_magnitude) == (3, 0, 5)
    with pytest.raises(UserError, match="--batch-size 1000 is more than the 18 labelled images"):
        resolved(finetune_config("run", "x", batch_size=1000), 18)
    for one in (few, many, head, scratch):
        assert not [n for n, value in vars(one).items() if value is None and n not in UNSET]


LEVEL = ("crop_scale", "flip", "randaug_magnitude", "random_erasing", "mixup", "cutmix")


def level_of(images: int, grey: bool = False, run: str = "run", **options: Any) -> dict[str, Any]:
    """What a level of --augment stands for on such images, and the level's name."""
    config, _ = resolve_finetune(finetune_config(run, "x", **options), images=images, grey=grey)
    return {name: vars(flat(config))[name] for name in ("augment", *LEVEL)}


def test_the_data_chooses_the_augmentation_and_flags_override_it() -> None:
    mild = dict(zip(("augment", *LEVEL), ("mild", (0.5, 1.0), True, 0, 0, 0, 0)))
    strong = dict(zip(("augment", *LEVEL), ("strong", (0.08, 1.0), True, 9, 0.25, 0.8, 1)))
    probe = dict(zip(("augment", *LEVEL), (None, (0.08, 1.0), True, 0, 0, 0, 0)))
    nothing = dict(zip(("augment", *LEVEL), ("none", (1.0, 1.0), False, 0, 0, 0, 0)))
    unmixed = {"mixup": 0, "cutmix": 0}
    assert level_of(999) == mild
    assert level_of(1000) == strong
    assert level_of(9000, grey=True) == mild | {"flip": False}
    assert level_of(9000, train="head") == probe
    assert level_of(9000, run="none") == strong | {"random_erasing": 0}
    assert level_of(9000, augment="none") == nothing
    assert level_of(100, augment="strong", grey=True) == strong | unmixed
    assert level_of(100, train="head", augment="mild") == mild
    asked = {"randaug_magnitude": 3.0, "flip": True, "crop_scale": (0.3, 1.0)}
    assert level_of(100, grey=True, **asked) == mild | asked
    _, chosen = resolve_finetune(finetune_config("run", "x"), images=100)
    assert "fewer than 1,000" in chosen["augment"].reason
    with pytest.raises(UserError, match="unknown --augment 'mid'. Did you mean mild"):
        check(finetune_config("run", "x", augment="mid"))


def test_grey_images_stored_in_colour_are_grey(run: Path, tmp_path: Path) -> None:
    for name, angle in (("a", 0), ("b", 90)):
        (tmp_path / "grey" / name).mkdir(parents=True)
        for i in range(4):
            picture = Image.linear_gradient("L").resize((32, 32)).rotate(angle + 7 * i)
            picture.convert("RGB").save(tmp_path / "grey" / name / f"{i}.png")
    out = torchmae.finetune(run, tmp_path / "grey", out=tmp_path / "out", **{**QUICK, "epochs": 1})
    config = read_config(out)["config"]
    assert (config["channels"], config["augment"], config["flip"]) == (3, "mild", False)


UNSET = {
    "augment",  # a probe has none
    "unlabelled",
    *("include", "exclude", "path_column", "label_column", "group_column"),
    *("tile", "overlap", "level", "empty", "cloud_cache"),
    "out",
    "val",
    "model",
    "labels_per_class",
    "patch_size",
    "position_resizing",
    *("channels", "nodata", "bands", "dtype"),
    "clip_grad",
    "micro_batch_size",
    "minutes",
    "cache",
    "plugin",
}


def test_splits_and_subsets_are_stratified_and_seeded(photos: Path) -> None:
    data = labelled_sets(str(photos), None, 0.25, 3, 0)
    assert (
        data.classes == ("across", "blob", "down") and len(data.train) == 9 and len(data.val) == 6
    )
    assert data.train_labels.bincount().tolist() == [
        3,
        3,
        3,
    ] and data.val_labels.bincount().tolist() == [2, 2, 2]
    names = [{some.name(i) for i in range(len(some))} for some in (data.train, data.val)]
    assert not names[0] & names[1]
    for i in range(len(data.train)):
        assert data.train.label(i) == data.classes[data.train_labels[i]]
    other = labelled_sets(str(photos), None, 0.25, 3, 1)
    assert {other.train.name(i) for i in range(9)} != names[0]


def test_another_resolution_resizes_the_positions(run: Path, photos: Path, tmp_path: Path) -> None:
    out = finetune(
        finetune_config(
            str(run),
            str(photos),
            out=str(tmp_path / "ft"),
            image_size="48x32",
            **{**QUICK, "epochs": 1},
        )
    )
    assert json.loads((out / "config.json").read_text())["model"]["encoder"]["image_size"] == [
        48,
        32,
    ]


def test_from_scratch_and_resume_is_finished(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = finetune_config(
        "none",
        str(photos),
        out=str(tmp_path / "s"),
        image_size=16,
        patch_size=8,
        **{**QUICK, "epochs": 1},
    )
    out = finetune(config)
    weights = (out / "model.safetensors").read_bytes()
    assert finetune(config) == out and (out / "model.safetensors").read_bytes() == weights
    with pytest.raises(UserError, match=r"smoothing was 0.1, is 0.2"):
        finetune(changed(config, label_smoothing=0.2))


def test_mistakes_come_before_compute(run: Path, photos: Path, tmp_path: Path) -> None:
    alone = make_photos(tmp_path / "alone", 1)
    uneven = make_photos(tmp_path / "uneven", 3)
    shutil.rmtree(uneven / "blob")
    (tmp_path / "val" / "other").mkdir(parents=True)
    shutil.copy(photos / "blob" / "0.jpg", tmp_path / "val" / "other" / "0.jpg")
    (tmp_path / "one" / "class").mkdir(parents=True)
    for i in range(3):
        shutil.copy(photos / "blob" / f"{i}.jpg", tmp_path / "one" / "class" / f"{i}.jpg")
    asked = finetune_config(str(run), str(photos), out=str(tmp_path / "out"))
    for config, message in [
        (changed(asked, data=str(alone)), "every class has only one image"),
        (
            changed(asked, val=str(tmp_path / "val")),
            "class 'other' is in the validation images, but not in the training",
        ),
        (changed(asked, data=str(photos / "blob")), "has no labels"),
        (changed(asked, data=str(tmp_path / "one")), "at least two classes, .* has 1"),
        (changed(asked, labels_per_class=100), "has only 6 images"),
        (changed(asked, run=str(tmp_path)), "is not a run folder"),
        (changed(asked, train="9"), "number of blocks from 0 to 6"),
        (changed(asked, pool="max"), "--pool max: mean, cls or attentive"),
        (changed(asked, label_smoothing=1.0), "--label-smoothing 1: must be below 1"),
        (changed(asked, epochs=float("nan")), "--epochs nan: must be a finite number"),
        (changed(asked, run="none", train="head"), "from scratch .* everything has to be trained"),
        (changed(asked, batch_size=1000), "--batch-size 1000 is more than the 18 labelled images"),
    ]:
        with pytest.raises(UserError, match=message):
            finetune(config)


@pytest.mark.parametrize("train", ["all", "2", "0.5"])
def test_stochastic_depth_reaches_what_is_trained(train: str) -> None:
    """Once it did nothing at all: the task had set its modules, which hold no parameters, to eval
    mode."""
    model, labels = small_classifier(), torch.arange(8) % 2
    torch.nn.init.normal_(model.head.weight)
    batch = Batch(
        torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8),
        labels,
        torch.zeros(8).long(),
        torch.arange(8),
    )
    losses = {}
    for rate in (0.0, 0.9):
        task = ClassifyTask(
            model, resolve_finetune(finetune_config("x", "y", train=train, drop_path=rate))[0]
        ).train()
        losses[rate] = task(batch)["loss"].item()
        assert task(batch)["loss"].item() == losses[rate], "drawn anew for the same batch"
        losses[f"eval {rate}"] = task.eval()(batch)["loss"].item()
    assert losses[0.9] != losses[0.0] == losses["eval 0.0"] == losses["eval 0.9"]
    later = batch._replace(epoch=batch.epoch + 1)
    assert task.train()(later)["loss"].item() != losses[0.9], "another epoch draws anew"


def test_the_plan_of_a_classifier_reaches_its_optimizer() -> None:
    """The table above, through plan and step, where layer decay was once lost."""
    config, _ = resolve_finetune(
        finetune_config("run", "x", weight_decay=0.1, layer_decay=0.5, epochs=5, base_lr=1e-3)
    )
    task = ClassifyTask(small_classifier(), config)
    step = Trainer(task, CPU, train_config(changed(config, precision="fp32"), 100))
    found = {
        name: (g["lr_scale"], g["weight_decay"])
        for g in step.optimizer.param_groups
        for name in g["names"]
    }
    assert found["head.weight"] == (1, 0.1) and found["encoder.blocks.0.mlp.fc1.weight"] == (
        1 / 8,
        0.1,
    )
    assert found["encoder.pos_embed"] == (1 / 16, 0) and found["fc_norm.bias"] == (1, 0)


def test_validation_comes_after_every_epoch_also_where_an_epoch_is_no_whole_number_of_steps() -> (
    None
):
    config, _ = resolve_finetune(finetune_config("run", "x", epochs=4, batch_size=16), images=40)
    plan = train_config(config, 40)
    assert plan.steps == 10 and plan.evaluate_steps == pytest.approx(2.5 * 1)
    assert [done for done in range(1, 11) if evaluation_is_due(done, plan)] == [3, 5, 8, 10]


def without(run: Path, *names: str) -> None:
    for name in names:
        (run / name).unlink()


def test_a_kill_before_the_last_validation_is_made_good(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    config = finetune_config(str(run), str(photos), out=str(tmp_path / "k"), **QUICK)
    out = finetune(config)
    whole = {name: (out / name).read_text() for name in ("last.json", "results.json")}
    old = json.loads(whole["last.json"])
    (out / "last.json").write_text(json.dumps({**old, "step": 1, "top1": 0.0}))
    without(out, "results.json")
    finetune(config)
    assert {name: (out / name).read_text() for name in whole} == whole
    without(out, "last.json")
    finetune(config)
    assert (out / "last.json").read_text() == whole["last.json"]


def test_what_an_earlier_start_measured_does_not_count(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    config = finetune_config(str(run), str(photos), out=str(tmp_path / "s"), **QUICK)
    out = finetune(config)
    shutil.rmtree(out / "state")
    without(out, "model.safetensors")  # as a kill before the first checkpoint leaves it
    (out / "best.json").write_text(
        json.dumps({**json.loads((out / "best.json").read_text()), "top1": 2.0, "step": 77})
    )
    finetune(changed(config, base_lr=1e-5))
    assert json.loads((out / "best.json").read_text())["step"] != 77


def test_other_labels_are_another_run(run: Path, photos: Path, tmp_path: Path) -> None:
    rows = [f"{path},{path.parent.name}" for path in sorted(photos.rglob("*.jpg"))]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["path,label", *rows]))
    config = finetune_config(
        str(run), str(table), out=str(tmp_path / "csv"), **{**QUICK, "epochs": 1}
    )
    finetune(config)
    swap = {"across": "down", "down": "across", "blob": "blob"}
    table.write_text(
        "\n".join(["path,label", *(f"{r.split(',')[0]},{swap[r.split(',')[1]]}" for r in rows)])
    )
    with pytest.raises(UserError, match="is another run"):
        finetune(config)


def test_a_probe_s_trial_does_not_count_among_its_statistics() -> None:
    model = Classifier(ViT((8, 8), 4, 1, 16, 3, 2), ["a", "b"], "cls", batch_norm=True)
    task = ClassifyTask(model, resolve_finetune(finetune_config("x", "y", train="head"))[0])
    step = Trainer(
        task.train(), CPU, TrainConfig(9, 0, 1e-3, 0.0, (0.9, 0.999), None, "fp32", optimizer="sgd")
    )
    batch = Batch(
        torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8),
        torch.zeros(8).long(),
        torch.zeros(8).long(),
        torch.arange(8),
    )
    step(batch, 1e-3)
    assert model.bn.num_batches_tracked == 1


def test_settings_that_could_not_arrive_are_refused(run: Path, photos: Path) -> None:
    asked = finetune_config(str(run), str(photos))
    for config, message in [
        (changed(asked, model="vit_huge"), "--model vit_huge is for training from scratch"),
        (changed(asked, patch_size=7), "--patch-size 7 is for training from scratch"),
        (
            changed(asked, run="none", model=str(run), patch_size=16),
            "--patch-size 16: that of .* is 8",
        ),
        (changed(asked, train="head", batch_size=1), "more than one image at a time"),
        (changed(asked, train="head", micro_batch_size=4), "sees the whole batch"),
        (
            changed(asked, mixup=0.8, batch_size=12, micro_batch_size=3),
            "must be even and divide the batch",
        ),
        (changed(asked, val=str(photos)), "is the data that is trained on"),
        (changed(asked, run=str(photos), data=str(run)), "is not a run folder"),
    ]:
        with pytest.raises(UserError, match=message):
            finetune(config)


def test_a_finished_run_is_lengthened_where_the_schedule_allows_it(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    """With a learning rate that stays at its peak, two epochs and one more are three, bit for
    bit."""
    constant = dict(base_lr=0.5, batch_size=8, min_lr=0.5 * 8 / 256, warmup_epochs=0.0)
    options = {**QUICK, **constant}
    whole = finetune(
        finetune_config(run, photos, out=str(tmp_path / "whole"), **{**options, "epochs": 3})
    )
    config = finetune_config(run, photos, out=str(tmp_path / "longer"), **options)
    finetune(config)
    longer = finetune(changed(config, epochs=3))
    weights = [(out / "model.safetensors").read_bytes() for out in (whole, longer)]
    assert weights[0] == weights[1]
    assert json.loads((longer / "config.json").read_text())["config"]["epochs"] == 3
    cosine = finetune_config(run, photos, out=str(tmp_path / "cosine"), **QUICK)
    finetune(cosine)
    with pytest.raises(UserError, match="is finished .* for a longer run"):
        finetune(changed(cosine, epochs=3))
