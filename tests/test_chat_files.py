"""Chat files: templates and stop tokens wherever Hugging Face folders have them."""

import json

import pytest

from sft.chat_files import copy_chat_files, read_template, stop_ids, write_missing
from sft.cli import InputError


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


@pytest.mark.parametrize("chat_template", [None, 3, [None], [{"name": "default"}], [{"name": "../x", "template": "x"}]])
def test_a_config_without_a_template_is_an_error_that_names_ours(tmp_path, chat_template):
    write_config(tmp_path, chat_template)
    with pytest.raises(InputError, match=r"chat_template\.jinja: not found.*templates/nano3\.jinja"):
        read_template(tmp_path / "chat_template.jinja")


@pytest.mark.parametrize(("value", "expected"), [(2, [2]), ([2, 7], [2, 7]), (None, []), ("2", [])])
def test_stop_tokens_are_one_or_many(tmp_path, value, expected):
    assert stop_ids(tmp_path) == []
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert stop_ids(tmp_path) == expected


def test_a_folder_gets_the_files_that_it_lacks(tmp_path):
    write_config(tmp_path, [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}])
    write_missing(tmp_path, [])  # no list of no tokens, which transformers cannot use; DVC wants a file
    assert (tmp_path / "generation_config.json").read_text() == "{}\n"
    (tmp_path / "generation_config.json").unlink()
    write_missing(tmp_path, [2])
    assert (tmp_path / "chat_template.jinja").read_text() == "one"
    assert (tmp_path / "additional_chat_templates" / "tool_use.jinja").read_text() == "two"
    assert stop_ids(tmp_path) == [2]
    (tmp_path / "chat_template.jinja").write_text("kept")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7, "top_p": 0.9}')
    write_missing(tmp_path, [2])
    assert (tmp_path / "chat_template.jinja").read_text() == "kept"
    assert stop_ids(tmp_path) == [7]


def test_a_trained_model_gets_the_template_and_the_stop_tokens_of_its_data(tmp_path):
    for name in ("packed", "model"):
        (tmp_path / name).mkdir()
    (tmp_path / "packed/chat_template.jinja").write_text("one")
    (tmp_path / "packed/metadata.json").write_text('{"stop_ids": [2, 7]}')
    (tmp_path / "model/generation_config.json").write_text('{"eos_token_id": 2, "top_p": 0.9}')
    copy_chat_files(tmp_path / "packed", tmp_path / "model")
    assert (tmp_path / "model/chat_template.jinja").read_text() == "one"
    assert json.loads((tmp_path / "model/generation_config.json").read_text()) == {"eos_token_id": [2, 7], "top_p": 0.9}


@pytest.mark.parametrize(
    ("text", "fault"), [("{", "not JSON"), ("[1]", "found list, expected a JSON object"), ("2", "found int, expected")]
)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, text, fault):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(InputError, match=rf"generation_config\.json: {fault}"):
        stop_ids(tmp_path)
