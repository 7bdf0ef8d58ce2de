"""submit: what cannot be imported where a job is submitted."""

import subprocess
import sys
from pathlib import Path

import pytest

from sft.rehearse import proofs
from tests.support.project import ROOT, run

# Checks the profile of the 30B model as `make train CLUSTER=` does, on this machine, and prints the most bytes of the
# process and of its child.
CHECK_OF_NANO = """
import resource
from pathlib import Path
from sft.cli import InputError
from sft.params.check import read
from sft.training.launch import Run, check_in_child

if __name__ == "__main__":
    base = Path("profiles/models/NVIDIA-Nemotron-3-Nano-30B-A3B-Base-BF16").absolute()
    params = read(Path("profiles/nemotron3-nano.yaml")).training
    try:
        check_in_child(Run(Path("runs/none"), base, Path("start"), Path("packed")), params, 8, True)
    except InputError as error:
        assert "GB free" in str(error)  # this machine's disk
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        print(resource.getrusage(who).ru_maxrss * 1024)
"""


@pytest.mark.parametrize(("module", "status"), [("json", 0), ("safetensors", 1)])
def test_a_stage_that_submits_cannot_read_a_model(module: str, status: int):
    program = f"from sft.rehearse.submit import *; sys.meta_path.insert(0, NoModelReaders()); import {module}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT / "src", capture_output=True, text=True)
    assert (done.returncode, "the submitting process imports safetensors" in done.stderr) == (status, status == 1)


@pytest.mark.layouts
def test_submitting_the_30b_model_takes_no_memory_for_it(tmp_path: Path):
    """126 GB of weights: a model in memory would end it."""
    program = tmp_path / "check.py"  # a file, because it starts a process
    program.write_text(CHECK_OF_NANO)
    shown = run(ROOT, sys.executable, str(program), PYTHONPATH=str(ROOT / "src"))
    peaks = [int(line) for line in shown.splitlines() if line.isdecimal()]
    assert len(peaks) == 2
    for peak in peaks:
        proofs.submitted(peak)
