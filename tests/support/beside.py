"""Packages beside .venv, for the tests that need them."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def install_beside(pins: str, folder: Path) -> Path:
    """Install requirements/<pins> into a folder and return it. Skips the test if that fails, except in CI."""
    command = [ROOT / "requirements/setup_beside.sh", ROOT / "requirements" / pins, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and not os.environ.get("CI"):
        pytest.skip(f"{pins} cannot be installed: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return folder
