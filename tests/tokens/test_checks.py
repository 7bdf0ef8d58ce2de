"""Checks: what is learned of a template when it is loaded."""

import pytest

from sft.tokens import checks
from tests.support.families import load_family


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return lambda name: load_family(name, tmp_path_factory.mktemp(name))


def test_the_token_behind_an_answer_is_a_stop_token_though_the_model_does_not_say_so(family):
    chat = family("kimi-k2")
    chat._set_stops(["[EOS]"])
    assert checks.find_ending(chat) == ("<|im_end|>", ("", ""))


def test_a_model_that_stops_at_the_next_role_gets_its_token_behind_the_last_answer(family):
    chat = family("glm4")
    assert checks.find_ending(chat) == ("", ("<|user|>", "<|observation|>"))
    assert checks.find_ending(family("chatml")) == ("", ("", ""))


@pytest.mark.parametrize(
    ("name", "header", "prompts"),
    [
        ("gemma3", "<start_of_turn>model\n", ("<start_of_turn>model\n",) * 2),
        ("phi3", "<|assistant|>\n", ("<|assistant|>\n",) * 2),
        (
            "qwen3",
            "<|im_start|>assistant\n",
            ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "<|im_start|>assistant\n"),
        ),
    ],
)
def test_a_header_is_what_all_prompts_start_with(family, name, header, prompts):
    assert checks.find_header(family(name)) == (header, prompts)


@pytest.mark.parametrize("name", ["mistral-v3", "vicuna"])
def test_a_template_whose_answers_have_no_header_token_has_no_header(family, name):
    assert checks.find_header(family(name)) is None


def test_kinds_that_a_template_cannot_render_are_named_with_the_reason(family):
    modes = family("llama3").modes
    assert set(modes) == {"parallel-calls", "words-beside-a-call", "reasoning-before-a-call"}
    assert modes["parallel-calls"] == "template-refuses: This model only supports single tool-calls at once!"
