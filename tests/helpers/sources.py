"""Small image sets of every kind of source."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.server import server
from torchmae.data.sources import packed
from torchmae.data.sources.source import Source
from torchmae.errors import UserError
from torchmae.settings.python_data import PythonData


def picture(colour: tuple[int, int, int], size: int = 6) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size + 1), colour).save(out, "PNG")
    return out.getvalue()


def png(value: int = 0) -> bytes:
    return picture((value, 20, 30))


def plant(root: Path, *names: str) -> Path:
    """Image files below `root`, in the given order; each has its own colour and size in bytes."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(len(name)) + b"\0" * len(name))
    root.mkdir(exist_ok=True)
    return root


def pack(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def grey12(folder: Path, count: int = 12) -> Path:
    """12-bit gray PNGs of several sizes (0 to 4095), in a folder for each of two classes."""
    for i in range(count):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        values = np.linspace(0, 4095, (20 + i) * 30).reshape(20 + i, 30).astype(np.uint16)
        Image.fromarray(np.roll(values, i)).save(folder / "ab"[i % 2] / f"{i}.png")
    return folder


def names(source: Source) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def outcome(opened: Callable[[], Source]) -> list[str] | str:
    """The names of a set, or the message that refuses it."""
    try:
        return names(opened())
    except UserError as error:
        return str(error)


def labels(source: Source) -> list[str | None]:
    return [source.label(i) for i in range(len(source))]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def saved_dataset(path: Path, count: int) -> Path:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "id": datasets.Value("int32"),
            "picture": datasets.Image(),
            "kind": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )
    rows = {
        "id": list(range(count)),
        "picture": [{"bytes": png(i), "path": None} for i in range(count)],
        "kind": [i % 2 for i in range(count)],
    }
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(path))
    return path


# One for each kind of `SOURCES`: (folder, number of images) to what `open_source` takes.
BUILDERS: dict[str, Callable[[Path, int], Path | str]] = {
    "folder": lambda at, n: plant(at, *(f"c{i % 2}/{i}.png" for i in range(n))),
    "glob": lambda at, n: f"{plant(at, *(f'c{i % 2}/{i}.png' for i in range(n)))}/**/*.png",
    "list": lambda at, n: write_list(plant(at, *(f"c/{i}.png" for i in range(n))), n),
    "tar": lambda at, n: pack(at / "s.tar", {f"c/{i}.png": png(i) for i in range(n)}),
    "packed": lambda at, n: pack_shards(at, {f"c/{i}.png": png(i) for i in range(n)}),
    "array": lambda at, n: write_array(at, n),
    "zarr": lambda at, n: write_zarr(at, n),
    "hdf5": lambda at, n: write_hdf5(at, n),
    "parquet": lambda at, n: write_parquet(at, n),
    "cloud": lambda at, n: server().url(BUILDERS["packed"](at, n)),
    "torchvision": lambda at, n: f"torchvision:FakeData?size={n}&image_size=3,20,24&num_classes=4",
    "hf": lambda at, n: f"hf:{saved_dataset(at, n)}",
    "digits": lambda at, n: "digits",
    "python": lambda at, n: PythonData.of((list(noise(n, 20, 24, 3)), list(range(n)))),
}


def pack_shards(at: Path, images: dict[str, bytes], each: int = 3) -> Path:
    """A packed set with `each` images a shard; labels are the images' folders."""
    at.mkdir(parents=True)
    done = []
    for number, first in enumerate(range(0, len(images), each)):
        shard = packed.Shard(at / packed.shard_name(number))
        for i, (name, data) in enumerate([*images.items()][first : first + each], first):
            shard.add(name, name.rpartition("/")[0].rpartition("/")[2], data, (7, 6), bytes(16), i)
        done.append(shard.finish())
    packed.write_index(at, done, {"settings": {}, "data": {}})
    return at


def write_list(at: Path, count: int) -> Path:
    (at / "list.txt").write_text("# pictures\n\n" + "".join(f"c/{i}.png\n" for i in range(count)))
    return at / "list.txt"


def write_array(at: Path, count: int) -> Path:
    at.mkdir()
    np.savez(at / "x.npz", images=noise(count, 20, 24, 3), labels=np.arange(count))
    return at / "x.npz"


def write_zarr(at: Path, count: int) -> Path:
    zarr = pytest.importorskip("zarr", reason="an extra")
    group = zarr.open_group(at / "x.zarr", mode="w")
    group.create_array("images", data=noise(count, 20, 24, 3), chunks=(3, 20, 24, 3))
    group.create_array("labels", data=np.arange(count))
    return at / "x.zarr"


def write_hdf5(at: Path, count: int) -> Path:
    h5py = pytest.importorskip("h5py", reason="an extra")
    at.mkdir()
    with h5py.File(at / "x.h5", "w") as file:
        images = noise(count, 20, 24, 3)
        file.create_dataset("images", data=images, chunks=(3, 20, 24, 3), compression="gzip")
        file["labels"] = np.arange(count)
    return at / "x.h5"


def write_parquet(at: Path, count: int) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="an extra")
    parquet = pytest.importorskip("pyarrow.parquet")
    at.mkdir()
    rows = {"image": [png(i) for i in range(count)], "label": [f"c{i % 2}" for i in range(count)]}
    parquet.write_table(pyarrow.table(rows), at / "x.parquet", row_group_size=3)
    return at / "x.parquet"
