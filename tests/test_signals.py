"""Signals: a stage that is asked to end says one line, exits with 128 + n and leaves nothing for the next run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sft import STOPPING
from tests.drill.operations import snapshot
from tests.support.dask_cluster import alive, wait_until
from tests.support.project import ROOT, link_project

# Sends the process a signal when it does something: imports a module, or makes or opens a path that holds a text.
SITE = """
import os, sys
event, text, number = os.environ["AT"].split()
def hook(what, arguments):
    if what == event and text in str(arguments[0]) and os.environ.pop("AT", None):
        os.kill(os.getpid(), int(number))
sys.addaudithook(hook)
"""
STAGES = {
    "fetch": ("--source", "calls"),
    "filter": ("--source", "calls"),
    "prep": ("--source", "calls"),
    "pack": (),
    "train": (),
    "eval": (),
}
# While modules are imported, and when the stage writes its output.
EARLY = ("import", "rich.console")
LATE = {
    "fetch": ("os.mkdir", "data/raw/.calls.partial"),
    "filter": ("open", "data/filtered/.calls.partial"),
    "prep": ("open", "data/prepared/.calls.partial"),
    "pack": ("open", "data/.packed.partial"),
    "train": ("open", "journal.jsonl"),
    "eval": ("import", "sft.params.schema"),  # before it needs a trained model
}
CASES = [(stage, at) for stage in STAGES for at in (EARLY, LATE[stage])]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **more}


def run(project: Path, stage: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"sft.stages.{stage}", *STAGES[stage]]
    return subprocess.run(command, cwd=project, env=environment(**environ), capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose data is packed."""
    project = tmp_path_factory.mktemp("signals") / "project"
    link_project(project)
    for stage, source in [
        *(("fetch", each) for each in ("calls", "chats", "model", "benchmarks")),
        *((stage, each) for each in ("calls", "chats") for stage in ("filter", "prep")),
    ]:
        command = [sys.executable, "-m", f"sft.stages.{stage}", "--source", source]
        subprocess.run(command, cwd=project, env=environment(), check=True, capture_output=True)
    assert run(project, "pack").returncode == 0
    return project


@pytest.mark.parametrize("number", STOPPING, ids=lambda number: number.name)
@pytest.mark.parametrize(("stage", "at"), CASES)
def test_a_stage_ends_with_one_line_and_the_next_run_gives_the_same_bytes(finished, tmp_path, stage, at, number):
    project, site = finished, tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    before = snapshot(project)
    path = os.pathsep.join((str(site), str(ROOT / "src")))
    done = run(project, stage, PYTHONPATH=path, AT=f"{at[0]} {at[1]} {number:d}")
    assert (done.returncode, done.stderr.count("\n")) == (128 + number, 1), done.stderr
    assert done.stderr.startswith(f"error: ended by {number.name}. ")
    assert snapshot(project) == before
    assert not [path for path in project.rglob(".*partial*") if path.parent.name != "base"]
    if stage in ("fetch", "filter", "prep", "pack") and at == LATE[stage] and number == signal.SIGTERM:
        assert run(project, stage).returncode == 0
        assert snapshot(project) == before


@pytest.mark.parametrize("has_shell", [False, True])
def test_a_stage_ends_when_its_dvc_is_ended_alone(tmp_path, has_shell):
    (tmp_path / "stage.py").write_text(
        "import os, time\nfrom sft.cli import end_with_dvc, run_or_exit\n"
        "def main():\n    end_with_dvc(); print(os.getpid(), flush=True); time.sleep(600)\nrun_or_exit(main)\n"
    )
    command = [sys.executable, "stage.py"]
    if has_shell:  # it waits for the stage, as dash does; its command names the program, as that of dvc.yaml does
        command = ["sh", "-c", f"{sys.executable} stage.py; exit $?; python -m sft.stages.prep"]
    dvc = [sys.executable, "-c", f"import subprocess; subprocess.call({command!r})"]
    process = subprocess.Popen(
        dvc, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pid = process.stdout.readline().strip()
    process.terminate()
    _, said = process.communicate(timeout=60)
    wait_until(lambda: not alive(pid))
    assert said == "error: ended by SIGTERM. Rerun to continue: nothing was half-written.\n"


@pytest.mark.parametrize("number", STOPPING, ids=lambda number: number.name)
def test_a_second_signal_does_not_cut_short_what_is_cleaned_up(tmp_path, number):
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom sft.cli import run_or_exit\n"
        "def main():\n"
        f"    try: os.kill(os.getpid(), {number:d})\n"
        f"    finally: os.kill(os.getpid(), {signal.SIGINT:d}); Path('cleaned').touch()\n"
        "run_or_exit(main)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n"), (tmp_path / "cleaned").exists()) == (128 + number, 1, True)
