"""Which cache is chosen by itself, and that no cache changes a batch."""

import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.sources import BUILDERS, grey12, noise
from PIL import Image

from torchmae.data.augment import ColorJitter
from torchmae.data.cache import choose as module
from torchmae.data.cache.choose import (
    CacheFacts,
    Processes,
    amount,
    choose_cache,
    decide_cache,
    decoding_cost,
    keep_decoded,
)
from torchmae.data.config import DecodeOptions
from torchmae.data.labels import labelled_sets
from torchmae.data.loader import Batch, Batches
from torchmae.data.scan import scan
from torchmae.data.sources import open_source
from torchmae.data.sources.source import Subset
from torchmae.data.transforms import RandomResizedCropFlip
from torchmae.disk import cache_folder
from torchmae.errors import UserError
from torchmae.train.distributed import World

GB = 10**9
CPU = World(0, 1, torch.device("cpu"))
FACTS = CacheFacts(3.14, 0.1, 62_000_000, 18 * GB, True)
GPU = replace(FACTS, device_memory=5_000_000, free_device_memory=80 * GB)
CROP = RandomResizedCropFlip((16, 16), seed=3)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    "facts, name, reason",
    [
        (
            FACTS,
            "memory",
            "decoding takes 3.1 ms an image and 62 MB are needed, 18 GB are free",
        ),
        (
            replace(FACTS, memory=5 * GB),
            "none",
            "decoding takes 3.1 ms an image, but 5.0 GB are needed, 18 GB are free",
        ),
        (
            replace(FACTS, decode_ms=0.005, copy_ms=0.002),
            "none",
            "decoding takes 0.005 ms an image, little more than a copy",
        ),
        (
            replace(FACTS, shared=False),
            "none",
            "decoding takes 3.1 ms an image, but this system's workers cannot share memory",
        ),
        (
            replace(FACTS, free_memory=float("inf")),
            "none",
            "decoding takes 3.1 ms an image, but how much memory is free is not known",
        ),
        (GPU, "device", "small images, 5.0 MB are needed, 80 GB are free on the device"),
        (
            replace(GPU, free_device_memory=1e7),
            "memory",
            "decoding takes 3.1 ms an image and 62 MB are needed, 18 GB are free",
        ),
        (replace(GPU, decode_ms=0, shared=False), "device", "small images"),
    ],
)
def test_the_choice_and_its_reason(facts, name, reason):
    choice = choose_cache(facts)
    assert choice.name == name and choice.reason.startswith(reason)


def test_a_quarter_is_the_limit():
    assert choose_cache(replace(FACTS, memory=4 * GB, free_memory=16.0 * GB)).name == "memory"
    assert choose_cache(replace(FACTS, memory=4 * GB, free_memory=15.9 * GB)).name == "none"


def test_amounts():
    sizes = (0, 900, 12_000, 1_500_000, 62e6, 9.96e9, 1234e9)
    assert [amount(size) for size in sizes] == [
        *("0.0 kB", "0.9 kB", "12 kB", "1.5 MB", "62 MB", "10.0 GB", "1,234 GB")
    ]


def test_the_processes_of_a_training_are_what_a_cache_needs_to_know():
    assert isinstance(CPU, Processes)


@pytest.mark.parametrize("kind", ["array", "digits"])
def test_pixels_are_not_kept(kind, tmp_path):
    source = open_source(BUILDERS[kind](tmp_path / "set", 12))
    for some in (source, Subset(source, range(5))):
        assert decide_cache(Batches(some, CROP, 4), CPU, workers=2).name == "none"


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
def test_files_are_kept_in_memory(tmp_path, suffix):
    for i in range(4):
        # Large: the shape checks of the tests take a millisecond an image, whatever its size.
        Image.fromarray(noise(1200, 1500, 3)).save(tmp_path / f"{i}.{suffix}")
    (tmp_path / "2x.jpg").write_bytes(b"no image")
    source = open_source(tmp_path)
    decode, copy = decoding_cost(source)
    assert decode > module.COSTLY * copy > 0
    assert decide_cache(Batches(source, CROP, 4), CPU, 2).name == "memory"


def test_a_set_of_nothing_but_bad_files_is_not_kept(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"no image")
    source = open_source(tmp_path)
    assert decoding_cost(source) == (0, 0)
    assert decide_cache(Batches(source, CROP, 1), CPU, 0).name == "none"


@pytest.mark.parametrize("method, workers, name", [("spawn", 2, "none"), ("spawn", 0, "memory")])
def test_without_fork_memory_cannot_be_shared(tmp_path, monkeypatch, method, workers, name):
    monkeypatch.setattr(module, "decoding_cost", lambda source: (1.0, 0.1))
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: None)
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: [method])
    batches = Batches(open_source(BUILDERS["folder"](tmp_path / "set", 8)), CROP, 4)
    assert decide_cache(batches, CPU, workers).name == name


def test_each_process_of_a_machine_has_its_share_of_the_memory(tmp_path, monkeypatch):
    source = open_source(BUILDERS["folder"](tmp_path / "set", 8))
    need = module.layout.bytes_needed(scan(source).sizes, 3)
    monkeypatch.setattr(module, "decoding_cost", lambda source: (1.0, 0.1))
    monkeypatch.setattr(module, "free_memory", lambda: 8.0 * need)
    for size, name in ((2, "memory"), (3, "none")):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(size))
        assert decide_cache(Batches(source, CROP, 4), CPU, 0).name == name


# --- the batches


def same(a: Batch, b: Batch) -> bool:
    pairs = zip(a[:4], b[:4])
    return a.bad == b.bad and all(x is y or torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", ["none", "memory", "disk", "device"])
def test_a_labelled_set_with_bad_files_is_the_same_with_any_cache(photos, tmp_path, cache, workers):
    """One image is damaged after it was listed: picture, label and number stay together."""
    shutil.copytree(photos, tmp_path / "photos")
    data = labelled_sets(str(tmp_path / "photos"), None, 0.25, 4, 0)
    (tmp_path / "photos" / data.train.name(5)).write_bytes(b"no image")
    plain = Batches(data.train, CROP, 8, 1, targets=data.train_labels)
    kept = keep_decoded(plain, cache, "photos", CPU)
    for _ in range(2):  # first decoded, then from the cache
        for step, batch in enumerate(kept.loader(0, 5, workers)):
            assert same(batch, plain[step])
            assert batch.targets is not None and batch.targets.dtype == torch.int64
            assert torch.equal(batch.targets, data.train_labels[batch.sample])
    assert any(plain[step].bad for step in range(3))


@pytest.mark.parametrize("cache", ["memory", "disk", "device"])
def test_12_bit_images_are_kept_as_they_are_decoded(tmp_path, cache):
    spec = grey12(tmp_path / "grey")
    for options in (DecodeOptions(), DecodeOptions(channels=3, nodata=-1)):
        plain = Batches(open_source(spec, options), CROP, 8)
        kept = keep_decoded(plain, cache, str(spec), CPU)
        for step in (0, 1, 2, 0, 1, 2):
            assert same(kept[step], plain[step])
        assert plain[0].images.shape[1] == plain.source.channels and not plain[0].bad
        assert plain[0].images.dtype == torch.float32


def test_a_part_of_a_set_does_not_take_the_place_of_the_whole(tmp_path):
    spec = str(grey12(tmp_path / "grey"))
    source = open_source(spec)
    for part in (source, Subset(source, range(4)), Subset(source, range(5))):
        keep_decoded(Batches(part, CROP, 4), "disk", spec, CPU)
    folders = list(cache_folder("decoded").iterdir())
    assert len(folders) == 2  # of the whole, and of the last part
    keep_decoded(Batches(source, CROP, 4), "disk", spec, CPU)
    assert list(cache_folder("decoded").iterdir()) == folders


def test_on_the_device_go_labels_and_crops_only(tmp_path):
    source = open_source(BUILDERS["folder"](tmp_path / "set", 8))
    with pytest.raises(UserError, match="makes crops and flips only, not ColorJitter"):
        keep_decoded(Batches(source, ColorJitter(CROP, 0.4), 4), "device", "set", CPU)
    with pytest.raises(UserError, match="labels only"):
        keep_decoded(Batches(source, CROP, 4, targets=[{}] * 8), "device", "set", CPU)
