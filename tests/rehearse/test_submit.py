"""submit: what cannot be imported where a job is submitted."""

import subprocess
import sys

import pytest

from tests.support.project import ROOT


@pytest.mark.parametrize(("module", "status"), [("json", 0), ("safetensors", 1)])
def test_a_stage_that_submits_cannot_read_a_model(module: str, status: int):
    program = f"from sft.rehearse.submit import *; sys.meta_path.insert(0, NoModelReaders()); import {module}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT / "src", capture_output=True, text=True)
    assert (done.returncode, "the submitting process imports safetensors" in done.stderr) == (status, status == 1)
