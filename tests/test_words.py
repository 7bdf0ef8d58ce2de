"""Code, docs and messages use one word for one thing, and plain English.

WORDS has patterns of words that have another name here, or that read as translated. They are looked for in the names,
docstrings, comments and messages of src/, in the pages, and in the files that people edit. A pattern matches where
letters begin and end: `told` also in `told_at_the_end`. NAMES has what no variable, parameter or function is called.
ALLOWED has the few places where a word is right, each with the reason.

    python -m tests.test_words      prints every match
"""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PLACES = (
    *("src", "docs", "slurm", "profiles/*.yaml", "bench", "requirements/*.sh", "requirements/*.in", ".ci/run"),
    *("params.yaml", "dvc.yaml", "Makefile", "README.md", "AGENTS.md", "CONTRIBUTING.md", "data/README.md"),
)
ENDINGS = (".py", ".md", ".yaml", ".toml", ".sh", ".sbatch", ".in", ".j2", "Makefile", "run")


class Word(NamedTuple):
    """A pattern, what to write instead, and the folders or files in which it is looked for (all by default)."""

    pattern: str
    instead: str
    under: tuple[str, ...] = ("",)


WORDS = [
    # One word, one thing.
    Word("clusters?", "duplicate groups; a cluster is a Slurm cluster", ("src/sft/filters/dedup", "src/sft/packing")),
    Word("sorted runs?|runs? of (the|a) sort", "sorted parts; a run is a training run"),
    Word("strangers?", "rejected, with reason and evidence"),
    Word("refus(e|es|ed|ing|als?)", "rejected, with reason and evidence", ("src/sft/filters", "src/sft/inspect")),
    Word("refused (rows?|conversations?)", "rejected rows"),
    Word("(cluster|slurm)('s)? profiles?", "cluster file"),
    Word("profiles?", "cluster file; a profile is a param set", ("src/sft/cluster", "slurm")),
    Word("life|lives", "attempt"),
    Word("(makes?|made|making) way", "saves a checkpoint and is requeued"),
    Word("sketch(es|ed)?", "signature"),
    Word("stretch(es)?", "part, rows, shard"),
    Word("SAMPLE=", "ROWS= for rows, PACK= for a pack"),
    # Plain English.
    Word("tells|told(?!.from|.apart)|telling", "logs, sends, prints, says"),
    Word("mend(s|ed|ing)?", "fix"),
    Word("anew", "again"),
    Word("(goes|go|went|going) on", "continues, resumes"),
    Word("lets? in", "accepts"),
    Word("whoever|whosoever", "who, you"),
    Word("what one (sees|has)|as one would", "what you see"),
    Word("(what|that) becomes? of", "the state of, the result of"),
    Word("in (the|its|their) place of", "instead of"),
    Word("so and so many|so many", "this many, n"),
    Word("brings?|bringing|brought", "downloads, reads, loads"),
    Word("stands?(?! for| in for| alone)|stood|standing", "is, is stored"),
    Word("lies (in|on|here|there)", "is, is stored"),
    Word("spoil(s|t|ed)?", "damaged"),
    Word("house|(?<!no-)rooms?|door", "(no metaphors)", ("src", "docs")),
    # American spelling.
    Word("(normal|token|organ|recogn|optim|initial|serial|summar|minim|maxim|quant)is(e[drs]?|ing|ation)", "-ize"),
    Word("colours?|licences?|behaviours?|neighbours?|judgements?|artefacts?", "American spelling"),
]
NAMES = {"told", "tell", "say", "said", "one", "own", "came", "went", "gone", "what", "where", "thing", "things"}
# (file, matched text): why it is right there.
ALLOWED = {
    ("src/sft/cluster/jobs.py", "profile"): "the file that login shells read",
    ("src/sft/filters/pipeline.py", "refuse"): "a key of the evidence of failed rollouts, whose bytes stay",
    ("src/sft/formats/spellings.py", "licence"): "the name of a column",
    ("Makefile", "sample="): "the message for the old variable",
    ("src/sft/strict_json.py", "stands"): "a message that is evidence in data, whose bytes stay",
    ("src/sft/filters/judge/judge.py", "refused"): "an endpoint refuses a request, and a stable kind of failure",
    ("src/sft/filters/judge/verdicts.py", "refused"): "the same",
    ("src/sft/filters/judge/verdicts.py", "what"): "a key of the answer that filters/rubric.md asks for",
}


class Match(NamedTuple):
    """Where a word is, and what to write."""

    file: str
    line: int
    text: str
    instead: str


def listed_files() -> list[Path]:
    """List the text files of the repository in which words are looked for, new ones too."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *PLACES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [ROOT / name for name in sorted(set(names)) if name.endswith(ENDINGS) and (ROOT / name).is_file()]


def matched_words(file: str, text: str) -> Iterator[Match]:
    for word in WORDS:
        if file.startswith(word.under):
            pattern = word.pattern.replace(" ", r"\s+(?:#\s+)?")
            for match in re.finditer(rf"(?<![A-Za-z])(?:{pattern})(?![A-Za-z])", text, re.IGNORECASE):
                yield Match(file, text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), word.instead)


def matched_names(file: str, text: str) -> Iterator[Match]:
    for node in ast.walk(ast.parse(text)):
        name = getattr(node, "id", None) if isinstance(getattr(node, "ctx", None), ast.Store) else None
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.arg):
            name = node.arg
        if name in NAMES:
            yield Match(file, node.lineno, name, "a name that says what it holds")


@functools.cache
def all_matches() -> tuple[Match, ...]:
    return tuple(_all_matches())


def _all_matches() -> Iterator[Match]:
    for path in listed_files():
        file, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        yield from matched_words(file, text)
        if file.startswith("src/") and file.endswith(".py"):
            yield from matched_names(file, text)


def matches() -> list[Match]:
    """Return every match in the repository that is not allowed."""
    return sorted(match for match in all_matches() if (match.file, match.text.lower()) not in ALLOWED)


def test_a_word_is_matched_wherever_its_letters_end():
    text = "def told_again(stretch):\n    Told\n    stolen = retold, unstretched"
    found = sorted((match.line, match.text) for match in matched_words("src/x.py", text))
    assert found == [(1, "stretch"), (1, "told"), (2, "Told")]


def test_a_word_of_some_folders_is_matched_only_there():
    assert [match.text for match in matched_words("slurm/README.md", "a profile")] == ["profile"]
    assert list(matched_words("docs/profile.md", "a profile")) == []


def test_a_phrase_is_matched_across_lines():
    assert [match.text for match in matched_words("docs/x.md", "training goes\n# on")] == ["goes # on"]


def test_variables_parameters_and_functions_have_names_that_say_what_they_hold():
    text = "def told(one):\n    found = one\n    for own in found: x.said = own\n"
    assert sorted(match.text for match in matched_names("src/x.py", text)) == ["one", "own", "told"]


def test_words_are_looked_for_in_code_pages_and_what_people_edit():
    names = [path.relative_to(ROOT).as_posix() for path in listed_files()]
    assert {"README.md", "AGENTS.md", "Makefile", "params.yaml", "dvc.yaml", "slurm/train.sbatch"} <= set(names)
    assert sum(name.startswith("src/") for name in names) > 100
    assert sum(name.startswith("docs/") for name in names) > 8


def test_the_repository_has_no_word_that_has_another_name_here():
    assert [f"{match.file}:{match.line}: {match.text}: {match.instead}" for match in matches()] == []


def test_every_allowance_is_needed():
    assert {(match.file, match.text.lower()) for match in all_matches()} >= ALLOWED.keys()


if __name__ == "__main__":
    sys.stdout.writelines(f"{m.file}:{m.line}: {m.text}: {m.instead}\n" for m in matches())
