"""The hardware of a machine, as lineage.json has it. Standard library only: the node check of a job runs it too."""

import contextlib
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Return the processor of this machine, by name the GPUs that CUDA_VISIBLE_DEVICES leaves, and their driver.

    As the driver lists the GPUs: torch lists one on a CPU once training has run there. Without GPUs the driver is null.
    """
    cpuinfo = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*: (.*)", cpuinfo.read_text(encoding="utf-8")) if cpuinfo.exists() else None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    only = [] if visible is None or visible.startswith("MIG-") else [f"--id={visible}"]
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", *only]
    lines = []
    if visible != "":
        with contextlib.suppress(subprocess.CalledProcessError, OSError):
            lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    gpus = [line.rpartition(", ") for line in lines]
    return {
        "machine": platform.machine(),
        "processor": match[1].strip() if match else platform.processor(),
        "gpus": [name for name, _, _ in gpus],
        "driver": gpus[0][2] if gpus else None,
    }
