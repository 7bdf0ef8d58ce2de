import errno
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_what_to_do(tmp_path, code):
    done = call(tmp_path, f"raise OSError({code}, 'No space', 'data/x')")
    assert done.returncode == 1
    assert done.stderr == "error: No space: data/x. Free some space and rerun: nothing was half-written.\n"


def test_an_error_of_the_system_names_the_file(tmp_path):
    done = call(tmp_path, "open('missing')")
    assert (done.returncode, done.stderr) == (1, "error: No such file or directory: missing.\n")


def test_an_interruption_ends_with_130(tmp_path):
    done = call(tmp_path, "raise KeyboardInterrupt")
    assert done.returncode == 130
    assert done.stderr == "error: interrupted. Rerun to continue: nothing was half-written.\n"


def test_a_fault_of_the_program_shows_its_traceback(tmp_path):
    done = call(tmp_path, "raise ValueError('a bug')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("body", ["raise InputError('no')", "raise KeyboardInterrupt"])
def test_under_torchrun_a_rank_leaves_at_once(tmp_path, body):
    held = f"import threading, time; threading.Thread(target=time.sleep, args=(600,)).start(); {body}"
    assert call(tmp_path, held, RANK="0").stderr.startswith("error: ")


def test_a_process_tied_to_its_parent_does_not_outlive_a_kill(tmp_path):
    child = (
        "import time; from sft.cli import end_with_parent; end_with_parent()\nprint('tied', flush=True); time.sleep(60)"
    )
    parent = (
        "import os, signal, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE, text=True)\n"
        "print(child.stdout.readline().strip(), child.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=False, timeout=60)
    tied, pid = done.stdout.split()
    assert (tied, done.returncode) == ("tied", -9)
    deadline = time.monotonic() + 10
    while (
        Path(f"/proc/{pid}/cmdline").exists()
        and Path(f"/proc/{pid}/cmdline").read_bytes()
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    cmdline = Path(f"/proc/{pid}/cmdline")
    assert not cmdline.exists() or not cmdline.read_bytes(), "gone, or a zombie that init will fetch"
