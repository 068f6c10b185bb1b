"""Batches made on the device are those of the loader, bit for bit; weights are those of torch."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from torchmae.data.augment import ColorJitter
from torchmae.data.cache import device as module
from torchmae.data.cache.device import DeviceLoader, Filter, bytes_needed, resampling, rounded
from torchmae.data.config import DecodeOptions
from torchmae.data.loader import Batch, Batches
from torchmae.data.sources import open_source
from torchmae.data.transforms import CenterCropResize, FixedCropFlip, RandomResizedCropFlip
from torchmae.errors import RunError, UserError

CPU = torch.device("cpu")
PATHS = (
    [False, True] if not torch.cuda.is_available() else [False, True, None]
)  # image by image, together, on a GPU


def plant(
    root: Path, count: int, bad: tuple[int, ...] = (), sides: tuple[int, int] = (9, 70)
) -> Path:
    """JPEG and PNG files, grey and in colour, of several shapes; those named lose their end."""
    root.mkdir(exist_ok=True)
    rng = np.random.default_rng(3)
    for i in range(count):
        height, width = rng.integers(*sides, 2)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        path = root / f"{i:03d}.{'jpg' if i % 2 else 'png'}"
        Image.fromarray(pixels[..., 0] if i % 5 == 0 else pixels).save(path)
        if i in bad:
            path.write_bytes(path.read_bytes()[:-60])
    return root


def array(root: Path, count: int, height: int, width: int, channels: int) -> Path:
    pixels = np.random.default_rng(0).integers(
        0, 256, (count, height, width, channels), dtype=np.uint8
    )
    np.save(root / "set.npy", pixels)
    return root / "set.npy"


def made(batches: Batches, together: bool | None) -> DeviceLoader:
    resident = DeviceLoader(batches, CPU if together is not None else torch.device("cuda"))
    if together is not None:
        resident.together = together
    return resident


def same(a: Batch, b: Batch) -> bool:
    a = a.to(CPU)
    alike = all(
        torch.equal(x, y) and x.dtype == y.dtype and x.stride() == y.stride()
        for x, y in zip((a.images, *a[2:4]), (b.images, *b[2:4]))
    )
    return alike and a.bad == b.bad and a.step == b.step


def assert_equal(batches: Batches, together: bool | None, start: int, stop: int) -> None:
    found = list(made(batches, together).loader(start, stop, workers=2, pin_memory=True))
    assert len(found) == stop - start
    assert all(same(batch, batches[start + i]) for i, batch in enumerate(found))


# --- batches


@pytest.mark.parametrize("together", PATHS)
@pytest.mark.parametrize("size", [(32, 32), (16, 16), (48, 48), (28, 40), (32, 20), (1, 1)])
def test_digits_are_those_of_the_loader(size, together):
    batches = Batches(open_source("digits?part=test"), RandomResizedCropFlip(size, seed=2), 50)
    assert_equal(batches, together, 0, 15)  # two epochs, and steps that straddle them


@pytest.mark.parametrize("together", PATHS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(24, 24), (96, 80), (12, 40)])
def test_files_of_any_size_are_those_of_the_loader(tmp_path, size, channels, together):
    batches = Batches(
        open_source(plant(tmp_path / "set", 23), DecodeOptions(channels=channels)),
        RandomResizedCropFlip(size, seed=1),
        10,
    )
    assert_equal(batches, together, 0, 14)


@pytest.mark.parametrize("together", PATHS)
@pytest.mark.parametrize("shape", [(32, 32, 3), (40, 31, 2), (33, 47, 4), (21, 20, 5)])
def test_arrays_of_any_number_of_channels_are_those_of_the_loader(tmp_path, shape, together):
    batches = Batches(
        open_source(array(tmp_path, 30, *shape)),
        RandomResizedCropFlip((32, 32)),
        16,
    )
    assert_equal(batches, together, 0, 8)


@pytest.mark.parametrize("together", PATHS)
def test_windows_much_larger_than_the_output_and_thin_ones(tmp_path, together):
    for name, sides in (("large", (300, 700)), ("thin", (1, 6))):
        batches = Batches(
            open_source(plant(tmp_path / name, 4, sides=sides)), RandomResizedCropFlip((32, 24)), 4
        )
        assert_equal(batches, together, 0, 3)


def test_batches_beyond_the_working_memory_are_cut_in_parts(tmp_path, monkeypatch):
    batches = Batches(open_source(plant(tmp_path / "set", 11)), RandomResizedCropFlip((16, 16)), 11)
    for at_once in (1, 70 * 70 * 3 * 4):
        monkeypatch.setattr(module, "AT_ONCE", at_once)
        assert_equal(batches, True, 0, 2)


@pytest.mark.parametrize("together", PATHS)
def test_each_process_has_its_share(tmp_path, together):
    root = plant(tmp_path / "set", 11, bad=(4,))
    for rank in (0, 1):
        batches = Batches(
            open_source(root), RandomResizedCropFlip((16, 16), seed=7), 8, seed=7, rank=rank, size=2
        )
        resident = made(batches, together)
        assert resident.batch_size == 8 and resident.source is batches.source
        assert all(same(resident[step], batches[step]) for step in range(4))


@pytest.mark.parametrize("together", PATHS)
def test_settings_of_crops_are_kept(tmp_path, together):
    source = open_source(plant(tmp_path / "set", 9))
    for augment in (
        RandomResizedCropFlip((16, 16), flip=False),
        RandomResizedCropFlip((16, 16), scale=(1.0, 1.0)),
        RandomResizedCropFlip((16, 16), 9, (0.01, 0.1)),
    ):
        assert_equal(Batches(source, augment, 9), together, 2**33, 2**33 + 2)


# --- bad files


@pytest.mark.parametrize("together", PATHS)
def test_bad_files_are_named_and_replaced_as_the_loader_does(tmp_path, together):
    root = plant(tmp_path / "set", 11, bad=(2, 3, 7, 8))
    batches = Batches(open_source(root), RandomResizedCropFlip((16, 16)), 8)
    assert_equal(batches, together, 0, 7)
    assert_equal(batches, together, 3, 6)  # from the middle, where nothing was drawn before
    assert any(batches[step].bad for step in range(3))


def test_the_files_are_read_once(tmp_path):
    root = plant(tmp_path / "set", 6, bad=(2,))
    batches = Batches(open_source(root), RandomResizedCropFlip((16, 16)), 6)
    expected = [batches[step] for step in range(3)]
    resident = made(batches, True)
    for path in root.iterdir():
        path.unlink()
    assert all(same(resident[step], batch) for step, batch in enumerate(expected))


def test_one_good_file_among_many_bad_ones_is_found(tmp_path):
    batches = Batches(
        open_source(plant(tmp_path / "set", 8, bad=tuple(range(1, 8)))),
        RandomResizedCropFlip((16, 16)),
        8,
    )
    assert_equal(batches, True, 0, 2)


def test_a_set_of_nothing_but_bad_files_ends_the_run(tmp_path):
    batches = Batches(
        open_source(plant(tmp_path / "set", 3, bad=(0, 1, 2))), RandomResizedCropFlip((16, 16)), 2
    )
    with pytest.raises(RunError, match=r"none of the 3 files can be read; the last: 00\d"):
        next(made(batches, True).loader(0, 1, 0))


@pytest.mark.parametrize("together", PATHS)
@pytest.mark.parametrize("crop", [FixedCropFlip((16, 24), seed=3), CenterCropResize((24, 16))])
def test_crops_of_one_size_are_those_of_the_loader(tmp_path, crop, together):
    batches = Batches(open_source(plant(tmp_path / "set", 9)), crop, 4)
    assert_equal(batches, together, 0, 4)


def test_other_transforms_are_refused(tmp_path):
    jitter = ColorJitter(CenterCropResize((16, 16)), 0.4)
    batches = Batches(open_source(plant(tmp_path / "set", 2)), jitter, 2)
    with pytest.raises(UserError, match="not ColorJitter: use --cache memory$"):
        DeviceLoader(batches, CPU)


# --- resampling


def interpolated(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W, C] to [C, h, w], as `resized_crop` does."""
    pixels = torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0)
    return F.interpolate(pixels, size=size, mode="bicubic", antialias=True)[0].numpy()


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 400), st.integers(1, 260), st.sampled_from([1, 3, 4, 5]), st.integers(0, 2**32)
)
def test_weights_are_those_of_torch(length, out, channels, seed):
    first, weights = resampling(length, out)
    matrix = np.zeros((out, length + weights.shape[1]))
    np.put_along_axis(matrix, first[:, None] + np.arange(weights.shape[1]), weights, axis=1)
    assert (matrix[:, length:] == 0).all()
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (48, length, channels), dtype=np.uint8)
    image[:16] = rng.integers(0, 2, (16, length, channels)) * 255  # sums beyond 0..255 too
    ours = rounded(
        torch.from_numpy(image).double().permute(2, 0, 1) @ torch.from_numpy(matrix[:, :length]).mT
    ).numpy()
    assert (ours == interpolated(image, (48, out))).all()
    assert (
        ours.transpose(0, 2, 1) == interpolated(image.transpose(1, 0, 2).copy(), (out, 48))
    ).all()


def test_sums_of_weights_are_exact_in_float64():
    for length in (1, 2, 31, 32, 500, 4000):
        _, weights = resampling(length, 32)
        steps = weights * 2**22
        assert (steps == np.trunc(steps)).all() and np.abs(steps).sum(1).max() * 255 < 2**53
        assert (weights.astype(np.float32) == weights).all()


def test_an_unchanged_length_is_the_identity():
    for side in (1, 2, 7, 32, 224):
        lengths, flips = torch.tensor([side, side]), torch.tensor([0, 1])
        plain, mirrored = Filter(side, side, CPU)(lengths, side, flips)
        assert torch.equal(plain, torch.eye(side).double()) and torch.equal(mirrored, plain.flip(0))


def test_what_is_needed_is_what_is_taken(tmp_path):
    batches = Batches(open_source(plant(tmp_path / "set", 9)), RandomResizedCropFlip((24, 40)), 4)
    resident = made(batches, True)
    held = [
        resident.decoded.pixels,
        *(x for one in resident.filters for x in (one.first, one.weights)),
    ]
    sizes = resident.decoded.sizes
    assert bytes_needed(sizes, 3, (24, 40)) == sum(x.nbytes for x in held) < bytes_needed(sizes, 3)
    assert bytes_needed(sizes.astype(np.int32), 3, (24, 40)) == bytes_needed(sizes, 3, (24, 40))
