"""Milliseconds to decode an image of each format, beside the library that reads it: the best of
several, alternating. Needs the extras tiff, dicom and nifti.

    python bench/formats.py
"""

import io
import time
from collections.abc import Callable

import imagecodecs
import nibabel
import numpy as np
import pydicom
import tifffile

from torchmae.data.decode import decode

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


def best(function: Callable[[bytes], object], data: bytes) -> float:
    began = time.perf_counter()
    function(data)
    return 1000 * (time.perf_counter() - began)


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


if __name__ == "__main__":
    main()
