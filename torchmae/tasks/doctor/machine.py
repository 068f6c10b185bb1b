"""`mae doctor` without a run: versions, device, memory, disk."""

import os
import re
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch

from torchmae.tasks.doctor.line import NOTE, OK, WRONG, Line, judged
from torchmae.train.distributed import available_cores, fast_precision

PACKAGES = ("torch", "numpy", "pillow", "simplejpeg", "safetensors", "matplotlib")
# Versions with a bug that torchmae meets: "package version" to what it does.
BROKEN: dict[str, str] = {}
LEAST_MB_PER_S = 30.0  # of the disk: below, a checkpoint of a ViT-B takes a minute
LEAST_MEMORY = 2e9  # bytes that are free
WRITTEN = 64_000_000  # bytes, to measure the disk


def machine(device: torch.device, folder: Path) -> Iterator[Line]:
    """The lines about the machine; the disk is that of `folder`."""
    yield versions()
    yield arithmetic(device)
    yield half_precision(device)
    cores = available_cores()
    of = os.cpu_count() or cores
    about = f"{cores} of {of} for this process"
    yield judged("cores", cores > 0, about, "allow this process some (taskset, cgroups)")
    yield memory()
    yield disk(folder)


def numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version."""
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3])


def versions() -> Line:
    """Packages older than torchmae needs, or known to be broken."""
    found = {name: version(name) for name in PACKAGES}
    wrong = [f"{n} {v} {BROKEN[f'{n} {v}']}" for n, v in found.items() if f"{n} {v}" in BROKEN]
    try:
        needed = requires("torchmae") or []
    except PackageNotFoundError:  # a checkout on PYTHONPATH
        needed = []
    for text in needed:
        match = re.match(r"([\w-]+)>=([\d.]+)$", text)
        if match and match[1] in found and numbers(found[match[1]]) < numbers(match[2]):
            wrong.append(f"{match[1]} {found[match[1]]} is older than {match[2]}")
    about = ", ".join(f"{name} {number}" for name, number in found.items())
    return judged("versions", not wrong, "; ".join(wrong) or about, "install another (pip install)")


@torch.no_grad()
def product_error(device: torch.device, dtype: torch.dtype) -> float:
    """The largest error of a matrix product, relative to the largest entry, against float64."""
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = one.double() @ other.double()
    made = (one.to(device, dtype) @ other.to(device, dtype)).cpu().double()
    return float((made - exact).abs().max() / exact.abs().max())


def arithmetic(device: torch.device) -> Line:
    """Whether the device computes rightly."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    error = product_error(device, torch.float32)
    # TF32 has 10 bits; a plain float32 product is 1000 times as exact
    about = f"{name}, error of a matrix product {error:.1e}"
    return judged("device", error < 5e-3, about, "the device computes wrongly: use another")


def half_precision(device: torch.device) -> Line:
    """Whether bf16 works, and whether it is fast."""
    error = product_error(device, torch.bfloat16)
    fast = fast_precision(device) == "bf16"
    about = f"{'fast' if fast else 'slow here, fp32 is the default'}, error {error:.1e}"
    return judged("bf16", error < 3e-2, about, "train with --precision fp32")


def memory() -> Line:
    """What is free, where the system tells."""
    try:
        text = Path("/proc/meminfo").read_text()
        free = int(re.findall(r"MemAvailable: +(\d+) kB", text)[0]) * 1024
    except (OSError, IndexError):
        return Line("memory", NOTE, "not known on this system")
    remedy = "close other programs, or use a smaller --batch-size"
    return judged("memory", free > LEAST_MEMORY, f"{free / 1e9:.1f} GB free", remedy)


def disk(folder: Path) -> Line:
    """How fast a file is on the disk."""
    path = folder / ".mae-doctor.partial"
    began = time.monotonic()
    try:
        with path.open("wb") as file:
            file.write(bytes(WRITTEN))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return Line("disk", WRONG, f"{folder} cannot be written ({error.strerror}): change there")
    finally:
        path.unlink(missing_ok=True)
    speed = WRITTEN / 1e6 / max(1e-3, time.monotonic() - began)
    about = f"{speed:,.0f} MB/s at {folder.resolve()}"
    if speed < LEAST_MB_PER_S:
        return Line("disk", NOTE, f"{about}: slow, so save less often (--save-minutes)")
    return Line("disk", OK, about)
