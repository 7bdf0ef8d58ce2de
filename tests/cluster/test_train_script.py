"""slurm/train.sbatch without Slurm: how the attempt ends, whatever the sync to MLflow does. Its programs are stubs.

tests/cluster/test_jobs.py runs the script on a real Slurm.
"""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {
    "scontrol": """[[ $2 == job ]] || { echo n1; exit; }
echo "JobState=${STATE:-RUNNING} PreemptTime=None" """,
    "srun": """ps -o comm= -p $PPID >>"$SFT_RUN/parents"
while [[ $1 == --* ]]; do shift; done
SLURMD_NODENAME=n1 exec "$@" """,
    "fake-python": """echo "$*" >>"$SFT_RUN/python"; exit "${PYTHON_STATUS:-0}" """,
}
Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose second attempt was submitted."""
    folder = tmp_path / "runs/0123456789abcdef"
    (folder / "code/src").mkdir(parents=True)
    (folder / "code/slurm").symlink_to(ROOT / "slurm")
    (folder / "code/job_setup.sh").touch()
    attempts = [{"attempt": 1, "kind": "attempt"}, {"attempt": 1, "kind": "end"}, {"attempt": 2, "kind": "attempt"}]
    (folder / "journal.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in attempts))
    return folder


@pytest.fixture
def script(tmp_path: Path, run: Path) -> Script:
    """Runs the script as job 7 does, with a command instead of a training."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    variables = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        **{"SFT_RUN": str(run), "SFT_CODE": str(run / "code"), "SFT_ROOT": str(tmp_path)},
        **{"SFT_PYTHON": str(programs / "fake-python"), "SFT_SAVE_BEFORE_SECONDS": "9", "SFT_REQUEUES": "3"},
        **{"SFT_IMAGE": "", "SFT_MOUNTS": "", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"},
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
    }

    def call(command: str = "true", **more: str) -> subprocess.CompletedProcess[str]:
        line = ["bash", str(ROOT / "slurm/train.sbatch"), "bash", "-c", command]
        return subprocess.run(line, env=variables | more, capture_output=True, text=True, timeout=60)

    return call


def last_end(run: Path) -> tuple[int, str]:
    """Return attempt and status of the last entry of the journal."""
    entry = json.loads((run / "journal.jsonl").read_text().splitlines()[-1])
    assert entry["kind"] == "end"
    assert entry["time"] > 1.6e12
    return entry["attempt"], entry["status"]


def test_a_complete_job_ends_its_attempt_and_syncs_it_within_minutes(script: Script, run: Path) -> None:
    done = script()
    assert done.returncode == 0, done.stdout + done.stderr
    assert last_end(run) == (2, "FINISHED")
    assert (run / "python").read_text() == f"-m sft.tracking.cli sync --run {run}\n"
    assert (run / "parents").read_text().split()[-1] == "timeout"


@pytest.mark.parametrize("is_lost", [False, True])
def test_neither_a_failed_sync_nor_a_journal_that_cannot_be_written_fails_a_complete_job(
    script: Script, run: Path, is_lost: bool
) -> None:
    if is_lost:
        (run / "journal.jsonl").unlink()
        (run / "journal.jsonl").mkdir()
    done = script(PYTHON_STATUS="1")
    assert (done.returncode, (run / "complete").read_text()) == (0, f"{run.name}\n")
    assert "MLflow is not synced" in done.stdout


@pytest.mark.parametrize(
    ("setup", "variables", "status"),
    [
        ("", {"SLURM_RESTART_COUNT": "4"}, 1),
        ("exit 5", {}, 5),
    ],
)
def test_a_job_that_stops_before_its_checks_ends_its_attempt(
    script: Script, run: Path, setup: str, variables: dict[str, str], status: int
) -> None:
    (run / "code/job_setup.sh").write_text(setup)
    assert script(**variables).returncode == status
    assert last_end(run) == (2, "FAILED")
    assert (run / "python").exists()


def test_two_attempts_without_a_new_checkpoint_end_the_attempt(script: Script, run: Path) -> None:
    for restart in ("0", "1"):
        assert script("exit 1", SLURM_RESTART_COUNT=restart).returncode == 1
    done = script(SLURM_RESTART_COUNT="2")
    assert done.returncode == 1
    assert "without a new checkpoint (newest: none)" in done.stdout
    assert last_end(run) == (2, "FAILED")


def test_a_cancelled_job_ends_its_attempt_without_a_sync(script: Script, run: Path) -> None:
    assert script("exit 1", STATE="CANCELLED").returncode == 1
    assert last_end(run) == (2, "KILLED")
    assert not (run / "python").exists()


def test_what_an_earlier_job_of_the_same_number_left_counts_for_nothing(script: Script, run: Path) -> None:
    """A new cluster counts its jobs from 1."""
    logs = run / "logs/7-0"
    logs.mkdir(parents=True)
    for name in ("stop", "trained", ".node-n1"):
        (logs / name).touch()
    (run / "logs/7.progress").write_text("none\nnone\n")
    done = script('for name in stop trained .node-n1; do [[ ! -e "$SFT_RUN/logs/latest/$name" ]] || exit 9; done')
    assert done.returncode == 0, done.stdout + done.stderr
    assert (run / "logs/7.progress").read_text() == "none\n"
