"""slurm/node_check.sh without Slurm and GPUs: which GPUs are in use. test_jobs.py runs it on a real Slurm."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.project import ROOT

NVIDIA_SMI = """#!/bin/bash
if [[ $1 == --list-gpus ]]; then echo GPU 0; echo GPU 1; else printf '%s' "$PROCESSES"; fi
"""
MPS = "41, nvidia-cuda-mps-server, 28 MiB\n"


@pytest.mark.parametrize(
    ("processes", "gpus", "printed"),
    [
        ("", "2", "GPUs: 2, idle"),
        (MPS, "2", "GPUs: 2, idle"),
        (MPS + "77, python, 900 MiB\n", "2", "GPUs in use: 77, python, 900 MiB;"),
        ("", "4", "2 GPUs, expected 4"),
    ],
)
def test_gpus_must_be_there_and_idle_but_for_the_server_of_mps(
    tmp_path: Path, processes: str, gpus: str, printed: str
) -> None:
    (tmp_path / "run/code").mkdir(parents=True)
    (tmp_path / "run/logs").mkdir()
    (tmp_path / "nvidia-smi").write_text(NVIDIA_SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PROCESSES": processes, "SFT_GPUS_PER_NODE": gpus}
    variables |= {"SFT_RUN": str(tmp_path / "run"), "SFT_CODE": str(tmp_path / "run/code"), "SFT_MIN_FREE_GB": "0"}
    variables |= {"SFT_PYTHON": "true", "SLURM_NNODES": "1"}
    script = ["bash", str(ROOT / "slurm/node_check.sh")]
    done = subprocess.run(script, env=variables, capture_output=True, text=True, timeout=60)
    assert printed in done.stdout, done.stderr
    assert (done.returncode == 0) == printed.endswith("idle")
