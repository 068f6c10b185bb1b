"""Milliseconds to decode an image of each format, beside the library that reads it: the best of
several, alternating. Needs the extras tiff, dicom, nifti, zarr, hdf5 and parquet.

    python bench/formats.py
"""

import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import imagecodecs
import nibabel
import numpy as np
import pyarrow
import pyarrow.parquet
import pydicom
import tifffile
import zarr

from torchmae.data.decode import decode
from torchmae.data.sources import open_source

SIDE, TIMES = 512, 15


def tiff(values: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, values, photometric="minisblack", planarconfig="contig", **options)
    return out.getvalue()


def dicom(values: np.ndarray) -> bytes:
    data, meta = pydicom.Dataset(), pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    data.file_meta, (data.Rows, data.Columns) = meta, values.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.PixelData = values.tobytes()
    out = io.BytesIO()
    data.save_as(out, enforce_file_format=True)
    return out.getvalue()


def npy(values: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, values)
    return out.getvalue()


def theirs_tiff(data: bytes) -> np.ndarray:
    return tifffile.imread(io.BytesIO(data))


def theirs_dicom(data: bytes) -> np.ndarray:
    read = pydicom.dcmread(io.BytesIO(data))
    return pydicom.pixels.apply_modality_lut(read.pixel_array, read)


def best(function: Callable[[Any], object], data: Any) -> float:
    began = time.perf_counter()
    function(data)
    return 1000 * (time.perf_counter() - began)


IMAGES = 16  # of a container


def containers(folder: Path, images: np.ndarray) -> None:
    """Milliseconds to read an image of a file of several, all in their order; chunks of 4."""
    chunks = (4, *images.shape[1:])
    zarr.create_array(folder / "x.zarr", data=images, chunks=chunks)
    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset("x", data=images, chunks=chunks, compression="gzip")
    rows = {"image": [npy(image) for image in images]}
    pyarrow.parquet.write_table(pyarrow.table(rows), folder / "x.parquet", row_group_size=4)

    def by_chunks(array: Any) -> None:
        for first in range(0, IMAGES, 4):
            np.asarray(array[first : first + 4])

    cases = {
        "x.zarr": lambda: by_chunks(zarr.open(folder / "x.zarr", mode="r")),
        "x.h5": lambda: by_chunks(h5py.File(folder / "x.h5")["x"]),
        "x.parquet": lambda: pyarrow.parquet.read_table(
            folder / "x.parquet", use_threads=False
        ).to_pylist(),
    }
    for name, theirs in cases.items():

        def ours(path: Path) -> None:
            source = open_source(path)
            for i in range(IMAGES):
                source.read(i)

        pairs = [(best(ours, folder / name), best(lambda run: run(), theirs)) for _ in range(TIMES)]
        a, b = (min(some) / IMAGES for some in zip(*pairs))
        size = images.nbytes / IMAGES / 1e6
        print(f"{name:28} {size:5.1f} MB  torchmae {a:6.1f}  library {b:6.1f}")


def main() -> None:
    draw = np.random.default_rng(0)
    smooth = draw.normal(0, 20, (SIDE, SIDE, 5)).cumsum(0).cumsum(1)
    deep = (2000 + 1500 * np.tanh(smooth / 5000)).astype(np.uint16)
    volume = nibabel.Nifti1Image(deep[:, :, :1].astype(np.int16), np.eye(4)).to_bytes()
    color = np.ascontiguousarray(deep[..., :3])
    tiled = {"tile": (128, 128), "compression": "zlib"}
    cases = {
        "TIFF, 5 bands of 16 bits": (tiff(deep), theirs_tiff),
        "the same, tiled, deflate": (tiff(deep, **tiled), theirs_tiff),
        "TIFF, 5 bands of float32": (tiff(deep.astype(np.float32)), theirs_tiff),
        "PNG, 16-bit color": (imagecodecs.png_encode(color), imagecodecs.png_decode),
        "JPEG XL, 16-bit color": (
            imagecodecs.jpegxl_encode(color, lossless=True),
            imagecodecs.jpegxl_decode,
        ),
        "DICOM, 12 bits": (dicom(np.ascontiguousarray(deep[..., 0])), theirs_dicom),
        "NIfTI, int16, one slice": (
            volume,
            lambda data: np.asanyarray(nibabel.Nifti1Image.from_bytes(data).dataobj),
        ),
        ".npy, 5 bands of float32": (
            npy(deep.astype(np.float32)),
            lambda data: np.load(io.BytesIO(data)),
        ),
    }
    for name, (data, other) in cases.items():
        pairs = [(best(decode, data), best(other, data)) for _ in range(TIMES)]
        ours, theirs = (min(some) for some in zip(*pairs))
        print(f"{name:28} {len(data) / 1e6:5.1f} MB  torchmae {ours:6.1f}  library {theirs:6.1f}")
    with tempfile.TemporaryDirectory() as folder:
        containers(Path(folder), np.stack([np.roll(deep, i, axis=1) for i in range(IMAGES)]))


if __name__ == "__main__":
    main()
