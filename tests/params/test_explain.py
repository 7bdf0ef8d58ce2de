"""Messages about mistakes in params.yaml: the line, the key, the value, the right name."""

import re

import pytest

from sft.params.check import Params, read
from sft.params.explain import FOREIGN_NAMES, known_keys, suggest
from tests.support.params_files import changed, error_of, line_of, with_source
from tests.support.project import ROOT


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_right_one(tmp_path):
    path = changed(tmp_path, "  pack_size:", "  pack_sise:")
    message = error_of(path)
    assert f"{path}:{line_of(path, 'pack_sise:')}: pack.pack_sise: unknown key" in message
    assert "'pack.pack_size'" in message
    assert "pack.pack_size: missing" in message


def test_an_unknown_key_that_is_near_to_none_lists_those_of_its_section(tmp_path):
    message = error_of(changed(tmp_path, "^rng:\n", "rng:\n  zzzzz: 1\n"))
    assert re.search(r"rng\.zzzzz: unknown key\. .*\bseed\.", message)


def test_an_unknown_key_of_an_evaluation_set_gets_the_right_one_there(tmp_path):
    message = error_of(changed(tmp_path, "benchmarks: {}", "benchmarks: {mine: {uri: 'file://x', licence: MIT}}"))
    assert "fetch.benchmarks.mine.licence: unknown key" in message
    assert "'fetch.benchmarks.<name>.license'" in message


def test_an_unknown_key_of_a_source_gets_the_right_one_there(tmp_path):
    message = error_of(with_source(tmp_path, "mine: {uri: file://x.jsonl, red: openai}"))
    assert re.search(r"fetch\.sources\.mine\.red: unknown key\. .*'fetch\.sources\.<name>\.read'", message)
    assert "fetch.sources.mine.read: missing" in message


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("learning_rate", "optimizer.lr"),
        ("max_length", "pack.pack_size"),
        ("cutoff_len", "pack.pack_size"),
        ("sequence_len", "pack.pack_size"),
        ("num_train_epochs", "train.epochs"),
        ("per_device_train_batch_size", "train.micro_batch_size"),
        ("output_dir", "checkpoint.save_interval"),
    ],
)
def test_a_name_of_another_tool_is_translated_in_any_section(tmp_path, name, meant):
    for section in ("train:\n", "optimizer:\n", "prep:\n"):
        assert f"'{meant}'" in error_of(changed(tmp_path, f"^{section}", f"{section}  {name}: 1\n"))
    assert f"{name}: unknown key. Did you mean '{meant}'" in error_of(
        changed(tmp_path, "^rng:\n", f"{name}: 1\nrng:\n")
    )


def test_every_translation_leads_to_a_key_that_exists_and_says_what_differs():
    assert len(FOREIGN_NAMES) > 20
    assert {name.partition(" ")[0] for name in FOREIGN_NAMES.values()} <= set(known_keys(Params))
    assert suggest("warmup_ratio") == "Did you mean 'scheduler.lr_warmup_iters' (steps, not a ratio)?"


@pytest.mark.parametrize(
    ("key", "value", "expected", "found"),
    [
        ("train.train_iters", "'64'", "valid integer", "'64' (str)"),
        ("train.train_iters", "6.5", "integer", "6.5 (float)"),
        ("train.train_iters", "true", "valid integer", "True (bool)"),
        ("train.train_iters", "0", "greater than 0", "0 (int)"),
        ("optimizer.lr", ".inf", "finite", "inf (float)"),
        ("optimizer.lr", "-1.0", "greater than 0", "-1.0 (float)"),
        ("optimizer.lr", "high", "valid number", "'high' (str)"),
        ("pack.pack_size", "1000000000000", "less than or equal to", "1000000000000 (int)"),
        ("pack.over_length", "cut", "'window', 'cut-at-turn', 'drop' or 'error'", "'cut' (str)"),
        ("model.sequence_parallel", "no", "boolean", "'no' (str)"),
    ],
)
def test_a_wrong_value_is_shown_with_its_line_and_what_was_expected(tmp_path, key, value, expected, found):
    name = key.split(".")[1]
    path = changed(tmp_path, rf"^  {name}: .*$", f"  {name}: {value}")
    message = error_of(path)
    assert message.startswith(f"{path}:{line_of(path, f'{name}:')}: {key}: ")
    assert expected in message
    assert found in message


@pytest.mark.parametrize(
    ("steps", "epochs", "expected"),
    [("64", "0.5", "train_iters 64 and epochs 0.5 both"), ("null", "null", "train_iters and epochs are both null")],
)
def test_the_length_of_a_run_is_steps_or_epochs(tmp_path, steps, epochs, expected):
    path = changed(tmp_path, r"^  train_iters: .*$", f"  train_iters: {steps}")
    path.write_text(re.sub(r"(?m)^  epochs: .*$", f"  epochs: {epochs}", path.read_text()))
    message = error_of(path)
    assert message.startswith(f"{path}:{line_of(path, 'train:')}: train: ")
    assert expected in message


def test_epochs_become_steps_of_whole_batches_with_the_schedule():
    training = read(ROOT / "params.yaml").training
    assert training.with_steps(501) is training
    by = {"train_iters": None, "global_batch_size": 2}
    steps = [
        training.model_copy(update={"train": training.train.model_copy(update={**by, "epochs": epochs})})
        .with_steps(501)
        .train.train_iters
        for epochs in (0.0001, 0.5, 1.0, 2.5)
    ]
    assert steps == [1, 125, 250, 625]


def test_a_missing_key_is_named(tmp_path):
    message = error_of(changed(tmp_path, r"^  seed: .*\n", ""))
    assert re.search(r"params\.yaml:\d+: filter\.seed: missing", message)


def test_a_right_file_needs_no_explanation(tmp_path):
    assert read(changed(tmp_path, "  lr: .*", "  lr: 1e-05")).optimizer.lr == 1e-5
