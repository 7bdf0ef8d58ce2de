import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
STAGE = '''"""What this stage does."""
import errno
from sft.cli import InputError, echo, run_source_stage, run_stage
def main() -> None:
    {body}
def one(source: str) -> None:
    echo("source", source)
{call}
'''


def call(tmp_path: Path, body: str = "pass", *arguments: str, call: str = "run_stage(main, __doc__)", **environment):
    (tmp_path / "stage.py").write_text(STAGE.format(body=body, call=call))
    (tmp_path / "params.yaml").write_bytes((SRC.parent / "params.yaml").read_bytes())
    return subprocess.run(
        [sys.executable, "-m", "stage", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SRC), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


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


def test_a_source_stage_gets_its_source_and_wants_one(tmp_path):
    source_stage = "run_source_stage(one, __doc__)"
    assert call(tmp_path, "pass", "--source", "bfcl", call=source_stage).stdout == "source bfcl\n"
    assert call(tmp_path, "pass", call=source_stage, DVC_STAGE="filter@bfcl").stdout == "source bfcl\n"
    assert call(tmp_path, "pass", "--source", "a", call=source_stage, DVC_STAGE="b@c").stdout == "source a\n"
    missing = call(tmp_path, call=source_stage)
    assert missing.returncode == 2
    assert "--source" in missing.stderr


def test_help_is_the_module_s_docstring_under_its_real_name(tmp_path):
    done = call(tmp_path, "raise SystemExit(9)", "--help")
    assert done.returncode == 0
    assert "python -m stage" in done.stdout
    assert "What this stage does." in done.stdout
    assert call(tmp_path, "pass", "--unknown").returncode == 2


def test_a_stage_checks_all_of_params_yaml_before_it_runs(tmp_path):
    (tmp_path / "stage.py").write_text(STAGE.format(body="echo('ran')", call="run_stage(main, __doc__)"))
    params = (SRC.parent / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(params.replace("  train_iters:", "  train_itres:"))
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run(
        [sys.executable, "-m", "stage"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "train.train_itres" in done.stderr


@pytest.mark.parametrize("stage", ["fetch", "filter", "prep", "pack", "train", "eval"])
def test_help_of_a_stage_needs_no_heavy_import(stage):
    heavy = "{'torch', 'transformers', 'megatron', 'mlflow', 'pyarrow'}"
    code = (
        f"import sys, runpy; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module('sft.stages.{stage}', run_name='__main__')\n"
        f"except SystemExit as end: assert not end.code\n"
        f"assert not (found := {heavy} & set(sys.modules)), found"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout


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
