"""cluster.cli: which jobs are listed and which one is chosen. tests/test_submission.py uses a real Slurm."""

import shutil

import pytest

from sft.cli import InputError
from sft.cluster import cli
from sft.files import write_json
from sft.tracking.journal import Journal
from tests.support.printed_json import printed_json
from tests.support.project import ROOT
from tests.support.tracked_run import log_step


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    records = {
        "aaaa": ("big", "9", None),
        "abbb": ("big", "10", None),
        "cccc": ("big", "8", "complete"),
        "dddd": ("other", "11", None),
    }
    for name, (cluster, job, outcome) in records.items():
        write_json(
            tmp_path / f"runs/{name}/job.json", {"cluster": cluster, "stage": "train", "job": job, "outcome": outcome}
        )
    (tmp_path / "runs/eeee").mkdir()
    return tmp_path / "runs"


def test_jobs_of_a_cluster_are_listed_newest_last(runs):
    assert [job.id for job in cli.jobs_on("big")] == ["8", "9", "10"]
    assert [job.id for job in cli.jobs_on("big", "a")] == ["9", "10"]
    assert cli.newest(cli.jobs_on("big"), "big").id == "10"


def test_the_status_of_jobs_is_printed_as_json(runs):
    (runs.parent / "slurm/clusters").mkdir(parents=True)
    shutil.copy(ROOT / "slurm/clusters/loopback.yaml", runs.parent / "slurm/clusters/big.yaml")
    for run in ("aaaa", "abbb"):  # their state is Slurm's to know
        (runs / run / "job.json").unlink()
    assert printed_json(runs.parent, "sft.cluster.cli", "status", "--cluster", "big") == [
        {"run": "cccc", "stage": "train", "job": "8", "outcome": "complete", "state": None, "steps": 0}
    ]
    assert printed_json(runs.parent, "sft.cluster.cli", "status", "--cluster", "x", message="error: CLUSTER=x") is None
    assert printed_json(runs.parent, "sft.cluster.cli", "logs", "--cluster", "big", message="logs prints no") is None


def test_a_missing_job_is_an_error_that_names_the_cluster_and_the_command(runs):
    with pytest.raises(InputError, match=r"CLUSTER=big: .* make status CLUSTER=big"):
        cli.newest(cli.jobs_on("big", "zz"), "big")


def test_cancel_needs_exactly_one_active_job(runs):
    with pytest.raises(InputError, match=r"CLUSTER=big: 2 .*aaaa \(job 9\), abbb \(job 10\).* RUN="):
        cli.the_active_job(cli.jobs_on("big"), "big")
    assert cli.the_active_job(cli.jobs_on("big", "ab"), "big").id == "10"
    with pytest.raises(InputError, match="CLUSTER=big"):
        cli.the_active_job(cli.jobs_on("big", "cccc"), "big")


def test_the_status_counts_each_step_once(runs):
    for iteration in (1, 2, 2, 3):  # resumed from the checkpoint of step 1
        log_step(Journal(runs / "cccc"), iteration, 1.0)
    assert cli.status_of(next(job for job in cli.jobs_on("big") if job.id == "8"), None).steps == 3
