"""The paper's recipes in numbers, and that each says what to expect."""

import pytest

from torchmae import cli
from torchmae.presets import PRESETS
from torchmae.settings.defaults import Facts
from torchmae.settings.options import build, flatten
from torchmae.tasks.finetune.config import Finetune, resolve
from torchmae.tasks.finetune.plan import train_config
from torchmae.train.config import TrainConfig
from torchmae.verbs import VERBS, load

IMAGES = 1_281_167
ALL = [(verb, name) for verb, recipes in PRESETS.items() for name in recipes]


def plan_of(name: str) -> TrainConfig:
    """What the loop is told for a recipe of mae finetune on ImageNet-1K."""
    run = "none" if "scratch" in name else "runs/x"
    values = {"run": run, "data": "imagenet", "precision": "fp32", "workers": 0}
    decode = {"max_megapixels": 100.0, "dtype": "uint8", "channels": 3}
    config = build(Finetune, {**values, **decode, **PRESETS["finetune"][name]()})
    return train_config(resolve(config, Facts(IMAGES, 400, 500, 3, val_images=50_000))[0], IMAGES)


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
        plan, recipe = plan_of(name), PRESETS["finetune"][name]()
        assert plan.lr == pytest.approx(lr), name
        assert (plan.layer_decay, plan.weight_decay) == (layers, decay), name
        assert (recipe["epochs"], recipe["warmup_epochs"]) == (epochs, warmup), name
        assert (recipe["drop_path"], recipe["random_erasing"]) == (drop_path, random_erasing), name
        assert (recipe["mixup"], recipe["cutmix"], recipe["label_smoothing"]) == (0.8, 1.0, 0.1)
        assert recipe["randaug_magnitude"] == 9
        assert recipe["position_resizing"] == "reference"
        assert plan.steps == round(epochs * IMAGES / recipe["batch_size"])
        assert plan.ema == (0.9999 if "scratch" in name else None)
        assert plan.betas == ((0.9, 0.95) if "scratch" in name else (0.9, 0.999))
    probe = PRESETS["finetune"]["probe_base"]()
    assert plan_of("probe_base").lr == 6.4
    assert (probe["optimizer"], probe["train"], probe["epochs"]) == ("lars", "head", 90)
    assert probe["weight_decay"] == 0
    assert probe["clamp_crops"] and "clamp_crops" not in PRESETS["finetune"]["finetune_base"]()
    assert PRESETS["finetune"]["probe_large"]()["epochs"] == 50


def test_the_sets_of_table_6_have_imagenet_s_recipe_and_their_numbers() -> None:
    numbers = {
        "finetune_inat2017": (70.5, 75.7, 79.3, 83.4),
        "finetune_inat2018": (75.4, 80.1, 83.0, 86.8),
        "finetune_inat2019": (80.5, 83.4, 85.7, 88.3),
        "finetune_places205": (63.9, 65.8, 65.9, 66.8),
        "finetune_places365": (57.9, 59.4, 59.8, 60.3),
    }
    for name, row in numbers.items():
        recipe = PRESETS["finetune"][name]
        assert recipe() == PRESETS["finetune"]["finetune_base_repo"]()
        assert [f"{number} %" in " ".join((recipe.__doc__ or "").split()) for number in row] == [
            True
        ] * 4, name
        assert "not published" in " ".join((recipe.__doc__ or "").split())


@pytest.mark.parametrize("verb,name", ALL)
def test_every_recipe_parses_and_says_what_to_expect(verb: str, name: str) -> None:
    recipe = PRESETS[verb][name]
    places = ["photos"] if verb == "pretrain" else ["none" if "scratch" in name else "x", "photos"]
    words = [*places, "--preset", name, "--epochs", "3"]
    values = flatten(cli.parse(load(VERBS[verb].config), verb, words, PRESETS[verb]))
    assert (values["data"], values["epochs"]) == ("photos", 3)
    for key, value in recipe().items():
        if key not in ("epochs", "data", "run"):
            assert str(values[key]) == str(value) or values[key] == value, key
    assert f"--preset {name}" in (recipe.__doc__ or "")
    assert "%" in (recipe.__doc__ or "") or " AP" in (recipe.__doc__ or "")


def test_detectron2_s_numbers_of_vitdet() -> None:
    """Learning rate, decays, length of its configurations; 184,375 steps are 100 epochs there."""
    from torchmae.tasks.dense.detect.config import Detect, ResolvedDetect, check

    rows = {
        "vitdet_base": (0.7, 0.1, 100),
        "vitdet_large": (0.8, 0.4, 100),
        "vitdet_huge": (0.9, 0.5, 75),
    }
    for name, (layers, drop_path, epochs) in rows.items():
        recipe = PRESETS["detect"][name]()
        assert (recipe["layer_decay"], recipe["drop_path"], recipe["epochs"]) == (
            layers,
            drop_path,
            epochs,
        )
        assert recipe["base_lr"] * recipe["batch_size"] / 256 == pytest.approx(1e-4)
        steps = round(epochs * 118_287 / recipe["batch_size"])
        assert steps == pytest.approx(184_375 * epochs / 100, rel=0.01)
        check(build(Detect, {"run": "runs/x", "data": "coco", **recipe}))
        assert set(recipe) <= set(flatten(build(Detect, {"run": "x", "data": "y"})))
    assert issubclass(ResolvedDetect, Detect)
