"""DICOM files that pydicom writes: values equal to its own, and no tag anywhere else."""

import io
from pathlib import Path

import numpy as np
import pytest

import torchmae
from torchmae.data.config import DecodeOptions
from torchmae.data.decode import BadImage, decode
from torchmae.data.loader import read_pixels
from torchmae.data.scan import scan_and_report
from torchmae.data.sources import open_source

pydicom = pytest.importorskip("pydicom", reason="an extra")
SECRET = "SECRET^NAME"


def dicom(pixels: np.ndarray, photometric: str = "MONOCHROME2", **tags) -> bytes:
    """A file of gray frames [N, H, W] or [H, W], or of color [H, W, 3]."""
    color = photometric == "RGB"
    data, meta = pydicom.Dataset(), pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    data.file_meta, data.PatientName, data.PatientID = meta, SECRET, "4711"
    data.Rows, data.Columns = pixels.shape[:2] if color else pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 3 if color else 1, photometric
    data.BitsAllocated, data.PixelRepresentation = 8 * pixels.dtype.itemsize, 0
    data.BitsStored = 12 if data.BitsAllocated == 16 else 8
    data.HighBit = data.BitsStored - 1
    if color:
        data.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        data.NumberOfFrames = len(pixels)
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = pixels.tobytes()
    out = io.BytesIO()
    data.save_as(out, enforce_file_format=True)
    return out.getvalue()


def drawn(*shape: int, most: int = 4096, kind: type = np.uint16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, most, shape).astype(kind)


SCAN = drawn(20, 24)


def test_values_as_pydicom_has_them():
    for tags, kind in (
        ({}, "int16"),
        ({"RescaleSlope": 1, "RescaleIntercept": -1024}, "int16"),
        ({"RescaleSlope": 0.5, "RescaleIntercept": 7}, "float32"),
    ):
        data = dicom(SCAN, **tags)
        theirs = pydicom.pixels.apply_modality_lut(SCAN, pydicom.dcmread(io.BytesIO(data)))
        made = decode(data)
        assert made.dtype.name == kind and np.array_equal(made[..., 0], theirs)


def test_low_values_are_dark_in_both_kinds_of_gray():
    made = decode(dicom(SCAN, "MONOCHROME1", RescaleIntercept=-10, RescaleSlope=1))
    assert np.array_equal(made[..., 0], 4095 - 10 - SCAN.astype(int))


def test_color_and_padding():
    color = drawn(20, 24, 3, most=256, kind=np.uint8)
    assert np.array_equal(decode(dicom(color, "RGB")), color)
    padded = decode(dicom(SCAN, PixelPaddingValue=int(SCAN[0, 0])))[..., 0]
    assert np.array_equal(np.isnan(padded), SCAN[0, 0] == SCAN)


def test_frames_are_images_of_their_own(tmp_path: Path):
    frames = drawn(4, 20, 24)
    (tmp_path / "a.dcm").write_bytes(dicom(frames))
    (tmp_path / "b.dcm").write_bytes(dicom(SCAN))
    source = open_source(tmp_path)
    assert [source.name(i) for i in range(5)] == [*(f"a.dcm[{k}]" for k in range(4)), "b.dcm"]
    for i, frame in enumerate([*frames, SCAN]):
        assert np.array_equal(read_pixels(source, i)[..., 0], frame)
    assert source.group(0) == source.group(3) == "a.dcm"  # no split divides it


def test_bad_ones_are_named_without_any_tag(tmp_path: Path):
    whole, out = dicom(SCAN), tmp_path / "run"
    without = pydicom.dcmread(io.BytesIO(whole))
    del without.PixelData
    stripped = io.BytesIO()
    without.save_as(stripped, enforce_file_format=True)
    bad = {"cut": whole[:700], "none": stripped.getvalue(), "head": whole[:200]}
    (tmp_path / "set").mkdir()
    out.mkdir()
    (tmp_path / "set" / "good.dcm").write_bytes(whole)
    for name, data in bad.items():
        (tmp_path / "set" / f"{name}.dcm").write_bytes(data)
        with pytest.raises(BadImage, match="damaged DICOM|a DICOM without pixels") as caught:
            decode(data)
        assert "\n" not in str(caught.value)
    with pytest.raises(BadImage, match="more than the limit"):
        decode(whole, DecodeOptions(max_megapixels=1e-4))
    (tmp_path / "set" / "other.dcm").write_bytes(b"no DICOM at all")
    found = scan_and_report(open_source(tmp_path / "set"), out)
    assert len(found.bad) == 4 and np.allclose(found.mean, SCAN.mean())
    for file in out.rglob("*"):
        assert SECRET.encode() not in file.read_bytes() and b"4711" not in file.read_bytes()


def test_no_tag_of_a_patient_is_in_a_run_folder_or_in_features(tmp_path: Path):
    """Of all files of a whole pre-training, and of what later verbs write."""
    tags = dict(
        PatientName=SECRET,
        PatientID="ID-4711-X",
        PatientBirthDate="19070203",
        InstitutionName="SECRET CLINIC",
        AccessionNumber="ACC-0815-Y",
        StudyDescription="SECRET STUDY",
        StudyInstanceUID="1.2.826.0.1.3680043.8.498.4711",
    )
    (tmp_path / "set").mkdir()
    for i in range(4):
        (tmp_path / "set" / f"{i}.dcm").write_bytes(dicom(np.roll(SCAN, i, 0), **tags))
    (tmp_path / "set" / "cut.dcm").write_bytes(dicom(SCAN, **tags)[:800])
    run = torchmae.pretrain(
        tmp_path / "set",
        out=tmp_path / "made" / "run",
        **dict(model="vit_micro", image_size=16, patch_size=8, epochs=1, batch_size=2),
        **dict(device="cpu", workers=0, compile=False, cache="disk", max_bad_percent=50),
    )
    torchmae.embed(run, tmp_path / "set", out=tmp_path / "made" / "features.csv", device="cpu")
    files = [path for path in (tmp_path / "made").rglob("*") if path.is_file()]
    assert {"config.json", "log.jsonl", "report.html", "features.csv"} <= {p.name for p in files}
    for path in files:
        content = path.read_bytes()
        assert not [value for value in tags.values() if value.encode() in content], path
