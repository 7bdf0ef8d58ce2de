"""The params that dvc.lock records, and what other values change."""

import pytest

from sft.cli import InputError
from sft.params.recorded import changed_params, read_lock, recorded_data_params

PIPELINE = """
stages:
  check: {cmd: x}
  fetch: {foreach: "${fetch.sources}", do: {cmd: x, params: ["fetch.sources.${key}.uri"]}}
  pack: {cmd: x, params: [fetch.sources, pack]}
"""
LOCK = {
    "check": {"cmd": "x"},
    "fetch@a": {"params": {"params.yaml": {"fetch.sources.a.uri": "file://a"}}},
    "pack": {"params": {"params.yaml": {"fetch.sources": {"a": {"uri": "file://a"}}, "pack": {"seed": 2}}}},
}


def test_the_data_params_of_the_last_run_come_from_dvc_lock(tmp_path):
    lock = tmp_path / "dvc.lock"
    assert recorded_data_params(lock) == {}
    lock.write_text(
        "schema: '2.0'\n"
        "stages:\n"
        "  filter@a: {cmd: x, params: {params.yaml: {filter: {seed: 1}, fetch.sources.a.read: openai}}}\n"
        "  pack: {cmd: x, params: {params.yaml: {pack: {seed: 2}}}}\n"
        "  train: {cmd: x, params: {params.yaml: {rng: {seed: 3}}}}\n"
        "  other: {cmd: x}\n"
    )
    assert recorded_data_params(lock) == {"filter": {"seed": 1}, "pack": {"seed": 2}}


@pytest.mark.parametrize(
    ("sources", "seed", "changed"),
    [
        ({"a": {"uri": "file://a"}}, 2, {}),
        ({"a": {"uri": "file://a"}}, 3, {"pack": ["pack"]}),
        ({"a": {"uri": "file://b"}}, 2, {"fetch@a": ["fetch.sources.a.uri"], "pack": ["fetch.sources"]}),
        ({"b": {"uri": "file://a"}}, 2, {"fetch@b": [], "pack": ["fetch.sources"]}),
        ({}, 2, {"pack": ["fetch.sources"]}),
    ],
)
def test_a_stage_is_changed_if_it_did_not_run_with_these_values(tmp_path, sources, seed, changed):
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    values = {"fetch": {"sources": sources}, "pack": {"seed": seed}}
    assert changed_params(values, LOCK, tmp_path / "dvc.yaml") == changed


@pytest.mark.parametrize("text", ["", "schema: '2.0'\n", "stages:\n  a: {cmd", "[1]\n"])
def test_a_lock_that_a_killed_dvc_left_is_an_error(tmp_path, text):
    (tmp_path / "dvc.lock").write_text(text)
    with pytest.raises(InputError, match=r"dvc\.lock"):
        read_lock(tmp_path / "dvc.lock")
