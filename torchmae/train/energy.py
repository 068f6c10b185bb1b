"""Energy that a GPU has used, as NVIDIA's management library (NVML) tells it."""

import ctypes
from contextlib import suppress

import torch

LIBRARY = "libnvidia-ml.so.1"  # comes with the driver


def energy_joules(device: torch.device) -> float | None:
    """Joules since the driver was loaded, to be subtracted; None where no device tells.

    GPUs tell from Volta on. What the rest of the machine uses is not in it.
    """
    if device.type != "cuda":
        return None
    with suppress(OSError, AttributeError):  # no driver, or an old one
        return counted(LIBRARY, str(torch.cuda.get_device_properties(device).uuid))
    return None


def counted(library: str, uuid: str) -> float | None:
    """The counter of the GPU with this UUID; None where NVML answers with an error."""
    nvml = ctypes.CDLL(library)
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    name = uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
    wrong = (
        nvml.nvmlInit_v2()
        or nvml.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle))
        or nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
    )
    return None if wrong else millijoules.value / 1000
