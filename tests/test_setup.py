"""Setup, Make targets and pins, with stand-ins for uv and dvc that record their arguments."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.support.project import clone_checkout, commit, run

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "requirements"

# Makes what setup.sh then imports.
UV = """#!/usr/bin/env bash
echo "uv $*" >> "$LOG"
if [[ "$1 $2" == "pip sync" ]]; then
    [[ ! -e fail ]] || exit 1
    for package in torch transformers mlflow dvc dvc/commands dvc/repo sft; do
        mkdir -p .venv/lib/python3.12/site-packages/$package
        touch .venv/lib/python3.12/site-packages/$package/__init__.py
    done
    touch .venv/lib/python3.12/site-packages/dvc/commands/repro.py
    touch .venv/lib/python3.12/site-packages/dvc/repo/{reproduce,experiments}.py
    exit 0
fi
[[ "$1" == pip ]]  # `uv python find` finds nothing
"""
PYTHON = """#!/usr/bin/env bash
if [[ "$1 $2" == "-m venv" ]]; then echo "venv" >> "$LOG"; set -- -m venv --without-pip "${@:3}"; fi
exec REAL "$@"
"""
RECORD = '#!/usr/bin/env bash\necho "$(basename "$0") $*" >> "$LOG"\n'
EXIT = '[[ "$*" == *experiments.check* || ! -e "$LOG.status" ]] || exit "$(cat "$LOG.status")"\n'
SHIM = "#!/usr/bin/env bash\necho 'pyenv: 3.12: command not found' >&2; exit 127\n"


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Sandbox:
    """A folder with this repository's Makefile and set-up, and programs that are stand-ins."""

    def __init__(self, folder: Path):
        self.root = folder / "repository"
        self.bin = folder / "bin"
        self.log = folder / "log"
        self.home = folder / "home"
        shutil.copytree(REQUIREMENTS, self.root / "requirements")
        for name in ("Makefile", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root)
        self.home.mkdir()
        identity = ("-c", "user.name=a", "-c", "user.email=a")
        for command in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "--message", "a"]):
            subprocess.run(["git", *command], cwd=self.root, check=True)

    def environment(self) -> dict[str, str]:
        """All that the commands see of this machine's environment."""
        return {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.home), "LOG": str(self.log)}

    def run(self, *command: str) -> tuple[int, str, list[str]]:
        """Exit status, messages, and what the stand-ins were asked."""
        self.log.write_text("")
        environment = self.environment()
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=600)
        return done.returncode, done.stdout + done.stderr, self.log.read_text().splitlines()


@pytest.fixture
def setup(tmp_path: Path) -> Sandbox:
    sandbox = Sandbox(tmp_path)
    real = Path(sys.prefix, "bin", "python")
    write_program(sandbox.bin / "uv", UV)
    write_program(sandbox.bin / "python3.12", PYTHON.replace("REAL", str(real)))
    return sandbox


@pytest.fixture
def make(tmp_path: Path) -> Sandbox:
    sandbox = Sandbox(tmp_path)
    write_program(sandbox.root / "requirements" / "setup.sh", "#!/usr/bin/env bash\n")
    for program in ("dvc", "mlflow", "pytest"):
        write_program(sandbox.root / ".venv" / "bin" / program, RECORD)
    return sandbox


def test_setup_makes_the_environment_once(setup):
    status, said, asked = setup.run("requirements/setup.sh")
    assert status == 0, said
    assert asked[0] == "uv python find --system 3.12"
    assert asked[1] == "venv"
    assert "requirements/data.txt requirements/train.txt requirements/tools.txt requirements/dev.txt" in asked[2]
    assert asked[3].endswith("--no-deps --no-build-isolation --editable .")
    assert setup.run("requirements/setup.sh") == (0, "", [])


def test_packages_for_gpus_are_compiled_on_request_and_kept_until_they_are_removed(setup):
    write_program(setup.bin / "nvcc", "#!/usr/bin/env bash\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    write_program(setup.bin / "g++", RECORD)
    status, said, asked = setup.run("requirements/setup.sh", "full")
    assert status == 0, said
    assert asked[-1].endswith("--no-deps --no-build-isolation --requirement requirements/gpu.txt")
    assert setup.run("requirements/setup.sh") == (0, "", [])
    with (setup.root / "requirements/dev.txt").open("a") as pinned:
        pinned.write("more==1\n")
    assert setup.run("requirements/setup.sh")[2][-1].endswith("requirements/gpu.txt")
    assert not [line for line in setup.run("requirements/setup.sh", "none")[2] if "gpu.txt" in line]
    assert setup.run("requirements/setup.sh") == (0, "", [])


def test_what_compiling_needs_is_one_message_before_anything_is_installed(setup):
    status, said, asked = setup.run("env", "CUDA_HOME=/none", "CXX=no-such-compiler", "requirements/setup.sh", "full")
    assert (status, asked) == (1, [])
    for needed in ("nvcc of CUDA 13 (CUDA_HOME=/none)", "CXX=no-such-compiler", "docs/gpu-machine.md"):
        assert needed in said
    write_program(setup.bin / "nvcc", "#!/usr/bin/env bash\necho 'release 12.8, V12.8.1'\n")
    assert f"nvcc of CUDA 13, found {setup.bin}/nvcc of 12.8" in setup.run("requirements/setup.sh", "full")[1]
    assert "GPU=H100: expected GPU=full" in setup.run("requirements/setup.sh", "H100")[1]


def test_a_changed_pin_repeats_the_install_in_the_same_environment(setup):
    setup.run("requirements/setup.sh")
    with (setup.root / "requirements" / "dev.txt").open("a") as pins:
        pins.write("six==1.17.0\n")
    status, _, asked = setup.run("requirements/setup.sh")
    assert status == 0
    assert [line.split()[2] for line in asked] == ["sync", "install"]


def test_a_set_up_that_failed_or_was_interrupted_is_begun_anew(setup):
    (setup.root / "fail").touch()
    assert setup.run("requirements/setup.sh")[0] != 0
    (setup.root / "fail").unlink()
    status, _, asked = setup.run("requirements/setup.sh")
    assert (status, "venv" in asked) == (0, True)
    assert setup.run("requirements/setup.sh")[2] == []


def test_an_environment_that_was_moved_is_made_anew(setup):
    setup.run("requirements/setup.sh")
    setup.root = setup.root.rename(setup.root.with_name("elsewhere"))
    status, _, asked = setup.run("requirements/setup.sh")
    assert (status, "venv" in asked) == (0, True)


def test_an_environment_that_does_not_work_is_not_taken_for_made(setup):
    write_program(setup.bin / "uv", UV.replace("torch ", ""))
    status, said, _ = setup.run("requirements/setup.sh")
    assert status == 1
    assert "No module named 'torch'" in said
    assert "rm -r .venv && make setup" in said
    assert not (setup.root / ".venv" / ".pins").exists()


def test_a_python_that_is_there_and_does_not_run_is_passed_over(setup):
    shim = setup.home / ".pyenv" / "versions" / "3.12.1" / "bin" / "python"
    write_program(shim, SHIM)
    status, said, _ = setup.run("requirements/setup.sh")
    assert status == 0, said


def test_without_python_the_message_says_what_was_tried_and_what_to_do(setup):
    for name in ("python3.12", "python3", "python"):
        write_program(setup.bin / name, SHIM)
    status, said, asked = setup.run("requirements/setup.sh")
    assert status == 1
    assert said.startswith("error: no Python 3.12 ")
    assert "Tried: python3.12 python3 python." in said
    assert "uv python install 3.12" in said
    assert asked == ["uv python find --system 3.12"]


def test_the_environment_of_another_checkout_is_never_changed(setup):
    setup.run("requirements/setup.sh")
    link = setup.root / ".venv"
    link.rename(setup.home / "environment")
    link.symlink_to(setup.home / "environment")
    status, said, asked = setup.run("requirements/setup.sh")
    assert (status, asked) == (1, [])
    assert "is a link to" in said


@pytest.fixture
def lab(make):
    """The same, with a cluster file, and a python that records its arguments and exits as $LOG.status says."""
    write_program(make.root / ".venv/bin/python", RECORD + EXIT)
    write_program(make.root / "slurm/clusters/lab.yaml", "")
    return make


RUN = "python -m sft.experiments.run"
CHECK = "python -m sft.experiments.check"
LOGS_LOCK = "python -m sft.tracking.cli sync --lock"


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ("repro", "dvc repro --all-pipelines"),
        ("repro FORCE=1", "dvc repro --force --all-pipelines"),
        ("repro ROWS=50", f"{RUN} --set filter.max_rows=50"),
        ("repro ROWS=50 FORCE=1", f"{RUN} --set filter.max_rows=50 --force"),
        (
            "train optimizer.lr=1e-5 train.train_iters=5",
            f"{RUN} --set optimizer.lr=1e-5 --set train.train_iters=5 train",
        ),
        ("eval eval.seed=7 ROWS=5", f"{RUN} --set filter.max_rows=5 --set eval.seed=7 eval"),
        ("sweep optimizer.lr=1e-5,2e-5", "python -m sft.experiments.sweep --grid optimizer.lr=1e-5,2e-5"),
        ("fetch", "dvc repro fetch fetch-model fetch-benchmarks"),
        ("filter", "dvc repro filter"),
        ("prep", "dvc repro prep"),
        ("pack ROWS=5", f"{RUN} --set filter.max_rows=5 pack"),
        ("train", "dvc repro train"),
        ("eval", "dvc repro eval"),
        ("test", "pytest"),
    ],
)
def test_a_target_runs_what_it_says(lab, arguments, asked):
    status, said, log = lab.run("make", *arguments.split())
    assert status == 0, said
    logs_lock = arguments.partition(" ")[0] in ("repro", "eval")
    stages = re.sub("dvc repro| --(force|all-pipelines)", "", asked)
    checked = [f"{CHECK}{stages}"] if asked.startswith("dvc repro") else []
    assert [line.strip() for line in log] == [*checked, asked, *([LOGS_LOCK] if logs_lock else [])]


@pytest.mark.parametrize("rows", ["0", "-1", "1.5", "all", "1 2", "007"])
def test_rows_that_are_no_positive_number_are_an_error(make, rows):
    status, said, asked = make.run("make", "repro", f"ROWS={rows}")
    assert (status, asked) == (2, [])
    assert f"error: ROWS={rows}: " in said


@pytest.mark.parametrize("dry", [[], ["-n"]], ids=["run", "dry"])
@pytest.mark.parametrize(
    ("arguments", "new_form"),
    [
        ("repro SAMPLE=50", "ROWS=50"),
        ("train SAMPLE=50 FORCE=1", "ROWS=50"),
        ("show SAMPLE=validation:3", "make show PACK=validation:3"),
        ("profile NAME=nemotron3-nano", "make profile PROFILE=nemotron3-nano"),
        ("deliver", "make mlflow-sync"),
        ("sweep GRID=rng.seed=1,2 HTML=sweep.html", "make mlflow"),
    ],
)
def test_an_old_variable_or_target_is_an_error_that_shows_the_new_form(lab, arguments, new_form, dry):
    status, said, asked = lab.run("make", *dry, *arguments.split())
    assert (status, asked) == (2, [])
    assert new_form in said


TYPOS = [
    *("repro SAMPEL=50", "repro ROW=50", "repro RWOS=50", "repro rows=50", "repro Rows=50", "repro ROWSS=50"),
    *("train CLUSTRE=lab", "train cluster=lab", "train CLUSTERS=lab", "train DETATCH=1", "train DETACHED=1"),
    *("train DRYRUN=1", "train DRY-RUN=1", "train dry_run=1", "repro FORCED=1", "repro force=1", "show PAK=3"),
    *("show SAMPLES=3", "profile PROFIL=x", "rejected SOURCES=x", "rejected REASONS=x", "estimate NODE=2"),
    *("estimate GPUs=8", "lineage MODELS=x", "mlflow PRT=5001", "logs RUNS=1", "train LR=1e-5", "train optimizer_lr=1"),
]
KNOWN_TYPO = {
    "SAMPLES": "PACK",
    "SAMPEL": "ROWS",
    "ROW": "ROWS",
    "CLUSTRE": "CLUSTER",
    "DRYRUN": "DRY_RUN",
    "PAK": "PACK",
    "PRT": "PORT",
}


@pytest.mark.parametrize("dry", [[], ["-n"]], ids=["run", "dry"])
@pytest.mark.parametrize("arguments", TYPOS)
def test_a_mistyped_variable_is_an_error_before_anything_runs(lab, arguments, dry):
    status, said, asked = lab.run("make", *dry, *arguments.split())
    assert (status, asked) == (2, [])
    name = arguments.split()[1].partition("=")[0]
    assert f"{name}=" in said
    assert (
        f"Did you mean {KNOWN_TYPO[name]}=?" in said if name in KNOWN_TYPO else "Did you mean" in said or "ROWS" in said
    )


def test_variables_of_other_programs_in_the_environment_are_not_make_s(lab):
    others = (
        "MODE=1",
        "name=nix-shell",
        "HOST=x",
        "USERS=2",
        "TOKEN=x",
        "TOOL=x",
        "LABEL=x",
        "REPOS=x",
        "ROW=x",
        "LINES=50",
        "TEXT=a\nROW=5",
        "_=x",
        "SLURM_JOB_NODELIST=a",
    )
    status, said, _ = lab.run("env", *others, "make", "-n", "repro")
    assert status == 0, said


def commands() -> dict[str, list[str]]:
    """The variables of each target, as requirements/commands.txt has them."""
    lines = (ROOT / "requirements/commands.txt").read_text().splitlines()
    return {words[0]: words[1:] for line in lines if not line.startswith("#") for words in [line.split()]}


def test_every_target_and_variable_of_the_makefile_is_known():
    makefile, known = (ROOT / "Makefile").read_text(), commands()
    assert list(known) == sorted(known, key=list(known).index)
    assert set(known) == set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    variables = {name for names in known.values() for name in names}
    used = set(re.findall(r"\$\(call option,([A-Z_]+),", makefile)) | set(re.findall(r"\$\(([A-Z][A-Z_]+)\)", makefile))
    ours = {"VARIABLE", "REPRO", "CHECK", "SHELL_SCRIPTS", "COMPILE", "PINS", "SAMPLE", "SWITCHES"}
    make_s = {"CURDIR", "PATH", "HOME", "XDG_CACHE_HOME", "DVC_SITE_CACHE_DIR", "MAKECMDGOALS"}
    assert used - ours - make_s <= variables
    assert len(variables) > 30
    for target in ("profile", "rejected", "export", "mlflow-server"):  # what a recipe reads is what the target takes
        recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)[1]
        assert set(re.findall(r"\$\((?:call option,|call quote,\$\()?([A-Z]+)[),]", recipe)) <= set(known[target])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("tests", "Did you mean: make test"),  # a folder: make itself does nothing, and succeeds
        ("filters", "Did you mean: make filter"),
        ("trian", "Did you mean: make train"),
        ("data", "there is no such target"),
        ("train 1e-4", "make 1e-4: there is no such target"),
        ("train PROFILE=nemotron3-nano", "PROFILE= is for: profile, pin, estimate, plan, rehearse"),
        ("repro YES=1", "YES= is for: publish, clean"),
        ("clean YES=maybe", "YES=maybe: expected YES=1 or YES=0"),
        ("repro FORCE=true", "FORCE=true: expected FORCE=1 or FORCE=0"),
        ("show HTML=page.html", "make show PACK=0 HTML=page.html"),
    ],
)
def test_what_no_target_takes_is_an_error_before_anything_runs(lab, arguments, said):
    status, output, asked = lab.run("make", *arguments.split())
    assert (status, asked) == (2, [])
    assert said in output
    assert len(output.splitlines()) == 1


@pytest.mark.parametrize(("name", "meant"), [("train_iters", "train.train_iters="), ("lr", "optimizer.lr=")])
def test_a_param_without_its_section_is_an_error_that_names_it(lab, name, meant):
    shutil.copyfile(ROOT / "params.yaml", lab.root / "params.yaml")
    status, said, asked = lab.run("make", "train", f"{name}=5")
    assert (status, asked) == (2, [])
    assert said.rstrip().endswith(f"{meant}.  Stop.")


def test_a_switch_that_is_0_is_off(lab):
    for switch in ("FORCE", "DETACH", "DRY_RUN"):
        status, said, asked = lab.run("make", "train", f"{switch}=0")
        assert (status, "--force" in " ".join(asked)) == (0, False), said


@pytest.mark.parametrize("name", ["a b", "it's", '"', "$HOME", "-x", "ü", "a;touch x"])
def test_any_name_of_a_cluster_or_run_is_one_word(lab, name):
    status, said, asked = lab.run("make", "train", f"CLUSTER={name}".replace("$", "$$"))
    assert (status, asked) == (2, [])
    assert f"error: CLUSTER={name}: " in said
    _, _, asked = lab.run("make", "compare", f"A={name}".replace("$", "$$"), "B=x")
    assert f"--a {name} --b x" in asked[-1]
    assert not (lab.root / "x").exists()


def test_params_are_an_error_where_no_experiment_runs(lab):
    status, said, asked = lab.run("make", "show", "optimizer.lr=1e-5")
    assert (status, asked) == (2, [])
    assert "optimizer.lr=" in said


@pytest.mark.parametrize(
    "target", ["show", "show PACK=0", "check-data SOURCE=x", "rejected", "lineage", "compare", "status", "estimate"]
)
def test_json_is_asked_of_the_program_and_make_prints_no_recipe(lab, target):
    command = ["make", *target.split()]
    done = subprocess.run([*command, "JSON=1"], cwd=lab.root, env=lab.environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert lab.log.read_text().split()[-1] == "--json"
    assert "--json" not in lab.run(*command, "JSON=0")[2][-1]


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ("lineage JSON=lineage.json", "make lineage JSON=1 >lineage.json"),
        ("repro JSON=1", "JSON= is for: estimate"),
        ("status show JSON=1", "JSON=1: for one of: show "),
        ("JSON=1", "JSON= is for: estimate"),
    ],
)
def test_json_is_an_error_where_there_is_none(lab, arguments, advice):
    status, said, asked = lab.run("make", *arguments.split())
    assert (status, asked) == (2, [])
    assert advice in said


def test_a_param_is_one_word_whatever_is_in_it(lab):
    status, said, log = lab.run("make", "train", "fetch.model.uri=file://a'b; touch EXECUTED $(touch EXECUTED) $$x")
    assert status == 0, said
    assert not (lab.root / "EXECUTED").exists()
    assert log[0].startswith("python -m sft.experiments.run --set fetch.model.uri=file://a'b; touch EXECUTED")


@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        ("profile", "python -m sft.experiments.profile"),  # NAME is its old variable
        ("sweep GRID=rng.seed=1,2", "python -m sft.experiments.sweep --grid rng.seed=1,2"),
    ],
)
def test_a_name_in_the_environment_is_that_of_the_machine(lab, arguments, runs):
    status, said, log = lab.run("env", "NAME=host", "make", *arguments.split())
    assert status == 0, said
    assert log == [runs]


@pytest.mark.parametrize("target", ["train", "repro", "pack"])
def test_a_cluster_without_a_cluster_file_is_an_error_and_never_ignored(lab, target):
    status, said, asked = lab.run("make", target, "CLUSTER=mars")
    assert (status, asked) == (2, [])
    assert "error: CLUSTER=mars: slurm/clusters/mars.yaml not found" in said
    assert "lab" in said


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ("train CLUSTER=lab", ["dvc repro train"]),
        ("train CLUSTER=lab DETACH=0", ["dvc repro train"]),
        ("train CLUSTER=lab DRY_RUN=1", ["python -m sft.stages.train"]),
        ("train CLUSTER=lab DETACH=1", ["dvc repro pack fetch-model", "python -m sft.stages.train"]),
        ("eval CLUSTER=lab", ["dvc repro eval", LOGS_LOCK]),
        ("eval CLUSTER=lab DRY_RUN=1", ["python -m sft.cluster.remote_stage eval"]),
        ("eval CLUSTER=lab DETACH=1", ["dvc repro train", "python -m sft.cluster.remote_stage eval"]),
        ("prep CLUSTER=lab DETACH=1", ["dvc repro filter fetch-model", "python -m sft.cluster.remote_stage prep"]),
        ("status CLUSTER=lab", ["python -m sft.cluster.cli status --cluster lab"]),
        ("logs CLUSTER=lab", ["python -m sft.cluster.cli logs --cluster lab"]),
        ("cancel CLUSTER=lab RUN=0a", ["python -m sft.cluster.cli cancel --cluster lab --run 0a"]),
    ],
)
def test_what_a_cluster_is_asked(lab, arguments, asked):
    status, said, log = lab.run("make", *arguments.split())
    assert status == 0, said
    checked = [f"{CHECK} {arguments.split()[0]}"] if any(line.startswith("dvc") for line in asked) else []
    assert [" ".join(line.split()) for line in log] == [*checked, *asked]


def test_nothing_runs_after_a_check_that_fails(lab):
    write_program(lab.root / ".venv/bin/python", RECORD + "exit 2\n")
    for arguments in (["repro"], ["train"], ["train", "CLUSTER=lab"], ["train", "CLUSTER=lab", "DETACH=1"]):
        status, _, log = lab.run("make", *arguments)
        assert status == 2
        assert [line.split()[:3] for line in log] == [CHECK.split()], arguments


@pytest.mark.parametrize(("ends", "status", "collected"), [(3, 0, True), (1, 2, False)])
def test_what_a_detached_job_made_is_collected_by_dvc_as_soon_as_it_has_ended(lab, ends, status, collected):
    Path(f"{lab.log}.status").write_text(str(ends))
    found, _, asked = lab.run("make", "train", "CLUSTER=lab", "DETACH=1")
    assert found == status
    assert (" ".join(asked[-1].split()) == "dvc repro train") == collected


@pytest.mark.parametrize(
    "arguments", ["train DETACH=1", "train DRY_RUN=1", "pack CLUSTER=lab DRY_RUN=1", "repro DETACH=1"]
)
def test_detach_and_dry_run_are_refused_where_there_is_no_job(lab, arguments):
    status, said, asked = lab.run("make", *arguments.split())
    assert (status, asked) == (2, [])
    assert "error: DETACH and DRY_RUN " in said or "is for: prep, train, eval" in said


def test_dry_run_shows_the_command_and_runs_nothing(make):
    status, said, asked = make.run("make", "-n", "repro", "ROWS=50")
    assert (status, asked) == (0, [])
    assert f"{RUN} --set 'filter.max_rows=50'" in said


@pytest.mark.parametrize(
    "given",
    [
        (
            "show",
            "estimate",
            "rejected",
            "lineage",
            "reproduce",
            "export",
            "compare",
            "push",
            "profile",
            "logs",
            "cancel",
        ),
        ("repro", "train", "sweep GRID=rng.seed=1,2 JOBS=2", "show PACK=4 HTML=x.html", "estimate PROFILE=x NODES=2"),
        ("rejected FROM=4", "lineage CARD=y CACHE=1", "reproduce UNTIL=pack", "export RUN=1 TO=z", "profile PROFILE=x"),
        ("logs RUN=1", "cancel RUN=1", "repro ROWS=3 FORCE=1", "train ROWS=3 FORCE=1"),
    ],
    ids=["alone", "stages", "results", "runs"],
)
def test_commands_are_shown_as_one_would_type_them(make, given):
    shown = [make.run("make", "-n", *each.split())[1] for each in given]
    lines = [line for text in shown for line in text.splitlines() if "python -m sft" in line or "dvc " in line]
    assert len(lines) >= len(given)
    assert [line for line in lines if line != " ".join(line.split()) or line.endswith("\\")] == []


def test_make_alone_lists_the_targets_before_the_set_up_too_and_shows_the_state_after_it(lab):
    status, said, asked = lab.run("make")
    assert (status, asked) == (0, [])
    assert "make repro " in said
    assert "Not set up yet" in said
    (lab.root / ".venv/.pins").touch()
    status, said, asked = lab.run("make")
    assert (status, asked) == (0, ["python -m sft.experiments.overview"])
    assert "make repro " in said
    assert "Not set up" not in said


@pytest.mark.parametrize(
    ("line", "asked_for"),
    [
        ("mlflow PORT=5001", "-m sft.tracking.cli server --port 5001"),
        (
            "mlflow-server STORE=postgresql://me@host/db ARTIFACTS=s3://b/x FOLDER=d",
            "-m sft.tracking.cli server --port 5000 --store postgresql://me@host/db --artifacts s3://b/x --folder d",
        ),
        ("mlflow-sync", "-m sft.tracking.cli sync"),
    ],
)
def test_mlflow_s_targets_call_their_programs(make, line, asked_for):
    write_program(make.root / ".venv" / "bin" / "python", RECORD)
    status, said, asked = make.run("make", *line.split())
    assert status == 0, said
    assert asked[-1].endswith(asked_for)


def test_dvc_s_site_cache_is_private(make):
    make.run("make", "repro")
    (cache,) = make.home.glob(".cache/nano3-sft/dvc")
    assert cache.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("given", "option"), [("", ""), ("YES=1", " --yes"), ("YES=0", "")])
def test_clean_asks_unless_it_is_told_not_to(lab, given, option):
    status, said, log = lab.run("make", "clean", *given.split())
    assert status == 0, said
    assert log == [f"python -m sft.experiments.clean{option}"]


def pins(name: str) -> dict[str, str]:
    lines = (REQUIREMENTS / name).read_text().splitlines()
    found = dict(line.split("==") for line in lines)
    assert len(found) == len(lines) > 10
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def direct(name: str) -> set[str]:
    lines = [line.split("#")[0].strip() for line in (REQUIREMENTS / name).read_text().splitlines()]
    return {canonical(re.split(r"[\[<>=]", line)[0]) for line in lines if line}


PIN_FILES = ("data", "train", "tools", "dev")
ALL_PIN_FILES = (*PIN_FILES, "gpu")


def test_every_pin_is_a_plain_name_and_version():
    for file in ALL_PIN_FILES:
        for name, version in pins(f"{file}.txt").items():
            assert re.fullmatch(r"[a-z0-9-]+", name), name
            assert re.fullmatch(r"[0-9][0-9a-z.]*", version), version


def test_no_package_is_pinned_twice_and_every_direct_requirement_is_pinned():
    seen: dict[str, str] = {}
    for file in ALL_PIN_FILES:
        own = pins(f"{file}.txt")
        assert not seen.keys() & own.keys(), file
        seen |= own
        assert direct(f"{file}.in") <= seen.keys(), file
    assert "nvidia-resiliency-ext" not in seen


def test_what_is_pinned_is_what_is_installed():
    for file in PIN_FILES:
        for name, version in pins(f"{file}.txt").items():
            assert importlib.metadata.version(name) == version, name


def test_packages_that_only_training_or_tracking_needs_are_not_pins_of_the_data_stages():
    assert not {"torch", "megatron-bridge", "transformers", "mlflow", "dvc"} & pins("data.txt").keys()
    assert not {"mlflow", "dvc"} & pins("train.txt").keys()


def extras() -> set[str]:
    """What pyproject.toml offers as extras: imported where somebody asks for it."""
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return {canonical(re.split(r"[\[<>=]", line)[0]) for lines in optional.values() for line in lines}


def test_what_the_source_imports_is_a_direct_requirement():
    distributions = importlib.metadata.packages_distributions()
    distributions = {"lm_eval": ["lm-eval"], **distributions}  # it is installed beside .venv
    required = direct("data.in") | direct("train.in") | direct("tools.in") | direct("lm-eval.in") | extras()
    looked_at = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            else:
                continue
            for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"sft"}:
                assert {canonical(name) for name in distributions[top]} & required, f"{path}: {top}"
                looked_at.add(top)
    assert len(looked_at) > 5


def debian(sandbox: Sandbox, installed: bool) -> None:
    """Put Debian's tools into a sandbox: all packages are installed, or none; only apt-get is written down."""
    write_program(sandbox.bin / "dpkg-query", f"#!/usr/bin/env bash\n{'printf installed' if installed else 'exit 1'}\n")
    for program in ("apt-get", "sudo"):
        write_program(
            sandbox.bin / program, RECORD + ('[[ "$1" != -n ]] || exec "${@:2}"\n' if program == "sudo" else "")
        )


def test_ci_runs_lint_and_the_tests_from_anywhere_without_input(make, tmp_path):
    debian(make, installed=True)
    write_program(make.root / ".ci" / "run", (ROOT / ".ci" / "run").read_text())
    for program in ("ruff", "mypy", "shellcheck"):
        write_program(make.root / ".venv" / "bin" / program, RECORD)
    write_program(make.root / ".venv" / "bin" / "pytest", RECORD + 'echo "$CI $(cat | wc -c)" >> "$LOG"\n')
    make.run("git", "init", "-q")
    status, said, asked = make.run("bash", "-c", f"cd / && {make.root / '.ci' / 'run'}")
    assert status == 0, said
    *lint, shellcheck = [line.strip() for line in asked[:-2]]
    assert lint == ["ruff format --check", "ruff check", "mypy"]
    assert shellcheck.startswith(
        "shellcheck .ci/run requirements/check_command.sh requirements/debian.sh requirements/setup.sh"
    )
    assert [line.strip() for line in asked[-2:]] == ["pytest", "true 0"]


def test_the_hosted_workflow_runs_what_ci_runs():
    workflow = YAML(typ="safe").load((ROOT / ".github/workflows/ci.yaml").read_text())
    (job,) = workflow["jobs"].values()
    assert job["steps"][-1]["run"] == ".ci/run"


def test_debian_packages_are_installed_where_they_are_missing_after_an_update(make):
    debian(make, installed=False)
    status, said, asked = make.run("requirements/debian.sh")
    assert status == 0, said
    asked = [line for line in asked if line.startswith("apt-get")]
    assert [line.split()[4] for line in asked] == ["update", "install"]
    assert asked[1].endswith("install -y --no-install-recommends munge postgresql slurm-wlm")


def test_scripts_can_be_executed():
    scripts = ("requirements/setup.sh", "requirements/debian.sh", ".ci/run", "slurm/loopback.sh", "slurm/train.sbatch")
    for path in (ROOT / script for script in scripts):
        assert os.access(path, os.X_OK), path


def test_a_clone_with_autocrlf_has_the_same_bytes_and_scripts_that_run(tmp_path):
    """Compare with a clone of the same files without .gitattributes, whose lines end in CRLF."""
    checkout = clone_checkout(tmp_path / "checkout")
    scripts = run(checkout, "git", "ls-files", "*.sh", "*.sbatch", ".ci/run").split()
    assert len(scripts) >= 7
    windows = {"inputs.jsonl": b'{"a": 1}\r\n', "templates/mine.jinja": b"{{ x }}\r\n", "run.sh": b"ls\r\n"}
    for name, content in windows.items():
        (checkout / name).write_bytes(content)
    commit(checkout, "written on Windows")
    (checkout / "run.sh").write_bytes(b"ls\n")  # what a clone has: the other two are data, whose bytes are theirs
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "-q", "--config", "core.autocrlf=true", str(checkout), str(clone))
    assert run(clone, "git", "status", "--porcelain") == ""
    for name in run(checkout, "git", "ls-files").splitlines():
        assert (clone / name).read_bytes() == (checkout / name).read_bytes(), name
    for script in scripts:
        run(clone, "bash", "-n", script)
    (checkout / ".gitattributes").unlink()
    commit(checkout, "no attributes")
    run(tmp_path, "git", "clone", "-q", "--config", "core.autocrlf=true", str(checkout), str(tmp_path / "crlf"))
    assert b"\r\n" in (tmp_path / "crlf" / ".ci/run").read_bytes()


def test_the_images_copy_files_that_are_there_and_install_no_other_torch():
    text = (ROOT / "image/Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for name in line.split()]
    assert len(copied) > 4
    assert [name for name in copied if not (ROOT / name).is_file()] == []
    assert re.findall(r"^FROM --platform=linux/amd64 \S+ AS (\w+)$", text, re.M) == ["gpu", "cpu"]
    _, gpu, cpu = re.split(r"^FROM ", text, flags=re.M)
    assert not re.search(r"train\.(in|txt)", gpu), "its packages are the container's"
    assert all(f"requirements/{name}.txt" in cpu for name in PIN_FILES)
