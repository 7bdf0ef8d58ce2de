"""journal: in order, a kill loses nothing, nothing is there twice, every attempt ends."""

import json
import os
import signal
import subprocess
import sys

import pytest

from sft.tracking import journal
from sft.tracking.journal import Dataset, Journal, open_run, record_status

DATA = [Dataset("packed", "f" * 64, "file:///data", "training", {})]


def begin(folder, **tags):
    return open_run(folder / "0123456789abcdef", {"optimizer": {"lr": 1e-5}}, tags, DATA)


def entries(run_journal, kind):
    return [entry for _, entry in run_journal.read() if entry["kind"] == kind]


def test_entries_are_read_in_order_from_any_offset(tmp_path):
    run_journal = Journal(tmp_path / "key")
    for number in range(3):
        run_journal.add("x", number=number)
    ends = [end for end, _ in run_journal.read()]
    assert [entry["number"] for _, entry in run_journal.read(ends[0])] == [1, 2]
    assert ends[-1] == run_journal.file.stat().st_size
    assert list(run_journal.read(ends[-1])) == []


@pytest.mark.parametrize("cut", [1, 2, 15, 40])
def test_a_line_that_a_kill_cut_is_no_entry_and_the_next_is_whole(tmp_path, cut):
    run_journal = Journal(tmp_path / "key")
    for number in (1, 2):
        run_journal.add("x", number=number, values={"loss": 1.0})
    run_journal.file.write_bytes(run_journal.file.read_bytes()[:-cut])
    assert [entry["number"] for _, entry in run_journal.read()] == [1]
    Journal(tmp_path / "key").add("x", number=3)
    lost = [] if cut == 1 else [2]  # only its newline is cut: it is whole again
    assert [entry["number"] for _, entry in run_journal.read()] == [n for n in (1, 2, 3) if n not in lost]


def test_what_a_power_loss_leaves_is_no_entry(tmp_path):
    run_journal = Journal(tmp_path / "key")
    run_journal.add("x", number=1)
    with run_journal.file.open("ab") as file:
        file.write(b'\0\0\xff{"kind": "x"}}\n\0\0')
    run_journal.add("x", number=2)
    assert [entry["number"] for _, entry in run_journal.read()] == [1, 2]


def test_a_disk_that_fills_up_in_a_line_loses_that_line_only(tmp_path):
    """A real full disk: the file may not grow beyond a limit, which ends a write in the middle."""
    program = (
        "import resource, signal, sys; from pathlib import Path; from sft.tracking.journal import Journal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
        "run_journal = Journal(Path(sys.argv[1]))\n"
        "for number in range(100): run_journal.add('x', number=number)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "key")], capture_output=True, check=False)
    assert b"OSError" in done.stderr
    run_journal = Journal(tmp_path / "key")
    assert run_journal.file.stat().st_size == 300
    written = [entry["number"] for entry in run_journal.entries("x")]
    assert written == list(range(len(written)))
    run_journal.add("x", number=4711)
    assert [entry["number"] for entry in run_journal.entries("x")] == [*written, 4711]


def test_what_a_store_has_is_written_down_for_each_store(tmp_path):
    run_journal = Journal(tmp_path / "key")
    run_journal.add("x")
    run_journal.set_synced("one", {"bytes": run_journal.file.stat().st_size, "run_id": "1"})
    assert (run_journal.pending("one"), run_journal.pending("another")) == (0, 1)
    run_journal.set_synced("another", {"bytes": 0})
    assert run_journal.synced("one")["run_id"] == "1"


def test_an_attempt_that_never_ended_is_killed_by_the_next(tmp_path):
    begin(tmp_path)
    run_journal = begin(tmp_path)
    assert [(entry["attempt"], entry["status"]) for entry in entries(run_journal, "end")] == [(1, "KILLED")]
    assert [entry["attempt"] for entry in entries(run_journal, "attempt")] == [1, 2]


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_an_attempt_ends_as_it_ended(tmp_path, error, status):
    run_journal = begin(tmp_path)
    if error:
        with pytest.raises(error), record_status(run_journal):
            raise error
    else:
        with record_status(run_journal):
            pass
    assert [entry["status"] for entry in entries(run_journal, "end")] == [status]
    assert run_journal.attempts() == {1: None}


def test_sigterm_ends_an_attempt_as_killed(tmp_path):
    program = (
        "import os, signal, sys; from pathlib import Path; from sft.cli import run_or_exit; "
        "from sft.tracking.journal import *\n"
        "run_journal = open_run(Path(sys.argv[1]), {}, {}, [])\n"
        "def main():\n"
        "    with record_status(run_journal): os.kill(os.getpid(), signal.SIGTERM); signal.pause()\n"
        "run_or_exit(main)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "key")], capture_output=True, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert [entry["status"] for entry in entries(Journal(tmp_path / "key"), "end")] == ["KILLED"]


def test_an_attempt_whose_process_is_gone_is_ended_and_one_that_lives_is_not(tmp_path):
    run_journal = begin(tmp_path)
    assert journal.end_dead_attempts(run_journal) == []
    text = run_journal.file.read_text().replace(f'"pid": {os.getpid()}', '"pid": 4194305')  # above any pid
    run_journal.file.write_text(text)
    assert journal.end_dead_attempts(run_journal) == [1]
    assert entries(run_journal, "end")[0]["status"] == "KILLED"
    assert journal.end_dead_attempts(run_journal) == []


def test_the_attempt_of_a_job_does_not_end_with_the_process_that_submitted_it(tmp_path):
    run_journal = begin(tmp_path)
    text = run_journal.file.read_text().replace(f'"pid": {os.getpid()}', '"pid": 4194305')
    on_cluster = [json.loads(line) for line in text.splitlines()]
    on_cluster[-1]["tags"] = {"cluster": "lab"}
    run_journal.file.write_text("".join(json.dumps(entry) + "\n" for entry in on_cluster))
    assert on_cluster[-1]["kind"] == "attempt"
    assert journal.end_dead_attempts(run_journal) == []


def test_attached_files_are_kept_as_they_were(tmp_path):
    run_journal = Journal(tmp_path / "key")
    report = tmp_path / "pack.json"
    report.write_text("one")
    run_journal.attach("records", {"reports/pack.json": report})
    report.write_text("two")
    run_journal.attach("records", {"reports/pack.json": report})
    run_journal.attach("records", {})
    kept = [
        (run_journal.folder / entry["files"] / "reports/pack.json").read_text()
        for entry in entries(run_journal, "files")
    ]
    assert kept == ["one", "two"]


def test_one_process_syncs_at_a_time(tmp_path):
    run_journal = Journal(tmp_path / "key")
    with run_journal.sync_lock(0) as first, run_journal.sync_lock(0) as second:
        assert (first, second) == (True, False)
    with run_journal.sync_lock(0) as again:
        assert again


def test_a_model_that_was_trained_elsewhere_gets_its_run_from_lineage_json(tmp_path):
    model = tmp_path / "models/final"
    model.mkdir(parents=True)
    lineage = {"lineage_key": "k", "data": "d", "base_model": "b", "code": "c", "git_commit": "a", "params": {"x": 1}}
    (model / "lineage.json").write_text(json.dumps({**lineage, "parent": "p"}))
    run_journal = journal.open_model(tmp_path / "runs/k", model)
    assert [entry["kind"] for _, entry in run_journal.read()] == ["run", "model"]
    assert entries(run_journal, "run")[0]["params"] == {"x": "1", "data": "d", "base_model": "b", "code": "c"}
    assert entries(run_journal, "model")[0]["parent"] == "p"
    journal.open_model(tmp_path / "runs/k", model)
    assert len(list(run_journal.read())) == 2, "added once"
