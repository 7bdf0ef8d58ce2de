"""What a program prints with --json."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.project import ROOT


def printed_json(folder: Path, module: str, *arguments: str, message: str = "") -> Any:
    """Run a program with --json in a folder; return the document, None if it prints nothing on stdout.

    `message`: what a program that fails must say on stderr, also if it prints a document. Numbers that JSON does not
    have, such as NaN, fail the test.
    """
    command = [sys.executable, "-m", module, *arguments, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == bool(message), done.stderr
    assert message in done.stderr

    def refuse(name: str) -> None:
        raise AssertionError(f"{module}: {name}")

    return json.loads(done.stdout, parse_constant=refuse) if done.stdout else None
