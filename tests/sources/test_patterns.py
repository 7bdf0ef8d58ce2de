"""Patterns: the names that a path or pattern matches."""

import pytest

from sft.sources.patterns import match_paths


@pytest.mark.parametrize(
    ("path", "chosen"),
    [
        ("a", {"a/b.json": "b.json", "a/c/d.json": "c/d.json"}),
        ("a/b.json", {"a/b.json": "b.json"}),
        ("a/*.json", {"a/b.json": "b.json"}),
        ("a/**/*.json", {"a/b.json": "b.json", "a/c/d.json": "c/d.json"}),
        ("**/d.json", {"a/c/d.json": "a/c/d.json"}),
        ("a/{,c/}?.json", {"a/b.json": "b.json", "a/c/d.json": "c/d.json"}),
        ("e,f.txt", {"e,f.txt": "e,f.txt"}),
        ("", {"a/b.json": "a/b.json", "a/c/d.json": "a/c/d.json", "aa/x": "aa/x", "e,f.txt": "e,f.txt"}),
    ],
)
def test_a_path_names_a_file_a_folder_or_a_pattern(path: str, chosen: dict[str, str]) -> None:
    assert match_paths(["a/b.json", "a/c/d.json", "aa/x", "e,f.txt"], path, "there") == chosen
