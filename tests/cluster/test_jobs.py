"""jobs: what becomes of a job, on a real Slurm: each state it can end in, and each way the one who waits can be lost.

The jobs run small programs in place of training; tests/test_submission.py trains.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.cluster import jobs
from sft.files import read_json, write_json
from tests.support.slurm_loopback import Driver, Loopback, running_cluster, wait_for, write_profile

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
SLEEP = ("bash", "-c", "echo begun; sleep 300")


@pytest.fixture(scope="module")
def cluster():
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def root(cluster, tmp_path_factory):
    """A project: params.yaml, profiles, runs/."""
    root = tmp_path_factory.mktemp("jobs")
    (root / "params.yaml").write_text("train: {}\n")
    write_profile(root, "one", cluster)
    write_profile(root, "here", cluster, options=["--nodelist=n2"])
    return root


def fate(run: Path) -> str | None:
    return read_json(run / "job.json")["fate"]


# A job near its time limit takes a minute, whatever it does: begun here, looked at last.


@pytest.fixture(scope="module", autouse=True)
def slow(cluster, root):
    write_profile(root, "minute", cluster, time=1, stop_seconds=20, options=["--nodelist=n1"])
    saves = (
        "if [[ ${SLURM_RESTART_COUNT:-0} == 0 ]]; then "
        'until [[ -e "$SFT_STOP_FILE" ]]; do sleep 0.2; done; echo saved >"$SFT_RUN/checkpoint"; '
        'else echo "goes on from: $(cat "$SFT_RUN/checkpoint")"; fi'
    )
    drivers = {
        "makes way": Driver(root, "saves", "minute", "bash", "-c", saves),
        "hangs": Driver(root, "hangs", "minute", *SLEEP, stage="eval"),
    }
    yield drivers
    for driver in drivers.values():
        if driver.process.poll() is None:
            driver.kill()


# How a job can end.


def test_completed_with_its_marker_is_complete(root):
    driver = Driver(root, "good", "one", "bash", "-c", "echo from the node")
    said = driver.end(0)
    assert "from the node" in said
    assert ": COMPLETED, complete" in said
    assert fate(driver.run) == "complete"
    assert (driver.run / "logs/latest/node-0.log").read_text() == "from the node\n"


def test_failed_says_so_with_the_log_of_the_task_that_failed_first(cluster, root):
    write_profile(root, "two", cluster, nodes=2)
    program = "if [[ $SLURM_PROCID == 1 ]]; then echo the reason; exit 42; else sleep 60; fi"
    said = Driver(root, "bad", "two", "bash", "-c", program).end(1)
    assert ": FAILED (NonZeroExitCode): train failed." in said
    assert "node-1.log ends:\n    the reason" in said
    assert "The same command submits it again, from its newest checkpoint: make train CLUSTER=two" in said


def test_after_a_failure_the_same_command_submits_again(root):
    program = 'if [[ -e "$SFT_RUN/mended" ]]; then echo mended; else exit 1; fi'
    first = Driver(root, "mends", "one", "bash", "-c", program)
    first.end(1)
    assert fate(first.run) == "FAILED"
    (first.run / "mended").touch()
    second = Driver(root, "mends", "one", "bash", "-c", program)
    second.end(0)
    assert second.job() != first.job()


@pytest.mark.parametrize(
    ("setup", "name"), [("exit 0", "silent"), ("echo another-run >$SFT_RUN/complete; exit 0", "foreign")]
)
def test_completed_without_the_marker_of_this_run_is_a_failure(cluster, root, setup, name):
    """A line of the profile's set-up ends the job with 0, before it has done anything."""
    write_profile(root, name, cluster, setup=[setup])
    driver = Driver(root, name, name, "true")
    assert ": COMPLETED, but it left no completion marker of this run." in driver.end(1)
    assert fate(driver.run) == "COMPLETED"


def test_cancelled_says_so_also_where_the_job_ends_with_0(cluster, root):
    """Such a job makes `sbatch --wait` end with 0."""
    write_profile(root, "trap", cluster, setup=["trap 'exit 0' TERM"])
    driver = Driver(root, "cancelled", "trap", *SLEEP)
    wait_for(lambda: "begun" in driver.said())
    cluster.ask("scancel", driver.job())
    assert ": CANCELLED: somebody cancelled it." in driver.end(1)


GREEDY = "python3 -c 'bytearray(400_000_000)'"


@pytest.mark.skipif(not Path("/sys/fs/cgroup/memory").is_dir(), reason="no memory control groups of version 1 here")
@pytest.mark.parametrize("where", ["in the job's script", "in a step"])
def test_out_of_memory_says_what_to_do(cluster, root, where):
    """Slurm gives the job this state where its script ran out; where one of its steps did, it is FAILED."""
    name = where.replace(" ", "-").replace("'", "")
    in_step = where == "in a step"
    write_profile(root, name, cluster, options=["--mem=200"], setup=[] if in_step else [GREEDY])
    said = Driver(root, name, name, "bash", "-c", GREEDY).end(1)
    assert (": FAILED" if in_step else ": OUT_OF_MEMORY") in said
    assert "ask for more (options: [--mem=0])" in said


def test_preempted_goes_on_when_it_gets_its_nodes_back(cluster, root):
    cluster.free()
    driver = Driver(root, "preempted", "here", *lives("begun"))
    wait_for(lambda: "begun" in driver.said(), tell=driver.said)
    cluster.ask("sbatch", "--partition=urgent", "--nodelist=n2", "--exclusive", "--output=/dev/null", "--wrap=true")
    goes_on(cluster, driver)
    assert "DUE TO PREEMPTION" in (driver.run / f"logs/{driver.job()}.log").read_text()


def test_a_lost_node_costs_a_life_of_the_job_and_no_more(cluster, root):
    cluster.free()
    driver = Driver(root, "lost", "here", *lives("begun"))
    wait_for(lambda: "begun" in driver.said(), tell=driver.said)
    cluster.ask("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    wait_for(lambda: cluster.state_of(driver.job()) == "PENDING")
    cluster.ask("scontrol", "update", "nodename=n2", "state=resume", may_fail=True)  # it may be back by itself
    goes_on(cluster, driver)
    assert "DUE TO NODE FAILURE" in (driver.run / f"logs/{driver.job()}.log").read_text()


def lives(word: str) -> tuple[str, ...]:
    """A program that hangs in its first life, and ends well in its second."""
    return ("bash", "-c", f"echo {word}; ((${{SLURM_RESTART_COUNT:-0}})) || sleep 300; echo again")


def goes_on(cluster: Loopback, driver: Driver) -> None:
    wait_for(lambda: "PENDING" in driver.said())
    said = driver.end(0)
    assert "life 2" in said
    assert "again" in said
    lives = [driver.run / "logs" / f"{driver.job()}-{life}" for life in (0, 1)]
    assert all((life / "node-0.log").exists() for life in lives)
    assert (driver.run / "logs/latest").resolve() == lives[-1]


def test_a_job_that_is_requeued_without_end_is_given_up(cluster, root):
    write_profile(root, "bounded", cluster, requeues=0)
    driver = Driver(root, "bounded", "bounded", *SLEEP)
    wait_for(lambda: "begun" in driver.said())
    cluster.ask("scontrol", "requeue", driver.job())
    assert "requeued 1 times, allowed are 0 (profile: requeues); the checkpoints are kept" in driver.end(1)


# How the one who waits can be lost, or see double.


def test_two_shells_at_once_submit_one_job(cluster, root):
    drivers = [Driver(root, "race", "one", "sleep", "5") for _ in range(3)]
    assert len({driver.job() for driver in drivers}) == 1
    assert cluster.jobs("sft-race") == [drivers[0].job()]
    assert sorted(driver.end(0).split()[0] for driver in drivers) == ["found", "found", "submitted"]


def test_the_job_of_a_killed_shell_is_found_again(cluster, root):
    program = ("bash", "-c", 'echo begun; until [[ -e "$SFT_RUN/go" ]]; do sleep 0.2; done; echo done')
    first = Driver(root, "killed", "one", *program)
    wait_for(lambda: "begun" in first.said())
    first.kill()
    assert cluster.state_of(first.job()) == "RUNNING"
    second = Driver(root, "killed", "one", *program)
    wait_for(lambda: "begun" in second.said(), 30)
    (first.run / "go").touch()
    said = second.end(0)
    assert said.startswith(f"found {first.job()}\n")
    assert "done" in said
    assert cluster.jobs("sft-killed") == []


def test_a_job_that_was_submitted_and_not_written_down_is_found_by_its_name(root):
    first = Driver(root, "unwritten", "one", "sleep", "5")
    first.job()
    first.kill()
    (first.run / "job.json").unlink()
    second = Driver(root, "unwritten", "one", "sleep", "5")
    assert second.job() == first.job()
    second.end(0)


def test_detached_leaves_the_job_and_says_how_it_is(root):
    program = ("bash", "-c", 'until [[ -e "$SFT_RUN/go" ]]; do sleep 0.2; done')
    first = Driver(root, "detached", "one", *program, DETACH="1")
    said = first.end(0)
    assert f"job {first.job()} on one: left to itself (DETACH=1)" in said
    assert "left to itself" in Driver(root, "detached", "one", *program, DETACH="1").end(0)
    assert "left to itself" in Driver(root, "detached", "one", *program, DETACH="1", DVC_STAGE="train").end(1)
    (first.run / "go").touch()
    wait_for(lambda: jobs.is_marked(first.run))
    Driver(root, "detached", "one", *program, DVC_STAGE="train").end(0)
    assert fate(first.run) == "complete"


def test_a_controller_that_is_restarted_is_waited_for(cluster, root):
    driver = Driver(root, "restarted", "one", "sleep", "8")
    driver.job()
    wait_for(lambda: "RUNNING" in driver.said())
    controller = cluster.pid("slurmctld")
    os.kill(controller, 15)
    wait_for(lambda: "no news: " in driver.said())
    wait_for(lambda: not Path(f"/proc/{controller}").exists())
    cluster.script("up")
    said = driver.end(0)
    assert said.rindex("COMPLETED") > said.rindex("no news")


def test_another_cluster_does_not_get_a_run_that_has_a_job(cluster, root):
    first = Driver(root, "elsewhere", "one", "sleep", "5")
    first.job()
    said = Driver(root, "elsewhere", "here", "true").end(1)
    assert f"job {first.job()} on one computes this run. Follow it, or hear how it ended: make train" in said
    first.end(0)


# What is refused: one message, and nothing was submitted.


def refused(cluster: Loopback, root: Path, name: str, **environ: str) -> str:
    driver = Driver(root, name, name, "true", **environ)
    said = driver.end(1)
    assert not (driver.run / "job.json").exists()
    assert said.startswith("error: ")
    assert said.count("\n") == 1, said
    return said


def test_a_partition_that_does_not_exist_is_refused(cluster, root):
    write_profile(root, "partition", cluster, partition="gpus")
    assert "allocation failure: Invalid partition name specified" in refused(cluster, root, "partition")
    assert cluster.jobs("sft-partition") == []


@pytest.mark.parametrize("keys", [{"gpus_per_node": 9, "ranks_per_node": 9}, {"nodes": 3}])
def test_more_than_the_cluster_has_is_refused(cluster, root, keys):
    write_profile(root, "large", cluster, **keys)
    assert "Requested node configuration is not available" in refused(cluster, root, "large") or "nodes" in keys
    assert cluster.jobs("sft-large") == []


def test_an_image_that_is_not_there_is_refused(cluster, root):
    write_profile(root, "image", cluster, container={"image": "/images/none.sqsh"})
    assert "/images/none.sqsh: no such image" in refused(cluster, root, "image")


def test_a_variable_that_is_not_set_is_refused(cluster, root):
    write_profile(root, "token", cluster, environment=["SOME_TOKEN"])
    assert "names SOME_TOKEN, which is not set here" in refused(cluster, root, "token")


def test_a_controller_that_does_not_answer_is_one_message(cluster, root, tmp_path):
    conf = tmp_path / "slurm.conf"
    conf.write_text(cluster.conf.read_text().replace(f"SlurmctldPort={cluster.port}", "SlurmctldPort=9"))
    write_profile(root, "away", slurm_conf=str(conf))
    assert re.search("the Slurm controller does not answer|no answer from Slurm", refused(cluster, root, "away"))


def test_a_cluster_that_is_not_up_is_one_message(cluster, root):
    write_profile(root, "down", slurm_conf="runs/none/slurm.conf")
    assert "runs/none/slurm.conf: not found (profile: slurm_conf)" in refused(cluster, root, "down")


def test_a_credential_that_slurm_does_not_accept_is_one_message(cluster, root, tmp_path):
    """A munge with another key stands for an expired token: Slurm answers both with a protocol authentication error."""
    (tmp_path / "key").write_bytes(os.urandom(1024))
    (tmp_path / "key").chmod(0o600)
    place = cluster.state / "munge2"
    place.mkdir(mode=0o711)
    subprocess.run(
        [
            "munged",
            "--force",
            f"--key-file={tmp_path}/key",
            f"--socket={place}/socket",
            f"--pid-file={place}/pid",
            f"--log-file={place}/log",
            f"--seed-file={place}/seed",
        ],
        check=True,
    )
    try:
        conf = tmp_path / "slurm.conf"
        conf.write_text(cluster.conf.read_text().replace("munge/socket", "munge2/socket"))
        write_profile(root, "stranger", slurm_conf=str(conf))
        assert "Slurm does not accept who asks" in refused(cluster, root, "stranger")
    finally:
        os.kill(int((place / "pid").read_text()), 15)


# What a job gets, and what it does not.


def test_a_job_gets_the_variables_that_the_profile_names_and_their_values_stand_in_no_file(cluster, root):
    write_profile(root, "secret", cluster, environment=["SOME_TOKEN"])
    program = 'echo "${SOME_TOKEN:0:3} ${OTHER_TOKEN:-none}"'
    driver = Driver(root, "secret", "secret", "bash", "-c", program, SOME_TOKEN="abcdefgh", OTHER_TOKEN="ijklmnop")
    assert "\nabc none\n" in driver.end(0)
    looked_at = [path for path in driver.run.rglob("*") if path.is_file()]
    assert len(looked_at) > 20
    assert not [path for path in looked_at if b"abcdefgh" in path.read_bytes()]


def test_a_job_runs_the_code_of_its_submission(cluster, root):
    driver = Driver(root, "frozen", "one", "bash", "-c", 'cat "$SFT_CODE/params.yaml"; pwd')
    driver.job()
    (root / "params.yaml").write_text("train: {edited: 1}\n")
    said = driver.end(0)
    (root / "params.yaml").write_text("train: {}\n")
    assert "\ntrain: {}\n" in said
    assert f"\n{driver.run}/code\n" in said


# The check of the nodes, before anything is run.


def test_a_node_without_the_shared_folder_is_named(cluster, root):
    """The second node gets an empty folder where the project is: its file system is lost to it alone. Slurm ends the
    job, or the first node waits in vain for the second's number.
    """
    write_profile(root, "shared", cluster, nodes=2)
    enter = ["nsenter", f"--target={cluster.pid('slurmd-n2')}", "--mount"]
    subprocess.run([*enter, "mount", "-t", "tmpfs", "none", str(root)], check=True)
    try:
        said = Driver(root, "shared", "shared").end(1, timeout=200)
    finally:
        subprocess.run([*enter, "umount", str(root)], check=True)
    either = "Slurm could not begin it on every node: one may not see the run's|not fit, or without sight of .*: .*n2"
    assert re.search(either, said), said


def test_a_node_with_other_packages_is_refused(cluster, root):
    """The job's snapshot is told other pins than those that are installed."""
    write_profile(root, "pins", cluster, setup=["echo numpy==0.1 >>$SFT_CODE/packages.txt"])
    said = Driver(root, "pins", "pins").end(1)
    assert "error: numpy is " in said
    assert "wanted 0.1" in said


def test_a_node_with_too_little_space_is_refused(cluster, root):
    write_profile(root, "space", cluster, free_gb=10**9)
    assert "GB free for" in Driver(root, "space", "space").end(1)


# What needs no cluster.


def test_a_dry_run_counts_every_check_that_refuses(capsys):
    told = [
        "image: ok",
        "Megatron-Bridge: REFUSED: a",
        "estimate and rules:\nREFUSED  batch",
        "data and model: REFUSED: b",
    ]
    for number, some in ((1, told[:2]), (2, told[:3]), (3, told)):
        with pytest.raises(InputError, match=f"^{number} of the checks above refuse this job"):
            jobs.print_verdict(some)
    jobs.print_verdict(["slurm: ok: nothing is REFUSED: so far"])
    assert "Megatron-Bridge: REFUSED: a" in capsys.readouterr().out


def test_a_living_job_is_not_trained_over_here(tmp_path):
    jobs.refuse_living(tmp_path)
    record = {"cluster": "big", "stage": "train", "job": "7", "fate": None}
    write_json(tmp_path / "job.json", record)
    with pytest.raises(InputError, match=r"job 7 on big computes this run.*make cancel CLUSTER=big"):
        jobs.refuse_living(tmp_path)
    jobs.close(tmp_path, "FAILED", job="8")
    assert fate(tmp_path) is None
    jobs.close(tmp_path, "FAILED", job="7")
    jobs.refuse_living(tmp_path)


def test_inputs_are_kept_as_they_are_when_their_place_gets_others(tmp_path):
    source = tmp_path / "data"
    source.mkdir()
    (source / "a").write_text("old")
    jobs.keep(source, tmp_path / "kept")
    (source / "a").unlink()
    (source / "a").write_text("new")
    assert (tmp_path / "kept/a").read_text() == "old"


def test_steps_are_counted_without_validations_and_the_line_that_is_being_written(tmp_path):
    assert jobs.steps_done(tmp_path) == 0
    lines = [json.dumps({"iteration": n, "loss": 1.0}) for n in (1, 2)]
    (tmp_path / "steps.jsonl").write_text("\n".join([*lines, '{"validation_loss": 1.0}', '{"iteration": 3, "loss"']))
    assert jobs.steps_done(tmp_path) == 2


# Last: what began first.


def test_at_the_time_limit_a_job_saves_and_is_requeued_and_goes_on(cluster, slow):
    driver = slow["makes way"]
    said = driver.end(0, timeout=180)
    assert "requeued: life 2 goes on from the newest checkpoint" in said
    assert "the time limit is near: saving a checkpoint" in said
    assert "goes on from: saved" in said
    assert "life 2" in said


def test_a_job_that_does_not_make_way_times_out(slow):
    said = slow["hangs"].end(1, timeout=180)
    assert ": TIMEOUT" in said
    assert "raise `time`" in said
