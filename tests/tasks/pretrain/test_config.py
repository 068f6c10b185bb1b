"""What is chosen when nothing is said: sensible for the data and the device, with a reason."""

from types import SimpleNamespace
from typing import Any

import pytest
from helpers.settings import flat, pretrain_config, resolve_pretrain

from torchmae import runfolder
from torchmae.errors import UserError
from torchmae.presets import PRESETS
from torchmae.settings.defaults import patch_side
from torchmae.settings.options import changeable
from torchmae.settings.parser import parse
from torchmae.tasks.pretrain.config import RULES, Pretrain


def chosen(
    device: str = "cpu", facts: dict[str, Any] | None = None, **options: Any
) -> SimpleNamespace:
    """All settings after resolving, flat."""
    config, _ = resolve_pretrain(pretrain_config("x", **options), device=device, **(facts or {}))
    return flat(config)


@pytest.mark.parametrize("images", [1, 3, 20, 200, 1797, 9469, 50_000, 1_281_167])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_defaults_fit_any_data_set(images: int, device: str) -> None:
    found = chosen(device, {"images": images})
    assert 1 <= found.batch_size <= images
    assert 1e-4 < found.base_lr * found.batch_size / 256 < 3e-3
    assert all(getattr(found, name) is not None for name in RULES)
    assert found.warmup_epochs == pytest.approx(found.epochs / 20)


def test_a_laptop_with_200_images_gets_a_small_model_and_a_short_run() -> None:
    found = chosen(facts={"images": 200})
    assert (found.model, found.image_size, found.patch_size) == ("vit_micro", "224", 16)
    assert found.epochs * 200 <= 100_000
    assert found.batch_size <= 32


def test_more_data_on_a_gpu_gets_a_larger_model() -> None:
    models = [chosen("cuda", {"images": n}).model for n in (1_000, 100_000, 1_000_000)]
    assert models == ["vit_tiny", "vit_small", "vit_base"]


def test_the_paper_s_learning_rate_from_vit_base_on() -> None:
    many = {"images": 100_000}
    assert chosen("cuda", many, model="vit_base", batch_size=4096).base_lr == 1.5e-4
    assert chosen("cuda", many, model="vit_large", batch_size=256).base_lr == 1.5e-4
    assert chosen("cuda", many, model="vit_tiny", batch_size=4096).base_lr == pytest.approx(1.5e-4)
    assert chosen("cuda", {**many, "embed_dim": 768}, batch_size=256).base_lr == 1.5e-4


def test_every_choice_has_a_reason_and_what_was_named_is_not_chosen() -> None:
    config, made = resolve_pretrain(pretrain_config("x", epochs=3, precision="fp32"))
    assert set(made) == set(RULES) - {"epochs", "precision"}
    assert all(choice.reason for choice in made.values())
    assert (config.optim.epochs, config.optim.precision) == (3, "fp32")


def test_minutes_decide_the_epochs_once_a_step_is_timed() -> None:
    """10 minutes at half a second a step of 32 images, 1,000 images an epoch: 1,200 steps."""
    timed = {"seconds_per_step": 0.5}
    found = chosen(facts=timed, minutes=10, batch_size=32)
    assert found.epochs == pytest.approx(1200 * 32 / 1000)
    assert found.warmup_epochs == pytest.approx(found.epochs / 20)
    assert found.minutes == 10
    with pytest.raises(UserError, match="--minutes decides the number of epochs"):
        pretrain_config("x", minutes=10, epochs=3).check()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epochs": 1e9}, r"--epochs 1e\+09: must be at most 100000"),
        ({"workers": 100_000}, "--workers 100000: must be at most 1024"),
        ({"clip_grad": 0.0}, "--clip-grad 0: a gradient norm of at least 1e-06"),
        ({"save_minutes": -1.0}, "--save-minutes -1: must not be negative"),
        ({"crop": "center"}, "unknown --crop 'center'; one of: random, fixed, none"),
        ({"crop": "none", "flip": True}, "--crop none mirrors nothing: leave --flip out"),
        ({"crop": "fixed", "crop_scale": (0.2, 1.0)}, "--crop-scale belongs to --crop random"),
        ({"color_jitter": 1.5}, "--color-jitter 1.5: must be at most 1"),
        ({"color_jitter": 0.4, "cache": "device"}, "no --color-jitter: use --cache memory"),
    ],
)
def test_absurd_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pretrain_config("x", **options).check()


@pytest.mark.parametrize(
    "asked, scale, flip",
    [
        ({}, (0.2, 1.0), True),
        ({"flip": False, "crop_scale": (0.5, 1.0)}, (0.5, 1.0), False),
        ({"crop": "fixed"}, None, True),
        ({"crop": "fixed", "flip": False}, None, False),
        ({"crop": "none"}, None, False),
        ({"crop": "none", "flip": False}, None, False),
    ],
)
def test_what_a_crop_brings_with_it(asked: dict[str, Any], scale: Any, flip: bool) -> None:
    config = pretrain_config("x", **asked)
    config.check()
    found = chosen(**asked)
    assert (found.crop_scale, found.flip) == (scale, flip)


def test_a_crop_takes_the_place_of_a_preset_s_scale() -> None:
    words = ["--preset", "demo", "--crop", "none"]
    parse(Pretrain, "pretrain", words, PRESETS["pretrain"]).check()


def test_what_may_change_when_a_run_is_resumed() -> None:
    free = changeable(Pretrain)
    assert {"device", "workers", "cache", "fsdp", "out", "log_every", "data", "plugin"} <= free
    assert not free & {
        "epochs",
        "precision",
        "seed",
        "dtype",
        "nodata",
        "scale",
        "channels",
        "mask_ratio",
        "flip",
    }


@pytest.mark.parametrize(
    "size, patch",
    [(224, 16), (192, 16), (128, 16), (96, 8), (64, 8), (32, 4), (28, 4), (16, 2)],
)
def test_patch_sizes(size: int, patch: int) -> None:
    assert patch_side((size, size)) == patch


def test_the_image_size_follows_the_data() -> None:
    sides = [{"height": side, "width": 2 * side} for side in (28, 33, 130, 2000, 5)]
    sizes = [chosen(facts=facts).image_size for facts in sides]
    assert sizes == ["28", "32", "128", "224", "8"]


@pytest.mark.parametrize(
    "data, name",
    [
        ("photos/", "photos"),
        ("/a/b/My Photos", "My-Photos"),
        ("digits", "digits"),
        ("torchvision:CIFAR10?root=/data", "CIFAR10"),
        ("hf:user/name", "name"),
        ("shards/train-{000..009}.tar", "train-000"),
        ("list.csv", "list"),
    ],
)
def test_the_run_folder_is_named_after_the_data(data: str, name: str) -> None:
    assert runfolder.name_of(data) == name


def test_the_warm_up_of_wsd_does_not_depend_on_the_length_unless_it_is_short() -> None:
    assert chosen(schedule="wsd", epochs=10).warmup_epochs == 2  # it has to end before the decay
    lengths = [chosen(schedule="wsd", epochs=epochs).warmup_epochs for epochs in (25, 50, 2000)]
    assert lengths == [100 / 20] * 3  # of the default: 100,000 crops of 1,000 images
    assert chosen(schedule="wsd").epochs == 100
    assert chosen(schedule="wsd", epochs=10, warmup_epochs=2).warmup_epochs == 2
    with pytest.raises(UserError, match="falls from epoch 4.8 on, but the warm-up takes 5 epochs"):
        chosen(schedule="wsd", epochs=6, warmup_epochs=5)
    with pytest.raises(UserError, match="unknown --schedule 'constant'; one of: cosine, wsd"):
        pretrain_config("x", schedule="constant").check()


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UserError, match="--batch-size 64 is more than the 20 images"):
        chosen(facts={"images": 20}, batch_size=64)


def test_no_automatic_patch_makes_a_senseless_grid() -> None:
    assert patch_side((512, 512)) == 16
    for size in ((97, 97), (31, 31), (94, 94)):
        with pytest.raises(UserError, match="use --image-size"):
            patch_side(size)
