"""The hardware of a machine, as lineage.json has it. Standard library only: the node check of a job runs it too."""

import platform
import re
import subprocess
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Return the processor of this machine, its GPUs by name, and their driver (null: none).

    As the driver lists the GPUs: torch lists one on a CPU once training has run there.
    """
    cpuinfo = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*: (.*)", cpuinfo.read_text(encoding="utf-8")) if cpuinfo.exists() else None
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    except (subprocess.CalledProcessError, FileNotFoundError):
        lines = []
    gpus = [line.rpartition(", ") for line in lines]
    return {
        "machine": platform.machine(),
        "processor": match[1].strip() if match else platform.processor(),
        "gpus": [name for name, _, _ in gpus],
        "driver": gpus[0][2] if gpus else None,
    }
