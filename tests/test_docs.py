"""Every command in the documentation works.

Every shell block of README.md, AGENTS.md, CONTRIBUTING.md, slurm/README.md and docs/ has a comment above it that says
how it is tested:

    <!-- test: run -->                 unchanged, in a fresh clone; exits with 0
    <!-- test: pipeline -->            unchanged, in a clone whose pipeline is tiny
    <!-- test: after: COMMANDS -->     unchanged, in such a clone that has run, after COMMANDS damaged it
    <!-- test: remote -->              by tests/test_remotes.py, with servers on loopback
    <!-- test: make-n: the reason -->  too long, or needs something else: make with -n, dvc with --help

Lines of a console block that begin with "$ " are commands; the others show output and are not compared.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.project import ROOT, clone_checkout, run_script

TOP_PAGES = (ROOT / name for name in ("README.md", "AGENTS.md", "CONTRIBUTING.md", "slurm/README.md"))
PAGES = [*TOP_PAGES, *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCK = re.compile(
    r"(?:<!-- test: (?P<how>[^\n]*?) -->\n+)?^```(?P<kind>bash|console|sh|shell)\n(?P<text>.*?)^```$",
    re.M | re.S,
)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")
# make and dvc that check what they are asked for and do nothing.
DRY = 'make() { command make -n "$@"; }\ndvc() { command dvc "$1" --help; }\n'


class Block(NamedTuple):
    place: str
    how: str
    script: str


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def shell_blocks(page: str, text: str) -> Iterator[Block]:
    for block in BLOCK.finditer(text):
        script = block["text"]
        if block["kind"] == "console":
            script = "".join(line[2:] + "\n" for line in script.splitlines() if line.startswith("$ "))
        line = text[: block.start("text")].count("\n") + 1
        yield Block(f"{page}:{line}", block["how"] or "", script)


def documented_blocks() -> list[Block]:
    pages = [page for page in PAGES if page.exists()]
    return [block for page in pages for block in shell_blocks(name_of(page), page.read_text(encoding="utf-8"))]


def blocks_for(how: str) -> pytest.MarkDecorator:
    blocks = [block for block in documented_blocks() if block.how.split(":")[0] == how]
    return pytest.mark.parametrize("script", [pytest.param(block.script, id=block.place) for block in blocks])


def commands(script: str) -> list[str]:
    """First word of each line, settings of variables before it left out."""
    lines = [line.split("#")[0] for line in script.replace("\\\n", " ").splitlines()]
    return [re.sub(r"^(\s*[A-Z_]+=\S*\s+)*", "", line).split()[0] for line in lines if line.strip()]


def test_blocks_are_found_with_their_class_and_their_commands():
    text = "a\n<!-- test: run -->\n```bash\nls # x\n```\n\n```console\n$ make\noutput\n```\n```python\nno\n```\n"
    assert list(shell_blocks("x.md", text)) == [
        Block("x.md:4", "run", "ls # x\n"),
        Block("x.md:8", "", "make\n"),
    ]


def test_the_first_words_of_lines_are_the_commands():
    assert commands("A=1 make x\n\n# note\ndvc \\\n  repro\n  ls") == ["make", "dvc", "ls"]


def test_a_script_that_fails_fails_its_test(tmp_path):
    with pytest.raises(AssertionError, match="a message"):
        run_script(tmp_path, "(echo a message; false) | cat\necho still here")


def test_a_dry_run_finds_what_does_not_exist_and_does_nothing(tmp_path):
    clone = clone_checkout(tmp_path / "clone")
    run_script(clone, DRY + "make repro ROWS=50\ndvc repro train\nCLUSTER=x make train")
    for wrong in ("make nothing", "dvc nothing"):
        with pytest.raises(AssertionError):
            run_script(clone, DRY + wrong)
    assert run_script(clone, "git status --porcelain") == ""


def test_the_readme_has_shell_blocks():
    assert [block for block in documented_blocks() if block.place.startswith("README.md")]


def test_every_shell_block_says_how_it_is_tested():
    for block in documented_blocks():
        assert block.how in ("run", "pipeline", "remote") or re.fullmatch(r"(make-n|after): .+", block.how), block


@blocks_for("run")
def test_what_is_said_to_run_runs_in_a_fresh_clone(script, tmp_path):
    run_script(clone_checkout(tmp_path / "clone"), script)


@pytest.mark.pipeline
@blocks_for("pipeline")
def test_what_uses_the_pipeline_runs_in_a_tiny_one(script, tiny_project):
    run_script(tiny_project, script)


@pytest.fixture(scope="module")
def finished_project(tiny_project: Path) -> Path:
    """The tiny project after a run, with everything committed."""
    run_script(tiny_project, "dvc repro && git add -A && git commit --quiet --allow-empty --message finished")
    return tiny_project


@pytest.mark.pipeline
@pytest.mark.parametrize(
    "block", [pytest.param(block, id=block.place) for block in documented_blocks() if block.how.startswith("after:")]
)
def test_what_repairs_a_project_repairs_it(block, finished_project):
    """A repaired project has every output, as committed, in the folder or at least in the cache."""
    run_script(finished_project, block.how.removeprefix("after: "))
    run_script(finished_project, block.script)
    if "refs/exps" in block.script:
        assert "# mine" in (finished_project / "params.yaml").read_text(encoding="utf-8")
        run_script(finished_project, "git reset --quiet --hard && dvc checkout --force")
    assert "up to date" in run_script(finished_project, "dvc status")
    assert run_script(finished_project, "git status --porcelain") == ""


@blocks_for("make-n")
def test_what_takes_long_is_at_least_understood(script, tmp_path):
    assert set(commands(script)) <= {"make", "dvc"}
    run_script(clone_checkout(tmp_path / "clone"), DRY + script)


@pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page)) for page in PAGES])
def test_links_to_files_lead_somewhere(page: Path):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page)) for page in PAGES])
def test_files_of_the_repository_that_are_named_exist(page: Path):
    for name in re.findall(
        r"`((?:src|tests|bench|docs|requirements|slurm|filters|templates|profiles)/[^`<*\s]*)`", page.read_text()
    ):
        assert (ROOT / name).exists(), name


def test_every_make_target_that_is_mentioned_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    mentioned = {
        name for page in PAGES for name in re.findall(r"`make ([a-z][a-z-]+)", page.read_text(encoding="utf-8"))
    }
    for block in documented_blocks():
        mentioned.update(re.findall(r"\bmake ([a-z][a-z-]+)", block.script))
    assert {"test", "repro"} <= mentioned <= targets


def test_the_reference_of_commands_has_every_target_and_variable_of_the_makefile():
    page = (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    text = " ".join(re.findall(r"## (.*)", makefile))
    variables = set(re.findall(r"\b([A-Z][A-Z_]*)=", text)) | set(re.findall(r"call option,([A-Z]+)", makefile))
    variables -= {"VARIABLE"}  # of a comment
    assert len(targets) > 30
    assert len(variables) > 30
    assert {name for name in listed if name.islower()} == targets
    assert {name for name in listed if name.isupper()} >= variables
    taken = (ROOT / "requirements/commands.txt").read_text(encoding="utf-8").splitlines()
    shown = re.findall(r"^\| `([a-z-]+)` \|.*\|([^|]*)\|$", page, re.MULTILINE)
    stated = {name: set(re.findall(r"`([A-Z_]+)`", row)) for name, row in shown if name in targets}
    assert stated == {line.split()[0]: set(line.split()[1:]) for line in taken if not line.startswith("#")}
    for row in re.findall(r"^\| `[a-z-]+` \|.*\| ([^|]*) \|$", page, re.MULTILINE):
        assert set(re.findall(r"`([^`]+)`", row)) <= listed, row


def test_the_reference_of_commands_has_every_environment_variable_that_people_set():
    page = (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8")
    code = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py")))
    read = set(re.findall(r'environ\.get\("(SFT_[A-Z_]+)"', code)) - {"SFT_STOP_FILE"}  # the job sets that one
    assert {"SFT_WORKERS", "SFT_PROCESSES"} & read
    assert {name for name in read if f"`{name}`" not in page} == set()


def test_the_list_of_known_issues_is_that_of_the_pins_and_the_code_names_each_issue():
    page = (ROOT / "docs/known-issues.md").read_text(encoding="utf-8")
    pins = (ROOT / "requirements/train.txt").read_text(encoding="utf-8")
    assert re.search(r"^Written \d{4}-\d\d-\d\d for torch", page, re.M)
    for package in ("torch", "megatron-core", "megatron-bridge", "transformers"):
        (version,) = re.findall(rf"^{package}==(\S+)", pins, re.M)
        assert f"{package} {version}" in page.split("|")[0]
    listed = set(re.findall(r"^\| ([a-z-]+) \|", page, re.M)) - {"id"}
    source = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py")))
    named = re.findall(r"known-issues\.md[,:] ([a-z-]+(?:, [a-z-]+)*)", source)
    assert {each for names in named for each in names.split(", ")} - {"or"} == listed
