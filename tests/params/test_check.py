"""All of params.yaml: its sections together, and files that are none."""

import re

import pytest

from sft.cli import InputError
from sft.params.check import Params, check_params, read
from sft.params.read import load
from tests.support.params_files import DEFAULT, changed, error_of


def test_the_params_of_the_repository_and_of_its_profiles_are_valid():
    profiles = sorted((DEFAULT.parent / "profiles").glob("*.yaml"))
    assert len(profiles) >= 2
    for path in (DEFAULT, *profiles):
        assert isinstance(read(path), Params)


def test_a_mistake_in_any_section_stops_every_stage(tmp_path):
    path = changed(tmp_path, "train_iters:", "train_itres:")
    assert load("filter", path) == read(DEFAULT).filter
    with pytest.raises(InputError, match="train_itres"):
        check_params(path)


def test_a_missing_section_is_named(tmp_path):
    assert re.search(r"params\.yaml:\d+: rng: missing", error_of(changed(tmp_path, r"^rng:\n  seed: .*\n", "")))


def test_a_missing_file_says_where_it_was_looked_for(tmp_path):
    assert error_of(tmp_path / "params.yaml").startswith(f"{tmp_path}/params.yaml: not found. ")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected sections (fetch, filter"),
        (b"- a\n", "found list"),
        (b"fetch: [1\n", "not valid YAML"),
        (b"fetch:\n\t- 1\n", ":2: not valid YAML"),
        (b"fetch: \xff\xfe\n", "not valid YAML"),
        (b"fetch: \x00\n", "not valid YAML"),
        (b"{}: 1\n", "params"),
        (b"fetch: 1\n", "fetch: expected a valid dictionary"),
    ],
)
def test_a_file_that_is_no_params_file_is_an_error_of_the_input(tmp_path, content, expected):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    assert expected in error_of(path)
