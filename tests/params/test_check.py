import re
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.params.check import Params, read
from sft.params.explain import FOREIGN_NAMES, known_keys, suggest
from sft.params.read import load

DEFAULT = Path(__file__).parents[2] / "params.yaml"


def changed(folder: Path, pattern: str, new: str) -> Path:
    """The repository's params.yaml with the first match of a pattern replaced; ^ and $ are ends of lines."""
    text, count = re.subn(pattern, new, DEFAULT.read_text(encoding="utf-8"), count=1, flags=re.MULTILINE)
    assert count == 1
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def message(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    return str(caught.value)


def line_of(path: Path, text: str) -> int:
    lines = path.read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.strip().startswith(text))


def test_the_repository_s_own_params_are_right():
    assert isinstance(read(DEFAULT), Params)


def test_one_section_comes_alone_and_several_in_the_order_asked_for():
    params = read(DEFAULT)
    assert load("pack", path=DEFAULT) == params.pack
    assert load("rng", "fetch", path=DEFAULT) == (params.rng, params.fetch)
    assert params.training.rng == params.rng


def test_a_mistake_in_any_section_stops_every_stage(tmp_path):
    path = changed(tmp_path, "train_iters:", "train_itres:")
    with pytest.raises(InputError, match="train_itres"):
        load("filter", path=path)


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_right_one(tmp_path):
    path = changed(tmp_path, "  pack_size:", "  pack_sise:")
    found = message(path)
    line = line_of(path, "pack_sise:")
    assert f"{path}:{line}: pack.pack_sise: unknown key. Did you mean 'pack.pack_size'?" in found
    assert "pack.pack_size: missing" in found


def test_an_unknown_key_that_is_near_to_none_lists_those_of_its_place(tmp_path):
    found = message(changed(tmp_path, "^rng:\n", "rng:\n  zzzzz: 1\n"))
    assert "rng.zzzzz: unknown key. Known here: seed." in found


def test_an_unknown_key_of_what_the_user_named_is_told_the_right_one_there(tmp_path):
    found = message(changed(tmp_path, "benchmarks: {}", "benchmarks: {mine: {uri: 'file://x', licence: MIT}}"))
    assert "fetch.benchmarks.mine.licence: unknown key. Did you mean 'fetch.benchmarks.<name>.license'?" in found


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("learning_rate", "optimizer.lr"),
        ("max_length", "pack.pack_size"),
        ("cutoff_len", "pack.pack_size"),
        ("sequence_len", "pack.pack_size"),
        ("num_train_epochs", "train.train_iters"),
        ("per_device_train_batch_size", "train.micro_batch_size"),
        ("output_dir", "checkpoint.save_interval"),
    ],
)
def test_a_name_of_another_tool_is_translated_wherever_it_stands(tmp_path, name, meant):
    for place in ("train:\n", "optimizer:\n", "prep:\n"):
        assert f"Did you mean '{meant}'" in message(changed(tmp_path, f"^{place}", f"{place}  {name}: 1\n"))
    top = message(changed(tmp_path, "^rng:\n", f"{name}: 1\nrng:\n"))
    assert f"{name}: unknown key. Did you mean '{meant}'" in top


def test_where_another_tool_s_name_means_something_else_the_difference_is_said():
    assert "steps, not epochs" in suggest("num_train_epochs")
    assert "places are not params" in suggest("output_dir")


def test_every_translation_leads_to_a_key_that_exists():
    known = known_keys()
    assert len(FOREIGN_NAMES) > 20
    assert set(FOREIGN_NAMES.values()) <= set(known)


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
        ("pack.over_length", "cut", "'drop', 'error' or 'cut-at-turn'", "'cut' (str)"),
        ("model.sequence_parallel", "no", "boolean", "'no' (str)"),
    ],
)
def test_a_wrong_value_is_shown_with_its_line_and_what_was_expected(tmp_path, key, value, expected, found):
    name = key.split(".")[1]
    path = changed(tmp_path, rf"^  {name}: .*$", f"  {name}: {value}")
    text = message(path)
    assert text.startswith(f"{path}:{line_of(path, f'{name}:')}: {key}: ")
    assert expected in text
    assert text.endswith(f"found {found}.")


def test_a_missing_key_is_named(tmp_path):
    found = message(changed(tmp_path, r"^  seed: .*\n", ""))
    assert re.search(r"params\.yaml:\d+: filter\.seed: missing", found)


def test_a_missing_section_is_named(tmp_path):
    assert "rng: missing" in message(changed(tmp_path, r"^rng:\n  seed: .*\n", ""))


@pytest.mark.parametrize("written", ["1e-05", "1e-5", "1.0e-5", "0.00001", "1E-5"])
def test_a_number_is_a_number_however_it_is_written(tmp_path, written):
    """`dvc exp run -S optimizer.lr=1e-5` writes 1e-05, which YAML 1.1 readers take for text."""
    path = changed(tmp_path, r"^  lr: .*$", f"  lr: {written}")
    assert load("optimizer", path=path).lr == 1e-5


def test_a_key_given_twice_is_refused(tmp_path):
    found = message(changed(tmp_path, "^rng:\n", "rng:\n  seed: 1\n"))
    assert re.search(r'params\.yaml:\d+: not valid YAML: found duplicate key "seed"', found)


@pytest.mark.parametrize(
    "value",
    ["!!python/object/apply:os.system ['touch ran']", "!!python/name:os.system", "!!python/tuple [1]"],
)
def test_a_python_tag_is_refused_and_not_run(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    path = changed(tmp_path, r"^rng:\n  seed: .*$", f"rng:\n  seed: {value}")
    assert re.search(r"params\.yaml:\d+: not valid YAML: could not determine a constructor", message(path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", ["9" * 5000, "2026-13-45", "[" * 2000 + "]" * 2000], ids=["number", "date", "depth"])
def test_a_value_that_yaml_cannot_be_read_as_is_no_traceback(tmp_path, value):
    found = message(changed(tmp_path, r"^rng:\n  seed: .*$", f"rng:\n  seed: {value}"))
    assert re.search(r"params\.yaml: not valid YAML: ", found)


def test_a_missing_file_says_where_it_was_looked_for(tmp_path):
    assert message(tmp_path / "params.yaml").startswith(f"{tmp_path}/params.yaml: not found. Run in the folder")


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
        (b"fetch: 1\n", "fetch: Input should be a valid dictionary"),
    ],
)
def test_a_file_that_is_no_params_file_is_an_error_of_the_input(tmp_path, content, expected):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    assert expected in message(path)


def test_a_source_cannot_take_the_name_of_the_base_model(tmp_path):
    path = changed(tmp_path, "  sources:\n", "  sources:\n    model: {uri: file://x.jsonl, format: openai}\n")
    assert "a source cannot be called 'model'" in message(path)


@pytest.mark.parametrize("name", ["../x", "A", "a b", "-a", "a/b"])
def test_the_name_of_a_source_is_a_plain_file_name(tmp_path, name):
    source = f"  sources:\n    '{name}': {{uri: file://x.jsonl, format: openai}}\n"
    assert "pattern" in message(changed(tmp_path, "  sources:\n", source))


def test_a_mistake_in_a_source_is_explained_like_any_other(tmp_path):
    path = changed(tmp_path, "  sources:\n", "  sources:\n    mine: {uri: file://x.jsonl, fromat: openai}\n")
    found = message(path)
    assert "fetch.sources.mine.fromat: unknown key. Did you mean 'fetch.sources.<name>.format'?" in found
    assert "fetch.sources.mine.format: missing" in found


def test_a_misspelt_domain_is_refused_with_the_right_one_and_one_s_own_is_as_good(tmp_path):
    def params(domain):
        source = f"  sources:\n    mine: {{uri: file://x.jsonl, format: openai, domain: {domain}}}\n"
        return changed(tmp_path, "  sources:\n", source)

    assert "domain 'multi-lingual': Did you mean 'multilingual'?" in message(params("multi-lingual"))
    assert load("fetch", path=params("my-shop")).sources["mine"].domain == "my-shop"


def test_a_source_needs_nothing_but_a_place_and_a_format(tmp_path):
    path = changed(tmp_path, "  sources:\n", "  sources:\n    mine: {uri: file://x.jsonl, format: openai}\n")
    assert load("fetch", path=path).sources["mine"].domain == "unspecified"


def test_held_out_shares_that_leave_nothing_to_train_on_are_refused(tmp_path):
    shares = r"^  validation: .*\n  test: .*$"
    path = changed(tmp_path, shares, "  validation: 0.5\n  test: 0.5")
    assert "leave nothing to train on" in message(path)


def test_params_cannot_be_changed_after_they_are_read():
    with pytest.raises(ValueError, match="frozen"):
        load("optimizer", path=DEFAULT).lr = 1.0


def test_a_rate_that_would_rise_is_refused_where_megatron_only_asserts(tmp_path):
    assert "min_lr 1.0 is above lr" in message(changed(tmp_path, "min_lr: .*", "min_lr: 1.0"))


def test_the_learning_rate_of_the_manual_fits_the_default_params(tmp_path):
    assert read(changed(tmp_path, "  lr: .*", "  lr: 1e-05")).optimizer.lr == 1e-5
