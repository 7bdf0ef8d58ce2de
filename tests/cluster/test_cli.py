"""queue: which jobs are listed, and which one is meant. tests/test_submission.py asks a real Slurm."""

import pytest

from sft.cli import InputError
from sft.cluster import cli
from sft.files import write_json


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
    for name, (cluster, job, fate) in records.items():
        write_json(tmp_path / f"runs/{name}/job.json", {"cluster": cluster, "stage": "train", "job": job, "fate": fate})
    (tmp_path / "runs/eeee").mkdir()
    return tmp_path / "runs"


def test_jobs_of_a_cluster_are_listed_by_number_the_newest_last(runs):
    assert [job.id for job in cli.jobs_on("big")] == ["8", "9", "10"]
    assert [job.id for job in cli.jobs_on("big", "a")] == ["9", "10"]
    assert cli.newest(cli.jobs_on("big"), "big").id == "10"


def test_without_a_job_the_message_says_where_to_look(runs):
    with pytest.raises(InputError, match=r"no run of that name went to big from here: make status CLUSTER=big"):
        cli.newest(cli.jobs_on("big", "zz"), "big")


def test_only_a_job_that_is_meant_is_cancelled(runs):
    with pytest.raises(
        InputError, match=r"living jobs on big: aaaa \(job 9\), abbb \(job 10\). Say which: make cancel"
    ):
        cli.the_living(cli.jobs_on("big"), "big")
    assert cli.the_living(cli.jobs_on("big", "ab"), "big").id == "10"
    with pytest.raises(InputError, match="living jobs on big: none"):
        cli.the_living(cli.jobs_on("big", "cccc"), "big")
