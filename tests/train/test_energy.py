"""The energy counter of a GPU: how NVML is called, with a library that answers by its header."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from torchmae.train.energy import counted, energy_joules

ANSWERS = r"""
#include <string.h>
static int ready, handle;
int nvmlInit_v2(void) { ready = 1; return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
  if (!ready || strcmp(uuid, "GPU-12ab")) return 6;  /* NVML_ERROR_NOT_FOUND */
  *device = &handle;
  return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
  if (device != &handle) return 2;
  *millijoules = 5000000123456ULL;  /* more than 32 bits */
  return 0;
}
"""


def test_a_cpu_does_not_tell() -> None:
    assert energy_joules(torch.device("cpu")) is None


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler here")
def test_how_nvml_is_called(tmp_path: Path) -> None:
    (tmp_path / "nvml.c").write_text(ANSWERS)
    library = str(tmp_path / "nvml.so")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True)
    assert counted(library, "12ab") == counted(library, "GPU-12ab") == 5000000123.456
    assert counted(library, "another") is None
