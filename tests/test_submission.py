"""Stages on a real Slurm of two nodes, by the commands that people type: the same outputs as without a cluster.

The tests share one project and run in order. tests/cluster/test_jobs.py tests every way in which a job can end.
"""

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest

from sft.files import read_json
from sft.tracking.journal import Journal
from tests.support.project import clone_project, environment, run
from tests.support.slurm_loopback import Loopback, running_cluster, wait_for, write_cluster_file

pytestmark = [pytest.mark.slurm, pytest.mark.pipeline, pytest.mark.timeout(1800)]
OUTPUTS = ("reports/train_loss.csv", "reports/validation_loss.csv", "models/final/model.safetensors")


# What is put into a job's code: after the second step a command runs, in the first attempt only.
AT_STEP_2 = """
import os, subprocess
log_step = StepLog.log_step
def log_and_signal(self, step):
    log_step(self, step)
    if step.iteration == 2 and os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        subprocess.run(COMMAND, shell=True, check=True)
StepLog.log_step = log_and_signal
"""
SIGTERM = "scancel --signal=TERM $SLURM_JOB_ID"
PREEMPTION = "env -i PATH=$PATH SLURM_CONF=$SLURM_CONF sbatch -p urgent --nodes=2 --exclusive -o /dev/null --wrap=true"
# The process that submits, follows and collects loads no model: what reads one cannot be imported in it.
NO_MODEL_HERE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("megatron", "mamba_ssm", "causal_conv1d", "transformers", "safetensors"):
            raise AssertionError(f"the submitting process imports {name}")

sys.meta_path.insert(0, Refuse())
from sft.stages import train
train.main()
"""


@pytest.fixture(scope="module")
def cluster():
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def project(cluster, tmp_path_factory):
    project = clone_project(tmp_path_factory.mktemp("cluster") / "clone")
    run(project, "dvc", "repro", "pack", "fetch-model")
    (project / "runs").mkdir(exist_ok=True)
    (project / "runs/slurm").symlink_to(cluster.state)  # where slurm/clusters/loopback.yaml expects it
    return project


@pytest.fixture(scope="module")
def trained(project):
    """What `make train CLUSTER=loopback` prints, and the bytes of its outputs."""
    output = run(project, "make", "train", "CLUSTER=loopback")
    return output, {name: (project / name).read_bytes() for name in OUTPUTS}


def run_folder_of(project: Path) -> Path:
    """Return the folder of the run in runs/."""
    return project / "runs" / read_json(project / "models/final/lineage.json")["lineage_key"]


def test_a_dry_run_shows_script_layout_and_verdicts_and_submits_nothing(cluster, project):
    output = run(project, "make", "train", "CLUSTER=loopback", "DRY_RUN=1")
    for shown in (
        "sbatch \\\n    --parsable",
        (project / "slurm/train.sbatch").read_text(),
        "SFT_RANKS_PER_NODE=1",
        "image: ok",
        "slurm: ok: sbatch: Job",
        "Megatron-Bridge: ok: ",
        "\n  train.global_batch_size: 2\n",
        "2 x CPU: tensor 1 x pipeline 1 x context 1 x data 2",
        " 0 failed",
        "data and model: ok",
        "nothing was submitted",
    ):
        assert shown in output
    assert cluster.jobs() == []
    assert {path.name for path in (project / "runs").iterdir()} <= {"slurm", "imports", "mlflow.db"}


def test_a_dry_run_whose_checks_refuse_ends_with_an_error(project):
    output = run(project, "make", "train", "CLUSTER=example", "DRY_RUN=1", fails=True)
    for shown in (
        "variables: FAILED: environment: HF_TOKEN: not set",
        "image: FAILED: container.image: images/nemo.sqsh: not found",
        "FAILED   global-batch-size",
        "nothing was submitted",
        "of the checks above failed",
    ):
        assert shown in output


def test_two_nodes_train_a_model_and_dvc_is_up_to_date(project, trained):
    output, _ = trained
    run_folder = run_folder_of(project)
    assert "submitted; logs in" in output
    assert "step 6/6: loss" in output
    assert "COMPLETED, complete" in output
    assert read_json(project / "reports/train.json")["iterations"] == 6
    record = read_json(run_folder / "job.json")
    assert (record["cluster"], record["stage"], record["outcome"]) == ("loopback", "train", "complete")
    logs = run_folder / f"logs/{record['job']}-0"
    on_every_node = {f"{kind}-{n}.log" for kind in ("check", "node") for n in (0, 1)}
    assert {path.name for path in logs.glob("*.log")} == on_every_node | {"import-0.log", "export-0.log"}
    for node in (0, 1):
        assert "all-reduce: 4 MB over 2 nodes in" in (logs / f"check-{node}.log").read_text()
    assert not (run_folder / "inputs").exists()
    assert "up to date" in run(project, "dvc", "status", "train")


def test_status_shows_the_run_and_there_is_nothing_to_cancel(project, trained):
    output = run(project, "make", "status", "CLUSTER=loopback")
    assert f"{run_folder_of(project).name}  train  job" in output
    assert "ended: complete  step 6" in output
    assert "CLUSTER=loopback: no active job" in run(project, "make", "cancel", "CLUSTER=loopback", fails=True)


def test_a_requeued_job_whose_follower_was_killed_makes_the_same_bytes(cluster: Loopback, project, trained):
    """The ranks get SIGTERM: they save, and the job is requeued and resumes."""
    _, uninterrupted = trained
    run_folder = run_folder_of(project)
    shutil.rmtree(run_folder)
    write_interrupted(project, "term", cluster, SIGTERM)
    output = run(project, "make", "train", "CLUSTER=term", "DETACH=1")
    assert "detached (DETACH=1)" in output
    job = read_json(run_folder / "job.json")["job"]

    again = ["dvc", "repro", "--force", "--single-item", "train"]
    with subprocess.Popen(
        again,
        cwd=project,
        env=environment(CLUSTER="term"),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as follower:
        assert follower.stdout is not None
        next(line for line in follower.stdout if f"job {job} on term" in line)
        os.killpg(follower.pid, signal.SIGKILL)
    assert cluster.jobs("sft-" + run_folder.name) == [job]

    output = run(project, "python", "-c", NO_MODEL_HERE, CLUSTER="term", PYTHONPATH="src")
    run(project, "dvc", "commit", "--force", "train")
    assert f"job {job} on term: " in output
    assert "asked to end (SIGTERM): a checkpoint is saved" in output
    assert "requeued: attempt 2 resumes from the newest checkpoint" in output
    steps = [entry["iteration"] for entry in Journal(run_folder).entries("step")]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert {path.name for path in (run_folder / "logs").glob(f"{job}-*")} == {f"{job}-0", f"{job}-1"}
    for name, content in uninterrupted.items():
        assert (project / name).read_bytes() == content, name


def write_interrupted(project: Path, name: str, cluster: Loopback, command: str) -> None:
    """Write a cluster file whose jobs run a command after step 2 of their first attempt."""
    (project / "runs/hook.py").write_text(AT_STEP_2.replace("COMMAND", repr(command)))
    setup = [f'((${{SLURM_RESTART_COUNT:-0}})) || cat "{project}/runs/hook.py" >>"$SFT_CODE/src/sft/training/steps.py"']
    write_cluster_file(project, name, cluster, nodes=2, job_setup=setup)


@pytest.mark.layouts  # slow: in `make test-layouts` only
def test_a_model_whose_job_is_preempted_with_a_grace_time_has_the_same_bytes(cluster: Loopback, project, trained):
    """Another job takes both nodes. In the grace time the ranks save; Slurm requeues the job, and it resumes."""
    _, uninterrupted = trained
    run_folder = run_folder_of(project)
    shutil.rmtree(run_folder)
    write_interrupted(project, "preempted", cluster, PREEMPTION)
    cluster.ask("scontrol", "update", "partitionname=main", "gracetime=120")
    try:
        output = run(project, "dvc", "repro", "--force", "--single-item", "train", CLUSTER="preempted")
    finally:
        cluster.ask("scontrol", "update", "partitionname=main", "gracetime=0")
    assert "asked to end (SIGTERM): a checkpoint is saved" in output
    assert "requeued: attempt" not in output, "Slurm requeues it"
    assert "attempt 2" in output
    logs = sorted(run_folder.glob("logs/*-[01]/node-0.log"))
    first, second = (re.findall(r"step (\d)/6: loss", log.read_text()) for log in logs)
    assert [*first, *second] == list("123456")
    assert "2" in first
    assert second
    for name, content in uninterrupted.items():
        assert (project / name).read_bytes() == content, name


def test_prep_and_eval_as_jobs_make_the_same_bytes(cluster, project, trained):
    """prep uses encrypted Dask workers on both nodes."""
    prepared = {path: path.read_bytes() for path in (project / "data/prepared/calls").iterdir()}
    output = run(project, "make", "prep", "CLUSTER=loopback", "DRY_RUN=1")
    assert (project / "slurm/stage.sbatch").read_text() in output
    assert output.count("inputs: ok") == 2
    again = ["dvc", "repro", "--force", "--single-item", "prep@calls"]
    output = run(project, *again, CLUSTER="loopback")
    assert "Dask: 2 workers" in output
    assert {path: path.read_bytes() for path in (project / "data/prepared/calls").iterdir()} == prepared
    (run_folder,) = (project / "runs").glob("prep-calls-*")
    assert not (run_folder / "work").exists()
    assert not list(run_folder.rglob("dask.key"))

    output = run(project, "make", "eval", "CLUSTER=loopback", "DETACH=1")
    assert "detached (DETACH=1)" in output
    output = run(project, "make", "eval", "CLUSTER=loopback")
    assert "found, submitted before" in output
    assert "COMPLETED, complete" in output
    evaluation = read_json(project / "reports/eval.json")
    assert evaluation["before"].keys() == evaluation["after"].keys()
    assert "up to date" in run(project, "dvc", "status", "eval", "prep")
    run(project, "dvc", "repro", "--force", "--single-item", "eval")
    assert read_json(project / "reports/eval.json") == evaluation
    assert cluster.jobs() == []


def test_a_sweep_survives_a_kill_and_a_cancelled_member(cluster, project, trained):
    """A sweep runs a job per member, two at a time. Its cluster file is not in git. It is killed and run again."""
    gate = project / "runs/go"
    wait = f'until [[ -e "{gate}" ]]; do sleep 0.2; done'
    write_cluster_file(project, "one", cluster, save_before_seconds=60, time=60, job_setup=[wait])
    before = jobs_of_runs(project, "one")
    line = ["make", "sweep", "GRID=optimizer.lr=1e-3,1e-4,1e-5", "CLUSTER=one", "NAME=rates", "JOBS=2"]
    with subprocess.Popen(
        line, cwd=project, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True
    ) as sweep:
        try:
            wait_for(lambda: len(cluster.jobs()) == 2, describe=lambda: cluster.ask("squeue", "--long"), seconds=900)
        finally:
            os.killpg(sweep.pid, signal.SIGKILL)
    cancelled = cluster.jobs()[0]
    wait_for(lambda: cancelled in jobs_of_runs(project, "one").values())  # its job.json is written after sbatch
    (key,) = (key for key, job in jobs_of_runs(project, "one").items() if job == cancelled)
    assert f"{key}  train  job {cancelled}  " in run(project, "make", "status", "CLUSTER=one")
    run(project, "make", "cancel", "CLUSTER=one", f"RUN={key}")
    gate.touch()
    output = run(project, *line, fails=True)
    assert "rates: 3 of 3 experiments exist" in output
    assert "1 of 3 experiments failed: rates-" in output, output

    submitted = jobs_of_runs(project, "one")
    assert len(submitted) == 3 > len(before) == 0
    assert len(set(submitted.values())) == 3
    outcomes = {key: read_json(project / f"runs/{key}/job.json")["outcome"] for key in submitted}
    assert outcomes.pop(key) == "CANCELLED"
    assert set(outcomes.values()) == {"complete"}
    shown = run(project, "dvc", "exp", "show", "--csv")
    table = dict(re.findall(r"\[(rates-\d)\] \| (\w+)", output))
    assert sorted(table.values()) == ["Failed", "Success", "Success"]
    for name, state in table.items():
        assert state == "Failed" or f"\n{name}," in shown
    with contextlib.closing(sqlite3.connect(project / "runs/mlflow.db")) as store:
        tagged = "SELECT status FROM runs JOIN tags USING (run_uuid) WHERE key = 'sweep' AND value = 'rates'"
        ended = {kind: store.execute(f"{tagged} AND name LIKE '{kind}-%'").fetchall() for kind in ("sft", "attempt")}
    for kind, statuses in ended.items():
        assert sorted(statuses) == [("FAILED",), ("FINISHED",), ("FINISHED",)], kind


def jobs_of_runs(project: Path, cluster: str) -> dict[str, str]:
    """Return the last job on a cluster of each run, by the run's name."""
    records = {path.parent.name: read_json(path) for path in (project / "runs").glob("*/job.json")}
    return {name: record["job"] for name, record in records.items() if record["cluster"] == cluster}


def test_a_layout_that_does_not_divide_is_refused_before_anything_is_submitted(cluster, project, trained):
    params = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(params.replace("global_batch_size: 2", "global_batch_size: 3"))
    try:
        output = run(project, "python", "-m", "sft.stages.train", CLUSTER="loopback", PYTHONPATH="src", fails=True)
    finally:
        (project / "params.yaml").write_text(params)
    assert "global_batch_size: 3" in output
    assert cluster.jobs() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"CLUSTER": "mars"}, "CLUSTER=mars: slurm/clusters/mars.yaml: not found. Clusters: example, loopback"),
        ({"CLUSTER": "", "DETACH": "1"}, "DETACH=1 needs a cluster"),
    ],
)
def test_a_wrong_environment_variable_is_one_message(project, changes, message):
    environ = {"PYTHONPATH": "src", **changes}
    output = run(project, "python", "-m", "sft.stages.train", fails=True, **environ)
    assert message in output
    assert "Traceback" not in output


def test_without_a_base_model_nothing_is_submitted(cluster, project):
    (project / "models/base").rename(project / "models/elsewhere")
    try:
        output = run(project, "python", "-m", "sft.stages.train", CLUSTER="loopback", PYTHONPATH="src", fails=True)
    finally:
        (project / "models/elsewhere").rename(project / "models/base")
    assert "models/base: not found" in output
    assert "dvc repro fetch-model" in output
    assert cluster.jobs() == []
