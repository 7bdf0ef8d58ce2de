"""Paths with patterns, as a uri has them: `*`, `?`, `**` (any folders), `{a,b}` (either)."""

import difflib
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from sft.cli import InputError
from sft.sources.redact import redact


def match_paths(names: Iterable[str], path: str, uri: str) -> dict[str, str]:
    """Return the names that a path or pattern matches, each with its path below the part without a pattern.

    Raises:  InputError: no match; lists the most similar names.

    >>> match_paths(["a/b/c.json", "a/b/d/e.json", "a/f.txt"], "a/b", "here")
    {'a/b/c.json': 'c.json', 'a/b/d/e.json': 'd/e.json'}
    >>> match_paths(["a/b/c.json", "a/g/c.json", "a/f.txt"], "a/{b,g}/*.json", "here")
    {'a/b/c.json': 'b/c.json', 'a/g/c.json': 'g/c.json'}
    """
    names = sorted(names)
    fixed, pattern = split_pattern(path.strip("/"))
    if fixed in names and not pattern:
        return {fixed: PurePosixPath(fixed).name}
    root = fixed if pattern or not fixed else fixed + "/"
    wanted = re.compile(re.escape(root) + _regex(pattern or "**"), re.DOTALL)
    matches = {name: name[len(root) :] for name in names if wanted.fullmatch(name)}
    if not matches:
        near = difflib.get_close_matches(path, names, n=5, cutoff=0.3) or names[:5]
        raise InputError(f"{redact(uri)}: no file {path!r}. Most similar: {', '.join(near) or 'none, it is empty'}.")
    return matches


def split_pattern(path: str) -> tuple[str, str]:
    """Split a path into the folders without a pattern, with their slash, and the rest; (path, "") without a pattern."""
    wild = re.search(r"[*?{]", path)
    if wild is None:
        return path, ""
    cut = path.rfind("/", 0, wild.start()) + 1
    return path[:cut], path[cut:]


def _regex(pattern: str) -> str:
    """Return the regular expression of a path pattern."""
    known = {"**/": "(?:.+/)?", "**": ".*", "*": "[^/]*", "?": "[^/]", "{": "(?:", "}": ")"}
    depth, parts = 0, []
    for token in re.findall(r"\*\*/|\*\*|[*?{},]|[^*?{},]+", pattern):
        depth += (token == "{") - (token == "}")
        parts.append("|" if token == "," and depth > 0 else known.get(token, re.escape(token)))
        if depth < 0:
            break
    if depth:
        raise InputError(f"{pattern!r}: unbalanced braces")
    return "".join(parts)
