"""A dialogue with a model in the terminal: `make chat` (sft.inspect.chat).

A Hugging Face folder, a prompt or what is typed  ->  answers on stdout as they are generated: greedy, with transformers
and the chat template of the folder. What you type is text: a control token of the tokenizer in it is not sent.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2
from rich.console import Console
from transformers import AutoTokenizer, GenerationConfig, TextStreamer

from sft.cli import InputError
from sft.evaluation.generate import load_model
from sft.formats.flags import UnfitRowError
from sft.formats.not_read import NotRead
from sft.formats.tools import parse_or_reject
from sft.formats.tools import read_tools as tools_in
from sft.inspect.terminal import Screen, aside, visible

TOOL_CALL, REASONING_END = "<tool_call>", "</think>"
Message = dict[str, str]


class Stream(TextStreamer):  # type: ignore[misc]
    """Passes text on as soon as its words are whole, without the prompt and the token that ends the answer."""

    def __init__(self, tokenizer: Any, stop_ids: list[int], write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True)
        self._write, self._ends = write, [tokenizer.decode([token]) for token in stop_ids]

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Take the next piece."""
        for end in self._ends if stream_end else ():
            text = text.removesuffix(end)
        self._write(text)


def answer(
    model: Any,
    tokenizer: Any,
    messages: list[Message],
    tools: list[Any] | None,
    write: Callable[[str], None],
    **how: Any,
) -> tuple[str, bool]:
    """Return the model's answer to messages, and whether it ended by itself; `write` gets it piece by piece.

    The token that ends it is left out.

    Args:
        how: thinking (whether the template opens reasoning), max_new_tokens.

    Raises:  InputError: the template fails with the messages.
    """
    try:
        ids = tokenizer.apply_chat_template(
            messages,
            tools=tools,
            add_generation_prompt=True,
            enable_thinking=how["thinking"],
            return_tensors="pt",
            return_dict=False,
        ).to(model.device)
    except jinja2.TemplateError as error:
        raise InputError(f"chat template: cannot render this dialogue: {error}") from error
    stops = model.generation_config.eos_token_id
    stop_ids = stops if isinstance(stops, list) else [tokenizer.eos_token_id if stops is None else stops]
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=how["max_new_tokens"],
        eos_token_id=stop_ids,
        pad_token_id=stop_ids[0],
    )
    stream = Stream(tokenizer, stop_ids, write)
    output = model.generate(ids, attention_mask=ids.new_ones(ids.shape), generation_config=config, streamer=stream)
    new = output[0, ids.shape[1] :].tolist()
    has_ended = new[-1] in stop_ids
    return str(tokenizer.decode(new[:-1] if has_ended else new)), has_ended


def as_message(answer: str, *, thinking: bool) -> Message:
    """Return an answer as a message of the dialogue: its reasoning apart, as templates take it.

    >>> as_message("7 + 5\\n</think>\\n12", thinking=True)
    {'role': 'assistant', 'content': '12', 'reasoning_content': '7 + 5'}
    """
    reasoning, end, text = answer.partition(REASONING_END)
    if not (thinking and end):
        return {"role": "assistant", "content": answer}
    return {"role": "assistant", "content": text.lstrip("\n"), "reasoning_content": reasoning.strip("\n")}


def read_tools(path: Path) -> list[Any]:
    """Return the tools in a JSON file, in any form that the filter stage reads. Raises InputError: it has none."""
    try:
        tools = tools_in(parse_or_reject(path.read_text(encoding="utf-8"), "file"), NotRead())
    except (UnfitRowError, UnicodeDecodeError) as error:
        raise InputError(f"TOOLS={path}: expected a JSON list of tools: {error}") from error
    if not tools:
        raise InputError(f"TOOLS={path}: expected a JSON list of tools, found none")
    return tools


def control_tokens(tokenizer: Any) -> list[str]:
    """Return the texts that the tokenizer reads as control tokens, wherever they are."""
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values()]
    return [text for text in tokens if len(text.strip()) > 1]


def questions(
    prompt: str | None, control: list[str], screen: Screen, asks_for_result: Callable[[], bool]
) -> Iterator[Message]:
    """Yield the prompt alone, or what is typed: a question, or the result of a tool that was called.

    A line with a control token would forge a turn of the dialogue: it is asked for again.

    Raises:  InputError: there is one in the prompt; what is typed is not UTF-8.
    """
    fault = "{!r} is a control token of this model, which text cannot have"
    if prompt is not None:
        if found := [token for token in control if token in prompt]:
            raise InputError(f"PROMPT: {fault.format(found[0])}. Leave it out.")
        yield {"role": "user", "content": prompt}
        return
    while True:
        role = "tool" if asks_for_result() else "user"
        screen.print(f"{role}> ", style="bold cyan", end="")
        sys.stdout.flush()
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise InputError(f"stdin: expected UTF-8, found {error.object[error.start]:#04x}") from error
        if not line:
            screen.print()
            return
        if found := [token for token in control if token in line]:
            screen.print(aside(fault.format(found[0])), style="yellow")
        elif line.strip():
            yield {"role": role, "content": line.rstrip("\n")}


def main(folder: Path, prompt: str | None, tools_file: Path | None, *, thinking: bool, max_new_tokens: int) -> None:
    """Answer one prompt, or what is typed."""
    tools = read_tools(tools_file) if tools_file else None
    model, screen = load_model(folder), Screen()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise InputError(f"{folder}: has no chat template. Copy one to {folder}/chat_template.jinja")
    messages: list[Message] = []

    def write(text: str) -> None:
        screen.out("\n".join(map(visible, text.split("\n"))), end="", highlight=False)
        sys.stdout.flush()

    def called() -> bool:
        return bool(messages) and TOOL_CALL in messages[-1]["content"]

    for message in questions(prompt, control_tokens(tokenizer), screen, called):
        messages.append(message)
        how = {"thinking": thinking, "max_new_tokens": max_new_tokens}
        text, has_ended = answer(model, tokenizer, messages, tools, write, **how)
        messages.append(as_message(text, thinking=thinking))
        screen.print()
        if not has_ended:
            Console(stderr=True, highlight=False).print(aside(f"cut after {max_new_tokens:,} tokens"))
