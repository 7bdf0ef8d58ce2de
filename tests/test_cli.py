import argparse
import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from sft.cli import InputError, file_to_write, num_threads
from tests.support.dask_cluster import alive, wait_until
from tests.support.project import ROOT
from tests.support.stub_stage import call


def test_a_stage_that_works_ends_with_0_and_says_what_it_says(tmp_path):
    done = call(tmp_path, "echo('3 rows')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "3 rows\n", "")


def test_a_fault_of_the_input_is_one_message_without_a_traceback(tmp_path):
    done = call(tmp_path, "raise InputError('data/raw/x: empty. Fetch it.')")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: data/raw/x: empty. Fetch it.\n")


def test_what_looks_like_markup_or_an_emoji_in_a_message_is_printed_as_it_stands(tmp_path):
    text = "row 7: [bold]x[/] [/nothing] :warning: \\N{SNOWMAN}"
    assert call(tmp_path, f"raise InputError({text!r})").stderr == f"error: {text}\n"


def test_a_long_message_is_not_broken_into_lines(tmp_path):
    assert call(tmp_path, "raise InputError('x' * 500)").stderr == f"error: {'x' * 500}\n"


@pytest.mark.parametrize("text", ["\\N{SNOWMAN}", "\\udcff"], ids=["other encoding", "file name that is not UTF-8"])
def test_what_a_terminal_cannot_show_is_escaped(tmp_path, text):
    done = call(tmp_path, f"echo('{text} out'); raise InputError('{text} failed')", PYTHONIOENCODING="ascii")
    assert done.stderr.endswith(" failed\n")
    assert "error: \\u" in done.stderr
    assert done.stdout.endswith(" out\n")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_what_to_do(tmp_path, code):
    done = call(tmp_path, f"raise OSError({code}, 'Arrow: long text', 'data/x')")
    assert done.returncode == 1
    begin = f"error: {os.strerror(code)}: data/x. Free some space on the file system of {tmp_path} ("
    assert done.stderr.startswith(begin)
    assert done.stderr.endswith(" GB are free now) and rerun: nothing was half-written.\n")


def test_an_error_of_the_system_names_the_file(tmp_path):
    done = call(tmp_path, "open('missing')")
    assert (done.returncode, done.stderr) == (1, "error: No such file or directory: missing.\n")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise MemoryError", "out of memory. Set a smaller SFT_WORKERS"),
        ("from dvc.repo import Repo; Repo()", "DVC: you are not inside of a DVC repository"),
        ("from scmrepo.git import Git; Git()", "DVC: "),
        ("import subprocess; subprocess.run(['false'], check=True)", "false: ended with status 1: "),
    ],
)
def test_what_goes_wrong_outside_of_the_program_is_one_message(tmp_path, body, message):
    done = call(tmp_path, body)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--number", "-3"], "--number: '-3': expected a number, at least 1"),
        (["--number", "x"], "--number: 'x': expected"),
        (["--from", ""], "--from: '': expected"),
        (["--nmber", "3"], "unrecognized arguments: --nmber 3"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_the_help(option, said):
    program = [sys.executable, "-m", "sft.inspect.rejected", *option]
    done = subprocess.run(program, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert said in done.stderr
    assert "sft.inspect.rejected --help" in done.stderr


def test_a_file_to_write_is_no_folder(tmp_path):
    assert file_to_write(str(tmp_path / "page.html")) == tmp_path / "page.html"
    with pytest.raises(argparse.ArgumentTypeError, match="a folder"):
        file_to_write(str(tmp_path))


def test_an_interruption_ends_with_130(tmp_path):
    done = call(tmp_path, "raise KeyboardInterrupt")
    assert done.returncode == 130
    assert done.stderr == "error: ended by SIGINT. Rerun to continue: nothing was half-written.\n"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_program_and_what_it_started_as_ctrl_c_does(tmp_path, name):
    asked = f"import signal; signal.signal(signal.{name}, signal.SIG_DFL); run_stage(main, __doc__)"  # nohup ignores it
    child = f"import os, signal, time; time.sleep(0.5); os.kill(os.getppid(), signal.{name}); time.sleep(900)"
    started = time.monotonic()
    done = call(
        tmp_path, f"import sys; from sft.cli import run_child; run_child([sys.executable, '-c', {child!r}])", call=asked
    )
    assert done.returncode == 128 + signal.Signals[name]
    assert done.stderr == f"error: ended by {name}. Rerun to continue: nothing was half-written.\n"
    assert time.monotonic() - started < 800, "the program that it started was asked to end too"


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); run_stage(main, __doc__)"
    assert call(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGHUP)", call=ignoring).returncode == 0


def test_a_fault_of_the_program_shows_its_traceback(tmp_path):
    done = call(tmp_path, "raise ValueError('a bug')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(("text", "threads"), [(None, 3), ("", 3), (" ", 3), ("4", 4), ("4,2", 4)])
def test_threads_are_what_omp_num_threads_says_as_libraries_read_it(monkeypatch, text, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if text is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert num_threads(3) == threads


@pytest.mark.parametrize("text", ["all", "0", "-1", "2.5", ",2"])
def test_a_wrong_number_of_threads_is_named(monkeypatch, text):
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    with pytest.raises(InputError, match="OMP_NUM_THREADS="):
        num_threads(3)


PRINT_FACTS = """import subprocess
from sft import cli
def gather():
    cli.echo("progress")
    subprocess.run(["echo", "child"], check=True)
    {end}
    return {{"loss": float("inf"), "text": "\\u2028\\xe9"}}
def main():
    cli.print_facts(gather, lambda facts: cli.echo("shown"), as_json={as_json})
    cli.echo("after")
cli.run_or_exit(main)
"""


def print_facts(end: str = "", *, as_json: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PRINT_FACTS.format(end=end, as_json=as_json)]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True)


def test_facts_as_json_are_alone_on_stdout_whatever_the_program_and_its_children_print():
    done = print_facts()
    assert (done.returncode, json.loads(done.stdout)) == (0, {"loss": None, "text": "\u2028\xe9"})
    assert sorted(done.stderr.split()) == ["after", "child", "progress"]
    shown = print_facts(as_json=False)
    assert (sorted(shown.stdout.split()), shown.stderr) == (["after", "child", "progress", "shown"], "")


@pytest.mark.parametrize("end", ["raise cli.InputError('no')", "open('missing')"])
def test_facts_that_cannot_be_gathered_leave_stdout_empty(end):
    done = print_facts(end)
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: " in done.stderr


@pytest.mark.parametrize("body", ["raise InputError('no')", "raise KeyboardInterrupt"])
def test_under_torchrun_a_rank_leaves_at_once(tmp_path, body):
    held = f"import threading, time; threading.Thread(target=time.sleep, args=(600,)).start(); {body}"
    assert call(tmp_path, held, RANK="0").stderr.startswith("error: ")


def test_a_process_tied_to_its_parent_does_not_outlive_a_kill(tmp_path):
    child = (
        "import time; from sft.cli import end_with_parent; end_with_parent()\n"
        "print('tied', flush=True); time.sleep(900)"
    )
    parent = (
        "import os, signal, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE, text=True)\n"
        "print(child.stdout.readline().strip(), child.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=False, timeout=600)
    tied, pid = done.stdout.split()
    assert (tied, done.returncode) == ("tied", -9)
    wait_until(lambda: not alive(pid))


@pytest.mark.parametrize("module", ["sft.cluster.node_packages", "sft.evaluation.harness", "sft.rehearse.submit"])
def test_a_program_that_another_one_starts_says_without_arguments_what_it_expects(tmp_path, module):
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-m", module], cwd=tmp_path, env=environment, capture_output=True, text=True)
    printed = (done.stdout + done.stderr).splitlines()
    assert (done.returncode, len(printed), printed[0].partition(":")[0]) == (1, 1, "error"), printed
