"""jobs, on a real Slurm: every state in which a job can end, and every way to lose the process that waits for it.

The jobs run small programs instead of training; tests/test_submission.py trains.
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.cluster import jobs
from sft.cluster.cluster_file import Cluster
from sft.files import write_json
from tests.support.slurm_loopback import FOUND, Driver, Loopback, running_cluster, wait_for, write_cluster_file

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]
SLEEP = ("bash", "-c", "echo begun; sleep 1800")
UNTIL_GO = ("bash", "-c", 'echo begun; until [[ -e "$SFT_RUN/go" ]]; do sleep 0.2; done; echo done')


@pytest.fixture(scope="module")
def cluster():
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def root(cluster, tmp_path_factory):
    """A project: params.yaml, cluster files, runs/."""
    root = tmp_path_factory.mktemp("jobs")
    (root / "params.yaml").write_text("train: {}\n")
    write_cluster_file(root, "one", cluster)
    write_cluster_file(root, "here", cluster, sbatch_options=["--nodelist=n2"])
    return root


# A job that reaches its time limit takes two minutes: started here, checked last.


@pytest.fixture(scope="module", autouse=True)
def slow(cluster, root):
    keys = {"time": 2, "save_before_seconds": 80, "sbatch_options": ["--nodelist=n1"]}
    write_cluster_file(root, "minutes", cluster, **keys)
    saves = (
        "if [[ ${SLURM_RESTART_COUNT:-0} == 0 ]]; then "
        'until [[ -e "$SFT_STOP_FILE" ]]; do sleep 0.2; done; echo saved >"$SFT_RUN/checkpoint"; '
        'else echo "resumed from: $(cat "$SFT_RUN/checkpoint")"; fi'
    )
    last_step = 'until [[ -e "$SFT_STOP_FILE" ]]; do sleep 0.2; done; touch "${SFT_STOP_FILE%/*}/trained"'
    fake = root / "fake-python"  # trains at once; its first export would take minutes
    fake.write_text(
        '#!/bin/bash\ncase "$*" in *"convert export"*) ((${SLURM_RESTART_COUNT:-0})) || sleep 1800 ;;'
        ' *distributed.run*) touch "${SFT_STOP_FILE%/*}/trained" ;; esac\n'
    )
    fake.chmod(0o755)
    write_cluster_file(root, "export", cluster, python=str(fake), **keys)
    drivers = {
        "exports": Driver(root, "exports", "export"),
        "saves": Driver(root, "saves", "minutes", "bash", "-c", saves),
        "hangs": Driver(root, "hangs", "minutes", *SLEEP, stage="eval"),
        "last": Driver(root, "last", "minutes", "bash", "-c", last_step),
    }
    yield drivers
    for driver in drivers.values():
        if driver.process.poll() is None:
            driver.kill()


# How a job ends.


def test_completed_with_its_marker_is_complete(root):
    driver = Driver(root, "good", "one", "bash", "-c", "echo from the node")
    output = driver.end(0)
    assert "from the node" in output
    assert ": COMPLETED, complete" in output
    assert jobs.outcome(driver.run) == "complete"
    assert (driver.run / "logs/latest/node-0.log").read_text() == "from the node\n"


def test_a_job_syncs_its_run_to_a_server_at_its_end_and_is_complete_if_that_fails(cluster, root):
    python = root / "sync-python"
    python.write_text('#!/bin/bash\necho "$SLURM_STEP_ID $*" >"$SFT_RUN/sync"\nexit 1\n')
    python.chmod(0o755)
    write_cluster_file(root, "syncs", cluster, python=str(python))
    run = root / "runs/synced"
    run.mkdir(parents=True)
    (run / "journal.jsonl").write_text('{"attempt": 1, "kind": "attempt"}\n')
    output = Driver(root, "synced", "syncs", "true", MLFLOW_TRACKING_URI="http://127.0.0.1:9").end(0)
    assert "MLflow is not synced" in output
    assert (run / "sync").read_text() == f"1 -m sft.tracking.cli sync --run {run}\n"
    assert '"kind": "end", "status": "FINISHED"' in (run / "journal.jsonl").read_text()


def test_failed_shows_the_log_of_the_task_that_failed_first(cluster, root):
    write_cluster_file(root, "two", cluster, nodes=2)
    program = "if [[ $SLURM_PROCID == 1 ]]; then echo the reason; exit 42; else sleep 1800; fi"
    output = Driver(root, "bad", "two", "bash", "-c", program).end(1)
    assert ": FAILED (NonZeroExitCode): " in output
    assert "node-1.log ends:\n    the reason" in output
    assert "from its newest checkpoint: make train CLUSTER=two" in output


def test_after_a_failure_the_same_command_submits_again(root):
    program = 'if [[ -e "$SFT_RUN/fixed" ]]; then echo fixed; else exit 1; fi'
    first = Driver(root, "fixed", "one", "bash", "-c", program)
    first.end(1)
    assert jobs.outcome(first.run) == "FAILED"
    (first.run / "fixed").touch()
    second = Driver(root, "fixed", "one", "bash", "-c", program)
    second.end(0)
    assert second.job() != first.job()


@pytest.mark.parametrize(
    ("setup", "name"), [("exit 0", "silent"), ("echo another-run >$SFT_RUN/complete; exit 0", "foreign")]
)
def test_completed_without_the_marker_of_this_run_is_a_failure(cluster, root, setup, name):
    """A line of job_setup ends the job with 0 before it does anything."""
    write_cluster_file(root, name, cluster, job_setup=[setup])
    driver = Driver(root, name, name, "true")
    assert ": COMPLETED, but it left no completion marker" in driver.end(1)
    assert jobs.outcome(driver.run) == "COMPLETED"


def test_cancelled_is_a_failure_even_if_the_job_ends_with_0(cluster, root):
    """`sbatch --wait` ends with 0 for such a job."""
    write_cluster_file(root, "trap", cluster, job_setup=["trap 'exit 0' TERM"])
    driver = Driver(root, "cancelled", "trap", *SLEEP)
    wait_for(lambda: "begun" in driver.text())
    cluster.ask("scancel", driver.job())
    assert ": CANCELLED: " in driver.end(1)


GREEDY = "python3 -c 'bytearray(400_000_000)'"


@pytest.mark.skipif(not Path("/sys/fs/cgroup/memory").is_dir(), reason="no memory control groups of version 1 here")
@pytest.mark.parametrize("where", ["in the job's script", "in a step"])
def test_out_of_memory_says_what_to_do(cluster, root, where):
    """Slurm reports OUT_OF_MEMORY for the script itself, but FAILED for one of its steps."""
    name = where.replace(" ", "-").replace("'", "")
    in_step = where == "in a step"
    write_cluster_file(root, name, cluster, sbatch_options=["--mem=200"], job_setup=[] if in_step else [GREEDY])
    output = Driver(root, name, name, "bash", "-c", GREEDY).end(1)
    assert (": FAILED" if in_step else ": OUT_OF_MEMORY") in output
    assert "Raise memory_per_node" in output


def test_a_preempted_job_restarts_when_nodes_are_free(cluster, root):
    cluster.free()
    driver = Driver(root, "preempted", "here", *hangs_once("begun"))
    wait_for(lambda: "begun" in driver.text(), describe=driver.text)
    cluster.ask("sbatch", "--partition=urgent", "--nodelist=n2", "--exclusive", "--output=/dev/null", "--wrap=true")
    check_restart(driver)
    assert "DUE TO PREEMPTION" in (driver.run / f"logs/{driver.job()}.log").read_text()


@pytest.mark.parametrize(
    ("stage", "at_sigterm", "logged"),
    [
        ("train", 'touch "$SFT_STOP_FILE"; exit 0', "asked to end (SIGTERM)"),
        ("train", "exit 143", "training failed with status"),  # before its first step, or in import and export
        ("eval", "exit 143", "eval failed"),
    ],
)
def test_a_job_that_is_preempted_with_a_grace_time_is_requeued_by_slurm(cluster, root, stage, at_sigterm, logged):
    """Slurm sends SIGTERM to the steps; the job's script must not end before Slurm requeues it."""
    cluster.free()
    program = (
        f"trap '{at_sigterm}' TERM; echo begun; ((${{SLURM_RESTART_COUNT:-0}})) || {{ sleep 300 & wait; }}; echo again"
    )
    cluster.ask("scontrol", "update", "partitionname=main", "gracetime=5")
    try:
        driver = Driver(root, f"grace-{stage}-{len(logged)}", "here", "bash", "-c", program, stage=stage)
        wait_for(lambda: "begun" in driver.text(), describe=driver.text)
        cluster.ask("sbatch", "--partition=urgent", "--nodelist=n2", "--exclusive", "--output=/dev/null", "--wrap=true")
        check_restart(driver)
    finally:
        cluster.ask("scontrol", "update", "partitionname=main", "gracetime=0")
    text = (driver.run / f"logs/{driver.job()}.log").read_text()
    assert logged in text
    assert "requeued: attempt" not in text


def test_a_job_whose_ranks_got_sigterm_is_requeued_and_after_two_attempts_without_a_checkpoint_stops(cluster, root):
    cluster.free()
    output = Driver(root, "stuck", "here", "bash", "-c", 'touch "$SFT_STOP_FILE"').end(1)
    assert "requeued: attempt 3 resumes" in output
    assert "without a new checkpoint (newest: none)" in output


def test_a_job_restarts_after_a_node_failure(cluster, root):
    cluster.free()
    driver = Driver(root, "lost", "here", *hangs_once("begun"))
    wait_for(lambda: "begun" in driver.text(), describe=driver.text)
    cluster.ask("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    wait_for(lambda: cluster.state_of(driver.job()) == "PENDING")
    cluster.ask("scontrol", "update", "nodename=n2", "state=resume", may_fail=True)  # it may be back by itself
    check_restart(driver)
    assert "DUE TO NODE FAILURE" in (driver.run / f"logs/{driver.job()}.log").read_text()


def hangs_once(word: str) -> tuple[str, ...]:
    """A program that hangs in its first attempt and succeeds in its second."""
    return ("bash", "-c", f"echo {word}; ((${{SLURM_RESTART_COUNT:-0}})) || sleep 1800; echo again")


def check_restart(driver: Driver) -> None:
    wait_for(lambda: "PENDING" in driver.text())
    output = driver.end(0)
    assert "attempt 2" in output
    assert "again" in output
    attempts = [driver.run / "logs" / f"{driver.job()}-{restart}" for restart in (0, 1)]
    assert all((attempt / "node-0.log").exists() for attempt in attempts)
    assert (driver.run / "logs/latest").resolve() == attempts[-1]


def test_a_job_is_requeued_at_most_as_often_as_the_cluster_file_allows(cluster, root):
    write_cluster_file(root, "bounded", cluster, requeues=0)
    driver = Driver(root, "bounded", "bounded", *SLEEP)
    wait_for(lambda: "begun" in driver.text())
    cluster.ask("scontrol", "requeue", driver.job())
    assert "requeued 1 times, the cluster file allows 0 (requeues)" in driver.end(1)


# How the waiting process can be lost, or run twice.


def test_of_three_shells_at_once_one_submits_and_the_others_name_it(cluster, root):
    drivers = [Driver(root, "race", "one", *UNTIL_GO) for _ in range(3)]
    wait_for(lambda: sum(driver.process.poll() is not None for driver in drivers) == 2)
    (owner,) = (driver for driver in drivers if driver.process.poll() is None)
    for other in drivers:
        if other is not owner:
            assert f"error: runs/race: process {owner.process.pid} on {os.uname().nodename}, since 20" in other.end(1)
    job = owner.job()
    assert cluster.jobs("sft-race") == [job]
    (owner.run / "go").touch()
    owner.end(0)


def test_the_job_of_a_killed_shell_is_found_again(cluster, root):
    first = Driver(root, "killed", "one", *UNTIL_GO)
    wait_for(lambda: "begun" in first.text())
    first.kill()
    assert cluster.state_of(first.job()) == "RUNNING"
    second = Driver(root, "killed", "one", *UNTIL_GO)
    wait_for(lambda: "begun" in second.text())
    (first.run / "go").touch()
    output = second.end(0)
    assert FOUND.search(output).groups() == (first.job(), "found")
    assert "done" in output
    assert cluster.jobs("sft-killed") == []


def test_a_job_without_a_record_is_found_by_its_name(root):
    first = Driver(root, "unrecorded", "one", *UNTIL_GO)
    first.job()
    first.kill()
    (first.run / "job.json").unlink()
    second = Driver(root, "unrecorded", "one", *UNTIL_GO)
    assert second.job() == first.job()
    (first.run / "go").touch()
    second.end(0)


def test_detached_returns_while_the_job_runs(root):
    first = Driver(root, "detached", "one", *UNTIL_GO, DETACH="1")
    output = first.end(0)
    assert f"job {first.job()} on one: detached (DETACH=1)" in output
    assert "detached (DETACH=1)" in Driver(root, "detached", "one", *UNTIL_GO, DETACH="1").end(0)
    assert "detached (DETACH=1)" in Driver(root, "detached", "one", *UNTIL_GO, DETACH="1", DVC_STAGE="train").end(1)
    (first.run / "go").touch()
    wait_for(lambda: jobs.has_marker(first.run))
    Driver(root, "detached", "one", *UNTIL_GO, DVC_STAGE="train").end(0)
    assert jobs.outcome(first.run) == "complete"


def test_a_controller_that_is_restarted_is_waited_for(cluster, root):
    driver = Driver(root, "restarted", "one", *UNTIL_GO, SFT_TEST_SLURM_SECONDS="5")
    wait_for(lambda: "begun" in driver.text())  # srun asks the controller for a step: before it stops
    controller = cluster.pid("slurmctld")
    os.kill(controller, 15)
    wait_for(lambda: "state unknown: " in driver.text())
    wait_for(lambda: not Path(f"/proc/{controller}").exists())
    cluster.script("up")
    (driver.run / "go").touch()
    output = driver.end(0)
    assert output.rindex("COMPLETED") > output.rindex("state unknown")


def test_a_run_with_an_active_job_is_refused_on_another_cluster(cluster, root):
    first = Driver(root, "elsewhere", "one", *UNTIL_GO)
    first.job()
    assert f"follows job {first.job()} on one" in Driver(root, "elsewhere", "here", "true").end(1)
    first.kill()
    assert f"job {first.job()} on one, submitted 20" in Driver(root, "elsewhere", "here", "true").end(1)
    (first.run / "go").touch()
    Driver(root, "elsewhere", "one", *UNTIL_GO).end(0)


# What is refused: one message, and nothing is submitted.


def refused(cluster: Loopback, root: Path, name: str, **environ: str) -> str:
    driver = Driver(root, name, name, "true", **environ)
    output = driver.end(1)
    assert not (driver.run / "job.json").exists()
    assert output.startswith("error: ")
    assert output.count("\n") == 1, output
    return output


def test_an_unknown_partition_is_refused(cluster, root):
    write_cluster_file(root, "partition", cluster, partition="gpus")
    assert "allocation failure: Invalid partition name specified" in refused(cluster, root, "partition")
    assert cluster.jobs("sft-partition") == []


@pytest.mark.parametrize("keys", [{"gpus_per_node": 9, "ranks_per_node": 9}, {"nodes": 3}])
def test_more_than_the_cluster_has_is_refused(cluster, root, keys):
    write_cluster_file(root, "large", cluster, **keys)
    assert "Requested node configuration is not available" in refused(cluster, root, "large") or "nodes" in keys
    assert cluster.jobs("sft-large") == []


def test_a_missing_image_is_refused(cluster, root):
    write_cluster_file(root, "image", cluster, container={"image": "/images/none.sqsh"})
    assert "container.image: /images/none.sqsh: not found" in refused(cluster, root, "image")


def test_an_unset_variable_is_refused(cluster, root):
    write_cluster_file(root, "token", cluster, environment=["SOME_TOKEN"])
    assert "environment: SOME_TOKEN: not set" in refused(cluster, root, "token")


def test_a_controller_that_does_not_answer_is_one_message(cluster, root, tmp_path):
    conf = tmp_path / "slurm.conf"
    conf.write_text(cluster.conf.read_text().replace(f"SlurmctldPort={cluster.port}", "SlurmctldPort=9"))
    write_cluster_file(root, "silent-controller", slurm_conf=str(conf))
    message = refused(cluster, root, "silent-controller", SFT_TEST_SLURM_SECONDS="5")
    assert re.search("the Slurm controller does not answer|no answer from Slurm", message)


def test_a_cluster_that_is_not_up_is_one_message(cluster, root):
    write_cluster_file(root, "down", slurm_conf="runs/none/slurm.conf")
    assert "runs/none/slurm.conf: not found" in refused(cluster, root, "down")


def test_a_rejected_credential_is_one_message(cluster, root, tmp_path):
    """A munge with another key acts like an expired token: both give a protocol authentication error."""
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
        write_cluster_file(root, "credential", slurm_conf=str(conf))
        assert "Slurm rejects your credential" in refused(cluster, root, "credential")
    finally:
        os.kill(int((place / "pid").read_text()), 15)


# What a job gets.


def test_a_job_gets_the_shell_s_modules_and_the_named_variables_and_no_file_holds_their_values(cluster, root):
    """`module` is an exported function of the login shell; sites set BASH_ENV too."""
    write_cluster_file(root, "secret", cluster, environment=["all", "SOME_TOKEN"], job_setup=["module load cuda"])
    (root / "site.sh").write_text("export FROM_SITE=yes\n")
    shell = {"BASH_FUNC_module%%": "() { echo loaded $2; }", "BASH_ENV": str(root / "site.sh")}
    shell |= {"SOME_TOKEN": "abcdefgh", "OTHER_TOKEN": "ijklmnop"}
    program = 'echo "${SOME_TOKEN:0:3} ${OTHER_TOKEN:-none} $FROM_SITE"'
    driver = Driver(root, "secret", "secret", "bash", "-c", program, **shell)
    output = driver.end(0)
    assert "\nloaded cuda\n" in output
    assert "\nabc none yes\n" in output
    files = [path for path in driver.run.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if b"abcdefgh" in path.read_bytes()]


def test_a_job_runs_the_code_of_its_submission(cluster, root):
    driver = Driver(root, "frozen", "one", "bash", "-c", 'cat "$SFT_CODE/params.yaml"; pwd')
    driver.job()
    (root / "params.yaml").write_text("train: {edited: 1}\n")
    output = driver.end(0)
    (root / "params.yaml").write_text("train: {}\n")
    assert "\ntrain: {}\n" in output
    assert f"\n{driver.run}/code\n" in output


# The node check.


def test_a_node_without_the_shared_folder_is_named(cluster, root):
    """The second node sees an empty project folder. Slurm ends the job, or that node leaves no marker."""
    write_cluster_file(root, "shared", cluster, nodes=2)
    enter = ["nsenter", f"--target={cluster.pid('slurmd-n2')}", "--mount"]
    subprocess.run([*enter, "mount", "-t", "tmpfs", "none", str(root)], check=True)
    try:
        output = Driver(root, "shared", "shared").end(1)
    finally:
        subprocess.run([*enter, "umount", str(root)], check=True)
    either = "Slurm could not start it on every node|is not visible, on: .*n2"
    assert re.search(either, output), output


def test_a_node_with_other_package_versions_is_refused(cluster, root):
    """The pins in the job's snapshot differ from what is installed."""
    write_cluster_file(root, "pins", cluster, job_setup=["echo numpy==0.1 >>$SFT_CODE/packages.txt"])
    output = Driver(root, "pins", "pins").end(1)
    assert "error: numpy: found " in output
    assert "expected 0.1" in output


def test_a_node_with_too_little_space_is_refused(cluster, root):
    write_cluster_file(root, "space", cluster, min_free_gb=10**9)
    assert "GB free for" in Driver(root, "space", "space").end(1)


# Tests without a cluster.


def test_a_dry_run_counts_every_check_that_refuses(capsys):
    paragraphs = [
        "image: ok",
        "Megatron-Bridge: FAILED: a",
        "estimate and checks:\nFAILED   disk",
        "data and model: FAILED: b",
    ]
    for number, some in ((1, paragraphs[:2]), (2, paragraphs[:3]), (3, paragraphs)):
        with pytest.raises(InputError, match=f"^{number} of the checks "):
            jobs.print_verdict(some)
    jobs.print_verdict(["slurm: ok: nothing FAILED: so far"])
    assert "Megatron-Bridge: FAILED: a" in capsys.readouterr().out


def test_job_setup_lines_run_as_in_an_ordinary_batch_script(tmp_path, monkeypatch):
    """`module` of a login shell, an unset variable, a line that fails; after them the script is strict again."""
    (tmp_path / "login").write_text(
        'PATH=/site/bin; [ -n "$BASH_VERSION" ] && module() { export LOADED="$2 $NEVER_SET"; false; }'
    )
    monkeypatch.setattr(jobs, "LOGIN_FILE", tmp_path / "login")
    lines = ["module load cuda", "export SEEN=${PS1}x$LD_LIBRARY_PATH_OF_NOBODY", "false | true", "false"]
    cluster = Cluster(partition="p", nodes=1, gpus_per_node=1, time="9", job_setup=lines)
    (tmp_path / "job_setup.sh").write_text(jobs.job_setup_script(cluster))
    script = f'set -euo pipefail; . {tmp_path}/job_setup.sh; echo "$LOADED|$SEEN|$PATH|$-|"; echo "$NEVER_SET"; echo no'
    done = subprocess.run(["bash", "-c", script], env={"PATH": "/bin"}, capture_output=True, text=True)
    loaded, seen, path, flags, rest = done.stdout.split("|")
    assert (loaded, seen, path, rest) == ("cuda ", "x", "/bin:/site/bin", "\n")
    assert {"e", "u"} <= set(flags)
    assert jobs.job_setup_script(cluster.model_copy(update={"job_setup": []})) == ""


def test_a_run_with_an_active_job_is_refused_on_this_machine(tmp_path):
    jobs.refuse_if_active(tmp_path)
    record = {"cluster": "big", "stage": "train", "job": "7", "outcome": None}
    write_json(tmp_path / "job.json", record)
    with pytest.raises(InputError, match=r"job 7 on big, submitted 20\S+, computes this run.*make cancel CLUSTER=big"):
        jobs.refuse_if_active(tmp_path)
    jobs.record_outcome(tmp_path, "FAILED", job="8")
    assert jobs.outcome(tmp_path) is None
    jobs.record_outcome(tmp_path, "FAILED", job="7")
    jobs.refuse_if_active(tmp_path)


@pytest.mark.parametrize("disk", [None, Path("/dev/shm")])
def test_copied_inputs_do_not_change_with_their_source(tmp_path, disk):
    """Also where runs/ is on another file system, to which nothing can be linked."""
    with tempfile.TemporaryDirectory(dir=disk or tmp_path) as other:
        assert (os.stat(other).st_dev == os.stat(tmp_path).st_dev) == (disk is None)
        source, copy = tmp_path / "data", Path(other, "copy")
        source.mkdir()
        (source / "a").write_text("old")
        jobs.publish_copy(source, copy)
        (source / "a").unlink()
        (source / "a").write_text("new")
        assert (copy / "a").read_text() == "old"


# The jobs that were started first.


def test_near_its_time_limit_a_job_saves_and_is_requeued(cluster, slow):
    driver = slow["saves"]
    output = driver.end(0)
    assert "requeued: attempt 2 resumes from the newest checkpoint" in output
    assert "the time limit is near" in output
    assert "resumed from: saved" in output
    assert "attempt 2" in output


def test_near_its_time_limit_a_job_that_has_trained_its_last_step_is_not_requeued(cluster, slow):
    output = slow["last"].end(0)
    assert "the time limit is near" in output
    assert "requeued" not in output
    assert ": COMPLETED, complete" in output


def test_an_export_that_its_time_limit_would_end_is_made_by_the_next_attempt(cluster, slow):
    output = slow["exports"].end(0)
    assert output.index("export") < output.index("not done in time") < output.index("requeued: attempt 2")
    assert ": COMPLETED, complete" in output


def test_a_job_that_does_not_stop_times_out(slow):
    output = slow["hangs"].end(1)
    assert ": TIMEOUT" in output
    assert "Raise `time`" in output
