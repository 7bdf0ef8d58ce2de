# ruff: noqa: RUF001 (control tokens of DeepSeek have a bar of their own)
"""Families of models: a chat template in the manner of each (tests/templates), its control tokens, its stop tokens."""

import json
from pathlib import Path
from typing import NamedTuple

from sft.tokens.render import ChatTemplate, Settings
from tests.support.project import ROOT
from tests.support.tokenizers import write_tokenizer

TEMPLATES = ROOT / "tests" / "templates"
DATE = "2026-01-31"


class Family(NamedTuple):
    """The tokenizer of a family."""

    tokens: tuple[str, ...]
    eos: str
    bos: str = ""
    stops: tuple[str, ...] = ()
    """eos_token_id of generation_config.json."""
    date: str | None = None


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CALLS = ("<tool_call>", "</tool_call>")
LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>")
MISTRAL = ("<s>", "</s>", "[INST]", "[/INST]")
TOOLS_OF_MISTRAL = ("[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
GEMMA = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
TOOLS_OF_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>")
TOOLS_OF_DEEPSEEK += ("<｜tool▁sep｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>")
HARMONY = ("<|startoftext|>", "<|endoftext|>", "<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>")
COMMAND = ("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")
GLM = ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
PHI = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
KIMI = ("[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>")
KIMI += tuple(
    f"<|tool_call{part}|>" for part in ("s_section_begin", "s_section_end", "_begin", "_argument_begin", "_end")
)

THINK, LLAMA4 = (
    ("<think>", "</think>"),
    ("<|begin_of_text|>", "<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>"),
)
GLM45 = ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", *THINK)

FAMILIES = {
    "alpaca": Family(("<s>", "</s>"), "</s>", "<s>"),
    "chatml": Family((*CHATML, *CALLS), "<|im_end|>", stops=("<|im_end|>", "<|endoftext|>")),
    "command-r": Family((*COMMAND, "<|SYSTEM_TOKEN|>"), "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>"),
    "deepseek-r1": Family(DEEPSEEK, "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"),
    "deepseek-v3": Family((*DEEPSEEK, *TOOLS_OF_DEEPSEEK), "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"),
    "exaone": Family(("[BOS]", "[|system|]", "[|user|]", "[|assistant|]", "[|endofturn|]"), "[|endofturn|]", "[BOS]"),
    "falcon3": Family(PHI[:1], "<|endoftext|>"),
    "gemma2": Family(GEMMA, "<eos>", "<bos>", ("<eos>", "<end_of_turn>")),
    "gemma3": Family(GEMMA, "<eos>", "<bos>", ("<eos>", "<end_of_turn>")),
    "glm4": Family(GLM, "<|endoftext|>", stops=("<|endoftext|>", "<|user|>", "<|observation|>")),
    "glm4.5": Family((*GLM, *GLM45), "<|endoftext|>", stops=("<|endoftext|>", "<|user|>", "<|observation|>")),
    "glm5": Family((*GLM, *GLM45), "<|endoftext|>", stops=("<|endoftext|>", "<|user|>", "<|observation|>")),
    "gpt-oss": Family((*HARMONY, "<|call|>"), "<|return|>", stops=("<|return|>", "<|call|>"), date=DATE),
    "granite": Family(
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"), "<|end_of_text|>", date=DATE
    ),
    "hermes": Family((*CHATML, "<|begin_of_text|>"), "<|im_end|>", "<|begin_of_text|>"),
    "internlm2": Family(("<s>", "</s>", *CHATML[1:]), "</s>", "<s>", ("</s>", "<|im_end|>")),
    "kimi-k2": Family(KIMI, "[EOS]", stops=("<|im_end|>",)),
    "kimi-k2.5": Family((*KIMI, *THINK), "[EOS]", stops=("<|im_end|>",)),
    "llama-nemotron": Family(LLAMA, "<|eot_id|>", "<|begin_of_text|>", ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")),
    "llama2": Family(("<s>", "</s>"), "</s>", "<s>"),
    "llama3": Family(LLAMA, "<|eot_id|>", "<|begin_of_text|>", ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")),
    "llama4": Family(LLAMA4, "<|eot|>", "<|begin_of_text|>", ("<|eom|>", "<|eot|>")),
    "minimax-m2": Family(("]~!b[", "]~b]", "[e~[", "<minimax:tool_call>", "</minimax:tool_call>"), "[e~["),
    "ministral": Family(
        (*MISTRAL, *TOOLS_OF_MISTRAL, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[CALL_ID]", "[ARGS]", "[TOOL_CONTENT]"),
        "</s>",
        "<s>",
    ),
    "mistral-v3": Family((*MISTRAL, *TOOLS_OF_MISTRAL), "</s>", "<s>"),
    "mistral-v7": Family((*MISTRAL, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), "</s>", "<s>", date=DATE),
    "olmo2": Family(("<|endoftext|>",), "<|endoftext|>", "<|endoftext|>"),
    "phi3": Family(PHI, "<|endoftext|>", stops=("<|endoftext|>", "<|assistant|>", "<|end|>")),
    "phi4": Family((*CHATML, "<|im_sep|>"), "<|im_end|>"),
    "qwen2.5": Family((*CHATML, *CALLS), "<|im_end|>", stops=("<|im_end|>", "<|endoftext|>")),
    "qwen3": Family((*CHATML, *CALLS, "<think>", "</think>"), "<|im_end|>", stops=("<|im_end|>", "<|endoftext|>")),
    "qwen3.5": Family((*CHATML, *CALLS, *THINK), "<|im_end|>", stops=("<|im_end|>", "<|endoftext|>")),
    "smollm3": Family((*CHATML, "<think>", "</think>"), "<|im_end|>", date=DATE),
    "vicuna": Family(("<s>", "</s>"), "</s>", "<s>"),
    "yi": Family(CHATML, "<|im_end|>", stops=("<|im_end|>",)),
    "zephyr": Family(("<s>", "</s>"), "</s>", "<s>"),
}


def write_family(name: str, folder: Path) -> Path:
    """Write the tokenizer of a family, its generation_config.json and its template."""
    family = FAMILIES[name]
    named = {"eos_token": family.eos, "pad_token": family.eos} | ({"bos_token": family.bos} if family.bos else {})
    write_tokenizer(folder, family.tokens, **named)
    if family.stops:
        stops = {"eos_token_id": [family.tokens.index(token) for token in family.stops]}
        (folder / "generation_config.json").write_text(json.dumps(stops), encoding="utf-8")
    (folder / "chat_template.jinja").write_bytes((TEMPLATES / f"{name}.jinja").read_bytes())
    return folder


def load_family(name: str, folder: Path) -> ChatTemplate:
    """Return the checked template of a family."""
    template = write_family(name, folder) / "chat_template.jinja"
    return ChatTemplate.load(str(template), folder, settings=Settings(date=FAMILIES[name].date))
