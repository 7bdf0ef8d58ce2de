"""Model files: templates and stop tokens wherever Hugging Face folders have them."""

import json

import pytest

from sft.cli import InputError
from sft.tokens.model_files import read_template, stop_ids


def write_config(folder, chat_template):
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": chat_template}))


def test_a_template_is_a_file_or_stands_in_tokenizer_config(tmp_path):
    write_config(tmp_path, "in config")
    assert read_template(tmp_path / "chat_template.jinja") == "in config"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert read_template(tmp_path / "chat_template.jinja") == "file"


def test_named_templates_have_the_path_that_newer_folders_give_them(tmp_path):
    write_config(tmp_path, [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}])
    assert read_template(tmp_path / "chat_template.jinja") == "one"
    assert read_template(tmp_path / "additional_chat_templates" / "tool_use.jinja") == "two"
    with pytest.raises(InputError, match=r"rag\.jinja: not found.*tool_use\.jinja, .*chat_template\.jinja"):
        read_template(tmp_path / "additional_chat_templates" / "rag.jinja")


@pytest.mark.parametrize("chat_template", [None, 3, [None], [{"name": "default"}]])
def test_a_config_without_a_template_is_an_error_that_names_ours(tmp_path, chat_template):
    write_config(tmp_path, chat_template)
    with pytest.raises(InputError, match=r"chat_template\.jinja: not found.*templates/nano3\.jinja"):
        read_template(tmp_path / "chat_template.jinja")


@pytest.mark.parametrize(("value", "expected"), [(2, [2]), ([2, 7], [2, 7]), (None, []), ("2", [])])
def test_stop_tokens_are_one_or_many(tmp_path, value, expected):
    assert stop_ids(tmp_path) == []
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert stop_ids(tmp_path) == expected


def test_a_damaged_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(InputError, match=r"generation_config\.json: not JSON"):
        stop_ids(tmp_path)
