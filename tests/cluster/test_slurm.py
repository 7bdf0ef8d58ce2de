"""slurm: exact submissions, and how answers are read. tests/cluster/test_jobs.py uses a real Slurm."""

import subprocess

import pytest

from sft.cli import InputError
from sft.cluster import slurm
from sft.cluster.cluster_file import Cluster
from tests.support.project import ROOT

CLUSTER = Cluster(
    partition="gpu",
    account="us",
    nodes=4,
    gpus_per_node=8,
    time="4:00:00",
    save_before_seconds=900,
    requeues=30,
    min_free_gb=500,
    container={"image": "/images/bridge.sqsh", "mounts": ["/data:/data"]},
    python="python3",
    sbatch_options=["--exclusive", "--mem=0"],
    environment=["HF_TOKEN"],
)


def golden(stage: str) -> str:
    return (ROOT / f"tests/golden/{stage}.submission").read_text()


@pytest.mark.parametrize("stage", ["prep", "train", "eval"])
def test_a_submission_is_this_command_line_and_this_environment(tmp_path, monkeypatch, stage):
    """Update tests/golden/ if you change what is submitted on purpose."""
    for name in slurm.os.environ:
        monkeypatch.delenv(name)
    for name, value in {
        "HOME": "/home/me",
        "PATH": "/bin",
        "HF_TOKEN": "secret",
        "MLFLOW_TRACKING_URI": "http://x",
        "SLURM_JOB_ID": "9",
        "OTHER": "1",
        "DVC_ROOT": "/p",
    }.items():
        monkeypatch.setenv(name, value)
    run = slurm.project_root() / "runs/0123456789abcdef"
    command = slurm.submit_command(CLUSTER, stage=stage, name="sft-0123456789abcdef", run=run)
    environment = slurm.job_environment(CLUSTER, run=run, python="/p/.venv/bin/python")
    submission = "\n".join([*command, "", *(f"{name}={value}" for name, value in environment.items())]) + "\n"
    assert submission == golden(stage)


def test_a_variable_of_the_cluster_file_must_be_set(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(InputError, match=r"^environment: HF_TOKEN: "):
        slurm.check_variables(CLUSTER)


@pytest.mark.parametrize(
    ("state", "shown", "ended"),
    [
        (slurm.State("RUNNING", "None", 0, "n[1-2]"), "RUNNING on n[1-2]", False),
        (slurm.State("PENDING", "Priority", 1), "PENDING (Priority), attempt 2", False),
        (slurm.State("FAILED", "NonZeroExitCode", 0, "n1"), "FAILED (NonZeroExitCode)", True),
        (slurm.State("COMPLETING"), "COMPLETING", False),
        (slurm.State("PREEMPTED"), "PREEMPTED", True),
    ],
)
def test_a_state_as_text_and_whether_it_is_final(state, shown, ended):
    assert str(state) == shown
    assert state.has_ended is ended


def test_a_held_job_is_recognized():
    assert slurm.State("PENDING", "launch_failed_requeued_held").is_held
    assert slurm.State("PENDING", "JobHeldUser").is_held
    assert not slurm.State("PENDING", "BeginTime").is_held


def test_a_missing_slurm_command_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"^squeue: not found"):
        slurm.find(CLUSTER, "sft-x")


@pytest.mark.parametrize("script", ["prep.sbatch", "train.sbatch", "eval.sbatch", "node_check.sh", "loopback.sh"])
def test_scripts_pass_shellcheck(script):
    for check in (["bash", "-n"], ["shellcheck"]):
        done = subprocess.run([*check, f"slurm/{script}"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_dask_in_a_job_serves_status_pages_on_loopback_only():
    """Its other ports are encrypted; the port for status pages is not, and is open even without a dashboard."""
    _, *calls = (ROOT / "slurm/prep.sbatch").read_text().split("-m distributed.cli.dask_")
    assert [call.split()[0] for call in calls] == ["scheduler", "worker"]
    assert all("--protocol=tls" in call and "--dashboard-address=127.0.0.1:0" in call for call in calls)
