"""Code, docs and messages use one word for one thing, and plain English.

WORDS holds patterns of words that have another name here or that read as translated. They are looked for in the
names, docstrings, comments and messages of src/, in the pages, and in what people edit. A word counts wherever letters
end: `told` also in `told_in_the_end`. ALLOWED names the few places where a word is right, each with the reason.

    python tests/test_words.py        every place, as file:line: word: what to write
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PLACES = (
    *("src", "docs", "slurm", "profiles", "params.yaml", "dvc.yaml", "Makefile", "README.md", "AGENTS.md"),
    *("CONTRIBUTING.md", "data/README.md", "requirements/*.sh", ".ci/run", "bench"),
)
# Old names are the subject of this page.
NOT_READ = ("docs/reference/params.md",)


class Word(NamedTuple):
    """A pattern, what to write instead, and the folders or files in which it is looked for."""

    pattern: str
    instead: str
    under: tuple[str, ...] = ("",)


WORDS = [
    # One word, one thing.
    Word("clusters?", "duplicate_groups: a cluster is a Slurm cluster", ("src/sft/filters/dedup", "src/sft/packing")),
    Word("runs? of (the|a) sort|sorted runs?", "sorted_parts: a run is a training run"),
    Word("strangers?", "rejected, reason, evidence"),
    Word("profiles?", "cluster file", ("src/sft/cluster", "slurm")),
    Word("(cluster|slurm)('s)? profiles?", "cluster file"),
    Word("li(fe|ves)", "attempt"),
    Word("makes? way|made way|making way", "stops, is requeued"),
    Word("sketch(es|ed)?", "signature"),
    Word("stretch(es)?", "rows, part, shard: what it is"),
    Word("SAMPLE=", "ROWS= or PACK="),
    # Plain English.
    Word("tells?|told|telling", "logs, sends, names, says"),
    Word("mend(s|ed|ing)?", "fix"),
    Word("anew", "again"),
    Word("(goes|go|went|going) on", "continues, resumes"),
    Word("lets? in|let in", "accepts, allows"),
    Word("whoever|whosoever", "who, you, each process"),
    Word("what one (sees|has)|as one would", "you"),
    Word("(what|that) becomes? of", "the state of, the result of"),
    Word("in (the|its|their) place of", "instead of"),
    Word("so and so many|so many", "a number: n, this many"),
    Word("bring(s|ing)?|brought", "downloads, reads, loads"),
    Word("stands?|stood|standing", "is, is stored"),
    Word("lies|lie|lay|lying", "is, is stored"),
    Word("holds?|held|holding", "contains, keeps, checks"),
    Word("refus(e|es|ed|al|als|ing)", "rejected (rows), error (params), fails"),
    Word("spoi(l|ls|lt|led)", "damaged"),
    Word("house|room|door|rooms", "(no metaphors)"),
]
ALLOWED: dict[tuple[str, str], str] = {}


def files() -> list[Path]:
    """The files of git, and new ones, in which words are looked for."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *PLACES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [ROOT / name for name in sorted(listed) if (ROOT / name).is_file() and name not in NOT_READ]


def found(name: str, text: str) -> Iterator[tuple[int, str, str]]:
    """Line, word and what to write, for each word of a file that has another name here."""
    for word in WORDS:
        if not name.startswith(word.under):
            continue
        for match in re.finditer(rf"(?<![A-Za-z])(?:{word.pattern})(?![A-Za-z])", text, re.I):
            yield text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), word.instead


if __name__ == "__main__":
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        for line, word, instead in sorted(found(name, path.read_text(encoding="utf-8"))):
            print(f"{name}:{line}: {word}: {instead}")
