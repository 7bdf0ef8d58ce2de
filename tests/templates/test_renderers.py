# ruff: noqa: RUF001 (control tokens of DeepSeek have a bar of their own)
"""The turns of family templates against an independent renderer, `renderers` (PyPI, Apache-2.0), where it knows one.

Our templates have system texts of their own, so what is compared begins with the first question. Not compared: gpt-oss
(their renderer downloads a vocabulary), and models of theirs that no template here is for.
"""

import pytest
from renderers.configs import (
    DeepSeekR1RendererConfig,
    DeepSeekV3RendererConfig,
    GLM5RendererConfig,
    GLM45RendererConfig,
    KimiK2RendererConfig,
    KimiK25RendererConfig,
    Llama3RendererConfig,
    MiniMaxM2RendererConfig,
    Qwen3RendererConfig,
    Qwen35RendererConfig,
    Qwen36RendererConfig,
)
from renderers.deepseek_r1 import DeepSeekR1Renderer
from renderers.deepseek_v3 import DeepSeekV3Renderer
from renderers.glm5 import GLM5Renderer
from renderers.glm45 import GLM45Renderer
from renderers.kimi_k2 import KimiK2Renderer
from renderers.kimi_k25 import KimiK25Renderer
from renderers.llama_3 import Llama3Renderer
from renderers.minimax_m2 import MiniMaxM2Renderer
from renderers.qwen3 import Qwen3Renderer
from renderers.qwen35 import Qwen35Renderer
from renderers.qwen36 import Qwen36Renderer

from tests.support.families import DEEPSEEK, FAMILIES, TOOLS_OF_DEEPSEEK, load_family
from tests.support.tokenizers import write_tokenizer
from tests.templates.test_families import SHAPES
from tests.tokens.test_renderers import TheirTokenizer

VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
MEDIA = ("<|media_begin|>", "<|media_content|>", "<|media_pad|>", "<|media_end|>")
OUTPUTS = ("<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>")
# Our family -> their renderer, and the control tokens that it asks for beside those of the family.
THEIRS = {
    "qwen3": (Qwen3Renderer, Qwen3RendererConfig, ("<tool_response>", "</tool_response>")),
    "deepseek-v3": (DeepSeekV3Renderer, DeepSeekV3RendererConfig, OUTPUTS),
    "deepseek-r1": (DeepSeekR1Renderer, DeepSeekR1RendererConfig, (*TOOLS_OF_DEEPSEEK, *OUTPUTS)),
    "glm5": (GLM5Renderer, GLM5RendererConfig, ("/nothink", "<tool_response>", "</tool_response>")),
    "kimi-k2.5": (KimiK25Renderer, KimiK25RendererConfig, MEDIA),
    "minimax-m2": (MiniMaxM2Renderer, MiniMaxM2RendererConfig, ("<think>", "</think>")),
    "kimi-k2": (KimiK2Renderer, KimiK2RendererConfig, ()),
    "glm4.5": (GLM45Renderer, GLM45RendererConfig, ("/nothink", "<tool_response>", "</tool_response>")),
    "qwen3.5": (Qwen35Renderer, Qwen35RendererConfig, ("<tool_response>", "</tool_response>", *VISION)),
    "qwen3.6": (Qwen36Renderer, Qwen36RendererConfig, ("<tool_response>", "</tool_response>", *VISION)),
    "llama3": (Llama3Renderer, Llama3RendererConfig, ()),
}
ALIKE = ("one turn", "system", "several turns", "empty answer", "blank ends")
REASONING = ("reasoning last", "reasoning each")
TEMPLATES = {"qwen3.6": "qwen3.5"}  # where the template has another name
TOOLS = ("tool", "parallel calls", "words and call", "JSON result")
MORE = {
    "minimax-m2": ("system between", *TOOLS, *REASONING),
    "glm5": ("system between", *TOOLS, *REASONING),
    "kimi-k2.5": ("system between", *TOOLS, *REASONING),
    "qwen3.6": (*TOOLS, *REASONING),
    "qwen3": ("tool", "parallel calls", *REASONING),
    "qwen3.5": (*TOOLS, *REASONING),
    "glm4.5": (*TOOLS, *REASONING),
    "deepseek-r1": ("reasoning each",),
}


@pytest.mark.parametrize("name", THEIRS)
def test_turns_and_prompts_are_theirs(tmp_path, name):
    renderer, config, more = THEIRS[name]
    family = TEMPLATES.get(name, name)
    chat = load_family(family, tmp_path / "ours")
    theirs = renderer(TheirTokenizer(write_tokenizer(tmp_path / "theirs", (*FAMILIES[family].tokens, *more))), config())
    for shape in (*ALIKE, *MORE.get(name, ())):
        messages, tools = SHAPES[shape]
        question = next(message["content"].strip() for message in messages if message["role"] == "user")
        for shown, prompted in ((messages, False), (messages[:-1], True)):
            ids = theirs.render_ids(shown, tools=tools, add_generation_prompt=prompted)
            ours = chat.render(shown, tools, thinking=True, generation_prompt=prompted)
            expected = theirs._tokenizer.decode(ids).partition(question)[2]
            assert ours.partition(question)[2] == expected, (shape, prompted)


def test_a_spliced_answer_follows_their_prompt(tmp_path):
    renderer, config, more = THEIRS["deepseek-r1"]
    chat = load_family("deepseek-r1", tmp_path / "ours")
    folder = write_tokenizer(tmp_path / "theirs", (*DEEPSEEK, *more))
    theirs = renderer(TheirTokenizer(folder), config())
    messages, _ = SHAPES["reasoning each"]
    for sample, end in zip(chat.render_samples(messages, None), (1, 3), strict=True):
        ((start, behind),) = sample.spans
        prompt = theirs._tokenizer.decode(theirs.render_ids(messages[:end], add_generation_prompt=True))
        assert (sample.text[:start], behind) == (prompt, len(sample.text))
