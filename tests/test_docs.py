"""What the documentation tells people to type works.

Every shell block of README.md, CONTRIBUTING.md, slurm/README.md and docs/ stands under a comment that says how it
is tested:

    <!-- test: run -->                 as it stands, in a fresh clone; ends with 0
    <!-- test: pipeline -->            as it stands, in a clone whose pipeline is tiny
    <!-- test: remote -->              by tests/test_remotes.py, with servers on loopback
    <!-- test: make-n: the reason -->  too long, or needs what is not here: make with -n, dvc with --help

Lines of a console block that begin with "$ " are commands; the others show output and are not compared.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.project import ROOT, clone_checkout, run_script

TOP_PAGES = (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "slurm/README.md"))
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
    for found in BLOCK.finditer(text):
        script = found["text"]
        if found["kind"] == "console":
            script = "".join(line[2:] + "\n" for line in script.splitlines() if line.startswith("$ "))
        line = text[: found.start("text")].count("\n") + 1
        yield Block(f"{page}:{line}", found["how"] or "", script)


def blocks_of_the_repository() -> list[Block]:
    pages = [page for page in PAGES if page.exists()]
    return [block for page in pages for block in shell_blocks(name_of(page), page.read_text(encoding="utf-8"))]


def blocks_for(how: str) -> pytest.MarkDecorator:
    blocks = [block for block in blocks_of_the_repository() if block.how.split(":")[0] == how]
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
    assert [block for block in blocks_of_the_repository() if block.place.startswith("README.md")]


def test_every_shell_block_says_how_it_is_tested():
    for block in blocks_of_the_repository():
        assert block.how in ("run", "pipeline", "remote") or re.fullmatch(r"make-n: .+", block.how), block


@blocks_for("run")
def test_what_is_said_to_run_runs_in_a_fresh_clone(script, tmp_path):
    run_script(clone_checkout(tmp_path / "clone"), script)


@pytest.mark.pipeline
@blocks_for("pipeline")
def test_what_uses_the_pipeline_runs_in_a_tiny_one(script, tiny_project):
    run_script(tiny_project, script)


@blocks_for("make-n")
def test_what_takes_long_is_at_least_understood(script, tmp_path):
    assert set(commands(script)) <= {"make", "dvc"}
    run_script(clone_checkout(tmp_path / "clone"), DRY + script)


@pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page)) for page in PAGES])
def test_links_to_files_lead_somewhere(page: Path):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_every_make_target_that_is_mentioned_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    mentioned = {name for page in PAGES for name in re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8"))}
    for block in blocks_of_the_repository():
        mentioned.update(re.findall(r"\bmake ([a-z-]+)", block.script))
    assert {"test", "repro"} <= mentioned <= targets
