"""Reading params.yaml: a section alone, one key of one source, YAML 1.2, and no code in it."""

import re

import pytest

from sft.cli import InputError
from sft.params.base import Section
from sft.params.check import Params, read
from sft.params.read import (
    SCHEMA,
    TRAINING,
    change,
    load,
    load_source,
    load_training,
    read_yaml,
)
from sft.params.training import TrainParams
from tests.support.params_files import DEFAULT, changed, error_of, with_source


def test_a_section_or_a_part_of_one_is_what_the_whole_file_holds():
    params = read(DEFAULT)
    assert load("pack", DEFAULT) == params.pack
    assert load("fetch.model.uri", DEFAULT) == params.fetch.model.uri
    assert load("fetch.sources", DEFAULT) == params.fetch.sources
    assert load_training(DEFAULT) == params.training


def test_the_schema_names_every_section():
    assert list(SCHEMA) == list(Params.model_fields)
    assert list(TRAINING) == list(TrainParams.model_fields)


def test_a_section_is_read_whatever_the_others_hold(tmp_path):
    (tmp_path / "params.yaml").write_text("rng: {seed: 7}\npack: nonsense\nunknown: 1\n")
    assert load("rng", tmp_path / "params.yaml").seed == 7


def test_a_missing_section_or_file_is_named(tmp_path):
    path = tmp_path / "params.yaml"
    with pytest.raises(InputError, match=r"params\.yaml: not found"):
        load("rng", path)
    path.write_text("pack: {}\n")
    with pytest.raises(InputError, match=r"params\.yaml: rng: missing"):
        load("rng", path)
    path.write_text("[]\n")
    with pytest.raises(InputError, match="found list"):
        load("rng", path)


def test_a_mistake_in_a_section_is_shown_with_its_line(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("pack: 1\nrng:\n  sede: 7\n")
    with pytest.raises(InputError) as error:
        load("rng", path)
    assert f"{path}:3: rng.sede: " in str(error.value)
    assert f"{path}:2: rng.seed: missing" in str(error.value)


def test_one_key_of_one_source_is_loaded(tmp_path):
    path = with_source(tmp_path, "mine: {uri: file://x.jsonl, read: {format: openai, max_rows: 3}}")
    assert load_source("mine", "uri", path) == "file://x.jsonl"
    assert load_source("mine", "read", path).max_rows == 3


def test_an_unknown_source_is_an_error_that_names_the_nearest():
    with pytest.raises(InputError) as error:
        load_source("olympiad", "uri", DEFAULT)
    assert "--source olympiad: " in str(error.value)
    assert "'olympiads'" in str(error.value)
    assert "tool-calls" in str(error.value)


@pytest.mark.parametrize("written", ["1e-05", "1e-5", "1.0e-5", "0.00001", "1E-5"])
def test_a_number_is_a_number_however_it_is_written(tmp_path, written):
    """`dvc exp run -S optimizer.lr=1e-5` writes 1e-05, which YAML 1.1 readers take for text."""
    path = changed(tmp_path, r"^  lr: .*$", f"  lr: {written}")
    assert load("optimizer", path).lr == read(path).optimizer.lr == 1e-5


def test_a_key_given_twice_is_an_error_at_its_line(tmp_path):
    message = error_of(changed(tmp_path, "^rng:\n", "rng:\n  seed: 1\n"))
    assert re.search(r'params\.yaml:\d+: not valid YAML: found duplicate key "seed"', message)


@pytest.mark.parametrize(
    "value",
    ["!!python/object/apply:os.system ['touch ran']", "!!python/name:os.system", "!!python/tuple [1]"],
)
def test_a_python_tag_is_an_error_and_not_run(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    path = changed(tmp_path, r"^rng:\n  seed: .*$", f"rng:\n  seed: {value}")
    assert re.search(r"params\.yaml:\d+: not valid YAML: ", error_of(path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", ["9" * 5000, "2026-13-45", "[" * 2000 + "]" * 2000], ids=["number", "date", "depth"])
def test_a_value_that_yaml_cannot_hold_is_no_traceback(tmp_path, value):
    message = error_of(changed(tmp_path, r"^rng:\n  seed: .*$", f"rng:\n  seed: {value}"))
    assert re.search(r"params\.yaml: not valid YAML: ", message)


def test_a_yaml_file_of_another_schema_names_its_keys(tmp_path):
    class Cluster(Section):
        partition: str

    path = tmp_path / "cluster.yaml"
    path.write_text("partition: gpu\n")
    assert read_yaml(path, Cluster).partition == "gpu"
    path.write_text("- gpu\n")
    with pytest.raises(InputError, match=r"cluster\.yaml: .*partition"):
        read_yaml(path, Cluster)
    path.write_text("partitoin: gpu\n")
    with pytest.raises(InputError, match=r"cluster\.yaml:1: partitoin: .*'partition'"):
        read_yaml(path, Cluster)


def test_an_edit_between_two_reads_is_seen_and_a_change_that_is_only_looked_at_is_not(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(DEFAULT.read_bytes())
    before = load("rng", path).seed
    text, values, old = change(["rng.seed=7"], path)
    assert (values["rng"]["seed"], old) == (7, {"rng.seed": before})
    assert load("rng", path).seed == before != 7
    path.write_text(text.replace(f"rng:\n  seed: {before}", "rng:\n  seed: 8"))
    assert load("rng", path).seed == 8
