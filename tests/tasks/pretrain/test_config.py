"""What is chosen when nothing is said: sensible for the data and the device."""

import pytest
import torch

from torchmae import options, runfolder
from torchmae.data.scan import Scan
from torchmae.errors import UserError
from torchmae.tasks.pretrain import config as settings
from torchmae.tasks.pretrain.config import Pretrain
from torchmae.train.distributed import World

CPU, GPU = World(0, 1, torch.device("cpu")), World(0, 1, torch.device("cuda"))


def found(images: int, height: int = 500, width: int = 375) -> Scan:
    return Scan(images, [], height, width, (0.5,) * 3, (0.2,) * 3, True)


@pytest.mark.parametrize("images", [1, 3, 20, 200, 1797, 9469, 50_000, 1_281_167])
@pytest.mark.parametrize("world", [CPU, GPU], ids=["cpu", "gpu"])
def test_defaults_fit_any_data_set(images: int, world: World) -> None:
    chosen = settings.resolve(Pretrain("x"), found(images), 3, world)
    assert chosen.batch_size is not None and 1 <= chosen.batch_size <= images
    assert chosen.epochs is not None and chosen.base_lr is not None
    assert 1e-4 < chosen.base_lr * chosen.batch_size / 256 < 3e-3
    assert all(
        getattr(chosen, name) is not None
        for name in ("model", "image_size", "patch_size", "channels", "precision", "workers")
    )
    assert chosen.warmup_epochs == pytest.approx(chosen.epochs / 20)


def test_a_laptop_with_200_images_gets_a_small_model_and_a_short_run() -> None:
    chosen = settings.resolve(Pretrain("x"), found(200), 3, CPU)
    assert (chosen.model, chosen.image_size, chosen.patch_size) == ("vit_micro", "224", 16)
    assert chosen.epochs * 200 <= 100_000 and chosen.batch_size <= 32


def test_more_data_on_a_gpu_gets_a_larger_model() -> None:
    models = [
        settings.resolve(Pretrain("x"), found(n), 3, GPU).model for n in (1_000, 100_000, 1_000_000)
    ]
    assert models == ["vit_tiny", "vit_small", "vit_base"]


def test_the_paper_s_learning_rate_from_vit_base_on() -> None:
    assert settings.base_lr(4096, 768) == settings.base_lr(256, 1024) == 1.5e-4
    assert settings.base_lr(4096, 192) == pytest.approx(1.5e-4)


@pytest.mark.parametrize(
    "size, patch", [(224, 16), (192, 16), (128, 16), (96, 8), (64, 8), (32, 4), (28, 4), (16, 2)]
)
def test_patch_sizes(size: int, patch: int) -> None:
    assert settings.patch_size((size, size)) == patch


def test_the_image_size_follows_the_data() -> None:
    sizes = [
        settings.resolve(Pretrain("x"), found(100, side, 2 * side), 3, CPU).image_size
        for side in (28, 33, 130, 2000, 5)
    ]
    assert sizes == ["28", "32", "128", "224", "8"]


def test_sizes_are_height_by_width() -> None:
    assert options.parse_size("192x256") == (192, 256) and options.parse_size(224) == (224, 224)
    for wrong in ("0", "12x", "x12", "a", "10x0", "-3", ""):
        with pytest.raises(UserError, match="192x256"):
            options.parse_size(wrong)


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


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UserError, match="--batch-size 64 is more than the 20 images"):
        settings.resolve(Pretrain("x", batch_size=64), found(20), 3, CPU)


def test_no_automatic_patch_makes_a_senseless_grid() -> None:
    assert settings.patch_size((512, 512)) == 16
    for size in ((97, 97), (31, 31), (94, 94)):
        with pytest.raises(UserError, match="use --image-size"):
            settings.patch_size(size)
