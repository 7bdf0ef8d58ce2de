"""Machines that are not the developer's: no HOME, no git, pip's mirror, another python, odd paths, no rights."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.finished_project import make_recorded
from tests.support.project import ROOT, clone_checkout, run
from tests.test_setup import PYTHON, UV, Sandbox, write_program

BIN = Path(sys.prefix, "bin")
ODD = "prüfung v?2 x%20y #1"  # characters that mean something to shells, addresses and encodings
NO_NAME = ("unshare", "--user", "--map-user=12345", "--map-group=12345")  # a uid without a name and without rights
HAS_NO_NAME = not subprocess.run([*NO_NAME, "true"], capture_output=True, check=False).returncode


def bare(folder: Path, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command with an environment that has PATH and what is given, as cron and systemd do."""
    environment = {"PATH": "/usr/bin:/bin", **environ}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    """A folder with the set-up and stand-ins for uv and python."""
    made = Sandbox(tmp_path)
    write_program(made.bin / "uv", UV)
    write_program(made.bin / "python3.12", PYTHON.replace("REAL", str(BIN / "python")))
    return made


# --- HOME, git, rights ------------------------------------------------------------------------------------


def test_set_up_and_make_work_without_home(sandbox):
    environment = {"PATH": f"{sandbox.bin}:/usr/bin:/bin", "LOG": str(sandbox.log)}
    done = bare(sandbox.root, "requirements/setup.sh", **environment)
    assert done.returncode == 0, done.stderr
    shown = bare(sandbox.root, "make", "-n", "rejected").stdout
    folder = re.search(r'install -d -m 700 "(.*)/nano3-sft/dvc"', shown)[1]
    assert not folder.startswith("/.cache")
    home = bare(sandbox.root, "bash", "-c", "echo ~").stdout.strip()
    assert folder in (f"{home}/.cache", f"{sandbox.root}/.dvc/tmp")


@pytest.mark.skipif(not HAS_NO_NAME, reason="this machine does not let one use another uid")
def test_where_home_cannot_be_written_the_private_cache_is_in_the_project(sandbox):
    home = sandbox.root.parent / "locked"
    home.mkdir(mode=0o500)
    shown = bare(sandbox.root, *NO_NAME, "make", "-n", "rejected", HOME=str(home)).stdout
    assert f'install -d -m 700 "{sandbox.root}/.dvc/tmp/nano3-sft/dvc"' in shown


def test_a_download_without_git_says_at_once_what_to_do_and_that_works(sandbox):
    shutil.rmtree(sandbox.root / ".git")
    status, said, asked = sandbox.run("requirements/setup.sh")
    assert (status, asked) == (1, [])
    assert "not a git repository" in said
    advice = re.search(r"git init .*", said)[0]
    identity = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a"}
    done = bare(sandbox.root, "bash", "-c", advice, **identity)
    assert done.returncode == 0, done.stderr
    assert sandbox.run("requirements/setup.sh")[0] == 0


def test_the_advice_for_a_download_commits_what_the_repository_has_and_nothing_else(tmp_path):
    checkout = clone_checkout(tmp_path / "checkout")
    listed = run(checkout, "git", "ls-files")
    (checkout / ".venv").unlink()
    shutil.rmtree(checkout / ".git")
    run(checkout, "bash", "-c", "git init -q && git add -A && git commit -q -m 'Downloaded'")
    assert run(checkout, "git", "ls-files") == listed
    assert run(checkout, "git", "status", "--porcelain") == ""


def test_a_repository_without_a_commit_and_one_of_somebody_else_are_explained(sandbox):
    shutil.rmtree(sandbox.root / ".git")
    sandbox.run("git", "init", "-q")
    status, said, asked = sandbox.run("requirements/setup.sh")
    assert (status, asked) == (1, [])
    assert "has no commit" in said
    os.chown(sandbox.root, 12345, 12345)
    os.chown(sandbox.root / ".git", 12345, 12345)
    status, said, asked = sandbox.run("requirements/setup.sh")
    assert (status, asked) == (1, [])
    assert "safe.directory" in said, "git's own advice"


@pytest.mark.skipif(not HAS_NO_NAME, reason="this machine does not let one use another uid")
def test_a_folder_that_cannot_be_written_is_one_message(sandbox):
    write_program(sandbox.root / "requirements/setup.sh", "#!/usr/bin/env bash\n")
    sandbox.root.chmod(0o555)
    done = bare(sandbox.root, *NO_NAME, "make", "filter", HOME=str(sandbox.home))
    sandbox.root.chmod(0o755)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if not line.startswith("make: ")]
    assert errors == [f"error: {sandbox.root}: you cannot write here. Copy the project to run it."]


# --- pip's mirror -----------------------------------------------------------------------------------------


def pip_settings():
    spec = importlib.util.spec_from_file_location("pip_settings", ROOT / "requirements/pip_settings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def uv_variables(folder: Path, **environ: str) -> dict[str, str]:
    """What uv is given where pip has only the settings of `environ`."""
    environ = {"PIP_CONFIG_FILE": os.devnull, "UV_NO_CONFIG": "1", "HOME": str(folder), **environ}
    done = bare(folder, str(BIN / "python"), str(ROOT / "requirements/pip_settings.py"), **environ)
    assert (done.returncode, done.stderr) == (0, "")
    return dict(setting.split("=", 1) for setting in done.stdout.split("\0")[:-1])


def test_what_pip_is_configured_for_is_passed_to_uv_by_variables_and_by_files(tmp_path):
    assert uv_variables(tmp_path) == {}
    assert uv_variables(tmp_path, PIP_INDEX_URL="https://m/simple") == {"UV_DEFAULT_INDEX": "https://m/simple"}
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://a:p%40ss@m/simple\nextra-index-url =\n    https://x/1\n    https://x/2\n"
        "trusted-host = m x\nfind-links = /wheels\n[install]\nproxy = http://proxy:3128\n"
    )
    given = uv_variables(tmp_path, PIP_CONFIG_FILE=str(config))
    assert (
        given.items()
        >= {
            "UV_DEFAULT_INDEX": "https://a:p%40ss@m/simple",
            "UV_INDEX": "https://x/1 https://x/2",
            "UV_FIND_LINKS": "/wheels",
            "UV_INSECURE_HOST": "m x",
            "ALL_PROXY": "http://proxy:3128",
            "UV_INDEX_STRATEGY": "unsafe-best-match",
        }.items()
    )
    given = uv_variables(tmp_path, PIP_CONFIG_FILE=str(config), PIP_INDEX_URL="https://b/simple", ALL_PROXY="http://c")
    assert given["UV_DEFAULT_INDEX"] == "https://b/simple", "a variable goes before a file, as for pip"
    assert "ALL_PROXY" not in given


@pytest.mark.parametrize("name", pip_settings().OF_UV)
def test_settings_of_uv_itself_are_left_alone(tmp_path, name):
    assert uv_variables(tmp_path, PIP_INDEX_URL="https://m/simple", **{name: "x"}) == {}


def test_set_up_gives_uv_the_mirror_and_does_not_print_its_password(sandbox):
    write_program(sandbox.bin / "uv", UV.replace('echo "uv $*"', 'echo "uv $* $UV_DEFAULT_INDEX"'))
    write_program(sandbox.bin / "python3.12", PYTHON.replace("REAL", str(BIN / "python")).replace("--without-pip", ""))
    mirror = {"PIP_INDEX_URL": "https://me:secret@mirror/simple", "PIP_CONFIG_FILE": os.devnull, "UV_NO_CONFIG": "1"}
    done = bare(sandbox.root, "requirements/setup.sh", **{**sandbox.environment(), **mirror})
    assert done.returncode == 0, done.stderr
    sync = next(line for line in sandbox.log.read_text().splitlines() if line.startswith("uv pip sync"))
    assert sync.endswith(" https://me:secret@mirror/simple")
    assert "UV_DEFAULT_INDEX" in done.stderr
    assert "secret" not in done.stdout + done.stderr


# --- Another python ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["python", "dvc"])
def test_what_the_environment_s_programs_start_is_its_python_without_activation(tmp_path, program):
    write_program(tmp_path / "other/python", "#!/bin/sh\necho another python\n")
    show = "python -c 'import sys; print(sys.prefix)' >prefix"
    command = ["-c", f'import subprocess; subprocess.run("""{show}""", shell=True, check=True)']
    if program == "dvc":
        (tmp_path / "dvc.yaml").write_text(f"stages:\n  a:\n    cmd: {show}\n")
        run(tmp_path, "git", "init", "-q")
        run(tmp_path, "dvc", "init", "-q")
        command = ["repro", "--quiet"]
    done = bare(tmp_path, str(BIN / program), *command, PATH=f"{tmp_path}/other:/usr/bin:/bin", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "prefix").read_text().strip() == sys.prefix


def test_a_stage_that_dvc_runs_with_another_python_names_both(tmp_path):
    (tmp_path / ".venv").mkdir()
    environ = {"PYTHONPATH": str(ROOT / "src"), "DVC_STAGE": "filter@a", "DVC_ROOT": str(tmp_path)}
    command = (str(BIN / "python"), "-m", "sft.stages.filter")
    other = f"error: python on PATH is {BIN / 'python'}, not the one of {tmp_path / '.venv'}. "
    done = bare(tmp_path, *command, **environ)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(other)
    (tmp_path / ".venv").rmdir()
    (tmp_path / ".venv").symlink_to(sys.prefix)
    assert "params.yaml" in bare(tmp_path, *command, **environ).stderr


@pytest.mark.skipif(not HAS_NO_NAME, reason="this machine does not let one use another uid")
def test_a_user_without_a_name_is_recorded_by_number(tmp_path):
    ask = "from sft.tracking.upload import user_name; print(user_name())"
    done = bare(tmp_path, *NO_NAME, str(BIN / "python"), "-c", ask, PYTHONPATH=str(ROOT / "src"), HOME="/")
    assert (done.returncode, done.stdout) == (0, "12345\n"), done.stderr


# --- Paths and names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C"}, {"LANG": "POSIX"}, {"LC_ALL": "en_US.ISO-8859-1"}])
def test_a_project_in_a_folder_with_an_odd_name_can_be_read_in_any_locale(tmp_path, locale):
    project = make_recorded(tmp_path / "projects" / ODD)
    environ = {"PYTHONPATH": str(ROOT / "src"), "HOME": str(tmp_path), **locale}
    done = bare(
        project, str(BIN / "python"), "-m", "sft.lineage.graph", "--model", str(project / "models/final"), **environ
    )
    assert done.returncode == 0, done.stderr
    assert "nodes with files are here and intact" in done.stdout
    assert [path.name for path in project.parent.iterdir()] == [ODD]
