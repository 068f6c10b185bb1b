"""DICOM files by pydicom: the values that are stored, rescaled as the file says. No other tag is
kept or shown."""

import io
from typing import Any

import numpy as np

from torchmae.data.formats.raster import BadImage, Raster, in_megapixels, known_kind
from torchmae.errors import library

# What decoding needs of a header; nothing else is read of it.
TAGS = (
    "Rows Columns SamplesPerPixel NumberOfFrames BitsAllocated BitsStored PixelRepresentation "
    "PhotometricInterpretation PixelPaddingValue RescaleSlope RescaleIntercept "
    "ModalityLUTSequence"
).split()


def is_dicom(data: bytes) -> bool:
    """Whether bytes are a DICOM file."""
    return data[128:132] == b"DICM"


def header_of(data: bytes) -> Any:
    """The header as pydicom has it, without pixels."""
    pydicom = library("pydicom", "dicom")
    try:
        header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=TAGS)
        if "Rows" not in header or "Columns" not in header:
            raise BadImage("a DICOM without pixels")
        return header
    except BadImage:
        raise
    except Exception as error:  # hostile bytes can raise anything
        raise BadImage(f"damaged DICOM ({type(error).__name__})") from error  # without values


def count_frames(data: bytes) -> int:
    """How many frames a file has."""
    return max(1, int(getattr(header_of(data), "NumberOfFrames", None) or 1))


def read_dicom(data: bytes, frame: int, max_megapixels: float) -> Raster:
    """One frame: gray values after rescale slope and intercept, dark for low ones (those of
    MONOCHROME1 are turned round); color as RGB. Padding is no-data.

    Raises:
        BadImage: whatever is wrong with it.
        UserError: pydicom is missing.
    """
    header = header_of(data)
    in_megapixels(int(header.Rows), int(header.Columns), max_megapixels)
    pydicom = library("pydicom", "dicom")
    pixels = pydicom.pixels
    try:
        whole = pydicom.dcmread(io.BytesIO(data))
        if not any(name in whole for name in ("PixelData", "FloatPixelData")):
            raise BadImage("a DICOM without pixels")
        values = pixels.pixel_array(whole, index=frame)
        if str(header.PhotometricInterpretation) == "PALETTE COLOR":
            values = pixels.apply_color_lut(values, whole)
        if values.ndim == 3:
            return Raster(known_kind(values))
        padding = whole.get("PixelPaddingValue")
        missing = None if padding is None else values == int(padding)
        rescaled = rescale(values, header, pixels.apply_modality_lut)[..., None]
        if missing is not None and missing.any():
            rescaled = rescaled.astype(np.float32)
            rescaled[missing] = np.nan
        return Raster(rescaled)
    except (BadImage, MemoryError):
        raise
    except Exception as error:
        raise BadImage(
            "damaged DICOM, or packed in a way that pydicom needs another package for (pylibjpeg, "
            f"python-gdcm): {type(error).__name__}"
        ) from error


def rescale(values: np.ndarray, header: Any, lookup: Any) -> np.ndarray:
    """Gray values in the unit of the file, such as Hounsfield units: in 8 or 16 bits where its
    header says that all fit, else float32."""
    if "ModalityLUTSequence" in header:
        return known_kind(lookup(values, header))
    slope = float(getattr(header, "RescaleSlope", None) or 1)
    intercept = float(getattr(header, "RescaleIntercept", None) or 0)
    whole = slope == 1 and intercept.is_integer() and values.dtype.kind in "ui"
    signed = int(getattr(header, "PixelRepresentation", 0))
    bits = int(getattr(header, "BitsStored", 16))
    low = (-(1 << (bits - 1)) if signed else 0) * slope + intercept
    high = ((1 << (bits - signed)) - 1) * slope + intercept
    moved = values.astype(np.float64) * slope + intercept
    if str(header.PhotometricInterpretation) == "MONOCHROME1":
        moved = low + high - moved
    for kind in (np.uint8, np.int16, np.uint16):
        bounds = np.iinfo(kind)
        if whole and bounds.min <= min(low, high) and max(low, high) <= bounds.max:
            return moved.astype(kind)
    return moved.astype(np.float32)
