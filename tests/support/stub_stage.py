"""A stage whose body is a line of a test, run as `python -m stage` in a folder with the repository's params.yaml."""

import os
import subprocess
import sys
from pathlib import Path

SRC = Path(__file__).parents[2] / "src"
STAGE = '''"""What this stage does."""
import errno
from sft.cli import InputError, echo
from sft.run_stage import run_source_stage, run_stage
def main() -> None:
    {body}
def one(source: str) -> None:
    echo("source", source)
{call}
'''


def call(tmp_path: Path, body: str = "pass", *arguments: str, call: str = "run_stage(main, __doc__)", **environment):
    """Run the stage; return its exit status and what it printed."""
    (tmp_path / "stage.py").write_text(STAGE.format(body=body, call=call))
    (tmp_path / "params.yaml").write_bytes((SRC.parent / "params.yaml").read_bytes())
    return subprocess.run(
        [sys.executable, "-m", "stage", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SRC), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
