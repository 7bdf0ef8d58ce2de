"""chat: talk to a trained model in the terminal.

    make chat                                 a dialogue; Ctrl-D ends it
    make chat PROMPT='What is 7 + 5?'         one answer
    make chat TOOLS=tools.json                with tools: after a call you type its result

models/final (or another Hugging Face folder), a prompt or what is typed  ->  answers on stdout as they are generated:
greedy, with transformers and the chat template of the folder. What you type is text: a control token of the tokenizer
in it is not sent. The options are checked before torch and transformers are loaded, which takes seconds.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2
from rich.console import Console

from sft.cli import InputError, at_least, make_parser, run_or_exit
from sft.formats.flags import UnfitRowError
from sft.formats.not_read import NotRead
from sft.formats.tools import parse_or_reject
from sft.formats.tools import read_tools as tools_in
from sft.inspect.terminal import Screen, aside, visible
from sft.weight_files import require_model

FINAL = Path("models/final")
MAX_NEW_TOKENS = 1_024
TOOL_CALL, REASONING_END = "<tool_call>", "</think>"
Message = dict[str, str]


def stream_to(write: Callable[[str], None], tokenizer: Any, stop_ids: list[int]) -> Any:
    """Return a streamer that writes text as soon as its words are whole, without the prompt and the end token."""
    from transformers import TextStreamer

    ends = [tokenizer.decode([token]) for token in stop_ids]

    def on_finalized_text(text: str, stream_end: bool = False) -> None:
        for end in ends if stream_end else ():
            text = text.removesuffix(end)
        write(text)

    stream = TextStreamer(tokenizer, skip_prompt=True)
    stream.on_finalized_text = on_finalized_text
    return stream


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
    from transformers import GenerationConfig

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
    stream = stream_to(write, tokenizer, stop_ids)
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
    """Answer one prompt, or what is typed. Raises InputError: the folder holds no model, the file no tools."""
    require_model(folder)
    tools = read_tools(tools_file) if tools_file else None
    from transformers import AutoTokenizer

    from sft.evaluation.generate import load_model

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


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--model", type=Path, default=FINAL, metavar="FOLDER", help=f"default: {FINAL}")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this and end")
    parser.add_argument("--tools", type=Path, metavar="FILE", help="JSON: a list of tools")
    parser.add_argument("--thinking", action="store_true", help="let the model reason first")
    parser.add_argument(
        "--max-new-tokens", type=at_least(1), default=MAX_NEW_TOKENS, metavar="N", help="longest answer"
    )
    given = parser.parse_args()
    run_or_exit(
        lambda: main(
            given.model, given.prompt, given.tools, thinking=given.thinking, max_new_tokens=given.max_new_tokens
        )
    )
