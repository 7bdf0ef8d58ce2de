"""slurm: what is submitted, to the letter, and how answers are read. tests/cluster/test_jobs.py asks a real one."""

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
    stop_seconds=900,
    requeues=30,
    free_gb=500,
    container={"image": "/images/bridge.sqsh", "mounts": ["/data:/data"]},
    python="python3",
    options=["--exclusive", "--mem=0"],
    environment=["HF_TOKEN"],
)


def golden(stage: str) -> str:
    return (ROOT / f"tests/golden/{stage}.submission").read_text()


@pytest.mark.parametrize("stage", ["prep", "train", "eval"])
def test_a_submission_is_this_command_line_and_this_environment(tmp_path, monkeypatch, stage):
    """Change tests/golden/ where a change of what is submitted is meant."""
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
    said = "\n".join([*command, "", *(f"{name}={value}" for name, value in environment.items())]) + "\n"
    assert said == golden(stage)


def test_a_variable_of_the_profile_that_is_not_set_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(InputError, match=r"names HF_TOKEN, which is not set here. Nothing was submitted"):
        slurm.find_variables(CLUSTER)


@pytest.mark.parametrize(
    ("state", "shown", "ended"),
    [
        (slurm.State("RUNNING", "None", 0, "n[1-2]"), "RUNNING on n[1-2]", False),
        (slurm.State("PENDING", "Priority", 1), "PENDING (Priority), life 2", False),
        (slurm.State("FAILED", "NonZeroExitCode", 0, "n1"), "FAILED (NonZeroExitCode)", True),
        (slurm.State("COMPLETING"), "COMPLETING", False),
        (slurm.State("PREEMPTED"), "PREEMPTED", True),
    ],
)
def test_a_state_is_shown_with_what_is_known_and_ends_or_not(state, shown, ended):
    assert str(state) == shown
    assert state.ended is ended


def test_a_job_that_nobody_starts_is_seen(tmp_path):
    assert slurm.State("PENDING", "launch_failed_requeued_held").is_held
    assert slurm.State("PENDING", "JobHeldUser").is_held
    assert not slurm.State("PENDING", "BeginTime").is_held


def test_without_slurm_s_commands_the_message_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"squeue: not found. Run on a machine that has the cluster's Slurm commands"):
        slurm.find(CLUSTER, "sft-x")


@pytest.mark.parametrize("script", ["prep.sbatch", "train.sbatch", "eval.sbatch", "node_check.sh", "loopback.sh"])
def test_scripts_are_plain_bash_that_shellcheck_has_nothing_against(script):
    for check in (["bash", "-n"], ["shellcheck"]):
        done = subprocess.run([*check, f"slurm/{script}"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_dask_in_a_job_serves_plain_pages_to_its_own_node_only():
    """Its encrypted ports are for all nodes of the job; beside them it has one for pages, also without a dashboard."""
    _, *calls = (ROOT / "slurm/prep.sbatch").read_text().split("-m distributed.cli.dask_")
    assert [call.split()[0] for call in calls] == ["scheduler", "worker"]
    assert all("--protocol=tls" in call and "--dashboard-address=127.0.0.1:0" in call for call in calls)
