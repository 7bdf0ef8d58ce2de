"""slurm: exact submissions, and how answers are read. tests/cluster/test_jobs.py uses a real Slurm."""

import subprocess
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.cluster import slurm
from sft.cluster.cluster_file import Cluster, Container
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


@pytest.mark.parametrize("target", ["prep@chats", "train", "eval"])
def test_a_submission_is_this_command_line_and_this_environment(tmp_path, monkeypatch, target):
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
    command = slurm.submit_command(CLUSTER, target=target, name="sft-0123456789abcdef", run=run)
    environment = slurm.job_environment(CLUSTER, run=run, python="/p/.venv/bin/python")
    submission = "\n".join([*command, "", *(f"{name}={value}" for name, value in environment.items())]) + "\n"
    assert submission == golden(target.partition("@")[0])


def resources(stage: str = "train", **keys) -> list[str]:
    """The options of a job that request something of a node."""
    values = {"partition": "gpu", "nodes": 1, "gpus_per_node": 0, "time": "10", **keys}
    command = slurm.submit_command(Cluster(**values), target=stage, name="x", run=Path("/p/runs/x"))
    return [word for word in command if word.startswith(("--gpus", "--gres", "--cpus", "--mem", "--excl"))]


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        ({"gpus_per_node": 8}, ["--gpus-per-node=8", "--cpus-per-task=32"]),
        ({"gpus_per_node": "h100:8"}, ["--gpus-per-node=h100:8", "--cpus-per-task=32"]),
        ({"gpus_per_node": 4, "sbatch_options": ["--gres=gpu:a100:4"]}, ["--cpus-per-task=16", "--gres=gpu:a100:4"]),
        ({"gpus_per_node": 8, "sbatch_options": ["--exclusive"]}, ["--gpus-per-node=8", "--exclusive"]),
        ({"gpus_per_node": 8, "sbatch_options": ["--cpus-per-gpu=8"]}, ["--gpus-per-node=8", "--cpus-per-gpu=8"]),
        ({"ranks_per_node": 2}, ["--cpus-per-task=2"]),
        ({"ranks_per_node": 2, "cpus_per_node": 9, "memory_per_node": "5G"}, ["--cpus-per-task=9", "--mem=5G"]),
    ],
)
def test_a_node_gives_what_all_its_ranks_need(keys, options):
    assert resources(**keys) == options


def test_the_environment_is_that_of_the_shell_without_secrets_and_without_what_submits_again(monkeypatch):
    for name in slurm.os.environ:
        monkeypatch.delenv(name)
    passed = {
        *("PATH", "HF_HOME", "LD_LIBRARY_PATH", "https_proxy", "SLURM_CONF", "SLURM_JWT", "TOKENIZERS_PARALLELISM"),
        *("BASH_FUNC_module%%", "MLFLOW_TRACKING_PASSWORD", "LISTED_TOKEN", "KEYBOARD_LAYOUT", "BASH_COMPAT"),
    }
    secret = {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "NGC_API_KEY", "GHTOKEN", "GH_PAT", "db_password", "MY_CREDENTIALS"}
    others = {"CLUSTER", "DETACH", "DRY_RUN", "MAKEFLAGS", "DVC_STAGE", "SFT_PROCESSES", "SLURM_JOB_ID", "SBATCH_WAIT"}
    for name in passed | secret | others:
        monkeypatch.setenv(name, "1")
    cluster = CLUSTER.model_copy(update={"environment": ["all", "LISTED_TOKEN"]})
    environment = slurm.job_environment(cluster, run=Path("/p/runs/x"), python="python")
    assert {name for name in environment if not name.startswith("SFT_")} == passed
    assert "SFT_PROCESSES" not in environment
    slurm.check_variables(cluster)


def test_an_image_of_the_project_and_runs_on_another_disk_are_seen_on_the_nodes(tmp_path, monkeypatch):
    """srun starts in the run's folder, and a container has only what is mounted."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))
    (tmp_path / "project").mkdir()
    (tmp_path / "disk").mkdir()
    (tmp_path / "project/runs").symlink_to(tmp_path / "disk")
    cluster = CLUSTER.model_copy(update={"container": Container(image="images/a.sqsh", mounts=["/data:/data"])})
    environment = slurm.job_environment(cluster, run=tmp_path / "project/runs/x", python="python")
    assert environment["SFT_IMAGE"] == f"{tmp_path}/project/images/a.sqsh"
    mounts = [f"{tmp_path}/project:{tmp_path}/project", f"{tmp_path}/disk:{tmp_path}/disk", "/data:/data"]
    assert environment["SFT_MOUNTS"].split(",") == mounts


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


@pytest.mark.parametrize("script", ["train.sbatch", "stage.sbatch", "node_check.sh", "attempt.sh", "loopback.sh"])
def test_scripts_pass_shellcheck(script):
    for check in (["bash", "-n"], ["shellcheck"]):
        done = subprocess.run([*check, f"slurm/{script}"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_dask_in_a_job_serves_status_pages_on_loopback_only():
    """Its other ports are encrypted; the port for status pages is not, and is open even without a dashboard."""
    _, *calls = (ROOT / "slurm/stage.sbatch").read_text().split("-m distributed.cli.dask_")
    assert [call.split()[0] for call in calls] == ["scheduler", "worker"]
    assert all("--protocol=tls" in call and "--dashboard-address=127.0.0.1:0" in call for call in calls)
