"""The sections of the training: what Megatron would only assert, or find out late."""

import pytest

from sft.params.check import read
from sft.params.training import TrainParams
from tests.support.params_files import DEFAULT, changed, error_of


def test_the_train_stage_reads_every_section_between_pack_and_eval():
    assert list(TrainParams.model_fields) == list(type(read(DEFAULT)).model_fields)[4:-1]


def test_a_rate_that_would_rise_is_an_error(tmp_path):
    assert ": optimizer: min_lr 1.0" in error_of(changed(tmp_path, "min_lr: .*", "min_lr: 1.0"))


@pytest.mark.parametrize(
    ("granularity", "method", "layers", "modules"),
    [
        ("full", "null", "null", "null"),
        ("full", "uniform", "null", "null"),
        ("null", "uniform", "1", "null"),
        ("selective", "block", "1", "null"),
        ("null", "null", "null", "[mlp]"),
        ("full", "block", "1", "[mlp]"),
    ],
)
def test_keys_of_recomputation_that_do_not_belong_together_are_an_error(tmp_path, granularity, method, layers, modules):
    path = set_recompute(tmp_path, granularity, method, layers, modules)
    assert ": model: recompute_" in error_of(path)


@pytest.mark.parametrize(
    ("granularity", "method", "layers", "modules"),
    [
        ("full", "block", "1", "null"),
        ("selective", "null", "null", "null"),
        ("selective", "null", "null", "[core_attn]"),
    ],
)
def test_keys_of_recomputation_that_belong_together_are_valid(tmp_path, granularity, method, layers, modules):
    read(set_recompute(tmp_path, granularity, method, layers, modules))


def set_recompute(folder, granularity, method, layers, modules):
    keys = r"^  recompute_granularity: .*\n  recompute_method: .*\n  recompute_num_layers: .*\n  recompute_modules: .*$"
    new = f"  recompute_granularity: {granularity}\n  recompute_method: {method}\n"
    return changed(folder, keys, f"{new}  recompute_num_layers: {layers}\n  recompute_modules: {modules}")


def test_checkpoints_that_are_kept_must_be_saved(tmp_path):
    message = error_of(changed(tmp_path, "save_retain_interval: .*", "save_retain_interval: 75"))
    assert ": checkpoint: save_retain_interval 75" in message
    read(changed(tmp_path, "save_retain_interval: .*", "save_retain_interval: 100"))


@pytest.mark.parametrize("recipe", ["os.system", "megatron.bridge.recipes", "megatron.bridge.recipes.a:b"])
def test_a_recipe_is_a_function_of_bridge_s_recipes(tmp_path, recipe):
    assert ": model.recipe: " in error_of(changed(tmp_path, "recipe: null", f"recipe: {recipe}"))


@pytest.mark.parametrize(("name", "reason"), [("qlora", "4-bit"), ("dora", "magnitudes")])
def test_an_adapter_that_cannot_be_exported_is_an_error_with_the_reason(tmp_path, name, reason):
    message = error_of(changed(tmp_path, r"^peft:\n  name: null", f"peft:\n  name: {name}"))
    assert ": peft.name: " in message
    assert reason in message


@pytest.mark.parametrize(
    ("fields", "setter"),
    [
        ("optimizer: {lr: 1.0e-5}", "optimizer.lr"),
        ("model: {tensor_model_parallel_size: 2}", "model.tensor_model_parallel_size"),
        ("model: {seq_length: 4096}", "pack.pack_size"),
        ("ddp: {grad_reduce_in_fp32: true}", "mixed_precision.grad_reduce_in_fp32"),
        ("tokenizer: {tokenizer_model: x}", "fetch.model"),
        ("peft: {dim: 4}", "peft.dim"),
    ],
)
def test_a_field_of_bridge_that_a_section_sets_is_refused_by_that_name(tmp_path, fields, setter):
    message = error_of(changed(tmp_path, r"^bridge: \{\}$", f"bridge: {{{fields}}}"))
    assert f"set {setter} instead" in message


def test_fields_of_bridge_are_part_of_the_recorded_params(tmp_path):
    params = read(changed(tmp_path, r"^bridge: \{\}$", "bridge: {ddp: {overlap_grad_reduce: true}}"))
    assert params.training.model_dump()["bridge"] == {"ddp": {"overlap_grad_reduce": True}}


@pytest.mark.parametrize("value", ["[]", "{ddp: true}", "{ddp: {1: 2}}", "{checkpoint: {save: x}}"])
def test_bridge_has_sections_with_fields_that_may_change(tmp_path, value):
    assert ": bridge: " in error_of(changed(tmp_path, r"^bridge: \{\}$", f"bridge: {value}"))
